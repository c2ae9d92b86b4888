"""Annealed Langevin dynamics: short runs at each noise scale, from the largest to the smallest (Song & Ermon 2019).

Chains do not move between separated modes, and a score trained on data is arbitrary far from the data. With noise of a
large scale σ added to the data, the modes merge and every point is close to data. Chains therefore run at
σ₁ > σ₂ > … > σ_L in turn. Each level starts at the last states of the previous level, and makes the steps of eq. 65
with the score of the data plus noise of scale σ,

    x' = x − ½εᵢ² ∇E(x; σᵢ) + εᵢZ,      εᵢ = ε σᵢ/σ_L,

which is the paper's step x' = x + ½αᵢ s + √αᵢ Z with αᵢ = ε₀σᵢ²/σ_L², εᵢ² = αᵢ: the ratio of drift and noise is the
same at all levels. Nothing is rejected. If the noisy data are Gaussian with variance v, a step changes the variance w
of the chains to (1 − ε²/2v)²w + ε², which tends to v/(1 − ε²/4v): as v ≥ σ², at ε = .4σ the bias is at most 4 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import arguments
from tfp_ebm.caller import warn
from tfp_ebm.energy.shapes import as_state
from tfp_ebm.energy.signs import check_target
from tfp_ebm.energy.standardization import Coordinates
from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.kernels.langevin import Langevin
from tfp_ebm.mcmc.running.chain import value_at_start
from tfp_ebm.mcmc.running.compiled import Compiled, XlaOrGraph, check_state, compile_once, xla_pays
from tfp_ebm.mcmc.running.finite import count_nonfinite
from tfp_ebm.mcmc.running.loop import iterate, run_steps, seeds_of
from tfp_ebm.mcmc.sampling import Samples
from tfp_ebm.random import chain_key, stateless_seed

# In units of the smallest noise scale; the value of Song & Ermon is .45 (α = 2·10⁻⁵ at σ = .01).
_STEP_SIZE = 0.4


def annealed_langevin(
    target_log_prob_fn: Any,
    initial_state: Any,
    sigmas: Any,
    num_steps: int = 100,
    step_size: float | None = None,
    *,
    seed: Any,
    jit_compile: bool | str = "auto",
) -> Samples:
    """Runs Langevin chains through a decreasing sequence of noise scales, and returns their states at the end of each.

    All levels run in one compiled loop. A second call with an equal target and shapes traces nothing, whatever the
    scales, step size, number of steps and weights are.

    Args:
      target_log_prob_fn: log p(x; σ) up to a constant, `(x [*chains, *event], sigma [*chains]) -> [*chains]`; or an
        `EnergyModel` whose network takes (x, σ). With a model, `initial_state` and the result are in x, while scales
        and step size are in standardised units, as in training.
      initial_state: the initial states, floating-point `[*chains, *event]`; for example noise of the largest scale.
      sigmas: the noise scales, positive, in increasing or decreasing order; used from the largest to the smallest.
      num_steps: number of Langevin steps at each scale.
      step_size: ε, the step at the smallest scale; at scale σ it is ε·σ/min(sigmas). Default: 0.4·min(sigmas).
      seed: int, or int32[2]. The same seed gives the same samples.
      jit_compile: as for `ebm.mcmc.sample`.

    Returns:
      A `Samples` with one result for each scale, from the largest to the smallest: states `[levels, *chains, *event]`,
      log densities (each at its own scale) and acceptances, all True, `[levels, *chains]`, step sizes `[levels]`.

    Raises:
      TypeError: if the seed is None, or the state is not floating-point or has another dtype than the target's values.
      ValueError: if scales, step size or count are out of range, the model's network takes no condition, or the target
        does not return one number for each chain.

    Reference: Y. Song, S. Ermon, Generative modeling by estimating gradients of the data distribution, 2019,
    arXiv:1907.05600, algorithm 1.

    >>> blurred = lambda x, sigma: -0.5 * tf.reduce_sum(x**2, -1) / (1 + sigma**2)  # N(0, I) blurred by sigma
    >>> samples = annealed_langevin(blurred, 3 * tf.ones([4, 2]), sigmas=[3.0, 1.0, 0.3], num_steps=10, seed=0)
    >>> samples.states.shape, [round(float(step), 2) for step in samples.step_size]
    (TensorShape([3, 4, 2]), [1.2, 0.4, 0.12])

    `MultiscaleDenoisingScoreMatching(sigmas, sigma0)` trains a single energy for all scales, which is sampled at
    decreasing temperatures (Li, Chen & Sommer 2019):

    >>> E, sigma0 = lambda x: tf.reduce_sum(x**2, -1), 0.1
    >>> tempered = lambda x, sigma: -E(x) * sigma0**2 / sigma**2
    >>> annealed_langevin(tempered, tf.ones([4, 2]), [0.3, 0.1], num_steps=10, seed=0).states.shape
    TensorShape([2, 4, 2])
    """
    scales = sorted(arguments.check_sigmas("sigmas", sigmas), reverse=True)
    num_steps = arguments.check_count("num_steps", num_steps)
    smallest = _STEP_SIZE * scales[-1] if step_size is None else arguments.check_positive("step_size", step_size)
    seed = stateless_seed(seed)
    arguments.check_jit_compile(jit_compile)
    energy_function = getattr(target_log_prob_fn, "energy_function", None)
    if energy_function is None:
        if isinstance(target_log_prob_fn, tfp.distributions.Distribution):
            raise TypeError(
                "`target_log_prob_fn` must be a log density of (x, sigma), or a model whose network takes both, got a "
                f"distribution of x alone, {target_log_prob_fn}."
            )
        target, state = check_target(target_log_prob_fn), check_state(initial_state)
    else:
        if not energy_function.is_conditional:
            raise ValueError("`target_log_prob_fn` must be a model of (x, sigma), got one whose network takes x alone.")
        target = energy_function.unnormalized_log_prob
        x = as_state(initial_state, energy_function.dtype, energy_function.event_shape, "initial_state")
        state = check_state(Coordinates.of(energy_function).to_chain(x))
    levels = tf.constant(scales, state.dtype)
    samples = _run(target, state, levels, smallest * levels / levels[-1], num_steps, seed, jit_compile)
    return Coordinates.of(energy_function).finish(samples)


def _anneal(
    resolve: Callable[[], TargetLogProbFn],
    state: tf.Tensor,
    sigmas: tf.Tensor,
    step_sizes: tf.Tensor,
    num_steps: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the log density at the start, and states and log densities at the end of each level."""
    target, seed_at, recipe = resolve(), seeds_of(chain_key(seed)), Langevin(1.0)
    start = _per_chain(target, state, sigmas[0])
    arrays = [tf.TensorArray(x.dtype, sigmas.shape[0], element_shape=x.shape) for x in (state, start)]

    def level(i: tf.Tensor, state: tf.Tensor, *arrays: tf.TensorArray) -> tuple[Any, ...]:
        sigma = tf.fill(tf.shape(start), sigmas[i])

        def log_prob(x: tf.Tensor) -> tf.Tensor:
            return target(x, sigma)

        value_at_start(log_prob, recipe, state)
        kernel = recipe.build(log_prob, step_sizes[i])
        steps = (i * num_steps, (i + 1) * num_steps)  # numbers are unique over all levels, so no two share their noise
        state, results, _ = run_steps(lambda _: kernel, state, kernel.bootstrap_results(state), steps, seed_at)
        kept = zip(arrays, (state, results.target_log_prob), strict=True)
        return state, *(array.write(i, value) for array, value in kept)

    _, *arrays = iterate(level, (0, sigmas.shape[0]), state, *arrays)
    states, log_prob = (tf.stop_gradient(array.stack()) for array in arrays)
    return start, states, log_prob


