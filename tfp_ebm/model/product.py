"""Products of densities with exponents: p(x) ∝ Π pᵢ(x)^aᵢ, so that E(x) = Σ aᵢ Eᵢ(x).

One part with an exponent below 1 is tempered, several parts are a product of experts (Hinton 2002; Du, Li & Mordatch
2020). Each energy counts with its base measure and its own units, as a density of x; nothing is counted twice. The base
from which draws start is the product of the Gaussians of the parts' bases, of twice the covariance. Parts that take a
condition all take the same, and so does the product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import serialization
from tfp_ebm.arguments import check_finite
from tfp_ebm.energy.base import check_base, draw, gaussian
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.model.conditional_mixture import OfConditionalParts, is_conditional_model
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.model.exact_draws import draws_exactly, exact_draws
from tfp_ebm.model.given_coordinates import part_of
from tfp_ebm.networks.normalized import DistributionEnergy
from tfp_ebm.random import stateless_seed

# The covariance of the base in terms of that of the product of Gaussians, and draws for moments that are not known.
_BROADENING, _NUM_DRAWS = 2.0, 4096


@keras.saving.register_keras_serializable("tfp_ebm")
class ProductEnergy(keras.Model):
    """The network Σ aᵢ Eᵢ(loc + scale·z) − Σ log scale, of energies of x in units of their own.

    Args:
      parts: each an `EnergyModel`, or a `DistributionEnergy`; all of one event shape.
      exponents: the numbers aᵢ.
      loc, scale: arrays of the event shape.

    >>> normal = tfp.distributions.MultivariateNormalDiag([0.0])
    >>> network = ProductEnergy([DistributionEnergy(normal)], [2.0])
    >>> round(float(network(tf.ones([1, 1]))[0]), 4)  # twice ½ + ½ log 2π
    2.8379
    """

    def __init__(
        self, parts: Sequence[Any], exponents: Sequence[float], loc: Any = None, scale: Any = None, **kwargs: Any
    ) -> None:
        dtypes = [part.dtype for part in parts]
        kwargs.setdefault("dtype", "float64" if "float64" in dtypes else "float32")
        super().__init__(**kwargs)
        self.parts, self.exponents = list(parts), [float(exponent) for exponent in exponents]
        self.event_shape = tuple(parts[0].event_shape)
        self.loc = self.add_weight(shape=self.event_shape, initializer="zeros", trainable=False, name="loc")
        self.scale = self.add_weight(shape=self.event_shape, initializer="ones", trainable=False, name="scale")
        if loc is not None:
            self.loc.assign(loc)
        if scale is not None:
            self.scale.assign(scale)
        self.built = True

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of a batch."""
        return (None, *self.event_shape)

    def call(self, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the energies `[batch]` of states `[batch, *event]`."""
        return self._sum_at(z, training)

    def _sum_at(self, z: tf.Tensor, training: bool, condition: tf.Tensor | None = None) -> tf.Tensor:
        scale = self.scale.value
        x = self.loc.value + scale * z
        total: Any = -tf.reduce_sum(tf.math.log(scale))
        for part, exponent in zip(self.parts, self.exponents, strict=True):
            at = tf.cast(x, part.dtype)
            energy = part([at, condition] if is_conditional_model(part) else at, training=training)
            total += exponent * tf.cast(energy, self.dtype)
        return total

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras; loc and scale are weights."""
        parts = [serialization.serialized_part(part) for part in self.parts]
        return {"name": self.name, "dtype": self.dtype, "parts": parts, "exponents": self.exponents}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ProductEnergy:
        """Rebuilds the network from `get_config`."""
        parts = [keras.saving.deserialize_keras_object(part, custom_objects) for part in config["parts"]]
        return cls(**{**config, "parts": parts})


@keras.saving.register_keras_serializable("tfp_ebm")
class ConditionalProductEnergy(OfConditionalParts, ProductEnergy):
    """The same network of z and a condition, which all parts that take one receive.

    Args:
      parts, exponents, loc, scale: as for `ProductEnergy`; one part at least is a conditional `EnergyModel`.

    >>> import tfp_ebm as ebm
    >>> model = EnergyModel(ebm.networks.mlp([2], units=[4], condition_shape=[3]))
    >>> network = ConditionalProductEnergy([model, model], [1.0, 0.5])
    >>> network(tf.zeros([5, 2]), tf.ones([5, 3])).shape
    TensorShape([5])
    """

    def call(  # type: ignore[override]
        self, z: tf.Tensor, condition: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        """Returns the energies `[batch]` of states `[batch, *event]` and conditions `[batch, *condition]`."""
        return self._sum_at(z, training, condition)


def checked_parts(parts: Sequence[Any], exponents: Any) -> tuple[list[Any], list[float]]:
    """Returns the parts of a product and their exponents, 1 by default.

    Raises:
      TypeError, ValueError: if a part is no density, the event shapes differ, or the exponents are no finite numbers.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("`parts` must hold at least one density, got none.")
    specs: dict[str, int] = {}
    for i, part in enumerate(parts):
        if isinstance(part, EnergyModel):
            if part.is_conditional:
                specs[str(part.energy_function.condition_spec)] = i
        elif hasattr(part, "conditions"):
            raise ValueError(f"`parts[{i}]` must be one density, got a batch: pass its model, then use `given`.")
        elif isinstance(part, tfp.distributions.Distribution):
            check_base(f"parts[{i}]", part)
        else:
            raise TypeError(f"`parts[{i}]` must be an EnergyModel or a tfd.Distribution, got {part!r}.")
    if len(specs) > 1:
        raise ValueError(f"`parts` must take one kind of condition, got {' and '.join(specs)}.")
    shapes = {tuple(part.event_shape) for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"`parts` must have one event shape, got {sorted(shapes)}.")
    numbers = [1.0] * len(parts) if exponents is None else list(exponents)
    if len(numbers) != len(parts):
        raise ValueError(f"`exponents` must be {len(parts)} numbers, one for each part, got {len(numbers)}.")
    return parts, [check_finite(f"exponents[{i}]", number) for i, number in enumerate(numbers)]


def model_of_part(part: Any) -> Any:
    """Returns a part as an `EnergyModel` or a `DistributionEnergy`; None for the distribution of a callable energy."""
    if isinstance(part, EnergyModel):
        return part
    energy = getattr(part, "_energy", None)  # of an EnergyDistribution
    if isinstance(energy, EnergyModel):
        return energy
    return DistributionEnergy(part) if energy is None else None


def _moments(part: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and covariance of the base of a part; of the part itself if it has none and draws exactly."""
    energy = part if isinstance(part, EnergyModel) else getattr(part, "_energy", None)
    base, seed = part, stateless_seed(0)
    if energy is not None:
        try:
            base = part.base
        except ValueError:
            if not draws_exactly(energy):
                raise
            return _moments_of(exact_draws(energy, _NUM_DRAWS, seed))
    if len(part.event_shape) == 1:
        # a reshaped or mixed base may lack one of these
        with contextlib.suppress(NotImplementedError, AttributeError):
            return np.asarray(base.mean(), np.float64), np.asarray(base.covariance(), np.float64)
    return _moments_of(draw(base, tf.constant([_NUM_DRAWS]), seed))


def _moments_of(drawn: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and covariance of draws `[n, *event]`."""
    rows = np.asarray(drawn, np.float64).reshape(_NUM_DRAWS, -1)
    return rows.mean(0), np.atleast_2d(np.cov(rows.T))


def broadened_base(parts: Sequence[Any], exponents: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and covariance of the product of the Gaussians of the parts' bases, broadened.

    Raises:
      ValueError: if the product has no finite Z, as far as these Gaussians show: an exponent is not positive, and the
        other parts do not outweigh it.
    """
    precision, weighted = 0.0, 0.0
    for part, exponent in zip(parts, exponents, strict=True):
        mean, covariance = _moments(part)
        inverse = np.linalg.inv(covariance)
        precision, weighted = precision + exponent * inverse, weighted + exponent * inverse @ mean
    if np.linalg.eigvalsh(precision).min() <= 0.0:
        raise ValueError(
            f"`exponents` must leave a density that can be normalised, got {list(exponents)}: the Gaussians of the "
            "parts' bases to these powers grow without bound in some direction."
        )
    covariance = np.linalg.inv(precision)
    return covariance @ weighted, _BROADENING * covariance


def product_energy(parts: Sequence[Any], exponents: Any = None) -> tuple[Any, dict[str, Any]]:
    """Returns the energy Σ aᵢ Eᵢ of parts, and the further arguments of its `EnergyDistribution`.

    The energy is an `EnergyModel`, which is saved and exported as any other, unless a part is the distribution of a
    callable energy.
    """
    parts, exponents = checked_parts(parts, exponents)
    loc, covariance = broadened_base(parts, exponents)
    shape = tuple(parts[0].event_shape)
    models = [model_of_part(part) for part in parts]
    is_conditional = any(map(is_conditional_model, models))
    if any(model is None for model in models):
        if is_conditional:
            raise ValueError(
                "`parts` must be models or distributions, if one takes a condition, got a callable energy."
            )
        dtype = tf.as_dtype(parts[0].dtype)
        base = gaussian(tf.constant(loc, dtype), tf.constant(np.linalg.cholesky(covariance), dtype), shape)
        return _sum_of(parts, exponents), {"event_shape": shape, "base": base}
    scale = np.sqrt(np.diag(covariance)).reshape(shape)
    network = (ConditionalProductEnergy if is_conditional else ProductEnergy)(
        models, exponents, loc.reshape(shape), scale
    )
    model = EnergyModel(network)
    model.standardization.loc.assign(loc.reshape(shape))
    model.standardization.scale.assign(scale)
    factor = np.linalg.cholesky(covariance)
    # as many rows as make mean and covariance exact: the mean plus and minus the columns of a factor
    steps = np.concatenate([factor.T, -factor.T]) * np.sqrt(len(loc))
    own: Any = model._fitted_base
    own.assign(DataMoments.of([(loc + steps).reshape(-1, *shape)]))
    return model, {}


def _equal(left: tf.Tensor, right: tf.Tensor) -> bool:
    values = [tf.get_static_value(part) for part in (left, right)]
    return values[0] is not None and values[1] is not None and np.array_equal(*values)


def _sum_of(parts: Sequence[Any], exponents: Sequence[float]) -> Callable[[tf.Tensor], tf.Tensor]:
    def energy(x: tf.Tensor) -> tf.Tensor:
        terms = [-a * part.unnormalized_log_prob(x) for part, a in zip(parts, exponents, strict=True)]
        return tf.add_n(terms)

    return energy


class Composable:
    """Operators of `EnergyDistribution`: `p * q` is the product of two densities, `p ** a` the tempered density."""

    _energy: Any

    @property
    def energy_model(self) -> EnergyModel:
        """The `EnergyModel` of the distribution, which can be saved and exported.

        Raises:
          ValueError: if the energy is a callable.
        """
        if not isinstance(self._energy, EnergyModel):
            raise ValueError("the energy must be an EnergyModel to be saved, got a callable.")
        return self._energy

    def _composed(self, parts: Sequence[Any], exponents: Sequence[float]) -> Any:
        batches = [part for part in parts if hasattr(part, "conditions")]
        if not batches:
            kind: Any = type(self)
            energy, arguments = product_energy(parts, exponents)
            return kind(energy, **arguments)
        conditions = batches[0].conditions
        if any(part.conditions is not conditions and not _equal(part.conditions, conditions) for part in batches):
            raise ValueError("both factors must have the same conditions; `product` of the models takes any later.")
        parts = [part.energy_model if hasattr(part, "conditions") else part for part in parts]
        return product_energy(parts, exponents)[0].given(conditions, as_distribution=True)

    def given_coordinates(self, values: Any, mask: Any) -> Any:
        """Returns the distribution of the coordinates that are not known, given those that are.

        It is exact for Gaussians, Gaussian mixtures and kernel densities. Elsewhere its log Z, by `draw`, is log Z of
        this distribution plus the log marginal density of the known coordinates.

        Args:
          values: x, of the event shape. Only the known coordinates count; the others may be NaN.
          mask: bool of the event shape, True where a coordinate is known.

        Returns:
          An `EnergyDistribution` of the unknown coordinates, a vector in their order in x.

        Raises:
          TypeError, ValueError: if the mask is not bool, or leaves nothing known or unknown; if the shapes differ, or a
            known value is not finite; if there is no base distribution.

        >>> import tfp_ebm as ebm
        >>> p = ebm.composition.mixture([tfp.distributions.MultivariateNormalTriL(
        ...     [0.0, 0.0], [[1.0, 0.0], [0.6, 0.8]])], [1.0])
        >>> q = p.given_coordinates([2.0, np.nan], [True, False])  # N(1.2, .8²)
        >>> bool(abs(q.log_prob([1.2]) + 0.5 * np.log(2 * np.pi * 0.64)) < 1e-5)
        True
        """
        if hasattr(self, "conditions"):
            raise NotImplementedError("`given_coordinates` is for one density, not for a batch: take `p[i]`'s model.")
        kind: Any = type(self)
        energy, arguments = part_of(self, values, mask)
        return kind(energy, **arguments)

    def __mul__(self, other: Any) -> Any:
        """Returns the density proportional to p(x) q(x), for q an `EnergyModel` or a `tfd.Distribution`."""
        if not isinstance(other, EnergyModel | tfp.distributions.Distribution):
            return NotImplemented
        if is_conditional_model(other):
            raise ValueError("a conditional model is no density: `model.given(condition)`, or `product([p, model])`.")
        return self._composed([self, other], [1.0, 1.0])

    def __rmul__(self, other: Any) -> Any:
        """Returns the same product."""
        return self.__mul__(other)

    def __pow__(self, exponent: Any) -> Any:
        """Returns the density proportional to p(x)^a."""
        return self._composed([self], [check_finite("exponent", exponent)])
