"""Names the layer of a network that stops differentiation, instead of the operation within TensorFlow.

Some operations have a gradient that has no gradient itself: TensorFlow's image resizing, its local response
normalisation, and everything that is recomputed in the backward pass. Training of a score then raises a `LookupError`
that names an operation unknown to the user. After such an error, this module tests the layers one by one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.derivatives.forward_laplacian import graph_of
from tfp_ebm.tracing import graph_function


@contextlib.contextmanager
def naming_the_layer(energy_fn: Any, purpose: str) -> Iterator[None]:
    """Context in which a derivative missing in TensorFlow raises a ValueError that names the layer.

    Args:
      energy_fn: an energy function or network; for any other callable, the error does not name a layer.
      purpose: the subject of the error message, which needs the derivative.

    >>> with naming_the_layer(lambda x: x, "Score matching"):
    ...     raise LookupError("gradient registry has no entry for: SomeGrad")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: Score matching needs second derivatives of the energy, and TensorFlow has none for an operation ...
    """
    try:
        yield
    except (LookupError, NotImplementedError) as error:
        text = str(error)
        if "gradient registry has no entry" not in text and "recompute_grad" not in text:
            raise
        network = getattr(energy_fn, "network", energy_fn)
        training = bool(getattr(energy_fn, "training", True))
        missing = {
            order: first_layer(network, functools.partial(_lacks_derivative, training=training, order=order))
            for order in (1, 2)
        }
        order = 2 if missing[1] is None else 1
        layer = missing[order]
        where = "an operation in it" if layer is None else f"its layer `{layer.name}` ({type(layer).__name__})"
        others = (
            "take a loss that differentiates the energy in x at most once, such as noise contrastive estimation"
            if order == 2
            else "change the data in this way before `fit`"
        )
        raise ValueError(
            f"{purpose} needs {'second ' if order == 2 else ''}derivatives of the energy, and TensorFlow has none for "
            f"{where} ({text.splitlines()[0]}). Replace it by layers that are made of smooth arithmetic (for images: "
            f"convolutions, average pooling, UpSampling2D by nearest neighbours), or {others}."
        ) from error


def first_layer(network: Any, is_culprit: Callable[[Any, tf.Tensor], bool]) -> Any:
    """Returns the first innermost layer of a network for which `is_culprit(layer, spec of its input)` holds, or None.

    Layers with several inputs, and layers that never ran, are skipped.
    """
    if not isinstance(network, keras.layers.Layer):
        return None
    for layer, spec in _layers_and_inputs(network):
        if is_culprit(layer, spec):
            return layer
    return None


def _layers_and_inputs(network: keras.layers.Layer) -> Iterator[tuple[keras.layers.Layer, tf.TensorSpec]]:
    graph = graph_of(network)
    if graph is not None:
        for layer in graph.operations:
            if graph_of(layer) is not None:
                yield from _layers_and_inputs(layer)
            elif isinstance(layer, keras.layers.Layer) and not isinstance(layer, keras.layers.InputLayer):
                tensors = layer._inbound_nodes[0].input_tensors
                if len(tensors) == 1:
                    yield layer, tf.TensorSpec(tensors[0].shape, tensors[0].dtype)
        return
    for layer in network._flatten_layers(include_self=False):
        shape = (layer.get_build_config() or {}).get("input_shape")
        if isinstance(shape, list | tuple) and all(size is None or isinstance(size, int) for size in shape):
            yield layer, tf.TensorSpec(shape, layer.compute_dtype)


def _lacks_derivative(layer: keras.layers.Layer, spec: tf.TensorSpec, training: bool, order: int) -> bool:
    """Whether TensorFlow has no derivative of `order` of a layer."""

    def once(x: tf.Tensor) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            y = tf.square(layer(x, training=training))
        return tape.gradient(y, x)

    def twice(x: tf.Tensor) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            length = tf.reduce_sum(tf.square(once(x)))
        return tape.gradient(length, x)

    try:
        graph_function(once if order == 1 else twice).get_concrete_function(spec)
    except (LookupError, NotImplementedError):
        return True
    except (TypeError, ValueError):  # the layer cannot be called alone, so it cannot be tested
        return False
    return False
