"""Adapted step sizes: the acceptance aimed at is reached, kept, and not spoilt by proposals that are NaN."""

import dataclasses
import warnings

import numpy as np
import pytest
import tensorflow as tf

from tfp_ebm import mcmc

# 100 chains in 10 dimensions of unequal scale.
SCALES = np.linspace(1.0, 4.0, 10)


def log_prob(x):
    return -0.5 * tf.reduce_sum((x / SCALES) ** 2, -1)


def run(kernel, target=log_prob, seed=0, num_results=100, num_burnin_steps=400, **kwargs):
    start = tf.random.stateless_normal([100, 10], [0, 9], dtype=tf.float64) * SCALES
    return mcmc.sample(
        target, start, kernel, num_results=num_results, num_burnin_steps=num_burnin_steps, seed=seed, **kwargs
    )


@pytest.mark.parametrize("first_step", [0.01, 10.0])
@pytest.mark.parametrize(
    ("make", "target"),
    [
        (lambda step: mcmc.RandomWalk(step), 0.234),
        (lambda step: mcmc.MALA(step), 0.574),
        (lambda step: mcmc.HMC(step, 3), 0.75),
        # not 1/SCALES²: with all frequencies equal the acceptance is not monotone in ε (.87 at .8, 1 at 1, .65 at 1.2)
        (lambda step: mcmc.HMC(step, 3, mass=1 / SCALES), 0.75),
    ],
    ids=["random_walk", "mala", "hmc", "hmc_mass"],
)
def test_target_acceptance_is_reached(make, target, first_step):
    """From a start far below and far above: within .05 after adapting (the mean over 10 000 steps has SE .007)."""
    samples = run(mcmc.Adaptive(make(first_step)), jit_compile=False)
    assert abs(np.mean(samples.is_accepted) - target) < 0.05
    with warnings.catch_warnings():  # at the larger step nearly no chain ever moves, which is warned of
        warnings.filterwarnings("ignore", message=".* chains never moved")
        unadapted = run(make(first_step), jit_compile=False)  # control: the first step is far off
    assert abs(np.mean(unadapted.is_accepted) - target) > 0.2


@pytest.mark.long
def test_nuts_adapts():
    """NUTS moves at nearly every step; what adapts is the mean acceptance over its trajectories, so look at the step.

    For N(0, diag(s²)) the leapfrog is stable below 2·min(s) = 2, and .8 is reached at about half of that.
    """
    for first_step in (0.05, 5.0):
        samples = run(
            mcmc.Adaptive(mcmc.NUTS(first_step, max_tree_depth=3)),
            num_results=10,
            num_burnin_steps=200,
            jit_compile=True,
        )
        assert 0.5 < samples.step_size < 1.8
        assert samples.num_nonfinite == 0


def test_target_may_be_chosen():
    samples = run(mcmc.Adaptive(mcmc.MALA(0.1), target_accept_prob=0.9), jit_compile=False)
    assert abs(np.mean(samples.is_accepted) - 0.9) < 0.05


def test_proportions_are_kept():
    """One factor is adapted, so an array of step sizes stays in proportion."""
    samples = run(mcmc.Adaptive(mcmc.MALA(0.1 * SCALES)), jit_compile=False)
    np.testing.assert_allclose(samples.step_size / samples.step_size[0], SCALES / SCALES[0], rtol=1e-10)
    assert samples.step_size.shape == [10]


@pytest.mark.slow
def test_step_size_is_frozen_after_adaptation():
    """The step size after the adaptation is the one after the run, and the kept draws run at it."""
    kernel = mcmc.Adaptive(mcmc.HMC(0.1, 3), num_adaptation_steps=50)
    short = run(kernel, num_results=1, num_burnin_steps=50, jit_compile=False)
    long = run(kernel, num_results=1, num_burnin_steps=150, jit_compile=False)
    assert short.step_size == long.step_size != 0.1
    still_adapting = mcmc.Adaptive(mcmc.HMC(0.1, 3), num_adaptation_steps=60)  # control
    assert run(still_adapting, num_results=1, num_burnin_steps=60, jit_compile=False).step_size != short.step_size


def test_default_is_four_fifths_of_the_burnin():
    given = run(mcmc.Adaptive(mcmc.MALA(0.1), num_adaptation_steps=40), num_burnin_steps=50, jit_compile=False)
    default = run(mcmc.Adaptive(mcmc.MALA(0.1)), num_burnin_steps=50, jit_compile=False)
    assert given.step_size == default.step_size
    np.testing.assert_array_equal(given.states, default.states)


def test_without_adaptation_it_is_the_inner_kernel():
    samples = run(mcmc.Adaptive(mcmc.HMC(1.0, 3)), num_burnin_steps=0, jit_compile=False)
    plain = run(mcmc.HMC(1.0, 3), num_burnin_steps=0, jit_compile=False)
    assert samples.step_size == 1.0
    np.testing.assert_array_equal(samples.states, plain.states)


