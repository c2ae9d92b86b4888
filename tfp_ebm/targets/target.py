"""The class of all targets, a `tfd.Distribution` with exact log-density and sampler, and the samplers' helpers."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.arguments import check_count
from tfp_ebm.random import stateless_seed, uniform

LogProb = Callable[[tf.Tensor], tf.Tensor]
Sampler = Callable[[Any, tf.Tensor, tf.DType], tf.Tensor]


class Target(tfp.distributions.Distribution):
    """A distribution on the plane, or of d coordinates, with an exact log-density and an exact sampler.

    Args:
      log_prob_fn: maps x `[..., d]` to log p(x) `[...]`, in the dtype of x.
      sample_fn: maps (n, seed as int32[2], dtype) to n independent points `[n, d]`, the same points for the same seed.
      mean: the exact E x, d numbers; None if unknown.
      covariance: the exact covariance, d × d numbers; None if unknown.
      is_differentiable: False if ∇ log p does not exist or is zero, so that gradient kernels can raise an error.
      box: (low, high) of the square that contains the support; None if the support is the plane.
      dtype: tf.float32 or tf.float64.
      num_coordinates: d.
      log_normalizer: log Z of `unnormalized_log_prob`, which is log p + log Z.
      shares: the exact share of each mode; None if the target is not made of modes.
      mode_fn: maps x `[..., d]` to the number of its mode, an index of `shares`.
      label: the name of the target in figures and error messages.
      name: TFP's name, which a joint distribution uses for the variable; default: the label.

    Raises:
      TypeError: if `dtype` is neither of the two.

    >>> disc = Target(
    ...     log_prob_fn=lambda x: -tf.reduce_sum(x**2, axis=-1) / 2 - np.log(2 * np.pi),
    ...     sample_fn=lambda n, seed, dtype: tf.random.stateless_normal([n, 2], seed, dtype=dtype),
    ...     mean=(0.0, 0.0),
    ...     dtype=tf.float64,
    ... )
    >>> disc.log_prob([[0.0, 0.0], [1.0, 1.0]]).numpy().round(3).tolist()
    [-1.838, -2.838]
    >>> bool(tf.reduce_all(disc.sample(3, seed=1) == disc.sample(3, seed=1)))
    True
    """

    def __init__(
        self,
        log_prob_fn: LogProb,
        sample_fn: Sampler,
        mean: Sequence[float] | np.ndarray | None = None,
        covariance: Sequence[Sequence[float]] | np.ndarray | None = None,
        is_differentiable: bool = True,
        box: tuple[float, float] | None = None,
        dtype: Any = tf.float32,
        num_coordinates: int = 2,
        log_normalizer: float = 0.0,
        shares: Sequence[float] | np.ndarray | None = None,
        mode_fn: Callable[[tf.Tensor], tf.Tensor] | None = None,
        label: str = "target",
        name: str | None = None,
    ) -> None:
        parameters = dict(locals())
        expected = f"`dtype` must be tf.float32 or tf.float64, got {dtype!r}."
        try:
            dtype = tf.as_dtype(dtype)
        except TypeError as error:
            raise TypeError(expected) from error
        if dtype not in (tf.float32, tf.float64):
            raise TypeError(expected)
        self.label = label
        self._log_prob_fn = log_prob_fn
        self._sample_fn = sample_fn
        self._exact_mean = mean
        self._exact_covariance = covariance
        self._box = box
        self._num_coordinates = check_count("num_coordinates", num_coordinates)
        self._log_normalizer, self._shares, self._mode_fn = log_normalizer, shares, mode_fn
        self.is_differentiable = is_differentiable
        super().__init__(
            dtype=dtype,
            reparameterization_type=tfp.distributions.NOT_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=True,
            parameters=parameters,
            # a joint distribution does not rename a distribution whose `parameters` contain a name
            name=label if name is None else name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        return {}  # no parameter is a tensor with batch dimensions

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self), dict(self.parameters))

    def _batch_shape(self) -> tf.TensorShape:
        return tf.TensorShape([])

    def _batch_shape_tensor(self) -> tf.Tensor:
        return tf.constant([], tf.int32)

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([self._num_coordinates])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant([self._num_coordinates], tf.int32)

    def _default_event_space_bijector(self) -> Any:
        if self._box is None:
            return tfp.bijectors.Identity()
        low, high = (tf.constant(bound, self.dtype) for bound in self._box)
        return tfp.bijectors.Sigmoid(low=low, high=high)

    @property
    def log_normalizer(self) -> float:
        """The exact log Z of `unnormalized_log_prob`."""
        return self._log_normalizer

    @property
    def shares(self) -> np.ndarray:
        """The exact share of each mode, float64 `[modes]`."""
        if self._shares is None:
            raise NotImplementedError(f"{self.label} is not made of modes.")
        return np.asarray(self._shares, np.float64)

    def modes(self, x: Any) -> tf.Tensor:
        """Returns the number of the mode of each point, an index of `shares`.

        Args:
          x: points `[..., d]`.
        """
        if self._mode_fn is None:
            raise NotImplementedError(f"{self.label} is not made of modes.")
        return self._mode_fn(tf.convert_to_tensor(x, self.dtype))

    def _log_prob(self, value: tf.Tensor) -> tf.Tensor:
        d = self._num_coordinates
        if value.dtype != self.dtype:
            raise TypeError(f"`value` must have the dtype {self.dtype.name} of {self.label}, got {value.dtype.name}.")
        if value.shape.rank == 0 or (value.shape.rank is not None and value.shape[-1] not in (d, None)):
            raise ValueError(f"`value` must have shape [..., {d}], got {value.shape}.")
        return self._log_prob_fn(value)

    def _unnormalized_log_prob(self, value: tf.Tensor) -> tf.Tensor:
        log_prob = self._log_prob(value)
        return log_prob + self._log_normalizer if self._log_normalizer else log_prob

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        # with None TFP documents a new draw at each call; any other seed gives the same draw
        words = tfp.random.sanitize_seed(None) if seed is None else stateless_seed(seed)
        return self._sample_fn(n, words, self.dtype)

    def _known(self, moment: Any, what: str) -> tf.Tensor:
        if moment is None:
            raise NotImplementedError(f"{what} of {self.label} is not known in closed form.")
        return tf.constant(moment, self.dtype)

    def _mean(self) -> tf.Tensor:
        return self._known(self._exact_mean, "mean")

    def _covariance(self) -> tf.Tensor:
        return self._known(self._exact_covariance, "covariance")

    def _variance(self) -> tf.Tensor:
        return tf.linalg.diag_part(self._covariance())


class _Part:
    """A function of a target that `copy` and `pickle` restore by the name of the function that makes the target.

    Args:
      function: the function.
      factory: module and name of the function that makes the target.
      arguments: its arguments by name.
      name: the attribute of the target that holds the function.
    """

    def __init__(
        self, function: Callable[..., tf.Tensor], factory: tuple[str, str], arguments: dict[str, Any], name: str
    ) -> None:
        self._function, self._origin = function, (factory, arguments, name)

    def __call__(self, *args: Any) -> tf.Tensor:
        return self._function(*args)

    def __reduce__(self) -> Any:
        return _part_of, self._origin


def _part_of(factory: tuple[str, str], arguments: dict[str, Any], name: str) -> Any:
    module, function = factory
    return getattr(getattr(importlib.import_module(module), function)(**arguments), name)


def _rebuilt(cls: type[Target], arguments: dict[str, Any]) -> Target:
    return cls(**arguments)


_Make = TypeVar("_Make", bound=Callable[..., Target])


def named(make: _Make) -> _Make:
    """Makes targets that a function of `dtype` and plain values creates suitable for `copy` and `pickle`.

    >>> import pickle
    >>> from tfp_ebm import targets
    >>> pickle.loads(pickle.dumps(targets.two_moons())).label
    'two_moons'
    """
    signature = inspect.signature(make)

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Target:
        target = make(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        origin = (make.__module__, make.__qualname__), bound.arguments | {"dtype": target.dtype.name}
        mode_fn = None if target._mode_fn is None else _Part(target._mode_fn, *origin, "_mode_fn")
        return target.copy(
            log_prob_fn=_Part(target._log_prob_fn, *origin, "_log_prob_fn"),
            sample_fn=_Part(target._sample_fn, *origin, "_sample_fn"),
            mode_fn=mode_fn,
        )

    return cast(_Make, made)


def split(seed: tf.Tensor, num: int) -> list[tf.Tensor]:
    """Derives `num` seeds from one."""
    return tf.unstack(tf.random.split(seed, num, alg="philox"))


def component(n: Any, seed: tf.Tensor, weights: np.ndarray) -> tf.Tensor:
    """Draws n indices, k with probability weights[k]."""
    u = uniform([n, 1], seed, dtype=tf.float64)
    return tf.reduce_sum(tf.cast(u >= np.cumsum(weights)[:-1], tf.int32), axis=-1)


def radius_of(x: tf.Tensor) -> tf.Tensor:
    """Returns ‖x‖ `[...]`, but at least the machine's ε, since the gradient at the origin would be 0/0."""
    epsilon = np.finfo(x.dtype.as_numpy_dtype).eps
    return tf.sqrt(tf.maximum(tf.reduce_sum(x**2, axis=-1), epsilon**2))
