"""Reading the data that Keras's `fit` accepts: arrays, `tf.data`, `keras.utils.PyDataset`, generators of batches.

A model wants to look at data before Keras does: for its shape, its moments, and the mistakes in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_data, is_frame
from tfp_ebm.random import fold_in, stateless_seed


def is_array(x: Any) -> bool:
    """Whether `x` is data itself (array, tensor, data frame, nested list) and not something that yields batches."""
    if isinstance(x, tf.data.Dataset | tf.distribute.DistributedDataset | keras.utils.PyDataset):
        return False
    return isinstance(x, list | tuple) or is_frame(x) or not (hasattr(x, "__next__") or hasattr(x, "dataset"))


def row_blocks(x: Any, event_shape: tuple[int, ...] | None = None) -> Iterator[np.ndarray]:
    """Yields all data as arrays `[rows, *event]`, each checked to be finite and of the event shape.

    >>> [block.shape for block in row_blocks(tf.data.Dataset.from_tensor_slices(np.ones([5, 2])).batch(3))]
    [(3, 2), (2, 2)]
    """
    if is_array(x):
        yield check_data("x", x, event_shape)
    elif isinstance(x, keras.utils.PyDataset):
        for i in range(x.num_batches or len(x)):
            yield _rows(x[i], event_shape)
    else:
        for batch in x:
            yield _rows(batch, event_shape)


def _rows(batch: Any, event_shape: tuple[int, ...] | None) -> np.ndarray:
    x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
    return check_data("x", x, event_shape)


def first_rows(x: Any, limit: int, event_shape: tuple[int, ...] | None = None) -> tuple[np.ndarray, Any]:
    """Looks at the first rows of `x` (all of them are checked if it is an array).

    Returns:
      at most `limit` rows, and `x` itself, or, where looking used up a generator's batches, one that yields them again.
    """
    if is_array(x):
        whole = check_data("x", x, event_shape)
        return whole[:limit], whole if isinstance(x, list | tuple) or is_frame(x) else x
    batches = iter(x) if hasattr(x, "__next__") else None
    source: Any = x if batches is None else batches
    seen, taken, rows = [], [], 0
    for batch in source if not isinstance(x, keras.utils.PyDataset) else (x[i] for i in range(x.num_batches or 1)):
        seen.append(batch)
        taken.append(_rows(batch, event_shape))
        rows += len(taken[-1])
        if rows >= limit:
            break
    if not taken:
        raise ValueError("`x` must not be empty, but yielded no batch.")
    return np.concatenate(taken)[:limit], x if batches is None else _again(seen, batches)


def _again(seen: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    # a generator, not itertools.chain: Keras takes no other iterator
    yield from seen
    yield from rest


def batches_of_tuples(x: Any) -> Any:
    """`x`, where it is a generator made to yield the tuples that Keras asks of one.

    >>> list(batches_of_tuples(i for i in range(2)))
    [(0,), (1,)]
    """
    if not hasattr(x, "__next__"):
        return x
    return (batch if isinstance(batch, tuple) else (batch,) for batch in x)


def shuffled_batches(x: np.ndarray, batch_size: int, seed: Any) -> tf.data.Dataset:
    """An endless dataset of batches of rows in an order that follows from (seed, epoch) alone.

    Keras's own shuffling differs from process to process, or, once seeded, repeats in every epoch.

    >>> batches = iter(shuffled_batches(np.arange(8.0).reshape(4, 2), 2, seed=0))
    >>> epoch = np.concatenate([next(batches), next(batches)])
    >>> sorted(epoch[:, 0].tolist())
    [0.0, 2.0, 4.0, 6.0]
    """
    if batch_size > len(x):
        raise ValueError(f"`batch_size` must not exceed the rows of `x`, got {batch_size} for {len(x)} rows.")
    rows, seed = tf.constant(x), stateless_seed(seed)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(len(x)), seed=fold_in(seed, number))
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)

    indices = tf.data.Dataset.counter().flat_map(epoch)
    # TensorFlow's tuning thread sleeps for 10, 20, 40, … ms, and one `fit` in five waited at its end until it woke up,
    # which can take as long again as the training
    untuned = tf.data.Options()
    untuned.autotune.enabled = False
    return indices.map(lambda batch: tf.gather(rows, batch)).prefetch(16).with_options(untuned)
