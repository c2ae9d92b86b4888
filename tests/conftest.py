"""Settings shared by all tests."""

import gc
import os
import random

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_finish():
    """What the modules and tests are made of lives to the end; no garbage collection need look at it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_unconfigure():
    """The process ends: pytest would take seconds to free the graphs of all tests first."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Every test begins at the same seed, also the fixtures made for it, in whatever order and process it runs.

    Keras takes its default seeds from Python's generator. `keras.utils.set_random_seed` would empty TensorFlow's caches
    too, and made the tests an eighth slower.
    """
    random.seed(0)
