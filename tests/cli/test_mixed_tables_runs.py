"""Tables with columns of several kinds and missing cells through `fit`, `sample`, `evaluate` and `sample --given`."""

import json

import numpy as np
import pandas as pd
import pytest

from tfp_ebm.cli import main
from tfp_ebm.recipes import density_candidates

pytestmark = pytest.mark.slow  # each test needs one of three runs
COLOURS, MEANS = np.array(["red", "green", "blue"]), np.array([-20.0, 0.0, 30.0])


def table(rows, seed, missing=0.0):
    """A float around a mean for each colour, a count and a boolean that follow it, a constant, a copy."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(3, size=rows)
    temperature = (MEANS[colour] + 5.0 * rng.normal(size=rows)).round(3)
    frame = pd.DataFrame(
        {
            "temperature": temperature,
            "count": np.round(np.exp(4.0 + temperature / 20.0 + 0.2 * rng.normal(size=rows))).astype(int),
            "stars": np.clip(np.round(3.0 + temperature / 15.0 + 0.6 * rng.normal(size=rows)), 1, 5).astype(int),
            "wet": rng.random(rows) < 1.0 / (1.0 + np.exp(-temperature / 10.0)),
            "colour": COLOURS[colour],
            "unit": "C",
            "again": temperature,
        }
    )
    for name in ("temperature", "count", "stars", "wet", "colour", "again"):
        frame[name] = frame[name].astype(object).where(rng.random(rows) >= missing, None)
    return frame if missing else frame.infer_objects()


@pytest.fixture(scope="module", autouse=True)
def one_network():
    """One autoregressive energy, since each takes seconds to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(density_candidates, "_MIN_NETWORKS", 1)
        yield


