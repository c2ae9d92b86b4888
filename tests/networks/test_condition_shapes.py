"""Conditions of any shape: vectors, images, labels; functional and subclassed networks; fit, energies, given, files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm

RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 3.0, size=(60, 2)).astype("float32")
CONDITIONS = {
    "vector": RNG.normal(size=(60, 3)),
    "image": RNG.normal(size=(60, 4, 4, 1)).astype("float32"),
    "label": RNG.integers(0, 3, 60),
}


def embedding(kind):
    return keras.layers.Embedding(3, 4) if kind == "label" else keras.layers.Flatten()


def functional(kind):
    shape = CONDITIONS[kind].shape[1:]
    x, c = keras.Input((2,)), keras.Input(shape, dtype="int32" if kind == "label" else "float32")
    h = keras.layers.Dense(8, "silu")(keras.layers.Concatenate()([x, embedding(kind)(c)]))
    return keras.Model([x, c], keras.layers.Dense(1)(h))


@keras.saving.register_keras_serializable("tests")
class Joined(keras.Model):
    """A subclassed network of x and any condition."""

    def __init__(self, kind, **kwargs):
        super().__init__(**kwargs)
        self.kind, self.embedding = kind, embedding(kind)
        self.hidden, self.out = keras.layers.Dense(8, "silu"), keras.layers.Dense(1)

    def call(self, x, c):
        return self.out(self.hidden(tf.concat([x, self.embedding(c)], -1)))

    def get_config(self):
        return {"kind": self.kind}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["functional", "subclassed", "subclassed, shape of x known"])
@pytest.mark.parametrize("kind", CONDITIONS)
def test_fit_energies_given_and_files(kind, form, tmp_path):
    c = CONDITIONS[kind]
    network = functional(kind) if form == "functional" else Joined(kind)
    model = ebm.EnergyModel(network, event_shape=(2,) if "known" in form else None, seed=1)
    model.adapt(X)
    is_persistent = (kind, form) in (("label", "functional"), ("vector", "subclassed"))
    loss = ebm.losses.DenoisingScoreMatching(0.3)
    if is_persistent:
        loss = ebm.losses.PersistentContrastiveDivergence(num_steps=2, capacity=32)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    history = model.fit(X, c, batch_size=20, validation_split=0.2, verbose=0).history
    assert np.isfinite(history["val_loss"][0])
    np.testing.assert_allclose(model.base.mean(), X.mean(0), rtol=1e-4)  # that of `adapt`
    weighted = tf.data.Dataset.from_tensor_slices((X, c, np.ones(60, "float32"))).batch(20)
    model.fit(weighted, verbose=0, shuffle=False)
    if is_persistent:
        kept = loss.chains.conditions.numpy()
        assert all((np.asarray(c, kept.dtype) == one).reshape(60, -1).all(1).any() for one in kept), (
            "conditions of rows"
        )

    energy = model.energy(X, c)
    assert energy.shape == (60,) and np.ptp(energy - model.energy(X, np.roll(c, 1, 0))) > 1e-4, "c must matter"
    np.testing.assert_allclose(
        model.energy(X.reshape(3, 20, 2), c.reshape(3, 20, *c.shape[1:])), np.reshape(energy, (3, 20)), rtol=1e-5
    )
    np.testing.assert_allclose(np.reshape(model.predict([X, c], verbose=0), -1), energy, rtol=1e-4, atol=1e-5)
    given = model.given(c[7])
    assert not given.is_conditional
    np.testing.assert_array_equal(given.energy(X), model.energy(X, c[7]))
    np.testing.assert_allclose(given.energy(X[7]), energy[7], rtol=1e-5)
    np.testing.assert_allclose(given.score(X), model.score(X, c[7]), rtol=1e-5, atol=1e-6)

    result = model.evaluate(X, c, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.energy(X, c), energy)
    assert loaded.evaluate(X, c, verbose=0) == result
    given.save(tmp_path / "given.keras")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "given.keras").energy(X), given.energy(X))


VECTOR, LABEL, N = CONDITIONS["vector"], CONDITIONS["label"], 60


@pytest.fixture(scope="module")
def models():
    vector, label = ebm.EnergyModel(functional("vector")), ebm.EnergyModel(functional("label"))
    vector.compile(loss="denoising_score_matching")
    label.compile(loss="denoising_score_matching")
    return vector, label


BAD = {
    "missing": (lambda v, w: v.fit(X, verbose=0), ValueError, "`y` must be given: DenoisingScoreMatching"),
    "missing in a dataset": (
        lambda v, w: v.fit(tf.data.Dataset.from_tensor_slices(X).batch(10), verbose=0, shuffle=False),
        ValueError,
        "`y` must be given",
    ),
    "rows": (lambda v, w: v.fit(X, VECTOR[:5], verbose=0), ValueError, r"`y` must have shape \(60, 3\)"),
    "size": (lambda v, w: v.fit(X, VECTOR[:, :2], verbose=0), ValueError, r"`y` must have shape \(60, 3\)"),
    "nan": (lambda v, w: v.fit(X, np.full((N, 3), np.nan), verbose=0), ValueError, "`y` must be finite, got 180"),
    "text": (lambda v, w: v.fit(X, np.full((N, 3), "a"), verbose=0), TypeError, "`y` must hold real numbers"),
    "fractions": (lambda v, w: w.fit(X, X[:, 0], verbose=0), TypeError, "`y` must hold whole numbers"),
    "validation": (
        lambda v, w: v.fit(X, VECTOR, validation_data=(X, VECTOR[:2]), verbose=0),
        ValueError,
        r"`validation_data\[1\]` must have shape",
    ),
    "energy without": (lambda v, w: v.energy(X), ValueError, "`condition` must be given"),
    "energy rows": (lambda v, w: v.energy(X, VECTOR[:5]), ValueError, "`condition` must be a single condition or"),
    "energy size": (lambda v, w: v.energy(X, VECTOR[:, :2]), ValueError, r"`condition` must have shape \[..., 3\]"),
    "energy of fractions": (lambda v, w: w.energy(X, X[:, 0]), TypeError, "`condition` must hold whole numbers"),
    "given number": (lambda v, w: v.given(1.0), ValueError, r"`condition` must have shape \(3,\), got \(\)"),
    "given columns": (lambda v, w: v.given(VECTOR[:2, :2]), ValueError, r"`condition` must have shape \[..., 3\]"),
    "given nan": (lambda v, w: v.given([0.0, np.nan, 0.0]), ValueError, "`condition` must be finite"),
    "given fraction": (lambda v, w: w.given(0.5), TypeError, "`condition` must hold whole numbers"),
    "another shape": (
        lambda v, w: ebm.EnergyModel(functional("vector"), condition_shape=(2,)),
        ValueError,
        r"`condition_shape` must be that of the network's input, \(3,\)",
    ),
    "no condition": (
        lambda v, w: ebm.EnergyModel(ebm.networks.mlp([2], units=[4]), condition_shape=(2,)),
        ValueError,
        "`condition_shape` must not be given",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, models):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(*models)