def test_nonfinite_proposals_count_as_rejected():
    """A target that is NaN beyond a wall: the step size stays finite and the acceptance is reached; none is NaN."""

    def walled(x):
        return tf.where(tf.reduce_all(tf.abs(x) < 2 * SCALES, -1), log_prob(x), np.nan)

    start = tf.zeros([200, 10], tf.float64)
    for first_step in (0.1, 100.0):  # at 100 every first proposal is NaN
        samples = mcmc.sample(
            walled,
            start,
            mcmc.Adaptive(mcmc.RandomWalk(first_step)),
            num_results=100,
            num_burnin_steps=400,
            seed=0,
            jit_compile=False,
        )
        assert abs(np.mean(samples.is_accepted) - 0.234) < 0.05
        assert samples.num_nonfinite == 0


KERNELS = [
    (mcmc.RandomWalk(0.1), 0.234),
    (mcmc.MALA(0.1), 0.574),
    (mcmc.HMC(0.1, 3), 0.75),
]


def hole(x):
    """NaN, with a NaN gradient, where the first coordinate is beyond half its scale: log of a negative number."""
    return log_prob(x) + 0.01 * tf.math.log(0.5 * SCALES[0] - x[..., 0])


@pytest.mark.parametrize(("kernel", "target"), KERNELS, ids=["random_walk", "mala", "hmc"])
def test_a_region_of_nan_does_not_spoil_the_step_size(kernel, target):
    """Gradient kernels run into the region too; the step stays finite and reaches the acceptance from both sides."""
    for first_step in (0.05, 20.0):
        kernel = dataclasses.replace(kernel, **{kernel.step_size_field: first_step})
        samples = mcmc.sample(
            hole,
            tf.zeros([200, 10], tf.float64),
            mcmc.Adaptive(kernel),
            num_results=100,
            num_burnin_steps=500,
            seed=0,
            jit_compile=False,
        )
        assert abs(np.mean(samples.is_accepted) - target) < 0.07
        assert samples.num_nonfinite == 0 and 0.01 < samples.step_size < 20


@pytest.mark.long
def test_nuts_adapts_beside_a_region_of_nan():
    kernel = mcmc.Adaptive(mcmc.NUTS(5.0, max_tree_depth=3))
    start = tf.zeros([50, 10], tf.float64)
    samples = mcmc.sample(hole, start, kernel, num_results=5, num_burnin_steps=200, seed=0, jit_compile=True)
    assert 0.05 < samples.step_size < 1.8 and samples.num_nonfinite == 0


@pytest.mark.parametrize(("kernel", "target"), KERNELS, ids=["random_walk", "mala", "hmc"])
def test_stuck_chains_have_no_say(kernel, target):
    """Half of the chains start where log p is NaN and never leave: the others reach the acceptance aimed at.

    Control: were they counted, the acceptance of all would be at most a half, and the step size would go to zero.
    """
    start = tf.concat([tf.zeros([100, 10], tf.float64), tf.fill([100, 10], tf.constant(9.0, tf.float64))], 0)
    with pytest.warns(UserWarning, match="100 of 200 chains start"):
        samples = mcmc.sample(
            hole,
            start,
            mcmc.Adaptive(kernel),
            num_results=100,
            num_burnin_steps=500,
            seed=0,
            jit_compile=False,
        )
    assert abs(np.mean(samples.is_accepted[:, :100]) - target) < 0.07
    assert not np.any(samples.is_accepted[:, 100:]) and samples.num_nonfinite == 100


def test_adapting_beyond_the_burnin_is_warned_of():
    with pytest.warns(UserWarning, match="adapts for 30 steps, but the burn-in has 20"):
        run(mcmc.Adaptive(mcmc.MALA(0.1), num_adaptation_steps=30), num_burnin_steps=20, jit_compile=False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mcmc.Adaptive(mcmc.Langevin(0.1)), ValueError, "`kernel`.*Langevin"),
        (lambda: mcmc.Adaptive(lambda target: None), TypeError, "`kernel`"),
        (lambda: mcmc.Adaptive(mcmc.Adaptive(mcmc.MALA(0.1))), TypeError, "`kernel`"),
        (lambda: mcmc.Adaptive(mcmc.MALA(0.1), -1), ValueError, "`num_adaptation_steps`"),
        (lambda: mcmc.Adaptive(mcmc.MALA(0.1), 10, 1.0), ValueError, "`target_accept_prob`"),
        (lambda: mcmc.Adaptive(mcmc.MALA(0.1), 10, 0.0), ValueError, "`target_accept_prob`"),
        (lambda: mcmc.Adaptive(mcmc.MALA(0.1))(log_prob), ValueError, "`num_adaptation_steps`"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
