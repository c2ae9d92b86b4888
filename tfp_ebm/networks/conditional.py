"""Networks of (x, condition): a family of energies E(x; c), one for each value of a number c, such as a noise scale.

Keras has two forms of such a network: a functional model with two inputs, and a subclass whose `call` takes two
tensors. The functions below call both in the same way. `FixedCondition` fixes c and gives a network of x alone, so all
functions for such networks work without knowledge of conditions.
"""

from __future__ import annotations

import inspect
from inspect import Parameter
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_finite
from tfp_ebm.derivatives.forward_laplacian import graph_of


def takes_condition(network: Any) -> bool:
    """Returns whether a network also takes a condition, as its second input or second required argument of `call`.

    Args:
      network: a Keras model or layer.

    Raises:
      ValueError: if it takes more inputs, or its condition is not one number per row.

    >>> x, sigma = keras.Input((2,)), keras.Input(())
    >>> takes_condition(keras.Model([x, sigma], x)), takes_condition(keras.Model(x, x))
    (True, False)
    """
    graph = graph_of(network)
    if graph is None:
        positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        required = [
            name
            for name, parameter in inspect.signature(network.call).parameters.items()
            if parameter.kind in positional and parameter.default is Parameter.empty
        ]
        count = len(set(required) - {"training", "mask"})
    else:
        count = len(graph.inputs)
        if count == 2 and tuple(graph.inputs[1].shape[1:]) not in ((), (1,)):
            raise ValueError(
                "`network` must take one number per row as condition, Input(()) or Input((1,)), got an input of shape "
                f"{tuple(graph.inputs[1].shape)}."
            )
    if count > 2:
        raise ValueError(f"`network` must take x, or x and a condition, got one that takes {count} tensors.")
    return count == 2


def call_network(network: Any, x: Any, condition: Any, **kwargs: Any) -> Any:
    """Returns a network's output at states `[batch, *event]`, given one condition for each, `[batch]`, or None.

    >>> sigma = keras.Input((1,))
    >>> x = keras.Input((2,))
    >>> call_network(keras.Model([x, sigma], x * sigma), tf.ones([2, 2]), tf.constant([3.0, 4.0])).numpy().tolist()
    [[3.0, 3.0], [4.0, 4.0]]
    """
    if condition is None:
        return network(x, **kwargs)
    graph = graph_of(network)
    if graph is None:
        return network(x, condition, **kwargs)
    return network([x, keras.ops.reshape(condition, [-1, *graph.inputs[1].shape[1:]])], **kwargs)


def serialized(network: keras.layers.Layer) -> dict[str, Any]:
    """Returns a network's config as serialised by Keras.

    Keras records the shape of the first argument only, and warns at loading if it cannot build a subclassed network
    from it; a network with two arguments must be built by the caller.

    >>> sorted(serialized(FixedCondition(keras.Model([x := keras.Input((2,)), keras.Input(())], x), 1.0))["config"])[:2]
    ['condition', 'dtype']
    """
    config = keras.saving.serialize_keras_object(network)
    if takes_condition(network):
        config.pop("build_config", None)
    return config


@keras.saving.register_keras_serializable(package="tfp_ebm")
class FixedCondition(keras.layers.Layer):
    """A network of x alone, made from a network of (x, condition) by fixing the condition; it shares the weights.

    Args:
      network: a functional model of two inputs, or a layer whose `call` takes two tensors.
      condition: the number used as second argument for every row.
      **kwargs: passed to `keras.layers.Layer`.

    Input and output as for `network`.

    Raises:
      TypeError, ValueError: if the condition is not a finite number, or the network takes none.

    >>> x, sigma = keras.Input((2,)), keras.Input(())
    >>> network = keras.Model([x, sigma], x * keras.ops.expand_dims(sigma, -1))
    >>> FixedCondition(network, 3.0)(tf.ones([1, 2])).numpy().tolist()
    [[3.0, 3.0]]
    """

    def __init__(self, network: keras.layers.Layer, condition: float, **kwargs: Any) -> None:
        if not takes_condition(network):
            raise ValueError("`network` must take x and a condition, got one that takes x alone.")
        kwargs.setdefault("dtype", network.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.condition = check_finite("condition", condition)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the network, since a subclassed network loaded from a file is not built yet."""
        if not self.network.built:
            shapes = tuple(input_shape), (None,)
            call_network(self.network, *(keras.KerasTensor(shape, self.variable_dtype) for shape in shapes))

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns the network's output at states `[batch, *event]`."""
        condition = tf.fill(tf.shape(x)[:1], tf.constant(self.condition, x.dtype))
        return call_network(self.network, x, condition, training=training)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "network": serialized(self.network),
            "condition": self.condition,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> FixedCondition:
        """Rebuilds the layer from `get_config`."""
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects=custom_objects)
        return cls(**{**config, "network": network})
