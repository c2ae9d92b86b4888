"""The exported endpoint `draw`: right shares, unbiased Ẑ and checks of shapes, in a process without this package."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
import tfp_ebm.mcmc.running.particles as particles
from tfp_ebm.mcmc.sequential_monte_carlo import frozen_run

tfd = tfp.distributions
LOADED = """
import json, sys
import numpy as np
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
assert not any(name.split(".")[0] in ("tensorflow_probability", "tfp_ebm") for name in sys.modules)
drawn = loaded.draw(tf.constant(1500), tf.constant([0, 1]))
x = drawn["states"].numpy()
assert np.array_equal(x, loaded.draw(tf.constant(1500), tf.constant([0, 1]))["states"])
assert not np.array_equal(x, loaded.draw(tf.constant(1500), tf.constant([0, 2]))["states"])
z = [float(loaded.draw(tf.constant(1), tf.constant([1, i]))["log_normalizer"]) for i in range(12)]
refused = 0
for name, wrong in (
    ("draw", {"num_samples": tf.constant([1, 2]), "seed": tf.constant([0, 1])}),
    ("draw", {"num_samples": tf.constant(0), "seed": tf.constant([0, 1])}),
    ("draw", {"num_samples": tf.constant(5), "seed": tf.constant([0, 1, 2])}),
):
    try:
        loaded.signatures[name](**wrong)
    except tf.errors.InvalidArgumentError:
        refused += 1
one = loaded.draw(tf.constant(1), tf.constant([0, 3]))["states"].shape.as_list()
verdict = {"error": float(drawn["standard_error"]), "trouble": int(drawn["trouble"])}
result = {**verdict, "share": float(np.mean(x[:, 0, 0] > 5)), "mean": x.mean(0).tolist(), "shape": x.shape, "one": one}
print(json.dumps({**result, "log_z": z, "refused": refused, "distinct": len(np.unique(x[:, 0, 0]))}))
"""


class TwoModes(keras.layers.Layer):
    """E_z of the modes .7 N((1.5, 0), .05 I) and .3 N((−1.5, 0), .05 I), with Z = 2π · .05; states `[1, 2]`."""

    def call(self, z):
        z = tf.reshape(z, [-1, 2])
        parts = [
            np.log(share) - tf.reduce_sum((z - [loc, 0.0]) ** 2, -1) / 0.1 for share, loc in ((0.7, 1.5), (0.3, -1.5))
        ]
        return -tf.reduce_logsumexp(tf.stack(parts), 0)


@pytest.mark.long
def test_a_process_with_tensorflow_alone_draws_the_right_shares(tmp_path, capsys):
    model = ebm.EnergyModel(TwoModes(), event_shape=(1, 2))
    model.adapt(np.random.default_rng(0).normal(5.0, [3.0, 1.0], size=(1000, 1, 2)).astype("float32"))
    model.export(tmp_path / "saved")
    assert capsys.readouterr().out.rstrip(".\n").endswith("sample, draw")
    command = [sys.executable, "-c", LOADED, str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["shape"] == [1500, 1, 2] and result["one"] == [1, 1, 2] and result["refused"] == 3
    # at least 500 effective draws: standard error .02; in x, the mean of the modes is 5 + 3 · 1.5 · (.7 − .3)
    assert abs(result["share"] - 0.7) < 0.08 and abs(result["mean"][0][0] - 6.8) < 0.8
    assert result["distinct"] > 1400
    assert result["trouble"] == 0 and 0 < result["error"] < 0.2
    z = np.exp(np.array(result["log_z"]) - np.log(2 * np.pi * 0.05))
    error = z.std(ddof=1) / np.sqrt(len(z))
    assert abs(z.mean() - 1) < 5 * error < 0.15 and len(np.unique(z)) == len(z)


def skewed_z():
    """(mean of exported Ẑ)/Z − 1 in standard errors, and this error, of 200 passes of a skewed density; Z = e²."""

    def target(x):
        y = (x[:, 0] - 1.0) / 0.5
        return 2.0 - y - tf.exp(-y) - np.log(0.5)

    base = tfd.MultivariateNormalDiag(tf.zeros([1], tf.float64), tf.fill([1], tf.constant(2.0, tf.float64)))
    frozen, drawn = frozen_run(target, base)
    assert drawn.trouble == ()

    @tf.function(autograph=False)
    def estimates(num):
        one = tf.constant(1)
        return tf.map_fn(lambda i: frozen.draw(target, one, tf.stack([7, i])).log_normalizer, tf.range(num), tf.float64)

    z = np.exp(estimates(200).numpy() - 2.0)
    error = z.std(ddof=1) / np.sqrt(len(z))
    return (z.mean() - 1) / error, error


@pytest.mark.slow
def test_the_mean_of_exported_z_is_z():
    # |t₁₉₉| < 4 has a false alarm rate of 10⁻⁴; the standard error is about .2 %
    score, error = skewed_z()
    assert abs(score) < 4 and error < 0.01


@pytest.mark.long
def test_a_wrong_weight_biases_exported_z(monkeypatch):
    def wrong(settings, now, beta):
        return now._replace(log_weights=now.log_weights + 1.02 * now.log_ratio * (beta - now.beta), beta=beta)

    monkeypatch.setattr(particles, "_weighted", wrong)
    assert abs(skewed_z()[0]) > 4
