"""Networks of (x, condition): a family of energies E(x; c), one for each c, such as a noise scale, a vector or a label.

Keras has two forms of such a network: a functional model with two inputs, and a subclass whose `call` takes two
tensors. The functions below call both in the same way. `FixedCondition` fixes c and gives a network of x alone, so all
functions for such networks work without knowledge of conditions.
"""

from __future__ import annotations

import inspect
import types
from inspect import Parameter
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import serialization
from tfp_ebm.arguments import check_finite, numbers_of
from tfp_ebm.derivatives.forward_laplacian import forward_laplacian_rule, graph_of, no_rule, propagate
from tfp_ebm.derivatives.jet import Jet


def takes_condition(network: Any) -> bool:
    """Returns whether a network also takes a condition, as its second input or second required argument of `call`.

    Args:
      network: a Keras model or layer.

    Raises:
      ValueError: if it takes more inputs.

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
    if count > 2:
        raise ValueError(f"`network` must take x, or x and a condition, got one that takes {count} tensors.")
    return count == 2


def condition_spec(network: Any) -> tf.TensorSpec | None:
    """Returns shape and dtype of one condition, if the network says so; None for a subclass, whose `call` may take any.

    A condition of shape (1,) counts as a number, (). Whole numbers, such as labels, are int32. A network of the package
    has its own as the attribute `own_condition_spec`.

    >>> x, label = keras.Input((2,)), keras.Input((), dtype="int32")
    >>> condition_spec(keras.Model([x, label], x))
    TensorSpec(shape=(), dtype=tf.int32, name=None)
    """
    own = getattr(network, "own_condition_spec", None)
    if own is not None:
        return own
    graph = graph_of(network)
    if graph is not None and len(graph.inputs) == 2:
        shape, dtype = tuple(graph.inputs[1].shape[1:]), tf.as_dtype(graph.inputs[1].dtype)
    else:
        shapes = getattr(network, "input_shape", None)
        if not isinstance(shapes, list) or len(shapes) != 2:
            return None
        shape, dtype = tuple(shapes[1][1:]), tf.as_dtype(network.variable_dtype)
    dtype = tf.int32 if dtype.is_integer or dtype.is_bool else dtype
    return tf.TensorSpec(() if shape == (1,) else shape, dtype)


def takes_columns(network: Any) -> bool:
    """Returns whether a network says that its condition is a number in a column, of shape (1,).

    >>> x = keras.Input((2,))
    >>> takes_columns(keras.Model([x, keras.Input((1,))], x)), takes_columns(keras.Model([x, keras.Input(())], x))
    (True, False)
    """
    shapes = getattr(network, "input_shape", None)
    return isinstance(shapes, list) and len(shapes) == 2 and tuple(shapes[1][1:]) == (1,)


def spec_of_conditions(conditions: Any, shape: tuple[int, ...], dtype: Any) -> tf.TensorSpec:
    """Returns the spec of one condition of that shape: int32 if the conditions are whole numbers, else `dtype`.

    >>> spec_of_conditions(np.zeros([5, 3], "int64"), (3,), "float32").dtype.name
    'int32'
    """
    given = getattr(conditions, "dtype", None)
    given = tf.as_dtype(np.asarray(conditions).dtype if given is None else given)
    is_whole = given.is_integer or given.is_bool
    return tf.TensorSpec(() if tuple(shape) == (1,) else tuple(shape), tf.int32 if is_whole else tf.as_dtype(dtype))


def in_dtype(condition: Any, spec: tf.TensorSpec, name: str = "condition") -> Any:
    """Returns a condition in a form that `as_state` takes for its dtype: labels as int32, and lists as arrays.

    Raises:
      TypeError: for fractions or a floating-point tensor where labels, whole numbers, are expected.
    """
    if isinstance(condition, list | tuple):
        condition = np.asarray(condition)
    if not spec.dtype.is_integer:
        is_whole = tf.is_tensor(condition) and (condition.dtype.is_integer or condition.dtype.is_bool)
        return tf.cast(condition, spec.dtype) if is_whole else condition
    if tf.is_tensor(condition):
        if not (condition.dtype.is_integer or condition.dtype.is_bool):
            raise TypeError(f"`{name}` must hold whole numbers, got a tensor of dtype {condition.dtype.name}.")
        return tf.cast(condition, spec.dtype)
    array = numbers_of(name, condition)
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        raise TypeError(f"`{name}` must hold whole numbers, got fractions or NaN.")
    return array.astype(np.int32)


def call_network(network: Any, x: Any, condition: Any, **kwargs: Any) -> Any:
    """Returns a network's output at states `[batch, *event]`, given one condition for each, `[batch, ...]`, or None.

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


