"""`summarize` is `diagnose` of the draws that `sample` would have kept, in memory that does not grow with them."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import assert_same

from tfp_ebm import mcmc
from tfp_ebm.mcmc.running import moments

SCALES = np.array([1.0, 3.0])


class Energy:
    """N(1000, SCALES²) in two coordinates; counts how often it is traced."""

    num_traces = 0

    def log_prob(self, x):
        self.num_traces += 1
        return -0.5 * tf.reduce_sum(((x - 1000.0) / tf.constant(SCALES, x.dtype)) ** 2, -1)


def start(num_chains, dtype=np.float64):
    return (1000.0 + SCALES * np.random.default_rng(0).normal(size=[num_chains, 2])).astype(dtype)


def check_twin(summary, samples, rtol=1e-9):
    """The statistics of kept draws by `diagnose`, and by NumPy where that has no figure."""
    kept = mcmc.diagnose(samples)
    x = np.asarray(samples.states, np.float64)
    number, rank = len(x), samples.is_accepted.shape.rank - 1
    event = x.shape[1 + rank :]
    np.testing.assert_allclose(summary.mean, kept.mean, rtol=rtol)
    np.testing.assert_allclose(summary.sd, kept.sd, rtol=rtol)
    np.testing.assert_allclose(summary.rhat, kept.rhat, rtol=rtol)
    assert float(summary.acceptance_rate) == pytest.approx(kept.acceptance_rate, rel=1e-12)
    assert int(summary.num_nonfinite) == kept.num_nonfinite and int(summary.num_results) == number
    assert kept.num_stuck is None or int(summary.num_stuck) == kept.num_stuck
    means = x.mean(0).reshape(-1, *event)
    np.testing.assert_allclose(summary.mcse, means.std(0, ddof=1) / np.sqrt(len(means)), rtol=rtol)
    np.testing.assert_allclose(summary.last_state, x[-1], rtol=rtol)
    if summary.covariance is not None:
        naive = np.cov(x.reshape(-1, int(np.prod(event))).T)
        np.testing.assert_allclose(summary.covariance, naive.reshape(*event, *event), rtol=rtol, atol=rtol)
    if summary.rhat_log_prob is not None and number >= 4:
        naive = mcmc.diagnose(np.asarray(samples.unnormalized_log_prob, np.float64), event_ndims=0).rhat
        np.testing.assert_allclose(summary.rhat_log_prob, naive, rtol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "jit_compile", "steps"),
    [
        (mcmc.Adaptive(mcmc.HMC(0.5, 3)), False, (21, 30, 2)),
        (mcmc.MALA([0.8, 2.0]), False, (40, 0, 0)),
        (mcmc.MALA([0.8, 2.0]), True, (40, 7, 1)),
        (mcmc.RandomWalk(1.0), False, (1, 5, 0)),
        (mcmc.Langevin(0.5), False, (3, 0, 3)),
        (functools.partial(tfp.mcmc.HamiltonianMonteCarlo, step_size=0.5, num_leapfrog_steps=2), False, (17, 3, 0)),
    ],
    ids=str,
)
def test_it_is_diagnose_of_the_draws(kernel, jit_compile, steps):
    arguments = dict(zip(("num_results", "num_burnin_steps", "num_steps_between_results"), steps, strict=True))
    energy = Energy()
    samples = mcmc.sample(energy.log_prob, start(30), kernel, seed=1, jit_compile=jit_compile, **arguments)
    summarize = functools.partial(
        mcmc.summarize, energy.log_prob, start(30), kernel, jit_compile=jit_compile, covariance=True, **arguments
    )
    check_twin(summarize(seed=1), samples)
    with pytest.raises(AssertionError):  # control: of another seed's draws it is not
        check_twin(summarize(seed=2), samples)


def test_an_image_and_many_axes_of_chains():
    def image(x):
        return -0.5 * tf.reduce_sum(x**2, [-1, -2])

    x = np.random.default_rng(0).normal(size=[2, 5, 3, 2])
    arguments = {"num_results": 8, "seed": 0, "jit_compile": False}
    summary = mcmc.summarize(image, x, mcmc.MALA(0.7), covariance=True, **arguments)
    assert summary.mean.shape == [3, 2] and summary.covariance.shape == [3, 2, 3, 2]
    check_twin(summary, mcmc.sample(image, x, mcmc.MALA(0.7), **arguments))
    scalar = mcmc.summarize(lambda x: -0.5 * x**2, x[0, :, 0, 0], mcmc.MALA(0.7), **arguments)
    assert scalar.mean.shape == [] and scalar.covariance is None


@pytest.mark.slow
def test_thousands_of_chains_in_float32(capsys):
    """With the progress bar; ESS, from the scatter of 4000 chain means, against the truth of exact AR(1) chains.

    Langevin on a Gaussian of variance 1 is AR(1) with ρ = 1 − ε²/2. Standard error of the variance of 4000 means:
    √(2/4000) = 2.2 %; 4 SE raise a false alarm once in 16 000. Control: the number of draws is 3 times too many.
    """
    energy = Energy()
    epsilon, number = 1.0, 200
    summary, samples = (
        function(
            energy.log_prob,
            start(4000, np.float32),
            mcmc.Langevin(epsilon * SCALES),
            num_results=number,
            num_burnin_steps=20,
            seed=3,
            jit_compile=False,
            progress=True,
        )
        for function in (mcmc.summarize, mcmc.sample)
    )
    assert "step" in capsys.readouterr().out
    check_twin(summary, samples)
    rho = 1 - epsilon**2 / 2
    time = (1 + rho) / (1 - rho) - 2 * rho * (1 - rho**number) / (number * (1 - rho) ** 2)
    truth = 4000 * number / time
    assert np.all(np.abs(summary.ess / truth - 1) < 4 * np.sqrt(2 / 4000))
    assert np.all(np.abs(4000 * number / summary.ess - 1) > 4 * np.sqrt(2 / 4000))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_second_call_traces_nothing(jit_compile):
    """The number of results is an argument too."""
    energy = Energy()
    run = functools.partial(mcmc.summarize, energy.log_prob, start(5), mcmc.MALA(1.0), jit_compile=jit_compile)
    first = run(num_results=20, seed=1)
    traces = energy.num_traces
    np.testing.assert_array_equal(first.mean, run(num_results=20, seed=1, progress=True).mean)
    run(num_results=31, seed=2, num_burnin_steps=4, num_steps_between_results=2)
    assert energy.num_traces == traces


@pytest.mark.slow
def test_inside_a_function():
    energy = Energy()

    @tf.function
    def outer(x):
        return mcmc.summarize(energy.log_prob, x, mcmc.MALA(1.0), num_results=9, seed=1, covariance=True)

    check_twin(
        outer(tf.constant(start(6))),
        mcmc.sample(energy.log_prob, start(6), mcmc.MALA(1.0), num_results=9, seed=1, jit_compile=False),
    )


def test_bad_chains_are_counted_and_reported():
    def half_line(x):
        return tf.where(x[..., 0] > 0, -0.5 * tf.reduce_sum(x**2, -1), -np.inf)

    x = np.array([[1.0, 0.0], [-1.0, 0.0], [np.nan, 0.0], [2.0, 0.0]])
    arguments = {"num_results": 6, "seed": 0, "jit_compile": False}
    with pytest.warns(UserWarning, match="2 of 4 chains start"):
        summary = mcmc.summarize(half_line, x, mcmc.RandomWalk(1e-3), **arguments)
    assert (int(summary.num_nonfinite), int(summary.num_stuck)) == (2, 1)
    assert np.isnan(summary.mean[0]) and np.isfinite(summary.mean[1])  # nothing is left out
    with pytest.warns(UserWarning, match="4 of 4 chains became NaN"):
        mcmc.summarize(lambda x: -tf.reduce_sum(x**4, -1), 10 + 0 * start(4), mcmc.Langevin(1.0), **arguments)


def test_arguments_are_those_of_sample():
    with pytest.raises(ValueError, match="`num_results`"):
        mcmc.summarize(Energy().log_prob, start(3), mcmc.MALA(1.0), num_results=0, seed=0)
    with pytest.raises(TypeError, match="`seed`"):
        mcmc.summarize(Energy().log_prob, start(3), mcmc.MALA(1.0), num_results=2, seed=None)


# --- the sums --------------------------------------------------------------------------------------------------------


def stream(x, skipped=()):
    """Moments of `[steps, chains, 2]`; steps in `skipped` do not count."""
    log_prob = tf.zeros(x.shape[1:2], x.dtype)
    total = moments.zero_moments(tf.constant(x[0]), log_prob, True, True)
    for step, state in enumerate(x):
        total = moments.add_step(
            total, tf.constant(step not in skipped), tf.constant(state), log_prob, tf.ones(len(log_prob), tf.bool)
        )
    return total


def test_a_mean_far_from_zero_costs_no_digits():
    """Mean 10⁸, variance 1: Welford keeps 8 digits of the variance. Control: Σx² − (Σx)²/n has not one."""
    x = 1e8 + np.random.default_rng(0).normal(size=[100, 3, 2])
    truth = x.var(0)
    np.testing.assert_allclose(stream(x).squares[0] / 100, truth, rtol=1e-7)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose((x**2).mean(0) - x.mean(0) ** 2, truth, rtol=0.5)


def test_stretches_join_to_the_whole():
    x = np.random.default_rng(1).normal(size=[30, 4, 2]) + np.linspace(0, 5, 30)[:, None, None]
    whole = stream(x)
    for cuts in ([20], [1, 1, 8]):
        joined = moments.join_stretches([stream(part) if len(part) else empty(x) for part in np.split(x, cuts)])
        for left, right in zip(tf.nest.flatten(joined), tf.nest.flatten(whole), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-12)
    with pytest.raises(AssertionError):  # control: without the term of the means
        np.testing.assert_allclose(stream(x[:20]).squares[0] + stream(x[20:]).squares[0], whole.squares[0], rtol=1e-12)


def empty(x):
    return moments.zero_moments(tf.constant(x[0]), tf.zeros(x.shape[1:2], x.dtype), True, True)


def test_steps_that_do_not_count_leave_no_trace():
    x = np.random.default_rng(2).normal(size=[6, 3, 2])
    x[[0, 3]] = [[[np.inf]], [[np.nan]]]
    assert_same(tf.nest.flatten(stream(x, {0, 3})), tf.nest.flatten(stream(x[[1, 2, 4, 5]])))
    assert not np.all(stream(x, {0}).is_finite)


# --- memory ----------------------------------------------------------------------------------------------------------

MEMORY = """
import json, resource, tensorflow as tf
from tfp_ebm import mcmc

def normal(x):
    return -0.5 * tf.reduce_sum(x**2, -1)

def peak(function, num_results):
    function(normal, tf.zeros([64, 400]), mcmc.Langevin(0.5), num_results=num_results, seed=0, jit_compile=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

print(json.dumps([peak(mcmc.summarize, 100), peak(mcmc.summarize, 1200), peak(mcmc.sample, 1200)]))
"""


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_results():
    """64 × 400 float32 and 1200 results are 117 MiB. The peak of the process may grow by 20 MiB from 100 results to
    1200, and must grow by 100 MiB, the control, when they are kept."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    # A process inherits the peak of the one that it was forked from, so a small one stands in between.
    between = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {MEMORY!r}], check=True)"
    result = subprocess.run(
        [sys.executable, "-S", "-c", between], capture_output=True, text=True, timeout=120, env=environment
    )
    assert result.returncode == 0, result.stderr[-1000:]
    few, many, kept = json.loads(result.stdout.splitlines()[-1])
    assert many - few < 20
    assert kept - many > 100
