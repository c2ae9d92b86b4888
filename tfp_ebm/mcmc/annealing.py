"""Annealed Langevin dynamics: from the largest noise scale to the smallest, by short runs at each (Song & Ermon 2019).

Where modes are separated no chain crosses between them, and far from the data a score knows nothing. Blurred by a large
σ the modes are one, and every point is near data. So chains run at σ₁ > σ₂ > … > σ_L in turn, each level from the
states that the one before left, by the steps of eq. 65 with the score of the data blurred by that σ,

    x' = x − ½εᵢ² ∇E(x; σᵢ) + εᵢZ,      εᵢ = ε σᵢ/σ_L,

which is the paper's step x' = x + ½αᵢ s + √αᵢ Z with αᵢ = ε₀σᵢ²/σ_L², εᵢ² = αᵢ: drift and noise keep their ratio at all
levels. Nothing is rejected. Where the blurred data is a Gaussian of variance v, a step turns the variance w of chains
into (1 − ε²/2v)²w + ε², which tends to v/(1 − ε²/4v): as v ≥ σ², at ε = .4σ the bias is at most 4 %.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import arguments
from tfp_ebm.energy.shapes import as_state
from tfp_ebm.energy.signs import check_target
from tfp_ebm.energy.standardization import Coordinates
from tfp_ebm.mcmc.kernels.kernel import TargetLogProbFn
from tfp_ebm.mcmc.kernels.langevin import Langevin
from tfp_ebm.mcmc.running.compiled import check_state, find_compiled, find_loop, run_or_fall_back, xla_pays
from tfp_ebm.mcmc.running.finite import count_nonfinite
from tfp_ebm.mcmc.running.loop import Chain
from tfp_ebm.mcmc.sampling import Samples
from tfp_ebm.random import chain_key, stateless_seed

# In units of the smallest noise scale; Song & Ermon's own is .45 (α = 2·10⁻⁵ at σ = .01).
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
    """Runs Langevin chains through a falling sequence of noise scales, and returns their states at the end of each.

    All levels are one compiled loop; a second call with an equal target and shapes, whatever the scales, step size,
    number of steps and weights, traces nothing.

    Args:
      target_log_prob_fn: log p(x; σ) up to a constant, `(x [*chains, *event], sigma [*chains]) -> [*chains]`; or an
        `EnergyModel` of a network of (x, σ). With a model `initial_state` and the result are in x, while scales and
        step size are in standardised units, as in training.
      initial_state: where the chains start, floating-point `[*chains, *event]`; for example noise of the largest scale.
      sigmas: the noise scales, positive and sorted, one way or the other: they are taken from the largest down.
      num_steps: Langevin steps at each.
      step_size: ε, the step at the smallest scale; at scale σ it is ε·σ/min(sigmas). Default: 0.4·min(sigmas).
      seed: int, or int32[2]. The same seed gives the same samples.
      jit_compile: as for `ebm.mcmc.sample`.

    Returns:
      A `Samples` with one result for each scale, from the largest to the smallest: states `[levels, *chains, *event]`,
      log densities (each at its own scale) and acceptances, all True, `[levels, *chains]`, step sizes `[levels]`.

    Raises:
      TypeError: if the seed is None, the state not floating-point, or of another dtype than the target's values.
      ValueError: if scales, step size or count are out of range, the model's network takes no condition, or the target
        does not return one number per chain.

    Reference: Y. Song, S. Ermon, Generative modeling by estimating gradients of the data distribution, 2019,
    arXiv:1907.05600, algorithm 1.

    >>> blurred = lambda x, sigma: -0.5 * tf.reduce_sum(x**2, -1) / (1 + sigma**2)  # N(0, I) blurred by sigma
    >>> samples = annealed_langevin(blurred, 3 * tf.ones([4, 2]), sigmas=[3.0, 1.0, 0.3], num_steps=10, seed=0)
    >>> samples.states.shape, [round(float(step), 2) for step in samples.step_size]
    (TensorShape([3, 4, 2]), [1.2, 0.4, 0.12])

    One energy that is not told the scale, as `MultiscaleDenoisingScoreMatching(sigmas, sigma0)` trains it, is sampled
    at falling temperatures (Li, Chen & Sommer 2019):

    >>> E, sigma0 = lambda x: tf.reduce_sum(x**2, -1), 0.1
    >>> tempered = lambda x, sigma: -E(x) * sigma0**2 / sigma**2
    >>> annealed_langevin(tempered, tf.ones([4, 2]), [0.3, 0.1], num_steps=10, seed=0).states.shape
    TensorShape([2, 4, 2])
    """
    scales = sorted(arguments.check_sigmas("sigmas", sigmas), reverse=True)
    num_steps = arguments.check_count("num_steps", num_steps)
    smallest = _STEP_SIZE * scales[-1] if step_size is None else arguments.check_positive("step_size", step_size)
    seed = stateless_seed(seed)
    if jit_compile not in (True, False, "auto"):
        raise ValueError(f"`jit_compile` must be True, False or 'auto', got {jit_compile!r}.")
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


class _Annealing:
    """All levels as one function of tensors.

    Args:
      resolve: returns the target; called while tracing only.
      jit_compile: True or False compile it; None leaves that to an outer function.

    Attributes:
      is_xla: whether it is compiled by XLA.
      xla_failed: whether that was tried in vain.
    """

    def __init__(self, resolve: Callable[[], TargetLogProbFn], jit_compile: bool | None) -> None:
        self._resolve = resolve
        self.is_xla = bool(jit_compile)
        self.xla_failed = False
        self.run: Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]] = self._run
        if jit_compile is not None:
            self.run = tf.function(functools.partial(self._run), autograph=False, jit_compile=jit_compile)

    def _run(
        self, state: tf.Tensor, sigmas: tf.Tensor, step_sizes: tf.Tensor, num_steps: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The log density at the start, and states and log densities at the end of each level."""
        target, key = self._resolve(), chain_key(seed)
        start = _per_chain(target, state, sigmas[0])
        shapes = (state.shape, start.shape)
        arrays = tuple(tf.TensorArray(state.dtype, sigmas.shape[0], element_shape=shape) for shape in shapes)

        def level(i: tf.Tensor, state: tf.Tensor, arrays: tuple[tf.TensorArray, ...]) -> tuple[Any, ...]:
            sigma = tf.fill(tf.shape(start), sigmas[i])
            chain = Chain(lambda: lambda x: target(x, sigma), Langevin(1.0), num_results=1)
            results, log_prob = chain.start(state, step_sizes[i])
            steps = (i * num_steps, (i + 1) * num_steps)  # numbered through, so that no two share their noise
            burnin, stride = steps[1] - 1, tf.constant(1)
            state, _, rows = chain.advance(state, results, log_prob, steps, step_sizes[i], key, burnin, stride)
            kept = zip(arrays, (rows.states[0], rows.log_prob[0]), strict=True)
            return i + 1, state, tuple(array.write(i, value) for array, value in kept)

        _, _, arrays = tf.while_loop(
            lambda i, *_: i < sigmas.shape[0], level, (tf.constant(0), state, arrays), parallel_iterations=1
        )
        states, log_prob = (tf.stop_gradient(array.stack()) for array in arrays)
        return start, states, log_prob


