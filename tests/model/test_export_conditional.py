"""Exports of conditional models: endpoints with the condition, chains and exact draws of each row."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.networks.targets import RegressionEnergy, TargetEnergy

RNG = np.random.default_rng(0)
X = RNG.normal(3.0, 2.0, size=(8, 2)).astype("float32")
CONDITIONS = {
    "vector": ({"condition_shape": [3]}, RNG.normal(size=(8, 3)).astype("float32")),
    "several": (
        {"condition_shape": {"a": [2], "label": []}, "num_labels": {"label": 3}},
        {"a": RNG.normal(size=(8, 2)).astype("float32"), "label": np.arange(8) % 3},
    ),
}
LOADED = """
import sys
import numpy as np
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
assert not any(name.split(".")[0] in ("tensorflow_probability", "tfp_ebm") for name in sys.modules)
data = np.load(sys.argv[2])
np.testing.assert_array_equal(loaded.energy(data["x"], data["c"]), data["energy"])
np.testing.assert_array_equal(loaded.score(data["x"], data["c"]), data["score"])
served = loaded.signatures["serving_default"](x=data["x"], condition=data["c"])
np.testing.assert_array_equal(list(served.values())[0], data["energy"])
x = loaded.sample(tf.constant(data["x"]), tf.constant(data["c"]), tf.constant([0, 1]), tf.constant(5))
assert x.shape == data["x"].shape and np.isfinite(x).all()
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", CONDITIONS)
def test_energies_scores_and_chains_of_each_row(kind, tmp_path):
    """Bit-equal energies and scores, also after `.keras`; chains of a row do not depend on the others' conditions."""
    options, c = CONDITIONS[kind]
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], **options), base_measure=ebm.fit_base(X))
    model.adapt(X)
    rows = model.network.pack(c).astype("float32") if isinstance(c, dict) else c
    model.export(tmp_path / "saved", kernel=ebm.mcmc.HMC(0.3, 2), verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.energy(X, rows), model.energy(X, c))
    np.testing.assert_array_equal(loaded.serve(X, rows), model.energy(X, c))
    np.testing.assert_array_equal(loaded.unnormalized_log_prob(X, rows), -model.energy(X, c))
    words, steps = tf.constant([0, 1]), tf.constant(4)
    drawn = loaded.sample(X, rows, words, steps)
    other = np.array(rows)
    other[1:] = np.roll(other[1:], 1, 0)
    changed = loaded.sample(X, other, words, steps)
    np.testing.assert_allclose(changed[0], drawn[0], rtol=1e-5)
    assert np.abs(changed[1:] - drawn[1:]).max() > 1e-3
    assert not np.array_equal(loaded.sample(X, rows, words, steps, step_size=tf.constant(0.1)), drawn)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`condition`"):
        loaded.sample(X, rows[:3], words, steps)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.energy(X, c), model.energy(X, c))
    if kind == "vector":
        arrays = {"x": X, "c": rows, "energy": model.energy(X, c), "score": model.score(X, c)}
        np.savez(tmp_path / "data.npz", **arrays)
        command = [sys.executable, "-c", LOADED, str(tmp_path / "saved"), str(tmp_path / "data.npz")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr


@keras.saving.register_keras_serializable("tests")
class Shifted(keras.Model):
    """The energy ½‖x − c‖²."""

    def build(self, x_shape, c_shape):
        self.weight = self.add_weight(shape=(), initializer="ones", name="weight")
        self.built = True

    def call(self, x, c):
        return 0.5 * self.weight.value * tf.reduce_sum(tf.square(x - c[:, None]), -1)


@pytest.mark.slow
def test_chains_have_the_distribution_of_their_condition(tmp_path):
    """The mean of 500 chains of each of two conditions within 4.5 standard errors, with an adapted step size."""
    base = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [3.0, 3.0])
    model = ebm.EnergyModel(Shifted(), event_shape=[2], condition_shape=())
    x = np.asarray(base.sample(200, seed=1))
    model._fitted_base.assign(ebm.energy.moments.DataMoments.of([x]))
    model.export(tmp_path / "saved", verbose=False, condition=[-2.0, 2.0])
    loaded = tf.saved_model.load(tmp_path / "saved")
    c = np.resize(np.array([-2.0, 2.0], "float32"), 1000)
    drawn = loaded.sample(tf.zeros([1000, 2]), c, tf.constant([0, 3]), tf.constant(40)).numpy()
    for value in (-2.0, 2.0):
        assert np.abs(drawn[c == value].mean(0) - value).max() < 4.5 / np.sqrt(500)


@pytest.mark.slow
def test_exact_draws_of_each_condition(tmp_path):
    model = ebm.EnergyModel(RegressionEnergy([TargetEnergy(3, 2, units=(8,))]))
    c = RNG.normal(size=(5, 3)).astype("float32")
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.log_prob(X[:5], c), -model.energy(X[:5], c))
    drawn = loaded.sample(c, tf.constant([0, 1]))
    assert drawn.shape == (5, 2) and np.isfinite(drawn).all()
    np.testing.assert_array_equal(drawn, loaded.draw(c, tf.constant([0, 1]))["states"])


def test_bad_input_is_named(tmp_path):
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[4]))
    with pytest.raises(ValueError, match="`condition` must not be given"):
        model.export(tmp_path / "saved", condition=[1.0])
    with pytest.raises(TypeError, match="are for format 'tf_saved_model'"):
        model.export(tmp_path / "file.onnx", format="onnx", condition=[1.0])
