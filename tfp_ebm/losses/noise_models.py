"""Noise that is fitted to the data, for noise contrastive estimation: a Gaussian, a mixture of them, a kernel density.

The nearer the noise is to the data, the more a classifier between them has to learn. All three have full covariances:

    gaussian            N(mean, covariance) of the data
    gaussian_mixture    .9 Σₖ πₖ N(μₖ, Σₖ), by scikit-learn's expectation maximisation, + .1 wide,
                        which is the gaussian with twice its standard deviations
    kernel_density      1/m Σⱼ N(cⱼ, h²·covariance), cⱼ rows of the data, h = m^(−1/(d + 4)) (Scott 1992)

A mixture alone is as narrow as the data. Where there is neither data nor noise, no loss constrains the energy of a
flexible network, and mass there goes unnoticed. The wide tenth covers that region (a "defensive" component, Hesterberg
1995). It has twice the standard deviations of the data, since a tail may be longer than a Gaussian's: with a component
no wider than the data, up to .998 of the mass learned for the banana lay far out on its tail.

They are fitted in NumPy and float64, and become distributions in the dtype of the energy that they are compared with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import serialization
from tfp_ebm.energy.base import draw, gaussian, with_broad_part
from tfp_ebm.energy.gaussian_mixture import MixtureParameters, draw_of_gaussians, fit_mixture
from tfp_ebm.energy.moments import FULL_COVARIANCE_LIMIT, DataMoments
from tfp_ebm.tracing import graph_function

tfb, tfd = tfp.bijectors, tfp.distributions

# Added to the variances of a mixture's components, in variances of the data: none shrinks to a point.
_VARIANCE_FLOOR = 1e-4
# The share of the wide part in a mixture.
_WIDE = 0.1
# Rows that a mixture is fitted to; more change little.
MIXTURE_ROWS = 20_000


class GaussianMixture(tfp.distributions.Distribution):
    """Σₖ πₖ N(μₖ, LₖLₖᵀ), drawn from and evaluated at a cost that allows thousands of components.

    `tfd.MixtureSameFamily` draws all components for each draw, and solves a triangular system for each of them. Here a
    draw takes one component, and components that share their factor L are evaluated by one matrix product.

    Args:
      probs: πₖ, array `[K]`.
      loc: μₖ, array `[K, d]`.
      scale_tril: Lₖ, array `[K, d, d]`, or `[d, d]` shared by all.
      dtype: float32 or float64.

    >>> p = GaussianMixture(np.array([0.5, 0.5]), np.array([[-3.0], [3.0]]), np.array([[1.0]]), tf.float64)
    >>> q = tfd.MixtureSameFamily(tfd.Categorical(probs=[0.5, 0.5]), tfd.Normal([-3.0, 3.0], 1.0))
    >>> abs(float(p.log_prob([1.0])) - float(q.log_prob(1.0))) < 1e-6
    True
    """

    def __init__(
        self,
        probs: np.ndarray,
        loc: np.ndarray,
        scale_tril: np.ndarray,
        dtype: Any = tf.float32,
        name: str = "GaussianMixture",
    ) -> None:
        parameters = dict(locals())
        kind = tf.as_dtype(dtype).as_numpy_dtype
        inverse = np.linalg.inv(scale_tril)
        # Squares are expanded below; around the mean of all they lose the fewest digits.
        centre = probs @ loc
        whitened = (inverse @ (loc - centre)[..., None])[..., 0]
        # Arrays and not tensors: they outlive any graph in which they are used.
        constant = MixtureParameters(probs, loc, scale_tril).log_weights
        self._inverse, self._whitened, self._constant = (
            inverse.astype(kind),
            whitened.astype(kind),
            constant.astype(kind),
        )
        self._loc, self._scale, self._centre = loc.astype(kind), scale_tril.astype(kind), centre.astype(kind)
        self._below = (np.cumsum(probs) / np.sum(probs))[:-1].astype(kind)
        super().__init__(
            dtype=tf.as_dtype(dtype),
            reparameterization_type=tfd.NOT_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=True,
            parameters=parameters,
            name=name,
        )

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        centred = x - self._centre
        if self._inverse.ndim == 2:
            y = tf.tensordot(centred, self._inverse.T, 1)
            squares = tf.reduce_sum(tf.square(y), -1, keepdims=True) + np.square(self._whitened).sum(-1)
            squares = tf.maximum(squares - 2.0 * tf.tensordot(y, self._whitened.T, 1), 0.0)
        else:
            y = tf.einsum("kij,...j->...ki", self._inverse, centred)
            squares = tf.reduce_sum(tf.square(y - self._whitened), -1)
        return tf.reduce_logsumexp(self._constant - 0.5 * squares, -1)

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        seed = tfp.random.sanitize_seed(seed)
        return draw_of_gaussians(self._below, self._loc, self._scale, n, seed)

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape(self._loc.shape[1:])

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant(self._loc.shape[1:], tf.int32)

    def _batch_shape(self) -> tf.TensorShape:
        return tf.TensorShape([])

    def _batch_shape_tensor(self) -> tf.Tensor:
        return tf.constant([], tf.int32)

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        return {}


class FittedNoise(NamedTuple):
    """The arrays of a fitted noise, in float64: of one Gaussian if there are no `probs`, else of a mixture.

    >>> x = np.random.default_rng(0).normal(size=(500, 2))
    >>> FittedNoise.kernel_density(x, num_centers=100).distribution(tf.float32).sample(3, seed=(0, 1)).shape
    TensorShape([3, 2])
    """

    event_shape: tuple[int, ...]
    loc: np.ndarray
    scale: np.ndarray
    probs: np.ndarray | None = None

    @classmethod
    def gaussian(cls, moments: DataMoments, event_shape: tuple[int, ...]) -> FittedNoise:
        """The Gaussian of these moments: what `fit_base` makes."""
        moments.check_varies()
        return cls(event_shape, moments.mean, moments.cholesky())

    @classmethod
    def gaussian_mixture(cls, x: np.ndarray, num_components: int = 8, seed: int = 0) -> FittedNoise:
        """The mixture of `fit_base`, and a tenth of the wide Gaussian."""
        rows, moments = _rows(x, num_components, "num_components")
        mixture = fit_mixture(rows, num_components, seed=seed, ridge=_VARIANCE_FLOOR)
        probs, loc, scale = with_broad_part(mixture, moments, _WIDE)
        return cls(x.shape[1:], loc, scale, probs)

    @classmethod
    def kernel_density(
        cls, x: np.ndarray, num_centers: int = 1000, bandwidth: float | None = None, seed: int = 0
    ) -> FittedNoise:
        """Rows of the data, at most `num_centers` of them, each smoothed by N(0, h²·covariance)."""
        rows, moments = _rows(x, 1, "num_centers")
        chosen = np.random.default_rng(seed).permutation(len(rows))[:num_centers]
        h = len(chosen) ** (-1.0 / (rows.shape[1] + 4)) if bandwidth is None else bandwidth
        probs = np.full(len(chosen), 1.0 / len(chosen))
        return cls(x.shape[1:], rows[chosen], h * moments.cholesky(), probs)

    def distribution(self, dtype: Any) -> tfp.distributions.Distribution:
        """The noise as a distribution over states of `event_shape`."""
        if self.probs is None:
            return gaussian(tf.constant(self.loc, dtype), tf.constant(self.scale, dtype), self.event_shape)
        flat = GaussianMixture(self.probs, self.loc, self.scale, dtype)
        if len(self.event_shape) == 1:
            return flat
        return tfd.TransformedDistribution(flat, tfb.Reshape(self.event_shape))


def _rows(x: np.ndarray, minimum: int, name: str) -> tuple[np.ndarray, DataMoments]:
    """`x` as float64 `[rows, d]`, and its moments."""
    rows = np.asarray(x, np.float64).reshape(len(x), -1)
    if len(rows) < minimum:
        raise ValueError(f"`{name}` must not exceed the rows of `x`, got {minimum} for {len(rows)} rows.")
    if rows.shape[1] > FULL_COVARIANCE_LIMIT:
        raise ValueError(
            f"`noise` with full covariances takes at most {FULL_COVARIANCE_LIMIT} coordinates, got {rows.shape[1]}: "
            "use the default, which is diagonal there."
        )
    moments = DataMoments.of([rows])
    moments.check_varies()
    return rows, moments


def is_function(noise: Any) -> bool:
    """Returns whether the noise is a function of conditions."""
    return callable(noise) and not isinstance(noise, tfp.distributions.Distribution | str | type)


def encoded(noise: Any) -> Any:
    """Returns a noise as plain values, for a config; the inverse of `decoded`."""
    if not is_function(noise):
        return serialization.encode(noise, "noise")
    return {"function": keras.saving.serialize_keras_object(noise)}


def decoded(config: Any) -> Any:
    """Returns the noise of a config that `encoded` made."""
    if isinstance(config, dict) and "function" in config:
        return keras.saving.deserialize_keras_object(config["function"])
    return serialization.decode(config)


def check_usable(noise: tfp.distributions.Distribution) -> None:
    """Raises ValueError unless `noise` has a density, and gives as many draws as a step needs."""
    try:
        noise.log_prob(tf.zeros(noise.event_shape, noise.dtype))
    except NotImplementedError as error:
        raise ValueError(f"`noise` must have a log_prob, got {type(noise).__name__}: {error}") from error
    except tf.errors.InvalidArgumentError:
        pass  # zero is not in its support, and it raises an error
    number, seed = tf.TensorSpec([1], tf.int32), tf.TensorSpec([2], tf.int32)
    try:  # traced as a step is, and not run
        graph_function(lambda n, s: draw(noise, n, s)).get_concrete_function(number, seed)
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"`noise` must have a sample that works in a graph, got {type(noise).__name__}: {error}"
        ) from error
