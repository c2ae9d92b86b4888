"""Settings shared by all tests."""

import contextlib
import ctypes
import gc
import os
import random

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True, scope="module")
def memory():
    """Frees the graphs of the tests of a file and returns their memory to the system: they add up to 10 GB."""
    yield
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Every test begins at the same seed, also the fixtures made for it, in whatever order and process it runs.

    Keras takes its default seeds from Python's generator. `keras.utils.set_random_seed` would empty TensorFlow's caches
    too, and made the tests an eighth slower.
    """
    random.seed(0)
