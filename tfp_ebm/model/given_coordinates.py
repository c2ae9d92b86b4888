"""The density of some coordinates given the others: p(x_B | x_A) ∝ p(x_A, x_B), so that its energy is E(x_A, x_B).

For Gaussians and mixtures of them, kernel densities included, the result is one again, exactly. For any other energy
its log Z is unknown, and equals log Z + log p(x_A); its base is the base of p, conditioned as the Gaussian or mixture
that it is.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import serialization
from tfp_ebm.arguments import numbers_of
from tfp_ebm.energy.base import draw, mixture_distribution
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.conditionals import gaussian_parts
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.normalized import AffineEnergy, DistributionEnergy, MixtureEnergy, is_normalized
from tfp_ebm.random import stateless_seed

# Draws that give the moments of a base that is no Gaussian and no mixture of them.
_NUM_DRAWS = 4096


@keras.saving.register_keras_serializable("tfp_ebm")
class PartEnergy(keras.Model):
    """The network E(x_A, loc + scale·z) − Σ log scale of the coordinates x_B = loc + scale·z, in their order.

    Args:
      part: an `EnergyModel` of x.
      values: x, array of the event shape; only the known coordinates count.
      mask: True where a coordinate is known, nested lists or an array of the event shape.
      loc, scale: arrays `[number]` of the unknown coordinates; default 0 and 1.

    >>> import tfp_ebm as ebm
    >>> model = EnergyModel(ebm.networks.mlp([3], units=[4]))
    >>> network = PartEnergy(model, [0.0, 2.0, 0.0], [False, True, False])
    >>> bool(abs(network(tf.constant([[1.0, 3.0]]))[0] - model.energy([1.0, 2.0, 3.0])) < 1e-5)
    True
    """

    def __init__(
        self, part: EnergyModel, values: Any, mask: Any, loc: Any = None, scale: Any = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("dtype", part.dtype)
        super().__init__(**kwargs)
        self.part, self.mask = part, np.asarray(mask, bool).reshape(-1)
        known = np.asarray(values, np.float64).reshape(-1)[self.mask]
        self.number = int((~self.mask).sum())

        def weight(name: str, value: Any, start: str) -> keras.Variable:
            variable = self.add_weight(shape=np.shape(value), initializer=start, trainable=False, name=name)
            variable.assign(value)
            return variable

        self.known = weight("known", known, "zeros")
        self.loc = weight("loc", np.zeros(self.number) if loc is None else loc, "zeros")
        self.scale = weight("scale", np.ones(self.number) if scale is None else scale, "ones")
        self.built = True

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """The shape of a batch."""
        return (None, self.number)

    def call(self, z: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the energies `[batch]` of unknown coordinates `[batch, number]`."""
        scale = self.scale.value
        unknown = self.loc.value + scale * z
        x = completed(self.known.value, unknown, self.mask)
        energy = self.part(tf.reshape(x, [-1, *self.part.event_shape]), training=training)
        return energy - tf.reduce_sum(tf.math.log(scale))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras; loc, scale and the known values are weights."""
        values = np.zeros(len(self.mask))
        values[self.mask] = np.asarray(self.known)
        own = {"part": serialization.serialized_part(self.part), "mask": self.mask.tolist()}
        return {"name": self.name, "dtype": self.dtype, **own, "values": values.tolist()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> PartEnergy:
        """Rebuilds the network from `get_config`."""
        return cls(**{**config, "part": keras.saving.deserialize_keras_object(config["part"], custom_objects)})


def completed(known: tf.Tensor, unknown: tf.Tensor, mask: np.ndarray) -> tf.Tensor:
    """Returns x `[batch, size]` of the known coordinates `[number]` and the unknown ones `[batch, size - number]`.

    >>> completed(tf.constant([5.0]), tf.constant([[1.0, 2.0]]), np.array([False, True, False])).numpy().tolist()
    [[1.0, 5.0, 2.0]]
    """
    rows = tf.broadcast_to(known, tf.stack([tf.shape(unknown)[0], int(mask.sum())]))
    places = np.argsort(np.concatenate([np.flatnonzero(mask), np.flatnonzero(~mask)]))
    return tf.gather(tf.concat([rows, unknown], 1), places, axis=1)


def gaussians_of_network(network: Any) -> MixtureParameters | None:
    """Returns a network of Gaussians as one mixture, in its own coordinates; None if it is another."""
    if isinstance(network, GaussianMixtureEnergy):
        center, loc, factor, probs = (
            np.asarray(part, np.float64) for part in (network.center, network.loc, network.scale, network.probs)
        )
        factor = np.repeat(factor[None], len(loc), 0) if network.is_shared else factor
        return MixtureParameters(probs, center + loc, factor)
    if isinstance(network, DistributionEnergy):
        return gaussians_of_distribution(network.distribution)
    if isinstance(network, AffineEnergy):  # the inner network takes shift + scale·z
        inner = gaussians_of_network(network.network)
        shift, scale = (np.asarray(part, np.float64).reshape(-1) for part in (network.shift, network.scale))
        return None if inner is None else inner.in_units(-shift / scale, 1.0 / scale)
    if isinstance(network, MixtureEnergy):
        found = [gaussians_of_network(part) for part in network.parts]
        parts = [part for part in found if part is not None]
        if len(parts) < len(found):
            return None
        weights = [w * part.probs for w, part in zip(np.asarray(network.probs, np.float64), parts, strict=True)]
        return MixtureParameters(
            np.concatenate(weights),
            np.concatenate([part.loc for part in parts]),
            np.concatenate([part.scale_tril for part in parts]),
        )
    return None


def gaussians_of_distribution(distribution: Any) -> MixtureParameters | None:
    """Returns a multivariate normal, reshaped or not, or a mixture of them; None for any other distribution."""
    if isinstance(distribution, tfp.distributions.TransformedDistribution) and isinstance(
        distribution.bijector, tfp.bijectors.Reshape
    ):
        distribution = distribution.distribution
    try:
        probs, loc, covariance = gaussian_parts(distribution)
    except (TypeError, NotImplementedError):
        return None
    factor = np.linalg.cholesky(np.asarray(covariance, np.float64))
    return MixtureParameters(np.asarray(probs, np.float64), np.asarray(loc, np.float64), factor)


def conditioned(mixture: MixtureParameters, known: np.ndarray, mask: np.ndarray) -> MixtureParameters:
    """Returns the mixture of the other coordinates given those where `mask` is True, exactly.

    Args:
      mixture: of vectors, with one covariance for each component.
      known: the known coordinates, in their order.
      mask: bool `[size]`.

    >>> normal = MixtureParameters(np.ones(1), np.zeros((1, 2)), np.array([[[1.0, 0.0], [0.6, 0.8]]]))
    >>> given = conditioned(normal, np.array([2.0]), np.array([True, False]))
    >>> given.loc.round(6).tolist(), given.scale_tril.round(6).tolist()
    ([[1.2]], [[[0.8]]])
    """
    covariance = mixture.scale_tril @ np.swapaxes(mixture.scale_tril, -1, -2)
    own = np.linalg.cholesky(covariance[:, mask][:, :, mask])
    cross = np.linalg.solve(own, covariance[:, mask][:, :, ~mask])
    residual = np.linalg.solve(own, (np.asarray(known) - mixture.loc[:, mask])[..., None])
    volume = np.log(np.diagonal(own, axis1=1, axis2=2)).sum(1)
    with np.errstate(divide="ignore"):  # a component may be empty
        log_weights = np.log(mixture.probs) - volume - 0.5 * np.square(residual[..., 0]).sum(1)
    weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
    loc = mixture.loc[:, ~mask] + (np.swapaxes(cross, -1, -2) @ residual)[..., 0]
    rest = covariance[:, ~mask][:, :, ~mask] - np.swapaxes(cross, -1, -2) @ cross
    return MixtureParameters(weights / weights.sum(), loc, np.linalg.cholesky(rest))


def _checked(values: Any, mask: Any, event_shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    flags = np.asarray(mask)
    if flags.dtype != bool:
        raise TypeError(f"`mask` must hold True where a coordinate is known, got dtype {flags.dtype}.")
    if flags.shape != event_shape:
        raise ValueError(f"`mask` must have the event shape {event_shape}, got {flags.shape}.")
    if flags.all() or not flags.any():
        raise ValueError(f"`mask` must leave some coordinates known and some not, got {int(flags.sum())} known.")
    numbers: np.ndarray = np.asarray(numbers_of("values", values), np.float64)
    if numbers.shape != event_shape:
        raise ValueError(f"`values` must have the event shape {event_shape}, got {numbers.shape}.")
    if not np.isfinite(numbers[flags]).all():
        raise ValueError("`values` must be finite where `mask` is True.")
    return numbers.reshape(-1), flags.reshape(-1)


def _moments(mixture: MixtureParameters) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and covariance of a mixture."""
    mean = mixture.probs @ mixture.loc
    spread = mixture.loc - mean
    inner = np.einsum("k,kij,klj->il", mixture.probs, mixture.scale_tril, mixture.scale_tril)
    return mean, inner + np.einsum("k,ki,kj->ij", mixture.probs, spread, spread)


