"""Kernels made of kernels: what their recipes share, and what the TFP kernels that they build share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.mcmc.kernels import Kernel, TargetLogProbFn

__all__ = ["LateKernel", "Wrapper", "is_calibrated"]


def is_calibrated(kernel: Callable[[TargetLogProbFn], tfp.mcmc.TransitionKernel]) -> bool:
    """Whether what a kernel, or any callable like one, builds leaves its target exact; asked of a Gaussian.

    >>> from tfp_ebm.mcmc.kernels import MALA, Langevin
    >>> is_calibrated(MALA(0.1)), is_calibrated(Langevin(0.1))
    (True, False)
    """
    return bool(kernel(lambda x: -0.5 * tf.reduce_sum(tf.square(x), -1)).is_calibrated)


class Wrapper(Kernel):
    """A recipe around one other, whose step size is its own. Subclasses are frozen dataclasses.

    Attributes:
      kernel: the recipe inside.
    """

    kernel: Kernel
    tuned: ClassVar[str | None] = None

    @property
    def step(self) -> Any:
        """The inner kernel's."""
        return self.kernel.step

    @property
    def structure(self) -> Kernel:
        """See `Kernel.structure`."""
        return dataclasses.replace(self, kernel=self.kernel.structure)  # type: ignore[type-var]

    @property
    def unadapted(self) -> Kernel:
        """See `Kernel.unadapted`."""
        return dataclasses.replace(self, kernel=self.kernel.unadapted)  # type: ignore[type-var]

    @property
    def uses_gradient(self) -> bool:
        """The inner kernel's."""
        return self.kernel.uses_gradient

    @property
    def evaluations_per_step(self) -> int:
        """The inner kernel's."""
        return self.kernel.evaluations_per_step

    def with_burnin(self, num_burnin_steps: int) -> Kernel:
        """See `Kernel.with_burnin`."""
        kernel = self.kernel.with_burnin(num_burnin_steps)
        return dataclasses.replace(self, kernel=kernel)  # type: ignore[type-var]

    def check_event(self, event_shape: tuple[int, ...]) -> None:
        """See `Kernel.check_event`."""
        self.kernel.check_event(event_shape)

    def check_start(self, state: tf.Tensor) -> None:
        """See `Kernel.check_start`."""
        self.kernel.check_start(state)

    def get_config(self) -> dict[str, Any]:
        """The fields, for Keras."""
        return {**super().get_config(), "kernel": keras.saving.serialize_keras_object(self.kernel)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Kernel:
        """The inverse of `get_config`."""
        return cls(**{**config, "kernel": keras.saving.deserialize_keras_object(config["kernel"])})


class LateKernel(tfp.mcmc.TransitionKernel):
    """A TFP kernel that builds what it is made of when it is handed a state, or a new step size.

    Args:
      kernel: the recipe.
      target_log_prob_fn: log p up to a constant; by this name TFP's wrappers find it, and replace it.
      step_size: of the recipe.
    """

    def __init__(self, kernel: Any, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> None:
        self._parameters = {"kernel": kernel, "target_log_prob_fn": target_log_prob_fn, "step_size": step_size}

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments of `__init__`, as TFP's wrappers expect."""
        return self._parameters

    @property
    def is_calibrated(self) -> bool:
        """True, unless a subclass says otherwise."""
        return True
