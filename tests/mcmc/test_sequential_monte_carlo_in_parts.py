"""A pass in several compiled calls: the same bits in any division, a progress bar, and interrupts between calls."""

import functools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc, targets
from tfp_ebm.mcmc import particle_sampler
from tfp_ebm.mcmc.running import particles
from tfp_ebm.mcmc.running.compiled import XlaOrGraph


@pytest.mark.long
def test_bits_progress_and_interrupts(monkeypatch, capsys):
    monkeypatch.setattr(particle_sampler, "suffices", lambda weights: False)  # so that there are all three passes
    target = targets.two_gaussians()
    base = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [4.0, 4.0])
    run = functools.partial(
        mcmc.sequential_monte_carlo, target, base, num_samples=50, seed=2, num_last_moves=3, jit_compile=False
    )
    draws = run()
    calls = []
    original = XlaOrGraph.run

    def counted(self, call, *args):
        calls.append(int(args[-1]))
        if interrupt_at is not None and len(calls) == interrupt_at:
            raise KeyboardInterrupt
        return original(self, call, *args)

    monkeypatch.setattr(XlaOrGraph, "run", counted)
    interrupt_at = None
    monkeypatch.setattr(particle_sampler, "_SECONDS", 1e-9)  # one stage per call
    capsys.readouterr()
    divided = run(progress=True)
    stages = len(draws.inverse_temperatures)  # the base is none, but the last two stages are both at β = 1
    quick = len(calls) - 2 * stages  # the first pass takes larger steps
    assert 1 < quick < stages
    assert calls == [*range(1, quick + 1), *range(1, stages + 1), *range(1, stages + 1)]
    assert "100/100" in capsys.readouterr().out
    calls.clear()
    monkeypatch.setattr(particle_sampler, "_SECONDS", 1e9)
    at_once = run()
    assert len(calls) < stages and capsys.readouterr().out == ""
    for other in (divided, at_once):
        np.testing.assert_array_equal(draws.states, other.states)
        np.testing.assert_array_equal(draws.inverse_temperatures, other.inverse_temperatures)
        np.testing.assert_array_equal(draws.acceptance_rate, other.acceptance_rate)
        assert draws.log_normalizer.value == other.log_normalizer.value and draws.trouble == other.trouble
    calls.clear()
    interrupt_at = 2
    with pytest.raises(KeyboardInterrupt):
        run()
    interrupt_at = None
    np.testing.assert_array_equal(draws.states, run().states)


@pytest.mark.slow
def test_noise_of_a_stage_depends_on_its_number(monkeypatch):
    """The negative control: a stage that takes its noise from its place in the call gives other bits."""
    target = targets.two_gaussians()
    base = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [4.0, 4.0])
    original = particles.continue_pass

    def restarted(resolve, base, settings, begun, plan, is_planned, seed, effort, stop):
        seed = tf.stack([seed[0], begun.num_stages])  # a new seed in each call
        return original(resolve, base, settings, begun, plan, is_planned, seed, effort, stop)

    monkeypatch.setattr(particle_sampler, "continue_pass", restarted)
    states = []
    for seconds in (1e-9, 1e9):
        monkeypatch.setattr(particle_sampler, "_SECONDS", seconds)
        run = mcmc.sequential_monte_carlo
        states.append(run(target, base, num_samples=50, seed=2, num_last_moves=3, jit_compile=False).states.numpy())
    assert not np.array_equal(*states)
