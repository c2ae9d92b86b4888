"""A Keras backend other than TensorFlow is refused by name when the package is imported."""

import os
import subprocess
import sys

import pytest


# The control, on TensorFlow, is the import of the module, which imports the package first.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "module"),
    [("numpy", "tfp_ebm"), ("numpy", "tfp_ebm.energy.function"), ("tensorflow", "tfp_ebm.energy.function")],
)
def test_the_backend_is_checked_at_import(backend, module):
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", f"import {module}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    if backend == "tensorflow":  # the negative control
        assert result.returncode == 0, result.stderr[-1000:]
        return
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tfp_ebm needs Keras on the TensorFlow backend, but Keras runs on 'numpy'")
    assert "KERAS_BACKEND=tensorflow" in last


def test_the_command_line_refuses_it_too():
    environment = {**os.environ, "KERAS_BACKEND": "numpy", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-m", "tfp_ebm", "fit", "two_moons", "--out", os.devnull + "/none"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert result.returncode != 0
    assert "tfp_ebm needs Keras on the TensorFlow backend, but Keras runs on 'numpy'" in result.stderr
