"""A Gaussian mixture of the data with noise added: p_t = Σₖ wₖ N(mₖ, Σₖ + tI), known at every noise scale √t.

A single Gaussian has the data's mean and covariance. Several Gaussians differ in the leading coordinates alone of
a = Aᵀ(y − m), with the principal axes A of the data, where few rows bear many of them. The other coordinates of a are
normal, and independent. Up to 50 coordinates, all of them are leading ones, and A = I, m = 0.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.energy.base import gaussian, mixture_distribution, over_events
from tfp_ebm.energy.gaussian_mixture import MixtureParameters, fit_mixture
from tfp_ebm.energy.moments import FULL_COVARIANCE_LIMIT, DataMoments

tfd = tfp.distributions
# Leading coordinates, at most; rows for each coordinate of a component, at least, where all are leading ones and where
# they are not; rows to which a mixture is fitted.
_LEADING, _ROWS_PER_COORDINATE, _ROWS_PER_LEADING, _MAX_FITTED_ROWS = 50, 10, 2, 20_000
# Eigenvalues of a covariance are at least this share of their mean.
_SMALLEST_VARIANCE = 1e-6


class MixtureTerms(NamedTuple):
    """What an energy needs of the mixture, `[batch]` each; qₖ = ½(y−mₖ)ᵀ(Σₖ + tI)⁻¹(y−mₖ).

    Attributes:
      energy: −log p_t(y).
      distance: −log Σₖ exp(−qₖ).
      volume: the mean of ½ log det 2π(Σₖ + tI).
      slope: what `energy` becomes if uₖ·v is added to each qₖ, minus `energy`; uₖ = (Σₖ + tI)^−½ (y − mₖ).
    """

    energy: tf.Tensor
    distance: tf.Tensor
    volume: tf.Tensor
    slope: tf.Tensor


class NoisyMixture(keras.layers.Layer):
    """The mixture, N(0, I) until it is fitted.

    Args:
      size: d, the number of coordinates.
      num_components: number of Gaussians.
      **kwargs: passed to `keras.layers.Layer`.

    >>> mixture = NoisyMixture(2)
    >>> terms = mixture.terms(tf.zeros([1, 2]), tf.constant([10.0]))
    >>> abs(float(terms.energy[0]) - math.log(2.0 * math.pi * 101.0)) < 1e-5
    True
    """

    def __init__(self, size: int, num_components: int = 1, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self.size, self.num_components = size, num_components
        self.num_leading = leading = 0 if num_components == 1 else min(size, _LEADING)
        is_turned = size <= FULL_COVARIANCE_LIMIT if num_components == 1 else leading < size
        count = num_components

        def weight(name: str, shape: tuple[int, ...], initializer: Any = "zeros") -> keras.Variable:
            return self.add_weight(shape=shape, initializer=initializer, trainable=False, name=name)

        self.log_weights = weight("log_weights", (count,), keras.initializers.Constant(-math.log(count)))
        self.center = weight("center", (size,))
        self.basis = weight("basis", (size, size), "identity") if is_turned else None
        self.other_variances = weight("other_variances", (size - leading,), "ones")
        self.locs = weight("locs", (count, leading))
        self.variances = weight("variances", (count, leading), "ones")
        self.axes = weight("axes", (count, leading, leading), _identities)
        self.built = True

    def adapt_to(self, rows: np.ndarray) -> None:
        """Fits the mixture to rows `[rows, d]` in float64; few rows get fewer components."""
        if not self.num_leading:
            self._fit_gaussian(rows)
        elif self.basis is None:
            self._fit_leading(rows, _ROWS_PER_COORDINATE)
        else:
            center, covariance = rows.mean(0), np.cov(rows.T, bias=True)
            variances, axes = (part[..., ::-1] for part in np.linalg.eigh(covariance))
            variances = np.maximum(variances, _SMALLEST_VARIANCE * variances.mean())
            self.center.assign(center)
            self.basis.assign(axes)
            self.other_variances.assign(variances[self.num_leading :])
            self._fit_leading((rows - center) @ axes[:, : self.num_leading], _ROWS_PER_LEADING)

    def _fit_gaussian(self, rows: np.ndarray) -> None:
        moments = DataMoments.of([rows])
        factor = moments.cholesky()
        self.center.assign(moments.mean)
        if self.basis is None:
            self.other_variances.assign(np.square(factor))
        else:
            variances, axes = np.linalg.eigh(factor @ factor.T)
            self.basis.assign(axes)
            self.other_variances.assign(variances)

    def _fit_leading(self, rows: np.ndarray, rows_per_coordinate: int) -> None:
        count = self.num_components
        fitted = min(count, max(1, len(rows) // (rows_per_coordinate * (rows.shape[1] + 1))))
        if fitted > 1:
            mixture = fit_mixture(rows[:_MAX_FITTED_ROWS], fitted, seed=0)
        else:
            moments = DataMoments.of([rows])
            mixture = MixtureParameters(np.ones(1), moments.mean[None], moments.cholesky()[None])
        index = np.arange(count) % fitted  # further components repeat the first ones, which share their weight
        factors = mixture.scale_tril[index]
        variances, axes = np.linalg.eigh(factors @ factors.transpose(0, 2, 1))
        self.log_weights.assign(np.log(mixture.probs[index] / np.bincount(index)[index]))
        self.locs.assign(mixture.loc[index])
        self.variances.assign(variances)
        self.axes.assign(axes)

    def terms(self, y: tf.Tensor, sigma: tf.Tensor, v: tf.Tensor | None = None) -> MixtureTerms:
        """Returns the terms at states `[batch, d]` and noise scales `[batch]`, for v `[batch, d]` or zero."""
        t, leading = tf.square(sigma)[:, None], self.num_leading
        a = self._turned(y - self.center.value)
        v = None if v is None else self._turned(v)
        squares = volumes = slopes = tf.zeros([1, 1], y.dtype)  # [batch, K], or [batch, 1] of what all share
        if leading < self.size:
            of_v = None if v is None else v[:, leading:]
            squares, volumes, slopes = _sums(a[:, leading:], self.other_variances.value + t, of_v)
        if leading:
            axes = self.axes.value
            along = tf.einsum("bki,kij->bkj", a[:, None, :leading] - self.locs.value, axes)
            of_v = None if v is None else tf.einsum("bi,kij->bkj", v[:, :leading], axes)
            own = _sums(along, self.variances.value + t[:, :, None], of_v)
            squares, volumes, slopes = squares + own[0], volumes + own[1], slopes + own[2]
        log_weights = self.log_weights.value
        energy = -tf.reduce_logsumexp(log_weights - squares - volumes, 1)
        if v is None:
            slope = tf.zeros_like(energy)
        elif leading:
            slope = -tf.reduce_logsumexp(log_weights - squares - volumes - slopes, 1) - energy
        else:
            slope = slopes[:, 0]
        distance = -tf.reduce_logsumexp(-squares, 1)
        return MixtureTerms(energy, distance, tf.reduce_sum(tf.exp(log_weights) * volumes, 1), slope)

    def _turned(self, y: tf.Tensor) -> tf.Tensor:
        return y if self.basis is None else tf.matmul(y, self.basis.value)

    def distribution(self, sigma: float, event_shape: tuple[int, ...]) -> tfp.distributions.Distribution:
        """Returns the mixture plus noise of scale σ, over states `[*event]`."""
        t = tf.constant(sigma, self.dtype) ** 2
        others = self.other_variances.value + t
        if not self.num_leading:
            if self.basis is None:
                return gaussian(self.center.value, tf.sqrt(others), event_shape)
            basis = self.basis.value
            factor = tf.linalg.cholesky(tf.matmul(basis * others, basis, transpose_b=True))
            return gaussian(self.center.value, factor, event_shape)
        axes, variances = self.axes.value, self.variances.value + t
        factors = tf.linalg.cholesky(tf.matmul(axes * variances[:, None, :], axes, transpose_b=True))
        probs = tf.nn.softmax(self.log_weights.value)
        parts = MixtureParameters(*(np.asarray(part, np.float64) for part in (probs, self.locs.value, factors)))
        if self.basis is None:
            return mixture_distribution(parts, self.dtype, event_shape)
        leading = mixture_distribution(parts, self.dtype, (self.num_leading,))
        rest = tfd.MultivariateNormalDiag(tf.zeros_like(others), tf.sqrt(others))
        turn = Rotation(self.center.value, self.basis.value)
        return over_events(tfd.TransformedDistribution(tfd.Blockwise([leading, rest]), turn), event_shape)


class Rotation(tfp.bijectors.Bijector):
    """y = m + A a with orthonormal columns A, whose volume is 1.

    >>> turn = Rotation(tf.constant([1.0, 2.0]), tf.constant([[0.0, 1.0], [1.0, 0.0]]))
    >>> turn.forward(tf.constant([5.0, 7.0])).numpy().tolist(), float(turn.forward_log_det_jacobian(tf.zeros(2), 1))
    ([8.0, 7.0], 0.0)
    """

    def __init__(self, center: tf.Tensor, basis: tf.Tensor, name: str = "rotation") -> None:
        parameters = {"center": center, "basis": basis, "name": name}
        self._center, self._basis = center, basis
        super().__init__(
            forward_min_event_ndims=1,
            is_constant_jacobian=True,
            dtype=basis.dtype,
            parameters=parameters,
            name=name,
        )

    def _forward(self, a: tf.Tensor) -> tf.Tensor:
        return self._center + tf.linalg.matvec(self._basis, a)

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        return tf.linalg.matvec(self._basis, y - self._center, transpose_a=True)

    def _forward_log_det_jacobian(self, a: tf.Tensor) -> tf.Tensor:
        return tf.zeros([], a.dtype)


def _sums(a: tf.Tensor, widths: tf.Tensor, v: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns ½‖a/√w‖², ½ Σ log 2πw and v·a/√w over the last axis; of two axes, the last is kept with size 1."""
    keeps = a.shape.rank == 2
    squares = 0.5 * tf.reduce_sum(tf.square(a) / widths, -1, keepdims=keeps)
    volumes = 0.5 * tf.reduce_sum(tf.math.log(2.0 * math.pi * widths), -1, keepdims=keeps)
    if v is None:
        return squares, volumes, tf.zeros_like(squares)
    return squares, volumes, tf.reduce_sum(v * a * tf.math.rsqrt(widths), -1, keepdims=keeps)


def _identities(shape: tuple[int, ...], dtype: Any = None) -> Any:
    """Returns identity matrices `[count, size, size]`."""
    return keras.ops.broadcast_to(keras.ops.eye(shape[-1], dtype=dtype), shape)