def _per_chain(target: TargetLogProbFn, state: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
    """The target's values at `state`, one for each chain, given one sigma for each chain.

    How many axes of the state are chains the target alone knows: it is the number of axes of what it returns.
    """
    failures: dict[int, Exception] = {}
    for rank in range(state.shape.rank + 1):
        try:
            value = tf.convert_to_tensor(target(state, tf.fill(tf.shape(state)[:rank], sigma)))
        except Exception as error:  # a target may fail in any way at a sigma of the wrong rank
            failures[rank] = error
            continue
        if value.shape.rank == rank and value.shape.is_compatible_with(state.shape[:rank]):
            return value
    raise ValueError(
        "`target_log_prob_fn` must map (x [*chains, *event], sigma [*chains]) to one number per chain, [*chains]; for "
        f"`initial_state` of shape {tuple(state.shape)} it did so for no number of axes of chains."
    ) from failures.get(1)  # the common number, whose failure so is the one to look at


def _run(
    target: TargetLogProbFn,
    state: tf.Tensor,
    sigmas: tf.Tensor,
    step_sizes: tf.Tensor,
    num_steps: int,
    seed: tf.Tensor,
    jit_compile: bool | str,
) -> Samples:
    """What `annealed_langevin` returns for a plain target."""
    arguments_of_run = (state, sigmas, step_sizes, tf.constant(num_steps), seed)
    if tf.inside_function():
        return _samples(_Annealing(lambda: target, None).run(*arguments_of_run), step_sizes)

    def find(by_xla: bool) -> _Annealing:
        return find_compiled(target, ("annealing", by_xla), lambda resolve: _Annealing(resolve, by_xla))

    loop = find_loop(find, jit_compile, xla_pays(Langevin(1.0), num_steps * len(sigmas), state))
    _, results = run_or_fall_back(lambda loop: loop.run(*arguments_of_run), loop, find, jit_compile)
    start = results[0]
    samples = _samples(results, step_sizes)
    num_bad_starts = count_nonfinite(state[None], start.shape.rank + 1, start[None])
    num_chains = start.shape.num_elements()
    if num_bad_starts > 0:
        warnings.warn(
            f"{num_bad_starts} of {num_chains} chains start at a state where the state or its log density is NaN or "
            "infinite.",
            stacklevel=3,
        )
    if samples.num_nonfinite > num_bad_starts:
        warnings.warn(
            f"{samples.num_nonfinite} of {num_chains} chains went to a NaN or an infinity; a smaller step size keeps "
            "chains finite.",
            stacklevel=3,
        )
    return samples


def _samples(results: tuple[tf.Tensor, tf.Tensor, tf.Tensor], step_sizes: tf.Tensor) -> Samples:
    _, states, log_prob = results
    num_nonfinite = count_nonfinite(states, log_prob.shape.rank, log_prob)
    return Samples(states, log_prob, tf.ones_like(log_prob, tf.bool), step_sizes, num_nonfinite)
