"""Explanations of why the second derivatives of a network are taken in forward or in reverse mode."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.derivatives.activations import PIECEWISE_LINEAR
from tfp_ebm.derivatives.forward_laplacian import NoForwardRule, graph_of, has_rule, name_of, propagate
from tfp_ebm.derivatives.jet import derivatives_along
from tfp_ebm.tracing import graph_function

_FLAT_LAYERS = ("ReLU", "LeakyReLU", "PReLU", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "Maximum", "Minimum")
_FLAT_OPERATIONS = ("Relu", "Relu6", "LeakyRelu", "HardSigmoid", "HardTanh", "Absolute", "Maximum", "Minimum")


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The mode that `method="auto"` chooses for a network, and the reasons.

    Attributes:
      method: "forward" or "reverse".
      reasons: the reasons why the mode is not "forward", one sentence each; empty for "forward".
      piecewise_linear: layers and functions whose second derivative is zero almost everywhere. If a network has no
        other nonlinearities, its trace is zero almost everywhere, and score matching cannot learn from it.

    >>> Explanation("reverse", ("softmax has no rule",), ()).method
    'reverse'
    """

    method: str
    reasons: tuple[str, ...]
    piecewise_linear: tuple[str, ...]

    def __str__(self) -> str:
        """Returns the explanation as text."""
        lines = [f"method='auto' takes {self.method} mode."]
        lines += [f"- {reason}" for reason in self.reasons]
        if self.piecewise_linear:
            names = ", ".join(self.piecewise_linear)
            lines.append(f"- piecewise linear, with second derivative zero almost everywhere: {names}.")
        return "\n".join(lines)


def explain(network: Any) -> Explanation:
    """Explains which mode `method="auto"` chooses for the second derivatives of a network.

    Args:
      network: a Keras network, an `EnergyModel`, or any other energy that `laplacian` takes.

    Returns:
      An `Explanation`, which prints as text.

    >>> def network(activation):
    ...     hidden = keras.layers.Dense(8, activation=activation)
    ...     return keras.Sequential([keras.Input((2,)), hidden, keras.layers.Dense(1)])
    >>> print(explain(network("silu")))
    method='auto' takes forward mode.
    >>> explain(network("softmax")).reasons
    ('softmax has no rule',)
    """
    network = getattr(network, "network", network)
    parts = list(_parts(network))
    if isinstance(network, keras.Layer) and not network.built:
        obstacles = [f"{name_of(network)} is not built yet, so its layers are not known"]
    else:
        obstacles = [f"{name_of(part)} has no rule" for part in parts if not has_rule(part)] or _trial(network)
    flat = [name_of(part) for part in parts if _is_piecewise_linear(part)]
    return Explanation(
        "reverse" if obstacles else "forward", tuple(dict.fromkeys(obstacles)), tuple(dict.fromkeys(flat))
    )


def _parts(operation: Any) -> Iterator[Any]:
    """Yields every layer, operation and activation function of a network."""
    graph = graph_of(operation)
    if graph is not None:
        for node in graph.operations:
            if not isinstance(node, keras.layers.InputLayer):
                yield from _parts(node)
        return
    yield operation
    activation = getattr(operation, "activation", None)
    if callable(activation):
        yield from _parts(activation)


def _is_piecewise_linear(part: Any) -> bool:
    names = _FLAT_LAYERS if isinstance(part, keras.Layer) else _FLAT_OPERATIONS
    is_keras = type(part).__module__.startswith("keras.")
    return (callable(part) and not isinstance(part, keras.Operation) and part in PIECEWISE_LINEAR) or (
        is_keras and type(part).__name__ in names
    )


def _trial(network: Any) -> list[str]:
    """Returns the obstacles found by tracing forward mode, since a rule may not support all settings of a layer."""
    shape = getattr(network, "input_shape", None)
    if shape is None:  # a layer with its own rule, which is tried at the first call
        return []
    if isinstance(shape, list):
        return [f"{name_of(network)} takes {len(shape)} inputs"]

    @graph_function
    def trace(x: tf.Tensor) -> tf.Tensor:
        return derivatives_along(lambda jet: propagate(network, jet), x, x[tf.newaxis])[0]

    try:
        trace.get_concrete_function(tf.TensorSpec(shape, network.compute_dtype))
    except NoForwardRule as error:
        return [str(error)]
    return []
