"""A Keras backend other than TensorFlow is refused by name when the package is imported."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["tfp_ebm", "tfp_ebm.energy.function"])
@pytest.mark.parametrize("backend", ["numpy", "tensorflow"])
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
