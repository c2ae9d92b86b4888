"""Conditions in the builders: concatenation, FiLM and labels; vectors, images and dictionaries of conditions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm import networks

RNG = np.random.default_rng(0)
CONDITIONS = {
    "number": ({"condition_shape": ()}, RNG.normal(size=6)),
    "vector": ({"condition_shape": (3,)}, RNG.normal(size=(6, 3))),
    "label": ({"num_labels": 3}, np.arange(6) % 3),
    "labels": ({"condition_shape": (2,), "num_labels": 3}, RNG.integers(0, 3, size=(6, 2))),
    "image": ({"condition_shape": (4, 4, 1)}, RNG.normal(size=(6, 4, 4, 1))),
    "small image": ({"condition_shape": (2, 2, 1)}, RNG.normal(size=(6, 2, 2, 1))),
    "several": (
        {"condition_shape": {"a": (2,), "label": (), "map": (4, 4, 2)}, "num_labels": {"label": 4}},
        {"a": RNG.normal(size=(6, 2)), "label": np.arange(6) % 4, "map": RNG.normal(size=(6, 4, 4, 2))},
    ),
}
BUILDERS = {
    "mlp": lambda **options: networks.mlp([2], units=[4, 5], **options),
    "convnet": lambda **options: networks.convnet([4, 4, 1], filters=[3, 4], units=[5], **options),
}


def rolled(c):
    return {name: np.roll(part, 1, 0) for name, part in c.items()} if isinstance(c, dict) else np.roll(c, 1, 0)


@pytest.mark.parametrize("conditioning", ["concatenation", "film"])
@pytest.mark.parametrize(
    ("build", "kind"),
    [*(("mlp", kind) for kind in CONDITIONS), *(("convnet", kind) for kind in ("label", "small image", "several"))],
)
def test_the_score_depends_on_the_condition(build, kind, conditioning):
    """Not the energy alone: a term of c alone would change no density."""
    options, c = CONDITIONS[kind]
    network = BUILDERS[build](conditioning=conditioning, seed=1, **options)
    model = ebm.EnergyModel(network)
    x = RNG.normal(size=(6, *model.event_shape)).astype("float32")
    assert model.is_conditional and model.energy(x, c).shape == (6,)
    scores = [model.score(x, given).numpy().reshape(6, -1) for given in (c, rolled(c))]
    assert (np.abs(scores[0] - scores[1]).max(1) > 1e-5).all()


def test_concatenation_and_film_are_the_formulas_of_the_docstring():
    x, c = RNG.normal(size=(5, 2)), RNG.normal(size=(5, 3))
    options = {"units": [4], "activation": "tanh", "condition_shape": [3], "dtype": "float64", "seed": 0}
    network = networks.mlp([2], **options)
    w, b, last = [weight.numpy() for weight in network.weights]
    np.testing.assert_allclose(network([x, c]), np.tanh(np.c_[x, c] @ w + b) @ last, rtol=1e-12)
    network = networks.mlp([2], conditioning="film", **options)

    def of(name):
        return [weight.numpy() for weight in network.get_layer(name).weights]

    (w, b), (wc, bc), (wg, bg), (wb, bb) = map(of, ("hidden_0", "condition_hidden", "hidden_0_scale", "hidden_0_shift"))
    hidden = np.tanh(c @ wc + bc)
    expected = np.tanh((hidden @ wg + bg) * (x @ w + b) + hidden @ wb + bb) @ of("energy")[0]
    np.testing.assert_allclose(network([x, c]), expected, rtol=1e-12)
    assert (bg == 1.0).all()
    wrong = np.tanh((hidden @ wg + bg - 1.0) * (x @ w + b) + hidden @ wb + bb) @ of("energy")[0]
    assert np.abs(network([x, c]) - wrong).max() > 0.01  # control: γ around 0


def test_the_seed_fixes_the_weights():
    options = {"condition_shape": [3], "num_labels": None, "conditioning": "film"}
    first, same, other = (networks.mlp([2], [4], seed=seed, **options).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(*pair) for pair in zip(first, same, strict=True))
    ones = [np.all(weight == 1.0) for weight in first]  # γ starts at 1
    assert not any(np.array_equal(a, b) for a, b, one in zip(first, other, ones, strict=True) if not one)


@pytest.mark.parametrize("dtype", ["float64", "mixed_float16"])
def test_policy_reaches_every_layer(dtype):
    options, c = CONDITIONS["several"]
    for conditioning in ("concatenation", "film"):
        network = networks.convnet([4, 4, 1], [2], units=[3], dtype=dtype, conditioning=conditioning, **options)
        hidden = [layer for layer in network.layers if layer.weights and layer.name != "energy"]
        assert all(layer.dtype_policy.name == dtype for layer in hidden)
        model = ebm.EnergyModel(network)
        energy = model.energy(np.zeros((6, 4, 4, 1), model.dtype), c)
        assert energy.dtype == ("float64" if dtype == "float64" else "float32")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["label", "several"])
def test_fit_predict_and_files(kind, tmp_path):
    options, c = CONDITIONS[kind]
    model = ebm.EnergyModel(networks.mlp([2], units=[8], conditioning="film", **options))
    x = RNG.normal(size=(6, 2)).astype("float32")
    model.compile(keras.optimizers.Adam(1e-2), "sliced_score_matching")
    history = model.fit(x, c, batch_size=3, validation_data=(x, c), verbose=0).history
    assert np.isfinite(history["val_loss"][0])
    model.fit(tf.data.Dataset.from_tensor_slices((x, c)).batch(3), verbose=0, shuffle=False)
    weighted = tf.data.Dataset.from_tensor_slices((x, c, np.ones(6, "float32"))).batch(3)
    model.fit(weighted, verbose=0, shuffle=False)
    model.train_on_batch(x, c)
    energy = model.energy(x, c)
    np.testing.assert_allclose(np.reshape(model.predict([x, c], verbose=0), -1), energy, rtol=1e-5, atol=1e-5)
    one = {name: part[2] for name, part in c.items()} if isinstance(c, dict) else c[2]
    given = model.given(one)
    np.testing.assert_allclose(given.energy(x[2]), energy[2], rtol=1e-5)
    batch = model.given(c)
    np.testing.assert_allclose(batch.unnormalized_log_prob(x), -energy, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.energy(x, c), energy)
    assert loaded.evaluate(x, c, verbose=0) == model.evaluate(x, c, verbose=0)
    given.save(tmp_path / "given.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "given.keras").energy(x), given.energy(x))


@keras.saving.register_keras_serializable("tests")
class OfSeveral(keras.Model):
    """A subclassed network of x and a dictionary."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden, self.out, self.embedding = (
            keras.layers.Dense(8, "silu"), keras.layers.Dense(1), keras.layers.Embedding(3, 2),
        )  # fmt: skip

    def call(self, x, c):
        return self.out(self.hidden(tf.concat([x, c["a"], self.embedding(c["label"])], -1)))


