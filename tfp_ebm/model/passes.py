"""The order of rows in training: each pass over arrays has one of its own, which the model's seed and step decide.

Keras's own shuffling depends on the process or, once seeded, repeats, so that a run which was interrupted and resumed
would differ from one that was not.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_count
from tfp_ebm.energy.data import in_batches, is_array
from tfp_ebm.random import fold_in

# The number folded into a model's seed for the order of rows, so that no step shares its random numbers.
_ORDER = 2
# Batches that are prepared while the model trains.
_PREFETCHED = 16


class Beginning(keras.callbacks.Callback):
    """Notes the model's step at the beginning of each epoch.

    The order of a pass follows from it. The counter itself may already have been raised when the pass begins: reading
    rows and counting are operations of one step, which no order of execution connects.
    """

    step = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """See Keras."""
        self.step = int(self.model._step.numpy())


def in_order_of_seed(model: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `fit`, in which arrays that are to be shuffled are a dataset of batches of `batch_size`.

    Everything else is as Keras has it: the last rows are those of `validation_split`, the last batch may be smaller,
    and `batch_size` is 32 or what `steps_per_epoch` requires. Replicas share each batch.

    Args:
      model: an `EnergyTrainer`; its step counter when an epoch begins decides the order of the passes begun in it.
      call: the arguments of `fit`, by name.

    Raises:
      ValueError: if `validation_split` or `batch_size` does not fit the number of rows.
    """
    x, split = call["x"], call.get("validation_split") or 0.0
    if not is_array(x):
        return call
    _check_sizes(len(x), split, call.get("batch_size"))
    if call.get("shuffle", True) is not True:
        return call
    arrays = [x, call.get("y"), call.get("sample_weight")]
    arrays = [np.asarray(array) if isinstance(array, list | tuple) else array for array in arrays]
    count = len(arrays[0])
    steps, batch_size = call.get("steps_per_epoch"), call.get("batch_size")
    batch_size = batch_size or (math.ceil(count / steps) if steps else 32)
    call = call | {"y": None, "sample_weight": None, "validation_split": 0.0, "shuffle": False}
    call["batch_size"] = batch_size  # for `StepsTogether`: Keras ignores it beside a dataset
    call["validation_batch_size"] = call.get("validation_batch_size") or batch_size
    if split and call.get("validation_data") is None:
        count = math.floor(count * (1.0 - split))
        call["validation_data"] = tuple(None if a is None else a[count:] for a in arrays)
    parts = [None if a is None else _tensor(a[:count], model.dtype if a is arrays[0] else None) for a in arrays]
    beginning, callbacks = Beginning(), call.get("callbacks") or []
    if isinstance(callbacks, keras.callbacks.CallbackList):  # it may have been used before
        beginning.set_model(model)
        callbacks.callbacks = [beginning, *(one for one in callbacks.callbacks if not isinstance(one, Beginning))]
    else:
        callbacks = [beginning, *callbacks]
    batches = _batches(keras.utils.pack_x_y_sample_weight(*parts), count, batch_size, model.seed, beginning)
    return call | {"x": batches, "callbacks": callbacks}


def _check_sizes(count: int, split: float, batch_size: Any) -> None:
    """Raises ValueError if a split, or a batch, does not fit the number of rows."""
    if not 0.0 <= split < 1.0:
        raise ValueError(f"`validation_split` must be at least 0 and below 1, got {split}.")
    train = math.floor(count * (1.0 - split))
    if split and train in (0, count):
        raise ValueError(f"`validation_split` must leave rows on both sides, got {split} of {count} rows.")
    if batch_size is not None and check_count("batch_size", batch_size) > train:
        raise ValueError(f"`batch_size` must not exceed the number of rows, got {batch_size} for {train} rows.")


def _tensor(array: Any, dtype: str | None) -> tf.Tensor:
    """Returns a tensor of an array; numbers with a fraction are of `dtype`, by default Keras's."""
    tensor = tf.convert_to_tensor(array)
    return tf.cast(tensor, dtype or keras.config.floatx()) if tensor.dtype.is_floating else tensor


def _batches(
    parts: Any, count: int, batch_size: int, model_seed: tuple[int, int], beginning: Beginning
) -> tf.data.Dataset:
    """Returns one pass over rows in batches, in a new order each time that it is iterated over."""
    number_of_batches = math.ceil(count / batch_size)

    def one_pass(_: tf.Tensor) -> tf.data.Dataset:
        step = tf.numpy_function(lambda: np.int64(beginning.step), [], tf.int64)
        seed = fold_in(fold_in(tf.constant(model_seed, tf.int32), _ORDER), step)
        order = tf.random.experimental.stateless_shuffle(tf.range(count), seed)
        return in_batches(parts, order, batch_size)

    batches = tf.data.Dataset.range(1).flat_map(one_pass).prefetch(_PREFETCHED)
    # TensorFlow's tuning thread sleeps for up to as long again as the training took, and `fit` may wait for it
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.apply(tf.data.experimental.assert_cardinality(number_of_batches)).with_options(options)
