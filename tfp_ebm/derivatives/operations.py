"""Finds TensorFlow operations whose gradient is silently wrong in the graph of a network.

The table in `faults` covers Keras's layers, but a user's own layer may use the same operations directly. The network is
therefore traced, and the operations that depend on its input are compared with a table of operations whose registered
gradient is not the derivative, or has no correct derivative itself.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_ebm.derivatives.forward_laplacian import graph_of
from tfp_ebm.tracing import graph_function


class _Kind(NamedTuple):
    order: int
    reason: str
    cure: str


_ARITHMETIC = "Use layers made of smooth arithmetic, or change the data before `fit`,"
_WARP = _Kind(1, "warps images by {type}, whose registered gradient is not its derivative", _ARITHMETIC)
_CONSTANT = _Kind(1, "uses {type}, whose gradient is taken for zero", _ARITHMETIC)
_ROUNDS = _Kind(1, "rounds by {type}, which passes gradients on as if it did not", "Leave the rounding out")
_KINDS = {
    "ImageProjectiveTransformV2": _WARP,
    "ImageProjectiveTransformV3": _WARP,
    "HSVToRGB": _CONSTANT,
    "ExtractGlimpse": _CONSTANT,
    "DrawBoundingBoxes": _CONSTANT,
    "DrawBoundingBoxesV2": _CONSTANT,
    "FakeQuantWithMinMaxArgs": _ROUNDS,
    "FakeQuantWithMinMaxVars": _ROUNDS,
    "FakeQuantWithMinMaxVarsPerChannel": _ROUNDS,
    "QuantizeAndDequantize": _ROUNDS,
    "QuantizeAndDequantizeV2": _ROUNDS,
    "QuantizeAndDequantizeV3": _ROUNDS,
    "QuantizeAndDequantizeV4": _ROUNDS,
    "ResizeArea": _Kind(
        1,
        "resizes by {type}, which has no gradient",
        "Use average pooling, or change the data before `fit`,",
    ),
    "ResizeBilinear": _Kind(
        2,
        "resizes by {type}, whose gradient counts as constant",
        'Use interpolation="nearest" with keras.layers.UpSampling2D, or a transposed convolution',
    ),
}
# The fault of `tf.nn.moments` and of the layers that use it.
_MOMENTS = _Kind(
    2,
    "holds a mean constant when it is differentiated, as tf.nn.moments does",
    "Use tfp_ebm.networks.LayerNormalization, or tf.reduce_mean of x and of (x − mean)²,",
)


@dataclasses.dataclass(frozen=True)
class OperationFault:
    """An operation in a network whose derivative of `order` is wrong, and the innermost layer that contains it."""

    order: int
    layer: Any
    reason: str
    cure: str


# Faults by network, then by mode and shape: tracing a network takes as long as calling it for the first time.
_found: weakref.WeakKeyDictionary[keras.layers.Layer, dict[Any, list[tuple[_Kind, str, str]]]]
_found = weakref.WeakKeyDictionary()


def operation_faults(
    network: keras.layers.Layer, training: bool, inputs: Sequence[tf.TensorSpec] | None = None
) -> list[OperationFault]:
    """Returns the operations of a network whose derivatives are wrong; none if the shape of its inputs is unknown.

    Args:
      network: a Keras layer or model; it is not checked if it is not built yet.
      training: the mode in which the network runs.
      inputs: specs of the network's inputs; default: those of a functional or Sequential model.
    """
    inputs = _inputs_of(network) if inputs is None else tuple(inputs)
    if not network.built or not inputs:
        return []
    known = _found.setdefault(network, {})
    key = (training, *((tuple(spec.shape.as_list()), spec.dtype) for spec in inputs))
    if key not in known:
        known[key] = _scan(network, training, inputs)
    return [
        OperationFault(kind.order, _layer_at(network, name), kind.reason.format(type=operation), kind.cure)
        for kind, operation, name in known[key]
    ]


def _inputs_of(network: keras.layers.Layer) -> tuple[tf.TensorSpec, ...]:
    graph = graph_of(network)
    if graph is None:
        return ()
    return tuple(tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in graph.inputs)


def _scan(network: keras.layers.Layer, training: bool, inputs: Sequence[tf.TensorSpec]) -> list[tuple[_Kind, str, str]]:
    takes_list = graph_of(network) is not None and len(inputs) > 1

    def call(*tensors: tf.Tensor) -> Any:
        return network(list(tensors), training=training) if takes_list else network(*tensors, training=training)

    try:
        with tf.init_scope():
            graph = graph_function(call, autograph=True).get_concrete_function(*inputs).graph
    except (TypeError, ValueError, LookupError, tf.errors.OpError):
        return []  # the next call of the network raises the error
    return list(_faults_of(graph, {tensor.name for tensor in graph.inputs[: len(inputs)]}))


def _faults_of(graph: Any, dependent: set[str]) -> Iterator[tuple[_Kind, str, str]]:
    """Yields the faults of operations that depend on tensors named in `dependent`, and adds their outputs to it."""
    for operation in graph.get_operations():
        if not any(tensor.name in dependent for tensor in operation.inputs):
            continue
        dependent.update(tensor.name for tensor in operation.outputs)
        if operation.type in _KINDS:
            yield _KINDS[operation.type], operation.type, operation.name
        elif operation.type == "StopGradient" and _is_mean(operation.inputs[0]):
            yield _MOMENTS, operation.type, operation.name
        for inner in _functions(graph, operation):
            for kind, name, _ in _faults_of(inner, {tensor.name for tensor in inner.inputs}):
                yield kind, name, operation.name


def _is_mean(tensor: tf.Tensor) -> bool:
    """Returns whether a tensor is a mean, possibly cast or reshaped."""
    while tensor.op.type in ("Cast", "Reshape", "Identity", "Squeeze", "ExpandDims"):
        tensor = tensor.op.inputs[0]
    return bool(tensor.op.type == "Mean")


def _functions(graph: Any, operation: Any) -> Iterator[Any]:
    """Yields the graphs of the functions that an operation calls, such as the body of a loop."""
    for value in operation.node_def.attr.values():
        names = [value.func.name] if value.HasField("func") else [func.name for func in value.list.func]
        for name in filter(None, names):
            function = graph._get_function(name) if graph._is_function(name) else None
            inner = getattr(function, "graph", None)
            if inner is not None and inner is not graph:
                yield inner


def _layer_at(network: keras.layers.Layer, name: str) -> Any:
    """Returns the innermost layer whose name scope contains an operation."""
    layers = {layer.name: layer for layer in network._flatten_layers()}
    for scope in reversed(name.split("/")[:-1]):
        # Keras also opens a layer's scope to build it, so the scope of a call has a number
        for candidate in (scope.rsplit("_", 1)[0], scope):
            if candidate in layers:
                return layers[candidate]
    return network
