"""Energy functions E(x), with p(x) = exp(−E(x)) / Z (eqs. 1-2), in standardised coordinates.

A network receives z = (x − loc) / scale. Losses, kernels and noise scales refer to z; everything public uses x, with

    E(x) = E_z(z) + Σ log scale,        so that  p(x) = p_z(z) / Π scale  and  log Z is the same in both.

`EnergyFunction` is E_z, the argument of a loss, a sampler or the derivative engine. It is a sum of terms: the network
and, if there is a base measure, the tilt −log base. Each term is a callable `[batch, *event] -> [batch]`.

A network may also take a condition, such as a number, a vector or a label per row. E_z(z; c) is then a family of
energies, one for each c; `with_condition` gives each row of a batch its own, and leaves an energy of z alone.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.derivatives.forward_laplacian import forward_laplacian_rule, no_rule
from tfp_ebm.derivatives.jet import Jet
from tfp_ebm.networks.conditional import call_network, in_dtype, propagate_given, takes_condition
from tfp_ebm.networks.conditional import condition_spec as spec_of_network

if TYPE_CHECKING:
    from tfp_ebm.energy.base import GaussianBase
    from tfp_ebm.energy.standardization import Standardization
from tfp_ebm.energy.rows import check_rows
from tfp_ebm.energy.shapes import as_state, one_per_row, over_leading_dimensions, state_dtype


class BaseTilt:
    """The tilt −log base_z(z) = −log base(x) − Σ log scale of a base measure, `[batch, *event] -> [batch]`."""

    def __init__(self, base_measure: tfp.distributions.Distribution, standardization: Standardization) -> None:
        self.base_measure, self.standardization = base_measure, standardization
        self._avoids_solves = False

    @contextlib.contextmanager
    def without_solves(self) -> Iterator[None]:
        """Context in which a Gaussian's tilt multiplies by the inverse of its Cholesky factor instead of solving.

        LiteRT has no kernel for `MatrixTriangularSolve`.
        """
        self._avoids_solves = True
        try:
            yield
        finally:
            self._avoids_solves = False

    def __call__(self, z: tf.Tensor) -> tf.Tensor:
        """Returns the tilt of states in standardised coordinates."""
        gaussian = _unreshaped(self.base_measure)
        if self._avoids_solves and type(gaussian) is tfp.distributions.MultivariateNormalTriL:
            size = gaussian.event_shape[0]
            with tf.init_scope():
                factor = np.asarray(gaussian.scale.to_dense(), np.float64)
                offset = np.linalg.slogdet(factor)[1] + 0.5 * size * math.log(2.0 * math.pi)
                offset -= np.float64(self.standardization.log_scale_sum())
                inverse, loc = np.linalg.inv(factor).T, np.asarray(gaussian.loc)
            centred = tf.reshape(self.standardization.to_x(z), [-1, size]) - loc
            whitened = tf.matmul(centred, tf.constant(inverse, z.dtype))
            return 0.5 * tf.reduce_sum(whitened**2, -1) + tf.constant(offset, z.dtype)
        return -self.base_measure.log_prob(self.standardization.to_x(z)) - self.standardization.log_scale_sum()


def _unreshaped(base: tfp.distributions.Distribution) -> tfp.distributions.Distribution:
    """Returns the distribution over vectors if `base` is a reshaped one, else `base` itself."""
    if isinstance(base, tfp.distributions.TransformedDistribution) and isinstance(base.bijector, tfp.bijectors.Reshape):
        return base.distribution
    return base


@forward_laplacian_rule(BaseTilt)
def _gaussian_tilt(tilt: BaseTilt, jet: Jet) -> Jet:
    """Computes ½‖L⁻¹(x − μ)‖² + log det L + ½d log 2π for Gaussians of `fit_base`; other bases use reverse mode."""
    base = _unreshaped(tilt.base_measure)
    if type(base) not in (tfp.distributions.MultivariateNormalTriL, tfp.distributions.MultivariateNormalDiag):
        raise no_rule(tilt, f"has a base measure, {type(base).__name__}, that is not a multivariate normal")
    size = base.event_shape[0]
    centred = tilt.standardization.to_x(jet).linear(lambda t: tf.reshape(t, [-1, size])) - base.loc
    squares = centred.linear(base.scale.solvevec).elementwise(tf.square).sum(-1)
    constant = (
        base.scale.log_abs_determinant() + 0.5 * size * math.log(2.0 * math.pi) - tilt.standardization.log_scale_sum()
    )
    return squares * 0.5 + constant


class EnergyFunction:
    """The energy E_z in standardised coordinates: network(z), plus the tilt −log base_z(z) if there is a base measure.

    Args:
      network: any Keras layer `[batch, *event] -> [batch]` or `[batch, 1]`; it may also take conditions `[batch, ...]`.
      event_shape: shape of one state.
      standardization: the standardisation z = (x − loc)/scale.
      base_measure: a distribution in x, or None.
      training: the mode in which the network's layers run (for example dropout), unless a call sets it.
      fitted_base: the Gaussian that serves as base distribution if there is no base measure.
      condition_spec: shape and dtype of one condition; None for the network's own, else one number.

    Attributes:
      network: the Keras layer; the derivative engine reads its graph.
      event_shape: tuple of ints.
      dtype: dtype of states and energies, float32 or float64.
      is_conditional: whether the network takes a condition, and none is fixed.
      condition_spec: shape and dtype of one condition.
      condition: the conditions of rows, `[rows, ...]`, that `with_condition` fixed, or None.
    """

    def __init__(
        self,
        network: keras.layers.Layer,
        event_shape: tuple[int, ...],
        standardization: Standardization,
        base_measure: tfp.distributions.Distribution | None = None,
        training: bool = False,
        fitted_base: GaussianBase | None = None,
        condition_spec: tf.TensorSpec | None = None,
    ) -> None:
        self.training = training
        self.fitted_base = fitted_base
        self.network = network
        self.event_shape = tuple(event_shape)
        self.dtype = state_dtype(network)
        self.is_conditional = takes_condition(network)
        self.condition_spec = condition_spec or spec_of_network(network) or tf.TensorSpec((), self.dtype)
        self.condition: tf.Tensor | None = None
        self.standardization = standardization
        self.base_measure = base_measure
        self.tilt = None if base_measure is None else BaseTilt(base_measure, standardization)

    @property
    def terms(self) -> tuple[Callable[[tf.Tensor], tf.Tensor], ...]:
        """The callables `[batch, *event] -> [batch]` whose sum is E_z; the first one is the network."""
        return (self.network_term,) if self.tilt is None else (self.network_term, self.tilt)

    def check_network(self) -> None:
        """Builds the network if necessary; raises ValueError if it does not return one number per row."""
        spec, condition = self.condition_spec, None
        if self.is_conditional:
            condition = keras.KerasTensor((None, *spec.shape), dtype=spec.dtype.name)
        output = call_network(self.network, keras.KerasTensor((None, *self.event_shape), dtype=self.dtype), condition)
        shape = getattr(output, "shape", None)
        if shape is None or len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] not in (1, None)):
            raise ValueError(
                "`network` must return one energy per row, shape [batch] or [batch, 1], "
                f"got {shape if shape is not None else type(output).__name__} for input (None, {self.event_shape})."
            )
        check_rows(self)

    def in_mode(self, training: bool) -> EnergyFunction:
        """Returns the same energy, with the network's layers in training or in inference mode."""
        twin = copy.copy(self)
        twin.training = training
        return twin

    def with_condition(self, condition: tf.Tensor) -> EnergyFunction:
        """Returns the energy of z alone in which row i has the condition i of `condition`, `[rows, ...]`.

        Other numbers of rows take the conditions in turn: those of [z; z'] are [c; c].
        """
        twin = copy.copy(self)
        twin.condition, twin.is_conditional = condition, False
        return twin

    def conditions_of(self, z: tf.Tensor) -> tf.Tensor | None:
        """Returns the conditions of states `[batch, *event]`, if they are fixed."""
        fixed = self.condition
        if fixed is None or (z.shape[0] is not None and z.shape[0] == fixed.shape[0]):
            return fixed
        return tf.gather(fixed, tf.range(tf.shape(z)[0]) % tf.maximum(tf.shape(fixed)[0], 1))

    @property
    def network_source(self) -> Any:
        """What the derivative engine reads: the network, or `RowConditions` if each row has a condition."""
        return self.network if self.condition is None else RowConditions(self)

    @property
    def base(self) -> tfp.distributions.Distribution:
        """The base distribution, over x: the base measure if there is one, else the Gaussian fitted to the data.

        Raises:
          ValueError: if there is no base distribution yet.
        """
        if self.base_measure is not None:
            return self.base_measure
        if self.fitted_base is None or not self.fitted_base.is_fitted:
            raise ValueError(
                "the model has no base distribution yet: call `adapt(x)` or `fit`, or pass `base_measure`."
            )
        return self.fitted_base.distribution()

    def network_term(self, z: tf.Tensor, condition: tf.Tensor | None = None, training: bool | None = None) -> tf.Tensor:
        """Returns the network's energies `[batch]` in the dtype of the states, whatever precision the network uses."""
        mode = self.training if training is None else training
        condition = self.conditions_of(z) if condition is None else condition
        return one_per_row(tf.cast(call_network(self.network, z, condition, training=mode), self.dtype), z)

    def condition_of_rows(self, condition: Any, z: tf.Tensor) -> tf.Tensor | None:
        """Returns `condition`, one or as many as z has states, as `[batch, ...]` with all leading axes flattened.

        Raises:
          TypeError: if the condition is a tensor of another dtype than the network takes.
          ValueError: if the condition is missing, does not fit z, or is given although the network takes none.
        """
        if not self.is_conditional:
            if condition is not None:
                raise ValueError("`condition` must not be given: the network takes x alone.")
            return None
        if condition is None:
            raise ValueError(
                "`condition` must be given: the network takes (x, condition). `model.given(condition)` is a model with "
                "the condition held fixed."
            )
        spec, leading = self.condition_spec, z.shape.rank - len(self.event_shape)
        shape = tuple(spec.shape)
        condition = in_dtype(condition, spec)
        if shape == () and len(np.shape(condition)) == leading + 1 and condition.shape[-1] == 1:
            condition = condition[..., 0]  # Keras turns vectors into columns
        condition = as_state(condition, spec.dtype, shape, "condition")
        given = condition.shape[: condition.shape.rank - len(shape)]
        if given.rank and not given.is_compatible_with(z.shape[:leading]):
            raise ValueError(
                f"`condition` must be a {'number' if shape == () else 'single condition'} or have the leading shape of "
                f"x, {tuple(z.shape[:leading])}, got shape {tuple(condition.shape)}."
            )
        rows = tf.broadcast_to(condition, tf.concat([tf.shape(z)[:leading], shape], 0))
        return tf.ensure_shape(tf.reshape(rows, [-1, *shape]), [z.shape[0] if leading == 1 else None, *shape])

    def __call__(self, z: tf.Tensor, condition: Any = None, training: bool | None = None) -> tf.Tensor:
        """Returns E_z of states `[..., *event]`, shape `[...]`; `condition` is one, or one for each state."""
        rows = self.condition_of_rows(condition, z)

        def energies(flat: tf.Tensor) -> tf.Tensor:
            total = self.network_term(flat, rows, training)
            return total if self.tilt is None else total + self.tilt(flat)

        return over_leading_dimensions(energies, z, len(self.event_shape))

    def unnormalized_log_prob(self, z: tf.Tensor, condition: Any = None) -> tf.Tensor:
        """Returns −E_z, the target of a kernel that works in standardised coordinates."""
        z = as_state(z, self.dtype, self.event_shape, "z")
        return -self(z, condition)


class RowConditions:
    """The network of an `EnergyFunction` in which each row has its condition, for the forward mode of derivatives."""

    def __init__(self, energy_function: EnergyFunction) -> None:
        self.energy_function = energy_function


@forward_laplacian_rule(RowConditions, takes_training=True)
def _row_conditions(rows: RowConditions, jet: Jet, training: bool = False) -> Jet:
    function = rows.energy_function
    return propagate_given(function.network, jet, function.conditions_of(jet.value), training)