def propagate_given(network: Any, jet: Jet, condition: tf.Tensor, training: bool) -> Jet:
    """Propagates the jet of x through a functional network of [x, condition].

    Raises:
      NoForwardRule: if the network has no graph, or one of its layers has no rule.
    """
    graph = graph_of(network)
    if graph is None or len(graph.inputs) != 2:
        raise no_rule(network, "takes a condition in a `call` of its own")
    given = tf.reshape(condition, [-1, *graph.inputs[1].shape[1:]])
    return propagate(network, [jet, given], training=training)


def serialized(network: keras.layers.Layer) -> dict[str, Any]:
    """Returns a network's config as serialised by Keras.

    Keras records the shape of the first argument only, and warns at loading if it cannot build a subclassed network
    from it; a network with two arguments must be built by the caller.

    >>> sorted(serialized(FixedCondition(keras.Model([x := keras.Input((2,)), keras.Input(())], x), 1.0))["config"])[:2]
    ['condition', 'condition_dtype']
    """
    config = serialization.serialized_part(network)
    if takes_condition(network):
        config.pop("build_config", None)
    return config


def _checked(condition: Any, spec: tf.TensorSpec) -> Any:
    """Returns one condition as a number, if it is one, else as an array.

    Raises:
      TypeError, ValueError: if it is not finite, or has another shape or dtype.
    """
    if not spec.dtype.is_integer and spec.shape == ():
        value = np.reshape(condition, ()).item() if np.shape(condition) == (1,) else condition
        return check_finite("condition", value)
    array = np.asarray(in_dtype(condition, spec)) if spec.dtype.is_integer else numbers_of("condition", condition)
    if array.shape == (1,) and spec.shape == ():
        array = array[0]
    if np.shape(array) != tuple(spec.shape):
        raise ValueError(f"`condition` must have shape {tuple(spec.shape)}, got {np.shape(array)}.")
    if not np.isfinite(array).all():
        raise ValueError("`condition` must be finite, got NaN or infinity.")
    return int(array) if np.shape(array) == () else array.astype(spec.dtype.as_numpy_dtype)


@keras.saving.register_keras_serializable(package="tfp_ebm")
class FixedCondition(keras.layers.Layer):
    """A network of x alone, made from a network of (x, condition) by fixing the condition; it shares the weights.

    Args:
      network: a functional model of two inputs, or a layer whose `call` takes two tensors.
      condition: the number, array or label used as second argument for every row.
      condition_dtype: "int32" for a label, for a subclassed network; a functional one has its own dtype.
      **kwargs: passed to `keras.layers.Layer`.

    Input and output as for `network`.

    Raises:
      TypeError, ValueError: if the condition is not finite, has another shape than the network takes, or the network
        takes none.

    >>> x, sigma = keras.Input((2,)), keras.Input(())
    >>> network = keras.Model([x, sigma], x * keras.ops.expand_dims(sigma, -1))
    >>> FixedCondition(network, 3.0)(tf.ones([1, 2])).numpy().tolist()
    [[3.0, 3.0]]
    """

    def __init__(
        self, network: keras.layers.Layer, condition: Any, condition_dtype: str | None = None, **kwargs: Any
    ) -> None:
        if not takes_condition(network):
            raise ValueError("`network` must take x and a condition, got one that takes x alone.")
        kwargs.setdefault("dtype", network.dtype_policy)
        super().__init__(autocast=False, **kwargs)
        self.network = network
        spec = condition_spec(network)
        if spec is None:
            shape = np.shape(condition)
            spec = tf.TensorSpec(() if shape == (1,) else shape, condition_dtype or network.variable_dtype)
        self.condition: Any = _checked(condition, spec)
        self._given = types.SimpleNamespace(spec=spec)  # hidden from TensorFlow's tracking

    @property
    def condition_spec(self) -> tf.TensorSpec:
        """The shape and dtype of the condition."""
        return self._given.spec

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the network, since a subclassed network loaded from a file is not built yet."""
        if not self.network.built:
            x = keras.KerasTensor(input_shape, self.variable_dtype)
            spec = self.condition_spec
            call_network(self.network, x, keras.KerasTensor((None, *spec.shape), spec.dtype.name))

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns the network's output at states `[batch, *event]`."""
        return call_network(self.network, x, self.for_rows(x), training=training)

    def for_rows(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the condition once for each state."""
        dtype = self.condition_spec.dtype
        one = tf.constant(self.condition, dtype if dtype.is_integer else x.dtype)
        condition = tf.broadcast_to(one, tf.concat([tf.shape(x)[:1], self.condition_spec.shape], 0))
        return tf.ensure_shape(condition, [x.shape[0], *self.condition_spec.shape])

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "network": serialized(self.network),
            "condition": np.asarray(self.condition).tolist(),
            "condition_dtype": self.condition_spec.dtype.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> FixedCondition:
        """Rebuilds the layer from `get_config`."""
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects=custom_objects)
        return cls(**{**config, "network": network})


@forward_laplacian_rule(FixedCondition, takes_training=True)
def _fixed_condition(layer: FixedCondition, jet: Jet, training: bool = False) -> Jet:
    return propagate_given(layer.network, jet, layer.for_rows(jet.value), training)
