"""TFP's Hamiltonian Monte Carlo with momenta from `tfp_ebm.random`, and trajectories of varying length.

TFP's kernel draws its momenta with a generator that is slow on a CPU under XLA: for 784 coordinates and ten leapfrog
steps it took a quarter of the time. The leapfrog integrator is repeated here because TFP's kernel draws and integrates
in one method. Everything else, such as the acceptance by `tfp.mcmc.MetropolisHastings`, is TFP's.

A trajectory of length T turns a coordinate of standard deviation s by the angle T/s. Where T is a multiple of πs for
some coordinate, all trajectories return to ±x: the coordinate's mean seems perfectly mixed, but its variance never
mixes. Drawing a new number of leapfrog steps in each step removes such resonances (Mackenzie 1989; Neal 2011, §3.2).
The draw does not depend on the state, so each step is a mixture of reversible kernels, which is reversible.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import arguments, random
from tfp_ebm.mcmc.kernels.acceptance import CheckedMetropolis, is_bad_gradient
from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn, _check_broadcast, _positive

# Numbers folded into the seed of a step to draw the number of leapfrog steps, and the step sizes; the momentum uses the
# seed itself.
_JITTER, _LOCAL_STEP = 1, 2
# Standard deviation of the logarithm of a local step size. A local scale exceeds 10 for no gradient, however small.
_SPREAD, _MIN_SQUARED_GRADIENT = 0.5, 0.01


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class HMC(Kernel):
    """Hamiltonian Monte Carlo (eqs. 16-20), with a diagonal mass.

    Each step draws a momentum p ~ N(0, m), makes L leapfrog steps

        p ← p − ½ε∇E(x),   x ← x + εp/m,   p ← p − ½ε∇E(x)

    and accepts the end point with probability min(1, exp(−ΔH)), H = E(x) + Σₖ pₖ²/(2mₖ).

    The implementation is `tfp.mcmc.HamiltonianMonteCarlo`, which has unit mass, with the step size ε/√m per coordinate.
    This is the same chain: with p = √m·q, the momentum is q ~ N(0, 1), its step is q ← q − ½(ε/√m)∇E, the step of the
    position is x ← x + (ε/√m)q, and the kinetic energy is ½q². A good mass is the inverse of the target's variance
    (Neal 2011, arXiv:1206.1901).

    Args:
      step_size: ε; a number, or an array that broadcasts to the event.
      num_leapfrog_steps: L, or a pair (low, high): each step then draws L uniformly from low, …, high, the same L for
        all chains. This removes resonances between the length of the trajectories and the target.
      mass: m, the diagonal of the mass matrix; a number or an array that broadcasts to the event. None means 1.

    Raises:
      TypeError, ValueError: if an argument is out of range, or the number of steps is not a whole number.

    >>> kernel = HMC(step_size=0.2, num_leapfrog_steps=5, mass=[1.0, 4.0])
    >>> kernel.mass
    (1.0, 4.0)
    >>> kernel(lambda x: -0.5 * tf.reduce_sum(x**2, -1)).step_size
    array([0.2, 0.1])
    """

    step_size: Any
    num_leapfrog_steps: Any
    mass: Any = None
    optimal_accept_prob: ClassVar[float | None] = 0.75
    moves_chains_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._normalize(
            step_size=_positive("step_size", self.step_size),
            num_leapfrog_steps=_numbers_of_steps(self.num_leapfrog_steps),
            mass=None if self.mass is None else _positive("mass", self.mass),
        )

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`."""
        if self.mass is not None:
            root = np.sqrt(np.asarray(self.mass))
            step_size = step_size / (tf.constant(root, step_size.dtype) if tf.is_tensor(step_size) else root)
        return HamiltonianMonteCarlo(target_log_prob_fn, step_size, self.num_leapfrog_steps)

    @property
    def evaluations_per_step(self) -> int:
        """Number of gradients per step: one per leapfrog step; the rounded average if L varies."""
        return round(float(np.mean(self.num_leapfrog_steps)))

    def check_event(self, event_shape: tuple[int, ...]) -> None:
        """See `Kernel.check_event`."""
        super().check_event(event_shape)
        if self.mass is not None:
            _check_broadcast("mass", np.asarray(self.mass), event_shape)


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class NUTS(Kernel):
    """The No-U-Turn Sampler (Hoffman & Gelman 2014): HMC that doubles its trajectory until it turns back.

    The implementation is `tfp.mcmc.NoUTurnSampler`. All chains wait for the longest trajectory among them, which has at
    most 2^`max_tree_depth` leapfrog steps.

    Args:
      step_size: ε; a number, or an array that broadcasts to the event.
      max_tree_depth: the largest number of times that a trajectory may double.

    Raises:
      TypeError, ValueError: if `step_size` is not positive, or `max_tree_depth` is not a positive whole number.

    >>> NUTS(step_size=0.3).evaluations_per_step
    1024
    """

    step_size: Any
    max_tree_depth: int = 10
    optimal_accept_prob: ClassVar[float | None] = 0.8
    moves_chains_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._normalize(
            step_size=_positive("step_size", self.step_size),
            max_tree_depth=arguments.check_count("max_tree_depth", self.max_tree_depth),
        )

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`."""
        return tfp.mcmc.NoUTurnSampler(target_log_prob_fn, step_size, max_tree_depth=self.max_tree_depth)

    @property
    def evaluations_per_step(self) -> int:
        """Number of gradients of the longest trajectory possible."""
        return 2**self.max_tree_depth


def _numbers_of_steps(value: Any) -> Any:
    """Returns the number of leapfrog steps as an int or a pair of ints."""
    if not isinstance(value, list | tuple):
        return arguments.check_count("num_leapfrog_steps", value)
    if len(value) != 2:
        raise ValueError(f"`num_leapfrog_steps` must be a whole number or a pair (low, high), got {value!r}.")
    low, high = (arguments.check_count(f"num_leapfrog_steps[{i}]", bound) for i, bound in enumerate(value))
    if low > high:
        raise ValueError(f"`num_leapfrog_steps` must be a pair (low, high) with low <= high, got {value!r}.")
    return low, high


class HamiltonianResults(NamedTuple):
    """The results of one trajectory: the fields of TFP's `UncalibratedHamiltonianMonteCarlo` and `gradient_failed`.

    Attributes:
      log_acceptance_correction: kinetic energy at the start minus that at the end, `[*chains]`.
      target_log_prob: log p at the end, `[*chains]`.
      grads_target_log_prob: list with ∇log p at the end.
      initial_momentum, final_momentum: lists with p at the start and at the end.
      step_size: the step size stored by an adapting TFP kernel; else empty.
      num_leapfrog_steps: empty.
      seed: the seed of the step.
      gradient_failed: whether the gradient was NaN or infinite at a point that the chain could visit, `[*chains]`.
    """

    log_acceptance_correction: Any
    target_log_prob: Any
    grads_target_log_prob: Any
    initial_momentum: Any
    final_momentum: Any
    step_size: Any
    num_leapfrog_steps: Any
    seed: Any
    gradient_failed: Any


class _Trajectory(tfp.mcmc.UncalibratedHamiltonianMonteCarlo):
    """Kernel that draws a momentum p ~ N(0, I) and makes L leapfrog steps (eqs. 16-20), for a state of one part.

    `num_leapfrog_steps` may be a pair: the smallest and the largest number of steps that may be drawn.
    """

    def bootstrap_results(self, init_state: Any) -> HamiltonianResults:
        """Returns the results at the start of a chain."""
        results = super().bootstrap_results(init_state)
        return HamiltonianResults(
            **dict(zip(results._fields, results, strict=True)),
            gradient_failed=tf.zeros_like(results.target_log_prob, tf.bool),
        )

    def one_step(
        self, current_state: tf.Tensor, previous_kernel_results: Any, seed: Any = None
    ) -> tuple[tf.Tensor, Any]:
        """Returns the end of the trajectory, and its results."""
        seed = tfp.random.sanitize_seed(seed)
        (x,) = map(tf.convert_to_tensor, tf.nest.flatten(current_state))
        stored = previous_kernel_results.step_size  # set by an adapting outer kernel; else an empty list
        step_size = tf.convert_to_tensor(stored if tf.is_tensor(stored) else self.step_size, x.dtype)
        drawn = random.normal(tf.shape(x), seed, x.dtype)
        num_leapfrog_steps = self.num_leapfrog_steps
        if isinstance(num_leapfrog_steps, tuple):
            low, high = num_leapfrog_steps
            jitter_seed = random.fold_in(seed, _JITTER)
            num_leapfrog_steps = tf.random.stateless_uniform([], jitter_seed, low, high + 1, tf.int32, alg="philox")
        (gradient,) = previous_kernel_results.grads_target_log_prob
        log_prob = current = previous_kernel_results.target_log_prob

        def leap(
            count: tf.Tensor, x: tf.Tensor, p: tf.Tensor, log_prob: tf.Tensor, gradient: tf.Tensor, failed: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            # two half steps of the momentum, of neighbouring leapfrog steps, are combined into one full step
            x = tf.ensure_shape(x + step_size * p, x.shape)
            log_prob, (gradient,) = tfp.math.value_and_gradient(self.target_log_prob_fn, [x])
            failed |= is_bad_gradient(log_prob, [gradient], current)
            return count + 1, x, p + step_size * gradient, log_prob, gradient, failed

        failed = is_bad_gradient(log_prob, [gradient], current)
        start = (tf.constant(0), x, drawn + 0.5 * step_size * gradient, log_prob, gradient, failed)
        _, x, p, log_prob, gradient, failed = tf.while_loop(
            lambda count, *_: count < num_leapfrog_steps, leap, start, parallel_iterations=1
        )
        p -= 0.5 * step_size * gradient
        axes = tf.range(tf.rank(log_prob), tf.rank(x))
        return tf.nest.pack_sequence_as(current_state, [x]), previous_kernel_results._replace(
            log_acceptance_correction=0.5 * tf.reduce_sum(drawn**2 - p**2, axes),
            target_log_prob=log_prob,
            grads_target_log_prob=[gradient],
            initial_momentum=[drawn],
            final_momentum=[p],
            seed=seed,
            gradient_failed=failed,
        )


class HamiltonianMonteCarlo(tfp.mcmc.HamiltonianMonteCarlo):
    """`tfp.mcmc.HamiltonianMonteCarlo` for a state of one part, with other random numbers.

    Args:
      *args, **kwargs: as for TFP's class, except that `num_leapfrog_steps` may be a pair (low, high) of whole numbers:
        each step then draws its number of leapfrog steps uniformly from low, …, high.

    >>> kernel = HamiltonianMonteCarlo(lambda x: -0.5 * tf.reduce_sum(x**2, -1), 0.5, 3)
    >>> x = tf.ones([3, 2])
    >>> x_next, results = kernel.one_step(x, kernel.bootstrap_results(x), seed=tf.constant([0, 1]))
    >>> x_next.shape, results.is_accepted.shape
    (TensorShape([3, 2]), TensorShape([3]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # the attribute in which TFP's class stores its inner kernel
        self._impl: Any = CheckedMetropolis(_Trajectory(**self.parameters))


def log_local_scale(gradient: tf.Tensor) -> tf.Tensor:
    """Computes the logarithm of s = (.01 + ‖g‖²/d)^(−½) from gradients g of a log density, `[n, d]`; shape `[n, 1]`.

    For a normal distribution of standard deviation σ, ‖g‖² is d/σ² on average, so that s is near σ.

    >>> x = tf.constant(np.random.default_rng(0).normal(size=[5, 400]))
    >>> tf.exp(log_local_scale(x / 3.0))[:, 0].numpy().round().tolist()
    [3.0, 3.0, 3.0, 3.0, 3.0]
    """
    return -0.5 * tf.math.log(_MIN_SQUARED_GRADIENT + tf.reduce_mean(tf.square(gradient), -1, keepdims=True))


class _LocalTrajectory(_Trajectory):
    """A `_Trajectory` whose step size depends on the gradient at its start, for states `[n, d]`."""

    def one_step(
        self, current_state: tf.Tensor, previous_kernel_results: Any, seed: Any = None
    ) -> tuple[tf.Tensor, Any]:
        """Returns the end of the trajectory, and its results."""
        seed = tfp.random.sanitize_seed(seed)
        (gradient,) = previous_kernel_results.grads_target_log_prob
        before = log_local_scale(gradient)
        noise = _SPREAD * random.normal(before.shape, random.fold_in(seed, _LOCAL_STEP), gradient.dtype)
        step_size = tf.cast(self.step_size, gradient.dtype) * tf.exp(before + noise)
        stored = previous_kernel_results.step_size
        x, results = super().one_step(current_state, previous_kernel_results._replace(step_size=step_size), seed)
        (gradient,) = results.grads_target_log_prob
        correction = self._log_ratio(noise, noise + before - log_local_scale(gradient))
        return x, results._replace(
            step_size=stored, log_acceptance_correction=results.log_acceptance_correction + correction[:, 0]
        )

    @staticmethod
    def _log_ratio(noise: tf.Tensor, noise_back: tf.Tensor) -> tf.Tensor:
        """Returns the log density of a step size at the end of a trajectory, less that at its start."""
        return (tf.square(noise) - tf.square(noise_back)) / (2.0 * _SPREAD**2)


class LocalHamiltonianMonteCarlo(tfp.mcmc.HamiltonianMonteCarlo):
    """Hamiltonian Monte Carlo whose step size is drawn in each step, around a scale that depends on the state.

    From a state x with gradient g of log p, the step size is ε s(x) e^ζ, with s of `log_local_scale` and
    ζ ~ N(0, ½²). The acceptance ratio contains the density of this step size at the end point over that at the start,
    so that the target stays invariant for any s (Bou-Rabee, Carpenter & Marsden 2024, arXiv:2404.15253). Where the
    scale of the density varies from place to place, no single step size serves.

    Args:
      *args, **kwargs: as for `HamiltonianMonteCarlo`; the step size is ε. States have the shape `[n, d]`.

    >>> kernel = LocalHamiltonianMonteCarlo(lambda x: -0.5 * tf.reduce_sum(x**2, -1), 0.5, 3)
    >>> x = tf.ones([3, 2])
    >>> x_next, results = kernel.one_step(x, kernel.bootstrap_results(x), seed=tf.constant([0, 1]))
    >>> x_next.shape, results.is_accepted.shape
    (TensorShape([3, 2]), TensorShape([3]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._impl: Any = CheckedMetropolis(_LocalTrajectory(**self.parameters))
