"""Autoregressive energies: densities of tables that know their own log Z (Nash & Durkan 2019, arXiv:1904.05626).

The density is a product of conditionals, each an energy on the line with a normaliser of its own. In terms of a
proposal, a mixture Σ_c w_c q_c(x) of logistics or normals with location m_c and scale s_c,

    p(xᵢ | x_<i) = Σ_c w_c q_c(xᵢ) exp(−e_c(t_c)) / Zᵢ,      t_c = (xᵢ − m_c)/s_c,
    Zᵢ = Σ_c w_c E exp(−e_c(T)),      T a standard logistic or normal variable,

so that E(x) = −log p(x) and log Z = 0 (eqs. 1-3). A masked network of x_<i gives w_c, m_c, s_c and the energies, each a
linear combination e_c(t) = Σ_j a_cj φ_j(t) of fixed bounded functions. Each Zᵢ is a one-dimensional integral, by the
lattice of `lattice.py`. Since its nodes t are the same for all rows, the energies at all nodes are one matrix product.

Two rules keep training honest. e is bounded, so that the tails are those of the proposal, and the functions φ_j are
wider than the spacing of the nodes: else the network would place mass between the nodes, where no integral sees it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import random
from tfp_ebm.arguments import check_count, check_event_shape, check_probability
from tfp_ebm.networks.conditionals import Conditionals, FreeConditionals, MixtureConditionals, gaussian_parts
from tfp_ebm.networks.lattice import STRETCH, invert_trapezoid, lattice, log_density
from tfp_ebm.networks.masked import MaskedNetwork
from tfp_ebm.networks.normalized import NormalizedEnergy, in_blocks
from tfp_ebm.networks.supports import Features, ValueConditionals, check_supports

# |e| stays below this: a factor of exp(±10) on the proposal.
_MAX_ENERGY = 10.0
# Numbers that one block of rows may hold.
_MAX_NUMBERS = 2**24
# The functions φ_j have their steps at |t| up to these values.
_OUTERMOST = {"logistic": 14.0, "normal": 5.0}


@keras.saving.register_keras_serializable("tfp_ebm")
class AutoregressiveEnergy(NormalizedEnergy):
    """A network E(x) = −Σᵢ log p(xᵢ | x_<i), whose log Z is 0; `networks.autoregressive` makes it.

    Args:
      event_shape: shape of one state; it is flattened.
      units: widths of the masked network: one number for each pair of layers, all equal.
      order: the coordinates in the order of dependence.
      num_components: logistics in each proposal, or components of the Gaussian mixture that gives the proposals.
      fixed_proposal: whether the proposals are the conditionals of a Gaussian mixture, set by `proposal.assign`.
      num_functions: number of functions φ_j of which each energy is made.
      dropout: share of hidden units that training drops.
      num_nodes: nodes of the lattice for each component, in training and for all else.
      supports: the values of coordinates that take a few values, such as ratings; these have probabilities.
      allows_missing: whether cells may be missing, NaN: a missing cell has no factor in the density.
      num_frequencies: of waves of each coordinate that the network sees beside it: sharp edges are learned sooner.
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
        num_functions: int = 32,
        dropout: float = 0.0,
        num_nodes: tuple[int, int] = (64, 128),
        supports: Mapping[int, Any] | None = None,
        allows_missing: bool = False,
        num_frequencies: int = 0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(event_shape, **kwargs)
        size = int(np.prod(self.event_shape))
        order = tuple(range(size)) if order is None else tuple(int(i) for i in order)
        if sorted(order) != list(range(size)):
            raise ValueError(f"`order` must be a permutation of 0 to {size - 1}, got {order}.")
        values = check_supports(supports, size)
        if len(set(units)) != 1:
            raise ValueError(f"`units` must be equal widths, got {tuple(units)}.")
        self._config: dict[str, Any] = {
            "units": tuple(check_count("units", width) for width in units),
            "order": order,
            "num_components": check_count("num_components", num_components),
            "fixed_proposal": bool(fixed_proposal),
            "num_functions": check_count("num_functions", num_functions),
            "dropout": check_probability("dropout", dropout),
            "num_nodes": tuple(check_count("num_nodes", number, 4) for number in num_nodes),
            "supports": {str(number): array.tolist() for number, array in values.items()},
            "allows_missing": bool(allows_missing),
            "num_frequencies": check_count("num_frequencies", num_frequencies, 0),
            "seed": int(seed),
        }
        self.order, self.num_functions = order, num_functions
        self.num_nodes: tuple[int, int] = self._config["num_nodes"]
        if fixed_proposal:
            self.proposal: Any = MixtureConditionals(size, num_components, dtype=self.dtype)
        else:
            self.proposal = FreeConditionals(num_components)
        if fixed_proposal and allows_missing:
            raise ValueError("`allows_missing` must be False with a mixture as proposal: it needs all coordinates.")
        self._num_outputs = num_components * num_functions
        in_order = [values.get(number) for number in order]
        self.lines = np.array([place for place, support in enumerate(in_order) if support is None], int)
        self.features = Features(in_order, allows_missing, num_frequencies)
        self.value_conditionals: Any = (
            ValueConditionals(in_order, self._num_outputs, dtype=self.dtype) if values else None
        )
        self.trunk = MaskedNetwork(
            size,
            units[0],
            len(units),
            self._num_outputs + self.proposal.num_outputs,
            dropout,
            seed,
            inputs=self.features.places,
            dtype=self.dtype,
        )
        # the trunk sees no coordinate beyond these: far from the data it would extrapolate wildly
        self.seen_range = self.add_weight(shape=(2, size), initializer="zeros", trainable=False, name="seen_range")
        self.seen_range.assign(np.array([[-np.inf], [np.inf]]) * np.ones(size))
        self.built = True

    @property
    def is_proposal_fixed(self) -> bool:
        """Whether the proposals are the conditionals of a Gaussian mixture."""
        return self._config["fixed_proposal"]

    @property
    def allows_missing(self) -> bool:
        """Whether cells may be NaN."""
        return self._config["allows_missing"]

    def set_frequencies(self, frequencies: Mapping[int, np.ndarray]) -> None:
        """Sets the frequencies of the values of all coordinates that have a support, from which training starts."""
        if self.value_conditionals is not None:
            self.value_conditionals.set_frequencies([frequencies[i] for i in self.order if i in frequencies])

    # --- the density ---------------------------------------------------------------------------------------------

    def conditionals(self, y: tf.Tensor, seed: tf.Tensor | None = None) -> tuple[Conditionals, tf.Tensor]:
        """Returns proposals and the outputs that make the energies, `[batch, size, num_components · num_functions]`.

        Args:
          y: states `[batch, size]`, in the order of dependence.
          seed: int32[2] of dropout; None drops nothing.
        """
        outputs = self.trunk(self.features(y, self.seen_range.value), seed)
        return self.proposal(y, outputs[..., self._num_outputs :]), outputs[..., : self._num_outputs]

    def functions(self, t: tf.Tensor) -> tf.Tensor:
        """Returns φ(t), `[..., num_functions]`: steps that are even in asinh(t)."""
        family = self.proposal.family
        reach = math.asinh(_OUTERMOST[family] / STRETCH)
        steps = np.linspace(-reach, reach, self.num_functions)
        width = 2.0 * reach / max(1, self.num_functions - 1)
        return tf.tanh((tf.asinh(t / STRETCH)[..., None] - tf.constant(steps, t.dtype)) / width)

    def coefficients(self, outputs: tf.Tensor) -> tf.Tensor:
        """Returns aⱼ `[..., num_components, num_functions]` of outputs `[..., number]`."""
        parts = [self.proposal.num_components, self.num_functions]
        return tf.reshape(outputs, tf.concat([tf.shape(outputs)[:-1], parts], 0))

    def log_conditionals(self, y: tf.Tensor, num_nodes: int, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Returns log p(yᵢ | y_<i), `[batch, size]`, of states in the order of dependence; 0 for missing cells.

        With a seed, int32[2], as training wants them: with dropout, and on a lattice that is shifted at random.
        """
        proposal, outputs = self.conditionals(y, None if seed is None else random.fold_in(seed, 0))
        shift = tf.constant(0.5, y.dtype)
        if seed is not None:
            shift = random.uniform([], random.fold_in(seed, 1), y.dtype)
        if self.value_conditionals is None:
            log_probs = self._log_densities(y, proposal, outputs, num_nodes, shift)
        else:
            places = self.value_conditionals.places

            def at(chosen: np.ndarray) -> tuple[tf.Tensor, Conditionals, tf.Tensor]:
                parts = [tf.gather(value, chosen, axis=1) for value in (y, *proposal, outputs)]
                return parts[0], Conditionals(*parts[1:4]), parts[4]

            states, masses, rest = at(places)
            of_values = self.value_conditionals.log_probs(rest, masses if self.is_proposal_fixed else None)
            columns = [self.value_conditionals.at_states(of_values, states)]
            if len(self.lines):
                columns.append(self._log_densities(*at(self.lines), num_nodes, shift))
            log_probs = tf.gather(tf.concat(columns, 1), np.argsort(np.concatenate([places, self.lines])), axis=1)
        return tf.where(tf.math.is_nan(y), tf.zeros_like(y), log_probs) if self.allows_missing else log_probs

    def _log_densities(
        self, y: tf.Tensor, proposal: Conditionals, outputs: tf.Tensor, num_nodes: int, shift: tf.Tensor
    ) -> tf.Tensor:
        """Returns log p(yᵢ | y_<i) of coordinates on the line, to which all arguments belong."""
        if self.allows_missing:
            y = tf.where(tf.math.is_nan(y), tf.zeros_like(y), y)  # else gradients would be NaN
        coefficients = self.coefficients(outputs)
        grid = lattice(self.proposal.family, num_nodes, shift)
        t = (y[..., None] - proposal.loc) * tf.exp(-proposal.log_scale)
        at_state = bounded(tf.reduce_sum(coefficients * self.functions(t), -1))
        at_nodes = bounded(tf.tensordot(coefficients, self.functions(grid.nodes), [[-1], [-1]]))
        log_mass = tf.reduce_logsumexp(grid.log_weights - at_nodes, -1)
        log_q = log_density(self.proposal.family, t) - proposal.log_scale
        return tf.reduce_logsumexp(proposal.log_probs + log_q - at_state, -1) - tf.reduce_logsumexp(
            proposal.log_probs + log_mass, -1
        )

    def _ordered(self, x: tf.Tensor) -> tf.Tensor:
        return tf.gather(tf.reshape(x, [-1, len(self.order)]), self.order, axis=1)

    def call(self, x: tf.Tensor, training: bool = False, num_nodes: int | None = None) -> tf.Tensor:
        """Returns E(x) = −log p(x), `[batch]`, of states `[batch, *event]`."""
        del training  # its random numbers need a seed, which `training_energy` takes
        number = self.num_nodes[1] if num_nodes is None else num_nodes
        log_probs = in_blocks(
            lambda rows: self.log_conditionals(rows, number), self._ordered(x), self._rows_per_block(number)
        )
        return -tf.reduce_sum(log_probs, -1)

    def training_energy(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns −log p(x), `[batch]`, with a lattice that is shifted at random and with dropout."""
        return -tf.reduce_sum(self.log_conditionals(self._ordered(x), self.num_nodes[0], seed), -1)

    def _rows_per_block(self, num_nodes: int) -> int:
        numbers = max(num_nodes, self.num_functions) * len(self.order) * self.proposal.num_components
        return max(1, _MAX_NUMBERS // (4 * numbers))

    def at_coordinate(self, y: tf.Tensor, i: tf.Tensor) -> tuple[Conditionals, tf.Tensor]:
        """Returns the proposal and the outputs of one coordinate, `[batch, …]`, as `conditionals` returns all."""
        outputs = self.trunk(self.features(y, self.seen_range.value), None, i)
        proposal = self.proposal(y, outputs[:, None, self._num_outputs :])
        place = i if self.is_proposal_fixed else 0  # free proposals are those of the outputs given
        return Conditionals(*(value[:, place] for value in proposal)), outputs[:, : self._num_outputs]

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns exact samples `[num_samples, *event]`: one coordinate after the other, by inverse distributions."""
        size = len(self.order)
        uniforms = random.uniform(tf.stack([num_samples, 2 * size]), seed, self.dtype)

        def block(u: tf.Tensor) -> tf.Tensor:
            def step(i: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                drawn = self.invert(*self.at_coordinate(y, i), i, u[:, i], u[:, size + i])
                return i + 1, tf.where(tf.range(size) == i, drawn[:, None], y)

            start = (tf.constant(0), tf.zeros_like(u[:, :size]))
            return tf.while_loop(lambda i, _: i < size, step, start, parallel_iterations=1)[1]

        y = in_blocks(block, uniforms, self._rows_per_block(2 * self.num_nodes[1]) * size)
        return self.in_own_order(y)

    def in_own_order(self, y: tf.Tensor) -> tf.Tensor:
        """Returns states `[batch, *event]` of coordinates `[batch, size]` in the order of dependence."""
        x = tf.gather(y, np.argsort(self.order), axis=1)
        return tf.reshape(x, tf.concat([tf.shape(x)[:1], self.event_shape], 0))

    def invert(self, proposal: Conditionals, outputs: tf.Tensor, i: tf.Tensor, u: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        """Returns samples `[batch]` of coordinate i: u chooses the value or the component, v the place within it."""
        drawn = tf.zeros_like(u)
        if len(self.lines):
            drawn = self._invert_density(proposal, self.coefficients(outputs), u, v, 2 * self.num_nodes[1])
        if self.value_conditionals is not None:
            of_values, at = self.log_probs_at(proposal, outputs, i)
            drawn = tf.where(self._is_line(i), drawn, self.value_conditionals.invert(of_values, u, at))
        return drawn

    def _is_line(self, i: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(tf.equal(tf.constant(self.lines, tf.int32), i))

    def log_probs_at(self, proposal: Conditionals, outputs: tf.Tensor, i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the log probabilities `[batch, values]` of coordinate i, and its number among those with supports."""
        at = tf.gather(tf.constant(self.value_conditionals.number_of), i)
        one = Conditionals(*(value[:, None] for value in proposal)) if self.is_proposal_fixed else None
        return self.value_conditionals.log_probs(outputs[:, None], one, at)[:, 0], at

    def log_conditional(self, y: tf.Tensor, proposal: Conditionals, outputs: tf.Tensor, i: tf.Tensor) -> tf.Tensor:
        """Returns log p(yᵢ | y_<i), `[batch]`, of one coordinate."""
        own = y[:, i, None]
        log_prob = tf.zeros_like(own)
        if len(self.lines):
            one = Conditionals(*(value[:, None] for value in proposal))
            shift = tf.constant(0.5, y.dtype)
            log_prob = self._log_densities(own, one, outputs[:, None], self.num_nodes[1], shift)
        if self.value_conditionals is not None:
            of_values, at = self.log_probs_at(proposal, outputs, i)
            at_state = self.value_conditionals.at_states(of_values[:, None], own, at)
            log_prob = tf.where(self._is_line(i), log_prob, at_state)
        return log_prob[:, 0]

    def _invert_density(
        self, proposal: Conditionals, coefficients: tf.Tensor, u: tf.Tensor, v: tf.Tensor, num_nodes: int
    ) -> tf.Tensor:
        """Returns x `[batch]` with p(x | x_<i): u chooses the component, v the quantile within it."""
        grid = lattice(self.proposal.family, num_nodes, tf.constant(0.5, u.dtype))
        energies = bounded(tf.tensordot(coefficients, self.functions(grid.nodes), [[-1], [-1]]))
        mass = tf.exp(proposal.log_probs[..., None] + grid.log_weights - energies)
        totals = tf.cumsum(tf.reduce_sum(mass, -1), axis=-1)
        last = self.proposal.num_components - 1
        chosen = tf.minimum(tf.reduce_sum(tf.cast(u[:, None] * totals[:, -1:] > totals, tf.int32), -1), last)
        loc, log_scale, mass = (
            tf.gather(value, chosen, batch_dims=1) for value in (proposal.loc, proposal.log_scale, mass)
        )
        t = invert_trapezoid(tf.broadcast_to(grid.nodes, tf.shape(mass)), mass, v)
        return loc + tf.exp(log_scale) * t

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        config = {**self._config, "num_nodes": self.num_nodes}
        return {**super().get_config(), "event_shape": self.event_shape, **config}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> AutoregressiveEnergy:
        """Rebuilds the network from `get_config`."""
        del custom_objects
        return cls(**config)


def bounded(energy: tf.Tensor) -> tf.Tensor:
    """Returns an energy within the limits that each has."""
    return _MAX_ENERGY * tf.tanh(energy / _MAX_ENERGY)


def autoregressive(
    event_shape: Sequence[int],
    units: Sequence[int] = (128, 128),
    order: Sequence[int] | None = None,
    *,
    condition_shape: Sequence[int] | None = None,
    num_components: int = 1,
    proposal: Any = None,
    dropout: float = 0.0,
    supports: Mapping[int, Any] | None = None,
    dtype: Any = None,
    seed: Any = None,
    **kwargs: Any,
) -> Any:
    """Makes an autoregressive energy E(x) = −log p(x), with log Z = 0 (Nash & Durkan 2019).

    Args:
      event_shape: shape of one data point; any rank, it is flattened.
      units: equal widths; one residual block of two masked layers for each.
      order: the coordinates in the order in which each depends on those before; default: as they come.
      condition_shape: that of conditions c, numbers or vectors, for E(x; c) = −log p(x | c) with log Z = 0 for every c.
      num_components: logistics of each proposal.
      proposal: a Gaussian mixture (`tfd.MixtureSameFamily` of multivariate normals) or a multivariate normal, whose
        conditionals are the proposals; the energy then starts as that distribution. In the coordinates of the network.
      dropout: share of hidden units that training drops.
      supports: for coordinates that take a few values, such as ratings, booleans or codes of categories, these values:
        a mapping from coordinates to lists. These coordinates have probabilities, sums over the values, and E(x) is
        infinite off them.
      dtype: "float32" or "float64".
      seed: int that fixes the initial weights.
      **kwargs: further arguments of `AutoregressiveEnergy`.

    Returns:
      An `AutoregressiveEnergy`, a `keras.Model` `[batch, *event] -> [batch]`; or a network of (x, c).

    Raises:
      TypeError, ValueError: if an argument is not of the form above.

    >>> import tensorflow as tf, tfp_ebm as ebm
    >>> model = ebm.EnergyModel(autoregressive([2], units=[16], seed=0))
    >>> float(model.log_normalizer)
    0.0
    """
    if condition_shape is not None:
        from tfp_ebm.networks.conditional_autoregressive import conditional_autoregressive

        refused = {"order": order, "proposal": proposal, "supports": supports, "dropout": dropout or None, **kwargs}
        return conditional_autoregressive(event_shape, condition_shape, units, num_components, dtype, seed, refused)
    parts = None if proposal is None else gaussian_parts(proposal)
    if parts is not None and parts[1].shape[1] != int(np.prod(check_event_shape(event_shape))):
        raise ValueError(f"`proposal` must have event shape {tuple(event_shape)}, got {tuple(proposal.event_shape)}.")
    network = AutoregressiveEnergy(
        event_shape,
        units,
        order,
        num_components if parts is None else len(parts[0]),
        parts is not None,
        dropout=dropout,
        supports=supports,
        dtype=dtype,
        seed=0 if seed is None else seed,
        **kwargs,
    )
    if parts is not None:
        probs, loc, covariance = parts
        ordered = list(network.order)
        network.proposal.assign(probs, loc[:, ordered], covariance[:, ordered][:, :, ordered])
    return network
