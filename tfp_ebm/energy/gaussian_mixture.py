"""A Gaussian mixture fitted by scikit-learn's expectation maximisation, its size chosen by held-out likelihood."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.arguments import check_count, check_data
from tfp_ebm.energy.moments import DataMoments

tfd = tfp.distributions

# Above this many coordinates the components' covariances are diagonal.
FULL_COVARIANCE_COORDINATES = 40
# Numbers of components that are tried, as far as the rows allow.
_SIZES = (1, 2, 4, 6, 8, 12, 16, 24, 32)
# Rows for each free number of a component, and the rows that a fit uses at most.
_ROWS_PER_PARAMETER, _MAX_ROWS = 2.0, 20_000
# Rows on which numbers of components are compared: their order shows on few.
_ROWS_TO_COMPARE = 5000


def fit_gaussian_mixture(
    x: Any, num_components: int | None = None, dtype: Any = tf.float32, seed: int = 0, x_held_out: Any = None
) -> tfp.distributions.MixtureSameFamily:
    """Fits a Gaussian mixture to data `[rows, size]`.

    Args:
      x: array of numbers `[rows, size]`.
      num_components: number of Gaussians; None tries up to 32, as the rows allow, and keeps the number with the
        largest log-likelihood of held-out rows.
      dtype: dtype of the distribution.
      seed: of starts and of the rows held out.
      x_held_out: rows that choose the number; default: a tenth of x.

    Returns:
      A `tfd.MixtureSameFamily` of `tfd.MultivariateNormalTriL`.

    Raises:
      TypeError, ValueError: if `x` is no array of finite numbers, or the number is not positive.

    >>> x = np.random.default_rng(0).normal(size=(500, 1)) + np.repeat([[-5.0], [5.0]], 250, 0)
    >>> fit_gaussian_mixture(x, seed=1).mixture_distribution.probs.numpy().round(1).tolist()
    [0.5, 0.5]
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rows = check_data("x", x, min_rows=2)
    rows = np.asarray(rows, np.float64).reshape(len(rows), -1)
    moments = DataMoments.of([rows])
    scale = moments.scale
    z = (rows - moments.mean) / scale
    size = z.shape[1]
    kind = "full" if size <= FULL_COVARIANCE_COORDINATES else "diag"
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(z))
    if x_held_out is None:
        count = max(1, len(z) // 10)
        train, held_out = z[order[count:]], z[order[:count]]
    else:
        held_out = (np.asarray(x_held_out, np.float64).reshape(len(x_held_out), -1) - moments.mean) / scale
        train = z[order]
    train = train[:_MAX_ROWS]

    def fitted(number: int, data: np.ndarray, starts: int) -> Any:
        # Prior counts of a hundredth of a row keep covariances of few rows regular.
        ridge = max(1e-6, 1e-2 / len(data))
        mixture = GaussianMixture(
            number,
            covariance_type=kind,
            reg_covar=ridge,
            n_init=starts,
            max_iter=100,
            random_state=seed,
            init_params="k-means++",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return mixture.fit(data)

    if num_components is None:
        per_component = size * (size + 3) / 2 if kind == "full" else 2 * size
        most = max(1.0, len(train) / (_ROWS_PER_PARAMETER * per_component) + 1)
        best, number, worse = -np.inf, 1, 0
        for candidate in (n for n in _SIZES if n <= most and n <= len(train)):
            score = fitted(candidate, train[:_ROWS_TO_COMPARE], 1).score(held_out)
            if score > best:
                best, number, worse = score, candidate, 0
            else:
                worse += 1
                if worse == 2:
                    break
    else:
        number = check_count("num_components", num_components)
        if number > len(train):
            raise ValueError(f"`num_components` must not exceed the {len(train)} rows, got {number}.")
    mixture = fitted(number, train, 1)
    covariance = mixture.covariances_ if kind == "full" else np.stack([np.diag(row) for row in mixture.covariances_])
    factor = np.linalg.cholesky(covariance) * scale[:, None]
    return tfd.MixtureSameFamily(
        tfd.Categorical(probs=tf.constant(mixture.weights_, dtype)),
        tfd.MultivariateNormalTriL(
            tf.constant(mixture.means_ * scale + moments.mean, dtype), tf.constant(factor, dtype)
        ),
    )
