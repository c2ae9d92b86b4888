"""The second input of `fit`: labels, for losses that take them, or the conditions of a network of (x, condition).

A functional network says what its conditions are; dictionaries of them become vectors. The `call` of a subclass may
take any: its model is then built when the first conditions come, or with numbers if the model is needed before.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_event_shape, numbers_of
from tfp_ebm.energy.data import is_array
from tfp_ebm.losses.base import Loss
from tfp_ebm.networks.conditional import (
    FixedCondition,
    condition_spec,
    in_dtype,
    spec_of_conditions,
    takes_columns,
    takes_condition,
)
from tfp_ebm.networks.joint_energy import JointEnergy, labels_of
from tfp_ebm.networks.packed_conditions import packed

# Arguments of Keras's `compile` that compare predictions with labels.
_COMPARING = ("metrics", "weighted_metrics", "loss_weights")


def is_absent(y: Any) -> bool:
    """Returns whether there is no second input: None, or the empty labels that carry weights through Keras."""
    return y is None or (hasattr(y, "shape") and len(y.shape) == 2 and y.shape[1] == 0)


def known_spec(network: Any, shape: Any, dtype: Any, default: str) -> tf.TensorSpec | None:
    """Returns shape and dtype of one condition, as far as the network or the arguments of the model say so.

    Args:
      network: the model's network.
      shape, dtype: the arguments `condition_shape` and `condition_dtype`, or None.
      default: the dtype of the states.

    Raises:
      ValueError: if the network takes no condition, or one of another shape.
    """
    if shape is None:
        return condition_spec(network) if takes_condition(network) else None
    if not takes_condition(network):
        raise ValueError("`condition_shape` must not be given: the network takes x alone.")
    shape = () if tuple(shape) in ((), (1,)) else check_event_shape(shape)
    own = condition_spec(network)
    if own is not None and tuple(own.shape) != shape:
        raise ValueError(f"`condition_shape` must be that of the network's input, {tuple(own.shape)}, got {shape}.")
    return own or tf.TensorSpec(shape, tf.as_dtype(dtype or default))


def config_of(spec: tf.TensorSpec | None) -> dict[str, Any]:
    """Returns the arguments of a model for conditions of that shape and dtype, for its config."""
    return {} if spec is None else {"condition_shape": list(spec.shape), "condition_dtype": spec.dtype.name}


def is_pending(model: Any) -> bool:
    """Returns whether the model's network takes conditions of a shape that is not known yet."""
    return model._known.condition is None and takes_condition(model.network)


def note(model: Any, conditions: Any, leading: int = 1) -> None:
    """Notes shape and dtype of the conditions of a model that does not know them.

    Args:
      model: an `EnergyTrainer`.
      conditions: an array, a tensor or the `tf.TensorSpec` of one, `[..., *condition]`.
      leading: the number of axes in front of those of one condition.
    """
    if not is_absent(conditions) and is_pending(model):
        if not hasattr(conditions, "shape"):
            conditions = np.asarray(conditions)
        model._known.condition = spec_of_conditions(conditions, tuple(conditions.shape)[leading:], model.dtype)


def note_for_states(model: Any, conditions: Any, x: Any) -> None:
    """Notes the same for a call with states `[..., *event]` and one condition, or one for each state."""
    if is_pending(model) and conditions is not None:
        leading = np.shape(x)[: len(np.shape(x)) - len(model.event_shape)]
        is_for_each = np.shape(conditions)[: len(leading)] == leading
        note(model, conditions, len(leading) if is_for_each else 0)


def note_of_source(model: Any, x: Any) -> None:
    """Notes the same for a dataset of (x, condition, ...)."""
    if isinstance(x, tf.data.Dataset) and isinstance(x.element_spec, tuple) and len(x.element_spec) > 1:
        note(model, x.element_spec[1])


def takes_conditions(model: Any) -> bool:
    """Returns whether `fit` takes the conditions of the rows: the network has some, and the loss does not draw them."""
    loss = model.loss
    return loss is not None and not loss.gives_condition and not loss.takes_labels and takes_condition(model.network)


def _refuse(model: Any, y: Any, name: str = "y") -> None:
    """Raises ValueError if a second input is missing, or is given although there is none."""
    loss = model.loss
    if loss is None or (loss.takes_labels or takes_conditions(model)) is not is_absent(y):
        return
    kind = type(loss).__name__
    if loss.takes_labels:
        raise ValueError(f"`{name}` must be given: {kind} takes labels, as in `fit(x, y)`.")
    if takes_conditions(model):
        raise ValueError(
            f"`{name}` must be given: {kind} gives the network no condition, so `fit(x, condition)` must have one for "
            "each row. (`model.given(condition)` is a model of x alone.)"
        )
    raise ValueError(
        f"`y` must not be given: {kind} learns the density of x and takes no labels. "
        "(Pass x alone; validation_data too is x alone, or (x, None, sample_weight).)"
    )


