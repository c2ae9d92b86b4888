"""Compiled functions whose graphs are deleted with them.

The bijectors of TFP, and with them many of its distributions, remember their inputs: one cache of all bijectors maps
each output to its input until the output is deleted. Tensors of a graph hold each other through the graph, so the cache
would keep every graph alive in which a bijector was called, and with it everything that the graph holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf
import tensorflow_probability as tfp

_Function = TypeVar("_Function", bound=Callable[..., Any])


def graph_function(function: Callable[..., Any], *, autograph: bool = False, **options: Any) -> Any:
    """Returns a `tf.function` whose graphs are deleted with it.

    Args:
      function: the function.
      autograph, **options: see `tf.function`.

    >>> graph_function(lambda x: x + 1)(tf.constant(2)).numpy().item()
    3
    """
    # `partial`, because TensorFlow counts traces by code object and would warn about the traces of many functions
    return tf.function(functools.partial(forgets_inputs(function)), autograph=autograph, **options)


def forgets_inputs(function: _Function) -> _Function:
    """Returns a function of the same value; once it is traced, TFP forgets what its bijectors were given meanwhile."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            if not tf.executing_eagerly():
                _forget_inputs(tf.compat.v1.get_default_graph())

    return call  # type: ignore[return-value]


@tf.autograph.experimental.do_not_convert
def _forget_inputs(graph: tf.Graph) -> None:
    """Removes what belongs to a graph, or to the graphs within it, from the cache of TFP's bijectors."""
    storage = tfp.bijectors.Bijector._cache.storage
    for key, call in list(storage.items()):
        values = [key(), call.dependencies, list(call.attributes.values())]
        if any(_is_within(value, graph) for value in tf.nest.flatten(values)):
            key.cancel()  # else it would be removed once more when its tensor is deleted
            storage.pop(key, None)


def _is_within(value: Any, graph: tf.Graph) -> bool:
    """Returns whether a value is a tensor of a graph, or of one within it."""
    inner = getattr(value, "graph", None)  # eager tensors have none
    while inner is not None and inner is not graph:
        inner = getattr(inner, "outer_graph", None)
    return inner is graph
