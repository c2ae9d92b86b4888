"""An interrupt returns what was drawn, to the last bit, and where a run is cut does not matter."""

import functools
import os
import signal

import numpy as np
import pytest
import tensorflow as tf
from laws import assert_same, normal

from tfp_ebm import mcmc
from tfp_ebm.mcmc.running import stretches as runs
from tfp_ebm.mcmc.running.chain import Chain

START = np.random.default_rng(0).normal(size=[4, 2])


class Interrupting:
    """A normal target that sends its own process Ctrl-C at one of its evaluations; the first is the check of the start,
    the second the kernel's bootstrap, then there is one per step."""

    def __init__(self, at_step=None):
        self.count = -2
        self.at_step = at_step

    def log_prob(self, x):
        def look(x):
            if self.count == self.at_step:
                os.kill(os.getpid(), signal.SIGINT)
            self.count += 1
            return x

        y = tf.numpy_function(look, [x], x.dtype)
        y.set_shape(x.shape)
        return -0.5 * tf.reduce_sum(y**2, -1)


@pytest.fixture
def short_stretches(monkeypatch):
    """Stretches of a few steps, so that short runs have many; Ctrl-C heard, as it is not in a shell's background."""
    monkeypatch.setattr(runs, "_SECONDS", 0.02)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def draw(function, target, num_results=300, **kwargs):
    return function(
        target.log_prob, START, mcmc.RandomWalk(1.0), num_results=num_results, seed=5, jit_compile=False, **kwargs
    )


def drawn(record):
    """The two numbers of the warning."""
    (message,) = [str(entry.message) for entry in record]
    words = message.split()
    assert words[0] == "Interrupted:"
    return int(words[1]), int(words[3])


# A stretch that begins in the burn-in of 40 steps ends before step 9 * 40: there are results at step 400, also on a
# machine that is busy.
@pytest.mark.parametrize(("burnin", "between", "progress", "at_step"), [(0, 0, False, 150), (40, 2, True, 400)])
def test_what_was_drawn_is_returned(short_stretches, burnin, between, progress, at_step, capsys):
    steps = {"num_burnin_steps": burnin, "num_steps_between_results": between, "progress": progress}
    with pytest.warns(UserWarning, match="Interrupted") as record:
        samples = draw(mcmc.sample, Interrupting(at_step), **steps)
    number, of = drawn(record)
    assert of == 300 and len(samples.states) == number
    assert 0 < burnin + (number - 1) * (between + 1) < at_step  # nothing of the stretch it came in, nothing half done
    whole = draw(mcmc.sample, Interrupting(), **steps)
    for part, all_of_it in zip(samples[:3], whole[:3], strict=True):
        np.testing.assert_array_equal(part, all_of_it[:number])
    # control: the comparison sees a prefix that begins one result late
    assert np.any(samples.states != whole.states[1 : number + 1])
    assert samples.step_size == 1.0 and samples.num_nonfinite == 0
    mcmc.diagnose(samples)


def test_an_interrupt_before_the_first_result_is_one(short_stretches):
    for function in (mcmc.sample, mcmc.summarize):
        with pytest.raises(KeyboardInterrupt):
            draw(function, Interrupting(at_step=60), num_burnin_steps=120)


def test_a_summary_is_that_of_what_was_drawn(short_stretches):
    for at_step in (100, 250):  # in the first and the second half
        with pytest.warns(UserWarning, match="Interrupted") as record:
            summary = draw(mcmc.summarize, Interrupting(at_step))
        number, _ = drawn(record)
        assert int(summary.num_results) == number <= at_step
        samples = draw(mcmc.sample, Interrupting())
        kept = samples.states[:number].numpy()
        np.testing.assert_allclose(summary.mean, kept.mean((0, 1)), rtol=1e-9)
        np.testing.assert_allclose(summary.sd, kept.reshape(-1, 2).std(0, ddof=1), rtol=1e-9)
        rhat = np.sqrt(1 - 1 / number + kept.mean(0).var(0, ddof=1) / kept.var(0, ddof=1).mean(0))
        np.testing.assert_allclose(summary.rhat, rhat, rtol=1e-9)
        split = mcmc.diagnose(kept).rhat
        assert np.all(np.abs(summary.rhat - split) > 1e-9)  # control


@pytest.mark.slow
@pytest.mark.parametrize(
    ("jit_compile", "kernel"), [(False, mcmc.Adaptive(mcmc.HMC(0.3, 2))), (True, mcmc.MALA(0.8))], ids=["graph", "XLA"]
)
def test_where_a_run_is_cut_does_not_matter(monkeypatch, jit_compile, kernel):
    """Cut by time, and by the number of slots, in the midst of a burn-in and between two results."""
    calls = []
    monkeypatch.setattr(Chain, "__init__", counting(Chain.__init__, calls))
    steps = {"num_results": 10, "num_burnin_steps": 5, "num_steps_between_results": 1}
    summaries, samples = [], []
    for seconds, slots, few, many in [(1e9, 4096, 1, 3), (1e-9, 4096, 15, 24), (1e-9, 3, 15, 24), (1e9, 3, 4, 5)]:
        monkeypatch.setattr(runs, "_SECONDS", seconds)
        monkeypatch.setattr(runs, "_MAX_SLOTS", slots)
        del calls[:]
        arguments = {"kernel": kernel, "seed": 1, "jit_compile": jit_compile, **steps}
        samples.append(mcmc.sample(normal, START, **arguments))
        assert few <= len(calls) <= many
        summaries.append(mcmc.summarize(normal, START, **arguments))
    for runs_of_one_kind in (samples, summaries):
        for other in runs_of_one_kind[1:]:
            assert_same(other, runs_of_one_kind[0])
    # control: one step fewer is seen
    fewer = mcmc.sample(normal, START, **{**arguments, "num_burnin_steps": 4})
    assert np.any(fewer.states != samples[0].states)


def counting(init, calls):
    def wrapped(self, *args, **kwargs):
        init(self, *args, **kwargs)
        advance = self.advance
        self.advance = lambda *given: calls.append(0) or advance(*given)

    return wrapped


def test_a_run_as_short_as_before_is_one_call(monkeypatch):
    """Once the loop is compiled and known, cutting it costs nothing."""
    calls = []
    monkeypatch.setattr(Chain, "__init__", counting(Chain.__init__, calls))
    monkeypatch.setattr(runs, "_SECONDS", 1e9)  # a busy machine must not make the stretches shorter
    run = functools.partial(mcmc.sample, normal, START, mcmc.MALA(0.5), num_results=200, seed=0, jit_compile=False)
    run()
    assert 1 < len(calls) <= 5  # 1, 8, 64 and the rest
    del calls[:]
    run()
    assert len(calls) == 1
