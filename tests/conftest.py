"""Settings shared by all tests."""

import os
import random

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Every test begins at the same seed, also the fixtures made for it, in whatever order and process it runs.

    Keras takes its default seeds from Python's generator. `keras.utils.set_random_seed` would empty TensorFlow's caches
    too, and made the tests an eighth slower.
    """
    random.seed(0)
