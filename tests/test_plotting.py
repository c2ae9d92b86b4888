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


def test_run_figure_of_the_plane_shows_as_many_points_of_each():
    x = normal(3000, 2)
    figure = plotting.run_figure(quadratic, x, x[:700])
    counts = [len(ax.collections[0].get_offsets()) for ax in figure.axes[:2]]
    assert counts == [700, 700]
    assert [ax.get_title() for ax in figure.axes[:3]] == ["data", "samples", "energy"]
    assert figure.axes[0].get_xlabel() == "$x_1$" and figure.axes[0].get_ylabel() == "$x_2$"


@pytest.mark.parametrize("stretch", [1.0, 0.3, 3.0])
def test_panels_of_equal_aspect_fill_the_figure(stretch):
    """Drawn panels take at least 85 % of the figure's height between the labels; a figure of fixed height would not."""
    x = normal(2000, 2) * [1.0, stretch]
    figure = plotting.run_figure(quadratic, x, x)
    figure.draw_without_rendering()
    drawn = figure.axes[0].get_window_extent().height / figure.dpi
    assert figure.axes[0].get_aspect() == 1.0
    assert drawn > 0.85 * (figure.get_size_inches()[1] - 0.9)


def test_columns_in_very_different_units_are_not_drawn_to_one_scale():
    x = normal(500, 2) * [1e-3, 1e3]
    figure = plotting.run_figure(quadratic, x, x, names=("mass", "count"))
    assert figure.axes[0].get_aspect() == "auto"
    assert figure.axes[0].get_xlabel() == "mass" and figure.axes[0].get_ylabel() == "count"


def test_one_column_shows_the_models_density():
    figure = plotting.run_figure(quadratic, normal(500, 1), normal(500, 1, seed=1))
    assert sorted(text.get_text() for text in figure.axes[0].get_legend().get_texts()) == ["data", "model", "samples"]


def test_many_columns_say_how_many_are_not_shown():
    assert plotting.run_figure(quadratic, normal(50, 8), normal(50, 8)).get_suptitle() == ""
    figure = plotting.run_figure(quadratic, normal(50, 20), normal(50, 20))
    assert len(figure.axes) == 8 and figure.get_suptitle() == "the first 8 of 20 coordinates"


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
def test_images(shape):
    x = normal(10, int(np.prod(shape)))
    figure = plotting.run_figure(quadratic, x, x.reshape(-1, *shape), image_shape=shape)
    picture = figure.axes[1].images[0].get_array()
    assert picture.shape[:2] == (2 * 5 - 1, 8 * 7 - 1)
    first = x[0].reshape(shape)[..., 0] if shape[-1] == 1 else x[0].reshape(shape)
    low, high = np.quantile(x, [0.005, 0.995])
    np.testing.assert_allclose(picture[:4, :6], (np.clip(first, low, high) - low) / (high - low), atol=1e-6)


def test_rows_that_are_not_finite_are_left_out():
    x, bad = normal(100, 2), normal(100, 2)
    bad[:60] = np.nan
    bad[60, 1] = np.inf
    figure = plotting.run_figure(quadratic, x, bad)
    assert len(figure.axes[1].collections[0].get_offsets()) == 39
    plotting.run_figure(quadratic, x, np.full_like(x, np.nan))
    plotting.run_figure(quadratic, normal(100, 5), np.full([100, 5], np.nan))


def test_a_constant_coordinate_is_drawn():
    x = normal(100, 3)
    x[:, 1] = 5.0
    low, high = plotting.run_figure(quadratic, x, x).axes[1].get_xlim()
    assert low < 5.0 < high
