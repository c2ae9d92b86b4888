"""Errors of TensorFlow in training that need a sentence: memory that runs out, and machines that are lost. Floor 0."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from tfp_ebm.memory import naming_memory
from tfp_ebm.replicas import is_one_machine

# What collective operations raise where a peer is gone, by its state when they notice.
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError)


@contextlib.contextmanager
def naming_failures_of_training(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Names memory, and raises RuntimeError for what collective operations raise where another machine has stopped.

    >>> with naming_failures_of_training(tf.distribute.get_strategy()):
    ...     pass
    """
    try:
        with naming_memory("pass a smaller `batch_size`, or smaller batches"):
            yield
    except _LOST as error:
        if is_one_machine(strategy):
            raise
        raise RuntimeError(
            "another machine of the training has stopped, or cannot be reached: start all machines again. With "
            f"`callbacks.Backup` the training continues where it was last saved. ({error.message.splitlines()[0]})"
        ) from error
