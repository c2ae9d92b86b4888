"""Runs several training steps in one compiled call of `fit`, as many as take about 50 ms.

A call from Python costs a fixed time, which for a small network is as long as the step itself. Keras's own
`steps_per_execution` is a number that the user must choose. `steps_per_execution="auto"`, the default here, chooses it
while the model trains: the call for one batch also runs the steps of the batches after it, and the calls for these
return at once.

All such calls run one compiled function whose argument is the number of steps. Hence the numbers do not depend on the
speed of the machine, and a run that was interrupted and resumed still equals one that was not. A call never runs past
the end of an epoch or past a step that is not finite, and where a callback acts on single batches, each call runs one.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_count
from tfp_ebm.memory import check_function
from tfp_ebm.model.saving import AtomicallySavedModel
from tfp_ebm.tracing import graph_function

# A call is to take about this time: long in terms of its fixed cost, short for a user who interrupts it.
_SECONDS = 0.05
# The next call runs at most this many times the steps of the last one, whose time may have been short by chance.
_GROWTH = 4
_BATCH_METHODS = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")


class Pace(keras.callbacks.Callback):
    """Determines how many steps the next call runs, and keeps which batches of the epoch have been run.

    Args:
      alone: whether each call runs one step.
      batch_size: the largest number of rows of a step, if known.

    Attributes:
      batch_size: as given.
    """

    def __init__(self, alone: bool, batch_size: int | None) -> None:
        super().__init__()
        self.logs: Any = {}
        self.batch_size = batch_size
        self._alone = alone
        self._known: int | None = None  # number of batches of an epoch, once one has been seen
        self._batch = self._first = self._end = 0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """See Keras."""
        self._batch = self._first = self._end = 0

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """See Keras."""
        self._batch = batch

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """See Keras."""
        self._known = self._batch + 1

    @property
    def has_run(self) -> bool:
        """Whether the step of the present batch has been run by an earlier call."""
        return self._batch < self._end

    def num_steps(self, seconds: float | None, last: int) -> int:
        """Returns the number of steps of the next call.

        Args:
          seconds: the time of a step; None if it is not known yet.
          last: the number of steps of the last call.
        """
        if self._alone or seconds is None:
            return 1
        wanted = min(int(_SECONDS / max(seconds, 1e-9)), _GROWTH * last)
        # without a known end an epoch has an iterator of its own, which ends by itself
        end = (self.params or {}).get("steps") or self._known
        return max(1, wanted if end is None else min(wanted, end - self._batch))

    def record(self, num_steps: int, logs: Any) -> None:
        """Records that a call ran the steps of this batch and of those after it."""
        self._first, self._end, self.logs = self._batch, self._batch + num_steps, logs

    def last_batch(self, batch: int) -> int | None:
        """Returns the last batch that the call for `batch` ran; None if an earlier call ran `batch`."""
        return self._end - 1 if batch == self._first else None


def last_batch_run(model: Any, batch: int) -> int | None:
    """Returns the last batch that the call of `fit` for `batch` ran; None if an earlier call ran `batch`.

    Args:
      model: a `StepsTogether`.
      batch: the number that a callback received.
    """
    return batch if model._pace is None else model._pace.last_batch(batch)


def acts_on_batches(callback: keras.callbacks.Callback) -> bool:
    """Returns whether a callback must see the model after each batch.

    These are all that have a method for batches, but for those of Keras that ignore the model there.

    >>> acts_on_batches(keras.callbacks.EarlyStopping()), acts_on_batches(keras.callbacks.ModelCheckpoint("a.keras"))
    (False, False)
    >>> acts_on_batches(keras.callbacks.ModelCheckpoint("a.keras", save_freq=10))
    True
    """
    if getattr(callback, "needs_no_single_batches", False) or isinstance(callback, Pace):
        return False
    # Keras's own class has the method, not one derived from it
    owners = {
        owner
        for name in _BATCH_METHODS
        for owner in [next(one for one in type(callback).__mro__ if name in vars(one))]
        if owner is not keras.callbacks.Callback
    }
    if any(name in vars(callback) for name in _BATCH_METHODS):  # as LambdaCallback sets them
        return True
    of_epochs = keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore
    if owners and owners <= set(of_epochs):
        return getattr(callback, "save_freq", None) != "epoch"
    return not owners <= {keras.callbacks.ProgbarLogger, keras.callbacks.TerminateOnNaN}


def _like_that_of_keras(fit: Any) -> Any:
    """Returns a method with the signature of Keras's `fit`."""
    return functools.wraps(keras.Model.fit)(fit)