def _per_chain(target: TargetLogProbFn, state: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """Returns the target's values at `state`, one for each chain, given one sigma for each chain.

    The number of chain axes equals the number of axes of the values, so it is found by trying.
    """
    failures: dict[int, Exception] = {}
    for rank in range(state.shape.rank + 1):
        try:
            value = tf.convert_to_tensor(target(state, tf.fill(tf.shape(state)[:rank], sigma)))
        except Exception as error:  # a target may raise anything for a sigma of the wrong rank
            failures[rank] = error
            continue
        if value.shape.rank == rank and value.shape.is_compatible_with(state.shape[:rank]):
            return value
    raise ValueError(
        "`target_log_prob_fn` must map (x [*chains, *event], sigma [*chains]) to one number per chain, [*chains]; for "
        f"`initial_state` of shape {tuple(state.shape)} it fails for every number of chain axes."
    ) from failures.get(1)  # one axis of chains is the usual case, so show that error


def _run(
    target: TargetLogProbFn,
    state: tf.Tensor,
    sigmas: tf.Tensor,
    step_sizes: tf.Tensor,
    num_steps: int,
    seed: tf.Tensor,
    jit_compile: bool | str,
) -> Samples:
    """Runs the chains of `annealed_langevin` for a plain target, and warns about non-finite chains."""
    given = (state, sigmas, step_sizes, tf.constant(num_steps), seed)
    if not tf.executing_eagerly():
        return _samples(_anneal(lambda: target, *given), step_sizes)

    def find(by_xla: bool) -> Compiled:
        return compile_once(target, _anneal, jit_compile=by_xla)

    loop = XlaOrGraph(find, jit_compile, xla_pays(Langevin(1.0), num_steps * len(sigmas), state))
    results = loop.run(Compiled.__call__, *given)
    start = results[0]
    samples = _samples(results, step_sizes)
    num_bad_starts = count_nonfinite(state[None], start.shape.rank + 1, start[None])
    num_chains = start.shape.num_elements()
    if num_bad_starts > 0:
        warn(
            f"{num_bad_starts} of {num_chains} chains start at a state where the state or its log density is NaN or "
            "infinite.",
        )
    if samples.num_nonfinite > num_bad_starts:
        warn(
            f"{samples.num_nonfinite} of {num_chains} chains became NaN or infinite; a smaller step size keeps "
            "chains finite.",
        )
    return samples


def _samples(results: tuple[tf.Tensor, tf.Tensor, tf.Tensor], step_sizes: tf.Tensor) -> Samples:
    _, states, log_prob = results
    num_nonfinite = count_nonfinite(states, log_prob.shape.rank, log_prob)
    return Samples(states, log_prob, tf.ones_like(log_prob, tf.bool), step_sizes, num_nonfinite)
