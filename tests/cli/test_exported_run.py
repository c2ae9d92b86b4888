"""The SavedModel that `fit` writes: by default with `draw`, which TensorFlow alone runs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfp_ebm.cli import main

LOADED = """
import json, sys
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
assert not any(name.split(".")[0] in ("tensorflow_probability", "tfp_ebm") for name in sys.modules)
x = loaded.draw(tf.constant(1500), tf.constant([0, 1]))["states"].numpy()
log_z = [float(loaded.draw(tf.constant(1), tf.constant([1, i]))["log_normalizer"]) for i in range(4)]
print(json.dumps({"x": x.tolist(), "log_z": log_z}))
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of two clusters."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2)) + np.where(np.arange(600) % 10 < 3, 4.0, -4.0)[:, None]
    path = tmp_path_factory.mktemp("table") / "table.npy"
    np.save(path, x)
    return path


def fitted(table, out, *options):
    """Runs `fit` for a few steps, and returns the names of the exported endpoints."""
    shown = ["--quiet", "--steps", "60", "--units", "16", "-n", "1500", "--loss", "nce"]
    main(["fit", str(table), "--out", str(out), *shown, *options])
    return set(tf.saved_model.load(str(out / "saved_model")).signatures)


@pytest.mark.long
def test_the_default_of_fit_exports_draws_that_agree_with_its_samples(table, tmp_path):
    assert {"sample", "draw"} <= fitted(table, tmp_path / "run")
    command = [sys.executable, "-c", LOADED, str(tmp_path / "run" / "saved_model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    x, samples = np.array(result["x"]), np.load(tmp_path / "run" / "samples.npy")
    assert x.shape == samples.shape == (1500, 2) and np.isfinite(x).all()
    # at least 400 effective draws each: a standard error of .035 of the difference of shares, of .07 sd of means
    assert abs(np.mean(x[:, 0] > 0) - np.mean(samples[:, 0] > 0)) < 0.14
    assert (np.abs(x.mean(0) - samples.mean(0)) < 0.28 * samples.std(0)).all()
    sampling = json.loads((tmp_path / "run" / "report.json").read_text())["draws"]
    assert sampling["sampler"] == "smc"
    assert abs(np.mean(result["log_z"]) - sampling["log_normalizer"]) < 0.3


@pytest.mark.long
def test_a_sampler_of_chains_exports_its_kernel_alone(table, tmp_path):
    names = fitted(table, tmp_path / "run", "--sampler", "hmc", "--burnin", "20", "--num-chains", "100")
    assert "sample" in names and "draw" not in names
