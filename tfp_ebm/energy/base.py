"""Base distributions: the one reference that serves wherever a model needs one.

Chains start and restart there, global moves propose from it, noise contrastive estimation contrasts with it, and
annealed importance sampling begins at it. As a base *measure* it also tilts an energy, E(x) = network(x) − log base(x),
which keeps Z = ∫ base(x) exp(−network(x)) dx finite in every direction where the network is bounded below.

The default is the Gaussian fitted to the data. Its moments are taken in float64, in one pass that merges blocks (Chan,
Golub & LeVeque 1979), and its factor from correlations, so that columns of any mean and scale keep their digits.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random
from tfp_ebm.arguments import check_data, check_positive
from tfp_ebm.energy.moments import FULL_COVARIANCE_LIMIT, DataMoments

tfb, tfd = tfp.bijectors, tfp.distributions


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
        z = random.normal(tf.concat([shape, base.batch_shape, base.event_shape], 0), seed, base.dtype)
        return base.bijector.forward(z)
    if type(base) is tfd.Independent:
        return draw(base.distribution, shape, seed)
    if type(base) is tfd.Uniform:
        u = random.uniform(tf.concat([shape, base.batch_shape], 0), seed, base.dtype)
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
    moments = DataMoments.of([x])
    moments.check_varies()
    scale = check_positive("width", width) * moments.cholesky()
    return gaussian(tf.constant(moments.mean, dtype), tf.constant(scale, dtype), x.shape[1:])


class GaussianBase(keras.layers.Layer):
    """The Gaussian fitted to data, kept in weights: where chains start and what noise is by default."""

    def __init__(self, event_shape: tuple[int, ...], dtype: str, name: str = "base") -> None:
        super().__init__(dtype=dtype, trainable=False, name=name)
        self.event_shape = tuple(event_shape)
        size = int(np.prod(event_shape))
        shape = (size, size) if size <= FULL_COVARIANCE_LIMIT else (size,)

        def weight(name: str, shape: tuple[int, ...], dtype: str) -> keras.Variable:
            return self.add_weight(shape=shape, dtype=dtype, initializer="zeros", trainable=False, name=name)

        self.loc = weight("loc", (size,), dtype)
        self.scale = weight("scale", shape, dtype)
        self.fitted = weight("fitted", (), "int32")
        self.built = True

    def assign(self, moments: DataMoments) -> None:
        """Fits the Gaussian; says so where a singular covariance had to be shrunk."""
        moments.check_varies()
        self.loc.assign(moments.mean)
        self.scale.assign(moments.cholesky())
        self.fitted.assign(1)

    @property
    def is_fitted(self) -> bool:
        """Whether there is something to give."""
        with tf.init_scope():  # a step being traced asks too, and what it asks is a fact, not a tensor
            return bool(self.fitted.value.numpy())

    def distribution(self) -> tfp.distributions.Distribution:
        """The Gaussian over states `[*event]`, reading the weights as they are."""
        return gaussian(self.loc.value, self.scale.value, self.event_shape)
