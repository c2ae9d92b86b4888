"""The report of a fit to a table: healthy models are "ok", planted faults "failed" with their cause; its picture."""

import json
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats

from tfp_ebm.cli import judgement, runs, table_report
from tfp_ebm.cli.table_figure import table_figure
from tfp_ebm.cli.table_report import print_report, report_lines, worst_columns
from tfp_ebm.evaluation.references import fit_references
from tfp_ebm.recipes.density_units import dequantized


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def columns(size, kind="continuous"):
    return [{"name": f"c{i}", "kind": kind, "treatment": "kept"} for i in range(size)]


def healthy(seed):
    """A known distribution as the perfect model of its draws: rows to fit references to, held out, and drawn.

    Returns: train, held out, samples, log density of the held-out rows.
    """
    rng = np.random.default_rng(seed)
    size = 1 + seed % 4
    if seed % 2:  # two Gaussians
        x = rng.normal(size=(500, size)) + 5.0 * rng.integers(0, 2, (500, 1))
        parts = [scipy.stats.norm.logpdf(x, loc).sum(1) for loc in (0.0, 5.0)]
        log_prob = np.logaddexp(*parts) - np.log(2.0)
    else:  # heavy tails
        x = rng.standard_t(4, size=(500, size))
        log_prob = scipy.stats.t.logpdf(x, 4).sum(1)
    if seed == 6:
        x[10, 0] = 1e30
    return x[:200], x[200:400], x[400:], log_prob[200:400]


def report_of(seed, samples=None, log_prob=None, **options):
    train, held_out, exact, true = healthy(seed)
    fitted = fit_references(train)
    return table_report.table_report(
        held_out,
        exact if samples is None else samples,
        columns(held_out.shape[1]),
        true if log_prob is None else log_prob,
        fitted.log_probs(held_out),
        reference_samples=fitted.sample("gaussian_mixture", 100),
        **options,
    )


@pytest.mark.long
def test_twenty_healthy_models_are_ok():
    """Each may fail at a reference only if a fit is better than the true density by 2 standard errors and .02 nat.

    The mean difference is some 2 standard errors in favour of the truth, so that the rate of false alarms is below 1e-3
    for each; the limit of the classifier is 3 standard errors above a mixture's samples, a rate of 1e-3 at most.
    """
    assert {seed: report["failures"] for seed in range(20) if (report := report_of(seed))["status"] != "ok"} == {}


def blurred(seed, amount):
    """A model that is the true one with noise added: its samples, and the log density of the held-out rows."""
    _, held_out, exact, _ = healthy(seed)
    scale = np.sqrt(1.0 + amount**2)
    parts = [scipy.stats.norm.logpdf(held_out, loc, scale).sum(1) for loc in (0.0, 5.0)]
    samples = exact + amount * np.random.default_rng(seed).normal(size=exact.shape)
    return samples, np.logaddexp(*parts) - np.log(2.0)


def test_a_blurred_model_fails():
    """Noise of 1 loses about .1 nat per column, with errors of .02 to .05 per row."""
    for seed in (3, 7):  # 4 columns
        samples, log_prob = blurred(seed, 1.0)
        report = report_of(seed, samples, log_prob)
        assert report["status"] == "failed" and any("less likely" in failure for failure in report["failures"])
    samples, log_prob = blurred(3, 0.0)  # control
    assert report_of(3, samples, log_prob)["status"] == "ok"