def part_of(distribution: Any, values: Any, mask: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the energy of the unknown coordinates, and further arguments of its `EnergyDistribution`.

    Args:
      distribution: an `EnergyDistribution`.
      values: x, of the event shape; only the known coordinates count.
      mask: bool of the event shape, True where known.
    """
    x, known = _checked(values, mask, tuple(distribution.event_shape))
    energy, dtype = distribution._energy, tf.as_dtype(distribution.dtype)
    if isinstance(energy, EnergyModel) and is_normalized(energy):
        exact = gaussians_of_network(energy.network)
        if exact is not None:
            units = energy.standardization
            loc, scale = (np.asarray(part, np.float64).reshape(-1) for part in (units.loc, units.scale))
            given = conditioned(exact.in_units(loc, scale), x[known], known)
            return EnergyModel(GaussianMixtureEnergy.of(given, dtype=energy.dtype)), {}
    start = gaussians_of_distribution(distribution.base)
    if start is None:
        rows = np.asarray(draw(distribution.base, tf.constant([_NUM_DRAWS]), stateless_seed(0)), np.float64)
        moments = DataMoments.of([rows.reshape(_NUM_DRAWS, -1)])
        start = MixtureParameters(np.ones(1), moments.mean[None], moments.cholesky()[None])
    start = conditioned(start, x[known], known)
    base = mixture_distribution(start, dtype, (int((~known).sum()),))
    if not isinstance(energy, EnergyModel):
        shape = tuple(distribution.event_shape)

        def of_unknown(unknown: tf.Tensor) -> tf.Tensor:
            full = completed(tf.constant(x[known], dtype), unknown, known)
            return -distribution.negative_energy(tf.reshape(full, [-1, *shape]))

        return of_unknown, {"event_shape": base.event_shape, "base": base}
    mean, covariance = _moments(start)
    scale = np.sqrt(np.diag(covariance))
    model = EnergyModel(PartEnergy(energy, x, known, mean, scale))
    model.standardization.loc.assign(mean)
    model.standardization.scale.assign(scale)
    steps = np.linalg.cholesky(covariance).T * np.sqrt(len(mean))  # rows whose moments are these, exactly
    own: Any = model._fitted_base
    own.assign(DataMoments.of([mean + np.concatenate([steps, -steps])]))
    return model, {} if len(start.probs) == 1 else {"base": base}
