"""Laplacians of networks in half precision, where intermediate numbers of another order than one would overflow."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.derivatives import laplacian
from tfp_ebm.derivatives.jet import Jet

LAYERS = {
    "layer": lambda dtype: ebm.networks.LayerNormalization(dtype=dtype),
    "group": lambda dtype: ebm.networks.GroupNormalization(2, dtype=dtype),
    "root mean square": lambda dtype: keras.layers.RMSNormalization(dtype=dtype),
}


def rows(scale=1.0, size=2):
    return (scale * np.random.default_rng(0).normal(size=(16, size))).astype("float32")


def error(ours, exact):
    """The largest error, in terms of the largest exact value."""
    return np.max(np.abs(np.asarray(ours) - np.asarray(exact))) / np.max(np.abs(np.asarray(exact)))


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1.0, 1e3, 1e4])
def test_the_units_of_the_data_do_not_matter(scale):
    """In x, second derivatives have the order of 1/scale², and 1e-4 squared is zero in float16."""
    laplacians = []
    for dtype in ("float32", "mixed_float16"):
        model = ebm.EnergyModel(ebm.networks.mlp([2], units=[16], dtype=dtype, seed=0))
        model.adapt(rows(scale))
        laplacians.append(laplacian(model, rows(scale), method="forward"))
    exact, ours = laplacians
    assert error(ours, exact) < 0.02  # float16 keeps 11 bits; .002 to .006 were measured


def test_directions_of_length_one_overflow(monkeypatch):
    """Negative control: in the coordinates of the network they have length 1000."""
    from tfp_ebm.derivatives import engine

    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[16], dtype="mixed_float16", seed=0))
    model.adapt(rows(1e-3))
    forward = engine._forward

    def without_unit(term, *args):
        return forward(type(term)(term.function, term.source, term.inward, term.dtype), *args)

    monkeypatch.setattr(engine, "_forward", without_unit)
    assert not np.isfinite(laplacian(model, rows(1e-3), method="forward")).all()


@pytest.mark.parametrize("name", LAYERS)
def test_normalisations_compute_in_float32(name, monkeypatch):
    """Units that are nearly equal have a variance whose powers float16 cannot hold."""

    def network(dtype):
        x = keras.Input((4,))
        dense = keras.layers.Dense(8, "silu", kernel_initializer=keras.initializers.RandomNormal(0, 1e-2, 0))
        units = LAYERS[name](dtype)(dense(x))
        energies = keras.layers.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(1), dtype=dtype)(
            keras.layers.Activation("tanh", dtype=dtype)(units)
        )
        return keras.Model(x, energies)

    x = tf.constant(rows(size=4))
    exact = laplacian(network("float32"), x, method="reverse")
    assert error(laplacian(network("mixed_float16"), x, method="forward"), exact) < 0.05
    monkeypatch.setattr(Jet, "at_least_float32", lambda jet: jet)
    assert not error(laplacian(network("mixed_float16"), x, method="forward"), exact) < 0.05


@pytest.mark.parametrize("derivative", [ebm.derivatives.score, laplacian])
def test_a_tensor_of_another_dtype_than_the_model_is_refused_by_name(derivative):
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[4], seed=0))
    with pytest.raises(TypeError, match="`x` must have the model's dtype float32, got float64"):
        derivative(model, tf.zeros([3, 2], tf.float64))
    assert derivative(model, np.zeros([3, 2])).dtype == tf.float32  # arrays are converted