def test_a_subclassed_network_of_a_dictionary(tmp_path):
    shapes = {"condition_shape": {"label": (), "a": (2,)}, "condition_dtype": {"label": "int32"}}
    model = ebm.EnergyModel(OfSeveral(), event_shape=[2], **shapes)
    x, c = RNG.normal(size=(6, 2)).astype("float32"), {"a": RNG.normal(size=(6, 2)), "label": np.arange(6) % 3}
    direct = model.network.network(x, {"a": tf.constant(c["a"], tf.float32), "label": tf.constant(c["label"])})
    np.testing.assert_allclose(model.energy(x, c), direct[:, 0], rtol=1e-5)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras").energy(x, c), model.energy(x, c))


SEVERAL = CONDITIONS["several"][0]
LABELLED = networks.mlp([2], units=[4], condition_shape={"a": (2,), "label": ()}, num_labels={"label": 3})
X = np.zeros((6, 2), "float32")
BAD = {
    "conditioning": (lambda: networks.mlp([2], condition_shape=[2], conditioning="sum"), ValueError, "`conditioning`"),
    "units": (lambda: networks.mlp([2], [], condition_shape=[2]), ValueError, "`units` must have at least one"),
    "film units": (lambda: networks.mlp([2], [], num_labels=3, conditioning="film"), ValueError, "`units` must have"),
    "shape": (lambda: networks.mlp([2], condition_shape=3), TypeError, "`condition_shape` must be a list"),
    "size": (lambda: networks.mlp([2], condition_shape=[0]), ValueError, r"`condition_shape\[0\]`"),
    "labels": (lambda: networks.mlp([2], num_labels=1), ValueError, "`num_labels`"),
    "empty": (lambda: networks.mlp([2], condition_shape={}), ValueError, "`condition_shape` must hold at least one"),
    "names": (
        lambda: networks.mlp([2], condition_shape={"a": ()}, num_labels={"b": 2}),
        ValueError,
        "`num_labels` must have names",
    ),
    "not named": (
        lambda: networks.mlp([2], condition_shape={"a": ()}, num_labels=2),
        TypeError,
        "`num_labels` must be a dictionary",
    ),
    "missing": (
        lambda: ebm.EnergyModel(LABELLED).energy(X, {"a": np.zeros((6, 2))}),
        ValueError,
        r"`condition` must have the names \['a', 'label'\]",
    ),
    "fractions": (
        lambda: ebm.EnergyModel(LABELLED).energy(X, {"a": np.zeros((6, 2)), "label": np.full(6, 0.5)}),
        TypeError,
        r"`condition\['label'\]` must hold whole numbers",
    ),
    "axes": (
        lambda: ebm.EnergyModel(LABELLED).energy(X, {"a": np.zeros((6, 3)), "label": np.zeros(6)}),
        ValueError,
        r"`condition\['a'\]` must have shape",
    ),
    "no dictionary": (
        lambda: ebm.EnergyModel(networks.mlp([2], [4], condition_shape=[2])).energy(X, {"a": np.zeros((6, 2))}),
        TypeError,
        "`condition` must be an array",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
