"""Draws for TFP's auto-batched joint distributions, without tracing a chain for each of them.

`tfd.JointDistributionCoroutineAutoBatched` and its siblings vectorise the draw of one sample, which for an energy is a
chain of hundreds of steps: its loops take 5 to 25 seconds to convert, at each call. Where the energy does not depend on
another part of the joint, the draws are the same whether they are vectorised or not. So many chains are run at once, as
they are outside of joints, and the vectorised program takes one draw after the other from them.
"""

from __future__ import annotations

import concurrent.futures
import warnings
from collections.abc import Callable

import tensorflow as tf

from tfp_ebm.caller import warn
from tfp_ebm.random import fold_in, stateless_seed

# Chains that are run at once: enough to be judged, and not much slower than one.
_NUM_CHAINS = 64

Draw = Callable[[int, tf.Tensor], tf.Tensor]


class _Pool:
    """Draws that are handed out one by one, and made anew when there are none left."""

    def __init__(self, draw: Draw, seed: tf.Tensor) -> None:
        self._draw, self._seed, self._number = draw, seed, 0
        self._left = self._more()

    def _more(self) -> list[tf.Tensor]:
        states = self._draw(_NUM_CHAINS, fold_in(self._seed, self._number))
        self._number += 1
        return tf.unstack(states)

    def next(self) -> tf.Tensor:
        """A draw that has not been handed out before."""
        self._left = self._left or self._more()
        return self._left.pop()


def _in_eager_thread(function: Callable[[], _Pool]) -> tuple[_Pool, list[warnings.WarningMessage]]:
    """Calls a function where nothing is being traced; returns its value, and what it warned of.

    `tf.init_scope` would be eager too, but no tape records in it, and chains that were not compiled before need one.
    """
    with (
        warnings.catch_warnings(record=True) as caught,
        concurrent.futures.ThreadPoolExecutor(1) as executor,
    ):
        warnings.simplefilter("always")
        return executor.submit(function).result(), caught


def next_draw(draw: Draw, seed: int, dtype: tf.DType, event_shape: tuple[int, ...]) -> tf.Tensor | None:
    """Returns one draw `[1, *event]` as part of the function that is being traced; None where that is not possible.

    It is not possible where the energy depends on tensors of that function, such as other parts of the joint.

    Args:
      draw: maps a number and a seed, int32[2], to independent draws `[number, *event]`.
      seed: of all draws.
      dtype, event_shape: of a draw.
    """
    with tf.init_scope():
        if not tf.executing_eagerly():
            return None
    try:
        pool, caught = _in_eager_thread(lambda: _Pool(draw, stateless_seed(seed)))
    except Exception:  # tensors of the outer function are out of scope, or the error comes again where it is traced
        return None
    for warning in caught:  # in the thread none would point to the user's line
        if issubclass(warning.category, UserWarning):
            warn(str(warning.message), warning.category)
    drawn = tf.py_function(pool.next, [], dtype)  # holds the pool
    return tf.reshape(drawn, [1, *event_shape])
