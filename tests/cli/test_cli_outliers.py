"""`outliers`: p-values of the rows of a file, for runs of tables and of arrays."""

import json

import numpy as np
import pandas as pd
import pytest

import tfp_ebm as ebm
from tfp_ebm.cli import main

pytestmark = pytest.mark.slow  # each test needs a fitted table


def table(rows, seed):
    rng = np.random.default_rng(seed)
    size = rng.normal(size=rows).round(4)
    count = np.round(500 + 100 * size + 20 * rng.normal(size=rows)).astype(int)
    return pd.DataFrame({"size": size, "count": count, "unit": "m"})


def as_run(model, folder):
    """The files of a run, of which the command reads two."""
    folder.mkdir()
    model.save(folder / "model.keras")
    (folder / "report.json").write_text("{}")
    for name in ("saved_model", "samples.npy", "figure.png"):
        (folder / name).touch()
    return folder


@pytest.fixture(scope="module")
def model():
    return ebm.fit_density(table(90, 0), minutes=0.01, verbose=0)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    return as_run(model, tmp_path_factory.mktemp("outliers") / "run")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file to test whose rows 3 and 5 are outliers, and calibration rows."""
    folder = tmp_path_factory.mktemp("files")
    tested = table(20, 1)
    tested.loc[3, "size"], tested.loc[5, "unit"] = 30.0, "km"
    tested[["unit", "count", "size"]].to_csv(folder / "new.csv", index=False)
    table(199, 2).to_csv(folder / "kept.csv", index=False)
    return str(folder / "new.csv"), str(folder / "kept.csv")


def test_p_values_of_a_table(run, files, model, tmp_path, capsys):
    """Columns are found by name, and the p-values are those of the function, with the noise of the command's seeds."""
    out = tmp_path / "p.csv"
    arguments = ["outliers", str(run), files[0], "--calibration", files[1], "--out", str(out)]
    assert main(arguments) == 0
    printed, written = json.loads(capsys.readouterr().out), pd.read_csv(out)
    assert list(written.columns) == ["unit", "count", "size", "p_value", "statistic"]
    assert written["unit"][5] == "km" and written["statistic"][5] == -np.inf
    assert (written["p_value"][[3, 5]] == 1 / 200).all()
    assert printed == {
        **{"rows": 20, "calibration_rows": 199, "rate": 0.01, "threshold": printed["threshold"]},
        "outliers": int((written["p_value"] <= 0.01).sum()),
    }
    assert ((written["p_value"] <= 0.01) == (written["statistic"] < printed["threshold"])).all()
    expected = ebm.outliers.p_values(model, pd.read_csv(files[1]), pd.read_csv(files[0]))
    np.testing.assert_allclose(written["p_value"], expected, atol=0.1)  # of other noise
    assert main(arguments) == 2 and "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--rate", ".5"]) == 0
    assert json.loads(capsys.readouterr().out)["outliers"] > printed["outliers"]


def test_an_array_and_a_toy(tmp_path, capsys):
    """Runs without an encoder; two draws of a toy differ, so that its p-values are not all equal to ranks."""
    loaded = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0))
    loaded.adapt(ebm.datasets.load("two_moons", n=100, seed=0))
    loaded.columns = ("x1", "x2")
    loaded.compile(loss=ebm.losses.DenoisingScoreMatching(0.3))
    loaded.optimizer.build(loaded.trainable_variables)
    run = as_run(loaded, tmp_path / "run")
    out = tmp_path / "p.npy"
    assert (
        main(["outliers", str(run), "two_moons", "--calibration", "two_moons", "--rows", "300", "--out", str(out)]) == 0
    )
    assert json.loads(capsys.readouterr().out)["calibration_rows"] == 300
    p = np.load(out)
    assert p.shape == (300,) and not np.allclose(np.sort(p), np.arange(2, 302) / 301)
    np.save(tmp_path / "x.npy", np.float32([[0.0, 0.0], [1e3, 1e3]]))
    arguments = ["outliers", str(run), str(tmp_path / "x.npy"), "--calibration", "two_moons", "--out"]
    assert main([*arguments, str(tmp_path / "p.csv")]) == 0
    assert list(pd.read_csv(tmp_path / "p.csv").columns) == ["x1", "x2", "p_value", "statistic"]


@pytest.mark.parametrize(
    "change, words",
    [
        (["--rate", "0"], ["`--rate`"]),
        (["--rate", "0.001"], ["`--calibration` must have at least 999 rows", "199"]),
        (["--calibration", "no.csv"], ["no.csv"]),
        (["--out", "p.txt"], ["`--out`"]),
    ],
)
def test_errors(change, words, run, files, capsys):
    assert main(["outliers", str(run), files[0], "--calibration", files[1], *change]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert all(word in captured.err for word in words), captured.err


def test_errors_name_the_file(run, files, tmp_path, capsys):
    table(50, 3).drop(columns="size").to_csv(tmp_path / "narrow.csv", index=False)
    for arguments in (
        [files[0], "--calibration", str(tmp_path / "narrow.csv")],
        [str(tmp_path / "narrow.csv"), "--calibration", files[1]],
    ):
        assert main(["outliers", str(run), *arguments]) == 2
        error = capsys.readouterr().err
        assert "narrow.csv" in error and "'size'" in error and len(error.splitlines()) == 1
    assert main(["outliers", str(run), files[0]]) == 2
    assert "--calibration" in capsys.readouterr().err


def test_dropped_rows(files, tmp_path, capsys):
    """A run of complete rows leaves out rows with missing cells, also beside rows with a new label."""
    encoder = ebm.datasets.TableEncoder.fit(table(90, 0).assign(unit=["m", "km"] * 45), missing="drop")
    network = ebm.networks.autoregressive([3], units=[8], supports=encoder.numbered_supports, seed=0)
    dropping = ebm.EnergyModel(network)
    dropping.build((None, 3))
    dropping.encoder, dropping.columns = encoder, encoder.names
    dropping.compile(loss=ebm.losses.NegativeLogLikelihood())
    dropping.optimizer.build(dropping.trainable_variables)
    run = as_run(dropping, tmp_path / "run")
    tested = table(6, 1).astype({"count": object})
    tested.loc[1, "count"], tested.loc[2, "unit"] = None, "mile"
    tested.to_csv(tmp_path / "new.csv", index=False)
    out = tmp_path / "p.csv"
    arguments = ["outliers", str(run), str(tmp_path / "new.csv"), "--calibration", files[1], "--out", str(out)]
    assert main(arguments) == 0
    assert "1 rows have missing cells" in capsys.readouterr().err
    written = pd.read_csv(out)
    assert len(written) == 5 and written["p_value"][1] == 1 / 200
