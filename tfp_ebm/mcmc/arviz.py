"""Draws in ArviZ's form, for its plots and tables. ArviZ is an extra: `pip install "tfp_ebm[arviz]"`."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np

from tfp_ebm.mcmc.sampling import Samples

__all__ = ["to_arviz"]


def to_arviz(samples: Samples) -> Any:
    """`Samples` as ArviZ's `InferenceData`, or, from its release 1 on, as the `xarray.DataTree` that took its place.

    The group `posterior` holds `x` `[chain, draw, *event]`, all axes of chains made one; `sample_stats` holds `lp`, the
    unnormalised log density, and `accepted`, both `[chain, draw]`. `arviz.summary` of it gives the figures of
    `diagnose`: `sd`, `mcse_mean`, `ess_bulk`, and as `r_hat` its `rhat_rank`.

    Args:
      samples: what `ebm.mcmc.sample` returned.

    Raises:
      ImportError: if ArviZ is not installed.
      TypeError: if `samples` are not `Samples`.

    >>> try:
    ...     to_arviz(np.zeros([10, 4, 2]))
    ... except TypeError as error:
    ...     print(error)
    `samples` must be what ebm.mcmc.sample returned, got ndarray.
    """
    if not isinstance(samples, Samples):
        raise TypeError(f"`samples` must be what ebm.mcmc.sample returned, got {type(samples).__name__}.")
    try:
        import arviz
    except ImportError as error:
        raise ImportError('to_arviz needs ArviZ: pip install "tfp_ebm[arviz]".') from error

    rank = np.ndim(samples.is_accepted)

    def by_chain(values: Any) -> np.ndarray:
        """`[draw, *chains, ...]` as `[chain, draw, ...]`."""
        array = np.asarray(values)
        return np.moveaxis(array.reshape(len(array), -1, *array.shape[rank:]), 0, 1)

    groups = {
        "posterior": {"x": by_chain(samples.states)},
        "sample_stats": {"lp": by_chain(samples.unnormalized_log_prob), "accepted": by_chain(samples.is_accepted)},
    }
    with warnings.catch_warnings():
        # it takes more chains than draws for a mix-up of the axes; here they are many by design
        for message in ("More chains .* than draws", "Found chain dimension to be longer than draw dimension"):
            warnings.filterwarnings("ignore", message)
        from_dict: Any = arviz.from_dict
        if "posterior" in inspect.signature(from_dict).parameters:
            return from_dict(**groups)
        return from_dict(groups)  # from release 1 on: all groups in one dictionary
