"""Memory: how much is left, how much a traced function takes, and errors that say what needs less. Floor 0."""

from __future__ import annotations

import contextlib
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

_OUT_OF_MEMORY = "out of memory"
# Estimates for training steps were .6 to 1.03 times what the steps took, those for chains up to 1.6 times.
_EXCESS = 1.6
# Operations whose result is their input.
_SAME = {"Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient", "EnsureShape"}
# Operations that never write their result over an input, even within a program that XLA has fused.
_PRODUCTS = {"MatMul", "BatchMatMulV2", "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter", "Einsum"}
# The attributes of calls, loops and branches that name a function.
_FUNCTIONS = ("f", "cond", "body", "then_branch", "else_branch")


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


def check_memory(num_bytes: int) -> None:
    """Raises TensorFlow's error of exhausted memory if `num_bytes` are more than this process can still have.

    `naming_memory` adds the advice.

    Where memory ends, Linux kills the process, and some libraries end it themselves, so nothing could be said later.
    Where it is unknown how much is left, and where a GPU may hold the data, nothing is raised.

    >>> try:
    ...     check_memory(10**18)
    ... except tf.errors.ResourceExhaustedError as error:
    ...     print(error.message.split(",")[0])
    931322574.6 GB are needed
    """
    left = memory_left()
    if left is None or num_bytes <= left or tf.config.list_logical_devices("GPU"):
        return
    message = f"{num_bytes / 2**30:.1f} GB are needed, and {left / 2**30:.1f} GB are left."
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


def check_function(function: Any, num_rows: int, is_xla: bool = False) -> None:
    """Raises TensorFlow's error of exhausted memory if a traced function surely takes more than is left.

    TensorFlow raises such an error itself where its own allocator fails. But some of its matrix products, and programs
    of XLA, end the process.

    Args:
      function: a `tf.types.experimental.ConcreteFunction`.
      num_rows: the number of rows where the function was traced without it.
      is_xla: whether XLA compiles it.
    """
    check_memory(int(peak_bytes(function.graph, num_rows, is_xla) / _EXCESS))


def peak_bytes(graph: Any, num_rows: int = 1, is_xla: bool = False, results: Any = None) -> int:
    """Returns an estimate of the largest memory that a traced function takes at one time besides its arguments.

    Operations are taken one after another. A result is written over an input of the same size that is not needed any
    more, as TensorFlow does where it can. In a program of XLA, which joins operations, only matrix products and
    convolutions count.

    Args:
      graph: the graph of the function.
      num_rows: the size of an axis whose size is unknown.
      is_xla: whether XLA compiles it.
      results: the results that are used; default: all.

    >>> wide, narrow = tf.ones([2, 1000]), tf.ones([1000, 500])
    >>> @tf.function
    ... def function(x):
    ...     return tf.tanh(tf.tanh(x @ wide) @ narrow)
    >>> traced = function.get_concrete_function(tf.TensorSpec([None, 2]))
    >>> peak_bytes(traced.graph, num_rows=10) == 4 * 10 * (1000 + 500)
    True
    """
    results = graph.outputs if results is None else results
    operations = _needed([*(tensor.op for tensor in results), *graph.control_outputs])
    source: dict[str, str] = {}  # of each tensor, the one that holds its memory
    sizes: dict[str, int] = {}

    def held(tensors: Any) -> set[str]:
        return {source.get(tensor.name, tensor.name) for tensor in tensors}

    last: dict[str, int] = {}  # the last operation that reads a tensor
    for number, operation in enumerate(operations):
        counts = operation.type in _PRODUCTS or not is_xla
        for place, result in enumerate(operation.outputs):
            if operation.type in _SAME:  # a reshaped tensor may have a shape of which more is known
                (source[result.name],) = held(operation.inputs[place : place + 1])
            elif counts or any(name in operation.node_def.attr for name in _FUNCTIONS):
                sizes[result.name] = 0
            for name in held([result]) & sizes.keys():
                sizes[name] = max(sizes[name], _bytes(result, num_rows))
        last |= dict.fromkeys(held(operation.inputs), number)
    last |= dict.fromkeys(held(results), len(operations))
    taken: set[str] = set()
    now = peak = 0
    for number, operation in enumerate(operations):
        if operation.type in ("Placeholder", "Const", *_SAME):
            continue
        ends = [tensor for tensor in held(operation.inputs) & taken if last[tensor] == number]
        used = [place for place, result in enumerate(operation.outputs) if result.name in last]
        peak = max(peak, now + _peak_of_calls(operation, used, num_rows, is_xla))
        for name in (result.name for result in operation.outputs):
            if name not in sizes or name not in last:
                continue
            reused = [tensor for tensor in ends if sizes[tensor] == sizes[name] and operation.type not in _PRODUCTS]
            for tensor in reused[:1]:
                ends.remove(tensor)
                taken.remove(tensor)
                now -= sizes[tensor]
            taken.add(name)
            now += sizes[name]
        peak = max(peak, now)
        taken -= set(ends)
        now -= sum(sizes[tensor] for tensor in ends)
    return peak


def _needed(wanted: list[Any]) -> list[Any]:
    """Returns the operations on which those of a graph depend, with them, in the order of their creation."""
    waiting, found = list(wanted), set()
    while waiting:
        operation = waiting.pop()
        if operation not in found:
            found.add(operation)
            waiting += [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
    return [operation for operation in wanted[0].graph.get_operations() if operation in found] if wanted else []


def _peak_of_calls(operation: Any, used: list[int], num_rows: int, is_xla: bool) -> int:
    """Returns the largest memory of the functions that an operation calls, of whose results some are used."""
    attributes = operation.node_def.attr
    is_xla |= "_XlaMustCompile" in attributes and attributes["_XlaMustCompile"].b
    names = [attributes[name].func.name for name in _FUNCTIONS if name in attributes and attributes[name].func.name]
    peaks = [0]
    for name in names:
        graph = operation.graph._get_function(name).graph  # there is no public way from a name to its function
        # calls are inlined, and what is not used is not computed; loops and branches compute all
        results = [graph.outputs[place] for place in used] if "Partitioned" in operation.type else None
        peaks.append(peak_bytes(graph, num_rows, is_xla, results))
    return max(peaks)


def _bytes(tensor: Any, num_rows: int) -> int:
    """Returns the size of a tensor; its first unknown axis is that of rows, and an unknown rank counts zero."""
    if tensor.shape.rank is None or tensor.dtype in (tf.resource, tf.variant, tf.string):
        return 0
    known = [size for size in tensor.shape if size is not None]
    return math.prod(known) * (num_rows if len(known) < tensor.shape.rank else 1) * tensor.dtype.size
