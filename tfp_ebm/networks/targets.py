"""Autoregressive energies of targets given inputs: −log p(y | x) with log Z = 0 for every x, for y in few coordinates.

Each target has a conditional as in `autoregressive.py`, an energy on the line with a normaliser of its own, whose
parameters are outputs of a masked network: those of target i see all inputs and the targets before i,

    E(y; x) = −Σᵢ log p(yᵢ | x, y_<i).

A network can start at a linear regression, or have the conditionals of a Gaussian mixture of (x, y) as proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import random, serialization
from tfp_ebm.arguments import check_count, check_probability
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks.autoregressive import AutoregressiveEnergy, bounded
from tfp_ebm.networks.conditionals import LOG_SCALE_LIMIT, Conditionals, FreeConditionals, MixtureConditionals
from tfp_ebm.networks.lattice import lattice
from tfp_ebm.networks.masked import MaskedNetwork
from tfp_ebm.networks.normalized import NormalizedEnergy, check_probs, in_blocks
from tfp_ebm.networks.supports import Features
from tfp_ebm.networks.target_maps import TargetMap


class MixtureOfTargets(MixtureConditionals):
    """The conditionals p(yᵢ | x, y_<i) of a Gaussian mixture of rows (x, y).

    Args:
      num_inputs, num_targets: columns of x and of y.
      num_components: components of the mixture.
    """

    def __init__(self, num_inputs: int, num_targets: int, num_components: int, **kwargs: Any) -> None:
        super().__init__(num_inputs + num_targets, num_components, **kwargs)
        self.num_inputs = num_inputs

    def call(self, x: tf.Tensor, outputs: Any = None) -> Conditionals:
        """Returns the proposals `[batch, num_targets, num_components]` at rows (x, y) `[batch, size]`."""
        return Conditionals(*(value[:, self.num_inputs :] for value in super().call(x, outputs)))


@keras.saving.register_keras_serializable("tfp_ebm")
class TargetEnergy(AutoregressiveEnergy):
    """The energy −log p(y | x) of rows (x, y): an autoregressive energy without the factors of the first columns.

    Args:
      num_inputs: columns of x, which stand first.
      num_targets: columns of y.
      units, num_components, fixed_proposal, num_functions, dropout, num_nodes, seed: as for `AutoregressiveEnergy`.

    >>> TargetEnergy(3, 1, units=(8,))(tf.zeros([2, 4])).shape
    TensorShape([2])
    """

    def __init__(
        self,
        num_inputs: int,
        num_targets: int,
        units: Sequence[int] = (128, 128),
        num_components: int = 8,
        num_functions: int = 32,
        dropout: float = 0.0,
        num_nodes: tuple[int, int] = (64, 128),
        seed: int = 0,
        fixed_proposal: bool = False,
        **kwargs: Any,
    ) -> None:
        config: dict[str, Any] = {
            "num_inputs": check_count("num_inputs", num_inputs),
            "num_targets": check_count("num_targets", num_targets),
            "units": tuple(check_count("units", width) for width in units),
            "num_components": check_count("num_components", num_components),
            "num_functions": check_count("num_functions", num_functions),
            "dropout": check_probability("dropout", dropout),
            "seed": int(seed),
            "fixed_proposal": bool(fixed_proposal),
        }
        size = num_inputs + num_targets
        # not that of `AutoregressiveEnergy`, which would make a network for all columns
        NormalizedEnergy.__init__(self, [size], **kwargs)
        self.num_inputs, self.num_targets, self._config = num_inputs, num_targets, config
        self._config["allows_missing"] = False
        self.order, self.num_functions = tuple(range(size)), num_functions
        self.num_nodes = (check_count("num_nodes", num_nodes[0], 4), check_count("num_nodes", num_nodes[1], 4))
        self.proposal: Any = FreeConditionals(num_components)
        if fixed_proposal:
            self.proposal = MixtureOfTargets(num_inputs, num_targets, num_components, dtype=self.dtype)
        self.lines, self.value_conditionals = np.arange(num_targets), None
        self.features = Features([None] * size, False)
        self._num_outputs = num_components * num_functions
        self.trunk = MaskedNetwork(
            num_targets,
            units[0],
            len(units),
            self._num_outputs + self.proposal.num_outputs,
            dropout,
            seed,
            inputs=np.concatenate([np.zeros(num_inputs, int), np.arange(1, num_targets + 1)]),
            least_degree=0,
            dtype=self.dtype,
        )
        self.seen_range = self.add_weight(shape=(2, size), initializer="zeros", trainable=False, name="seen_range")
        self.seen_range.assign(np.array([[-np.inf], [np.inf]]) * np.ones(size))
        self.built = True

    def start_at(self, mixture: MixtureParameters, order: Sequence[int] | None = None) -> None:
        """Makes the conditionals of a mixture of rows (x, y) the proposals; free ones start at those of one Gaussian.

        The network's outputs are linear then: p(yᵢ | x, y_<i) is a linear regression with noise that is about Gaussian.

        Args:
          mixture: in the network's units; one component, unless the proposals are fixed.
          order: which of its columns each column of the network is; default: as they come.
        """
        columns = list(self.order if order is None else order)
        factors = np.broadcast_to(mixture.scale_tril, (len(mixture.probs), *mixture.scale_tril.shape[-2:]))[:, columns]
        covariance, centre = factors @ factors.transpose(0, 2, 1), mixture.loc[:, columns]
        if self.is_proposal_fixed:
            self.proposal.assign(mixture.probs, centre, covariance)
            return
        inverse = np.linalg.inv(np.linalg.cholesky(covariance[0]))
        slopes = -inverse / np.diag(inverse)[:, None]  # xᵢ given those before is N(xᵢ − Lᵢᵢ uᵢ, Lᵢᵢ²), u = L⁻¹(x − m)
        number = self.proposal.num_components
        last: Any = self.trunk.last
        skip: Any = self.trunk.skip
        bias, kernel = np.zeros(last.bias.shape), np.zeros(skip.kernel.shape)
        for target, place in enumerate(range(self.num_inputs, len(self.order))):
            first = target * self.trunk.num_outputs + self._num_outputs  # after the energies
            logits, loc, log_scale = (slice(first + i * number, first + (i + 1) * number) for i in range(3))
            scale = 1.0 / inverse[place, place]
            bias[logits] = self.proposal.normal_logits
            kernel[:place, loc] = slopes[place, :place, None]
            bias[loc] = centre[0, place] - slopes[place, :place] @ centre[0, :place]
            bias[loc] += (scale - 1.0) * self.proposal.centres
            share = np.clip(np.log(scale) / LOG_SCALE_LIMIT, -0.99, 0.99)
            bias[log_scale] = LOG_SCALE_LIMIT * np.arctanh(share)
        skip.kernel.assign(kernel)
        last.bias.assign(bias)

    def log_conditionals(self, y: tf.Tensor, num_nodes: int, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Returns log p(yᵢ | x, y_<i), `[batch, num_targets]`, of rows (x, y) `[batch, size]`."""
        proposal, outputs = self.conditionals(y, None if seed is None else random.fold_in(seed, 0))
        shift = tf.constant(0.5, y.dtype) if seed is None else random.uniform([], random.fold_in(seed, 1), y.dtype)
        return self._log_densities(y[:, self.num_inputs :], proposal, outputs, num_nodes, shift)

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Raises NotImplementedError: x has no distribution here; `draw_given` draws y."""
        raise NotImplementedError("a TargetEnergy has no distribution of x; use `draw_given`.")

    def draw_given(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns one exact draw of y `[batch, num_targets]` for each x `[batch, num_inputs]`."""
        count, size = self.num_inputs, self.num_targets
        u = random.uniform(tf.stack([tf.shape(x)[0], 2 * size]), seed, self.dtype)

        def block(rows: tf.Tensor) -> tf.Tensor:
            given, below = rows[:, :count], rows[:, count:]
            y = tf.zeros_like(below[:, :size])
            for i in range(size):
                at = tf.constant(i)
                proposal, outputs = self.at_coordinate(tf.concat([given, y], 1), at)
                drawn = self.invert(proposal, outputs, at, below[:, i], below[:, size + i])
                y = tf.where(tf.range(size) == i, drawn[:, None], y)
            return y

        return in_blocks(block, tf.concat([x, u], 1), self._rows_per_block(2 * self.num_nodes[1]) * len(self.order))

    def first_target(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns places and masses `[batch, components · nodes]` that integrate functions of y₁ given x."""
        proposal, outputs = self.at_coordinate(tf.pad(x, [[0, 0], [0, self.num_targets]]), tf.constant(0))
        grid = lattice(self.proposal.family, 2 * self.num_nodes[1], tf.constant(0.5, x.dtype))
        energies = tf.tensordot(self.coefficients(outputs), self.functions(grid.nodes), [[-1], [-1]])
        log_mass = proposal.log_probs[..., None] + grid.log_weights - bounded(energies)
        places = proposal.loc[..., None] + tf.exp(proposal.log_scale)[..., None] * grid.nodes
        flat = [tf.reshape(part, [tf.shape(x)[0], -1]) for part in (places, log_mass)]
        return flat[0], tf.nn.softmax(flat[1], -1)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        own = {name: value for name, value in self._config.items() if name != "allows_missing"}
        return {"name": self.name, "dtype": self.dtype, **own, "num_nodes": self.num_nodes}


@keras.saving.register_keras_serializable("tfp_ebm")
class RegressionEnergy(keras.Model):
    """The network −log p(y | x) of y and the condition x: a mixture of `TargetEnergy` networks.

    Args:
      networks: each a `TargetEnergy` of rows ((x − x_loc)/x_scale, v), where v are the targets, or what `target_map`
        makes of them, in the order of the network.
      x_loc, x_scale: arrays `[num_inputs]`.
      orders: for each network the order of the targets in which each depends on those before; default: as they come.
      target_map: a `TargetMap`, for targets with bounds.
      probs: weights of the networks; default: equal ones.

    >>> network = RegressionEnergy([TargetEnergy(3, 1, units=(8,))])
    >>> network(tf.zeros([2, 1]), tf.zeros([2, 3])).shape
    TensorShape([2])
    """

    is_normalized = True  # for every condition

    def __init__(
        self,
        networks: Sequence[TargetEnergy],
        x_loc: Any = None,
        x_scale: Any = None,
        orders: Sequence[Sequence[int]] | None = None,
        target_map: TargetMap | None = None,
        probs: Any = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", networks[0].dtype)
        super().__init__(**kwargs)
        self.networks = list(networks)
        as_they_come = [range(networks[0].num_targets)] * len(networks)
        self.orders = tuple(tuple(int(i) for i in order) for order in (orders or as_they_come))
        self.target_map = target_map
        number = len(self.networks)
        self.probs: np.ndarray = check_probs(np.full(number, 1.0 / number) if probs is None else probs, number)
        shape = (networks[0].num_inputs,)
        self.x_loc = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="x_loc")
        self.x_scale = self.add_weight(shape=shape, initializer="ones", trainable=False, name="x_scale")
        if x_loc is not None:
            self.x_loc.assign(x_loc)
        if x_scale is not None:
            self.x_scale.assign(x_scale)
        self.built = True

    @property
    def input_shape(self) -> list[tuple[int | None, ...]]:
        """The shapes of batches of y and of x."""
        return [(None, self.networks[0].num_targets), (None, self.networks[0].num_inputs)]

    def inputs_of(self, x: tf.Tensor) -> tf.Tensor:
        """Returns inputs `[batch, num_inputs]`, or `[batch]` if they are single, in the units of the networks."""
        x = tf.reshape(x, [-1, self.networks[0].num_inputs])
        return (x - self.x_loc.value) / self.x_scale.value

    def call(self, y: tf.Tensor, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns −log p(y | x), `[batch]`, of targets and inputs `[batch, ...]`."""
        del training
        inputs, log_slope = self.inputs_of(x), None
        if self.target_map is not None:
            y, log_slope = self.target_map.forward(y)
        energies = [
            network(tf.concat([inputs, tf.gather(y, order, axis=1)], 1))
            for network, order in zip(self.networks, self.orders, strict=True)
        ]
        energy = -tf.reduce_logsumexp(tf.constant(np.log(self.probs), y.dtype) - tf.stack(energies, -1), -1)
        return energy if log_slope is None else energy - log_slope

    def draw_given(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns one exact draw of y `[batch, num_targets]` for each x `[batch, num_inputs]`."""
        z, count = self.inputs_of(x), len(self.networks)
        draws = [
            tf.gather(network.draw_given(z, random.fold_in(seed, i)), np.argsort(order), axis=1)
            for i, (network, order) in enumerate(zip(self.networks, self.orders, strict=True))
        ]
        u = random.uniform(tf.shape(x)[:1], random.fold_in(seed, count), x.dtype)
        below = tf.constant(np.cumsum(self.probs)[:-1], u.dtype)
        chosen = tf.reduce_sum(tf.cast(u[:, None] > below, tf.int32), -1)
        drawn = tf.gather(tf.stack(draws, 1), chosen, axis=1, batch_dims=1)
        return drawn if self.target_map is None else self.target_map.inverse(drawn)

    def first_target(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns places and masses `[batch, number]` that integrate functions of the only target given x."""
        parts = [network.first_target(self.inputs_of(x)) for network in self.networks]
        parts = [(place, mass * prob) for (place, mass), prob in zip(parts, self.probs, strict=True)]
        places, masses = (tf.concat(part, 1) for part in zip(*parts, strict=True))
        if self.target_map is not None:
            places = tf.reshape(self.target_map.inverse(tf.reshape(places, [-1, 1])), tf.shape(places))
        return places, masses

    def given(self, x: Any) -> GivenInputs:
        """Returns the network of y alone for one x."""
        return GivenInputs(self, x)

    def get_config(self) -> dict[str, Any]:
        """Returns the networks, for Keras."""
        networks = [serialization.serialized_part(network) for network in self.networks]
        target_map = None if self.target_map is None else keras.saving.serialize_keras_object(self.target_map)
        own = {"networks": networks, "orders": self.orders, "target_map": target_map, "probs": self.probs.tolist()}
        return {"name": self.name, "dtype": self.dtype, **own}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> RegressionEnergy:
        """Rebuilds the network from `get_config`."""
        parts = {"target_map": None, **config}
        networks = [keras.saving.deserialize_keras_object(part, custom_objects) for part in parts["networks"]]
        if parts["target_map"] is not None:
            parts["target_map"] = keras.saving.deserialize_keras_object(parts["target_map"], custom_objects)
        return cls(**{**parts, "networks": networks})


@keras.saving.register_keras_serializable("tfp_ebm")
class GivenInputs(NormalizedEnergy):
    """The energy −log p(y | x) of y for one x; it shares the weights of a `RegressionEnergy` and draws exactly.

    Args:
      network: a `RegressionEnergy`.
      x: one row of inputs, `[num_inputs]`.

    >>> network = RegressionEnergy([TargetEnergy(3, 1, units=(8,))])
    >>> GivenInputs(network, [0.0, 0.0, 0.0]).draw(4, tf.constant([0, 1])).shape
    TensorShape([4, 1])
    """

    def __init__(self, network: RegressionEnergy, x: Any, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", network.dtype)
        kwargs.pop("event_shape", None)
        super().__init__([network.networks[0].num_targets], **kwargs)
        self.network = network
        self.x: np.ndarray = np.asarray(x, network.dtype)
        if self.x.shape != (network.networks[0].num_inputs,) or not np.isfinite(self.x).all():
            raise ValueError(f"`condition` must be {network.networks[0].num_inputs} finite numbers, got {self.x}.")
        self.built = True

    @property
    def input_shape(self) -> Any:
        """None, so that `EnergyModel.given` can share the units of another model before it builds this one."""
        return None

    def _repeated(self, number: Any) -> tf.Tensor:
        return tf.tile(tf.constant(self.x)[None], tf.stack([number, 1]))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns −log p(y | x), `[batch]`, of targets `[batch, num_targets]`."""
        return self.network(x, self._repeated(tf.shape(x)[0]), training=training)

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns exact samples of y, `[num_samples, num_targets]`."""
        return self.network.draw_given(self._repeated(num_samples), seed)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {
            **super().get_config(),
            "network": serialization.serialized_part(self.network),
            "x": self.x.tolist(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> GivenInputs:
        """Rebuilds the network from `get_config`."""
        return cls(**{**config, "network": keras.saving.deserialize_keras_object(config["network"], custom_objects)})
