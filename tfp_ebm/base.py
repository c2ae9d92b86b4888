"""Base distributions: the one reference that serves wherever a model needs one.

Chains start and restart there, global moves propose from it, noise contrastive estimation contrasts with it, and
annealed importance sampling begins at it. As a base *measure* it also tilts an energy, E(x) = network(x) − log base(x),
which keeps Z = ∫ base(x) exp(−network(x)) dx finite in every direction where the network is bounded below.

The default is the Gaussian fitted to the data. Its moments are taken in float64, in one pass that merges blocks (Chan,
Golub & LeVeque 1979), and its factor from correlations, so that columns of any mean and scale keep their digits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import noise
from tfp_ebm.arguments import check_data, check_positive

tfb, tfd = tfp.bijectors, tfp.distributions

__all__ = ["FULL_COVARIANCE_LIMIT", "Moments", "check_base", "draw", "fit_base", "gaussian"]

# Above this many coordinates the covariance is diagonal: a full factor would outweigh the network.
FULL_COVARIANCE_LIMIT = 512
# Smallest eigenvalue of a correlation matrix that is kept as it is: float32 solves well down to there.
SMALLEST_EIGENVALUE = 1e-4


class Moments(NamedTuple):
    """Mean and centred sums of squares of the rows seen, in float64; `comoment` is `[d, d]`, or its diagonal `[d]`."""

    num_rows: int
    mean: np.ndarray
    comoment: np.ndarray

    @classmethod
    def of(cls, blocks: Iterable[np.ndarray]) -> Moments:
        """Moments of all rows of `blocks`, arrays `[rows, *event]`."""
        total: Moments | None = None
        for block in blocks:
            rows = np.asarray(block, np.float64).reshape(len(block), -1)
            mean = rows.mean(0)
            centred = rows - mean
            full = rows.shape[1] <= FULL_COVARIANCE_LIMIT
            part = cls(len(rows), mean, centred.T @ centred if full else np.square(centred).sum(0))
            total = part if total is None else total.merged(part)
        if total is None:
            raise ValueError("`x` must not be empty, but gave no rows.")
        return total

    def merged(self, other: Moments) -> Moments:
        """Moments of the rows of both."""
        num_rows = self.num_rows + other.num_rows
        shift = other.mean - self.mean
        squares = np.outer(shift, shift) if self.comoment.ndim == 2 else np.square(shift)
        comoment = self.comoment + other.comoment + (self.num_rows * other.num_rows / num_rows) * squares
        return Moments(num_rows, self.mean + (other.num_rows / num_rows) * shift, comoment)

    @property
    def is_constant(self) -> np.ndarray:
        """`[d]`, where the data does not vary beyond the rounding of its mean."""
        return np.sqrt(self._variance) <= 1e-12 * np.abs(self.mean)

    @property
    def scale(self) -> np.ndarray:
        """Standard deviations (1/n) `[d]`, with 1 where a coordinate is constant."""
        return np.where(self.is_constant, 1.0, np.sqrt(self._variance))

    @property
    def _variance(self) -> np.ndarray:
        return (np.diag(self.comoment) if self.comoment.ndim == 2 else self.comoment) / self.num_rows

    def check_varies(self) -> None:
        """Raises ValueError if every coordinate is constant."""
        if self.is_constant.all():
            raise ValueError(f"`x` must vary, but all its {len(self.mean)} coordinates are constant.")

    def cholesky(self) -> np.ndarray:
        """Lower factor `[d, d]` of the covariance (1/n), or standard deviations `[d]` if only its diagonal is kept.

        A singular covariance is shrunk towards its diagonal as little as gives every correlation eigenvalue
        `SMALLEST_EIGENVALUE`, with a warning that says how much. A constant coordinate gets standard deviation 1.
        """
        if self.comoment.ndim == 1:
            return self.scale
        correlation = self.comoment / self.num_rows / np.outer(self.scale, self.scale)
        correlation[self.is_constant, :] = correlation[:, self.is_constant] = 0.0
        np.fill_diagonal(correlation, 1.0)
        smallest = np.linalg.eigvalsh(correlation)[0]
        if smallest < SMALLEST_EIGENVALUE:
            amount = (SMALLEST_EIGENVALUE - smallest) / (1.0 - smallest)
            warnings.warn(
                "the covariance is singular to working precision (smallest eigenvalue of the correlations "
                f"{smallest:.1e}): shrunk by {amount:.1e} towards its diagonal.",
                stacklevel=4,
            )
            correlation = (1.0 - amount) * correlation + amount * np.eye(len(correlation))
        return self.scale[:, None] * np.linalg.cholesky(correlation)


def check_base(name: str, base: Any, dtype: Any = None, event_shape: tuple[int, ...] | None = None) -> None:
    """Raises unless `base` is one distribution (no batch of them), of that dtype and event shape if they are given."""
    if not isinstance(base, tfp.distributions.Distribution):
        raise TypeError(f"`{name}` must be a tfp.distributions.Distribution, got {base!r}.")
    if dtype is not None and (not isinstance(base.dtype, tf.DType) or base.dtype != dtype):
        raise TypeError(f"`{name}` must have the energy's dtype {tf.as_dtype(dtype).name}, got {base.dtype}.")
    if tuple(base.batch_shape) != ():
        raise ValueError(
            f"`{name}` must be one distribution, got a batch of shape {tuple(base.batch_shape)}; tfd.Independent makes "
            "one of a batch."
        )
    if event_shape is not None and tuple(base.event_shape) != event_shape:
        raise ValueError(f"`{name}` must have event shape {event_shape}, got {tuple(base.event_shape)}.")


def gaussian(loc: Any, scale: Any, event_shape: tuple[int, ...]) -> tfp.distributions.Distribution:
    """A Gaussian over states of `event_shape`; `scale` is a lower triangle `[d, d]` or a diagonal `[d]`."""
    if len(scale.shape) == 2:
        flat = tfd.MultivariateNormalTriL(loc=loc, scale_tril=scale)
    else:
        flat = tfd.MultivariateNormalDiag(loc=loc, scale_diag=scale)
    return flat if len(event_shape) == 1 else tfd.TransformedDistribution(flat, tfb.Reshape(event_shape))


def draw(base: tfp.distributions.Distribution, shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Independent draws `[*shape, *batch, *event]`, the same in graph mode and XLA for Gaussians and uniform laws.

    Args:
      base: any distribution, `[*batch, *event]`.
      shape: of the draws; a tensor or a sequence of sizes.
      seed: int32[2].

    >>> base = tfd.MultivariateNormalDiag([5.0, 1.0], [1.0, 2.0])
    >>> draw(base, [1000], tf.constant([0, 1])).numpy().mean(0).round().tolist()
    [5.0, 1.0]
    """
    if type(base) is tfd.TransformedDistribution and base.distribution.batch_shape == base.batch_shape:
        return base.bijector.forward(draw(base.distribution, shape, seed))
    if type(base) in (tfd.MultivariateNormalTriL, tfd.MultivariateNormalDiag):
        z = noise.normal(tf.concat([shape, base.batch_shape, base.event_shape], 0), seed, base.dtype)
        return base.bijector.forward(z)
    if type(base) is tfd.Independent:
        return draw(base.distribution, shape, seed)
    if type(base) is tfd.Uniform:
        u = noise.uniform(tf.concat([shape, base.batch_shape], 0), seed, base.dtype)
        return base.low + (base.high - base.low) * u
    return base.sample(shape, seed=seed)