@pytest.fixture(scope="module", params=[0.0, pytest.param(0.1, marks=pytest.mark.long)], ids=["complete", "missing"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    table(1500, 0, request.param).to_csv(folder / "x.csv", index=False)
    options = ["--missing", "model"] if request.param else []
    arguments = ["fit", str(folder / "x.csv"), "--out", str(folder / "run"), *options]
    assert main([*arguments, "--quiet", "-n", "1500"]) == 0
    return folder / "run"


def test_the_report_names_kinds_and_compares(run):
    report = json.loads((run / "report.json").read_text())
    kinds = {column["name"]: column["kind"] for column in report["columns"]}
    assert kinds == {
        **{"temperature": "continuous", "count": "whole", "stars": "rating", "wet": "boolean"},
        **{"colour": "category", "unit": "constant", "again": "duplicate"},
    }
    assert report["status"] == "ok" and report["failures"] == []
    model = report["held_out"]
    assert model["rows"] == 150 and model["standard_error"] > 0 and model["log_normalizer"] == 0.0
    assert set(report["references"]) == {"gaussian", "gaussian_mixture", "kernel_density"}
    for reference in report["references"].values():
        assert reference["log_likelihood"] < model["log_likelihood"]
    assert abs(report["two_sample_auc"] - 0.5) < 0.15
    assert all(column["treatment"] and 0.0 <= column["distance"] < 0.2 for column in report["columns"])
    assert (run / "figure.png").stat().st_size < 600_000


def test_samples_have_the_kinds_and_the_dependence(run, tmp_path):
    """Shares of the colours within three standard errors, means by colour within .1 deviation, both of the training.

    Planted: colours in another order than their rows.
    """
    data = table(1500, 0)
    assert main(["sample", str(run), "--num", "1500", "--out", str(tmp_path / "s.csv"), "--quiet"]) == 0
    samples = pd.read_csv(tmp_path / "s.csv")
    assert list(samples.columns) == list(data.columns)
    assert (samples.dtypes.drop(["colour", "unit"]) == data.dtypes.drop(["colour", "unit"])).all()
    assert set(samples["colour"]) == set(COLOURS) and set(samples["stars"]) <= set(range(1, 6))
    assert (samples["again"] == samples["temperature"]).all() and (samples["unit"] == "C").all()
    shares = samples["colour"].value_counts() / 1500 - data["colour"].value_counts() / 1500
    assert shares.abs().max() < 3.0 * np.sqrt(2.0 / 9.0 * 2.0 / 1500.0)

    def gap(frame):
        means = frame.groupby("colour")["temperature"].mean() - data.groupby("colour")["temperature"].mean()
        return means.abs().max() / data["temperature"].std()

    assert gap(samples) < 0.1
    assert gap(samples.assign(colour=samples["colour"].sample(frac=1.0, random_state=0).to_numpy())) > 0.5
    assert pd.read_csv(run / "samples.csv").shape == (1500, 7)


def test_evaluate_writes_the_rows_with_their_log_densities(run, tmp_path, capsys):
    new = table(300, 1)
    new[new.columns[::-1]].to_csv(tmp_path / "new.csv", index=False)
    assert main(["evaluate", str(run), str(tmp_path / "new.csv"), "--out", str(tmp_path / "e.csv"), "--quiet"]) == 0
    result, written = json.loads(capsys.readouterr().out), pd.read_csv(tmp_path / "e.csv")
    assert written["log_prob"].mean() == pytest.approx(result["log_likelihood"], rel=1e-4)
    assert list(written["colour"]) == list(new["colour"])
    assert result["log_likelihood"] > result["references"]["gaussian_mixture"]["log_likelihood"]
    new.assign(colour="mauve").to_csv(tmp_path / "other.csv", index=False)
    assert main(["evaluate", str(run), str(tmp_path / "other.csv")]) == 2
    assert "mauve" in capsys.readouterr().err


def test_empty_cells_are_filled_given_all_others(run, tmp_path):
    """Colours are right for 98 % of the rows by Bayes' rule, given the temperature. Given cells stay as they are."""
    new = table(300, 2).assign(colour=None, again=None)
    new.loc[:99, "temperature"] = np.nan  # for these the count shows it
    new.to_csv(tmp_path / "holes.csv", index=False)
    arguments = ["sample", str(run), "--given", str(tmp_path / "holes.csv"), "--num", "2", "--quiet"]
    assert main([*arguments, "--out", str(tmp_path / "filled.csv")]) == 0
    filled, truth = pd.read_csv(tmp_path / "filled.csv"), table(300, 2)
    assert len(filled) == 600 and list(filled.columns) == list(truth.columns) and not filled.isna().any().any()
    twice = truth.loc[truth.index.repeat(2)].reset_index(drop=True)
    assert (filled["count"] == twice["count"]).all() and (filled["stars"] == twice["stars"]).all()
    assert (filled["colour"] == twice["colour"])[200:].mean() > 0.95
    known = filled["temperature"][200:]
    np.testing.assert_allclose(known, twice["temperature"][200:], rtol=1e-6)
    guess = filled["temperature"][:200] - twice["temperature"][:200]
    assert guess.std() < 0.5 * twice["temperature"].std()


def test_missing_cells_are_refused_or_dropped_by_name(tmp_path, capsys):
    table(200, 0, 0.05).to_csv(tmp_path / "x.csv", index=False)
    arguments = ["fit", str(tmp_path / "x.csv"), "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "missing" in error and "--missing" in error and "'temperature'" in error
    assert main([*arguments, "--kind", "nothing=category"]) == 2
    assert "nothing" in capsys.readouterr().err
    assert main([*arguments, "--loss", "dsm", "--missing", "model"]) == 2
    assert "`--missing`" in capsys.readouterr().err


@pytest.mark.long
def test_a_planted_bad_fit_fails(tmp_path, capsys):
    """One step of training on two clusters, and chains too short to cross; the files are written all the same."""
    rng = np.random.default_rng(0)
    x = pd.DataFrame(rng.normal(size=(600, 3)) + 8.0 * rng.integers(2, size=(600, 1)), columns=["a", "b", "c"])
    x.to_csv(tmp_path / "x.csv", index=False)
    small = [
        "--loss",
        "denoising_score_matching",
        "--steps",
        "1",
        "--units",
        "8",
        "-n",
        "200",
        "--burnin",
        "20",
        "--quiet",
    ]
    assert main(["fit", str(tmp_path / "x.csv"), "--out", str(tmp_path / "run"), "--quiet", *small]) == 3
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["status"] == "failed" and report["failures"] and "FAILED" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.keras").exists() and (tmp_path / "run" / "figure.png").exists()
