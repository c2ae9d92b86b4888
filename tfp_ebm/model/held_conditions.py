"""Conditional models whose conditions are in a variable, so that compiled functions serve all of them."""

from __future__ import annotations

import types
import weakref
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.conditional import call_network

# The model of x alone whose conditions are in a variable, for each conditional model.
_HELD: weakref.WeakKeyDictionary[EnergyModel, EnergyModel] = weakref.WeakKeyDictionary()


class HeldConditions(keras.layers.Layer):
    """A network of x alone in which row i of a batch has condition i, in turn, of those that a variable holds.

    Args:
      network: a network of (x, condition).
      spec: shape and dtype of one condition.

    >>> x, sigma = keras.Input((2,)), keras.Input(())
    >>> network = keras.Model([x, sigma], x * keras.ops.expand_dims(sigma, -1))
    >>> held = HeldConditions(network, tf.TensorSpec((), tf.float32))
    >>> held.hold(tf.constant([3.0, 4.0]))
    >>> held(tf.ones([4, 2])).numpy()[:, 0].tolist()
    [3.0, 4.0, 3.0, 4.0]
    """

    def __init__(self, network: keras.layers.Layer, spec: tf.TensorSpec) -> None:
        super().__init__(autocast=False, dtype=network.dtype_policy)
        self.network = network
        fill = tf.zeros if spec.dtype.is_integer else tf.ones  # labels start at 0, and noise levels are positive
        rows = tf.Variable(fill([1, *spec.shape], spec.dtype), trainable=False, shape=[None, *spec.shape])
        self._held = types.SimpleNamespace(spec=spec, rows=rows)  # hidden from tracking: these are no weights

    def hold(self, conditions: tf.Tensor) -> None:
        """Sets the conditions, `[number, *condition]`."""
        self._held.rows.assign(conditions)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the network, if it is not built yet."""
        if not self.network.built:
            spec = self._held.spec
            x = keras.KerasTensor(input_shape, self.variable_dtype)
            call_network(self.network, x, keras.KerasTensor((None, *spec.shape), spec.dtype.name))

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns the network's output at states `[batch, *event]`."""
        rows = self._held.rows
        condition = tf.gather(rows, tf.range(tf.shape(x)[0]) % tf.shape(rows)[0])
        condition = tf.ensure_shape(condition, [x.shape[0], *self._held.spec.shape])
        return call_network(self.network, x, condition, training=training)


def held_model(model: EnergyModel) -> EnergyModel:
    """Returns the model of x alone whose network is a `HeldConditions`; it shares all else with the model."""
    if model not in _HELD:
        with tf.init_scope():
            spec = model.energy_function.condition_spec
            _HELD[model] = model.with_network(HeldConditions(model.network, spec))
    return _HELD[model]


def held_network(model: Any) -> HeldConditions:
    """Returns the network of a held model."""
    return model.network
