"""The forward Laplacian: second-order jets propagated through the graph of a Keras network, layer by layer.

One pass computes the energy, its slopes along K directions and the sum of second derivatives, at the cost of about
K + 2 rows per row. The alternative, d backward passes through a gradient, costs several times more, since the passes
share no work. The method is that of Li et al., "A computational framework for neural network-based variational Monte
Carlo with Forward Laplacian" (Nature Machine Intelligence 2024). Each Keras layer has a rule, and users can add rules:

    @forward_laplacian_rule(MyLayer)
    def my_layer(layer, jet):
        return jet.linear(lambda t: t @ layer.kernel).elementwise(tf.sin)

A functional or Sequential model, nested ones included, is read node by node. A network with a layer that has no rule
raises `NoForwardRule`, and `auto` then takes reverse mode.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.derivatives.activations import ELEMENTWISE
from tfp_ebm.derivatives.jet import Jet

Rule = Callable[..., Jet]
RULES: dict[Any, Rule] = {}
# Layers whose rule holds only in inference mode.
INFERENCE_ONLY: set[Any] = set()
# Layers whose rule takes the mode in which the network runs, because they hold a network.
TAKE_TRAINING: set[Any] = set()


class NoForwardRule(ValueError):
    """Raised for a part of a network that has no forward rule; the message names the part and explains how to add one.

    >>> from tfp_ebm.derivatives import laplacian
    >>> try:
    ...     laplacian(lambda x: tf.reduce_sum(x**2, -1), [[1.0, 2.0]], method="forward")
    ... except NoForwardRule as error:
    ...     print("no rule")
    no rule
    """


def forward_laplacian_rule(
    *targets: Any, inference_only: bool = False, takes_training: bool = False
) -> Callable[[Rule], Rule]:
    """Registers the decorated function `rule(layer, jet) -> jet`, which propagates second-order jets through a layer.

    Args:
      *targets: layer classes, or activation functions, for which the rule holds. A rule for a class does not hold for
        its subclasses, whose `call` may differ.
      inference_only: whether the rule is wrong in training mode (for example for dropout).
      takes_training: whether the rule has an argument `training`, the mode in which the network runs.

    Returns:
      The decorator. The rule is called with the layer and a `Jet` for each input tensor of the layer.

    Raises:
      TypeError: if a target is neither a class nor a function.

    >>> class Wiggle(keras.layers.Layer):
    ...     def call(self, x):
    ...         return x + keras.ops.sin(x)
    >>> @forward_laplacian_rule(Wiggle)
    ... def wiggle(layer, jet):
    ...     return jet + jet.elementwise(tf.sin)
    >>> network = keras.Sequential([keras.Input((2,)), Wiggle(), keras.layers.Dense(1, kernel_initializer="ones")])
    >>> from tfp_ebm.derivatives import laplacian
    >>> x = tf.constant([[0.5, 1.0]])                            # E = Σ xᵢ + sin xᵢ
    >>> bool(tf.abs(laplacian(network, x, method="forward") + tf.reduce_sum(tf.sin(x))) < 1e-6)
    True
    """
    for target in targets:
        if not callable(target):
            raise TypeError(f"`targets` must be layer classes or functions, got {target!r}.")

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(targets, rule))
        if inference_only:
            INFERENCE_ONLY.update(targets)
        if takes_training:
            TAKE_TRAINING.update(targets)
        return rule

    return register


def _key(operation: Any) -> Any:
    return operation if isinstance(operation, Hashable) and operation in RULES else type(operation)


def has_rule(operation: Any) -> bool:
    """Returns whether there is a rule for a layer, operation or activation function."""
    return _key(operation) in RULES or graph_of(operation) is not None


def name_of(operation: Any) -> str:
    """Returns the name of a layer, operation or function, for error messages."""
    name = getattr(operation, "name", None)
    if isinstance(name, str):
        return f"{type(operation).__name__} '{name}'"
    return getattr(operation, "__name__", None) or type(operation).__name__


def no_rule(operation: Any, why: str = "has no rule") -> NoForwardRule:
    """Returns the error for an `operation` without a rule; its message lists the alternatives."""
    return NoForwardRule(
        f"the forward Laplacian cannot pass {name_of(operation)}: it {why}. Use method='reverse' (which 'auto' "
        "chooses automatically), or add a rule with @tfp_ebm.derivatives.forward_laplacian_rule."
    )


def graph_of(network: Any) -> Any:
    """Returns the Keras functional graph of `network`, or None if it has none (subclassed models, plain layers).

    Only this function depends on how Keras stores the graph.
    """
    functional: Any = getattr(keras.src.models, "Functional", ())
    if isinstance(network, keras.Sequential) and type(network).call is keras.Sequential.call:
        network = getattr(network, "_functional", None)
    if not isinstance(network, functional) or type(network).call is not functional.call:
        return None
    return network if hasattr(network, "_run_through_graph") else None


def propagate(operation: Any, *args: Any, training: bool = False, **kwargs: Any) -> Any:
    """Propagates jets through a network, layer, operation or function.

    Args:
      operation: the network, layer, operation or function to apply.
      *args, **kwargs: its arguments, with jets in place of tensors; `training` and empty masks are dropped.
      training: the mode in which the network runs.

    Raises:
      NoForwardRule: if a layer has no rule, or its rule does not support the layer's settings.
    """
    leaves = keras.tree.flatten((args, kwargs))
    if not any(isinstance(leaf, Jet) for leaf in leaves):
        if isinstance(operation, keras.Layer):
            kwargs["training"] = training
        return operation(*args, **kwargs)
    graph = graph_of(operation)
    if graph is None:
        return _apply(operation, training, *args, **kwargs)
    # as Keras does, whatever the dtype policy of the whole model is
    inputs = keras.tree.flatten(args)
    inputs = [jet.cast(at.dtype) if isinstance(jet, Jet) else jet for jet, at in zip(inputs, graph.inputs, strict=True)]
    return graph._run_through_graph(inputs, operation_fn=lambda node: functools.partial(_apply, node, training))


def _in_dtype_of(operation: Any, args: Any) -> Any:
    """Casts jets to the compute dtype of `operation`, as Keras layers cast their inputs."""
    if not isinstance(operation, keras.Layer):
        return args
    dtype = operation.compute_dtype
    return keras.tree.map_structure(lambda leaf: leaf.cast(dtype) if isinstance(leaf, Jet) else leaf, args)


def _apply(operation: Any, in_training: bool, /, *args: Any, **kwargs: Any) -> Any:
    if graph_of(operation) is not None:
        return propagate(operation, *args, training=in_training)
    if not any(isinstance(leaf, Jet) for leaf in keras.tree.flatten((args, kwargs))):  # of a condition, not of x
        if in_training and _key(operation) in INFERENCE_ONLY:
            raise no_rule(operation, "does not behave in training mode as its rule assumes")
        return operation(*args, **kwargs)
    kwargs.pop("training", None)
    if kwargs.pop("mask", None) is not None:
        raise no_rule(operation, "is called with a mask")
    key = _key(operation)
    if key not in RULES:
        raise no_rule(operation)
    if in_training and key in INFERENCE_ONLY:
        raise no_rule(operation, "does not behave in training mode as its rule assumes")
    if key in TAKE_TRAINING:
        kwargs["training"] = in_training
    return RULES[key](operation, *_in_dtype_of(operation, args), **kwargs)


def activate(jet: Jet, activation: Any) -> Jet:
    """Applies the activation of a layer: None, a function, or a layer."""
    return jet if activation is None else propagate(activation, jet)


def weight(variable: Any, like: Jet) -> tf.Tensor:
    """Returns a layer's weight as a tensor of the layer's compute dtype."""
    return tf.cast(tf.convert_to_tensor(variable), like.dtype)


@forward_laplacian_rule(*ELEMENTWISE)
def _elementwise(function: Any, jet: Jet) -> Jet:
    return jet.elementwise(function)


@forward_laplacian_rule(keras.activations.linear)
def _identity(function: Any, jet: Jet) -> Jet:
    del function
    return jet
