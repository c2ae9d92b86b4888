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
from tfp_ebm.arguments import check_choice, check_data, check_positive, check_probability
from tfp_ebm.energy.gaussian_mixture import MixtureParameters, draw_of_gaussians, fit_mixture
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
    return over_events(flat, event_shape)


def over_events(flat: tfp.distributions.Distribution, event_shape: tuple[int, ...]) -> tfp.distributions.Distribution:
    """Returns a distribution over vectors as one over states of `event_shape`."""
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
        batch = base.batch_shape if base.batch_shape.is_fully_defined() else base.batch_shape_tensor()
        z = random.normal(tf.concat([shape, batch, base.event_shape], 0), seed, base.dtype)
        return base.bijector.forward(z)
    if type(base) is tfd.Independent:
        return draw(base.distribution, shape, seed)
    if type(base) is tfd.MixtureSameFamily and type(base.components_distribution) is tfd.MultivariateNormalTriL:
        return _draw_of_mixture(base, shape, seed)
    if type(base) is tfd.Uniform:
        u = random.uniform(tf.concat([shape, base.batch_shape], 0), seed, base.dtype)
        return base.low + (base.high - base.low) * u
    return base.sample(shape, seed=seed)


def _draw_of_mixture(mixture: tfp.distributions.MixtureSameFamily, shape: Any, seed: tf.Tensor) -> tf.Tensor:
    """Draws one component for each sample, where TFP draws a sample of each component."""
    parts = mixture.components_distribution
    shares = tf.cumsum(mixture.mixture_distribution.probs_parameter())
    shares = shares[:-1] / shares[-1]
    samples = draw_of_gaussians(shares, parts.loc, parts.scale_tril, tf.reduce_prod(shape), seed)
    return tf.reshape(samples, tf.concat([shape, mixture.event_shape], 0))


def fit_base(
    x: Any,
    kind: str = "gaussian",
    *,
    num_components: int | None = None,
    seed: int = 0,
    width: float = 1.0,
    broad_share: float = 0.0,
    x_held_out: Any = None,
    dtype: tf.DType = tf.float32,
) -> tfp.distributions.Distribution:
    """Fits a base distribution to data: a Gaussian N(mean, width² covariance), or a mixture of Gaussians.

    Args:
      x: array `[rows, *event]`.
      kind: "gaussian", with the 1/n covariance of the rows; or "gaussian_mixture", by scikit-learn's expectation
        maximisation on at most 20 000 rows.
      num_components: number of Gaussians of a mixture; None tries up to 32, as the rows allow, and keeps the number
        with the largest likelihood of held-out rows.
      seed: of a mixture's starts and held-out rows.
      width: standard deviations of the Gaussian in terms of those of the data. Above 1 it covers tails that are
        heavier than its own.
      broad_share: weight of one more component in a mixture, the Gaussian of all rows with twice their standard
        deviations. A tenth serves samplers and noise contrastive estimation, which need a base that covers the data.
      x_held_out: rows that choose the form of a mixture; default: a tenth of `x`.
      dtype: dtype of the distribution.

    Returns:
      `tfd.MultivariateNormalTriL` over `[d]`, or a `tfd.MixtureSameFamily` of such; diagonal above 512 coordinates, and
      reshaped for events of rank 2 and more. A singular covariance is shrunk just enough towards its diagonal, with a
      warning that gives the amount; a constant coordinate gets standard deviation 1, like the scale that
      `EnergyModel.adapt` gives it.

    Raises:
      TypeError, ValueError: if `x` is no array of finite numbers, an argument is out of its range, or a mixture is
        required for more than 512 coordinates.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal([1.0, -2.0], [3.0, 0.5], size=(10_000, 2))
    >>> fit_base(x).mean().numpy().round(1).tolist()
    [1.0, -2.0]
    >>> two = np.concatenate([x, x + 20.0])
    >>> fit_base(two, kind="gaussian_mixture", num_components=2).mean().numpy().round().tolist()
    [11.0, 8.0]
    """
    x = check_data("x", x)
    check_choice("kind", kind, ("gaussian", "gaussian_mixture"))
    moments = DataMoments.of([x])
    moments.check_varies()
    check_positive("width", width)
    if kind == "gaussian":
        if num_components is not None or broad_share or x_held_out is not None:
            raise ValueError('`num_components`, `broad_share` and `x_held_out` need kind="gaussian_mixture".')
        scale = width * moments.cholesky()
        return gaussian(tf.constant(moments.mean, dtype), tf.constant(scale, dtype), x.shape[1:])
    if width != 1.0:
        raise ValueError(f'`width` must be 1 for kind="gaussian_mixture", got {width}; see `broad_share`.')
    if moments.comoment.ndim == 1:
        raise ValueError(
            f'kind="gaussian_mixture" takes at most {FULL_COVARIANCE_LIMIT} coordinates, got {len(moments.mean)}.'
        )
    check_probability("broad_share", broad_share)
    held_out = None
    if x_held_out is not None:
        held_out = check_data("x_held_out", x_held_out, event_shape=x.shape[1:]).reshape(len(x_held_out), -1)
    mixture = fit_mixture(np.asarray(x, np.float64).reshape(len(x), -1), num_components, seed=seed, x_held_out=held_out)
    return mixture_distribution(with_broad_part(mixture, moments, broad_share), dtype, x.shape[1:])


def with_broad_part(mixture: MixtureParameters, moments: DataMoments, share: float) -> MixtureParameters:
    """Returns the mixture with one more component, as `broad_share` of `fit_base` describes it."""
    if share == 0.0:
        return mixture
    return MixtureParameters(
        np.append((1.0 - share) * mixture.probs, share),
        np.concatenate([mixture.loc, moments.mean[None]]),
        np.concatenate([mixture.scale_tril, 2.0 * moments.cholesky()[None]]),
    )


def mixture_distribution(
    mixture: MixtureParameters, dtype: Any, event_shape: tuple[int, ...]
) -> tfp.distributions.Distribution:
    """Returns a mixture of separate covariances as a distribution over states of `event_shape`."""
    flat = tfd.MixtureSameFamily(
        tfd.Categorical(probs=tf.constant(mixture.probs, dtype)),
        tfd.MultivariateNormalTriL(tf.constant(mixture.loc, dtype), tf.constant(mixture.scale_tril, dtype)),
    )
    return over_events(flat, event_shape)


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
        """Fits the Gaussian; warns where a singular covariance had to be shrunk."""
        moments.check_varies()
        self.loc.assign(moments.mean)
        self.scale.assign(moments.cholesky())
        self.fitted.assign(1)

    @property
    def is_fitted(self) -> bool:
        """Whether there is something to give."""
        with tf.init_scope():  # a step being traced reads it too, and needs a Python value, not a tensor
            return bool(self.fitted.value.numpy())

    def distribution(self) -> tfp.distributions.Distribution:
        """The Gaussian over states `[*event]`, reading the weights as they are."""
        return gaussian(self.loc.value, self.scale.value, self.event_shape)
