"""The second input of `fit`: labels, for losses that take them, and Keras's metrics, which compare them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.energy.data import is_array
from tfp_ebm.losses.base import Loss
from tfp_ebm.networks.joint_energy import labels_of

# Arguments of Keras's `compile` that compare predictions with labels.
_COMPARING = ("metrics", "weighted_metrics", "loss_weights")


def is_absent(y: Any) -> bool:
    """Returns whether there is no second input: None, or the empty labels that carry weights through Keras."""
    return y is None or (hasattr(y, "shape") and len(y.shape) == 2 and y.shape[1] == 0)


def refuse_surplus(loss: Loss | None, y: Any) -> None:
    """Raises ValueError if labels are given to a loss that takes none."""
    if not is_absent(y) and loss is not None and not loss.takes_labels:
        raise ValueError(
            f"`y` must not be given: {type(loss).__name__} learns the density of x and takes no labels. "
            "(Pass x alone; validation_data too is x alone, or (x, None, sample_weight).)"
        )


def checked(model: Any, x: Any, y: Any, name: str = "y") -> Any:
    """Returns the second input of `fit` or `evaluate` after a check, as far as it is known.

    Args:
      model: an `EnergyTrainer`.
      x: an array, or a source of batches.
      y: labels `[rows]`, or None.
      name: the argument's name, for the error messages.

    Raises:
      TypeError, ValueError: if the loss takes no labels, labels are missing or are no classes, or their number differs
        from that of the rows.
    """
    refuse_surplus(model.loss, y)
    if model.loss is None or not model.loss.takes_labels or not is_array(x):
        return y
    if is_absent(y):
        raise ValueError(f"`{name}` must be given: {type(model.loss).__name__} takes labels, as in `fit(x, y)`.")
    labels = np.asarray(labels_of(np.asarray(y), name))
    if labels.shape != np.shape(x)[:1]:
        raise ValueError(f"`{name}` must have shape ({len(x)},), one label for each row of x, got {labels.shape}.")
    count = getattr(model.network, "num_classes", None)
    if count is not None and labels.size and labels.max() >= count:
        raise ValueError(f"`{name}` must be below the number of classes, {count}, got {labels.max()}.")
    return labels


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
