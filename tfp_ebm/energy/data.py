"""Reads data in all forms that Keras's `fit` accepts: arrays, `tf.data`, `keras.utils.PyDataset`, generators.

Data are inspected before Keras uses them, to determine their shape and moments, and to report errors early.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_data, check_weights, is_frame
from tfp_ebm.random import fold_in, stateless_seed, uniform

# A pass over an iterator of unknown length stops, with a warning, after this number of rows.
_MAX_ROWS = 1_000_000
# Batches that are prepared while the model trains.
_PREFETCHED = 16


def is_array(x: Any) -> bool:
    """Returns whether `x` is data itself (array, tensor, data frame, nested list) and not a source of batches."""
    if isinstance(x, tf.data.Dataset | tf.distribute.DistributedDataset | keras.utils.PyDataset):
        return False
    is_data = isinstance(x, list | tuple | Mapping) or is_frame(x)
    return is_data or not (hasattr(x, "__next__") or hasattr(x, "dataset"))


def check_kind(name: str, x: Any) -> None:
    """Raises TypeError if `x`, an array, a tensor or the `tf.TypeSpec` of one, cannot be a dense array of numbers.

    The numbers themselves are checked by `check_data`.

    >>> check_kind("x", {"image": np.zeros([4, 2])})
    Traceback (most recent call last):
    ...
    TypeError: `x` must be one array of numbers, got a dict of 'image': pass the entry that holds the data, x['image'].
    """
    cure = ""
    if isinstance(x, Mapping):
        keys = ", ".join(map(repr, list(x)[:5]))
        first = repr(next(iter(x), "name"))
        got, cure = f"a {type(x).__name__} of {keys}", f"pass the entry that holds the data, {name}[{first}]"
    elif isinstance(x, tf.SparseTensor | tf.SparseTensorSpec):
        got, cure = "a sparse tensor", "make it dense by tf.sparse.to_dense"
    elif isinstance(x, tf.RaggedTensor | tf.RaggedTensorSpec):
        got, cure = "a ragged tensor", "rows must have one length; see its method to_tensor"
    elif hasattr(x, "toarray") and hasattr(x, "nnz"):
        got, cure = f"a sparse {type(x).__name__}", "make it dense by its method toarray"
    elif isinstance(x, list | tuple) and any(isinstance(part, tf.TypeSpec) for part in x):
        got, cure = f"a {type(x).__name__} of {len(x)}", "a batch is x, (x,) or (x, y, sample_weight)"
    elif isinstance(x, tf.TypeSpec) and not isinstance(x, tf.TensorSpec):
        if not isinstance(x, tf.data.DatasetSpec | tf.OptionalSpec):
            return  # a distribution strategy wraps specs in its own class
        got, cure = f"a {x.value_type.__name__}", "a batch is x, (x,) or (x, y, sample_weight)"
    elif isinstance(x, tf.TensorSpec) or tf.is_tensor(x):
        dtype = tf.as_dtype(x.dtype)
        if dtype.is_floating or dtype.is_integer or dtype.is_bool:
            return
        raise TypeError(f"`{name}` must hold real numbers, got a tensor of dtype {dtype.name}.")
    else:
        return
    raise TypeError(f"`{name}` must be one array of numbers, got {got}: {cure}.")


def _unpacked(name: str, batch: Any) -> tuple[Any, Any, Any]:
    """Returns the parts (x, y, sample_weight) of a batch."""
    if isinstance(batch, list | tuple) and len(batch) > 3:
        raise ValueError(f"`{name}` must yield batches x, (x,) or (x, y, sample_weight), got {len(batch)} parts.")
    return keras.utils.unpack_x_y_sample_weight(batch)


def is_endless(x: Any) -> bool:
    """Returns whether `x` is known to yield batches without end, such as a dataset that repeats.

    >>> dataset = tf.data.Dataset.range(3).repeat()
    >>> is_endless(dataset), is_endless(dataset.filter(lambda i: i > 0)), is_endless(dataset.take(2))
    (True, True, False)
    """
    if isinstance(x, keras.utils.PyDataset):
        return _num_batches(x) is None
    if not isinstance(x, tf.data.Dataset | tf.distribute.DistributedDataset):
        return isinstance(x, itertools.cycle | itertools.count)
    cardinality = int(x.cardinality() if callable(x.cardinality) else x.cardinality)
    if cardinality != tf.data.UNKNOWN_CARDINALITY or not isinstance(x, tf.data.Dataset):
        return cardinality == tf.data.INFINITE_CARDINALITY
    # `filter` and similar datasets do not know their length, but end only if their input does
    if "TakeWhile" in type(x).__name__:
        return False
    over_inputs = _all_of_some if "Zip" in type(x).__name__ else any  # a zip is as long as its shortest input
    return over_inputs(map(is_endless, x._inputs()))


def _all_of_some(values: Any) -> bool:
    values = list(values)
    return bool(values) and all(values)


def _is_bounded(x: Any) -> bool:
    """Returns whether `x` is known to end."""
    if not isinstance(x, tf.data.Dataset):
        return hasattr(x, "__len__")
    if int(x.cardinality()) != tf.data.UNKNOWN_CARDINALITY:
        return int(x.cardinality()) >= 0
    makes_datasets = "FlatMap" in type(x).__name__ or "Interleave" in type(x).__name__  # of any length
    over_inputs = any if "Zip" in type(x).__name__ else _all_of_some
    return not makes_datasets and over_inputs(map(_is_bounded, x._inputs()))


def _num_batches(x: keras.utils.PyDataset) -> int | None:
    try:
        return None if x.num_batches is None else int(x.num_batches)
    except NotImplementedError:  # a class without `__len__`
        return None


def check_source(name: str, x: Any, steps: str | None) -> None:
    """Raises if data, or what a source of batches will yield, is no array of numbers, or a source needs an end.

    Args:
      name: the argument's name, for the errors.
      x: the data or the source.
      steps: the argument that would limit the number of batches; None if they are limited.
    """
    if is_array(x):
        check_kind(name, x)
    elif steps is not None and is_endless(x):
        raise ValueError(
            f"`{steps}` must be given: `{name}` ({type(x).__name__}) yields batches without end."
            if steps
            else f"`{name}` must end, got a {type(x).__name__} that yields batches without end: pass {name}.take(n) of "
            "a tf.data.Dataset, or the data before it is repeated."
        )
    if isinstance(x, tf.data.Dataset):
        check_kind(name, _unpacked(name, x.element_spec)[0])


def _rows(batch: Any, event_shape: tuple[int, ...] | None, name: str = "x") -> np.ndarray:
    x, _, _ = _unpacked(name, batch)
    check_kind(name, x)
    return check_data(name, x, event_shape)


def row_blocks(x: Any, event_shape: tuple[int, ...] | None = None) -> Iterator[np.ndarray]:
    """Yields all data as arrays `[rows, *event]`, each checked to be finite and of the event shape.

    A source without end raises an error. An iterator of unknown length is cut off after a million rows, with a warning.

    >>> [block.shape for block in row_blocks(tf.data.Dataset.from_tensor_slices(np.ones([5, 2])).batch(3))]
    [(3, 2), (2, 2)]
    """
    if is_array(x):
        check_kind("x", x)
        yield check_data("x", x, event_shape)
        return
    check_source("x", x, "")
    if isinstance(x, keras.utils.PyDataset):
        yield from (_rows(x[i], event_shape) for i in range(_num_batches(x) or 0))
        return
    is_bounded = _is_bounded(x)
    num_rows = 0
    for batch in x:
        block = _rows(batch, event_shape)
        yield block
        num_rows += len(block)
        if not is_bounded and num_rows >= _MAX_ROWS:
            warnings.warn(
                f"`x` ({type(x).__name__}) has no known length, and was read up to {num_rows} rows; the rest is "
                "left out. Pass an array, or a dataset of known length, to use all of it.",
                stacklevel=3,
            )
            return


def first_rows(x: Any, limit: int, event_shape: tuple[int, ...] | None = None) -> tuple[np.ndarray, Any]:
    """Returns the first rows of `x`, after a check (of all rows, if `x` is an array).

    Returns:
      At most `limit` rows, and `x` itself; for a generator, a new generator that yields all batches.
    """
    if is_array(x):
        check_kind("x", x)
        array = check_data("x", x, event_shape)
        return array[:limit], array if isinstance(x, list | tuple) or is_frame(x) else x
    check_source("x", x, None)
    batches = iter(x) if hasattr(x, "__next__") else None
    source: Any = x if batches is None else batches
    if isinstance(x, keras.utils.PyDataset):
        count = _num_batches(x)
        source = (x[i] for i in (itertools.count() if count is None else range(count)))
    seen, taken, rows = [], [], 0
    for batch in source:
        seen.append(batch)
        taken.append(_rows(batch, event_shape))
        rows += len(taken[-1])
        if rows >= limit:
            break
    if not taken:
        raise ValueError("`x` must not be empty, but yielded no batch.")
    return np.concatenate(taken)[:limit], x if batches is None else _again(seen, batches)


def _again(seen: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    # a generator, not itertools.chain: Keras accepts no other iterator
    yield from seen
    yield from rest


class Prepared(NamedTuple):
    """Checked data in the form that Keras's `fit` and `evaluate` accept.

    Attributes:
      x: an array, or a source of batches.
      y: labels; of width 0 if there are weights but no labels, since Keras drops the weights of unlabelled arrays.
      sample_weight: one number per row, or None.
      first_rows: rows of `x`, if `limit` was given; None otherwise.
    """

    x: Any
    y: Any
    sample_weight: Any
    first_rows: np.ndarray | None


def prepared(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    event_shape: tuple[int, ...] | None = None,
    limit: int | None = None,
    steps: str | None = None,
    name: str = "x",
) -> Prepared:
    """Checks data before Keras uses them: arrays completely, sources of batches as far as they are known.

    Args:
      x: an array `[rows, *event]`, or anything that yields batches.
      y: labels.
      sample_weight: one number per row.
      event_shape: the shape of one row; None for any shape.
      limit: number of first rows to return; None for none.
      steps: the name of the argument that limits the number of batches, if it was not given.
      name: the argument's name, for the error messages.

    Raises:
      TypeError, ValueError: for data that are not an array of finite numbers of that shape, for weights that are not
        one finite number per row, or for a source of batches without end.

    >>> prepared([[1.0, 2.0]], sample_weight=[3.0]).y.shape
    (1, 0)
    """
    rows = None
    if is_array(x):
        check_kind(name, x)
        array = check_data(name, x, event_shape)
        x = array if isinstance(x, list | tuple) or is_frame(x) else x
        rows = None if limit is None else array[:limit]
        if sample_weight is not None:
            sample_weight = check_weights("sample_weight" if name == "x" else f"{name}[2]", sample_weight, len(array))
            y = np.zeros((len(array), 0), "float32") if y is None else y
    else:
        check_source(name, x, steps)
        if limit is not None:
            rows, x = first_rows(x, limit, event_shape)
    return Prepared(batches_of_tuples(x), y, sample_weight, rows)


def batches_of_tuples(x: Any) -> Any:
    """Returns `x`; a generator is wrapped so that it yields tuples, as Keras expects.

    >>> list(batches_of_tuples(i for i in range(2)))
    [(0,), (1,)]
    """
    if not hasattr(x, "__next__"):
        return x
    return (batch if isinstance(batch, tuple) else (batch,) for batch in x)


def in_batches(rows: Any, order: tf.Tensor, batch_size: int, drop_remainder: bool = False) -> tf.data.Dataset:
    """Returns a dataset of batches of rows in a given order.

    One function makes a batch. A dataset of the order's entries, put into batches, takes as long as a small training
    step, since it has a tensor for each entry.

    Args:
      rows: a nested structure of tensors `[n, ...]`, which may have parts that are None.
      order: indices of rows, a vector.
      batch_size: number of rows.
      drop_remainder: whether a smaller last batch is left out; all batches then have a static shape.

    >>> batches = in_batches(tf.constant([0.0, 0.5, 1.0]), tf.constant([1, 2, 0]), 2)
    >>> [batch.numpy().tolist() for batch in batches]
    [[0.5, 1.0], [0.0]]
    """
    end = tf.size(order, tf.int64)

    def batch(start: tf.Tensor) -> Any:
        indices = order[start : start + batch_size]
        if drop_remainder:
            indices = tf.ensure_shape(indices, [batch_size])
        return tf.nest.map_structure(lambda part: None if part is None else tf.gather(part, indices), rows)

    return tf.data.Dataset.range(0, end - batch_size + 1 if drop_remainder else end, batch_size).map(batch)


def shuffled_batches(
    x: np.ndarray, batch_size: int, seed: Any, first: int = 0, weights: np.ndarray | None = None
) -> tf.data.Dataset:
    """Returns an endless dataset of batches of rows, in an order that depends on (seed, epoch) alone, from `first` on.

    Keras's own shuffling differs from process to process, or, once seeded, repeats in every epoch. With `weights`,
    an epoch has as many draws as rows, of each row its share, rounded up or down at random (systematic resampling).

    >>> batches = iter(shuffled_batches(np.arange(8.0).reshape(4, 2), 2, seed=0))
    >>> epoch = np.concatenate([next(batches), next(batches)])
    >>> sorted(epoch[:, 0].tolist())
    [0.0, 2.0, 4.0, 6.0]
    """
    if batch_size > len(x):
        raise ValueError(f"`batch_size` must not exceed the rows of `x`, got {batch_size} for {len(x)} rows.")
    rows, seed = tf.constant(x), stateless_seed(seed)
    # the last border is left out, so that no place is beyond it by rounding
    borders = None if weights is None else tf.constant(np.cumsum(weights / weights.sum())[:-1])

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        key = fold_in(seed, number)
        drawn = tf.range(len(x))
        if borders is not None:
            places = uniform([], fold_in(key, 1), tf.float64) + tf.range(len(x), dtype=tf.float64)
            drawn = tf.searchsorted(borders, places / len(x), side="right")
        order = tf.random.experimental.stateless_shuffle(drawn, seed=key)
        return in_batches(rows, order, batch_size, drop_remainder=True)

    skipped, rest = divmod(first, len(x) // batch_size)
    return untuned(tf.data.Dataset.counter(skipped).flat_map(epoch).skip(rest))


def untuned(batches: tf.data.Dataset, number: int | None = None) -> tf.data.Dataset:
    """Returns batches that are prepared ahead, without TensorFlow's tuning; with their number, if it is given.

    The tuning thread sleeps for 10, 20, 40, … ms, and who ends a pass waits until it wakes up, which can take as long
    again as the pass.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    if number is not None:
        batches = batches.apply(tf.data.experimental.assert_cardinality(number))
    return batches.prefetch(_PREFETCHED).with_options(options)
