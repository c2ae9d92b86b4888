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
from typing import Any, ClassVar, TypeAlias

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import arguments
from tfp_ebm.mcmc.hamiltonian import HamiltonianMonteCarlo
from tfp_ebm.mcmc.langevin import UncalibratedLangevin
from tfp_ebm.mcmc.results import find

__all__ = ["HMC", "MALA", "NUTS", "Kernel", "Langevin", "RandomWalk"]

TargetLogProbFn: TypeAlias = Callable[..., tf.Tensor]


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
        return self.build(target_log_prob_fn, self.step)

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


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class RandomWalk(Kernel):
    """Random-walk Metropolis (§2.1.2): propose x* = x + scale·Z, accept with min(1, p(x*)/p(x)). No gradient needed.

    `tfp.mcmc.RandomWalkMetropolis` with normal steps. Roberts, Gelman & Gilks (1997) advise an acceptance of .234 in
    many dimensions, .44 in one.

    Args:
      scale: standard deviation of the proposed step; a number, or an array that broadcasts to the event.

    Raises:
      TypeError, ValueError: if `scale` is not made of positive numbers.

    >>> kernel = RandomWalk(scale=0.5)
    >>> type(kernel(lambda x: -0.5 * x**2)).__name__
    'RandomWalkMetropolis'
    """

    scale: Any
    tuned: ClassVar[str | None] = "scale"
    moves_chains_alone: ClassVar[bool] = True
    optimal_accept_prob: ClassVar[float | None] = 0.234

    def __post_init__(self) -> None:
        self._normalize(scale=_positive("scale", self.scale))

    def build(self, target_log_prob_fn: TargetLogProbFn, step_size: Any) -> tfp.mcmc.TransitionKernel:
        """See `Kernel.build`."""
        return tfp.mcmc.RandomWalkMetropolis(
            target_log_prob_fn, new_state_fn=tfp.mcmc.random_walk_normal_fn(scale=step_size)
        )

    @property
    def uses_gradient(self) -> bool:
        """False."""
        return False


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class HMC(Kernel):
    """Hamiltonian Monte Carlo (eqs. 16-20): a momentum p ~ N(0, m) is drawn, then L leapfrog steps

        p ← p − ½ε∇E(x),   x ← x + εp/m,   p ← p − ½ε∇E(x)

    and the end point is accepted with min(1, exp(−ΔH)), H = E(x) + Σₖ pₖ²/(2mₖ).

    `tfp.mcmc.HamiltonianMonteCarlo`, which has unit mass, at the step size ε/√m per coordinate. That is the same chain:
    with p = √m·q the momentum is q ~ N(0, 1), its step q ← q − ½(ε/√m)∇E, the position's x ← x + (ε/√m)q, and the
    kinetic energy ½q². A good mass is the inverse of the target's variance (Neal 2011, arXiv:1206.1901).

    Args:
      step_size: ε; a number, or an array that broadcasts to the event.
      num_leapfrog_steps: L.
      mass: m, the diagonal of the mass matrix; a number or an array that broadcasts to the event. None is 1.

    Raises:
      TypeError, ValueError: if an argument is not positive, or the number of steps not a whole number.

    >>> kernel = HMC(step_size=0.2, num_leapfrog_steps=5, mass=[1.0, 4.0])
    >>> kernel.mass
    (1.0, 4.0)
    >>> kernel(lambda x: -0.5 * tf.reduce_sum(x**2, -1)).step_size
    array([0.2, 0.1])
    """

    step_size: Any
    num_leapfrog_steps: int
    mass: Any = None
    optimal_accept_prob: ClassVar[float | None] = 0.75
    moves_chains_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._normalize(
            step_size=_positive("step_size", self.step_size),
            num_leapfrog_steps=arguments.check_count("num_leapfrog_steps", self.num_leapfrog_steps),
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
        """One per leapfrog step: the gradient at the start is known."""
        return self.num_leapfrog_steps

    def check_event(self, event_shape: tuple[int, ...]) -> None:
        """See `Kernel.check_event`."""
        super().check_event(event_shape)
        if self.mass is not None:
            _check_broadcast("mass", np.asarray(self.mass), event_shape)


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class MALA(Kernel):
    """Metropolis-adjusted Langevin: the step of eq. 65, x* = x − ½ε²∇E(x) + εZ, accepted or rejected.

    The same proposals and acceptance ratios as `HMC(step_size, num_leapfrog_steps=1)`. Best at an acceptance of .574
    (Roberts & Rosenthal 1998). `tfp.mcmc.MetropolisHastings` around this package's `UncalibratedLangevin`; the step
    size of TFP's own MALA would be ε².

    Args:
      step_size: ε; a number, or an array that broadcasts to the event.

    Raises:
      TypeError, ValueError: if `step_size` is not made of positive numbers.

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
        return tfp.mcmc.MetropolisHastings(UncalibratedLangevin(target_log_prob_fn, step_size))


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class Langevin(Kernel):
    """Unadjusted Langevin dynamics (eq. 65): x' = x − ½ε²∇E(x) + τZ, nothing rejected.

    Not calibrated: on N(0, 1) and with τ = ε the stationary variance is 1/(1 − ε²/4), not 1. With another τ the chain
    has the temperature T = τ²/ε² as ε → 0 (it samples p^(1/T)), and the variance T/(1 − ε²/4) on N(0, 1): the small
    noise of short-run samplers (Du & Mordatch 2019, arXiv:1903.08689) makes cold chains.

    The last four options are those of such samplers. With them the chain has another law, for small ε too: clipping
    and clamping break detailed balance at every step size, and a clamp gathers chains on the faces of its box;
    `Transformed` keeps a box and the law.

    Args:
      step_size: ε; a number, or an array that broadcasts to the event. TFP's own Langevin calls ε² the step size.
      noise_scale: τ; None means ε, temperature 1. Zero is gradient descent.
      gradient_clip: c; each coordinate of ∇log p is clipped to [−c, c]. None: it is not.
      noise_first: the order of Du & Mordatch's code, x̃ = x + τZ, then x' = x̃ − ½ε²∇E(x̃).
      clamp: (low, high), numbers or arrays that broadcast to the event; x' is clamped to that box. None: it is not.
      clamp_noised: with the two before it, x̃ too is clamped, before the gradient is taken there.

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
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
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


@keras.saving.register_keras_serializable(package="tfp_ebm")
@dataclasses.dataclass(frozen=True)
class NUTS(Kernel):
    """The No-U-Turn Sampler (Hoffman & Gelman 2014): HMC that doubles its trajectory until it turns back.

    `tfp.mcmc.NoUTurnSampler`. All chains wait for the longest trajectory among them, 2^`max_tree_depth` leapfrog steps
    at most.

    Args:
      step_size: ε; a number, or an array that broadcasts to the event.
      max_tree_depth: how often a trajectory may double.

    Raises:
      TypeError, ValueError: if `step_size` is not positive or `max_tree_depth` not a positive whole number.

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
        """The longest trajectory that the tree allows."""
        return 2**self.max_tree_depth


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
