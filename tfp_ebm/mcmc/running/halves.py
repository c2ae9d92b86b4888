"""Runs of many chains as two halves at the same time, each with its own loop on its own core.

The steps of a loop run one after the other, and the operations of a step are too small to divide among cores. A second
core for the same loop therefore saves little time, but a second loop saves up to half of it. Each half draws its noise
from its own key, a hash of the run's key, so the draws depend neither on which half finishes first nor on the machine.
Whether chains are halved depends on their number, not on the machine or the number of its processor in TensorFlow. On a
GPU they are not: there, one loop over all chains is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn
from tfp_ebm.mcmc.running.compiled import find_compiled

# With fewer chains, a half is too small for efficient vector operations and matrix products.
_MIN_CHAINS = 128

_Result = TypeVar("_Result")


def can_halve(target_log_prob_fn: TargetLogProbFn, kernel: Any, state: tf.Tensor) -> bool:
    """Returns whether the halves of the chains can run independently and are large enough.

    Args:
      target_log_prob_fn: called once for each shape of state; its values at the halves must equal those at all chains.
      kernel: must move each chain independently of the others; an adaptive kernel does not.
      state: the state of all chains, an eager tensor.
    """
    if not (isinstance(kernel, Kernel) and kernel.moves_chains_alone):
        return False
    if state.shape.rank == 0 or state.shape[0] < _MIN_CHAINS:
        return False
    if ":CPU:" not in state.device:
        return False
    key = ("halves", state.shape, state.dtype)
    return find_compiled(target_log_prob_fn, key, lambda resolve: _is_separable(resolve(), state))


def _is_separable(target: TargetLogProbFn, state: tf.Tensor) -> bool:
    try:
        whole, *parts = (np.asarray(target(part)) for part in (state, *halves_of(state)))
    except Exception:  # if the target fails on half of the chains, do not split them
        return False
    if whole.shape != state.shape[:1] or not np.isfinite(whole).any():
        return False
    tolerance = np.sqrt(np.finfo(whole.dtype).eps)  # of rounding, which differs with the shapes of matrix products
    return np.allclose(np.concatenate(parts), whole, rtol=tolerance, atol=tolerance, equal_nan=True)


def halves_of(values: tf.Tensor) -> list[tf.Tensor]:
    """Returns the two halves along the first axis."""
    half = values.shape[0] // 2
    return [values[:half], values[half:]]


def at_once(calls: Sequence[Callable[[], _Result]], device: str) -> list[_Result]:
    """Makes the calls at the same time on a device, each in its own thread, and returns their results in order."""
    first, *others = calls
    if not others:
        return [first()]

    def on_device(call: Callable[[], _Result]) -> _Result:
        with tf.device(device):  # which a new thread does not know
            return call()

    with ThreadPoolExecutor(len(others), "tfp_ebm") as pool:  # waits for its threads at exit, also after an interrupt
        futures = [pool.submit(on_device, call) for call in others]
        return [first(), *(future.result() for future in futures)]
