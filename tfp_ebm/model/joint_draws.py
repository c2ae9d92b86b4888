"""Draws for TFP's auto-batched joint distributions, without tracing a chain for each of them.

`tfd.JointDistributionCoroutineAutoBatched` and similar classes vectorise the draw of one sample. For an energy, this is
a chain of hundreds of steps, and the conversion of its loops takes 5 to 25 seconds at each call. If the energy does not
depend on another part of the joint distribution, vectorisation does not change the draws. Many chains are therefore run
at once, as outside of joint distributions, and the vectorised program takes one draw after the other from them.
"""

from __future__ import annotations

import concurrent.futures
import warnings
from collections.abc import Callable

import tensorflow as tf

from tfp_ebm.caller import warn
from tfp_ebm.random import fold_in, stateless_seed

# Number of chains run at once: enough for a convergence check, and not much slower than one chain.
_NUM_CHAINS = 64

Draw = Callable[[int, tf.Tensor], tf.Tensor]


class _Pool:
    """A pool of draws that are returned one by one, and drawn again when none are left."""

    def __init__(self, draw: Draw, seed: tf.Tensor) -> None:
        self._draw, self._seed, self._number = draw, seed, 0
        self._left = self._more()

    def _more(self) -> list[tf.Tensor]:
        states = self._draw(_NUM_CHAINS, fold_in(self._seed, self._number))
        self._number += 1
        return tf.unstack(states)

    def next(self) -> tf.Tensor:
        """Returns a draw that has not been returned before."""
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
    """Returns one draw `[1, *event]` as part of the function being traced; None if this is not possible.

    It is not possible if the energy depends on tensors of that function, such as other parts of the joint distribution.

    Args:
      draw: maps a number and a seed, int32[2], to independent draws `[number, *event]`.
      seed: the seed of all draws.
      dtype, event_shape: dtype and event shape of a draw.
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
