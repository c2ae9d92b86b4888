"""Names of columns through fit, evaluate and sample; what the commands write, and what they print of it."""

import argparse
import json

import keras
import numpy as np
import pandas as pd
import pytest

import tfp_ebm as ebm
from tfp_ebm import mcmc
from tfp_ebm.cli import main, runs
from tfp_ebm.cli import sample as sampling

SMALL = ["--quiet", "--steps", "20", "--units", "8", "--burnin", "5", "--thin", "1", "-n", "20"]


@pytest.fixture(scope="module")
def frame():
    x = np.random.default_rng(0).normal(size=(60, 3)) * [1.0, 10.0, 0.1] + [0.0, 50.0, 2.0]
    return pd.DataFrame(np.round(x, 3), columns=["depth", "level", "salt"])


@pytest.fixture(scope="module")
def run(frame, tmp_path_factory):
    """A run of few rows, German notation and a batch larger than they are; no test may change it."""
    folder = tmp_path_factory.mktemp("lake")
    frame.to_csv(folder / "lake.txt", sep=";", decimal=",", index=False)
    arguments = ["fit", str(folder / "lake.txt"), "--out", str(folder / "run"), "--loss", "dsm", *SMALL]
    assert main([argument for argument in arguments if argument != "--quiet"]) in (0, 3)  # 3: too short to be good
    return folder / "run"


