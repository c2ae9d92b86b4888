"""Derivatives of an energy in its argument x: score, Hessian-vector products, directional and full second derivatives.

Score matching uses ½‖∇ₓE‖² − tr ∇²ₓE (eq. 44), and its sliced form vᵀ∇²ₓE v (eqs. 53-57). The methods and their costs:

  * `reverse`: one backward pass through the gradient for every direction, so d of them for the trace.
  * `forward_laplacian`: K directions propagated through the layers at once. Nonlinear steps add second derivatives
    (bends), and the backward pass that computes the score also weights all bends (`jet`). For K = d the exact trace
    costs little more than the matrix products of the K slopes, forward and backward; for K = 1 a sliced step costs less
    than two additional energies.
  * `chunks`: the same, K directions at a time, in bounded memory.

`rules` has one module for each family of Keras layers, and `forward_laplacian_rule` adds rules. A rule computes how
jets pass through a layer, by the arithmetic of `Jet`:

>>> import keras
>>> class Swiglu(keras.layers.Layer):
...     def call(self, x):
...         gate, value = keras.ops.split(x, 2, axis=-1)
...         return keras.ops.silu(gate) * value
>>> @forward_laplacian_rule(Swiglu)
... def swiglu(layer, jet):
...     half = jet.shape[-1] // 2
...     gate, value = jet.linear(lambda t: t[..., :half]), jet.linear(lambda t: t[..., half:])
...     return gate.elementwise(keras.activations.silu) * value
>>> network = keras.Sequential([keras.Input((4,)), Swiglu(), keras.layers.Dense(1)])
>>> explain(network).method
'forward'
"""

from tfp_ebm.derivatives import rules as _rules  # noqa: F401  (registers them)
from tfp_ebm.derivatives.explanation import Explanation, explain
from tfp_ebm.derivatives.faults import refuse_faulty_layers
from tfp_ebm.derivatives.forward_laplacian import NoForwardRule, forward_laplacian_rule
from tfp_ebm.derivatives.jet import Jet
from tfp_ebm.derivatives.second_order import (
    directional_derivatives,
    energy_score_curvature,
    energy_score_laplacian,
    hvp,
    laplacian,
    score,
)

__all__ = [
    "Explanation",
    "Jet",
    "NoForwardRule",
    "directional_derivatives",
    "energy_score_curvature",
    "energy_score_laplacian",
    "explain",
    "forward_laplacian_rule",
    "hvp",
    "laplacian",
    "refuse_faulty_layers",
    "score",
]
