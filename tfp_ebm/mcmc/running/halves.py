"""Many chains run as two halves at the same time, each a loop of its own on a core of its own.

The steps of a loop wait for each other, and the operations of a step are too small to share: a core added to one loop
saves little, a second loop on it up to half. The halves draw their noise from keys of their own, hashed from that of
the run, so that what is drawn does not depend on which of them is faster, nor on the machine: chains are halved, or
not, by their number alone.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_ebm.mcmc.kernels.kernel import Kernel, TargetLogProbFn
from tfp_ebm.mcmc.running import moments as moments_of
from tfp_ebm.mcmc.running.compiled import find_compiled
from tfp_ebm.mcmc.running.loop import Chain, Rows
from tfp_ebm.mcmc.running.moments import Moments
from tfp_ebm.random import chain_key

# Fewer chains fill no vector and no matrix product.
_MIN_CHAINS = 128


def can_halve(target_log_prob_fn: TargetLogProbFn, kernel: Any, state: tf.Tensor) -> bool:
    """Whether half of the chains can be run without the other half, and are many enough to be.

    Args:
      target_log_prob_fn: asked once for each shape of state: its values at the halves must be those of the whole.
      kernel: it must move every chain by itself, as an adaptive kernel does not.
      state: of all chains, known values.
    """
    if not (isinstance(kernel, Kernel) and kernel.moves_chains_alone):
        return False
    if state.shape.rank == 0 or state.shape[0] < _MIN_CHAINS:
        return False
    if not state.device.endswith("CPU:0"):
        return False
    key = ("halves", state.shape, state.dtype)
    return find_compiled(target_log_prob_fn, key, lambda resolve: _is_separable(resolve(), state))


def _is_separable(target: TargetLogProbFn, state: tf.Tensor) -> bool:
    try:
        whole, *parts = (np.asarray(target(part)) for part in (state, *_split(state)))
    except Exception:  # whatever a target makes of half its chains: then they are run together
        return False
    if whole.shape != state.shape[:1] or not np.isfinite(whole).any():
        return False
    tolerance = np.sqrt(np.finfo(whole.dtype).eps)  # of rounding, which the shapes of matrix products change
    return np.allclose(np.concatenate(parts), whole, rtol=tolerance, atol=tolerance, equal_nan=True)


class Halves:
    """A `Chain` that runs the halves of its chains at the same time; to be used like one.

    Args:
      chain: compiled, of a kernel that moves every chain by itself.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.is_xla = chain.is_xla
        self.seconds_per_step = chain.seconds_per_step
        self.log_prob = chain.log_prob

    @property
    def xla_failed(self) -> bool:
        """See `Chain`."""
        return self._chain.xla_failed

    @xla_failed.setter
    def xla_failed(self, value: bool) -> None:
        self._chain.xla_failed = value

    def start(self, state: tf.Tensor, step_size: Any) -> tuple[Any, tf.Tensor]:
        """See `Chain.start`; the results are a tuple of those of the halves."""
        results, log_prob = zip(*(self._chain.start(half, step_size) for half in _split(state)), strict=True)
        return results, tf.concat(log_prob, 0)

    def advance(self, state: tf.Tensor, results: Any, log_prob: tf.Tensor, *given: Any) -> tuple[Any, Any, Rows]:
        """See `Chain.advance`."""
        state, results, rows = self._together(self._chain.advance, [(), ()], state, results, log_prob, *given)
        bare = [half._replace(step_size=()) for half in rows]
        whole: Rows = tf.nest.map_structure(lambda *parts: tf.concat(parts, 1), *bare)
        return state, results, whole._replace(step_size=rows[0].step_size)

    def reduce(self, moments: Any, state: tf.Tensor, results: Any, log_prob: tf.Tensor, *given: Any) -> Any:
        """See `Chain.reduce`; `moments` is a tuple of those of the halves."""
        carried = [(half,) for half in moments]
        state, results, out = self._together(self._chain.reduce, carried, state, results, log_prob, *given)
        return state, results, (tuple(half for half, _ in out), out[0][1])

    def no_moments(self, state: tf.Tensor, log_prob: tf.Tensor, covariance: bool) -> tuple[Moments, ...]:
        """See `Chain.no_moments`."""
        halves = zip(_split(state), _split(log_prob), strict=True)
        return tuple(self._chain.no_moments(*half, covariance) for half in halves)

    def joined(self, moments: tuple[Moments, ...]) -> Moments:
        """See `Chain.joined`."""
        return moments_of.side_by_side(*moments)

    def _together(
        self,
        call: Callable[..., Any],
        carried: list[tuple[Any, ...]],
        state: tf.Tensor,
        results: Any,
        log_prob: tf.Tensor,
        steps: tuple[tf.Tensor, tf.Tensor],
        step_size: Any,
        key: tf.Tensor,
        *counts: tf.Tensor,
    ) -> tuple[tf.Tensor, Any, Any]:
        """`call` of both halves: the whole state, and the results and third things of the halves."""
        given = [
            (*first, *of_half, steps, step_size, chain_key(tf.stack([key, tf.constant(i)])), *counts)
            for i, (first, *of_half) in enumerate(zip(carried, _split(state), results, _split(log_prob), strict=True))
        ]
        if int(steps[1] - steps[0]) == 1:
            # The first stretch of a new loop is one step; tracing it belongs to the thread of the caller, since Keras
            # keeps settings by thread.
            out = [call(*of_half) for of_half in given]
        else:
            with ThreadPoolExecutor(1, "tfp_ebm") as pool:  # leaving it, by an interrupt too, waits for its half
                other = pool.submit(call, *given[1])
                out = [call(*given[0]), other.result()]
        states, results, third = zip(*out, strict=True)
        return tf.concat(states, 0), results, third


def _split(values: tf.Tensor) -> list[tf.Tensor]:
    half = values.shape[0] // 2
    return [values[:half], values[half:]]