def fit_base(x: Any, dtype: tf.DType = tf.float32, *, width: float = 1.0) -> tfp.distributions.Distribution:
    """Fits a Gaussian to data: N(mean, width² covariance) with the 1/n covariance of the rows.

    Args:
      x: array `[rows, *event]`.
      dtype: dtype of the distribution.
      width: standard deviations of the Gaussian in terms of those of the data. Above 1 it covers tails that are
        heavier than its own.

    Returns:
      `tfd.MultivariateNormalTriL` over `[d]`, with full covariance; diagonal above 512 coordinates, and reshaped for
      events of rank 2 and more. A singular covariance is shrunk just enough towards its diagonal, with a warning that
      says how much; a constant coordinate gets standard deviation 1, like the scale that `EnergyModel.adapt` gives it.

    Raises:
      TypeError, ValueError: if `x` is not a whole array of numbers, or `width` no positive number.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal([1.0, -2.0], [3.0, 0.5], size=(10_000, 2))
    >>> fit_base(x).mean().numpy().round(1).tolist()
    [1.0, -2.0]
    """
    x = check_data("x", x)
    moments = Moments.of([x])
    moments.check_varies()
    scale = check_positive("width", width) * moments.cholesky()
    return gaussian(tf.constant(moments.mean, dtype), tf.constant(scale, dtype), x.shape[1:])
