"""Transition kernels: small immutable objects that build `tfp.mcmc` kernels.

A kernel in this package is a callable `target_log_prob_fn -> tfp.mcmc.TransitionKernel`, for example a
`functools.partial` of a TFP kernel. The classes below have further advantages: their arguments are checked, they
compare and hash by value (so that a compiled loop can be reused), Keras saves and loads them, and a tensor can replace
their step size (so that a new step size needs no new compilation).

In all kernels `step_size` is ε, the time of one leapfrog step. A Langevin step is one leapfrog step:
x' = x + ½ε²∇log p(x) + εZ (eq. 65). TFP's own Langevin kernels call ε² the step size, other libraries ε²/2.
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
    """The base class of this package's kernels. Subclasses are frozen dataclasses.

    Attributes:
      step_size_field: the name of the field that holds the step size; None for a kernel without one.
      optimal_accept_prob: the acceptance probability at which the kernel is most efficient, the default aim of an
        adapted step size; None for a kernel that accepts everything.
      target_accept_prob: the acceptance probability that the step size adapts to; None for a kernel that does not
        adapt, or whose parts adapt separately.
      moves_chains_alone: whether each chain moves independently of the others.

    >>> from tfp_ebm.mcmc.kernels import MALA
    >>> MALA(0.1) == MALA(0.1), MALA(0.1).without_step_size == MALA(0.2).without_step_size
    (True, True)
    """

    step_size_field: ClassVar[str | None] = "step_size"
    optimal_accept_prob: ClassVar[float | None] = None
    target_accept_prob: float | None = None
    moves_chains_alone: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """Builds the TFP kernel of a target; `step_size`, a number or tensor, replaces this kernel's own."""

    def __call__(self, target_log_prob_fn: TargetLogProbFn) -> tfp.mcmc.TransitionKernel:
        """Builds the TFP kernel that leaves exp(target_log_prob_fn) invariant (approximately, if uncalibrated)."""
        return self.build(check_target(target_log_prob_fn), self.initial_step_size)

    @property
    def initial_step_size(self) -> Any:
        """The kernel's step size as an array; () if it has none."""
        return () if self.step_size_field is None else np.asarray(getattr(self, self.step_size_field))

    @property
    def without_step_size(self) -> Kernel:
        """This kernel with its step size replaced by ones.

        It is the key of the compiled loop: kernels that differ only in their step size share compiled code.
        """
        if self.step_size_field is None:
            return self
        ones = np.ones_like(self.initial_step_size)
        return dataclasses.replace(self, **{self.step_size_field: ones})  # type: ignore[type-var]

    @property
    def is_adaptive(self) -> bool:
        """Whether this kernel, or one inside it, adapts its step size."""
        return False

    @property
    def unadapted(self) -> Kernel:
        """This kernel without the adaptation of its step size."""
        return self

    @property
    def uses_gradient(self) -> bool:
        """Whether the target must be differentiable."""
        return True

    @property
    def evaluations_per_step(self) -> int:
        """The largest number of target evaluations that one step makes."""
        return 1

    def with_burnin(self, num_burnin_steps: int) -> Kernel:
        """Returns this kernel configured for the given number of burn-in steps."""
        del num_burnin_steps
        return self

    def in_coordinates(self, standardization: Any) -> Kernel:
        """Returns this kernel for chains that run in z = (x − loc)/scale although its bases are distributions over x.

        Everything else, such as step sizes, boxes and proposal functions, refers to z and does not change.

        Args:
          standardization: an object with `to_z`, `to_x` and the weights `loc` and `scale`, which are read when the
            chain runs.
        """
        if any(field.name == "standardization" for field in dataclasses.fields(self)):  # type: ignore[arg-type]
            return dataclasses.replace(self, standardization=standardization)  # type: ignore[type-var]
        return self

    def step_size_after(self, results: Any, step_size: Any) -> Any:
        """Returns the current step size, given a chain's last results and the step size that it was built with."""
        del results
        return step_size

    def log_prob_after(self, results: Any) -> tf.Tensor | None:
        """Returns the target's log density at the current state, `[*chains]`; None if the results do not hold it."""
        return find(results, "target_log_prob")

    def check_event(self, event_shape: tuple[int, ...]) -> None:
        """Raises ValueError if a parameter with one number per coordinate does not match the event shape."""
        if self.step_size_field is not None:
            _check_broadcast(self.step_size_field, self.initial_step_size, event_shape)

    def check_start(self, state: tf.Tensor) -> None:
        """Raises ValueError if no chain of this kernel can start at `state`, an eager tensor."""
        del state

    def get_config(self) -> dict[str, Any]:
        """Returns the fields, for Keras."""
        names = [field.name for field in dataclasses.fields(self)]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names if name != "standardization"}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Kernel:
        """Creates the kernel that returned `config` from `get_config`."""
        return cls(**config)

    def _normalize(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def _positive(name: str, value: Any) -> Any:
    """Returns a positive number as a float, or an array as nested tuples, which hash and compare by value."""
    array = np.asarray(value)
    if array.ndim == 0:
        return arguments.check_positive(name, array.item())
    if array.dtype.kind not in "iuf":
        raise TypeError(f"`{name}` must be made of positive numbers, got {value!r}.")
    if array.size == 0 or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"`{name}` must be made of positive numbers, got {value!r}.")
    return _tuples(array.astype(float).tolist())


