"""Monitors a training: running means of a loss's metrics, non-finite steps, and the resulting errors.

An update is applied only if the loss and its gradient are finite, on every replica. Otherwise the gradient counts as
zero, and `fit` stops with an error that names the variables concerned. There is one exception. Under a
`keras.optimizers.LossScaleOptimizer` (float16) the scaled gradient may overflow while the scale is being adapted: the
optimizer skips such a step and halves its scale. Such steps are reported only once the scale is at 1 or below.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_keras_3
from tfp_ebm.model.executions import last_batch_run
from tfp_ebm.replicas import sum_over_replicas

_NO_DERIVATIVE = (
    "a function in the network or in the loss has no finite derivative at some row, as a norm or a square root at 0 "
    "(add a small number under the root) or a logarithm at 0"
)


class NonFiniteSteps(keras.metrics.Metric):
    """Counts of the steps whose loss, or whose gradient in each of the variables, was not finite.

    Steps that the optimizer skipped because the scale of the loss was too large are counted separately.
    """

    def __init__(self, num_variables: int) -> None:
        super().__init__(name="nonfinite_steps", dtype="float32")
        self.counts = self.add_variable(shape=(2 + num_variables,), initializer="zeros", name="counts")

    def update_state(self, skipped: tf.Tensor, bad_loss: tf.Tensor, bad_gradients: tf.Tensor) -> None:
        """Counts one step, by whether it was skipped, and whether its loss and gradients, `[variables]`, were bad."""
        bad = tf.concat([tf.stack([skipped, bad_loss]), bad_gradients], 0)
        self.counts.assign_add(tf.cast(bad, self.counts.dtype))

    def result(self) -> tf.Tensor:
        """Returns the numbers of skipped steps, of bad losses, and of bad gradients in each variable."""
        return tf.convert_to_tensor(self.counts.value)


class Trackers:
    """Running means of a loss's metrics; an object, since Keras would track a tuple of metrics as weights."""

    def __init__(self, names: Sequence[str]) -> None:
        self.means = {name: keras.metrics.Mean(name=name) for name in names}
        self.nonfinite: NonFiniteSteps | None = None

    def update(self, metrics: Mapping[str, tf.Tensor], weight: tf.Tensor) -> None:
        """Adds values with a weight, such as the number of rows; with weight zero a value is ignored, even if NaN."""
        for name, value in metrics.items():
            value = tf.convert_to_tensor(value)
            self.means[name].update_state(tf.where(weight > 0, value, tf.zeros_like(value)), sample_weight=weight)


