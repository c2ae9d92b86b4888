"""Chains on a subset of space: boxes, simplices, positive numbers.

The chain runs on z ∈ ℝᵏ, and a smooth bijection x = f(z) maps z onto the support. The density of z is
p(f(z))·|det ∂f/∂z|, so the chain's target is

    log p_z(z) = log p(f(z)) + log |det ∂f/∂z|,

and x follows p restricted to the support exactly, also close to its boundary. No move is clamped or wasted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import serialization
from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn, Wrapper


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class Transformed(Wrapper):
    """A kernel that moves z with x = bijector.forward(z), so that x stays in the bijector's range.

    The implementation is `tfp.mcmc.TransformedTransitionKernel`. The range of `tfb.Sigmoid(low, high)` is a box, that
    of `tfb.Softplus()` and `tfb.Exp()` the positive numbers, that of `tfb.IteratedSigmoidCentered()` a simplex. The
    chain's states are x; step sizes and the base of an inner `IndependenceMetropolis` refer to z. The chains of an
    adapted `EnergyModel` run in standardised coordinates, so the box must be standardised too. In contrast, the
    argument `bijector` of `EnergyDistribution` refers to the model's own x.

    Args:
      kernel: a kernel of `ebm.mcmc`; an `Adaptive` kernel adapts its step size.
      bijector: a bijector of `tfp.bijectors`, with the dtype of the state; maps z to x.

    Raises:
      TypeError: if `kernel` is not a kernel of this package, or `bijector` is not a bijector; when a chain runs, if the
        bijector and the state have different dtypes.
      ValueError: from `ebm.mcmc.sample`, if a chain would start outside the support or on its boundary. While a
        function is traced, values are unknown: such a chain then becomes and stays NaN.

    >>> from tfp_ebm import mcmc
    >>> kernel = Transformed(mcmc.MALA(0.5), tfp.bijectors.Sigmoid(0.0, 2.0))
    >>> samples = mcmc.sample(lambda x: -tf.reduce_sum(x, -1), tf.ones([10, 3]), kernel, num_results=5, seed=0)
    >>> bool(tf.reduce_all((samples.states > 0) & (samples.states < 2)))
    True
    """

    kernel: Kernel
    bijector: tfp.bijectors.Bijector = dataclasses.field(compare=False)
    _key: Hashable = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel):
            raise TypeError(f"`kernel` must be a kernel of ebm.mcmc, got {self.kernel!r}.")
        if not isinstance(self.bijector, tfp.bijectors.Bijector):
            raise TypeError(f"`bijector` must be a tfp.bijectors.Bijector, got {self.bijector!r}.")
        self._normalize(_key=serialization.fingerprint(self.bijector))

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`."""
        return tfp.mcmc.TransformedTransitionKernel(self.kernel.build(target_log_prob_fn, step_size), self.bijector)

    def in_coordinates(self, standardization: Any) -> Transformed:
        """See `Kernel.in_coordinates`; the base of an inner kernel is over z and does not change."""
        del standardization
        return self

    def step_size_after(self, results: Any, step_size: Any) -> Any:
        """Returns the step size of the inner kernel."""
        return self.kernel.step_size_after(results.inner_results, step_size)

    def log_prob_after(self, results: Any) -> tf.Tensor | None:
        """Returns log p(x) = log p_z(z) − log |det ∂f/∂z|."""
        log_prob = self.kernel.log_prob_after(results.inner_results)
        if log_prob is None:
            return None
        z = results.transformed_state
        return log_prob - self.bijector.forward_log_det_jacobian(z, event_ndims=z.shape.rank - log_prob.shape.rank)

    def check_event(self, event_shape: tuple[int, ...]) -> None:
        """See `Kernel.check_event`; the event of the inner kernel is z."""
        self.kernel.check_event(tuple(self.bijector.inverse_event_shape(event_shape)))

    def check_start(self, state: tf.Tensor) -> None:
        """Raises ValueError if a state is not x = f(z) of a finite z."""
        # New tensors, because TFP's bijectors cache mapped tensors and would return the state itself.
        try:
            z = tf.identity(self.bijector.inverse(tf.identity(state)))
        except (TypeError, tf.errors.InvalidArgumentError) as error:
            raise TypeError(
                f"`bijector` {self.bijector.name} must take states of dtype {state.dtype.name}, but it fails: {error}"
            ) from error
        x, back = state.numpy(), self.bijector.forward(z).numpy()
        tolerance = np.sqrt(np.finfo(x.dtype).eps)
        outside, infinite = ~np.isclose(back, x, tolerance, tolerance), ~np.isfinite(z)
        # a bijector that changes the number of coordinates maps them along the last axis
        outside |= infinite if infinite.shape == x.shape else infinite.any(-1, keepdims=True)
        if outside.any():
            first = tuple(int(i) for i in np.argwhere(outside)[0])
            raise ValueError(
                f"`initial_state` must lie inside the range of the bijector {self.bijector.name}, but "
                f"{np.count_nonzero(outside)} of its {x.size} numbers do not, the first at index {first} ({x[first]})."
            )
        self.kernel.check_start(z)

    def get_config(self) -> dict[str, Any]:
        """Returns the kernel, and the bijector encoded by `serialization`."""
        kernel = keras.saving.serialize_keras_object(self.kernel)
        return {"kernel": kernel, "bijector": serialization.encode(self.bijector, "bijector")}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Transformed:
        """Creates the object from the result of `get_config`."""
        return cls(keras.saving.deserialize_keras_object(config["kernel"]), serialization.decode(config["bijector"]))
