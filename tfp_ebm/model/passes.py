"""The order of rows in training: each pass over arrays has one of its own, which the model's seed and step decide.

Keras's own shuffling depends on the process or, once seeded, repeats, so that a run which was interrupted and resumed
would differ from one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_count
from tfp_ebm.energy.data import in_batches, is_array, untuned
from tfp_ebm.random import fold_in

# The number folded into a model's seed for the order of rows, so that no step shares its random numbers.
_ORDER = 2


class Beginning(keras.callbacks.Callback):
    """Notes the model's step at the beginning of each epoch, or of the first alone.

    The order of a pass follows from it. The counter itself may already have been raised when the pass begins: reading
    rows and counting are operations of one step, which no order of execution connects.

    Args:
      of_first: whether the first epoch alone counts, because one iterator goes through all passes.

    Attributes:
      step: int64 array, the step that was noted.
    """

    def __init__(self, of_first: bool = False) -> None:
        super().__init__()
        self.of_first = of_first
        self.step: np.ndarray = np.zeros([], np.int64)
        self._is_noted = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """See Keras."""
        if not (self.of_first and self._is_noted):
            self.step[...], self._is_noted = self.model._step.numpy(), True


def in_order_of_seed(model: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `fit`, in which arrays are datasets of batches, those to be shuffled in our own order.

    Everything else is as Keras has it: the last rows are those of `validation_split`, the last batch may be smaller,
    and `batch_size` is 32 or what `steps_per_epoch` requires. Replicas share each batch.

    Args:
      model: an `EnergyTrainer`; its step counter when an epoch begins decides the order of the passes begun in it.
      call: the arguments of `fit`, by name.

    Raises:
      ValueError: if `validation_split` or `batch_size` does not fit the number of rows.
    """
    if is_array(call["x"]):
        call = _with_batches(model, call)
    validation = call.get("validation_data")
    arrays = list(validation) if isinstance(validation, list | tuple) else [validation]
    if validation is None or not is_array(arrays[0]):
        return call
    batch_size = call.get("validation_batch_size") or call.get("batch_size")
    return call | {"validation_data": _as_given(model, arrays, batch_size, call.get("validation_steps"))}


def in_their_order(model: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `evaluate`, in which arrays are a dataset of batches.

    Raises:
      ValueError: if `batch_size` is not at least 1.
    """
    if not is_array(call["x"]):
        return call
    arrays = [call["x"], call.get("y"), call.get("sample_weight")]
    batches = _as_given(model, arrays, call.get("batch_size"), call.get("steps"))
    return call | {"x": batches, "y": None, "sample_weight": None}


def _as_given(model: Any, arrays: Sequence[Any], batch_size: int | None, steps: int | None) -> tf.data.Dataset:
    """Returns batches of x, and of labels and weights where they are given, in the order of the rows."""
    count = len(arrays[0])
    if batch_size is None:
        batch_size = _default_batch_size(count, steps)
    parts = keras.utils.pack_x_y_sample_weight(*_tensors(model, arrays))
    batches = in_batches(parts, tf.range(count), check_count("batch_size", batch_size))
    return untuned(batches, math.ceil(count / batch_size))


def _with_batches(model: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `fit` with a dataset in the place of arrays, unless Keras shuffles whole batches."""
    split, shuffle = call.get("validation_split") or 0.0, call.get("shuffle", True)
    arrays = [call["x"], call.get("y"), call.get("sample_weight")]
    arrays = [np.asarray(array) if isinstance(array, list | tuple) else array for array in arrays]
    count = len(arrays[0])
    _check_sizes(count, split, call.get("batch_size"))
    if not isinstance(shuffle, bool):
        return call
    batch_size = call.get("batch_size") or _default_batch_size(count, call.get("steps_per_epoch"))
    call = call | {"y": None, "sample_weight": None, "validation_split": 0.0, "shuffle": False}
    call["batch_size"] = batch_size  # for `StepsTogether`: Keras ignores it beside a dataset
    if split and call.get("validation_data") is None:
        count = math.floor(count * (1.0 - split))
        call["validation_data"] = tuple(None if a is None else a[count:] for a in arrays)
    arrays = [None if a is None else a[:count] for a in arrays]
    if not shuffle:
        return call | {"x": _as_given(model, arrays, batch_size, None)}
    parts = keras.utils.pack_x_y_sample_weight(*_tensors(model, arrays))
    # Strategies read rows by iterators that are tuned in any case (see `untuned`): one for all epochs ends once
    with model.distribute_strategy.scope():
        is_endless = not call.get("steps_per_epoch") and tf.distribute.has_strategy()
    if is_endless:
        call["steps_per_epoch"] = math.ceil(count / batch_size)
    beginning, callbacks = Beginning(of_first=is_endless), call.get("callbacks") or []
    if isinstance(callbacks, keras.callbacks.CallbackList):  # it may have been used before
        beginning.set_model(model)
        callbacks.callbacks = [beginning, *(one for one in callbacks.callbacks if not isinstance(one, Beginning))]
    else:
        callbacks = [beginning, *callbacks]
    return call | {"x": _shuffled(parts, count, batch_size, model.seed, beginning), "callbacks": callbacks}


def _default_batch_size(count: int, steps: int | None) -> int:
    """Returns Keras's number of rows in a batch where none is given."""
    return math.ceil(count / steps) if steps else 32


def _check_sizes(count: int, split: float, batch_size: Any) -> None:
    """Raises ValueError if a split, or a batch, does not fit the number of rows."""
    if not 0.0 <= split < 1.0:
        raise ValueError(f"`validation_split` must be at least 0 and below 1, got {split}.")
    train = math.floor(count * (1.0 - split))
    if split and train in (0, count):
        raise ValueError(f"`validation_split` must leave rows on both sides, got {split} of {count} rows.")
    if batch_size is not None and check_count("batch_size", batch_size) > train:
        raise ValueError(f"`batch_size` must not exceed the number of rows, got {batch_size} for {train} rows.")


def _tensors(model: Any, arrays: Sequence[Any]) -> list[tf.Tensor | None]:
    """Returns tensors of x, y and the weights of rows; numbers with a fraction are of the model's type, or Keras's."""
    dtypes = model.dtype, keras.config.floatx(), keras.config.floatx()
    with tf.device("CPU:0"):  # where datasets read them, rather than in the memory of a GPU
        tensors = [None if array is None else tf.convert_to_tensor(array) for array in arrays]
        return [
            tf.cast(tensor, dtype) if tensor is not None and tensor.dtype.is_floating else tensor
            for tensor, dtype in zip(tensors, dtypes, strict=False)
        ]


def _shuffled(
    parts: Any, count: int, batch_size: int, model_seed: tuple[int, int], beginning: Beginning
) -> tf.data.Dataset:
    """Returns one pass over rows in batches, in a new order each time that it is iterated over, or all passes."""
    steps = math.ceil(count / batch_size)
    # TensorFlow never deletes the functions given to `numpy_function`: this one must not hold the callback's model
    noted = beginning.step

    def one_pass(number: tf.Tensor) -> tf.data.Dataset:
        step = tf.numpy_function(lambda: noted.copy(), [], tf.int64) + number * steps
        seed = fold_in(fold_in(tf.constant(model_seed, tf.int32), _ORDER), step)
        order = tf.random.experimental.stateless_shuffle(tf.range(count), seed)
        return in_batches(parts, order, batch_size)

    if beginning.of_first:
        return untuned(tf.data.Dataset.counter().flat_map(one_pass))
    return untuned(tf.data.Dataset.range(1).flat_map(one_pass), steps)