def checked(model: Any, x: Any, y: Any, name: str = "y") -> Any:
    """Returns the second input of `fit` or `evaluate` after a check, as far as it is known.

    Args:
      model: an `EnergyTrainer`.
      x: an array, or a source of batches.
      y: labels `[rows]`, conditions `[rows, ...]`, or None.
      name: the argument's name, for the error messages.

    Raises:
      TypeError, ValueError: if it is missing, or given although there is none; if labels are no classes, conditions are
        not finite or have another shape, or their number differs from that of the rows.
    """
    y = packed(model.network, y, name)
    if not is_array(x):
        note_of_source(model, x)
        if not is_absent(y):
            _refuse(model, y, name)
        return y
    _refuse(model, y, name)
    if is_absent(y) or model.loss is None:
        return y
    if takes_conditions(model):
        return _checked_conditions(model, x, y, name)
    labels = np.asarray(labels_of(np.asarray(y), name))
    if labels.shape != np.shape(x)[:1]:
        raise ValueError(f"`{name}` must have shape ({len(x)},), one label for each row of x, got {labels.shape}.")
    count = getattr(model.network, "num_classes", None)
    if count is not None and labels.size and labels.max() >= count:
        raise ValueError(f"`{name}` must be below the number of classes, {count}, got {labels.max()}.")
    return labels


def _checked_conditions(model: Any, x: Any, y: Any, name: str) -> np.ndarray:
    conditions = numbers_of(name, y)
    note(model, conditions)
    spec = model._known.condition
    shape = tuple(spec.shape)
    columns = (np.shape(x)[0], *(shape or (1,)))
    if conditions.shape not in ((np.shape(x)[0], *shape), columns):
        expected = ", ".join(map(str, (np.shape(x)[0], *shape)))
        raise ValueError(f"`{name}` must have shape ({expected}), one condition per row, got {conditions.shape}.")
    if not np.isfinite(conditions).all():
        raise ValueError(f"`{name}` must be finite, got {int((~np.isfinite(conditions)).sum())} NaN or infinities.")
    return np.asarray(in_dtype(conditions, spec, name))


def of_batch(model: Any, y: Any) -> Any:
    """Returns the second input of a batch, which is being traced: labels, conditions in their dtype, or None.

    Raises:
      ValueError: if it is missing, or given although there is none.
    """
    y = packed(model.network, y, "y")
    _refuse(model, y)
    if is_absent(y):
        return None
    if takes_conditions(model) and not model._known.condition.dtype.is_integer:
        return tf.cast(y, model._known.condition.dtype)
    return y


def is_batch(model: Any, condition: Any) -> bool:
    """Returns whether `condition` is a batch of conditions, or one that is not known while a function is traced."""
    if not model.is_conditional:
        return False
    known = condition if not isinstance(condition, dict) else packed(model.network, condition)
    if is_pending(model):
        return False
    spec = model.energy_function.condition_spec
    shape = tuple(known.shape) if hasattr(known, "shape") else np.shape(known)
    if len(shape) == len(spec.shape) or (shape == (1,) and takes_columns(model.network)):
        return tf.is_tensor(known) and not hasattr(known, "numpy")
    return len(shape) > len(spec.shape)


def given_network(model: Any, condition: Any) -> keras.layers.Layer:
    """Returns the network of x alone with one condition, or of one class of a `JointEnergy`.

    Raises:
      ValueError: if the network takes no condition.
    """
    condition = packed(model.network, condition)
    if isinstance(model.network, JointEnergy) or hasattr(model.network, "draw_given"):
        return model.network.given(condition)
    if not model.is_conditional:
        raise ValueError("`condition` must not be given: the network takes x alone.")
    if hasattr(condition, "shape") or np.shape(condition):
        note(model, condition, 0)
    spec = model.energy_function.condition_spec
    if np.shape(condition) not in (tuple(spec.shape), (1,)):
        raise ValueError(f"`condition` must have shape {tuple(spec.shape)}, got {np.shape(condition)}.")
    return FixedCondition(model.network, condition, spec.dtype.name)


def metrics_of(loss: Loss, arguments: dict[str, Any]) -> dict[str, Any]:
    """Removes from the arguments of `compile` those that compare predictions with labels, and returns them.

    Raises:
      ValueError: if one is given although the loss takes no labels, or weights of several losses are given.
    """
    given = {name: value for name in _COMPARING if (value := arguments.pop(name, None))}
    for name in given:
        if not loss.takes_labels or name == "loss_weights":
            raise ValueError(f"`{name}` must not be given: an energy model has no labels to compare with.")
    return given


def update_metrics(compiled: Any, y: Any, predictions: tf.Tensor | None, sample_weight: Any) -> None:
    """Updates the metrics of `compile(metrics=...)`, if there are any, by the labels and the loss's predictions."""
    if compiled is None or predictions is None:
        return
    if not compiled.built:
        with tf.init_scope():  # the weights of metrics must not belong to the step that is being traced
            compiled.build(*(keras.KerasTensor(part.shape, part.dtype.name) for part in (y, predictions)))
    compiled.update_state(y, predictions, sample_weight)
