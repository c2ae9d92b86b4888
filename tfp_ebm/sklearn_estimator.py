"""The estimator of `tfp_ebm.sklearn`, in a file of its own because its base classes need scikit-learn."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from tfp_ebm.arguments import check_count, is_frame
from tfp_ebm.model.distribution import EnergyDistribution
from tfp_ebm.outliers import row_statistics
from tfp_ebm.recipes.density import fit_density
from tfp_ebm.recipes.density_kinds import MIN_ROWS


class EnergyDensity(DensityMixin, BaseEstimator):
    """A density of a table by `fit_density`, as an estimator of scikit-learn like `sklearn.neighbors.KernelDensity`.

    Args:
      minutes: time for the training of the networks, about; see `fit_density`. Tables below 100 rows train none.
      seed: a whole number, of the fit; default of `sample`.

    Attributes:
      model_: the `EnergyModel`, with log Z = 0.
      n_features_in_: the number of columns.
      feature_names_in_: their names, after a fit to a data frame whose columns have names.

    `fit` raises the errors of `fit_density`. Data frames may have columns of all kinds that `datasets.TableEncoder`
    knows. Their columns of few distinct numbers, labels and truth values have probabilities, and log p is a density in
    the others. Arrays are densities in all columns. NaN marks a missing cell in both.

    >>> x = np.random.default_rng(0).normal(size=(60, 2))
    >>> estimator = EnergyDensity(minutes=0.02).fit(x)
    >>> estimator.score_samples(x).shape, estimator.sample(3).shape
    ((60,), (3, 2))
    >>> bool(np.isclose(estimator.score(x), estimator.score_samples(x).sum()))
    True
    """

    def __init__(self, minutes: float | None = None, seed: int = 0) -> None:
        self.minutes = minutes
        self.seed = seed

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> EnergyDensity:
        """Fits the density to a table `[rows, columns]` of at least 10 rows, an array or a data frame; `y` is ignored.

        Args:
          X: the table.
          y: not used.
          sample_weight: weights `[rows]` of the rows, as for `fit_density`.

        Returns:
          The estimator.
        """
        if is_frame(X):
            validate_data(self, X, skip_check_array=True)
        else:
            X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", ensure_min_samples=MIN_ROWS)
        self.model_ = fit_density(X, minutes=self.minutes, sample_weight=sample_weight, seed=self.seed, verbose=0)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns log p of each row, float64 `[rows]`; −inf for rows that the table of `fit` rules out.

        Such rows hold a label that was not in it, or contradict its constants. Whole numbers of data frames are spread
        by noise from the estimator's seed.
        """
        return row_statistics(self.model_, self._checked(X), seed=self.seed, name="X")

    def score(self, X: Any, y: Any = None) -> float:
        """Returns the total log-likelihood of the rows, Σ log p; `y` is ignored."""
        return float(self.score_samples(X).sum())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draws independent rows of the fitted density.

        Args:
          n_samples: the number of rows.
          random_state: an int, a `numpy.random.RandomState`, or None for the estimator's seed, which draws the same
            rows each time.

        Returns:
          float64 `[n_samples, columns]`; after a fit to a data frame, a data frame of the same columns.
        """
        check_is_fitted(self)
        count = check_count("n_samples", n_samples)
        seed = self.seed if random_state is None else random_state
        if not isinstance(seed, numbers.Integral):
            seed = check_random_state(seed).randint(2**31)
        if self.model_.encoder is not None:
            return self.model_.sample_frame(count, seed=int(seed))
        return EnergyDistribution(self.model_).sample(count, seed=int(seed)).numpy().astype(np.float64)

    def _checked(self, X: Any) -> Any:
        """Returns rows in the form of the table of `fit`, an array or a data frame."""
        check_is_fitted(self)
        if self.model_.encoder is None:
            return validate_data(self, X, reset=False, dtype=np.float64, ensure_all_finite="allow-nan")
        if is_frame(X):
            validate_data(self, X, reset=False, skip_check_array=True)
            return X
        import pandas

        X = validate_data(self, X, reset=False, dtype=None, ensure_all_finite="allow-nan")
        return pandas.DataFrame(X, columns=list(self.model_.encoder.labels))
