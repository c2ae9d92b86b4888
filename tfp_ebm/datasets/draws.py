"""Data sets that need no file: draws of every target, and scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_ebm import targets
from tfp_ebm.arguments import check_count
from tfp_ebm.random import stateless_seed


def _draws_of(make_target: Callable[[], targets.Target]) -> Callable[..., np.ndarray]:
    """Returns the function that draws a data set from a target."""
    label = make_target.__name__

    def draw(n: int, seed: Any = 0) -> np.ndarray:
        n = check_count("n", n)
        return make_target().sample(n, seed=stateless_seed(seed)).numpy()

    draw.__name__ = draw.__qualname__ = label
    draw.__doc__ = f"""`n` points of `targets.{label}()`, float32 `[n, 2]`.

    Args:
      n: number of points.
      seed: an int or int32[2]; the same seed gives the same points.

    Raises:
      TypeError: if `n` or `seed` is not made of integers.
      ValueError: if `n` is less than one.

    >>> {label}(3, seed=0).shape
    (3, 2)
    """
    return draw


two_gaussians = _draws_of(targets.two_gaussians)
eight_gaussians = _draws_of(targets.eight_gaussians)
two_moons = _draws_of(targets.two_moons)
swiss_roll = _draws_of(targets.swiss_roll)
banana = _draws_of(targets.banana)
rosenbrock = _draws_of(targets.rosenbrock)
funnel = _draws_of(targets.funnel)
rings = _draws_of(targets.rings)
pinwheel = _draws_of(targets.pinwheel)
checkerboard = _draws_of(targets.checkerboard)

TOYS = {
    draw.__name__: draw
    for draw in (
        two_moons,
        two_gaussians,
        eight_gaussians,
        pinwheel,
        rings,
        checkerboard,
        swiss_roll,
        banana,
        rosenbrock,
        funnel,
    )
}
TOY_NAMES = tuple(TOYS)


def digits(dequantize: bool = True, seed: Any = 0, images: bool = False) -> np.ndarray:
    """Returns the 1797 handwritten digits of scikit-learn, 8 × 8 pixels of 0 … 16.

    Args:
      dequantize: whether to return (pixel + U(0, 1))/17, in [0, 1], which has a density (see the docstring of
        `ebm.datasets`), instead of the original pixels, 0 to 16.
      seed: an int or int32[2], for the dequantisation.
      images: whether to return `[1797, 8, 8, 1]`, for a convolutional network, instead of `[1797, 64]`.

    Returns:
      float32 `[1797, 64]` or `[1797, 8, 8, 1]`.

    >>> x = digits()
    >>> x.shape, bool(x.min() >= 0), bool(x.max() <= 1)
    ((1797, 64), True, True)
    """
    from sklearn.datasets import load_digits

    pixels = load_digits().data
    if dequantize:
        pixels = dequantize_whole(pixels, seed) / 17
    return pixels.astype(np.float32).reshape((-1, 8, 8, 1) if images else (-1, 64))


def dequantize_whole(whole: np.ndarray, seed: Any) -> np.ndarray:
    """Adds U(0, 1) to every number, in float64."""
    return (
        whole + tf.random.stateless_uniform(whole.shape, stateless_seed(seed), dtype=tf.float64, alg="philox").numpy()
    )
