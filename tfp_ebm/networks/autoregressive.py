"""Autoregressive energies: densities of tables that know their own log Z (Nash & Durkan 2019, arXiv:1904.05626).

The density is a product of conditionals, each an energy on the line with a normaliser of its own,

    p(x) = Πᵢ q(xᵢ | x_<i) exp(−e(xᵢ; cᵢ)) / Zᵢ,      Zᵢ = ∫ q(x | x_<i) exp(−e(x; cᵢ)) dx,

so that E(x) = −log p(x) and log Z = 0 (eqs. 1-3). A masked network gives, for each coordinate, a context cᵢ and the
parameters of a proposal q; one small network, shared by all coordinates, gives e. Zᵢ is a one-dimensional integral, by
the lattice of `lattice.py`. Two rules keep training honest. e is bounded, and saturates far from q's centre, where no
node would see it. And in training no gradient of the energy part reaches q, which learns by its own likelihood: else
q moves the nodes to where they miss the mass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random
from tfp_ebm.arguments import check_count, check_event_shape, check_probability
from tfp_ebm.networks.conditionals import Conditionals, FreeConditionals, MixtureConditionals
from tfp_ebm.networks.lattice import lattice
from tfp_ebm.networks.masked import MaskedNetwork
from tfp_ebm.networks.normalized import NormalizedEnergy, in_blocks

# |e| stays below this: a factor of exp(±10) on the proposal.
_MAX_ENERGY = 10.0
# Numbers of the energy head that one block of rows may hold.
_MAX_NUMBERS = 2**24


@keras.saving.register_keras_serializable("tfp_ebm")
class AutoregressiveEnergy(NormalizedEnergy):
    """A network E(x) = −Σᵢ log p(xᵢ | x_<i), whose log Z is 0; `networks.autoregressive` makes it.

    Args:
      event_shape: shape of one state; it is flattened.
      units: widths of the masked network: one number for each pair of layers, all equal.
      order: the coordinates in the order of their dependence.
      num_components: logistics in each proposal, or components of the Gaussian mixture whose conditionals the proposals
        are.
      fixed_proposal: whether the proposals are the conditionals of a Gaussian mixture, set by `proposal.assign`.
      context: numbers in the context of each coordinate.
      head_units: widths of the two layers of the energy e.
      dropout: share of hidden units that training drops.
      num_nodes: nodes of the lattice in training and for all else, in all components together.
      seed: of the initial weights.

    >>> import tensorflow as tf
    >>> network = AutoregressiveEnergy([2], units=(8,))
    >>> network(tf.zeros([3, 2])).shape
    TensorShape([3])
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        units: Sequence[int] = (128, 128),
        order: Sequence[int] | None = None,
        num_components: int = 1,
        fixed_proposal: bool = False,
        context: int = 32,
        head_units: Sequence[int] = (32, 32),
        dropout: float = 0.0,
        num_nodes: tuple[int, int] = (32, 64),
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(event_shape, **kwargs)
        size = int(np.prod(self.event_shape))
        order = tuple(range(size)) if order is None else tuple(int(i) for i in order)
        if sorted(order) != list(range(size)):
            raise ValueError(f"`order` must be a permutation of 0 to {size - 1}, got {order}.")
        self._config: dict[str, Any] = {
            "units": tuple(check_count("units", width) for width in units),
            "order": order,
            "num_components": check_count("num_components", num_components),
            "fixed_proposal": bool(fixed_proposal),
            "context": check_count("context", context),
            "head_units": tuple(check_count("head_units", width) for width in head_units),
            "dropout": check_probability("dropout", dropout),
            "num_nodes": tuple(check_count("num_nodes", number, 4) for number in num_nodes),
            "seed": int(seed),
        }
        if len(set(units)) != 1 or len(head_units) != 2:
            raise ValueError(f"`units` must be equal widths and `head_units` two, got {units} and {head_units}.")
        self.order, self.context_size = order, context
        self.num_nodes: tuple[int, int] = self._config["num_nodes"]
        if fixed_proposal:
            self.proposal: Any = MixtureConditionals(order, num_components, dtype=self.dtype)
        else:
            self.proposal = FreeConditionals(num_components)
        self.trunk = MaskedNetwork(
            order, units[0], len(units), context + self.proposal.num_outputs, dropout, seed, dtype=self.dtype
        )
        rng = np.random.default_rng([seed, 1])
        wide, narrow = head_units

        def weight(name: str, value: np.ndarray) -> keras.Variable:
            variable = self.add_weight(shape=np.shape(value), initializer="zeros", name=name)
            variable.assign(value)
            return variable

        # Steps of all widths at all places within ±4 scales of the proposal.
        slopes = np.exp(rng.uniform(np.log(0.3), np.log(3.0), wide)) * rng.choice([-1.0, 1.0], wide)
        centres = rng.uniform(-4.0, 4.0, wide)
        self.slopes = weight("slopes", slopes)
        self.of_context = weight("of_context", rng.normal(size=(context, wide + narrow)) * context**-0.5)
        self.offsets = weight(
            "offsets", np.concatenate([np.tile(-slopes * centres, (size, 1)), np.zeros((size, narrow))], 1)
        )
        self.hidden = weight("hidden", rng.normal(size=(wide, narrow)) * wide**-0.5)
        self.output_kernel = weight("output_kernel", np.zeros(narrow))
        self.built = True

    # --- the density ---------------------------------------------------------------------------------------------

    def conditionals(self, x: tf.Tensor, seed: tf.Tensor | None = None) -> tuple[Conditionals, tf.Tensor]:
        """Returns proposals and contexts `[batch, size, context]` at states `[batch, size]`."""
        outputs = self.trunk(x, seed)
        context = tf.tanh(outputs[..., : self.context_size])
        return self.proposal(x, outputs[..., self.context_size :]), context

    def head(self, t: tf.Tensor, context: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
        """Returns e, `[..., nodes]`, of t `[..., nodes]`, the place in units of the proposal's scale."""
        wide = self.slopes.shape[0]
        shift = tf.tensordot(context, self.of_context.value, 1) + offsets
        hidden = tf.tanh(t[..., None] * self.slopes.value + shift[..., None, :wide])
        hidden = tf.nn.silu(tf.tensordot(hidden, self.hidden.value, 1) + shift[..., None, wide:])
        energy = tf.tensordot(hidden, self.output_kernel.value, 1)
        return _MAX_ENERGY * tf.tanh(energy / _MAX_ENERGY)

    def nodes(self, proposal: Conditionals, num_nodes: int, shift: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns nodes of all components and their log weights, `[..., num_components·k]`."""
        each = max(4, -(-num_nodes // self.proposal.num_components))
        grid = lattice(proposal.family, each, shift)
        nodes = proposal.loc[..., None] + tf.exp(proposal.log_scale)[..., None] * grid.nodes
        log_weights = proposal.log_probs[..., None] + grid.log_weights
        shape = tf.concat([tf.shape(nodes)[:-2], [self.proposal.num_components * each]], 0)
        return tf.reshape(nodes, shape), tf.reshape(log_weights, shape)

    def log_conditionals(
        self, x: tf.Tensor, num_nodes: int, seed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns log q(xᵢ | x_<i) and −e − log Zᵢ, both `[batch, size]`; with a seed as training wants them."""
        proposal, context = self.conditionals(x, None if seed is None else random.fold_in(seed, 0))
        log_q = proposal.log_prob(x)
        shift = tf.fill(tf.stack([tf.shape(x)[0], x.shape[1], 1]), tf.constant(0.5, x.dtype))
        if seed is not None:
            proposal = proposal.stopped()
            shift = random.uniform(tf.shape(shift), random.fold_in(seed, 1), x.dtype)
        nodes, log_weights = self.nodes(proposal, num_nodes, shift)
        mean, scale = proposal.moments()
        places = (tf.concat([x[..., None], nodes], -1) - mean[..., None]) / scale[..., None]
        energies = self.head(places, context, self.offsets.value)
        return log_q, -energies[..., 0] - tf.reduce_logsumexp(log_weights - energies[..., 1:], -1)

    def _energy(self, x: tf.Tensor, num_nodes: int, seed: tf.Tensor | None = None) -> tf.Tensor:
        log_q, ratio = self.log_conditionals(x, num_nodes, seed)
        return -tf.reduce_sum(log_q + ratio, -1)

    def call(self, x: tf.Tensor, training: bool = False, num_nodes: int | None = None) -> tf.Tensor:
        """Returns E(x) = −log p(x), `[batch]`, of states `[batch, *event]`."""
        del training  # its random numbers need a seed, which `training_energy` takes
        flat = tf.reshape(x, [-1, len(self.order)])
        number = self.num_nodes[1] if num_nodes is None else num_nodes
        return in_blocks(lambda rows: self._energy(rows, number), flat, self._rows_per_block(number))

    def training_energy(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns −log p(x), `[batch]`, with a lattice that is shifted at random and with dropout."""
        return self._energy(tf.reshape(x, [-1, len(self.order)]), self.num_nodes[0], seed)

    def _rows_per_block(self, num_nodes: int) -> int:
        return max(1, _MAX_NUMBERS // (num_nodes * len(self.order) * max(self._config["head_units"])))

    # --- samples -------------------------------------------------------------------------------------------------

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns exact samples `[num_samples, *event]`: one coordinate after the other, by inverse distributions."""
        size = len(self.order)
        uniforms = random.uniform(tf.stack([num_samples, 2 * size]), seed, self.dtype)
        number = 2 * self.num_nodes[1]
        order = tf.constant(self.order)

        def step(place: tf.Tensor, x: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            i = order[place]
            proposal, context = self.conditionals(x)
            log_probs, loc, log_scale = (value[:, i] for value in proposal[:3])
            proposal = Conditionals(log_probs, loc, log_scale, proposal.family)
            drawn = self._invert(proposal, context[:, i], self.offsets.value[i], u[:, i], u[:, size + i], number)
            return place + 1, tf.where(tf.range(size) == i, drawn[:, None], x), u

        def block(u: tf.Tensor) -> tf.Tensor:
            start = (tf.constant(0), tf.zeros_like(u[:, :size]), u)
            return tf.while_loop(lambda place, *_: place < size, step, start, parallel_iterations=1)[1]

        x = in_blocks(block, uniforms, self._rows_per_block(number) * size)
        return tf.reshape(x, tf.concat([[num_samples], self.event_shape], 0))

    def _invert(
        self, proposal: Conditionals, context: tf.Tensor, offsets: tf.Tensor, u: tf.Tensor, v: tf.Tensor, num_nodes: int
    ) -> tf.Tensor:
        """Returns x `[batch]` with p(x | x_<i): u chooses the component, v the quantile within it."""
        shift = tf.fill(tf.stack([tf.shape(u)[0], 1]), tf.constant(0.5, u.dtype))
        nodes, log_weights = self.nodes(proposal, num_nodes, shift)
        mean, scale = proposal.moments()
        energies = self.head((nodes - mean[:, None]) / scale[:, None], context, offsets)
        number = self.proposal.num_components
        mass = tf.reshape(tf.exp(log_weights - energies), tf.stack([-1, number, nodes.shape[-1] // number]))
        totals = tf.cumsum(tf.reduce_sum(mass, -1), axis=-1)
        chosen = tf.minimum(tf.reduce_sum(tf.cast(u[:, None] * totals[:, -1:] > totals, tf.int32), -1), number - 1)
        mass = tf.gather(mass, chosen, batch_dims=1)
        nodes = tf.gather(tf.reshape(nodes, tf.stack([-1, number, mass.shape[-1]])), chosen, batch_dims=1)
        return invert_trapezoid(nodes, mass, v)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {**super().get_config(), "event_shape": self.event_shape, **self._config}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> AutoregressiveEnergy:
        """Rebuilds the network from `get_config`."""
        del custom_objects
        return cls(**config)


def invert_trapezoid(nodes: tf.Tensor, density: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """Returns the quantiles v `[batch]` of densities on an even lattice, linear between neighbours.

    Args:
      nodes: places `[batch, k]`, smooth in the lattice's own coordinate.
      density: values `[batch, k]`, of any sum, with respect to that coordinate.
      v: from 0 to 1.
    """
    cells = 0.5 * (density[:, 1:] + density[:, :-1])
    below = tf.cumsum(cells, axis=-1)
    goal = v * below[:, -1]
    cell = tf.minimum(tf.reduce_sum(tf.cast(goal[:, None] > below, tf.int32), -1), cells.shape[-1] - 1)
    index = cell[:, None]

    def at(values: tf.Tensor, offset: int = 0) -> tf.Tensor:
        return tf.gather(values, index + offset, batch_dims=1)[:, 0]

    low, high = at(density), at(density, 1)
    rest = tf.maximum(goal - (at(below) - at(cells)), 0.0)
    tiny = tf.constant(np.finfo(v.dtype.as_numpy_dtype).tiny, v.dtype)
    share = 2.0 * rest / tf.maximum(low + tf.sqrt(tf.maximum(low**2 + 2.0 * (high - low) * rest, 0.0)), tiny)
    share = tf.clip_by_value(share, 0.0, 1.0)
    return at(nodes) + share * (at(nodes, 1) - at(nodes))


def autoregressive(
    event_shape: Sequence[int],
    units: Sequence[int] = (128, 128),
    order: Sequence[int] | None = None,
    *,
    num_components: int = 1,
    proposal: Any = None,
    dropout: float = 0.0,
    dtype: Any = None,
    seed: Any = None,
    **kwargs: Any,
) -> AutoregressiveEnergy:
    """Makes an autoregressive energy E(x) = −log p(x), with log Z = 0 (Nash & Durkan 2019).

    Args:
      event_shape: shape of one data point; any rank, it is flattened.
      units: equal widths; one residual block of two masked layers for each.
      order: the coordinates in the order in which each depends on those before; default: as they come.
      num_components: logistics of each proposal.
      proposal: a Gaussian mixture (`tfd.MixtureSameFamily` of multivariate normals) or a multivariate normal, whose
        conditionals are the proposals; the energy then starts as that distribution. In the coordinates of the network.
      dropout: share of hidden units that training drops.
      dtype: "float32" or "float64".
      seed: int that fixes the initial weights.
      **kwargs: further arguments of `AutoregressiveEnergy`.

    Returns:
      An `AutoregressiveEnergy`, a `keras.Model` `[batch, *event] -> [batch]`.

    Raises:
      TypeError, ValueError: if an argument is not of the form above.

    >>> import tensorflow as tf, tfp_ebm as ebm
    >>> model = ebm.EnergyModel(autoregressive([2], units=[16], seed=0))
    >>> float(model.log_normalizer)
    0.0
    """
    seed = 0 if seed is None else seed
    if proposal is None:
        return AutoregressiveEnergy(
            event_shape, units, order, num_components, dropout=dropout, dtype=dtype, seed=seed, **kwargs
        )
    probs, loc, covariance = gaussian_parts(proposal)
    if loc.shape[1] != int(np.prod(check_event_shape(event_shape))):
        raise ValueError(f"`proposal` must have event shape {tuple(event_shape)}, got {tuple(proposal.event_shape)}.")
    network = AutoregressiveEnergy(
        event_shape, units, order, len(probs), True, dropout=dropout, dtype=dtype, seed=seed, **kwargs
    )
    network.proposal.assign(probs, loc, covariance)
    return network


def gaussian_parts(distribution: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns probabilities, means and covariances of a Gaussian mixture or of a single multivariate normal."""
    parts = getattr(distribution, "components_distribution", distribution)
    if not isinstance(
        parts, tfp.distributions.MultivariateNormalLinearOperator | tfp.distributions.MultivariateNormalTriL
    ):
        raise TypeError(f"`proposal` must be a multivariate normal or a mixture of them, got {distribution!r}.")
    loc, covariance = np.asarray(parts.mean()), np.asarray(parts.covariance())
    if parts is distribution:
        return np.ones(1), loc.reshape(1, -1), covariance.reshape(1, *covariance.shape[-2:])
    return np.asarray(distribution.mixture_distribution.probs_parameter()), loc, covariance
