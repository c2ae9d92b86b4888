"""Plots of data, samples and energies. Every function takes `ax=None` and returns the axes on which it drew.

matplotlib is imported when something is drawn, not with the package. The two colours, blue for data and vermilion for
samples, are distinct in every kind of colour vision (Okabe & Ito 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["density_curve", "energy_contours", "histograms", "image_grid", "rank_histograms", "scatter"]

DATA_COLOR, SAMPLE_COLOR, MODEL_COLOR = "#0072B2", "#D55E00", "#000000"

# Contours reach this far above the lowest energy, where the density is exp(−8) of the highest.
_DEPTH = 8.0
_MAX_POINTS, MAX_PANELS, MAX_IMAGES = 2000, 8, 64


def _axes(ax: Axes | None) -> Axes:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(4, 4), layout="constrained")[1] if ax is None else ax


def finite_rows(x: Any) -> np.ndarray:
    """Returns `x` as float64 without the rows that hold a NaN or an infinity."""
    x = np.asarray(x, np.float64)
    return x[np.isfinite(x).all(axis=tuple(range(1, x.ndim)))]


def bounding_box(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns two corners of a box around nearly all rows `[n, d]`, so that a few far rows do not dominate the plot."""
    low, high = np.quantile(x, [0.002, 0.998], axis=0)
    margin = np.where(high > low, 0.15 * (high - low), 1.0)
    return low - margin, high + margin


def scatter(x: Any, ax: Axes | None = None, title: str = "", color: str = DATA_COLOR) -> Axes:
    """Draws points `[n, 2]`, at most 2000 of them, with equal aspect.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> scatter(np.zeros([10, 2]), title="data").get_title()
    'data'
    """
    ax = _axes(ax)
    x = finite_rows(x)[:_MAX_POINTS]
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
      ax: the axes; None creates a figure.
      title: the title of the axes.
      num: number of grid points along each side.
      colorbar: whether to draw a colour bar of energies.

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
        ax.figure.colorbar(filled, ax=ax, label="E − min E", ticks=np.arange(0.0, _DEPTH + 1, 2))
    return ax


def histograms(
    data: Any, samples: Any, names: Sequence[str] | None = None, axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Draws each coordinate's histogram, of data and of samples, for at most eight coordinates of `[n, d]`.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> len(histograms(np.random.default_rng(0).normal(size=[99, 3]), np.zeros([99, 3])))
    3
    """
    data, samples = finite_rows(data), finite_rows(samples)
    count = min(data.shape[1], MAX_PANELS)
    axes = _panels(count) if axes is None else axes
    low, high = bounding_box(data)
    for i, ax in enumerate(axes[:count]):
        bins = np.linspace(low[i], high[i], 41)
        _histogram(ax, data[:, i], bins, color=DATA_COLOR, alpha=0.4, label="data")
        _histogram(ax, samples[:, i], bins, color=SAMPLE_COLOR, histtype="step", linewidth=1.5, label="samples")
        ax.set(title=names[i] if names else f"$x_{{{i + 1}}}$", yticks=[], xlim=(low[i], high[i]))
        ax.locator_params(axis="x", nbins=4)
        if i % 4 == 0:
            ax.set_ylabel("density")
    axes[0].legend(frameon=False, fontsize="small")
    return list(axes[:count])


def _panels(count: int) -> list[Axes]:
    """Returns the axes of a new figure with that many panels."""
    import matplotlib.pyplot as plt

    columns = min(count, 4)
    rows = -(-count // columns)
    size = (5.0, 3.4) if count == 1 else (2.8 * columns, 2.4 * rows)
    axes = list(plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)[1].flat)
    for ax in axes[count:]:
        ax.remove()
    return axes[:count]


def _histogram(ax: Axes, x: np.ndarray, bins: np.ndarray, **style: Any) -> None:
    # explicit weights: `density=True` would ignore points outside the bins, and give NaN if all are outside
    ax.hist(x, bins.tolist(), weights=np.full(len(x), 1.0 / (max(len(x), 1) * (bins[1] - bins[0]))), **style)


def rank_histograms(
    ranks: Any,
    num_draws: int,
    names: Sequence[str] | None = None,
    axes: Sequence[Axes] | None = None,
    num_bins: int = 20,
) -> list[Axes]:
    """Draws the ranks of simulation-based calibration, for at most eight parameters, with the band of uniform ranks.

    A bar leaves the grey band, from the .5 % to the 99.5 % point of its binomial distribution, in one of a hundred
    cases if the posteriors are right.

    Args:
      ranks: from 0 to `num_draws`, `[simulations, parameters]`, of `evaluation.simulation_based_calibration`.
      num_draws: draws among which the ranks were taken.
      names: of the parameters.
      axes: one for each parameter; None creates a figure.
      num_bins: number of bars, at most `num_draws + 1`.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> len(rank_histograms(np.random.default_rng(0).integers(0, 100, (500, 2)), 99))
    2
    """
    import scipy.stats

    ranks = np.asarray(ranks)
    axes = _panels(min(ranks.shape[1], MAX_PANELS)) if axes is None else list(axes)
    num_bins = min(num_bins, num_draws + 1)
    edges = np.linspace(0, num_draws + 1, num_bins + 1).round()
    share = np.diff(edges) / (num_draws + 1)
    low, high = (scipy.stats.binom.ppf(level, len(ranks), share) for level in (0.005, 0.995))
    for i, ax in enumerate(axes[: ranks.shape[1]]):
        ax.fill_between(edges, np.r_[low, low[-1]], np.r_[high, high[-1]], step="post", color="0.85", linewidth=0)
        ax.hist(ranks[:, i] + 0.5, edges.tolist(), color=DATA_COLOR, alpha=0.7)
        ax.set(title=names[i] if names else rf"$\theta_{{{i + 1}}}$", xlim=(0, num_draws + 1), xlabel="rank")
        if i % 4 == 0:
            ax.set_ylabel("simulations")
    return axes[: ranks.shape[1]]


def density_curve(
    energy_fn: Callable[[Any], Any], low: float, high: float, ax: Axes | None = None, num: int = 1000
) -> Axes:
    """Draws exp(−E(x))/Z from `low` to `high`; Z = ∫ exp(−E(x)) dx over that interval, by the trapezoid rule (eq. 2).

    Args:
      energy_fn: callable `[n, 1] -> [n]`.
      low, high: the ends of the interval.
      ax: the axes; None creates a figure.
      num: number of grid points.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> ax = density_curve(lambda x: 0.5 * np.asarray(x)[:, 0] ** 2, -6, 6)
    >>> round(float(ax.lines[0].get_ydata().max()), 3)  # 1/√(2π)
    0.399
    """
    ax = _axes(ax)
    grid = np.linspace(low, high, num, dtype=np.float32)
    energies = np.asarray(energy_fn(grid[:, None]), np.float64)
    density = np.exp(energies.min() - energies)
    density /= np.sum(0.5 * (density[1:] + density[:-1])) * (high - low) / (num - 1)
    ax.plot(grid, density, color=MODEL_COLOR, linewidth=1.2, label="model")
    return ax


def image_grid(images: Any, ax: Axes | None = None, title: str = "", columns: int = 8) -> Axes:
    """Draws images `[n, height, width(, 1 or 3)]`, at most 64 of them, as a grid on one scale.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> ax = image_grid(np.random.default_rng(0).uniform(size=[10, 8, 8]), title="samples")
    """
    ax = _axes(ax)
    images = finite_rows(images)[:MAX_IMAGES]
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
