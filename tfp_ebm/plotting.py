"""Pictures of data, samples and energies. Every function takes `ax=None` and returns what it drew on.

matplotlib is imported when something is drawn, not with the package. The two colours, blue for data and vermilion for
samples, keep apart in every kind of colour vision (Okabe & Ito 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["energy_contours", "histograms", "image_grid", "run_figure", "scatter"]

DATA_COLOR, SAMPLE_COLOR = "#0072B2", "#D55E00"

# Contours reach this far above the lowest energy: exp(−8) of the highest density is as good as nothing to the eye.
_DEPTH = 8.0
_MAX_POINTS, _MAX_PANELS, _MAX_IMAGES = 2000, 8, 64


def _axes(ax: Axes | None) -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(4, 4), layout="constrained")[1] if ax is None else ax


def scatter(x: Any, ax: Axes | None = None, title: str = "", color: str = DATA_COLOR) -> Axes:
    """Draws points `[n, 2]`, at most 2000 of them, with equal aspect.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> scatter(np.zeros([10, 2]), title="data").get_title()
    'data'
    """
    ax = _axes(ax)
    x = np.asarray(x)[:_MAX_POINTS]
    ax.scatter(x[:, 0], x[:, 1], s=4, color=color, alpha=0.5, linewidths=0)
    ax.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    return ax


def energy_contours(
    energy_fn: Callable[[Any], Any],
    low: Sequence[float],
    high: Sequence[float],
    ax: Axes | None = None,
    title: str = "",
    num: int = 200,
    colorbar: bool = True,
) -> Axes:
    """Draws filled contours of an energy over the box [low, high] of the plane, from its lowest value up by 8.

    Args:
      energy_fn: callable `[n, 2] -> [n]`.
      low, high: two corners of the box.
      ax: where to draw; None makes a figure.
      title: of the axes.
      num: grid points along each side.
      colorbar: whether to draw a scale of energies beside it.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> ax = energy_contours(lambda x: 0.5 * (np.asarray(x) ** 2).sum(-1), [-3, -3], [3, 3], num=20)
    """
    ax = _axes(ax)
    axes = [np.linspace(a, b, num, dtype=np.float32) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes), -1)
    energies = np.asarray(energy_fn(grid.reshape(-1, 2))).reshape(num, num)
    energies = np.clip(energies - energies.min(), 0.0, _DEPTH)
    filled = ax.contourf(*axes, energies, levels=np.linspace(0.0, _DEPTH, 17), cmap="viridis_r")
    ax.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    if colorbar:
        ax.figure.colorbar(filled, ax=ax, label="E − min E", shrink=0.85, ticks=np.arange(0.0, _DEPTH + 1, 2))
    return ax


def histograms(
    data: Any, samples: Any, names: Sequence[str] | None = None, axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draws each coordinate's histogram, of data and of samples, for at most eight coordinates of `[n, d]`.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> len(histograms(np.random.default_rng(0).normal(size=[99, 3]), np.zeros([99, 3])))
    3
    """
    import matplotlib.pyplot as plt

    data, samples = np.asarray(data), np.asarray(samples)
    count = min(data.shape[1], _MAX_PANELS)
    if axes is None:
        columns = min(count, 4)
        rows = -(-count // columns)
        grid = plt.subplots(rows, columns, figsize=(3 * columns, 2.4 * rows), layout="constrained", squeeze=False)[1]
        axes = list(grid.flat)
        for ax in axes[count:]:
            ax.remove()
    for i, ax in enumerate(axes[:count]):
        low, high = np.quantile(data[:, i], [0.002, 0.998])
        margin = 0.15 * (high - low) or 1.0
        bins = np.linspace(low - margin, high + margin, 41)
        ax.hist(data[:, i], bins, density=True, color=DATA_COLOR, alpha=0.4, label="data")
        ax.hist(samples[:, i], bins, density=True, color=SAMPLE_COLOR, histtype="step", linewidth=1.5, label="samples")
        ax.set(title=names[i] if names else f"$x_{{{i + 1}}}$", yticks=[])
    axes[0].legend(frameon=False, fontsize="small")
    return list(axes[:count])


def image_grid(images: Any, ax: Axes | None = None, title: str = "", columns: int = 8) -> Axes:
    """Draws images `[n, height, width(, 1 or 3)]`, at most 64 of them, as a grid on one scale.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> ax = image_grid(np.random.default_rng(0).uniform(size=[10, 8, 8]), title="samples")
    """
    ax = _axes(ax)
    images = np.asarray(images)[:_MAX_IMAGES]
    images = images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images
    low, high = np.quantile(images, [0.005, 0.995])
    count, height, width = images.shape[:3]
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *images.shape[3:]), np.nan)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = (np.clip(image, low, high) - low) / ((high - low) or 1.0)
    ax.imshow(canvas, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    ax.set(title=title, xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax


def run_figure(
    energy_fn: Callable[[Any], Any],
    data: Any,
    samples: Any,
    names: Sequence[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
) -> Figure:
    """Draws what a fit came to: data beside samples, and the energy where it can be seen.

    Two coordinates: points and energy contours. Images: two grids. Otherwise: a histogram per coordinate.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> x = np.random.default_rng(0).normal(size=[50, 2])
    >>> len(run_figure(lambda x: 0.5 * (np.asarray(x) ** 2).sum(-1), x, x).axes)  # three panels and a colour bar
    4
    """
    import matplotlib.pyplot as plt

    data, samples = np.asarray(data), np.asarray(samples)
    if image_shape is not None:
        figure, axes = plt.subplots(1, 2, figsize=(8, 4.2), layout="constrained")
        image_grid(data[:_MAX_IMAGES].reshape(-1, *image_shape), axes[0], "data")
        image_grid(samples[:_MAX_IMAGES].reshape(-1, *image_shape), axes[1], "samples")
        return figure
    data, samples = data.reshape(len(data), -1), samples.reshape(len(samples), -1)
    if data.shape[1] != 2:
        return histograms(data, samples, names)[0].figure
    low, high = data.min(0), data.max(0)
    low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained", sharex=True, sharey=True)
    scatter(data, axes[0], "data")
    scatter(samples, axes[1], "samples", SAMPLE_COLOR)
    energy_contours(energy_fn, low, high, axes[2], "energy")
    # Columns in very different units would otherwise be drawn as a line.
    sides = high - low
    for ax in axes:
        ax.set(
            xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal" if 0.2 < sides[0] / sides[1] < 5 else "auto"
        )
        ax.label_outer()
    if names:
        axes[0].set_ylabel(names[1])
        for ax in axes:
            ax.set_xlabel(names[0])
    return figure
