"""Langevin dynamics as a TFP transition kernel (eq. 65 of the note).

The overdamped Langevin equation dX = ½∇log p(X) dt + dB leaves p unchanged. One Euler-Maruyama step of dt = ε² is

    x' = x + ½ε²∇log p(x) + τZ,    Z ~ N(0, I),    τ = ε.                                                        (65)

The discretisation is biased (on N(0, 1) its stationary variance is 1/(1 − ε²/4)); Metropolis-Hastings removes the bias.
The result is MALA. The proposal density is q(x'|x) = N(x + ½ε²g, τ²I) with g = ∇log p(x). The reverse move, from x' to
x, needs the noise −Z', with Z' = Z + ½(ε²/τ)(g + g'), so that

    log q(x|x') − log q(x'|x) = ½‖Z‖² − ½‖Z'‖².

For τ = ε, Z and Z' are the first and the last momentum of one leapfrog step: MALA(ε) is HMC(ε, one leapfrog step).
This form avoids the subtraction of nearly equal positions that the quotient of the two densities would need. It holds
for any drift that depends on the position alone, hence also if g is clipped.

Short-run samplers (Du & Mordatch 2019, arXiv:1903.08689) modify the step: the gradient is taken after adding the noise,
x̃ = x + τZ, x' = x̃ + ½ε²∇log p(x̃), and x' (in some samplers also x̃) is clamped to the range of the pixels. The
distributions of these steps have no closed form, and Metropolis-Hastings does not correct them here.

TFP also has this kernel. It is not used, because it differentiates its (constant) volatility in every step, in a loop
over the coordinates. Its `step_size` is ε².
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import arguments, random
from tfp_ebm.mcmc.kernels.acceptance import CheckedMetropolis, is_bad_gradient
from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn, _box, _check_broadcast, _positive


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class MALA(Kernel):
    """Metropolis-adjusted Langevin: the step of eq. 65, x* = x − ½ε²∇E(x) + εZ, is accepted or rejected.

    Proposals and acceptance ratios equal those of `HMC(step_size, num_leapfrog_steps=1)`. The optimal acceptance is
    .574 (Roberts & Rosenthal 1998). The implementation is `tfp.mcmc.MetropolisHastings` around this package's
    `UncalibratedLangevin`. TFP's own MALA has ε² as its step size.

    Args:
      step_size: ε; a number, or an array that broadcasts to the event.

    Raises:
      TypeError, ValueError: if `step_size` is not a positive number or an array of positive numbers.

    >>> MALA(step_size=0.1) == MALA(step_size=np.array(0.1))
    True
    """

    step_size: Any
    optimal_accept_prob: ClassVar[float | None] = 0.574
    moves_chains_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._normalize(step_size=_positive("step_size", self.step_size))

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`."""
        return CheckedMetropolis(UncalibratedLangevin(target_log_prob_fn, step_size))


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class Langevin(Kernel):
    """Unadjusted Langevin dynamics (eq. 65): x' = x − ½ε²∇E(x) + τZ, without rejections.

    The kernel is not calibrated: on N(0, 1) with τ = ε, the stationary variance is 1/(1 − ε²/4), not 1. With another τ
    the chain has temperature T = τ²/ε² as ε → 0 (it samples p^(1/T)), and its variance on N(0, 1) is T/(1 − ε²/4). The
    small noise of short-run samplers (Du & Mordatch 2019, arXiv:1903.08689) therefore gives a temperature below 1.

    The last four options are for such samplers. They change the chain's distribution even for small ε: clipping and
    clamping break detailed balance at every step size, and clamping accumulates chains on the faces of the box.
    `Transformed` restricts a chain to a box without changing its distribution there.

    Args:
      step_size: ε; a number, or an array that broadcasts to the event. TFP's own Langevin calls ε² the step size.
      noise_scale: τ; None means ε, temperature 1. Zero is gradient descent.
      gradient_clip: c; each coordinate of ∇log p is clipped to [−c, c]. None: no clipping.
      noise_first: whether to use the order of Du & Mordatch's code: x̃ = x + τZ, then x' = x̃ − ½ε²∇E(x̃).
      clamp: (low, high), numbers or arrays that broadcast to the event; x' is clamped to that box. It refers to the
        chain's coordinates, which are standardised in an `EnergyDistribution` or a loss of an adapted model. None: no
        clamping.
      clamp_noised: whether to clamp x̃ as well, before the gradient is taken; requires `noise_first` and `clamp`.

    Raises:
      TypeError, ValueError: if an argument is not of the form above.

    >>> Langevin(step_size=0.1)(lambda x: -0.5 * x**2).is_calibrated
    False
    """

    step_size: Any
    noise_scale: float | None = None
    gradient_clip: float | None = None
    noise_first: bool = False
    clamp: tuple[Any, Any] | None = None
    clamp_noised: bool = False
    moves_chains_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        scale, clip = self.noise_scale, self.gradient_clip
        for name in ("noise_first", "clamp_noised"):
            arguments.check_bool(name, getattr(self, name))
        if self.clamp_noised and not (self.noise_first and self.clamp is not None):
            raise ValueError("`clamp_noised` must not be True without `noise_first` and `clamp`.")
        self._normalize(
            step_size=_positive("step_size", self.step_size),
            noise_scale=None if scale is None else arguments.check_nonnegative("noise_scale", scale),
            gradient_clip=None if clip is None else arguments.check_positive("gradient_clip", clip),
            clamp=None if self.clamp is None else _box("clamp", self.clamp),
        )

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`."""
        return UncalibratedLangevin(
            target_log_prob_fn,
            step_size,
            self.noise_scale,
            compute_acceptance=False,
            gradient_clip=self.gradient_clip,
            noise_first=self.noise_first,
            clamp=self.clamp,
            clamp_noised=self.clamp_noised,
        )

    def check_event(self, event_shape: tuple[int, ...]) -> None:
        """See `Kernel.check_event`."""
        super().check_event(event_shape)
        for bound in self.clamp or ():
            _check_broadcast("clamp", np.asarray(bound), event_shape)


class UncalibratedLangevinResults(NamedTuple):
    """The results of a Langevin step, with the fields that `tfp.mcmc.MetropolisHastings` reads.

    Attributes:
      log_acceptance_correction: log q(x|x') − log q(x'|x), shape `[*chains]`; zeros if it is not requested. This field
        and the next two are () for a kernel that takes the gradient after adding the noise, since it does not compute
        them at x'.
      target_log_prob: log p at the new state, `[*chains]`.
      grads_target_log_prob: list with ∇log p at the new state, one per part of the state.
      seed: the seed of the step.
      gradient_failed: whether the gradient was NaN or infinite at a point that the chain could visit, bool
        `[*chains]`: in this step, or in any step so far if nothing is rejected; () if unknown.
    """

    log_acceptance_correction: Any
    target_log_prob: Any
    grads_target_log_prob: Any
    seed: Any
    gradient_failed: Any


class UncalibratedLangevin(tfp.mcmc.TransitionKernel):
    """A TFP kernel that makes steps x' = x + ½ε²∇log p(x) + τZ, without an acceptance step (eq. 65).

    `tfp.mcmc.MetropolisHastings(UncalibratedLangevin(...))` is MALA.

    Args:
      target_log_prob_fn: log p up to a constant; takes the state, or its parts if the state is a list.
      step_size: ε, a number or tensor that broadcasts with the state.
      noise_scale: τ; None means ε.
      compute_acceptance: whether to compute `log_acceptance_correction`; not needed if nothing is rejected.
      gradient_clip: bound c; each coordinate of ∇log p is clipped to [−c, c] in the step. None: no clipping.
      noise_first: whether to add the noise first and take the gradient afterwards.
      clamp: (low, high), numbers or tensors that broadcast with the state; the new state is clamped to this box. None:
        no clamping.
      clamp_noised: whether to clamp the state also after adding the noise, before the gradient is taken.
      name: the name of the operations.

    Raises:
      ValueError: if `noise_first` or `clamp` is combined with `compute_acceptance`, since such steps have no proposal
        density of the form above.

    >>> normal = lambda x: -0.5 * tf.reduce_sum(x**2, -1)
    >>> kernel = UncalibratedLangevin(normal, step_size=0.5)
    >>> x = tf.ones([3, 2])
    >>> x_next, results = kernel.one_step(x, kernel.bootstrap_results(x), seed=tf.constant([0, 1]))
    >>> x_next.shape, results.target_log_prob.shape, kernel.is_calibrated
    (TensorShape([3, 2]), TensorShape([3]), False)
    """

    def __init__(
        self,
        target_log_prob_fn: Callable[..., tf.Tensor],
        step_size: Any,
        noise_scale: Any = None,
        compute_acceptance: bool = True,
        gradient_clip: Any = None,
        noise_first: bool = False,
        clamp: Any = None,
        clamp_noised: bool = False,
        name: str | None = None,
    ) -> None:
        if compute_acceptance and (noise_first or clamp is not None):
            raise ValueError(
                "`compute_acceptance` must be False with `noise_first` or `clamp`: the proposal density of such steps "
                "is not known."
            )
        self._parameters = {
            "target_log_prob_fn": target_log_prob_fn,
            "step_size": step_size,
            "noise_scale": noise_scale,
            "compute_acceptance": compute_acceptance,
            "gradient_clip": gradient_clip,
            "noise_first": noise_first,
            "clamp": clamp,
            "clamp_noised": clamp_noised,
            "name": name,
        }

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments of `__init__`, as TFP's wrappers expect."""
        return self._parameters

    @property
    def is_calibrated(self) -> bool:
        """Whether the kernel is calibrated: False, since the chain's limit differs from the target."""
        return False

    def bootstrap_results(self, init_state: Any) -> UncalibratedLangevinResults:
        """Returns log density and gradient at `init_state`; both empty if the gradient is taken after the noise."""
        if self._parameters["noise_first"]:
            return UncalibratedLangevinResults((), (), (), tf.zeros([2], tf.int32), ())
        parts = _parts(init_state)
        target_log_prob, gradients = self._value_and_gradients(parts)
        return UncalibratedLangevinResults(
            tf.zeros_like(target_log_prob),
            target_log_prob,
            gradients,
            tf.zeros([2], tf.int32),
            tf.zeros_like(target_log_prob, tf.bool),
        )

    def one_step(
        self, current_state: Any, previous_kernel_results: UncalibratedLangevinResults, seed: Any = None
    ) -> tuple[Any, UncalibratedLangevinResults]:
        """Moves every chain once.

        Args:
          current_state: tensor `[*chains, *event]`, or a list of such.
          previous_kernel_results: the results of the previous step, or of `bootstrap_results`.
          seed: int32[2].

        Returns:
          The next state and its results.
        """
        seed = tfp.random.sanitize_seed(seed)
        parts = _parts(current_state)
        seeds = tf.unstack(tfp.random.split_seed(seed, n=len(parts))) if len(parts) > 1 else [seed]
        steps = [self._step_size_and_noise_scale(x.dtype) for x in parts]
        draws = [random.normal(tf.shape(x), part_seed, x.dtype) for x, part_seed in zip(parts, seeds, strict=True)]
        noised = [x + tau * z for x, z, (_, tau) in zip(parts, draws, steps, strict=True)]
        if self._parameters["clamp_noised"]:
            noised = [clamped(x, *self._parameters["clamp"]) for x in noised]
        noise_first = self._parameters["noise_first"]
        gradients = previous_kernel_results.grads_target_log_prob
        drifts = [self._clipped(g) for g in (self._value_and_gradients(noised)[1] if noise_first else gradients)]
        moved = [x + 0.5 * epsilon**2 * g for x, g, (epsilon, _) in zip(noised, drifts, steps, strict=True)]
        if self._parameters["clamp"] is not None:
            moved = [clamped(x, *self._parameters["clamp"]) for x in moved]
        next_state = moved if isinstance(current_state, list | tuple) else moved[0]
        if noise_first:
            return next_state, UncalibratedLangevinResults((), (), (), seed, ())
        target_log_prob, gradients = self._value_and_gradients(moved)
        correction = tf.zeros_like(target_log_prob)
        if self._parameters["compute_acceptance"]:
            for z, before, after, (epsilon, tau) in zip(draws, drifts, gradients, steps, strict=True):
                back = z + 0.5 * epsilon * (epsilon / tau) * (before + self._clipped(after))
                axes = tf.range(tf.rank(target_log_prob), tf.rank(z))
                correction += 0.5 * tf.reduce_sum(z**2 - back**2, axes)
        current = previous_kernel_results.target_log_prob
        failed = is_bad_gradient(current, previous_kernel_results.grads_target_log_prob, current)
        failed |= is_bad_gradient(target_log_prob, gradients, current)
        if not self._parameters["compute_acceptance"]:
            failed |= previous_kernel_results.gradient_failed
        return next_state, UncalibratedLangevinResults(correction, target_log_prob, gradients, seed, failed)

    def _step_size_and_noise_scale(self, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
        epsilon = tf.convert_to_tensor(self._parameters["step_size"], dtype)
        tau = self._parameters["noise_scale"]
        return epsilon, epsilon if tau is None else tf.convert_to_tensor(tau, dtype)

    def _clipped(self, gradient: tf.Tensor) -> tf.Tensor:
        bound = self._parameters["gradient_clip"]
        return gradient if bound is None else clamped(gradient, -bound, bound)

    def _value_and_gradients(self, parts: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        # New tensors, because TFP's bijectors cache values by tensor, and a cached value has no gradient here.
        parts = [tf.identity(part) for part in parts]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(parts)
            value = self._parameters["target_log_prob_fn"](*parts)
        gradients = tape.gradient(value, parts)
        if any(gradient is None for gradient in gradients):
            raise ValueError(
                "`target_log_prob_fn` is not differentiable in the state (its gradient is None); "
                "Langevin dynamics needs the gradient."
            )
        # A loop needs a static shape, but the gradient of a function of any number of rows has none.
        return value, [tf.ensure_shape(gradient, part.shape) for gradient, part in zip(gradients, parts, strict=True)]


def clamped(x: tf.Tensor, low: Any, high: Any) -> tf.Tensor:
    """Clamps `x` to [`low`, `high`]; a NaN stays a NaN, unlike in `tf.clip_by_value`."""
    low, high = tf.convert_to_tensor(low, x.dtype), tf.convert_to_tensor(high, x.dtype)
    return tf.where(x < low, low, tf.where(x > high, high, x))


def _parts(state: Any) -> list[tf.Tensor]:
    """Returns the parts of a state, which in TFP's kernels is one tensor or a list of tensors."""
    return [tf.convert_to_tensor(part) for part in (state if isinstance(state, list | tuple) else [state])]
