"""An energy trained on two moons as the prior of a joint distribution, whose posterior HMC samples."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm

tfd = tfp.distributions

NOISE, OBSERVED = 0.4, -1.8


@pytest.fixture(scope="module")
def prior():
    x = ebm.datasets.two_moons(4096, seed=0)
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[32, 32], seed=0), base_measure=ebm.fit_base(x))
    model.adapt(x)
    model.compile(keras.optimizers.Adam(5e-3), ebm.losses.DenoisingScoreMatching(0.2), steps_per_execution=16)
    model.fit(x, batch_size=256, epochs=30, verbose=0, shuffle=False)
    return ebm.EnergyDistribution(model, kernel=ebm.mcmc.HMC(0.2, num_leapfrog_steps=5), num_burnin_steps=50)


def quadrature(prior, likelihood=True):
    """Mean of the posterior by a grid over a box far beyond the data."""
    axis = np.linspace(-6, 6, 401, dtype="float32")
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    log_density = np.asarray(prior.unnormalized_log_prob(grid), "float64")
    if likelihood:
        log_density += -0.5 * ((grid[..., 0] - OBSERVED) / NOISE) ** 2
    weights = np.exp(log_density - log_density.max())
    # nothing at the border: the box holds the mass
    assert max(weights[0].sum(), weights[-1].sum(), weights[:, 0].sum(), weights[:, -1].sum()) < 1e-6 * weights.sum()
    return (weights[..., None] * grid).sum((0, 1)) / weights.sum()


@pytest.mark.long
def test_posterior_mean_agrees_with_quadrature(prior):
    """Within 4 standard errors by ESS in both coordinates (a false alarm once in 8000 seeds), the error itself below
    .03, and the prior's own mean, which a joint that forgot the likelihood would give, more than 20 errors away."""
    joint = tfd.JointDistributionNamed({"x": prior, "y": lambda x: tfd.Normal(x[..., 0], NOISE)})

    def target(x):
        return joint.unnormalized_log_prob(x=x, y=tf.fill(tf.shape(x)[:-1], OBSERVED))

    kernel = ebm.mcmc.Adaptive(ebm.mcmc.HMC(0.1, num_leapfrog_steps=8))
    samples = ebm.mcmc.sample(
        target, prior.base.sample(100, seed=[0, 0]), kernel, num_results=300, num_burnin_steps=200, seed=1
    )
    found = ebm.mcmc.diagnose(samples)
    truth = quadrature(prior)
    assert np.all(found.mcse < 0.03) and found.num_nonfinite == 0
    assert np.all(np.abs(found.mean - truth) < 4 * found.mcse)
    assert np.abs(found.mean - quadrature(prior, likelihood=False))[0] > 20 * found.mcse[0]


@pytest.mark.slow
def test_the_prior_learned_two_moons(prior):
    """Both moons have at least a third of the samples, and few lie where the true density is negligible."""
    x = prior.sample(2000, seed=0).numpy()
    upper = np.mean(x[:, 0] < 0)
    assert 1 / 3 < upper < 2 / 3
    truth = ebm.targets.two_moons()
    far = np.mean(np.asarray(truth.log_prob(x)) < -6.0)
    control = np.mean(np.asarray(truth.log_prob(prior.base.sample(2000, seed=[0, 0]))) < -6.0)
    assert far < 0.15 < control