class StepsTogether(AtomicallySavedModel):
    """A Keras model whose `fit` runs several steps in one call, unless `compile` receives their number."""

    train_function: Any  # of Keras
    _runs_together = False
    _pace: Pace | None = None  # of the `fit` that runs now

    def compile(self, optimizer: Any = "adam", loss: Any = None, **kwargs: Any) -> None:
        """Configures training as Keras does; `steps_per_execution` may be "auto", about 50 ms a call.

        Raises:
          TypeError, ValueError: if `steps_per_execution` is neither "auto" nor a whole number of at least 1.
        """
        steps_per_execution = kwargs.pop("steps_per_execution", "auto")
        is_automatic = isinstance(steps_per_execution, str) and steps_per_execution == "auto"
        if not is_automatic:
            if isinstance(steps_per_execution, str):
                raise ValueError(
                    f'`steps_per_execution` must be "auto" or a whole number, got {steps_per_execution!r}.'
                )
            check_count("steps_per_execution", steps_per_execution)
        self._runs_together = is_automatic
        number = 1 if is_automatic else steps_per_execution
        super().compile(optimizer, loss, steps_per_execution=number, **kwargs)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns Keras's compile configuration."""
        config = super().get_compile_config() or {}
        return {**config, "steps_per_execution": "auto"} if self._runs_together else config

    @_like_that_of_keras
    def fit(self, **call: Any) -> Any:
        """Trains as Keras does."""
        callbacks = call.get("callbacks")
        # a list object of the user's own gets single batches: Keras does not give it the number of steps
        if self._runs_together and not isinstance(callbacks, keras.callbacks.CallbackList):
            given = [] if callbacks is None else list(tf.nest.flatten(callbacks))
            self._pace = Pace(any(map(acts_on_batches, given)), call.get("batch_size"))
            call["callbacks"] = [self._pace, *given]
        try:
            return super().fit(**call)
        finally:
            self._pace = None

    def make_train_function(self, force: bool = False) -> Any:
        """See Keras."""
        strategy = self.distribute_strategy
        is_local = not tf.distribute.has_strategy() and strategy is tf.distribute.get_strategy()
        if not self._runs_together or self.run_eagerly or not is_local:
            return super().make_train_function(force)
        if self.train_function is None or force:
            self.train_function = _train_function(self)
        return self.train_function


def _train_function(model: Any) -> Callable[[Any], Any]:
    """Returns the function that Keras calls for each batch, with the iterator over batches."""

    @functools.partial(_traced, jit_compile=model.jit_compile)
    def step(data: Any) -> Any:
        return tf.nest.map_structure(tf.convert_to_tensor, model.train_step(data))

    def is_finite() -> tf.Tensor:
        nonfinite = model._trackers.nonfinite
        return tf.constant(True) if nonfinite is None else tf.reduce_all(nonfinite.result()[1:] == 0.0)

    @_traced
    def run(iterator: Any, count: tf.Tensor) -> tuple[tf.Tensor, Any]:
        # the step is called in one place alone: TensorFlow might compile another call with other roundings
        spec = _without_optionals(iterator.element_spec)
        empty = step.get_concrete_function(spec).structured_outputs
        shapes = tf.nest.map_structure(lambda output: output.shape, empty)
        logs = tf.nest.map_structure(lambda output: tf.zeros([size or 0 for size in output.shape], output.dtype), empty)

        def more(done: tf.Tensor, proceeds: tf.Tensor, logs: Any) -> tf.Tensor:
            return proceeds & (done < count)

        def next_step(done: tf.Tensor, proceeds: tf.Tensor, logs: Any) -> tuple[tf.Tensor, tf.Tensor, Any]:
            batch = iterator.get_next_as_optional()
            exists = batch.has_value()
            logs = tf.cond(exists, lambda: step(_without_optionals(batch.get_value())), lambda: logs)
            return done + tf.cast(exists, tf.int32), exists & is_finite(), logs

        start = tf.constant(0), tf.constant(True), logs
        invariants = tf.TensorShape([]), tf.TensorShape([]), shapes
        done, _, logs = tf.while_loop(more, next_step, start, shape_invariants=invariants)
        return done, logs

    seconds: float | None = None
    last, is_traced = 1, False
    checked: set[int] = set()  # sizes of batches

    def train_function(iterator: Any) -> Any:
        nonlocal seconds, last, is_traced
        if not isinstance(iterator, tf.data.Iterator):  # of `train_on_batch`
            return step(_without_optionals(next(iterator)))
        pace = model._pace
        if pace is not None and pace.has_run:
            return pace.logs
        count = 1 if pace is None else pace.num_steps(seconds, last)
        batch_size = getattr(pace, "batch_size", None) or 1
        if batch_size not in checked:
            traced = step.get_concrete_function(_without_optionals(iterator.element_spec))
            check_function(traced, batch_size, bool(model.jit_compile))
            checked.add(batch_size)
        start = time.perf_counter()
        done, logs = run(iterator, tf.constant(count))
        num_steps = int(done)  # it also waits for the steps
        if not num_steps:
            raise StopIteration  # Keras ends the epoch
        logs = tf.nest.map_structure(lambda value: value.numpy(), logs)
        if is_traced:  # the first call compiles
            seconds, last = (time.perf_counter() - start) / num_steps, count
        is_traced = True
        if pace is not None:
            pace.record(num_steps, logs)
        return logs

    return train_function


def _traced(function: Callable[..., Any], jit_compile: Any = None) -> Any:
    return graph_function(function, reduce_retracing=True, jit_compile=jit_compile)


def _without_optionals(data: Any) -> Any:
    """Returns a batch in which the parts that Keras marks as absent are None."""
    absent = tf.experimental.Optional | tf.OptionalSpec
    return tf.nest.map_structure(lambda part: None if isinstance(part, absent) else part, data)
