"""What each loss promises in half precision: the value and the gradient of float32, up to the rounding of the layers.

Inside the network bfloat16 keeps 8 bits of a number and float16 11. Energies, losses, reductions and acceptance ratios
are in float32 or better, so that only the layers' own rounding is left in the gradient. Measured on this network:
cosines of at least .9999 (bfloat16) and .999999 (float16), but .997 and .99998 with chains, whose states differ too.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm

X = np.random.default_rng(0).normal([1.0, -2.0], [1.0, 0.5], size=(64, 2))
SEED = tf.constant([1, 2])
LOSSES = {
    "exact": lambda: ebm.losses.ScoreMatching(),
    "sliced": lambda: ebm.losses.SlicedScoreMatching(),
    "denoising": lambda: ebm.losses.DenoisingScoreMatching(0.3),
    "multiscale": lambda: ebm.losses.MultiscaleDenoisingScoreMatching([0.1, 0.3, 1.0], 0.3),
    "contrastive": lambda: ebm.losses.NoiseContrastiveEstimation(),
    "short chains": lambda: ebm.losses.ContrastiveDivergence(ebm.mcmc.Langevin(0.1), 2),
    "persistent": lambda: ebm.losses.PersistentContrastiveDivergence(ebm.mcmc.MALA(0.1), 2, capacity=64),
}
# Smallest cosine between gradients, and largest relative error of their norms.
BOUNDS = {
    "mixed_bfloat16": (0.9995, 0.02),
    "mixed_float16": (0.99999, 0.005),
    "bfloat16": (0.9995, 0.02),
    "float16": (0.99999, 0.005),
}
CHAINS = {"mixed_bfloat16": (0.99, 0.05), "mixed_float16": (0.999, 0.02)}


def value_and_gradient(name, policy, dtype="float32", offset=0.0, head=None):
    """The loss of 64 rows, and its gradient in the weights of the network, as one vector."""
    x = X.astype(dtype)
    network = ebm.networks.mlp([2], units=[32, 32], dtype=policy, seed=0)
    network.set_weights([w.astype(dtype) for w in ebm.networks.mlp([2], units=[32, 32], seed=0).get_weights()])
    if offset or head:
        shifted = keras.layers.Rescaling(1.0, offset, dtype=head or dtype)(network.output)
        network = keras.Model(network.input, shifted)
    model = ebm.EnergyModel(network)
    model.adapt(x)
    loss = LOSSES[name]()
    z = model.standardization.to_z(tf.constant(x))
    with tf.GradientTape() as tape:
        output = loss(model.energy_function, z, None, seed=SEED, training=True)
        value = tf.reduce_mean(output.per_example)
    assert output.per_example.dtype == dtype and all(tf.as_dtype(v.dtype) == dtype for v in output.metrics.values())
    variables = [variable.value for variable in network.trainable_variables]
    gradient = tape.gradient(value, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return float(value), np.concatenate([np.asarray(part, np.float64).ravel() for part in gradient])


def compared(gradient, reference):
    """The cosine of two gradients, and the relative error of the norm."""
    norms = np.linalg.norm(gradient), np.linalg.norm(reference)
    return gradient @ reference / norms[0] / norms[1], abs(norms[0] / norms[1] - 1.0)


@pytest.fixture(scope="module")
def references():
    """The results in float32, each computed once."""
    return {}


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_keeps_the_gradient(name, references):
    value, reference = references[name] = value_and_gradient(name, "float32")
    has_chains = name in ("short chains", "persistent")
    for policy, (cosine, norm) in (CHAINS if has_chains else BOUNDS).items():
        half, gradient = value_and_gradient(name, policy)
        found = compared(gradient, reference)
        assert found[0] > cosine and found[1] < norm, (policy, found)
        if not has_chains:  # a difference of energies near 0 has no relative error
            assert abs(half - value) < 0.01 * abs(value), policy


@pytest.mark.parametrize("name", ["exact", "sliced", "denoising", "multiscale", "contrastive"])
def test_float32_agrees_with_float64(name):
    value, gradient = value_and_gradient(name, "float32")
    exact, reference = value_and_gradient(name, "float64", "float64")
    found = compared(gradient, reference)
    assert abs(value - exact) < 1e-5 * abs(exact) and 1.0 - found[0] < 1e-9 and found[1] < 1e-5


def test_energies_far_from_zero_keep_their_differences():
    """At E = 1000 numbers of bfloat16 are 4 apart. The control rounds energies so, and the test sees it."""
    _, reference = value_and_gradient("short chains", "float32")
    kept = value_and_gradient("short chains", "mixed_bfloat16", offset=1000.0, head="float32")
    rounded = value_and_gradient("short chains", "mixed_bfloat16", offset=1000.0, head="bfloat16")
    plain = value_and_gradient("short chains", "mixed_bfloat16")
    assert abs(kept[0] - plain[0]) < 1e-3 and compared(kept[1], reference)[0] > 0.99
    assert abs(rounded[0] - plain[0]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_training_in_half_precision_learns_as_in_float32(policy):
    losses = {}
    for name in ("float32", policy):
        model = ebm.EnergyModel(ebm.networks.mlp([2], units=[16], dtype=name, seed=0))
        model.adapt(X)
        model.compile(keras.optimizers.Adam(1e-2), ebm.losses.DenoisingScoreMatching(0.3))
        losses[name] = model.fit(X.astype("float32"), batch_size=32, epochs=10, verbose=0).history["loss"]
    assert losses[policy][-1] < 0.95 * losses[policy][0]
    np.testing.assert_allclose(losses[policy][-1], losses["float32"][-1], rtol=0.02)
