"""Errors of TensorFlow that need a sentence: memory that runs out, and machines that are lost. Floor 0."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from tfp_ebm.replicas import is_one_machine

# What collective operations raise where a peer is gone, by its state when they notice.
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.InternalError)

_OUT_OF_MEMORY = "out of memory"


@contextlib.contextmanager
def naming_memory(advice: str) -> Iterator[None]:
    """Adds advice to the error of TensorFlow that memory is exhausted; its class remains.

    >>> try:
    ...     with naming_memory("pass fewer rows"):
    ...         raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
    ... except tf.errors.ResourceExhaustedError as error:
    ...     error.message
    'out of memory: pass fewer rows. (OOM when allocating)'
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        if error.message.startswith(_OUT_OF_MEMORY):  # an inner function has named it
            raise
        message = f"{_OUT_OF_MEMORY}: {advice}. ({error.message})"
        raise tf.errors.ResourceExhaustedError(error.node_def, error.op, message) from error


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
