"""Pictures show the numbers they were given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tfp_ebm import plotting


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def quadratic(x):
    return 0.5 * (np.asarray(x, np.float64) ** 2).sum(-1) + 40.0


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype("float32")


def test_density_curve_is_the_normalised_density():
    """exp(−x²/2)/√(2π) whatever constant the energy carries; an energy twice as steep must miss it."""
    line = plotting.density_curve(quadratic, -8, 8).lines[0]
    x, y = line.get_xdata(), line.get_ydata()
    truth = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(y, truth, atol=1e-6)
    steeper = plotting.density_curve(lambda x: 2 * quadratic(x), -8, 8).lines[0].get_ydata()
    assert np.abs(steeper - truth).max() > 0.1


def test_energy_contours_start_at_the_lowest_energy():
    drawn = []
    ax = plotting.energy_contours(lambda x: drawn.append(np.asarray(x)) or quadratic(x), [-3, -2], [3, 2], num=21)
    assert drawn[0].shape == (441, 2) and drawn[0].min(0).tolist() == [-3, -2] and drawn[0].max(0).tolist() == [3, 2]
    assert [a.get_ylabel() for a in ax.figure.axes][-1] == "E − min E"


def test_histograms_are_densities_even_of_samples_beyond_the_box():
    """Half of the samples lie outside, so their outline encloses half the data's area; `density=True` would hide it."""
    data = normal(1000, 1)
    samples = np.concatenate([data[:500], data[:500] + 100.0])
    (ax,) = plotting.histograms(data, samples)
    area = sum(bar.get_height() * bar.get_width() for bar in ax.containers[0])
    outline = ax.patches[-1].get_xy()  # a closed polygon
    x, y = outline[:, 0], outline[:, 1]
    enclosed = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    assert area == pytest.approx(1.0, abs=0.01) and enclosed == pytest.approx(0.5, abs=0.01)
    assert ax.get_legend() is not None and ax.get_ylabel() == "density"


def test_rank_histograms_show_the_counts_and_the_band_of_uniform_ranks():
    """Bars add up to the simulations; uniform ranks lie in the band, ranks of too narrow posteriors do not."""
    rng = np.random.default_rng(0)
    ranks = np.stack([rng.integers(0, 100, 1000), np.where(rng.random(1000) < 0.5, 0, 99)], 1)
    axes = plotting.rank_histograms(ranks, 99, names=["right", "narrow"])
    assert [ax.get_title() for ax in axes] == ["right", "narrow"]
    for ax, is_right in zip(axes, (True, False), strict=True):
        heights = np.array([bar.get_height() for bar in ax.patches])
        band = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert heights.sum() == 1000 and len(heights) == 20
        assert ((heights >= band.min()) & (heights <= band.max())).all() == is_right
