"""The picture of a run shows the numbers it was given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tfp_ebm.cli.run_figure import run_figure


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def quadratic(x):
    return 0.5 * (np.asarray(x, np.float64) ** 2).sum(-1) + 40.0


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype("float32")


def test_run_figure_of_the_plane_shows_as_many_points_of_each():
    x = normal(3000, 2)
    figure = run_figure(quadratic, x, x[:700])
    counts = [len(ax.collections[0].get_offsets()) for ax in figure.axes[:2]]
    assert counts == [700, 700]
    assert [ax.get_title() for ax in figure.axes[:3]] == ["data", "samples", "energy"]
    assert figure.axes[0].get_xlabel() == "$x_1$" and figure.axes[0].get_ylabel() == "$x_2$"


@pytest.mark.parametrize("stretch", [1.0, 0.3, 3.0])
def test_panels_of_equal_aspect_fill_the_figure(stretch):
    """Drawn panels take at least 85 % of the figure's height between the labels; a figure of fixed height would not."""
    x = normal(2000, 2) * [1.0, stretch]
    figure = run_figure(quadratic, x, x)
    figure.draw_without_rendering()
    drawn = figure.axes[0].get_window_extent().height / figure.dpi
    assert figure.axes[0].get_aspect() == 1.0
    assert drawn > 0.85 * (figure.get_size_inches()[1] - 0.9)


def test_columns_in_very_different_units_are_not_drawn_to_one_scale():
    x = normal(500, 2) * [1e-3, 1e3]
    figure = run_figure(quadratic, x, x, names=("mass", "count"))
    assert figure.axes[0].get_aspect() == "auto"
    assert figure.axes[0].get_xlabel() == "mass" and figure.axes[0].get_ylabel() == "count"


def test_one_column_shows_the_models_density():
    figure = run_figure(quadratic, normal(500, 1), normal(500, 1, seed=1))
    assert sorted(text.get_text() for text in figure.axes[0].get_legend().get_texts()) == ["data", "model", "samples"]


def test_many_columns_say_how_many_are_not_shown():
    assert run_figure(quadratic, normal(50, 8), normal(50, 8)).get_suptitle() == ""
    figure = run_figure(quadratic, normal(50, 20), normal(50, 20))
    assert len(figure.axes) == 8 and figure.get_suptitle() == "the first 8 of 20 coordinates"


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
def test_images(shape):
    x = normal(10, int(np.prod(shape)))
    figure = run_figure(quadratic, x, x.reshape(-1, *shape), image_shape=shape)
    picture = figure.axes[1].images[0].get_array()
    assert picture.shape[:2] == (2 * 5 - 1, 8 * 7 - 1)
    first = x[0].reshape(shape)[..., 0] if shape[-1] == 1 else x[0].reshape(shape)
    low, high = np.quantile(x, [0.005, 0.995])
    np.testing.assert_allclose(picture[:4, :6], (np.clip(first, low, high) - low) / (high - low), atol=1e-6)


def test_rows_that_are_not_finite_are_left_out():
    x, bad = normal(100, 2), normal(100, 2)
    bad[:60] = np.nan
    bad[60, 1] = np.inf
    figure = run_figure(quadratic, x, bad)
    assert len(figure.axes[1].collections[0].get_offsets()) == 39
    run_figure(quadratic, x, np.full_like(x, np.nan))
    run_figure(quadratic, normal(100, 5), np.full([100, 5], np.nan))


def test_a_constant_coordinate_is_drawn():
    x = normal(100, 3)
    x[:, 1] = 5.0
    low, high = run_figure(quadratic, x, x).axes[1].get_xlim()
    assert low < 5.0 < high