def scale_of_loss(optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
    """Returns the number by which the optimizer multiplies the loss."""
    return tf.convert_to_tensor(optimizer.scale_loss(tf.ones([])), tf.float32)


def is_scaler(optimizer: Any) -> bool:
    """Returns whether the optimizer adapts the scale of the loss and skips steps whose gradients overflow."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def finite_update(
    optimizer: keras.optimizers.Optimizer, loss: tf.Tensor, gradients: Sequence[tf.Tensor], trackers: Trackers
) -> list[tf.Tensor]:
    """Returns the gradients to apply, and records in `trackers` whether the step was finite.

    Args:
      optimizer: the model's optimizer.
      loss: this replica's loss, not scaled.
      gradients: gradients of the scaled loss, one for each trainable variable, on this replica.
      trackers: the record of the step; also of "gradient_norm" if they have such a mean.

    Returns:
      The gradients. If one of them or the loss is not finite on any replica, they are zero or, for an optimizer that
      skips such steps, NaN on all replicas.
    """
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
    bad_loss = ~tf.math.is_finite(loss)
    # one vector from here on: operations on each variable would add up in a small network
    bad_gradients = ~tf.stack([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
    is_bad = bad_loss | tf.reduce_any(bad_gradients)
    scale = scale_of_loss(optimizer)
    skips = ~bad_loss & (scale > 1.0) & is_bad if is_scaler(optimizer) else tf.constant(False)
    if trackers.nonfinite is not None:
        trackers.nonfinite.update_state(skips, bad_loss, bad_gradients & ~skips)
    if "gradient_norm" in trackers.means:
        norm = tf.linalg.global_norm(gradients) / tf.cast(scale, gradients[0].dtype)
        trackers.update({"gradient_norm": norm}, 1.0 - tf.cast(skips, tf.float32))
    is_bad = sum_over_replicas(tf.cast(is_bad, tf.float32)) > 0.0
    fill = math.nan if is_scaler(optimizer) else 0.0
    return [tf.where(is_bad, tf.cast(fill, gradient.dtype), gradient) for gradient in gradients]


def nonfinite_error(model: Any, where: str = "") -> str:
    """Returns the error message for non-finite steps since the last call; empty if there were none.

    Args:
      model: an `EnergyTrainer`.
      where: the position in the training, for the message.
    """
    nonfinite = model._trackers.nonfinite
    if nonfinite is None:
        return ""
    _, bad_loss, *bad_gradients = nonfinite.result().numpy()
    if not (bad_loss or any(bad_gradients)):
        return ""
    nonfinite.reset_state()
    if bad_loss:
        return _loss_error(model, "nan or infinite", where)
    names = [variable.path for variable, bad in zip(model.trainable_variables, bad_gradients, strict=True) if bad]
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"the gradient is not finite in {listed}{where}, though the loss is; it did not reach the weights. Either "
        f"{_NO_DERIVATIVE}, or a number overflowed on the way back (then clip the energy's inputs or compute in "
        "float32)."
    )


def _loss_error(model: Any, value: str, where: str) -> str:
    text = f"the loss became {value}{where}; no gradient of it reached the weights. Is `x` finite? If it is, "
    if getattr(model.loss, "differentiates_score", False):
        text += (
            f"and this is an early step, {_NO_DERIVATIVE}, and {type(model.loss).__name__} differentiates the network "
            "in x. In a later step, "
        )
    return text + "lower the learning rate."


class StopAtNonFiniteStep(keras.callbacks.Callback):
    """A callback that stops training with an error at the first non-finite step, which has not changed the weights.

    Args:
      raises_for_loss: whether a non-finite loss is an error; if not, another callback handles it.
    """

    # the check is made once for each compiled call, which ends at a step that is not finite
    needs_no_single_batches = True

    def __init__(self, raises_for_loss: bool = True) -> None:
        super().__init__()
        self.raises_for_loss = raises_for_loss

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Resets the counts."""
        if self.model._trackers.nonfinite is not None:
            self.model._trackers.nonfinite.reset_state()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Checks the loss and the count of non-finite steps."""
        last = last_batch_run(self.model, batch)
        if last is None:
            return
        where = f" within batch {last} of the epoch"
        error = nonfinite_error(self.model, where)
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            error = _loss_error(self.model, str(loss), where)
            if not self.raises_for_loss:
                return
        if error and (self.raises_for_loss or not error.startswith("the loss")):
            raise ValueError(error)


class TrainingWarnings(keras.callbacks.Callback):
    """A callback that issues the loss's training warning, once per fit, and warns about epochs without updates."""

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Resets the state of the warnings."""
        self.has_warned = False

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Records the numbers of updates and of skipped steps so far."""
        self.updates, self.skipped = self._counts()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Checks the metrics of the epoch."""
        optimizer = self.model.optimizer
        updates, skipped = self._counts()
        if skipped > self.skipped and updates == self.updates:
            warnings.warn(
                f"epoch {epoch + 1} changed no weight: the gradient of the scaled loss overflowed in each of its steps."
                f" The scale is {float(optimizer.dynamic_scale.numpy()):.3g} now, and is halved at each such step; "
                "set a smaller `initial_scale` of keras.optimizers.LossScaleOptimizer.",
                stacklevel=2,
            )
        is_empty = float(self.model._loss_tracker.count.numpy()) == 0.0  # a rollback has just reset the means
        message = "" if self.has_warned or is_empty else self.model.loss.training_warning(logs or {})
        if message:
            self.has_warned = True
            warnings.warn(f"{type(self.model.loss).__name__} in epoch {epoch + 1}: {message}", stacklevel=2)

    def _counts(self) -> tuple[int, int]:
        nonfinite = self.model._trackers.nonfinite
        skipped = 0 if nonfinite is None else int(nonfinite.result().numpy()[0])
        return int(self.model.optimizer.iterations.numpy()), skipped


def checked_callbacks(callbacks: Any) -> list[keras.callbacks.Callback]:
    """The callbacks in what Keras takes: None, a callback, a nested list of them, or a `keras.callbacks.CallbackList`.

    Raises:
      TypeError: for a callback of tf_keras.
    """
    is_list = isinstance(callbacks, keras.callbacks.CallbackList)
    given = callbacks.callbacks if is_list else list(tf.nest.flatten(callbacks)) if callbacks is not None else []
    for callback in given:
        check_keras_3("callbacks", callback)
    return given


def with_watchers(model: keras.Model, callbacks: Any) -> Any:
    """Returns the callbacks passed to `fit`, followed by those that monitor the training.

    Args:
      model: the model that is trained.
      callbacks: None, a callback, a nested list of them, or a `keras.callbacks.CallbackList`, which is extended.

    Raises:
      TypeError: for a callback of tf_keras.
    """
    is_list = isinstance(callbacks, keras.callbacks.CallbackList)
    given = checked_callbacks(callbacks)
    if is_list and any(isinstance(callback, TrainingWarnings) for callback in given):
        return callbacks
    ours: list[keras.callbacks.Callback] = []
    if not any(getattr(callback, "handles_divergence", False) for callback in given):
        ends_quietly = any(isinstance(callback, keras.callbacks.TerminateOnNaN) for callback in given)
        ours.append(StopAtNonFiniteStep(raises_for_loss=not ends_quietly))
    ours.append(TrainingWarnings())
    if not is_list:
        return [*given, *ours]
    for callback in ours:
        callback.set_model(model)
    callbacks.callbacks += ours
    callbacks._async_train = False  # an error raised in another thread would be lost
    return callbacks
