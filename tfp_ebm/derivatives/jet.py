"""Jets, with which rules of layers compute, and second derivatives from first ones.

x moves along K straight lines x + t vₖ at once. Every quantity y inside a network then has a value and K slopes
Jₖ = d/dt y(x + t vₖ). Linear maps act on value and slopes in the same way. Only nonlinear steps add second derivatives
along the lines, called bends,

    y = s(a):  β = s''(a) Σₖ aₖ'²,            y = a b:  β = 2 Σₖ aₖ' bₖ',

A bend affects the energy like any other small change of y: multiplied by the adjoint ∂E/∂y, which one backward pass
computes for all steps. So

    Σₖ vₖᵀ∇²E vₖ = Σ_steps ⟨∂E/∂y, β⟩,

which is the Laplacian if the vₖ are the unit vectors. Bends need not be propagated from layer to layer, nor slopes
beyond the last nonlinear step, and the backward pass also gives the score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfp_ebm.derivatives.activations import value_slope_bend

LinearMap = Callable[[tf.Tensor], tf.Tensor]


def _sizes(t: tf.Tensor) -> list[Any]:
    """Returns the shape of `t`, as ints where known, else as scalar tensors."""
    dynamic = None
    sizes: list[Any] = t.shape.as_list()
    for axis, size in enumerate(sizes):
        if size is None:
            dynamic = tf.shape(t) if dynamic is None else dynamic
            sizes[axis] = dynamic[axis]
    return sizes


@tf.custom_gradient
def _sum_of_squares(tangents: tf.Tensor) -> Any:
    """Computes Σₖ Jₖ², with a gradient that passes over the K directions once."""
    return tf.reduce_sum(tangents * tangents, 0), lambda upstream: (2.0 * upstream) * tangents


@dataclasses.dataclass
class _Bends:
    """The bends of all nonlinear steps so far.

    Attributes:
      per_direction: whether bends are kept for each direction, `[K, batch, *shape]`, or summed, `[batch, *shape]`; with
        size 1 in place of the batch where they are the same for every row.
      steps: pairs of a step's result y and its bend.
    """

    per_direction: bool = False
    steps: list[tuple[tf.Tensor, tf.Tensor]] = dataclasses.field(default_factory=list)

    def squares(self, tangents: tf.Tensor) -> tf.Tensor:
        """Returns Σₖ Jₖ², or Jₖ² for each direction."""
        return tangents * tangents if self.per_direction else _sum_of_squares(tangents)

    def products(self, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """Returns Σₖ aₖ'bₖ', or aₖ'bₖ' for each direction."""
        return left * right if self.per_direction else tf.reduce_sum(left * right, 0)


class Jet:
    """Value and K directional derivatives of one quantity inside a network; it records the bends of nonlinear steps.

    Jets support `+ - * /` with jets, tensors and numbers, and the methods below, so that the rule of a new layer is
    short: `linear` for maps that are linear in each row, `elementwise` for functions of single numbers, `sum` and
    `mean` over axes of a row. Axis 0 of `value` is the batch; rows must not be mixed.

    Attributes:
      value: y, `[batch, *shape]`.
      tangents: Jₖ, `[K, batch, *shape]`; or `[K, 1, *shape]` while they are the same for every row, which makes unit
        directions nearly free until the first nonlinear step.

    >>> def energy(x):                                           # Σ x² sin x
    ...     return (x * x * x.elementwise(tf.sin)).sum(-1)
    >>> x, unit = tf.constant([[0.0]]), tf.constant([[[1.0]]])
    >>> value, gradient, second = derivatives_along(energy, x + 3.0, unit)
    >>> bool(abs(second + 7.0 * tf.sin(3.0) - 12.0 * tf.cos(3.0)) < 1e-4)
    True
    """

    def __init__(self, value: tf.Tensor, tangents: tf.Tensor, bends: _Bends) -> None:
        self.value, self.tangents, self._bends = value, tangents, bends

    @property
    def shape(self) -> tf.TensorShape:
        """The shape of the value, `[batch, *shape]`."""
        return self.value.shape

    @property
    def dtype(self) -> tf.DType:
        """The dtype of the value."""
        return self.value.dtype

    def linear(self, function: LinearMap) -> Jet:
        """Returns the jet of f(y), for f linear: row by row `[rows, *shape]` to `[rows, *new shape]`, with f(0) = 0."""
        value = function(self.value)
        directions, batch, *shape = _sizes(self.tangents)
        moved = function(tf.reshape(self.tangents, [directions * batch, *shape]))
        tangents = tf.reshape(moved, [directions, batch, *_sizes(moved)[1:]])
        return Jet(value, tangents, self._bends)

    def constant(self, value: tf.Tensor) -> Jet:
        """Returns the jet of a tensor that does not depend on x, `[batch, ...]`, with the directions of this one."""
        tangents = tf.zeros([_sizes(self.tangents)[0], 1, *_sizes(value)[1:]], value.dtype)
        return Jet(value, tangents, self._bends)

    def elementwise(self, function: LinearMap) -> Jet:
        """Returns the jet of s(y), for a function s of single numbers that TensorFlow can differentiate twice."""
        value, slope, bend = value_slope_bend(function, self.value)
        if bend is not None:
            self._bends.steps.append((value, bend * self._bends.squares(self.tangents)))
        return Jet(value, slope * self.tangents, self._bends)

    def cast(self, dtype: Any) -> Jet:
        """Returns the same jet in another dtype."""
        return self if self.dtype == tf.as_dtype(dtype) else self.linear(lambda t: tf.cast(t, dtype))

    def at_least_float32(self) -> Jet:
        """Returns the same jet in float32 if it has half precision, whose squares and reciprocals soon overflow."""
        return self.cast(tf.float32) if self.dtype.size < 4 else self

    def sum(self, axis: int | tuple[int, ...], keepdims: bool = False) -> Jet:
        """Returns the sum over axes of a row, numbered as in `value`, so axis 0, the batch, is not allowed."""
        return self.linear(lambda t: tf.reduce_sum(t, self._row_axes(axis), keepdims=keepdims))

    def mean(self, axis: int | tuple[int, ...], keepdims: bool = False) -> Jet:
        """Returns the mean over axes of a row, numbered as in `value`, so axis 0, the batch, is not allowed."""
        return self.linear(lambda t: tf.reduce_mean(t, self._row_axes(axis), keepdims=keepdims))

    def _row_axes(self, axis: int | tuple[int, ...]) -> list[int]:
        rank = self.shape.rank
        axes = [a % rank for a in ((axis,) if isinstance(axis, int) else axis)]
        if 0 in axes:
            raise ValueError(f"`axis` must not contain the batch axis 0, got {axis!r} for shape {self.shape}.")
        return axes

    @staticmethod
    def concatenate(jets: list[Jet], axis: int) -> Jet:
        """Concatenates jets along an axis of a row, numbered as in `value`."""
        axis %= jets[0].shape.rank
        if axis == 0:
            raise ValueError("`axis` must not be the batch axis 0.")
        value = tf.concat([jet.value for jet in jets], axis)
        batch = 1 if all(jet.tangents.shape[1] == 1 for jet in jets) else _sizes(value)[0]
        rows = [tf.broadcast_to(j.tangents, [_sizes(j.tangents)[0], batch, *_sizes(j.value)[1:]]) for j in jets]
        return Jet(value, tf.concat(rows, axis + 1), jets[0]._bends)

    def _tangents_for(self, value: tf.Tensor) -> tf.Tensor:
        """Returns the slopes, broadcast to the row shape of `value`, which another operand may have enlarged."""
        if value.shape.rank != self.shape.rank:
            raise ValueError(f"an operand has more axes than a jet of shape {self.shape}: the result is {value.shape}.")
        if self.shape[1:] == value.shape[1:]:
            return self.tangents
        return tf.broadcast_to(self.tangents, [*_sizes(self.tangents)[:2], *_sizes(value)[1:]])

    def __add__(self, other: Any) -> Jet:
        if not isinstance(other, Jet):
            value = self.value + other
            return Jet(value, self._tangents_for(value), self._bends)
        value = self.value + other.value
        return Jet(value, self._tangents_for(value) + other._tangents_for(value), self._bends)

    def __mul__(self, other: Any) -> Jet:
        if not isinstance(other, Jet):
            other = tf.convert_to_tensor(other, self.dtype)
            value = self.value * other
            return Jet(value, self._tangents_for(value) * other, self._bends)
        value = self.value * other.value
        left, right = self._tangents_for(value), other._tangents_for(value)
        self._bends.steps.append((value, 2.0 * self._bends.products(left, right)))
        return Jet(value, other.value * left + self.value * right, self._bends)

    def __neg__(self) -> Jet:
        return self * -1.0

    def __sub__(self, other: Any) -> Jet:
        return self + (-other)

    def __rsub__(self, other: Any) -> Jet:
        return -self + other

    def __truediv__(self, other: Any) -> Jet:
        return self * (other.elementwise(tf.math.reciprocal) if isinstance(other, Jet) else 1.0 / other)

    def __rtruediv__(self, other: Any) -> Jet:
        return self.elementwise(tf.math.reciprocal) * other

    __radd__ = __add__
    __rmul__ = __mul__
    # makes a NumPy array on the left leave the operation to the jet
    __array_ufunc__ = None


def derivatives_along(
    function: Callable[[Jet], Jet], x: tf.Tensor, directions: tf.Tensor, per_direction: bool = False
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes E(x), ∇E and Σₖ vₖᵀ∇²E vₖ of an energy that takes jets.

    Args:
      function: E: takes a jet at x, and returns a jet with one number per row.
      x: states `[batch, *event]`.
      directions: vₖ, `[K, batch, *event]`, or `[K, 1, *event]` if they are the same for every row.
      per_direction: whether the second derivatives are returned for each direction instead of summed.

    Returns:
      `(E [batch], ∇E [batch, *event], second derivatives [batch] or [K, batch])`.
    """
    bends = _Bends(per_direction)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        energy = function(Jet(x, directions, bends)).value
    steps = [step for step, _ in bends.steps]
    gradient, *adjoints = tape.gradient(energy, [x, *steps], unconnected_gradients=tf.UnconnectedGradients.ZERO)
    second = tf.zeros([directions.shape[0], 1] if per_direction else [1], energy.dtype) + tf.zeros_like(energy)
    for (value, bend), adjoint in zip(bends.steps, adjoints, strict=True):
        row = list(range(1 - value.shape.rank, 0))
        second += tf.reduce_sum(tf.cast(adjoint, energy.dtype) * tf.cast(bend, energy.dtype), row)
    return energy, gradient, second
