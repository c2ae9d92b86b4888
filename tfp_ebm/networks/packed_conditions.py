"""Dictionaries of conditions: one vector holds all their numbers, so that everything else knows vectors alone.

A network of x and several conditions is a functional model of more than two inputs, or a layer whose `call` takes x and
a dictionary. `PackedConditions` makes it a network of (x, vector). Labels among the conditions are exact in the vector
up to 2^24, the whole numbers of float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import serialization
from tfp_ebm.arguments import check_event_shape, numbers_of
from tfp_ebm.derivatives.forward_laplacian import graph_of
from tfp_ebm.energy.shapes import state_dtype
from tfp_ebm.networks.conditional import in_dtype


@keras.saving.register_keras_serializable("tfp_ebm")
class PackedConditions(keras.Model):
    """The network of (x, vector) made from a network of x and a dictionary of conditions; it shares the weights.

    Args:
      network: a functional model of more than two inputs, or of x and a dictionary; or a layer whose `call` takes x and
        a dictionary.
      shapes: the shape of each condition by its name; known for a functional model.
      dtypes: the dtypes by name of those that are not floating-point, such as "int32" for labels.

    Raises:
      TypeError, ValueError: if the shapes are none, or differ from those of a functional model.

    >>> x, a, label = keras.Input((2,)), keras.Input((3,), name="a"), keras.Input((), dtype="int32", name="label")
    >>> h = keras.layers.Concatenate()([x, a, keras.layers.Embedding(4, 2)(label)])
    >>> network = PackedConditions(keras.Model([x, a, label], keras.layers.Dense(1)(h)))
    >>> c = network.pack({"a": np.zeros([5, 3]), "label": np.arange(5) % 4})
    >>> c.shape, network(tf.zeros([5, 2]), tf.constant(c)).shape
    ((5, 4), TensorShape([5, 1]))
    """

    def __init__(
        self,
        network: keras.layers.Layer,
        shapes: Mapping[str, Any] | None = None,
        dtypes: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", state_dtype(network))
        super().__init__(**kwargs)
        self.network = network
        own = specs_of(network)
        if own is None and not shapes:
            raise ValueError("`condition_shape` must be a dictionary of shapes for a subclassed network of several.")
        if own is None:
            kinds = dict(dtypes or {})
            if unknown := sorted(set(kinds) - set(shapes or {})):
                raise ValueError(f"`condition_dtype` must have names of `condition_shape`, but {unknown} are none.")
            own = {
                name: tf.TensorSpec(check_event_shape(shape), kinds.get(name, self.dtype))
                for name, shape in (shapes or {}).items()
            }
        elif shapes is not None:
            found, given = ({key: tuple(shape) for key, shape in part.items()} for part in (_shapes_of(own), shapes))
            if found != given:
                raise ValueError(f"`condition_shape` must be that of the network's inputs, {found}, got {given}.")
        self._specs = tuple((name, own[name]) for name in sorted(own))
        self._sizes = [math.prod(spec.shape) for _, spec in self._specs]

    @property
    def input_shape(self) -> Any:
        """The shapes of a batch of x and of vectors; None if the network does not know the shape of x."""
        graph = graph_of(self.network)
        return None if graph is None else [tuple(graph.inputs[0].shape), (None, sum(self._sizes))]

    @property
    def condition_shape(self) -> tuple[int]:
        """The shape of a vector."""
        return (sum(self._sizes),)

    def pack(self, conditions: Mapping[str, Any], name: str = "condition") -> Any:
        """Returns the vectors `[..., number]` of conditions by name, each `[..., *shape]`; an array, or a tensor.

        Raises:
          TypeError, ValueError: if a condition is missing, unknown, of another shape, or no label where one is due.
        """
        names = [key for key, _ in self._specs]
        if sorted(conditions) != names:
            raise ValueError(f"`{name}` must have the names {names}, got {sorted(map(str, conditions))}.")
        parts, leading = [], []
        for (key, spec), size in zip(self._specs, self._sizes, strict=True):
            part, of = conditions[key], f"{name}[{key!r}]"
            part = in_dtype(part, spec, of) if spec.dtype.is_integer else part
            part = tf.cast(part, self.dtype) if tf.is_tensor(part) else numbers_of(of, part)
            rank = len(part.shape) - len(spec.shape)
            if rank < 0 or tuple(part.shape[rank:]) != tuple(spec.shape):
                raise ValueError(f"`{of}` must have shape [..., {str(list(spec.shape))[1:-1]}], got {part.shape}.")
            of_tf = tf.is_tensor(part)
            leading.append(tf.shape(part)[:rank] if of_tf else np.shape(part)[:rank])
            shape = tf.concat([leading[-1], [size]], 0) if of_tf else (*leading[-1], size)
            parts.append(tf.reshape(part, shape) if of_tf else part.reshape(shape))
        if not any(map(tf.is_tensor, parts)):
            common = np.broadcast_shapes(*(tuple(shape) for shape in leading))
            return np.concatenate([np.broadcast_to(part, (*common, part.shape[-1])) for part in parts], -1)
        parts = [tf.cast(part, self.dtype) for part in parts]
        common = tf.shape(parts[0])[:-1]
        for part in parts[1:]:
            common = tf.broadcast_dynamic_shape(common, tf.shape(part)[:-1])
        wide = [
            tf.broadcast_to(part, tf.concat([common, [size]], 0)) for part, size in zip(parts, self._sizes, strict=True)
        ]
        return tf.concat(wide, -1)

    def unpack(self, vectors: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the conditions by name, `[rows, *shape]`, of vectors `[rows, number]`."""
        found = {}
        for (name, spec), part in zip(self._specs, tf.split(vectors, self._sizes, -1), strict=True):
            part = tf.round(part) if spec.dtype.is_integer else part
            found[name] = tf.cast(tf.reshape(part, [-1, *spec.shape]), spec.dtype)
        return found

    def build(self, x_shape: Any, c_shape: Any) -> None:
        """Builds the network, if it is not built yet."""
        del c_shape
        if not self.network.built:
            given = {name: keras.KerasTensor((None, *spec.shape), spec.dtype.name) for name, spec in self._specs}
            self.network(keras.KerasTensor(x_shape, self.dtype), given)

    def call(self, x: tf.Tensor, c: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns the network's output at states `[batch, *event]` and vectors `[batch, number]`."""
        found = self.unpack(tf.reshape(c, [-1, sum(self._sizes)]))
        graph = graph_of(self.network)
        if graph is None:
            return self.network(x, found, training=training)
        if isinstance(graph.input[1], Mapping):
            return self.network([x, found], training=training)
        return self.network([x, *(found[given.name] for given in graph.inputs[1:])], training=training)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        network = serialization.serialized_part(self.network)
        network.pop("build_config", None)  # of the first argument alone
        shapes = {name: list(spec.shape) for name, spec in self._specs}
        dtypes = {name: spec.dtype.name for name, spec in self._specs}
        return {"name": self.name, "dtype": self.dtype, "network": network, "shapes": shapes, "dtypes": dtypes}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> PackedConditions:
        """Rebuilds the network from `get_config`."""
        return cls(**{**config, "network": keras.saving.deserialize_keras_object(config["network"], custom_objects)})


def _shapes_of(specs: Mapping[str, tf.TensorSpec]) -> dict[str, Any]:
    return {name: spec.shape for name, spec in specs.items()}


def specs_of(network: Any) -> dict[str, tf.TensorSpec] | None:
    """Returns the conditions of a functional model of several; None for any other network.

    >>> x, a, b = keras.Input((2,)), keras.Input((3,), name="a"), keras.Input((), name="b")
    >>> specs_of(keras.Model([x, {"left": a, "right": b}], x))["left"].shape, specs_of(keras.Model([x, a], x))
    (TensorShape([3]), None)
    """
    graph = graph_of(network)
    given = None if graph is None else graph.input
    if not isinstance(given, list | tuple) or len(given) < 2:
        return None
    named = (
        given[1] if isinstance(given[1], Mapping) and len(given) == 2 else {one.name: one for one in graph.inputs[1:]}
    )
    if len(given) == 2 and not isinstance(given[1], Mapping):
        return None

    def spec_of(tensor: Any) -> tf.TensorSpec:
        dtype = tf.as_dtype(tensor.dtype)
        return tf.TensorSpec(tuple(tensor.shape[1:]), tf.int32 if dtype.is_integer or dtype.is_bool else dtype)

    return {name: spec_of(tensor) for name, tensor in named.items()}


def with_packed_conditions(network: Any, shapes: Any, dtypes: Any) -> tuple[Any, Any, Any]:
    """Returns a network of x and one tensor at most, and the arguments `condition_shape`, `condition_dtype` left.

    A network of several conditions, as its graph or the dictionary of shapes says, is wrapped.
    """
    if not isinstance(shapes, Mapping) and specs_of(network) is None:
        return network, shapes, dtypes
    network = PackedConditions(network, shapes, dtypes)
    return network, network.condition_shape, None


def packed(network: Any, conditions: Any, name: str = "condition") -> Any:
    """Returns conditions as the network takes them: a dictionary becomes vectors.

    Raises:
      TypeError: if a dictionary is given, or is not given, although the network takes none, or one.
    """
    if isinstance(conditions, Mapping):
        if not hasattr(network, "pack"):
            raise TypeError(f"`{name}` must be an array: the network does not take a dictionary of conditions.")
        return network.pack(conditions, name)
    return conditions
