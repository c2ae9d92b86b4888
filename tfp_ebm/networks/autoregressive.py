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
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random
from tfp_ebm.arguments import check_count, check_event_shape, check_probability
from tfp_ebm.networks.conditionals import Conditionals, FreeConditionals, MixtureConditionals
from tfp_ebm.networks.lattice import STRETCH, lattice, log_density
from tfp_ebm.networks.masked import MaskedNetwork
from tfp_ebm.networks.normalized import NormalizedEnergy, in_blocks

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
      order: the coordinates in the order of their dependence.
      num_components: logistics in each proposal, or components of the Gaussian mixture whose conditionals the proposals
        are.
      fixed_proposal: whether the proposals are the conditionals of a Gaussian mixture, set by `proposal.assign`.
      num_functions: number of functions φ_j of which each energy is made.
      dropout: share of hidden units that training drops.
      num_nodes: nodes of the lattice for each component, in training and for all else.
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
            "num_functions": check_count("num_functions", num_functions),
            "dropout": check_probability("dropout", dropout),
            "num_nodes": tuple(check_count("num_nodes", number, 4) for number in num_nodes),
            "seed": int(seed),
        }
        if len(set(units)) != 1:
            raise ValueError(f"`units` must be equal widths, got {tuple(units)}.")
        self.order, self.num_functions = order, num_functions
        self.num_nodes: tuple[int, int] = self._config["num_nodes"]
        if fixed_proposal:
            self.proposal: Any = MixtureConditionals(size, num_components, dtype=self.dtype)
        else:
            self.proposal = FreeConditionals(num_components)
        self.trunk = MaskedNetwork(
            size,
            units[0],
            len(units),
            num_components * num_functions + self.proposal.num_outputs,
            dropout,
            seed,
            dtype=self.dtype,
        )
        self.built = True

    # --- the density ---------------------------------------------------------------------------------------------

    def conditionals(self, y: tf.Tensor, seed: tf.Tensor | None = None) -> tuple[Conditionals, tf.Tensor]:
        """Returns proposals and coefficients aⱼ, `[batch, size, num_components, num_functions]`.

        Args:
          y: states `[batch, size]`, in the order of dependence.
          seed: int32[2] of dropout; None drops nothing.
        """
        outputs = self.trunk(y, seed)
        number = self.proposal.num_components * self.num_functions
        shape = tf.concat([tf.shape(outputs)[:-1], [self.proposal.num_components, self.num_functions]], 0)
        return self.proposal(y, outputs[..., number:]), tf.reshape(outputs[..., :number], shape)

    def functions(self, t: tf.Tensor) -> tf.Tensor:
        """Returns φ(t), `[..., num_functions]`: steps that are even in asinh(t)."""
        family = self.proposal.family
        reach = math.asinh(_OUTERMOST[family] / STRETCH)
        steps = np.linspace(-reach, reach, self.num_functions)
        width = 2.0 * reach / max(1, self.num_functions - 1)
        return tf.tanh((tf.asinh(t / STRETCH)[..., None] - tf.constant(steps, t.dtype)) / width)

    def log_conditionals(self, y: tf.Tensor, num_nodes: int, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Returns log p(yᵢ | y_<i), `[batch, size]`, of states in the order of dependence.

        With a seed, int32[2], as training wants them: with dropout, and on a lattice that is shifted at random.
        """
        proposal, coefficients = self.conditionals(y, None if seed is None else random.fold_in(seed, 0))
        shift = tf.constant(0.5, y.dtype)
        if seed is not None:
            shift = random.uniform([], random.fold_in(seed, 1), y.dtype)
        grid = lattice(self.proposal.family, num_nodes, shift)
        t = (y[..., None] - proposal.loc) * tf.exp(-proposal.log_scale)
        at_state = _bounded(tf.reduce_sum(coefficients * self.functions(t), -1))
        at_nodes = _bounded(tf.tensordot(coefficients, self.functions(grid.nodes), [[-1], [-1]]))
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

        def energy(rows: tf.Tensor) -> tf.Tensor:
            return -tf.reduce_sum(self.log_conditionals(rows, number), -1)

        return in_blocks(energy, self._ordered(x), self._rows_per_block(number))

    def training_energy(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns −log p(x), `[batch]`, with a lattice that is shifted at random and with dropout."""
        return -tf.reduce_sum(self.log_conditionals(self._ordered(x), self.num_nodes[0], seed), -1)

    def _rows_per_block(self, num_nodes: int) -> int:
        numbers = max(num_nodes, self.num_functions) * len(self.order) * self.proposal.num_components
        return max(1, _MAX_NUMBERS // (4 * numbers))

    # --- samples -------------------------------------------------------------------------------------------------

    def draw(self, num_samples: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns exact samples `[num_samples, *event]`: one coordinate after the other, by inverse distributions."""
        size = len(self.order)
        uniforms = random.uniform(tf.stack([num_samples, 2 * size]), seed, self.dtype)
        number = 2 * self.num_nodes[1]

        def step(i: tf.Tensor, y: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            proposal, coefficients = self.conditionals(y)
            proposal = Conditionals(*(value[:, i] for value in proposal))
            drawn = self._invert(proposal, coefficients[:, i], u[:, i], u[:, size + i], number)
            return i + 1, tf.where(tf.range(size) == i, drawn[:, None], y), u

        def block(u: tf.Tensor) -> tf.Tensor:
            start = (tf.constant(0), tf.zeros_like(u[:, :size]), u)
            return tf.while_loop(lambda i, *_: i < size, step, start, parallel_iterations=1)[1]

        y = in_blocks(block, uniforms, self._rows_per_block(number) * size)
        x = tf.gather(y, np.argsort(self.order), axis=1)
        return tf.reshape(x, tf.concat([[num_samples], self.event_shape], 0))

    def _invert(
        self, proposal: Conditionals, coefficients: tf.Tensor, u: tf.Tensor, v: tf.Tensor, num_nodes: int
    ) -> tf.Tensor:
        """Returns x `[batch]` with p(x | x_<i): u chooses the component, v the quantile within it."""
        grid = lattice(self.proposal.family, num_nodes, tf.constant(0.5, u.dtype))
        energies = _bounded(tf.tensordot(coefficients, self.functions(grid.nodes), [[-1], [-1]]))
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


def _bounded(energy: tf.Tensor) -> tf.Tensor:
    return _MAX_ENERGY * tf.tanh(energy / _MAX_ENERGY)


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
    ordered = list(network.order)
    network.proposal.assign(probs, loc[:, ordered], covariance[:, ordered][:, :, ordered])
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
