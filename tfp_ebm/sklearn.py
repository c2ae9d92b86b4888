"""Estimators for scikit-learn: `fit_density` for pipelines, cross-validation and grid search.

scikit-learn is imported when an estimator is first used, not with this package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfp_ebm.sklearn_estimator import EnergyDensity

__all__ = ["EnergyDensity"]


def __getattr__(name: str) -> Any:
    """Returns an estimator's class, whose base classes are scikit-learn's."""
    if name in __all__:
        from tfp_ebm import sklearn_estimator

        return getattr(sklearn_estimator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