def test_the_limits_decide(monkeypatch):
    """A loss of .3 ± 0 nats in 2 columns fails; of .05 it does not, since .06 is tolerated."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=100)
    for loss, status in ((0.3, 1), (0.05, 0)):
        found = table_report.likelihoods(values - loss, {"gaussian": values}, 100, 2)
        assert len(found["failures"]) == status
    noise = rng.normal(size=100)  # .3 below, but the error is .3 to .5
    assert not table_report.likelihoods(values - 0.3 - 5.0 * (noise - noise.mean()), {"a": values}, 100, 2)["failures"]
    monkeypatch.setattr(table_report, "_ERRORS", 0.0)  # control
    assert table_report.likelihoods(values - 0.3 - 5.0 * (noise - noise.mean()), {"a": values}, 100, 2)["failures"]


def test_an_untrained_model_of_unknown_log_z_fails_by_its_samples():
    train, held_out, exact, _ = healthy(1)
    fitted = fit_references(train)
    rng = np.random.default_rng(0)
    samples = exact.mean(0) + 1.8 * exact.std(0) * rng.standard_t(3, size=exact.shape)
    options = {"reference_samples": fitted.sample("gaussian_mixture", 100)}
    report = table_report.table_report(held_out, samples, columns(2), **options)
    assert report["status"] == "failed" and "than those of a Gaussian" in report["failures"][0]
    assert report["held_out"]["log_likelihood"] is None and "unknown" in report_lines(report)[1]
    assert table_report.table_report(held_out, exact, columns(2), **options)["status"] == "ok"  # control


@pytest.mark.parametrize(
    ("sampling", "failure"),
    [({"max_rhat": 1.3}, "R-hat"), ({"max_rhat": np.nan}, "R-hat"), ({"num_nonfinite": 3}, "not finite")],
)
def test_draws_in_trouble_fail(sampling, failure):
    report = report_of(0, sampling=sampling)
    assert report["status"] == "failed" and failure in report["failures"][0]
    assert report_of(0, sampling={"max_rhat": 1.001, "num_nonfinite": 0})["status"] == "ok"


def test_numbers_that_are_not_finite_fail():
    _, held_out, exact, true = healthy(0)
    bad = np.where(np.arange(len(true)) == 3, np.nan, true)
    assert "1 of 200" in report_of(0, log_prob=bad)["failures"][0]
    samples = np.where(np.arange(len(exact))[:, None] == 5, np.inf, exact)
    assert "not finite" in report_of(0, samples=samples)["failures"][0]
    assert report_of(0, samples=np.full_like(exact, np.inf))["two_sample_auc"] is None
    with pytest.raises(ValueError, match="`log_prob`"):
        table_report.table_report(held_out, exact, columns(1), true[:5])


def test_a_row_that_no_density_explains_is_left_out():
    values = np.random.default_rng(0).normal(size=50)
    outlier = np.where(np.arange(50) == 7, -np.inf, values)
    found = table_report.likelihoods(outlier, {"gaussian": np.where(outlier < -9, -1e59, values)}, 50, 1)
    assert found["held_out"]["rows_left_out"] == 1 and not found["failures"]
    assert found["held_out"]["log_likelihood"] == pytest.approx(np.delete(values, 7).mean())
    explained = table_report.likelihoods(outlier, {"gaussian": values}, 50, 1)
    assert explained["held_out"]["rows_left_out"] == 0 and explained["failures"]  # the model's own fault


def mixed(rows, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=rows)
    frame = pd.DataFrame({
        "a name so long that it does not fit": a + shift,
        "income": np.exp(2.0 * rng.normal(size=rows)),
        "children": rng.poisson(2, rows),
        "quality": np.clip(np.round(5 + a), 1, 9),
        "smoker": rng.uniform(size=rows) < 0.3,
        "country": rng.choice(["France", "United Kingdom", *map(str, range(15))], rows).astype(object),
        "constant": 1.0,
    })  # fmt: skip
    frame.loc[rng.uniform(size=rows) < 0.1, ["income", "country"]] = None
    return frame


KINDS = ["continuous", "continuous", "whole", "rating", "boolean", "category", "constant"]


def mixed_report(shift=1.0):
    x, y = mixed(300, 0), mixed(300, 1, shift)
    made = [{"name": name, "kind": kind, "treatment": "kept"} for name, kind in zip(x, KINDS, strict=True)]
    values = np.random.default_rng(0).normal(size=300) - 2.0
    references = {"gaussian": values - 1.0, "gaussian_mixture": values - 0.2, "kernel_density": values - 1e4}
    return x, y, table_report.table_report(x, y, made, values, references)


def test_the_report_has_its_keys_and_is_json(capsys):
    _, _, report = mixed_report(0.4)
    read = json.loads(runs.to_json(report))
    assert read["status"] == "ok" and read["failures"] == []
    assert {"log_likelihood", "standard_error", "rows"} <= set(read["held_out"]) and read["held_out"]["rows"] == 300
    assert set(read["references"]) == {"gaussian", "gaussian_mixture", "kernel_density"}
    assert all({"log_likelihood", "standard_error"} <= set(value) for value in read["references"].values())
    assert 0.5 < read["two_sample_auc"] < 0.9
    assert {"name", "kind", "treatment", "distance"} <= set(read["columns"][0]) and read["columns"][6][
        "distance"
    ] == 0.0
    assert worst_columns(report)[0]["name"] == "a name so long that it does not fit"
    print_report(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines == report_lines(report) and lines[-1].startswith("ok") and max(map(len, lines)) <= 120
    assert lines[2].index("±") - lines[1].index("±") == 0  # aligned
    failed = {**report, "status": "failed", "failures": ["The cause."]}
    assert report_lines(failed)[-2:] == ["FAILED:", "  The cause."]


def titles(figure):
    return [ax.get_title() for ax in figure.axes if ax.get_title()]


@pytest.mark.slow
def test_the_figure_of_a_mixed_table():
    x, y, report = mixed_report()
    losses = np.exp(-np.arange(20) / 5.0)
    history = {"loss": losses.tolist(), "val_loss": (losses + 0.01 * np.arange(20)).tolist()}
    figure = table_figure(x, y, KINDS, report, history)
    figure.draw_without_rendering()
    names = titles(figure)
    assert names[0].startswith("a name so long that it") and len(names[0]) <= 24
    assert "constant" not in names and any("missing" in name for name in names)
    loss = next(ax for ax in figure.axes if ax.get_title("left") == "loss")
    best = int(np.argmin(history["val_loss"])) + 1
    assert f"kept: epoch {best}" in [text.get_text() for text in loss.get_legend().get_texts()]
    likelihood = next(ax for ax in figure.axes if "densities" in ax.get_title("left"))
    assert any("−" in text.get_text() or "-" in text.get_text() for text in likelihood.texts)  # −10⁴ is off the scale
    assert likelihood.get_xlim()[0] > -50.0


@pytest.mark.slow
@pytest.mark.parametrize(("size", "panels"), [(1, 1), (3, 3 + 9), (6, 6 + 8 + 36), (13, 12 + 8), (30, 12 + 8)])
def test_figures_of_numbers_show_the_worst_columns_within_the_range_of_the_data(size, panels):
    x, y = np.random.default_rng(0).normal(size=(2, 200, size))
    y[:, -1] += 3.0
    x[3, 0] = 1e30
    report = table_report.table_report(x, y, [{**c, "name": str(i)} for i, c in enumerate(columns(size))])
    figure = table_figure(x, y, None, report)
    assert len(figure.axes) == panels and titles(figure)[0] == str(size - 1)
    assert all(np.abs(ax.get_xlim()).max() < 10.0 for ax in figure.axes)


def test_figures_draw_without_warnings():
    """Columns of one value, without any value, and samples outside the range of the data."""
    x = np.zeros((60, 3))
    x[:, 1], x[:, 2] = np.nan, np.arange(60)
    y = np.where(np.isnan(x), np.nan, x + 100.0)
    report = table_report.table_report(x, y, [{**c, "name": str(i)} for i, c in enumerate(columns(3))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table_figure(x, y, None, report).draw_without_rendering()


def test_a_few_rows_must_differ_by_more():
    """Differences of -.3 ± .03: rarely chance for the mean of 50 rows, but for that of 2 rows one time in 30."""
    for num_rows, status in ((2, "ok"), (50, "failed")):
        difference = -0.3 + 0.03 * np.linspace(-1, 1, num_rows)
        report = table_report.table_report(
            np.random.default_rng(0).normal(size=(num_rows, 1)),
            np.zeros([0, 1]),
            columns(1),
            difference,
            {"gaussian": np.zeros(num_rows)},
        )
        assert report["status"] == status


def test_references_do_not_depend_on_the_unit_of_a_column_of_values():
    """Values 0 and .01 are as probable as 0 and 1: their density is a hundred times as large, their cells as small.

    The volumes of the cells are the control: without them the two differ by log 100.
    """
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=300), rng.integers(0, 2, 300), rng.choice([1.0, 2.0, 5.0], 300)], -1)
    found = {}
    for unit in (1.0, 0.01):
        scaled, supports = x * [1.0, unit, unit], {1: unit * np.arange(2.0), 2: unit * np.array([1.0, 2.0, 5.0])}
        references = fit_references(dequantized(scaled[:200], supports, 0))
        found[unit] = judgement.reference_log_probs(references, scaled[200:], supports, 1)
        plain = references.log_probs(dequantized(scaled[200:], supports, 1))
        cells = 2 * np.log(unit) + np.log([1.0, 2.0, 3.0])[np.searchsorted([1.0, 2.0, 5.0], x[200:, 2])]
        np.testing.assert_allclose(found[unit]["gaussian"] - plain["gaussian"], cells)
    for name in ("gaussian", "gaussian_mixture"):  # the rows that choose the bandwidth of kernels are other ones
        np.testing.assert_allclose(found[0.01][name], found[1.0][name], rtol=1e-6)
