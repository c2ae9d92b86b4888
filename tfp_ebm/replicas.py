"""What the replicas of a training step exchange under `tf.distribute`: sums, rows and logs. Floor 0.

Every function may also be called where there is one replica; it then returns its argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf


def _context() -> Any:
    """Returns the context of the replica being traced; None if there is one replica, or none is being traced."""
    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def replica_and_number() -> tuple[Any, int]:
    """Returns the number of the replica being traced, an int or a tensor, and how many there are.

    >>> replica_and_number()
    (0, 1)
    """
    context = _context()
    return (0, 1) if context is None else (context.replica_id_in_sync_group, context.num_replicas_in_sync)


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """Returns the sum of `value` over the replicas of the step being traced.

    >>> float(sum_over_replicas(tf.constant(2.0)))
    2.0
    """
    context = _context()
    if context is None:
        return value
    return tf.convert_to_tensor(context.all_reduce(tf.distribute.ReduceOp.SUM, value))


def mean_over_rows(value: tf.Tensor, num_rows: tf.Tensor) -> tf.Tensor:
    """Returns the mean of a mean over rows, weighed by each replica's number of rows; NaN if no replica has rows.

    >>> float(mean_over_rows(tf.constant(2.0), tf.constant(3)))
    2.0
    """
    if _context() is None:
        return value
    rows = tf.cast(num_rows, value.dtype)
    total = sum_over_replicas(tf.stack([tf.math.multiply_no_nan(value, rows), rows]))
    return total[0] / total[1]


def rows_of_replicas(parts: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the rows of all replicas, joined, of each part `[rows, ...]`; replicas may have different numbers.

    >>> [part.shape for part in rows_of_replicas([tf.zeros([3, 2])])]
    [TensorShape([3, 2])]
    """
    context = _context()
    return list(parts) if context is None else [context.all_gather(part, axis=0) for part in parts]


def keras_logs(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the logs of a step as Keras can reduce them: with an axis where several machines train together.

    Keras averages logs over the machines by `strategy.reduce(..., axis=0)`, which refuses scalars.

    >>> keras_logs({"loss": 1.0})
    {'loss': 1.0}
    """
    if is_one_machine(tf.distribute.get_strategy()):
        return dict(logs)
    return {name: tf.reshape(value, [1]) for name, value in logs.items()}


def is_one_machine(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether all replicas of a strategy are in this process.

    >>> is_one_machine(tf.distribute.get_strategy())
    True
    """
    number = strategy.num_replicas_in_sync
    return number == 1 or number == len(strategy.extended.worker_devices)


def is_first_machine(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process is the one that writes files: the only one, the chief, or worker 0.

    >>> is_first_machine(tf.distribute.get_strategy())
    True
    """
    if is_one_machine(strategy):
        return True
    resolver = strategy.cluster_resolver
    first = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    return bool(resolver.task_type == first and resolver.task_id == 0)
