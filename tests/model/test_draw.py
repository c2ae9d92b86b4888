"""`EnergyDistribution.draw`: draws, log Z and a verdict, for models, callables and networks that draw exactly."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from energies import Quadratic

import tfp_ebm as ebm

tfd = tfp.distributions

MEAN, SD = np.array([3.0, -1.0]), np.array([2.0, 0.05])


@pytest.fixture(scope="module")
def gaussian():
    """N(MEAN, SD²) as a unit quadratic in standardised units."""
    model = ebm.EnergyModel(Quadratic(), event_shape=(2,))
    x = np.random.default_rng(0).normal(size=(5000, 2))
    model.adapt((x - x.mean(0)) / x.std(0) * SD + MEAN)
    return model


@pytest.mark.slow
def test_a_model_gives_draws_in_x_and_log_z(gaussian):
    draws = ebm.EnergyDistribution(gaussian).draw(4000, seed=1, jit_compile=False)
    x = draws.states.numpy()
    # independent draws: means within 4.5 standard errors, variances within 4.5 of theirs
    assert draws.trouble == () and x.shape == (4000, 2) and x.dtype == np.float32
    assert (np.abs(x.mean(0) - MEAN) < 4.5 * SD / np.sqrt(4000)).all()
    assert (np.abs(x.var(0) / SD**2 - 1) < 4.5 * np.sqrt(2 / 4000)).all()
    assert abs(draws.log_normalizer.value - np.log(2 * np.pi)) < 1e-3  # the base is the target, but for rounding
    assert np.abs((draws.shares.centers - MEAN) / SD).max() < 0.1
    assert np.array_equal(x, ebm.EnergyDistribution(gaussian).draw(4000, seed=1, jit_compile=False).states)


@pytest.mark.long
def test_draws_follow_the_model_as_it_is(gaussian):
    before = gaussian.standardization.loc.numpy()
    p = ebm.EnergyDistribution(gaussian, base=gaussian.base.copy())
    gaussian.standardization.loc.assign(before + np.float32([1.0, 0.0]))
    moved = p.draw(2000, seed=1, jit_compile=False, num_last_moves=5).states.numpy()
    gaussian.standardization.loc.assign(before)
    back = p.draw(2000, seed=1, jit_compile=False, num_last_moves=5).states.numpy()
    assert abs(moved[:, 0].mean() - MEAN[0] - 1) < 0.25 and abs(back[:, 0].mean() - MEAN[0]) < 0.25


@pytest.mark.slow
def test_two_modes_of_a_callable_have_their_shares():
    target = ebm.targets.two_gaussians()
    base = tfd.MultivariateNormalDiag([0.0, 0.0], [4.0, 4.0])
    p = ebm.EnergyDistribution(lambda x: -target.log_prob(x), event_shape=[2], base=base)
    draws = p.draw(10, seed=0, jit_compile=False)
    assert draws.states.shape == (10, 2) and draws.trouble == ()
    # about 500 effective draws: standard error .02
    assert abs(draws.shares.values[0] - 0.7) < 0.09
    assert abs(draws.log_normalizer.value) < 5 * draws.log_normalizer.standard_error < 0.5


def test_a_network_that_draws_exactly_does_so():
    model = ebm.EnergyModel(ebm.networks.autoregressive([2], [8], seed=0))
    draws = ebm.EnergyDistribution(model).draw(50, seed=0)
    assert draws.states.shape == (50, 2) and draws.trouble == ()
    assert draws.log_normalizer.value == 0.0 and draws.log_normalizer.standard_error == 0.0
    assert draws.shares.of_groups.shape[0] == 8 and draws.shares.centers.shape[1:] == (2,)


def test_what_it_cannot_do_is_said(gaussian):
    p = ebm.EnergyDistribution(gaussian)
    with pytest.raises(NotImplementedError, match=r"tf\.function"):
        tf.function(lambda: p.draw(5, seed=0).states)()
    with pytest.raises(NotImplementedError, match="`bijector`"):
        p.copy(bijector=tfp.bijectors.Exp()).draw(5, seed=0)
    with pytest.raises(ValueError, match="`base`"):
        ebm.EnergyDistribution(lambda x: x[..., 0] ** 2, event_shape=[1]).draw(5, seed=0)
    with pytest.raises(ValueError, match="`num_samples`"):
        p.draw(0, seed=0)
