"""Recorders, which keep the draws of a loop or their moments.

Burn-in and thinning do not need separate loops. Each step belongs to the slot of the next result, and the last step of
a slot is the result.
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
    """The states of the chains after a step or, with a first axis `[num_results]`, after several steps.

    Attributes:
      state: `[*chains, *event]`.
      log_prob: the target's log density at the states, `[*chains]`; () for a kernel from another package, whose results
        may hold the log of another density.
      is_accepted: whether the step was accepted, `[*chains]`.
    """

    state: tf.Tensor
    log_prob: Any
    is_accepted: tf.Tensor


class Recorder(Protocol):
    """The protocol of recorders. They must be hashable, because a loop is compiled for each recorder."""

    def init(self, like: Visit) -> Any:
        """Returns the record of zero steps, given a visit with the right shapes."""

    def begin(self, record: Any, like: Visit) -> Any:
        """Returns the loop variables before the first step, given the record of the previous stretch."""

    def add(self, carried: Any, visit: Visit, slot: tf.Tensor, is_result: tf.Tensor) -> Any:
        """Updates the loop variables by a step.

        Args:
          carried: the loop variables.
          visit: the states after the step.
          slot: the number of the result to which the step belongs, counted from the first result of the stretch.
          is_result: whether the step is that result.
        """

    def finish(self, carried: Any) -> Any:
        """Returns the record, given the loop variables after the last step."""

    def join_chains(self, records: Sequence[Any]) -> Any:
        """Returns the record of all chains, given the records of groups of chains over the same steps."""


@dataclasses.dataclass(frozen=True)
class KeepDraws:
    """A recorder of the results. The record is a `Visit` with a first axis `num_slots`; unused slots at the end are 0.

    Args:
      num_slots: the number of results that a stretch can hold.
    """

    num_slots: int

    def init(self, like: Visit) -> Any:
        """Returns None, since each stretch has its own record."""
        del like
        return ()

    def begin(self, record: Any, like: Visit) -> Visit:
        """See `Recorder.begin`."""
        del record

        def array(part: tf.Tensor) -> tf.TensorArray:
            return tf.TensorArray(part.dtype, self.num_slots, element_shape=part.shape, clear_after_read=False)

        return tf.nest.map_structure(array, like)

    def add(self, carried: Visit, visit: Visit, slot: tf.Tensor, is_result: tf.Tensor) -> Visit:
        """See `Recorder.add`; each step is written into its slot, so that the last one remains."""
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
    """A recorder of the `Moments` of the results, which accumulate over stretches.

    Args:
      covariance: whether the moments include the covariance of the coordinates.
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
