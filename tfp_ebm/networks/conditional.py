"""Networks of (x, condition): a family of energies E(x; c), one for each value of a number c, such as a noise scale.

Keras has two ways to write such a network, a functional model with two inputs and a subclass whose `call` takes two
tensors; here both are called in one way. With c held fixed by `FixedCondition` the network is an ordinary one,
and nothing that takes networks of x alone has to know of conditions.
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
    """Whether a network takes a condition beside x: as its second input, or as second required argument of `call`.

    Args:
      network: a Keras model or layer.

    Raises:
      ValueError: if it takes more than that, or a condition that is not one number per row.

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
    """A network's output at states `[batch, *event]`, given one condition for each, `[batch]`, or None.

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
    """A network's config as Keras serialises it.

    Keras notes the shape of the first argument alone, and warns at loading if it cannot build a subclassed network from
    that; a network of two has to be built by who calls it.

    >>> sorted(serialized(FixedCondition(keras.Model([x := keras.Input((2,)), keras.Input(())], x), 1.0))["config"])[:2]
    ['condition', 'dtype']
    """
    config = keras.saving.serialize_keras_object(network)
    if takes_condition(network):
        config.pop("build_config", None)
    return config


@keras.saving.register_keras_serializable(package="tfp_ebm")
class FixedCondition(keras.layers.Layer):
    """A network of (x, condition) with the condition held fixed: a network of x alone, with the same weights.

    Args:
      network: a functional model of two inputs, or a layer whose `call` takes two tensors.
      condition: the number that is its second argument, for every row.
      **kwargs: Keras's own.

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
            raise ValueError("`network` must take a condition beside x, got one that takes x alone.")
        kwargs.setdefault("dtype", network.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        self.network = network
        self.condition = check_finite("condition", condition)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the network, which a subclassed one that is loaded from a file is not yet."""
        if not self.network.built:
            shapes = tuple(input_shape), (None,)
            call_network(self.network, *(keras.KerasTensor(shape, self.variable_dtype) for shape in shapes))

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """The network's output at states `[batch, *event]`."""
        condition = tf.fill(tf.shape(x)[:1], tf.constant(self.condition, x.dtype))
        return call_network(self.network, x, condition, training=training)

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
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
