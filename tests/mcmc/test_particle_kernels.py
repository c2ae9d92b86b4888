"""Particles moved by other kernels than the default: right shares and log Z, adapted step sizes, refusals."""

import functools

import numpy as np
import pytest
import tensorflow_probability as tfp

from tfp_ebm import mcmc
from tfp_ebm.mcmc.running.particle_moves import least_accept, target_accept

tfd = tfp.distributions
LOC, SCALES = [4.0, -2.0, 100.0], [0.05, 1.0, 20.0]
BASE = tfd.MultivariateNormalDiag([0.0, 0.0, 0.0], [10.0, 10.0, 300.0])
KERNELS = {
    "random walk": mcmc.RandomWalk(5.0),  # adapted to about 1
    "MALA": mcmc.Adaptive(mcmc.MALA(0.01)),
    "HMC": mcmc.HMC(0.5, 4),
    "NUTS": functools.partial(tfp.mcmc.NoUTurnSampler, step_size=0.5, max_tree_depth=4),
}


def target(x):
    """A normal density of scales from .05 to 20, times e³."""
    return 3.0 + tfd.MultivariateNormalDiag(LOC, SCALES).log_prob(x)


@pytest.mark.long
@pytest.mark.parametrize("name", list(KERNELS))
def test_any_kernel_moves_particles_to_a_density_far_from_the_base(name):
    """Means within 4.5 standard errors of 200 effective draws, log Z within 4 of its own."""
    draws = mcmc.sequential_monte_carlo(target, BASE, KERNELS[name], num_samples=2000, seed=1, jit_compile=False)
    assert draws.trouble == ()
    estimate = draws.log_normalizer
    assert abs(estimate.value - 3.0) < 4 * estimate.standard_error < 0.6
    x = draws.states.numpy()
    assert (np.abs(x.mean(0) - LOC) < 4.5 * np.array(SCALES) / np.sqrt(200)).all()
    # a factor of 1.2 is 2.7 standard errors of 200 draws; without moves, the narrow coordinate would have copies alone
    assert (np.abs(np.log(x.std(0) / SCALES)) < 0.2).all() and len(np.unique(x[:, 0])) > 1500
    if name != "NUTS":
        assert abs(draws.acceptance_rate[-1] - target_accept(KERNELS[name])) < 0.25


@pytest.mark.slow
def test_a_second_call_compiles_nothing():
    """Also with another object of an equal kernel; the same seed gives the same bits."""
    counts = []

    def counted(x):
        counts.append(x.shape)  # at each trace
        return target(x)

    first, again = (
        mcmc.sequential_monte_carlo(counted, BASE, mcmc.RandomWalk(1.0), num_samples=10, seed=1, jit_compile=False)
        for _ in range(2)
        if counts.append("call") is None
    )
    calls = [i for i, shape in enumerate(counts) if shape == "call"]
    assert calls[1] > 1 and calls[1] == len(counts) - 1
    np.testing.assert_array_equal(first.states, again.states)


def test_acceptance_is_judged_by_that_of_the_kernel():
    assert (target_accept(None), least_accept(None)) == (0.75, 0.4)
    assert target_accept(mcmc.RandomWalk(1.0)) == 0.234
    assert least_accept(mcmc.RandomWalk(1.0)) == pytest.approx(0.1248)


@pytest.mark.parametrize(
    ("kernel", "error"),
    [
        (mcmc.Langevin(0.1), ValueError),
        (mcmc.IndependenceMetropolis(BASE), ValueError),
        (functools.partial(tfp.mcmc.UncalibratedRandomWalk), ValueError),
        (3, TypeError),
    ],
    ids=["uncalibrated", "of a place", "uncalibrated callable", "number"],
)
def test_other_kernels_are_refused(kernel, error):
    with pytest.raises(error, match="`kernel`"):
        mcmc.sequential_monte_carlo(target, BASE, kernel, num_samples=10, seed=0)