def _box(name: str, value: Any) -> tuple[Any, Any]:
    """Returns the two bounds of a box, each a float or nested tuples."""
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


def build(kernel: Any, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
    """Builds the TFP kernel of a target.

    Args:
      kernel: a kernel of this package, or any callable `target_log_prob_fn -> tfp.mcmc.TransitionKernel`.
      target_log_prob_fn: log p up to a constant.
      step_size: the step size, a number or tensor, of a kernel of this package; ignored for other kernels.

    Raises:
      TypeError: if the callable does not return a TFP kernel.
    """
    if isinstance(kernel, Kernel):
        return kernel.build(target_log_prob_fn, step_size)
    built = kernel(target_log_prob_fn)
    if not isinstance(built, tfp.mcmc.TransitionKernel):
        raise TypeError(
            f"`kernel` must map a target to a tfp.mcmc.TransitionKernel, got one that returns a {type(built).__name__}."
        )
    return built


def is_calibrated(kernel: Callable[[TargetLogProbFn], tfp.mcmc.TransitionKernel]) -> bool:
    """Returns whether a kernel, or any callable that builds a TFP kernel, leaves its target exactly invariant.

    The function builds the kernel for a Gaussian target and reads its `is_calibrated`.

    >>> from tfp_ebm.mcmc.kernels import MALA, Langevin
    >>> is_calibrated(MALA(0.1)), is_calibrated(Langevin(0.1))
    (True, False)
    """
    return bool(kernel(lambda x: -0.5 * tf.reduce_sum(tf.square(x), -1)).is_calibrated)


class Wrapper(Kernel):
    """A kernel that wraps one other kernel and uses that kernel's step size. Subclasses are frozen dataclasses.

    Attributes:
      kernel: the wrapped kernel.
    """

    kernel: Kernel
    step_size_field: ClassVar[str | None] = None

    @property
    def initial_step_size(self) -> Any:
        """The wrapped kernel's step size."""
        return self.kernel.initial_step_size

    @property
    def target_accept_prob(self) -> float | None:  # type: ignore[override]
        """The acceptance probability that the wrapped kernel adapts to."""
        return self.kernel.target_accept_prob

    @property
    def without_step_size(self) -> Kernel:
        """See `Kernel.without_step_size`."""
        return dataclasses.replace(self, kernel=self.kernel.without_step_size)  # type: ignore[type-var]

    @property
    def is_adaptive(self) -> bool:
        """Whether the wrapped kernel is adaptive."""
        return self.kernel.is_adaptive

    @property
    def unadapted(self) -> Kernel:
        """See `Kernel.unadapted`."""
        return dataclasses.replace(self, kernel=self.kernel.unadapted)  # type: ignore[type-var]

    @property
    def uses_gradient(self) -> bool:
        """Whether the wrapped kernel uses the gradient."""
        return self.kernel.uses_gradient

    @property
    def evaluations_per_step(self) -> int:
        """The wrapped kernel's number of evaluations."""
        return self.kernel.evaluations_per_step

    def with_burnin(self, num_burnin_steps: int) -> Kernel:
        """See `Kernel.with_burnin`."""
        kernel = self.kernel.with_burnin(num_burnin_steps)
        return dataclasses.replace(self, kernel=kernel)  # type: ignore[type-var]

    def in_coordinates(self, standardization: Any) -> Kernel:
        """See `Kernel.in_coordinates`."""
        kernel = super().in_coordinates(standardization)
        return dataclasses.replace(kernel, kernel=self.kernel.in_coordinates(standardization))  # type: ignore[type-var]

    def check_event(self, event_shape: tuple[int, ...]) -> None:
        """See `Kernel.check_event`."""
        self.kernel.check_event(event_shape)

    def check_start(self, state: tf.Tensor) -> None:
        """See `Kernel.check_start`."""
        self.kernel.check_start(state)

    def get_config(self) -> dict[str, Any]:
        """Returns the fields, for Keras."""
        return {**super().get_config(), "kernel": keras.saving.serialize_keras_object(self.kernel)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Kernel:
        """Creates the kernel that returned `config` from `get_config`."""
        return cls(**{**config, "kernel": keras.saving.deserialize_keras_object(config["kernel"])})


class LateKernel(tfp.mcmc.TransitionKernel):
    """A TFP kernel that builds its inner kernels at each call, for the current state or step size.

    Args:
      kernel: the kernel of this package.
      target_log_prob_fn: log p up to a constant. TFP's wrappers find and replace it by this name.
      step_size: the step size, in the form of the kernel's `initial_step_size`.
    """

    def __init__(self, kernel: Any, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> None:
        self._parameters = {"kernel": kernel, "target_log_prob_fn": target_log_prob_fn, "step_size": step_size}

    @property
    def parameters(self) -> dict[str, Any]:
        """The arguments of `__init__`, which TFP's wrappers read."""
        return self._parameters

    @property
    def is_calibrated(self) -> bool:
        """Whether the kernel is calibrated: True unless a subclass overrides it."""
        return True
