"""Finds the compiled loop of a target and a kernel, and decides between XLA and graph mode."""

from __future__ import annotations

import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tfp_ebm.caller import warn
from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn
from tfp_ebm.mcmc.running.loop import Chain

# Chains per target; a chain more is compiled again.
_MAX_CHAINS = 16


_Compiled = TypeVar("_Compiled")


_CHAINS: dict[Hashable, tuple[Callable[[], Any], OrderedDict[Hashable, Any]]] = {}


def find_compiled(
    target: TargetLogProbFn, key: Hashable, make: Callable[[Callable[[], TargetLogProbFn]], _Compiled]
) -> _Compiled:
    """What was made for an equal target and key before, or a new one.

    Args:
      target: a function, a callable object, or a bound method; methods are equal if they are of one object.
      key: what the compiled thing depends on beside the target; it is kept.
      make: makes it from a function that returns the target.
    """
    owner, function = (target.__self__, target.__func__) if isinstance(target, types.MethodType) else (target, None)
    name = (id(owner), function)
    try:
        if name not in _CHAINS:
            reference: Callable[[], Any] = weakref.ref(target) if function is None else weakref.WeakMethod(target)
            # Once the owner has died its id may become another object's: forget it then.
            weakref.finalize(owner, _CHAINS.pop, name, None).atexit = False
            _CHAINS[name] = (reference, OrderedDict())
    except TypeError:  # no weak references to such an object, so no way to keep its chain without keeping it
        return make(lambda: target)
    resolve, chains = _CHAINS[name]
    if key not in chains:
        chains[key] = make(resolve)
        if len(chains) > _MAX_CHAINS:
            chains.popitem(last=False)
    chains.move_to_end(key)
    return chains[key]


def find_chain(target: TargetLogProbFn, kernel: Any, num_results: int, jit_compile: bool, shape: Hashable) -> Chain:
    """The chain compiled for an equal target, kernel and shape before, or a new one.

    Args:
      target: see `find_compiled`.
      kernel: hashable; the chain refers to it strongly.
      num_results: states to keep.
      jit_compile: whether by XLA.
      shape: of the state. A chain could serve several, but TensorFlow would warn of its fifth.
    """
    key = (kernel, num_results, jit_compile, shape)
    return find_compiled(target, key, lambda resolve: Chain(resolve, kernel, num_results, jit_compile))


# Where XLA pays: it saves about half a millisecond per evaluation of a small target, and costs 1-3 s of compiling;
# above this many coordinates matrix products and noise take the time, and XLA makes neither faster.
_XLA_MIN_EVALUATIONS = 2000


_XLA_MAX_EVENT_SIZE = 512


# What TensorFlow raises where XLA meets an operation that it cannot compile.
_XLA_ERRORS = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, tf.errors.InternalError)


def find_loop(find: Callable[[bool], Any], jit_compile: bool | str, pays: bool) -> Any:
    """The loop to run: compiled by XLA if that is asked for, or if it pays, is not refused, and has not failed before.

    Args:
      find: returns the loop, by XLA or in graph mode.
      jit_compile: True, False or "auto".
      pays: whether XLA pays.
    """
    automatic = jit_compile == "auto"
    loop = find(pays if automatic else bool(jit_compile))
    return find(False) if automatic and loop.xla_failed else loop


def run_or_fall_back(
    run: Callable[[Any], Any], loop: Any, find: Callable[[bool], Any], jit_compile: bool | str
) -> tuple[Any, Any]:
    """`(loop, run(loop))`; where XLA fails that nobody asked for, that of the loop in graph mode, and a warning."""
    try:
        return loop, run(loop)
    except _XLA_ERRORS as error:
        if not (jit_compile == "auto" and loop.is_xla):
            raise
        reason = str(error).strip().splitlines()[0]
    loop.xla_failed = True
    loop = find(False)
    result = run(loop)
    warn(f"The chain runs in graph mode, because XLA failed on it: {reason}")
    return loop, result


def check_state(initial_state: Any) -> tf.Tensor:
    """`initial_state` as one floating-point tensor."""
    if isinstance(initial_state, list | tuple) and any(
        np.ndim(part) > 0 and not isinstance(part, list | tuple) for part in initial_state
    ):
        raise TypeError(
            "`initial_state` must be one tensor [*chains, *event], got a list of tensors; join the parts of the state, "
            "and split them in the target."
        )
    state = tf.convert_to_tensor(initial_state)
    if not state.dtype.is_floating:
        raise TypeError(f"`initial_state` must be floating-point, got dtype {state.dtype.name}.")
    if state.shape.num_elements() == 0:
        raise ValueError(f"`initial_state` must hold at least one chain, got shape {tuple(state.shape)}.")
    return state


def xla_pays(kernel: Any, num_steps: int, state: tf.Tensor) -> bool:
    """The rule of `jit_compile="auto"`."""
    evaluations = num_steps * (kernel.evaluations_per_step if isinstance(kernel, Kernel) else 1)
    event_size = state.shape[1:].num_elements()
    return evaluations >= _XLA_MIN_EVALUATIONS and event_size <= _XLA_MAX_EVENT_SIZE
