"""What `fit`, `compile` and `evaluate` refuse, by name, with nothing lost."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from energies import Quadratic
from test_training import X, assert_same, make, weights

import tfp_ebm as ebm

Y = np.zeros(256, "float32")


def fresh():
    return make(adapt=False)


BAD_CALLS = {
    "labels": (lambda m: m.fit(X, Y), ValueError, "`y` must not be given: DenoisingScoreMatching"),
    "labels in a dataset": (
        lambda m: m.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(32), shuffle=False),
        ValueError,
        "`y` must not be given",
    ),
    "labels in validation": (lambda m: m.fit(X, validation_data=(X, Y)), ValueError, "`y` must not be given"),
    "labels in evaluate": (lambda m: m.evaluate(X, Y), ValueError, "`y` must not be given"),
    "nan": (lambda m: m.fit(np.where(X > 3, np.nan, X)), ValueError, r"`x` must be finite: \d+ of its 512"),
    "nan in evaluate": (lambda m: m.evaluate(np.where(X > 3, np.nan, X)), ValueError, "`x` must be finite"),
    "event": (lambda m: m.fit(np.zeros((9, 3))), ValueError, r"`x` must have shape \[rows, 2\], got \(9, 3\)"),
    "event in a dataset": (
        lambda m: m.fit(tf.data.Dataset.from_tensor_slices(np.zeros((9, 3))).batch(3), shuffle=False),
        ValueError,
        r"`x` must have shape \[..., 2\]",
    ),
    "empty": (lambda m: m.fit(np.zeros((0, 2))), ValueError, "`x` must not be empty"),
    "strings": (lambda m: m.fit(np.array([["a", "b"]])), TypeError, "`x` must hold real numbers"),
    "nothing": (lambda m: m.fit(), TypeError, "`x` must hold real numbers"),
    "constant": (lambda m: fresh().fit(np.ones((100, 2))), ValueError, "`x` must vary, but all its 2 coordinates"),
    "row for a batch": (lambda m: m.train_on_batch(X[0]), ValueError, r"`x` must have shape \[rows, 2\], got \(2,\)"),
    "nan on a batch": (lambda m: m.train_on_batch(X * np.nan), ValueError, "`x` must be finite"),
    "unbatched dataset": (
        lambda m: m.fit(tf.data.Dataset.from_tensor_slices(X), shuffle=False),
        ValueError,
        # Keras's graph, traced for batches before, gives up on the rank
        r"`x` must have shape \[..., 2\], got a tensor of unknown rank",
    ),
    "twice batched": (
        lambda m: m.evaluate(tf.data.Dataset.from_tensor_slices(X).batch(4).batch(8)),
        ValueError,
        r"`x` must come in batches of shape \[batch, 2\], got \(None, None, 2\)",
    ),
    "validation nan": (lambda m: m.fit(X, validation_data=X * np.nan), ValueError, "`validation_data` must be finite"),
    "validation shape": (
        lambda m: m.fit(X, validation_data=(X[:, :1], None)),
        ValueError,
        r"`validation_data` must have shape \[rows, 2\]",
    ),
    "nan weights": (
        lambda m: m.fit(X, sample_weight=np.full(256, np.nan)),
        ValueError,
        "`sample_weight` must be finite",
    ),
    "negative weights": (lambda m: m.fit(X, sample_weight=-np.ones(256)), ValueError, "not negative: 256 of its 256"),
    "shape of weights": (
        lambda m: m.fit(X, sample_weight=np.ones((256, 2))),
        ValueError,
        r"shape \[256\], got \(256, 2\)",
    ),
    "classes": (lambda m: m.fit(X, class_weight={0: 1.0}), ValueError, "`class_weight` must not be given"),
    "batch after the split": (
        lambda m: m.fit(X[:64], batch_size=64, validation_split=0.5),
        ValueError,
        "got 64 for 32 rows",
    ),
    "batch": (lambda m: m.fit(X[:10], batch_size=32), ValueError, "`batch_size` must not exceed .* got 32 for 10 rows"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls_are_refused_and_nothing_is_lost(name):
    call, error, message = BAD_CALLS[name]
    model = make()
    model.fit(X, verbose=0)
    before = weights(model)
    with pytest.raises(error, match=message):
        call(model)
    assert_same(weights(model), before)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["dataset", "generator", "weights"])
def test_a_nan_that_could_not_be_seen_ends_training_and_spares_the_weights(source):
    """The NaN is in the fifth of eight batches; with `TerminateOnNaN`, Keras's own ending, there is no error."""
    x, w = X.copy(), np.ones(256, "float32")
    if source == "weights":
        w[140] = np.nan
    else:
        x[140, 0] = np.nan
    data = {
        "dataset": lambda: tf.data.Dataset.from_tensor_slices(x).batch(32),
        "generator": lambda: ((x[i : i + 32],) for i in range(0, 256, 32)),
        "weights": lambda: ((x[i : i + 32], None, w[i : i + 32]) for i in range(0, 256, 32)),
    }[source]
    model = make()
    with pytest.raises(ValueError, match="the loss became nan within batch 4 of the epoch"):
        model.fit(data(), verbose=0, shuffle=False, steps_per_epoch=8)
    assert all(np.isfinite(value).all() for value in weights(model))
    expected = make()
    expected.fit(X[:128], verbose=0, shuffle=False)
    # the four good batches counted; the fifth moved the weights by no more than Adam's momentum
    assert max(np.abs(a - b).max() for a, b in zip(weights(model)[1:], weights(expected)[1:], strict=True)) < 2e-2
    quiet = make()
    quiet.fit(data(), verbose=0, shuffle=False, steps_per_epoch=8, callbacks=[keras.callbacks.TerminateOnNaN()])
    assert all(np.isfinite(value).all() for value in weights(quiet))


BAD_COMPILES = {
    "no loss": (dict(loss=None), TypeError, "`loss` must be"),
    "keras loss": (dict(loss=keras.losses.MeanSquaredError()), TypeError, "`loss` must be"),
    "unknown": (dict(loss="mse"), ValueError, "`loss` must be one of .*denoising_score_matching.*, got 'mse'"),
    "metrics": (dict(loss="denoising_score_matching", metrics=["mse"]), ValueError, "`metrics` must not be given"),
}


@pytest.mark.parametrize("name", BAD_COMPILES)
def test_bad_compiles(name):
    arguments, error, message = BAD_COMPILES[name]
    with pytest.raises(error, match=message):
        ebm.EnergyModel(Quadratic(), event_shape=(2,)).compile("adam", **arguments)


@pytest.mark.parametrize(
    "layer",
    [keras.layers.LayerNormalization, lambda: keras.layers.GroupNormalization(2), keras.layers.BatchNormalization],
)
def test_layers_with_wrong_second_derivatives_are_refused_by_name(layer):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(4, "tanh"), layer(), keras.layers.Dense(1)])
    name = network.layers[1].name
    with pytest.raises(
        ValueError, match=rf"(?s){name}.*tfp_ebm|{name}.*ebm\.networks|{name}.*frozen|{name}.*trainable"
    ):
        make(network=network)


def test_an_energy_that_cannot_be_differentiated_is_refused():
    network = keras.layers.Lambda(lambda x: tf.cast(tf.cast(x[:, 0], tf.int32), tf.float32), output_shape=())
    with pytest.raises(ValueError, match="differentiable"):
        make(network=network).fit(X, verbose=0)
