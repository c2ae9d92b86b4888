"""Recorders: what a loop keeps of the steps that it runs, their draws or the moments of the draws.

Burn-in and thinning need no loop of their own. Of T steps each belongs to a slot, that of the next result, and the last
step of a slot is the result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from tfp_ebm.mcmc.running import moments as moments_of
from tfp_ebm.mcmc.running.moments import Moments


class Visit(NamedTuple):
    """Where a step led each chain; or, with a first axis `[num_results]`, where several did.

    Attributes:
      state: `[*chains, *event]`.
      log_prob: the target's log density there, `[*chains]`; () for a kernel that is not one of this package's, whose
        results may hold that of another density.
      is_accepted: whether the step was accepted, `[*chains]`.
    """

    state: tf.Tensor
    log_prob: Any
    is_accepted: tf.Tensor


class Recorder(Protocol):
    """What a loop keeps. Recorders have a hash, because a loop is compiled for one."""

    def init(self, like: Visit) -> Any:
        """Returns the record of no steps, given a visit of the right shapes."""

    def begin(self, record: Any, like: Visit) -> Any:
        """Returns what the loop carries at its first step, given the record of the stretch before."""

    def add(self, carried: Any, visit: Visit, slot: tf.Tensor, is_result: tf.Tensor) -> Any:
        """Adds a step to what the loop carries.

        Args:
          carried: what the loop carries.
          visit: where the step led.
          slot: the number of the result that the step belongs to, counted from the first one of the stretch.
          is_result: whether the step is that result.
        """

    def finish(self, carried: Any) -> Any:
        """Returns the record, given what the loop carries after its last step."""

    def join_chains(self, records: Sequence[Any]) -> Any:
        """Returns the record of all chains, given those of groups of chains over the same steps."""


@dataclasses.dataclass(frozen=True)
class KeepDraws:
    """Keeps the results. The record is a `Visit` with a first axis of `num_slots`; unused slots at its end hold zeros.

    Args:
      num_slots: the number of results that a stretch can hold.
    """

    num_slots: int

    def init(self, like: Visit) -> Any:
        """Returns nothing: each stretch has a record of its own."""
        del like
        return ()

    def begin(self, record: Any, like: Visit) -> Visit:
        """See `Recorder.begin`."""
        del record

        def array(part: tf.Tensor) -> tf.TensorArray:
            return tf.TensorArray(part.dtype, self.num_slots, element_shape=part.shape, clear_after_read=False)

        return tf.nest.map_structure(array, like)

    def add(self, carried: Visit, visit: Visit, slot: tf.Tensor, is_result: tf.Tensor) -> Visit:
        """See `Recorder.add`: writes each step into its slot, so that the last one stays."""
        del is_result
        return tf.nest.map_structure(lambda array, part: array.write(slot, part), carried, visit)

    def finish(self, carried: Visit) -> Visit:
        """See `Recorder.finish`."""
        return tf.nest.map_structure(lambda array: array.stack(), carried)

    def join_chains(self, records: Sequence[Visit]) -> Visit:
        """See `Recorder.join_chains`."""
        return _concat(records, 1)


@dataclasses.dataclass(frozen=True)
class KeepMoments:
    """Keeps the `Moments` of the results, which go on from stretch to stretch.

    Args:
      covariance: whether the covariance of the coordinates is among them.
    """

    covariance: bool = False

    def init(self, like: Visit) -> Moments:
        """See `Recorder.init`."""
        return moments_of.zero_moments(like.state, like.is_accepted, tf.is_tensor(like.log_prob), self.covariance)

    def begin(self, record: Moments, like: Visit) -> Moments:
        """See `Recorder.begin`."""
        del like
        return record

    def add(self, carried: Moments, visit: Visit, slot: tf.Tensor, is_result: tf.Tensor) -> Moments:
        """See `Recorder.add`."""
        del slot
        return moments_of.add_step(carried, is_result, *visit)

    def finish(self, carried: Moments) -> Moments:
        """See `Recorder.finish`."""
        return carried

    def join_chains(self, records: Sequence[Moments]) -> Moments:
        """See `Recorder.join_chains`."""
        return functools.reduce(moments_of.join_chains, records)


def join_stretches(draws: Sequence[Visit]) -> Visit:
    """Joins the draws of consecutive stretches."""
    return _concat(draws, 0)


def _concat(draws: Sequence[Visit], axis: int) -> Visit:
    return draws[0] if len(draws) == 1 else tf.nest.map_structure(lambda *parts: tf.concat(parts, axis), *draws)
