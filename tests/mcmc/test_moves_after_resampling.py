"""The moves of draws that importance resampling has chosen."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc, random
from tfp_ebm.mcmc import particle_sampler
from tfp_ebm.mcmc.running.particle_state import Settings, begun_pass, empty_plan, full_effort, initial_particles
from tfp_ebm.mcmc.running.particles import continue_pass, move_at_target

tfd = tfp.distributions


def ridge(x):
    """Log density of a curved ridge, without its constant."""
    return -0.5 * x[:, 0] ** 2 - 2.0 * (x[:, 1] - 0.5 * x[:, 0] ** 2) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("moved", [0.0, 0.1], ids=["equal", "control"])
def test_moves_at_the_target_are_those_of_the_last_stage_of_a_pass(moved):
    """There the base has no weight, so the moves leave it out; the same seed must give the same states."""
    base = tfd.MultivariateNormalDiag(tf.zeros([2], tf.float64), [1.5, 1.0])
    x = base.sample(64, seed=[1, 2])
    start = initial_particles(x, ridge(x) - base.log_prob(x), 8, beta=1.0)
    settings, seed = Settings(8, 0.9, (2, 4), 5, 6, 20, True), tf.constant([3, 4])
    log_step_size, effort = tf.constant(-1.0, tf.float64), full_effort(settings)
    plan = empty_plan(settings, 2, tf.float64)
    whole = tf.function(
        lambda: continue_pass(
            lambda: ridge,
            base,
            settings,
            begun_pass(settings, start, plan, log_step_size),
            plan,
            tf.constant(False),
            seed,
            effort,
            tf.constant(9),
        ),
        autograph=False,
    )()
    alone = tf.function(
        lambda: move_at_target(
            lambda: ridge, base, settings, start, log_step_size + moved, effort.num_last_moves, random.fold_in(seed, 0)
        ),
        autograph=False,
    )()
    assert whole.num_stages == alone.num_stages == 1 and whole.is_done and alone.is_done
    found = {
        "x": (whole.particles.x, alone.particles.x),
        "h": (whole.particles.log_ratio, alone.particles.log_ratio),
        "acceptance": (whole.accept[:1], alone.accept),
        "of the base": (whole.accept_base[:1], alone.accept_base),
        "step size": (whole.log_step_size, alone.log_step_size),
        "moves": (whole.plan.num_moves[:1], alone.plan.num_moves),
        "scale": (whole.plan.scales[:1], alone.plan.scales),
        "β": (whole.plan.betas[:1], alone.plan.betas),
    }
    equal = {name: np.allclose(*pair, rtol=1e-9, atol=1e-9) for name, pair in found.items()}
    if moved:
        assert not equal["x"] and not equal["step size"]
    else:
        assert all(equal.values()), equal


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "most"), [(1.1, 3), (2.5, 8)])
def test_draws_of_even_weights_move_less(monkeypatch, scale, most):
    """The effective share of draws from N(0, s²I) for N(0, I) in two coordinates is (2 − s⁻²)/s²: .97 and .29."""
    given = []
    original = particle_sampler.Sampler._moved

    def noted(self, particles, log_step_size, most):
        given.append(most)
        return original(self, particles, log_step_size, most)

    monkeypatch.setattr(particle_sampler.Sampler, "_moved", noted)
    base = tfd.MultivariateNormalDiag(tf.zeros([2]), tf.fill([2], scale))
    target = tfd.MultivariateNormalDiag(tf.zeros([2]), tf.ones([2]))
    draws = mcmc.sequential_monte_carlo(target.log_prob, base, num_samples=1000, seed=0, jit_compile=False)
    assert given == [most]
    assert draws.log_normalizer.ess == pytest.approx(4000 * (2 - scale**-2) / scale**2, rel=0.1)
    # variances of 1000 draws have a relative standard error of .045, or more where some are equal
    np.testing.assert_allclose(np.var(draws.states, 0), 1.0, atol=0.25)
