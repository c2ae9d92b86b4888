"""Mixtures of conditional densities: p(x | c) = Σₖ wₖ pₖ(x | c), with log Z = 0 for every c as all parts have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import random, serialization
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.normalized import AffineEnergy, DistributionEnergy, MixtureEnergy, NormalizedEnergy, check_probs
from tfp_ebm.networks.packed_conditions import packed


def is_conditional_model(part: Any) -> bool:
    """Returns whether a part is an `EnergyModel` of x and a condition."""
    return isinstance(part, EnergyModel) and part.is_conditional


class OfConditionalParts:
    """What a network of z and a condition has of its `parts`, of which one at least takes the condition."""

    parts: list[Any]
    event_shape: tuple[int, ...]

    def _conditional_part(self) -> EnergyModel:
        return next(part for part in self.parts if is_conditional_model(part))

    @property
    def own_condition_spec(self) -> tf.TensorSpec:
        """Shape and dtype of one condition."""
        return self._conditional_part().energy_function.condition_spec

    @property
    def input_shape(self) -> Any:
        """The shapes of batches of z and of conditions."""
        return [(None, *self.event_shape), (None, *self.own_condition_spec.shape)]

    def pack(self, conditions: Any, name: str = "condition") -> Any:
        """Returns a dictionary of conditions as the parts take it."""
        return packed(self._conditional_part().network, conditions, name)


def draws_exactly_given(part: Any) -> bool:
    """Returns whether a part is a conditional model that is normalised and draws exactly, for every condition."""
    if not is_conditional_model(part) or part.base_measure is not None:
        return False
    return getattr(part.network, "is_normalized", False) and hasattr(part.network, "draw_given")


def in_units(part: Any, loc: np.ndarray, scale: np.ndarray) -> NormalizedEnergy:
    """Returns a part as a network of z = (x − loc)/scale."""
    network, part_loc, part_scale = part, 0.0, 1.0
    if isinstance(part, NormalizedEnergy):
        network = part
    elif isinstance(part, EnergyModel):
        network = part.network
        part_loc, part_scale = np.asarray(part.standardization.loc), np.asarray(part.standardization.scale)
    else:
        network = DistributionEnergy(part)
    shift, stretch = (loc - part_loc) / part_scale, scale / part_scale
    if np.all(shift == 0.0) and np.all(stretch == 1.0):
        return network
    return AffineEnergy(network, shift, stretch, dtype=network.dtype)


@keras.saving.register_keras_serializable("tfp_ebm")
class ConditionalMixtureEnergy(OfConditionalParts, keras.Model):
    """The network −log Σₖ wₖ pₖ(x | c) of z and c, with x = loc + scale·z.

    Args:
      parts: each a normalised `EnergyModel`, conditional or not, or a `DistributionEnergy` of x; one at least is
        conditional, and all that are take one kind of condition.
      probs: weights wₖ.
      loc, scale: arrays of the event shape.

    >>> from tfp_ebm.networks.targets import RegressionEnergy, TargetEnergy
    >>> parts = [EnergyModel(RegressionEnergy([TargetEnergy(3, 1, units=(8,))])) for _ in range(2)]
    >>> network = ConditionalMixtureEnergy(parts, [0.5, 0.5])
    >>> network(tf.zeros([4, 1]), tf.zeros([4, 3])).shape
    TensorShape([4])
    """

    is_normalized = True  # for every condition

    def __init__(self, parts: Sequence[Any], probs: Any, loc: Any = 0.0, scale: Any = 1.0, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", np.result_type(*(part.dtype for part in parts)).name)
        super().__init__(**kwargs)
        self.parts, self.event_shape = list(parts), tuple(parts[0].event_shape)
        specs = {str(part.energy_function.condition_spec) for part in parts if is_conditional_model(part)}
        if len(specs) != 1:
            raise ValueError(f"`parts` must take one kind of condition, got {' and '.join(sorted(specs)) or 'none'}.")
        weights = check_probs(probs, len(parts))
        self.probs = self.add_weight(shape=weights.shape, initializer="zeros", trainable=False, name="probs")
        self.probs.assign(weights)
        self.loc, self.scale = (
            self.add_weight(shape=self.event_shape, initializer="zeros", trainable=False, name=name)
            for name in ("loc", "scale")
        )
        self.loc.assign(np.broadcast_to(loc, self.event_shape))
        self.scale.assign(np.broadcast_to(scale, self.event_shape))
        self.built = True

    def call(self, z: tf.Tensor, condition: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns −log p(z | c), `[batch]`, of states `[batch, *event]` and conditions `[batch, *condition]`."""
        scale = self.scale.value
        x = self.loc.value + scale * z
        energies = []
        for part in self.parts:
            at = tf.cast(x, part.dtype)
            energy = part([at, condition] if is_conditional_model(part) else at, training=training)
            energies.append(tf.cast(energy, self.dtype))
        mixed = -tf.reduce_logsumexp(tf.math.log(self.probs.value) - tf.stack(energies, -1), -1)
        return mixed - tf.reduce_sum(tf.math.log(scale))

    def draw_given(self, condition: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns one exact draw of z, `[batch, *event]`, for each condition `[batch, *condition]`."""
        number, draws = tf.shape(condition)[0], []
        for i, part in enumerate(self.parts):
            own = random.fold_in(seed, i)
            if isinstance(part, NormalizedEnergy):
                x = part.draw(number, own)
            elif is_conditional_model(part):
                x = part.standardization.to_x(part.network.draw_given(condition, own))
            else:
                x = part.standardization.to_x(part.network.draw(number, own))
            draws.append(tf.cast(x, self.dtype))
        u = random.uniform(tf.reshape(number, [1]), random.fold_in(seed, len(self.parts)), self.dtype)
        chosen = tf.reduce_sum(tf.cast(u[:, None] > tf.cumsum(self.probs.value)[:-1], tf.int32), -1)
        x = tf.gather(tf.stack(draws, 1), chosen, axis=1, batch_dims=1)
        return (x - self.loc.value) / self.scale.value

    def given(self, condition: Any) -> GivenMixtureEnergy:
        """Returns the network of z alone for one condition."""
        loc, scale = np.asarray(self.loc), np.asarray(self.scale)
        networks = []
        for part in self.parts:
            one = part.given(condition) if is_conditional_model(part) else part
            networks.append(in_units(one, loc, scale))
        return GivenMixtureEnergy(networks, np.asarray(self.probs), dtype=self.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras; loc and scale are weights."""
        parts = [serialization.serialized_part(part) for part in self.parts]
        return {"name": self.name, "dtype": self.dtype, "parts": parts, "probs": np.asarray(self.probs).tolist()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ConditionalMixtureEnergy:
        """Rebuilds the network from `get_config`."""
        parts = [keras.saving.deserialize_keras_object(part, custom_objects) for part in config["parts"]]
        return cls(**{**config, "parts": parts})


@keras.saving.register_keras_serializable("tfp_ebm")
class GivenMixtureEnergy(MixtureEnergy):
    """A mixture for one condition, whose model takes the units of the conditional model."""

    @property
    def input_shape(self) -> Any:
        """None, so that `EnergyModel.given` can share the units of another model before it builds this one."""
        return None
