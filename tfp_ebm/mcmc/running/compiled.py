"""The cache of compiled functions of a target, and the choice between XLA and graph mode.

Compiled functions and the cache hold only weak references to the target. A bound method is a new object each time it is
read from its owner, so the cache identifies it by its owner; a strong reference would keep a user's model alive
forever.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tfp_ebm.caller import warn
from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn
from tfp_ebm.memory import check_function
from tfp_ebm.tracing import graph_function

# Number of compiled functions kept per target; the least recently used one is dropped.
_MAX_COMPILED = 16
# Limits for the use of XLA: it saves about half a millisecond per evaluation of a small target and costs 1-3 s of
# compilation. For larger events, matrix products and noise take most of the time, and XLA makes neither faster.
_XLA_MIN_EVALUATIONS = 2000
_XLA_MAX_EVENT_SIZE = 512
# The errors that TensorFlow raises if XLA cannot compile an operation.
_XLA_ERRORS = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.InternalError)
# Bytes of arguments from which on memory is checked, which takes some milliseconds.
_LARGE = 2**24

_Made = TypeVar("_Made")
_COMPILED: dict[Hashable, tuple[Callable[[], Any], OrderedDict[Hashable, Any]]] = {}


def find_compiled(
    target: TargetLogProbFn, key: Hashable, make: Callable[[Callable[[], TargetLogProbFn]], _Made]
) -> _Made:
    """Returns the cached function for an equal target and key, or calls `make` to create it.

    Args:
      target: a function, a callable object, or a bound method. Methods are equal if they belong to one object.
      key: everything else on which the compiled function depends; it is kept alive.
      make: creates the compiled function, given a function that returns the target.
    """
    owner, function = (target.__self__, target.__func__) if isinstance(target, types.MethodType) else (target, None)
    name = (id(owner), function)
    try:
        if name not in _COMPILED:
            reference: Callable[[], Any] = weakref.ref(target) if function is None else weakref.WeakMethod(target)
            # Another object may get the same id once the owner is deleted, so the entry is deleted with the owner.
            weakref.finalize(owner, _COMPILED.pop, name, None).atexit = False
            _COMPILED[name] = (reference, OrderedDict())
    except TypeError:  # the owner does not allow weak references, so an entry would keep it alive
        return make(lambda: target)
    resolve, found = _COMPILED[name]
    if key not in found:
        found[key] = make(resolve)
        if len(found) > _MAX_COMPILED:
            found.popitem(last=False)
    found.move_to_end(key)
    return found[key]


class Compiled:
    """A compiled function of tensors.

    Args:
      function: the function.
      *first: its first arguments, which are fixed.
      jit_compile: whether XLA compiles it.

    Attributes:
      is_xla: whether XLA compiles it.
      xla_failed: whether XLA failed to compile it.
    """

    def __init__(self, function: Callable[..., Any], *first: Any, jit_compile: bool = False) -> None:
        self.is_xla, self.xla_failed = jit_compile, False
        self._call = graph_function(functools.partial(function, *first), jit_compile=jit_compile)

    def __call__(self, *args: Any) -> Any:
        """Calls the function with its remaining arguments; raises an error if memory surely does not suffice."""
        tensors = [part for part in tf.nest.flatten(args) if tf.is_tensor(part)]
        if tf.executing_eagerly() and sum(part.shape.num_elements() * part.dtype.size for part in tensors) > _LARGE:
            num_rows = max(part.shape[0] for part in tensors if part.shape.rank)
            check_function(self._call.get_concrete_function(*args), num_rows, self.is_xla)
        return self._call(*args)


def compile_once(
    target: TargetLogProbFn,
    function: Callable[..., Any],
    *first: Any,
    key: tuple[Hashable, ...] = (),
    jit_compile: bool = False,
) -> Compiled:
    """Returns the cached compiled `function(resolve, *first, ...)` of an equal target, which `resolve` returns.

    Args:
      target: as for `find_compiled`.
      function: the function.
      *first: its arguments after `resolve`, which are fixed.
      key: equal if these arguments are.
      jit_compile: whether XLA compiles it.
    """
    return find_compiled(
        target,
        (function, *key, jit_compile),
        lambda resolve: Compiled(function, resolve, *first, jit_compile=jit_compile),
    )


class XlaOrGraph:
    """The choice between a loop compiled by XLA and the same loop in graph mode.

    Args:
      find: takes whether XLA compiles the loop, and returns the loop, an object with the attributes of `Compiled`.
      jit_compile: True: XLA. False: graph mode. "auto": XLA if it saves time and has not failed on this loop before.
      pays: whether XLA saves time.

    Attributes:
      loop: the loop in use.
    """

    def __init__(self, find: Callable[[bool], Any], jit_compile: bool | str, pays: bool) -> None:
        self._find, self._is_automatic = find, jit_compile == "auto"
        self.loop = find(pays if self._is_automatic else bool(jit_compile))
        if self._is_automatic and self.loop.xla_failed:
            self.loop = find(False)

    def give_up_xla(self) -> None:
        """Changes to graph mode, also in later choices about the same loop."""
        self.loop.xla_failed = True
        self.loop = self._find(False)

    def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """Returns `call(loop, *args)`. If XLA was chosen automatically and fails, warns and retries in graph mode."""
        try:
            return call(self.loop, *args)
        except _XLA_ERRORS as error:
            if not (self._is_automatic and self.loop.is_xla):
                raise
            reason = str(error).strip().splitlines()[0]
        self.give_up_xla()
        result = call(self.loop, *args)
        warn(f"The chain runs in graph mode, because XLA failed on it: {reason}")
        return result


def xla_pays(kernel: Any, num_steps: int, state: tf.Tensor) -> bool:
    """Returns whether XLA saves more time than its compilation takes; used for `jit_compile="auto"`."""
    evaluations = num_steps * (kernel.evaluations_per_step if isinstance(kernel, Kernel) else 1)
    event_size = state.shape[1:].num_elements()
    return evaluations >= _XLA_MIN_EVALUATIONS and event_size <= _XLA_MAX_EVENT_SIZE


def check_state(initial_state: Any) -> tf.Tensor:
    """Returns `initial_state` as one floating-point tensor."""
    if isinstance(initial_state, list | tuple) and any(
        np.ndim(part) > 0 and not isinstance(part, list | tuple) for part in initial_state
    ):
        raise TypeError(
            "`initial_state` must be one tensor [*chains, *event], got a list of tensors; concatenate the parts of the "
            "state, and split them in the target."
        )
    state = tf.convert_to_tensor(initial_state)
    if not state.dtype.is_floating:
        raise TypeError(f"`initial_state` must be floating-point, got dtype {state.dtype.name}.")
    if state.shape.num_elements() == 0:
        raise ValueError(f"`initial_state` must hold at least one chain, got shape {tuple(state.shape)}.")
    return state
