"""Errors of TensorFlow that need a sentence: memory that runs out, and machines that are lost. Floor 0."""

from __future__ import annotations

import contextlib
import pathlib
import re
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


def check_memory(num_bytes: int, advice: str) -> None:
    """Raises TensorFlow's error of exhausted memory if `num_bytes` are more than this process can still have.

    Where memory ends, Linux kills the process, and some libraries end it themselves, so nothing could be said later.
    Where it is unknown how much is left, and where a GPU may hold the data, nothing is raised.

    >>> try:
    ...     check_memory(10**18, "keep fewer results")
    ... except tf.errors.ResourceExhaustedError as error:
    ...     print(error.message.split(",")[0])
    out of memory: keep fewer results. (931322574.6 GB are needed
    """
    left = memory_left()
    if left is None or num_bytes <= left or tf.config.list_logical_devices("GPU"):
        return
    needed, has = num_bytes / 2**30, left / 2**30
    message = f"{_OUT_OF_MEMORY}: {advice}. ({needed:.1f} GB are needed, and {has:.1f} GB are left.)"
    raise tf.errors.ResourceExhaustedError(None, None, message)


def memory_left(proc: str = "/proc") -> int | None:
    """Returns the bytes that this process can still have, by the machine and by its own limit; None if not known."""
    try:
        machine = pathlib.Path(proc, "meminfo").read_text()
        left = 1024 * sum(int(size) for size in re.findall(r"^(?:MemAvailable|SwapFree): *(\d+) kB", machine, re.M))
        limit = re.search(r"^Max address space +(\d+)", pathlib.Path(proc, "self/limits").read_text(), re.M)
        if limit:  # otherwise unlimited
            taken = re.search(r"^VmSize:\s+(\d+) kB", pathlib.Path(proc, "self/status").read_text(), re.M)
            left = min(left, max(0, int(limit[1]) - 1024 * int(taken[1]))) if taken else left
    except OSError:  # other systems than Linux
        return None
    return left if "MemAvailable" in machine else None


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
