"""The function −E(x) of a distribution: one object per energy, so that compiled chains are reused.

Compiled chains are cached by their target. A distribution and its copies share their energy, so they must also share
the target object.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.energy.shapes import as_state, one_per_row, over_leading_dimensions
from tfp_ebm.model.energy_model import EnergyModel

# Keyed by owner, name and shape of the energy: an entry lives as long as the energy's function or its bound object.
_OF_FUNCTIONS: dict[Hashable, NegativeEnergy] = {}
# For other callables, an entry lives as long as a distribution refers to it.
_OF_OBJECTS: weakref.WeakValueDictionary[Hashable, NegativeEnergy] = weakref.WeakValueDictionary()
_MODELS: weakref.WeakValueDictionary[Hashable, EnergyModel] = weakref.WeakValueDictionary()


class NegativeEnergy:
    """−E of states `[..., *event]`, for a callable energy `[batch, *event] -> [batch]` or `[batch, 1]`.

    Args:
      resolve: returns the energy.
      dtype: of the states.
      event_shape: of one state.

    >>> energy = lambda x: tf.reduce_sum(x**2, -1)
    >>> NegativeEnergy(lambda: energy, tf.float32, (2,))(tf.ones([3, 4, 2])).shape
    TensorShape([3, 4])
    """

    def __init__(self, resolve: Callable[[], Any], dtype: tf.DType, event_shape: tuple[int, ...]) -> None:
        self._resolve, self._dtype, self._event_shape = resolve, dtype, event_shape

    def __call__(self, x: Any) -> tf.Tensor:
        """Returns the unnormalised log density."""
        energy = self._resolve()
        x = as_state(x, self._dtype, self._event_shape)
        return -over_leading_dimensions(lambda flat: one_per_row(energy(flat), flat), x, len(self._event_shape))


def _key(energy: Any) -> Hashable:
    """Returns a key that is equal for equal energies, such as partials of one function with equal arguments."""
    key: Hashable = energy
    if isinstance(energy, functools.partial):
        key = (_key(energy.func), energy.args, tuple(sorted(energy.keywords.items())))
    try:
        hash(key)
    except TypeError:
        return id(energy)
    return key


def negative_energy_of(
    energy: Callable[[tf.Tensor], tf.Tensor], dtype: tf.DType, event_shape: tuple[int, ...]
) -> NegativeEnergy:
    """Returns −E as a function, the same object for equal energies; it must not outlive the energy.

    >>> def energy(x):
    ...     return tf.reduce_sum(x**2, -1)
    >>> negative_energy_of(energy, tf.float32, (2,)) is negative_energy_of(energy, tf.float32, (2,))
    True
    """
    key: Hashable
    if isinstance(energy, types.FunctionType | types.MethodType):
        owner, function = (energy.__self__, energy.__func__) if isinstance(energy, types.MethodType) else (energy, None)
        key = (id(owner), function, dtype, event_shape)
        try:
            if key not in _OF_FUNCTIONS:
                resolve = weakref.ref(energy) if function is None else weakref.WeakMethod(energy)
                weakref.finalize(owner, _OF_FUNCTIONS.pop, key, None).atexit = False
                _OF_FUNCTIONS[key] = NegativeEnergy(resolve, dtype, event_shape)
            return _OF_FUNCTIONS[key]
        except TypeError:  # bound to an object that does not support weak references
            pass
    key = (_key(energy), dtype, event_shape)
    found = _OF_OBJECTS.get(key)
    if found is None:
        found = _OF_OBJECTS[key] = NegativeEnergy(lambda: energy, dtype, event_shape)
    return found


def model_of(network: keras.layers.Layer, event_shape: Any) -> EnergyModel:
    """Returns an `EnergyModel` of a network, the same object for one network as long as there are references to it."""
    key = (id(network), None if event_shape is None else tuple(event_shape))
    found = _MODELS.get(key)
    if found is None:
        found = _MODELS[key] = EnergyModel(network, event_shape=event_shape)
    return found


def frozen_weights(model: EnergyModel) -> list[Any]:
    """Returns the network's weights that are frozen in Keras, but trainable to TensorFlow.

    `layer.trainable = False` is kept in Keras's variables. The `tf.Variable`s inside them were created as trainable,
    so a `tf.GradientTape`, such as that of `tfp.vi.fit_surrogate_posterior`, still watches them.
    """
    return [weight for weight in model.network.weights if not weight.trainable and weight.value.trainable]


def unnormalized_log_prob(model: EnergyModel, x: Any) -> tf.Tensor:
    """Returns −E(x); tapes do not watch the weights that are frozen in Keras."""
    frozen = frozen_weights(model)
    if not frozen:
        return model.unnormalized_log_prob(x)
    # This operation reads a variable without notifying the tapes, and TensorFlow finds no variable in it to train.
    values = [
        (weight, tf.raw_ops.ReadVariableOp(resource=weight.value.handle, dtype=weight.value.dtype)) for weight in frozen
    ]
    x = as_state(x, model.dtype, model.event_shape)
    with keras.StatelessScope(state_mapping=values):
        return -model(x)
