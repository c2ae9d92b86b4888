"""The picture of a run: data, samples and energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm.plotting import (
    MAX_IMAGES,
    MAX_PANELS,
    SAMPLE_COLOR,
    bounding_box,
    density_curve,
    energy_contours,
    finite_rows,
    histograms,
    image_grid,
    scatter,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Width and greatest height of a panel of the plane, inches.
_PANEL_WIDTH, _PANEL_HEIGHT = 3.4, 3.8


def run_figure(
    energy_fn: Callable[[Any], Any],
    data: Any,
    samples: Any,
    names: Sequence[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
) -> Figure:
    """Plots the result of a fit: data beside samples, and the energy where it can be seen.

    One coordinate: histograms and the model's density. Two: as many points of data as of samples, and energy contours.
    Images: two grids. Otherwise: a histogram for each of the first eight coordinates.

    Args:
      energy_fn: callable `[n, *event] -> [n]`.
      data: `[n, *event]`.
      samples: `[n, *event]`; rows that are not finite are left out.
      names: one for each coordinate; default: x₁, x₂, ….
      image_shape: draws each row as an image of this shape.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> x = np.random.default_rng(0).normal(size=[50, 2])
    >>> len(run_figure(lambda x: 0.5 * (np.asarray(x) ** 2).sum(-1), x, x).axes)  # three panels and a colour bar
    4
    """
    import matplotlib.pyplot as plt

    data, samples = finite_rows(data), finite_rows(samples)
    if image_shape is not None:
        height = 4.0 * image_shape[0] / image_shape[1] + 0.3
        figure, axes = plt.subplots(1, 2, figsize=(8, min(height, 8.0)), layout="constrained")
        image_grid(data[:MAX_IMAGES].reshape(-1, *image_shape), axes[0], "data")
        image_grid(samples[:MAX_IMAGES].reshape(-1, *image_shape), axes[1], "samples")
        return figure
    size = int(np.prod(data.shape[1:]))
    data, samples = data.reshape(-1, size), samples.reshape(-1, size)
    low, high = bounding_box(data)
    if size == 2:
        return _plane_figure(energy_fn, data, samples, low, high, names)
    axes = histograms(data, samples, names)
    whole: Any = axes[0].figure  # to matplotlib's types it could be part of a figure
    if size == 1:
        density_curve(energy_fn, float(low[0]), float(high[0]), axes[0])
        axes[0].legend(frameon=False, fontsize="small")
    if size > MAX_PANELS:
        whole.suptitle(f"the first {MAX_PANELS} of {size} coordinates")
    return whole


def _plane_figure(
    energy_fn: Callable[[Any], Any],
    data: np.ndarray,
    samples: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    names: Sequence[str] | None,
) -> Figure:
    """Data, samples and energy in three panels of one box, whose shape the figure takes."""
    import matplotlib.pyplot as plt

    width, height = high - low
    # Columns in very different units would otherwise be drawn as a line.
    equal = 0.2 < height / width < 5
    ratio = height / width if equal else 1.0
    panel = min(_PANEL_WIDTH, _PANEL_HEIGHT / ratio)
    size = (3 * panel + 1.8, panel * ratio + 0.9)
    figure, axes = plt.subplots(1, 3, figsize=size, layout="constrained", sharex=True, sharey=True)
    count = max(1, min(len(data), len(samples)))
    scatter(data[:count], axes[0], "data")
    scatter(samples[:count], axes[1], "samples", SAMPLE_COLOR)
    energy_contours(energy_fn, low.tolist(), high.tolist(), axes[2], "energy")
    for ax in axes:
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal" if equal else "auto")
        if names:
            ax.set(xlabel=names[0], ylabel=names[1])
        ax.locator_params(nbins=5)
        ax.label_outer()
    return figure
