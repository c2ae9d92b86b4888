"""A small model for every loss, and for every state that a loss may have: buffers, conditions, step sizes, log Z."""

import keras
import numpy as np

import tfp_ebm as ebm

X = np.random.default_rng(0).normal([2.0, -1.0], [1.0, 0.5], size=(64, 2)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 3, size=64).astype("int32")
MALA = ebm.mcmc.Adaptive(ebm.mcmc.MALA(0.1))
losses, mcmc = ebm.losses, ebm.mcmc


def mlp(**options):
    return ebm.networks.mlp([2], units=[8], seed=0, **options)


def of_condition():
    """A network of x and one number."""
    inputs = [keras.Input((2,)), keras.Input((1,))]
    joined = keras.layers.Concatenate()(inputs)
    for i, units in enumerate((8, 1)):
        initializer = keras.initializers.GlorotUniform(seed=i)
        joined = keras.layers.Dense(units, "tanh" if units > 1 else None, kernel_initializer=initializer)(joined)
    return keras.Model(inputs, joined)


def classes():
    initializer = keras.initializers.GlorotUniform(seed=0)
    dense = keras.layers.Dense(3, kernel_initializer=initializer)
    return ebm.networks.JointEnergy(keras.Sequential([keras.Input((2,)), dense]))


def contrastive(noise):
    loss = losses.NoiseContrastiveEstimation(noise, num_components=2)
    loss.adapt(X)
    return loss


# name: (network, loss, the second argument of `fit`)
CASES = {
    "contrastive divergence": (mlp, losses.ContrastiveDivergence, None),
    "denoising": (mlp, losses.DenoisingScoreMatching, None),
    "dual score matching": (
        lambda: ebm.networks.noise_level_mlp([2], units=[8], seed=0),
        lambda: losses.DualScoreMatching(0.1, 10.0, average_targets=True),
        None,
    ),
    "improved": (
        mlp,
        lambda: losses.ImprovedContrastiveDivergence(MALA, 2, mcmc.ReplayBuffer(64, 0.2), form="logsumexp"),
        None,
    ),
    "joint energy": (
        classes,
        lambda: losses.JointEnergyLoss(losses.PersistentContrastiveDivergence(num_steps=1, capacity=64)),
        LABELS,
    ),
    "hamiltonian": (
        mlp,
        lambda: losses.MaximumLikelihood(mcmc.Adaptive(mcmc.HMC(0.1, 2)), 1, mcmc.FromBase(), data_noise=0.1),
        None,
    ),
    "random walk": (
        mlp,
        lambda: losses.MaximumLikelihood(mcmc.Adaptive(mcmc.RandomWalk(0.1)), 2, mcmc.ReplayBuffer(64)),
        None,
    ),
    "conditional": (
        of_condition,
        lambda: losses.PersistentContrastiveDivergence(MALA, 1, capacity=64),
        X[:, :1] * 0.5,
    ),
    "multiscale": (mlp, lambda: losses.MultiscaleDenoisingScoreMatching([0.1, 0.5], 0.2), None),
    "likelihood": (
        lambda: ebm.networks.autoregressive([2], units=[8], dropout=0.2, seed=0),
        losses.NegativeLogLikelihood,
        None,
    ),
    "noise conditional": (
        of_condition,
        lambda: losses.NoiseConditionalDenoisingScoreMatching([0.1, 0.5]),
        None,
    ),
    "noise contrastive": (mlp, lambda: contrastive("gaussian_mixture"), None),
    "persistent": (mlp, lambda: losses.PersistentContrastiveDivergence(num_steps=2, capacity=64), None),
    "score matching": (mlp, losses.ScoreMatching, None),
    "sliced": (mlp, losses.SlicedScoreMatching, None),
}


def make(name, **compile_options):
    """The model of a case, adapted, compiled, and built."""
    network, loss, _ = CASES[name]
    model = ebm.EnergyModel(network(), condition_shape=(1,) if network is of_condition else None, event_shape=(2,))
    model.adapt(X)
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True), loss(), **compile_options)
    return model


def fit(model, name, epochs, **options):
    """Trains on the rows of a case, in two steps an epoch."""
    return model.fit(X, CASES[name][2], batch_size=32, epochs=epochs, verbose=0, **options)
