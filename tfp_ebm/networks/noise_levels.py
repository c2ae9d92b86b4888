"""Energies of noisy data at all levels, which are known at the largest level: E(y, σ) = −log p_t(y), t = σ².

Let a Gaussian mixture fitted to the data have weights wₖ, means mₖ and covariances Σₖ. Noise makes it the mixture of
N(mₖ, Σₖ + tI), with energy G(y, t) = −log Σₖ wₖ N(y; mₖ, Σₖ + tI). With a network r and the largest level T,

    E = F + softplus(G + g(t) r − F),      g(t) = (1/(1+t) − 1/(1+T)) / (1 − 1/(1+T)) for t < T, else 0.

At t = T the energy is that of the mixture, almost a Gaussian, so log Z = 0 there (up to
`NoiseLevelEnergy.ANCHOR_ERROR`). F is a floor: where the data are, F = ½d log 2πt − c, and no density of noisy data,
E_x N(y; x, tI), exceeds that level, even without the c. Farther out than the data, F = αG + (1 − α)v with the mean v of
½ log det 2π(Σₖ + tI), so that E keeps the share α of the mixture's growth at every level. Whatever the network returns,
the mass far from the data is then small, and Z is finite. How far out y is, is measured by its distance
from the nearest component, qₖ = ½(y−mₖ)ᵀ(Σₖ + tI)⁻¹(y−mₖ), compared with the largest such distance of the data.

In many coordinates, such as those of images, that is not enough: between the data, where no loss sees it, a network of
one output falls far below the data's energy. There the network returns a vector v(y, t), `[d + 1]`, instead, with

    G + g r = ½ log det 2π(Σ + tI) + ½‖u + g v‖² − ½d,      u = ((Σ + tI)^−½ (y − m), √d),

so that the energy is low only where d + 1 numbers are small at once. With several components, G + g r is
−log Σₖ wₖ exp(−…) of these.

The noise may be added in units of its own, `NoiseUnits`: y is then a function of the state z without noise, all of the
above is about y, and the energy of z is E(y(z), t) − log |dy/dz|.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import serialization
from tfp_ebm.arguments import check_bool, check_count, check_event_shape, check_positive
from tfp_ebm.energy.moments import FULL_COVARIANCE_LIMIT
from tfp_ebm.networks.conditional import FixedCondition
from tfp_ebm.networks.noise_units import NoiseUnits
from tfp_ebm.networks.noisy_mixture import NoisyMixture
from tfp_ebm.networks.normalized import is_normalized

# α, c, and where w falls from 1 to 0: at this multiple of the data's largest distance, over this share of that value.
_GROWTH, _MARGIN, _REACH, _STEEPNESS = 0.8, 8.0, 1.5, 8.0
# Rows evaluated at once.
_BLOCK = 8192


@keras.saving.register_keras_serializable("tfp_ebm")
class NoiseLevelEnergy(keras.Model):
    """A network of (y, σ) that is a known mixture at the largest level, and grows far from the data.

    `EnergyModel.adapt` fits the mixture to the data. Until then it is N(0, I). With one component it is the Gaussian of
    the data's mean and covariance, which is diagonal for more than 512 coordinates. Several components differ in the
    first 50 principal coordinates of the data.

    Args:
      network: the residual r, a Keras model of [y, σ], `[batch, *event]` and `[batch]`, to `[batch, 1]`; or v, with the
        output `[batch, d + 1]`.
      sigma_max: √T, the noise scale at which the energy is that of the mixture.
      num_components: number of Gaussians in the mixture; small data get fewer.
      is_bounded: whether all coordinates of the data have one known range, such as pixels. It is that of the rows of
        `EnergyModel.adapt`. The energy outside of it then grows at least as that of noise.
      adapts_units: whether noise is added in units without heavy tails and almost collinear columns, `NoiseUnits`, that
        `EnergyModel.adapt` finds. Where the data have neither, they are the same units.
      **kwargs: passed to `keras.Model`.

    Raises:
      TypeError, ValueError: if an argument is not of the form above.

    Reference: F. Guth, Z. Kadkhodaie, E. Simoncelli, Learning normalized image densities via dual score matching, 2025,
    arXiv:2506.05310.

    >>> y, sigma = keras.Input((2,)), keras.Input(())
    >>> from tfp_ebm.networks.noise_level_features import NoiseLevelFeatures
    >>> h = NoiseLevelFeatures(4, seed=0)(y, sigma)
    >>> network = NoiseLevelEnergy(keras.Model([y, sigma], keras.layers.Dense(1)(h)), sigma_max=10.0)
    >>> energy = network(tf.zeros([1, 2]), tf.constant([10.0]))  # log 2π(1 + 10²)
    >>> abs(float(energy[0]) - math.log(2.0 * math.pi * 101.0)) < NoiseLevelEnergy.ANCHOR_ERROR
    True
    """

    # Bound of |log Z| at the largest level: the softplus adds at most exp(−c) where the Gaussian has its mass.
    ANCHOR_ERROR = 1e-3

    def __init__(
        self,
        network: keras.Model,
        sigma_max: float,
        num_components: int = 1,
        is_bounded: bool = False,
        adapts_units: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float64" if network.compute_dtype == "float64" else "float32")
        super().__init__(**kwargs)
        self.network = network
        self.sigma_max = check_positive("sigma_max", sigma_max)
        count = check_count("num_components", num_components)
        self.event_shape = check_event_shape(network.inputs[0].shape[1:])
        size = math.prod(self.event_shape)
        width = network.outputs[0].shape[-1]
        if width not in (1, size + 1):
            raise ValueError(f"`network` must return 1 or {size + 1} numbers for each state, got {width}.")
        check_bool("is_bounded", is_bounded)
        if check_bool("adapts_units", adapts_units) and (is_bounded or size > FULL_COVARIANCE_LIMIT):
            limit = FULL_COVARIANCE_LIMIT
            raise ValueError(f"`adapts_units` must be False with `is_bounded`, and for more than {limit} coordinates.")

        def weight(name: str, shape: tuple[int, ...], initializer: Any = "zeros", **others: Any) -> keras.Variable:
            return self.add_weight(shape=shape, initializer=initializer, trainable=False, name=name, **others)

        self.mixture = NoisyMixture(size, count, dtype=self.dtype, name="mixture")
        self.reach = weight("reach", (), keras.initializers.Constant(_smallest_reach(size)))
        self.is_bounded = is_bounded
        self.bounds = weight("bounds", (2,)) if is_bounded else None
        self.noise_units = NoiseUnits(size, dtype=self.dtype, name="noise_units") if adapts_units else None
        self.levels_matched = weight("levels_matched", (), dtype="int32")
        self.built = True

    @property
    def input_shape(self) -> list[tuple[int | None, ...]]:
        """The shapes of a batch and its noise scales."""
        return [(None, *self.event_shape), (None,)]

    def adapt_to(self, rows: np.ndarray) -> None:
        """Fits the mixture to rows `[rows, *event]` in the network's coordinates, and finds how far out they are."""
        flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
        if self.noise_units is not None:
            self.noise_units.adapt_to(flat)
            flat = np.asarray(self.noise_units.to_y(tf.constant(flat, self.dtype)), np.float64)
        self.mixture.adapt_to(flat)
        if self.bounds is not None:
            self.bounds.assign([flat.min(), flat.max()])
        far = 0.0
        for part in np.array_split(flat, -(-len(flat) // _BLOCK)):
            y, sigma = (tf.constant(value, self.dtype) for value in (part, np.full(len(part), 1e-6)))
            far = max(far, float(tf.reduce_max(self.mixture.terms(y, sigma).distance)))
        self.reach.assign(max(_smallest_reach(flat.shape[1]), far))

    def mark_levels_as_matched(self) -> None:
        """Notes that a loss learns the constants of all levels, so that log Z = 0 at each."""
        self.levels_matched.assign(1)

    def reference(self, sigma: float) -> tfp.distributions.Distribution:
        """Returns the mixture plus noise of scale σ, over states `[*event]`, which is p_σ at the largest level."""
        return self.mixture.distribution(sigma, self.event_shape)

    def unnormalized_log_prob(self, y: tf.Tensor, sigma: tf.Tensor) -> tf.Tensor:
        """Returns −E(y, σ), `[batch]`, in the units of the noise: a target of `mcmc.anneal_noise_levels`."""
        return -self._energy_of_noisy(y, tf.reshape(sigma, [-1]), training=False)

    def to_state(self, y: tf.Tensor) -> tf.Tensor:
        """Returns the state z of y, which is in the units of the noise."""
        return y if self.noise_units is None else self.noise_units.to_z(y)

    def gate(self, sigma: tf.Tensor) -> tf.Tensor:
        """Returns g(t), from 1 at t = 0 to 0 at T and beyond."""
        last = 1.0 / (1.0 + self.sigma_max**2)
        return tf.nn.relu(1.0 / (1.0 + tf.square(sigma)) - last) / (1.0 - last)

    def call(self, z: tf.Tensor, sigma: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns E(z, σ), `[batch]`, of states `[batch, *event]` and noise scales `[batch]`."""
        sigma, units = tf.reshape(sigma, [-1]), self.noise_units
        if units is None:
            return self._energy_of_noisy(z, sigma, training)
        return self._energy_of_noisy(units.to_y(z), sigma, training) - units.log_slope(z)

    def _energy_of_noisy(self, y: tf.Tensor, sigma: tf.Tensor, training: bool) -> tf.Tensor:
        residual, size = tf.cast(self.network([y, sigma], training=training), y.dtype), self.mixture.size
        residual, flat = residual * self.gate(sigma)[:, None], tf.reshape(y, [-1, size])
        if residual.shape[1] == 1:
            energy, distance, volume, _ = self.mixture.terms(flat, sigma)
            residual = residual[:, 0]
        else:
            energy, distance, volume, slope = self.mixture.terms(flat, sigma, residual[:, :size])
            residual = slope + math.sqrt(size) * residual[:, size] + 0.5 * tf.reduce_sum(tf.square(residual), 1)
        lowest = 0.5 * size * tf.math.log(2.0 * math.pi * tf.square(sigma)) - _MARGIN
        if self.bounds is not None:
            outside = flat - tf.clip_by_value(flat, self.bounds[0], self.bounds[1])
            lowest += 0.5 * tf.reduce_sum(tf.square(outside), 1) / tf.square(sigma)
        near = tf.sigmoid(_STEEPNESS * (1.0 - distance / (_REACH * self.reach.value)))
        floor = near * lowest + (1.0 - near) * (_GROWTH * energy + (1.0 - _GROWTH) * volume)
        above = near * (energy - lowest) + (1.0 - near) * (1.0 - _GROWTH) * (energy - volume)
        return floor + tf.nn.softplus(above + residual)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        network = serialization.serialized_part(self.network)
        arguments = {"network": network, "sigma_max": self.sigma_max, "num_components": self.mixture.num_components}
        arguments |= {"is_bounded": self.is_bounded, "adapts_units": self.noise_units is not None}
        return {"name": self.name, "dtype": self.dtype, **arguments}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> NoiseLevelEnergy:
        """Rebuilds the network from `get_config`."""
        return cls(**{**config, "network": keras.saving.deserialize_keras_object(config["network"], custom_objects)})


def _smallest_reach(size: int) -> float:
    """Returns the distance ½‖z‖² that a normal z of that many coordinates hardly exceeds: four deviations and 4."""
    return 0.5 * size + 4.0 * math.sqrt(0.5 * size) + 4.0


def adapt_noise_levels(network: Any, blocks: Iterable[np.ndarray], to_z: Any) -> None:
    """Fits the mixture of a `NoiseLevelEnergy` to rows of x, which `to_z` standardises; other networks stay as is.

    Raises:
      ValueError: if there are no rows, because the source could be read only once.
    """
    if not isinstance(network, NoiseLevelEnergy):
        return
    rows = [np.asarray(to_z(tf.cast(block, network.dtype)), np.float64) for block in blocks]
    if not rows:
        raise ValueError("`x` must be data that can be read twice for this network, such as an array or a dataset.")
    network.adapt_to(np.concatenate(rows))


def level_of(model: Any) -> tuple[NoiseLevelEnergy, float] | None:
    """Returns the `NoiseLevelEnergy` of a model at one noise scale up to σ_max, and this scale; else None."""
    fixed = getattr(model, "network", None)
    if getattr(model, "base_measure", None) is not None or not isinstance(fixed, FixedCondition):
        return None
    network, sigma = fixed.network, fixed.condition
    return (network, sigma) if isinstance(network, NoiseLevelEnergy) and 0.0 < sigma <= network.sigma_max else None


def has_log_normalizer_zero(model: Any) -> bool:
    """Returns whether log Z of a model is 0: by construction, or at a fixed noise level whose constant was learned."""
    found = level_of(model)
    if found is None:
        return is_normalized(model)
    network, _ = found
    with tf.init_scope():  # a fact, not a tensor, also while a function is traced
        return bool(network.levels_matched.value.numpy())
