"""Losses that layers add while they run: activity regularisers, and `add_loss` inside `call`.

Keras stores them on the layer, as tensors of the graph in which it last ran. A training step may not run the layers at
all (the forward Laplacian applies rules instead), may run them many times, or may run them in a loop whose tensors do
not exist outside. If the network has such losses, it therefore runs once more, on the data of the step, only to collect
them. Weight regularisers do not depend on a call, and are added directly.
"""

from __future__ import annotations

import weakref
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.energy.function import EnergyFunction
from tfp_ebm.tracing import graph_function

# For each network and mode: whether its layers add losses.
_adds_losses: weakref.WeakKeyDictionary[keras.layers.Layer, dict[bool, bool]] = weakref.WeakKeyDictionary()


def losses_of_call(energy_function: EnergyFunction, z: tf.Tensor, training: bool) -> list[tf.Tensor]:
    """Returns the losses, scalars, that the layers of a network add when it runs on states `[batch, *event]`.

    The call changes no weight. A network of (x, condition) is not run again, because only the loss has the conditions;
    the function returns the losses that its layers stored when the loss ran it.
    """
    network = energy_function.network
    if energy_function.is_conditional:
        noted: list[tf.Tensor] = [loss for layer in network._flatten_layers() for loss in layer._get_own_losses()]
        return noted
    return _collected(energy_function, z, training) if adds_losses(energy_function, training) else []


def adds_losses(energy_function: EnergyFunction, training: bool) -> bool:
    """Returns whether layers of a network of x add losses; traces it once, unless all are known to add none."""
    network = energy_function.network
    if energy_function.is_conditional:  # a conditional network is not run again
        return False
    known = _adds_losses.setdefault(network, {})
    if training not in known:
        known[training] = not all(map(_is_known_to_add_none, network._flatten_layers())) and _adds_in_trial(
            energy_function, training
        )
    return known[training]


def _is_known_to_add_none(layer: keras.layers.Layer) -> bool:
    is_known = type(layer).__module__.split(".")[0] in ("keras", "tfp_ebm") and not isinstance(
        layer, keras.layers.Lambda
    )
    return is_known and layer.activity_regularizer is None


def _adds_in_trial(energy_function: EnergyFunction, training: bool) -> bool:
    found: list[int] = []

    def trial(z: tf.Tensor) -> tf.Tensor:
        found.append(len(_collected(energy_function, z, training)))
        return tf.shape(z)

    with tf.init_scope():
        spec = tf.TensorSpec((None, *energy_function.event_shape), energy_function.dtype)
        graph_function(trial, autograph=True).get_concrete_function(spec)
    return any(found)


def _collected(energy_function: EnergyFunction, z: tf.Tensor, training: bool) -> list[tf.Tensor]:
    with keras.StatelessScope(collect_losses=True) as scope:  # assignments have no effect in this scope
        energy_function.network_term(z, training=training)
    collected: list[tf.Tensor] = scope.losses
    return collected


def regularization(model: Any) -> list[tf.Tensor]:
    """Returns the regularisers of a model's trainable weights, and the losses added by its loss in this step."""
    noted = [loss for layer in model.loss._flatten_layers() for loss in layer._get_own_losses()]
    return [*model._get_regularization_losses(), *noted]
