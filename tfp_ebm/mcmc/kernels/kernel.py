"""Transition kernels: small immutable recipes that build `tfp.mcmc` kernels.

A kernel here is a callable `target_log_prob_fn -> tfp.mcmc.TransitionKernel`; a `functools.partial` of a kernel of
TFP's is one. The classes below add what a partial lacks: their arguments are checked, they compare and hash by value
(so that a compiled chain is found again), Keras saves and loads them, and their step size can be swapped for a tensor
(so that a chain whose step size changes is not compiled anew).

Everywhere `step_size` is ε, the length of time by which one leapfrog step moves; the Langevin step is the leapfrog
step: x' = x + ½ε²∇log p(x) + εZ (eq. 65). TFP's own Langevin kernels call ε² the step size, other libraries ε²/2.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import arguments
from tfp_ebm.energy.signs import check_target
from tfp_ebm.mcmc.results import find
from tfp_ebm.types import TargetLogProbFn


class Kernel(abc.ABC):
    """What `ebm.mcmc.sample` knows of a kernel of this package. Subclasses are frozen dataclasses.

    Attributes:
      tuned: name of the field that holds the step size; None for a kernel without one.
      optimal_accept_prob: acceptance that an adapted step size aims at; None for a kernel that accepts everything.
      moves_chains_alone: whether the chains of a run know nothing of each other.

    >>> isinstance(MALA(0.1), Kernel), MALA(0.1) == MALA(0.1), MALA(0.1).structure == MALA(0.2).structure
    (True, True, True)
    """

    tuned: ClassVar[str | None] = "step_size"
    optimal_accept_prob: ClassVar[float | None] = None
    moves_chains_alone: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """The TFP kernel of a target, at a step size that may be a tensor instead of this recipe's own number."""

    def __call__(self, target_log_prob_fn: TargetLogProbFn) -> tfp.mcmc.TransitionKernel:
        """The TFP kernel that leaves (nearly, if it is not calibrated) exp(target_log_prob_fn) unchanged."""
        return self.build(check_target(target_log_prob_fn), self.step)

    @property
    def step(self) -> Any:
        """The step size as an array; () where there is none."""
        return () if self.tuned is None else np.asarray(getattr(self, self.tuned))

    @property
    def structure(self) -> Kernel:
        """This kernel with the values of its step size wiped out: kernels of one structure share compiled code."""
        if self.tuned is None:
            return self
        return dataclasses.replace(self, **{self.tuned: np.ones_like(self.step)})  # type: ignore[type-var]

    @property
    def unadapted(self) -> Kernel:
        """This kernel with its step size left as it is."""
        return self

    @property
    def uses_gradient(self) -> bool:
        """Whether the target must be differentiable."""
        return True

    @property
    def evaluations_per_step(self) -> int:
        """How often one step evaluates the target, at most."""
        return 1

    def with_burnin(self, num_burnin_steps: int) -> Kernel:
        """This kernel, told how long its chain burns in."""
        del num_burnin_steps
        return self

    def step_after(self, results: Any, step_size: Any) -> Any:
        """The step size that a chain has come to, given its last results and the step size it was built with."""
        del results
        return step_size

    def log_prob_after(self, results: Any) -> tf.Tensor | None:
        """The target's log density at the state that a chain has come to, `[*chains]`; None if the results lack it."""
        return find(results, "target_log_prob")

    def check_event(self, event_shape: tuple[int, ...]) -> None:
        """Raises ValueError if a parameter with one number per coordinate does not fit the event."""
        if self.tuned is not None:
            _check_broadcast(self.tuned, self.step, event_shape)

    def check_start(self, state: tf.Tensor) -> None:
        """Raises ValueError if no chain of this kernel can start at `state`, whose values are known."""
        del state

    def get_config(self) -> dict[str, Any]:
        """The fields, for Keras."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Kernel:
        """The inverse of `get_config`."""
        return cls(**config)

    def _normalize(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def _positive(name: str, value: Any) -> Any:
    """A positive number as a float, an array of positive numbers as nested tuples (which hash and compare by value)."""
    array = np.asarray(value)
    if array.ndim == 0:
        return arguments.check_positive(name, array.item())
    if array.dtype.kind not in "iuf":
        raise TypeError(f"`{name}` must be made of positive numbers, got {value!r}.")
    if array.size == 0 or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"`{name}` must be made of positive numbers, got {value!r}.")
    return _tuples(array.astype(float).tolist())


def _box(name: str, value: Any) -> tuple[Any, Any]:
    """The two bounds of a box, each a float or nested tuples."""
    expected = f"`{name}` must be a pair (low, high) of finite numbers or arrays with low < high"
    if not isinstance(value, list | tuple | np.ndarray) or len(value) != 2:
        raise ValueError(f"{expected}, got {value!r}.")
    low, high = (np.asarray(bound) for bound in value)
    if low.dtype.kind not in "iuf" or high.dtype.kind not in "iuf":
        raise TypeError(f"{expected}, got {value!r}.")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and np.all(low < high)):
        raise ValueError(f"{expected}, got {value!r}.")
    return _tuples(low.astype(float).tolist()), _tuples(high.astype(float).tolist())


def _tuples(nested: Any) -> Any:
    return tuple(map(_tuples, nested)) if isinstance(nested, list) else nested


def _check_broadcast(name: str, value: np.ndarray, event_shape: tuple[int, ...]) -> None:
    try:
        fits = np.broadcast_shapes(value.shape, event_shape) == tuple(event_shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"`{name}` must be a number or broadcast to the event shape {tuple(event_shape)}, got shape {value.shape}."
        )


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