def evaluated(run, file, *options, capsys):
    capsys.readouterr()
    code = main(["evaluate", str(run), str(file), *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.long
def test_names_of_columns_are_kept_and_a_large_batch_shrinks(run, frame):
    report = json.loads((run / "report.json").read_text())
    assert [column["name"] for column in report["columns"]] == list(frame.columns)
    assert keras.saving.load_model(run / "model.keras").columns == tuple(frame.columns)
    assert report["settings"]["batch_size"] == 54 and report["settings"]["loss"] == "denoising_score_matching"


@pytest.mark.long
def test_columns_are_found_by_name(run, frame, tmp_path, capsys):
    """The energies are those of the columns in their order; the control, the numbers in another order, differs."""
    frame.to_csv(tmp_path / "same.csv", index=False)
    frame[["salt", "depth", "level"]].assign(more=1.5).to_csv(tmp_path / "other.csv", index=False)
    frame[["salt", "depth", "level"]].to_csv(tmp_path / "bare.csv", index=False, header=False)
    energies = {}
    for name in ("same", "other", "bare"):
        out = tmp_path / f"{name}.npy"
        code, _, err = evaluated(run, tmp_path / f"{name}.csv", "--out", str(out), capsys=capsys)
        assert code == 0 and ("does not know 'more'" in err) == (name == "other")
        energies[name] = np.load(out)
    np.testing.assert_array_equal(energies["other"], energies["same"])
    assert np.abs(energies["bare"] - energies["same"]).min() > 1

    frame.rename(columns={"salt": "Salt"}).to_csv(tmp_path / "renamed.csv", index=False)
    code, out, err = evaluated(run, tmp_path / "renamed.csv", capsys=capsys)
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert "missing: 'salt'" in err and "'Salt'" in err


@pytest.mark.long
def test_energies_beside_the_rows(run, frame, tmp_path, capsys):
    frame = frame.assign(energy=7.0)[["salt", "energy", "depth", "level"]]
    frame.to_parquet(tmp_path / "x.parquet")
    for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        out = tmp_path / f"out{suffix}"
        code, printed, _ = evaluated(run, tmp_path / "x.parquet", "--out", str(out), "--quiet", capsys=capsys)
        written = read(out)
        result = json.loads(printed)
        assert code == 0 and list(written.columns) == ["depth", "level", "salt", "energy"]
        np.testing.assert_allclose(written["level"], frame["level"], rtol=1e-6)
        assert written["energy"].mean() == pytest.approx(result["energy"]["mean"], rel=1e-5)
        assert result["log_likelihood"] is None and result["log_normalizer"] is None
    for name in ("energies.txt", "energies"):
        code, _, err = evaluated(run, tmp_path / "x.parquet", "--out", str(tmp_path / name), capsys=capsys)
        assert code == 2 and "`--out` must end in one of .npy, .csv, .parquet" in err


@pytest.mark.long
def test_samples_are_written_under_their_names(run, frame, tmp_path):
    for suffix, read in ((".csv", pd.read_csv), (".parquet", pd.read_parquet)):
        arguments = ["sample", str(run), "--quiet", "--burnin", "5", "-n", "7", "--num-chains", "3", "--thin", "2"]
        assert main([*arguments, "--out", str(tmp_path / f"s{suffix}")]) == 0
        samples = read(tmp_path / f"s{suffix}")
        assert list(samples.columns) == list(frame.columns) and samples.shape == (7, 3)
    assert len(np.unique(samples.to_numpy(), axis=0)) == 7


@pytest.mark.long
def test_notes_are_kept_to_themselves_by_quiet(run, frame, tmp_path, capsys):
    frame.to_csv(tmp_path / "x.csv", index=False)
    for options, notes in (([], 2), (["--quiet"], 0)):
        capsys.readouterr()
        small = [option for option in SMALL if option != "--quiet"] + ["--overwrite", "--kernel", "langevin", *options]
        assert main(["fit", str(tmp_path / "x.csv"), "--out", str(tmp_path / "run"), "--loss", "dsm", *small]) in (0, 3)
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert sum("note: the batch size is 54" in line for line in lines) == notes / 2
        assert ("Epoch 10/10" in captured.out) == (not options) and "\x08" not in captured.out + captured.err
        _, _, err = evaluated(tmp_path / "run", tmp_path / "x.csv", *options, capsys=capsys)
        assert err.count("note: log Z is not known") == notes / 2


@pytest.mark.slow
def test_options_of_reading_reach_pandas(run, tmp_path, capsys):
    """Without them 1.234 is 1.234, with a warning that names the option; with them it is 1234."""
    (tmp_path / "x.csv").write_text("depth;level;salt\n1.234;2;3\n2.345;3;4\n")
    code, first, err = evaluated(run, tmp_path / "x.csv", capsys=capsys)
    assert code == 0 and "column 'depth'" in err and "--read \"thousands='.', decimal=','\"" in err
    assert "read it with" not in err
    code, second, err = evaluated(run, tmp_path / "x.csv", "--read", "thousands='.', decimal=','", capsys=capsys)
    assert code == 0 and "warning" not in err and json.loads(second)["loss"] > 10 * json.loads(first)["loss"]


@pytest.mark.slow
def test_runs_of_a_later_format_are_refused(run, tmp_path, capsys):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    report = json.loads((run / "report.json").read_text())
    (tmp_path / "run" / "report.json").write_text(json.dumps({**report, "format_version": runs.FORMAT_VERSION + 1}))
    assert main(["sample", str(tmp_path / "run")]) == 2
    assert f"format version {runs.FORMAT_VERSION + 1}" in capsys.readouterr().err


def test_short_names_of_losses(tmp_path, capsys):
    for name in ("hinge", "NCE"):
        assert main(["fit", "rings", "--out", str(tmp_path / "run"), "--loss", name]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and "--loss" in error and "nce (noise_contrastive_estimation)" in error
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert "[--loss LOSS]" in usage and "noise_contrastive_estimation" not in usage


@pytest.mark.parametrize("command", ["fit", "sample", "evaluate", "outliers"])
def test_help_has_an_example_that_parses(command, capsys):
    from tfp_ebm.cli.options import make_parser

    with pytest.raises(SystemExit):
        main([command, "--help"])
    line = capsys.readouterr().out.split("example:\n")[1].splitlines()[0]
    assert make_parser().parse_args(line.split()[3:]).command == command


# --- chains --------------------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tests")
class Modes(keras.layers.Layer):
    """Energy of ½N(−1, sd²) + ½N(1, sd²) in standardised coordinates."""

    def __init__(self, sd, **kwargs):
        super().__init__(**kwargs)
        self.sd = sd

    def call(self, z):
        return -keras.ops.logaddexp(-0.5 * ((z - 1.0) / self.sd) ** 2, -0.5 * ((z + 1.0) / self.sd) ** 2)[..., 0]


def modes(sd):
    """A model of two modes at −5 and 5."""
    model = ebm.EnergyModel(Modes(sd), event_shape=[1])
    model.adapt(np.float32([[-5.0], [5.0]]))
    return model


def options_of(**given):
    settings = {"sampler": "hmc", "step_size": None, "num_samples": 400, "num_chains": None, "burnin": 100, "thin": 5}
    return argparse.Namespace(**{**settings, "seed": 0, "quiet": True, **given})


@pytest.mark.slow
def test_the_global_move_is_in_the_coordinates_of_the_chain():
    """Of a model that is its base every proposal is accepted; of one whose base is three times as wide, a third."""
    x = np.random.default_rng(0).normal([1000.0, -5.0], [10.0, 0.01], size=(400, 2)).astype("float32")

    def acceptance(width):
        network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        model = ebm.EnergyModel(network, base_measure=ebm.fit_base(x))
        model.adapt(x)
        move = sampling.kernel_for(model, options_of()).kernels[0]
        if width != 1.0:
            standardized = model.standardization.standardized(ebm.fit_base(x, width=width))
            move = mcmc.IndependenceMetropolis(standardized)
            target = model.energy_function.unnormalized_log_prob
            return mcmc.sample(target, np.zeros([200, 2], "float32"), move, num_results=20, seed=0).is_accepted
        return ebm.EnergyDistribution(model, kernel=move).sample_chains(20, 200, seed=0, num_burnin_steps=0).is_accepted

    assert np.mean(acceptance(1.0)) > 0.999
    assert np.mean(acceptance(3.0)) < 0.5


@pytest.mark.long
@pytest.mark.parametrize("kernel", ["hmc", "mala"])
def test_chains_cross_between_modes_by_default(kernel):
    """R-hat of a hundred chains of 50 states: 1.00 where they cross, 5 where, without proposals from the base, not."""
    model, options = modes(0.2), options_of(sampler=kernel)
    chosen = sampling.kernel_for(model, options)
    samples, report = sampling.draw(model, chosen, options)
    assert report["max_rhat"] < 1.02 and abs(np.mean(samples > 0) - 0.5) < 0.1 and samples.shape == (400, 1)
    with pytest.warns(UserWarning, match="R-hat is .* chains have not mixed"):
        _, alone = sampling.draw(model, chosen.kernels[-1], options)
    assert alone["max_rhat"] > 2


@pytest.mark.long
def test_the_advice_on_chains_that_have_not_mixed_works():
    """Modes two hundred deviations apart, into which few proposals fall."""
    model, options = modes(0.01), options_of()
    kernel = sampling.kernel_for(model, options)
    with pytest.warns(UserWarning, match="R-hat is .* --thin 50 --burnin 1000") as caught:
        _, report = sampling.draw(model, kernel, options)
    assert 1.03 < report["max_rhat"] and len(caught) == 1
    _, report = sampling.draw(model, kernel, options_of(thin=50, burnin=1000))
    assert report["max_rhat"] < 1.02
