"""The command line: what it promises of runs, of bad input, and of what it leaves on the disk."""

import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from laws import assert_same

import tfp_ebm as ebm
from tfp_ebm import datasets, losses, recipes
from tfp_ebm.cli import main, options, runs

SMALL = ["--quiet", "--steps", "20", "--units", "8", "--batch-size", "32", "--burnin", "5", "-n", "20"]
SMALL += ["--kernel", "langevin"]


def fit(data, out, *options):
    """The exit code, 0 for a run that its report calls failed: these are short."""
    code = main(["fit", str(data), "--out", str(out), *SMALL, *options])
    return 0 if code == 3 else code


def report_of(run):
    report = json.loads((run / "report.json").read_text())
    del report["seconds"], report["command_line"]
    return report


def weights_of(run):
    return [weight.numpy() for weight in keras.saving.load_model(run / "model.keras").weights]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """400 rows of 2 correlated columns, in quarters: sums and powers of two keep every bit of them."""
    x = np.random.default_rng(0).normal(size=(400, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.round(x * 64) / 64)
    return path


@pytest.fixture(scope="module")
def run(table, tmp_path_factory):
    """A small run, which no test may change."""
    out = tmp_path_factory.mktemp("runs") / "not" / "yet" / "there"
    assert fit(table, out) == 0
    return out


def snapshot(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- what a run is -------------------------------------------------------------------------------------------------


def test_the_names_it_offers_are_those_of_the_package():
    assert options.TOYS == datasets.TOY_NAMES
    # the recipe has arguments for one more, which has no defaults of its own
    names = [name for name, _ in options.LOSSES.values()]
    assert sorted(names) == sorted({*losses.aliases(), "multiscale_denoising_score_matching"})


@pytest.mark.slow
def test_a_run_is_complete(run):
    assert sorted(path.name for path in run.iterdir()) == sorted([*runs.RUN_FILES, "references.npz"])
    assert list(run.parent.iterdir()) == [run]  # nothing temporary beside it
    samples = np.load(run / "samples.npy")
    assert samples.shape == (20, 2) and samples.dtype == np.float32 and np.isfinite(samples).all()
    assert (run / "figure.png").stat().st_size < 300_000
    report = json.loads((run / "report.json").read_text())
    assert report["settings"]["steps"] == 20 and report["settings"]["loss"] == "denoising_score_matching"
    assert report["settings"]["sigma"] == pytest.approx(recipes.noise_scale(np.zeros([360, 2])))
    assert report["data"] == {"rows": 400, "held_out": 40, "event_shape": [2]}
    assert [column["name"] for column in report["columns"]] == ["column 1", "column 2"]
    assert report["format_version"] == runs.FORMAT_VERSION and set(report["versions"]) >= {"tensorflow", "keras"}
    assert report["command_line"][:3] == ["tfp-ebm", "fit", report["settings"]["data"]]
    assert report["held_out"]["log_normalizer_from"] == "grid" and report["held_out"]["standard_error"] > 0
    assert len(report["loss"]["by_epoch"]) == 10 and report["loss"]["held_out"] > 0
    assert set(report["draws"]) >= {"acceptance_rate", "min_ess", "max_rhat", "num_nonfinite", "num_stuck"}
    assert report["seconds"]["fit"] > 0 and report["seconds"]["sample"] > 0


@pytest.mark.long
def test_denoising_is_given_its_noise(table, tmp_path, capsys):
    """By the number of rows, or by `--sigma`, which selects denoising and refuses any other loss."""
    assert fit(table, tmp_path / "fitted", "--loss", "denoising_score_matching") == 0
    assert report_of(tmp_path / "fitted")["settings"]["sigma"] == recipes.noise_scale(np.zeros([360, 2]))
    assert fit(table, tmp_path / "given", "--sigma", "0.3") == 0
    settings = report_of(tmp_path / "given")["settings"]
    assert (settings["loss"], settings["sigma"]) == ("denoising_score_matching", 0.3)
    assert keras.saving.load_model(tmp_path / "given" / "model.keras").loss.sigma == 0.3
    capsys.readouterr()
    for loss in ("score_matching", "multiscale_denoising_score_matching"):
        assert fit(table, tmp_path / "refused", "--sigma", "0.3", "--loss", loss) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and "`--sigma`" in error and loss in error
    assert not (tmp_path / "refused").exists()


@pytest.mark.long
def test_noise_contrastive_estimation_reports_itself(table, tmp_path):
    """It is the default of larger tables, and needs no noise to be named."""
    assert fit(table, tmp_path / "run", "--loss", "noise_contrastive_estimation") == 0
    report = report_of(tmp_path / "run")
    assert report["settings"]["sigma"] is None and report["settings"]["fourier_features"] == 64
    assert set(report["metrics"]) == {"accuracy", "overlap", "log_normalizer"}
    assert keras.saving.load_model(tmp_path / "run" / "model.keras").log_normalizer is not None


@pytest.mark.long
def test_chains_train_from_the_command_line_and_report_themselves(table, tmp_path):
    # XLA compiles the chains of each size of batch: the 360 rows make equal ones
    options = ["--loss", "persistent_contrastive_divergence", "--batch-size", "40"]
    assert fit(table, tmp_path / "run", *options) == 0
    report = report_of(tmp_path / "run")
    assert 0.0 < report["metrics"]["acceptance_rate"] <= 1.0 and report["metrics"]["num_nonfinite"] == 0.0
    assert main(["evaluate", str(tmp_path / "run"), str(table)]) == 0


@pytest.mark.long
def test_a_table_gets_an_exact_density(table, tmp_path, capsys):
    """Without an option of the other losses: log Z is 0, samples are exact, and TensorFlow alone loads the export."""
    assert main(["fit", str(table), "--out", str(tmp_path / "run"), "--minutes", "0.05", "-n", "500"]) == 0
    printed = capsys.readouterr().out
    assert "gaussian" in printed and "stack" in printed and "ok: no check found a fault." in printed
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["settings"]["loss"] == "negative_log_likelihood" and report["draws"]["sampler"] == "exact"
    assert report["held_out"]["log_normalizer_from"] == "network" and report["held_out"]["log_normalizer"] == 0.0
    assert report["metrics"]["stack"] >= report["metrics"]["gaussian"] - 0.02
    x, samples = np.load(table), np.load(tmp_path / "run" / "samples.npy")
    assert samples.shape == (500, 2)
    assert np.abs(samples.mean(0) - x.mean(0)).max() < 0.3 and np.abs(samples.std(0) / x.std(0) - 1).max() < 0.3
    served = tf.saved_model.load(str(tmp_path / "run" / "saved_model"))
    model = keras.saving.load_model(tmp_path / "run" / "model.keras")
    in_z = -report["held_out"]["log_likelihood"] - float(model.standardization.log_scale_sum())
    assert report["loss"]["held_out"] == pytest.approx(in_z, rel=1e-4)  # losses are in standardised units
    rows = x[:5].astype("float32")
    np.testing.assert_array_equal(served.log_prob(rows), -served.energy(rows))
    np.testing.assert_allclose(served.log_prob(rows), ebm.EnergyDistribution(model).log_prob(rows), rtol=1e-5)
    assert served.sample(3, tf.constant([0, 1])).shape == (3, 2)
    assert main(["evaluate", str(tmp_path / "run"), str(table)]) == 0
    for given in (["--steps", "5", "--loss", "nll"], ["--minutes", "1", "--loss", "dsm"]):
        assert main(["fit", str(table), "--out", str(tmp_path / "refused"), *given]) == 2
        assert f"`{given[0]}` must not be given with --loss" in capsys.readouterr().err


@pytest.mark.slow
def test_files_and_commands_agree(run, table, tmp_path, capsys):
    """`sample` with the settings of the fit draws its samples again; `evaluate` reports the model's energies."""
    shown = ["--quiet", "-n", "20", "--burnin", "5", "--kernel", "langevin"]
    assert main(["sample", str(run), *shown, "--seed", "0", "--out", str(tmp_path / "deep" / "again.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "deep" / "again.npy"), np.load(run / "samples.npy"))
    assert main(["sample", str(run), *shown, "--seed", "2", "--out", str(tmp_path / "other.npy")]) == 0
    assert not np.array_equal(np.load(tmp_path / "other.npy"), np.load(run / "samples.npy"))

    capsys.readouterr()
    assert main(["evaluate", str(run), str(table), "--out", str(tmp_path / "energies.npy")]) == 0
    result = json.loads(capsys.readouterr().out)
    energies = np.load(tmp_path / "energies.npy")
    assert result["log_likelihood"] == pytest.approx(-energies.mean() - result["log_normalizer"], rel=1e-5)
    x = np.load(table).astype("float32")
    model = keras.saving.load_model(run / "model.keras")
    np.testing.assert_allclose(energies, model.energy(x), rtol=1e-5)
    served = tf.saved_model.load(str(run / "saved_model"))
    np.testing.assert_array_equal(served.energy(x), model.energy(x))
    assert result["rows"] == 400
    assert result["energy"]["mean"] == pytest.approx(energies.mean()) and result["loss"] > 0


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_another_seed_another(run, table, tmp_path):
    assert fit(table, tmp_path / "same") == 0
    assert report_of(tmp_path / "same") == report_of(run)
    np.testing.assert_array_equal(np.load(tmp_path / "same" / "samples.npy"), np.load(run / "samples.npy"))
    assert_same(weights_of(tmp_path / "same"), weights_of(run))

    assert fit(table, tmp_path / "same", "--overwrite", "--seed", "-1") == 0
    assert report_of(tmp_path / "same")["settings"]["seed"] == -1
    assert report_of(tmp_path / "same")["loss"] != report_of(run)["loss"]
    assert not np.array_equal(np.load(tmp_path / "same" / "samples.npy"), np.load(run / "samples.npy"))
    assert sorted(path.name for path in (tmp_path / "same").iterdir()) == sorted(path.name for path in run.iterdir())


@pytest.mark.long
def test_data_of_any_scale_train_alike_and_speak_their_own_units(run, table, tmp_path):
    """x·2ᵏ is the same data in other units: losses to the last bits; samples scale; E shifts by Σ log scale.

    A shift changes the rounding of z = (x − loc)/scale, so with it numbers agree to rounding grown over 20 steps.
    The control: without standardisation the loss of the scaled data would differ by orders of magnitude.
    """
    units, shift = np.array([2.0**-10, 2.0**10]), np.array([2.0**-6, -(2.0**14)])
    x = np.load(table)
    np.save(tmp_path / "scaled.npy", x * units + shift)
    assert fit(tmp_path / "scaled.npy", tmp_path / "scaled") == 0
    plain, scaled = report_of(run), report_of(tmp_path / "scaled")
    np.testing.assert_allclose(scaled["loss"]["by_epoch"], plain["loss"]["by_epoch"], rtol=1e-4)
    np.testing.assert_allclose(scaled["loss"]["held_out"], plain["loss"]["held_out"], rtol=1e-4)
    samples = np.load(tmp_path / "scaled" / "samples.npy").astype("float64")
    np.testing.assert_allclose((samples - shift) / units, np.load(run / "samples.npy"), atol=2e-3)

    model, other = (keras.saving.load_model(r / "model.keras") for r in (run, tmp_path / "scaled"))
    served = tf.saved_model.load(str(tmp_path / "scaled" / "saved_model"))
    there = (x * units + shift).astype("float32")
    difference = served.energy(there).numpy() - model.energy(x.astype("float32")).numpy()
    np.testing.assert_allclose(difference, np.log(units).sum(), atol=2e-3)
    assert not np.allclose(other.energy(x.astype("float32")), model.energy(x.astype("float32")), atol=1.0)
    score = other.score(there).numpy() * units
    np.testing.assert_allclose(score, model.score(x.astype("float32")), atol=1e-2)


@pytest.mark.slow
def test_overwrite_takes_a_run_and_nothing_else(run, table, tmp_path, capsys):
    old = tmp_path / "run"
    shutil.copytree(run, old)
    (old / "samples_1.npy").write_bytes(b"of the old model")  # as `sample` leaves them
    runs.check_free(old, overwrite=True, is_run=True)

    (old / "thesis.tex").write_text("years of work")
    before = snapshot(tmp_path)
    assert fit(table, old, "--overwrite") == 2
    assert main(["sample", str(run), "--out", str(old), "--overwrite"]) == 2
    assert snapshot(tmp_path) == before
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("tfp-ebm: error: `--out`") for line in errors)


# --- bad input -----------------------------------------------------------------------------------------------------


def write_bad_files(folder):
    rng = np.random.default_rng(1)
    good = rng.normal(size=(100, 2))
    np.save(folder / "good.npy", good)
    (folder / "truncated.npy").write_bytes((folder / "good.npy").read_bytes()[:200])
    np.savez(folder / "two.npz", a=good, b=good)
    np.save(folder / "nan.npy", np.where(np.arange(200).reshape(100, 2) == 7, np.nan, good))
    np.save(folder / "empty.npy", good[:0])
    np.save(folder / "constant.npy", np.full((100, 2), 3.0))
    np.save(folder / "objects.npy", np.array([[{}, 1]], object))
    np.save(folder / "flat.npy", good[:, 0])
    np.save(folder / "pair.npy", good[:2])
    (folder / "words.csv").write_text("a,b\n1,2\n3,four\n")
    (folder / "hole.csv").write_text("a,b\n1,2\n3,\n")
    (folder / "file").write_text("not a directory")


BAD_FITS = {
    "no such file": (["gone.npy"], "gone.npy"),
    "truncated": (["truncated.npy"], "truncated.npy"),
    "not numeric": (["words.csv"], "'b'"),
    "missing cell": (["hole.csv"], "'b'"),
    "no key": (["two.npz"], "`--key` must be one of 'a', 'b'"),
    "wrong key": (["two.npz", "--key", "c"], "`--key` must be one of 'a', 'b'"),
    "key of text": (["words.csv", "--key", "c"], "`--key` is for .npz"),
    "delimiter": (["words.csv", "--delimiter", "::"], "`--delimiter` must be one character"),
    "no options to read by": (["words.csv", "--read", "sep=open('x')"], "--read"),
    "an option that pandas has not": (["words.csv", "--read", "seperator=';'"], "seperator"),
    "NaN": (["nan.npy"], "(3, 1)"),
    "empty": (["empty.npy"], "empty"),
    "constant": (["constant.npy"], "equal"),
    "objects": (["objects.npy"], "objects"),
    "no columns": (["flat.npy"], "axes"),
    "two rows": (["pair.npy"], "at least 3 rows"),
    "dequantized fractions": (["good.npy", "--dequantize"], "`--dequantize`"),
    "out below a file": (["good.npy", "--out", "file/run"], "`--out`"),
    "loss": (["good.npy", "--loss", "hinge"], "--loss"),
    "sampler": (["good.npy", "--sampler", "gibbs"], "--sampler"),
    "seed": (["good.npy", "--seed", "1.5"], "--seed"),
    "no number": (["good.npy", "--sigma", "much"], "--sigma"),
    **{
        f"{option} {value}": (["good.npy", option, value], f"`{option}`")
        for option in ("--sigma", "--learning-rate", "--step-size", "--noise-ratio", "--base-width")
        for value in ("0", "-1", "nan", "inf")
    },
    **{
        f"{option} {value}": (["good.npy", option, value], f"`{option}`")
        for option in ("--steps", "--batch-size", "--num-samples", "--units", "--num-chains", "--thin")
        for value in ("0", "-3")
    },
    "--burnin": (["good.npy", "--burnin", "-1"], "`--burnin`"),
    "--fourier-features": (["good.npy", "--fourier-features", "-1"], "`--fourier-features`"),
    "--rows": (["two_moons", "--rows", "0"], "`--rows`"),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_bad_files(folder)
    return folder


@pytest.mark.parametrize("name", BAD_FITS)
def test_bad_input_is_one_line_and_writes_nothing(name, bad_files, capsys, monkeypatch):
    arguments, expected = BAD_FITS[name]
    monkeypatch.chdir(bad_files)
    before = snapshot(bad_files)
    assert main(["fit", *SMALL, "--out", "new/run", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("tfp-ebm: error: ")
    assert expected in captured.err
    assert snapshot(bad_files) == before and not (bad_files / "new").exists()


@pytest.mark.slow
def test_a_run_that_is_there_is_not_lost(run, table, capsys):
    before = snapshot(run)
    assert fit(table, run) == 2
    assert main(["sample", str(run), "--out", str(run / "samples.npy")]) == 2
    assert main(["evaluate", str(run), str(table), "--out", str(run / "samples.npy")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and all("exists; pass --overwrite" in line for line in errors)
    assert snapshot(run) == before


@pytest.mark.parametrize("name", runs.RUN_FILES)
def test_a_run_that_lacks_a_file_is_named(name, run, table, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    lost = tmp_path / "run" / name
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    for command in (["sample", str(tmp_path / "run")], ["evaluate", str(tmp_path / "run"), str(table)]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and "`run`" in error and name in error


def test_a_damaged_model_is_named(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "model.keras").write_bytes(b"PK")
    assert main(["sample", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "model.keras cannot be read" in error


@pytest.mark.parametrize(
    "error", [UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "bad"), json.JSONDecodeError("Expecting", "x", 0)]
)
def test_the_words_of_a_decoder_are_no_reason(error):
    """They are ValueErrors, too, but no reader of the message knows what they are about."""
    assert runs._reason(error) == runs._reason(KeyError("x"))
    assert runs._reason(ValueError("`n` must be positive.")) == "`n` must be positive."


def test_evaluate_refuses_rows_of_another_shape(run, bad_files, tmp_path, capsys):
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).normal(size=(10, 3)))
    assert main(["evaluate", str(run), str(tmp_path / "wide.npy")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "[rows, 2]" in error and "(10, 3)" in error


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["fit", "export"])
def test_an_interrupt_leaves_nothing_half_written(moment, run, table, tmp_path, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    shutil.copytree(run, tmp_path / "run")
    before = snapshot(tmp_path)
    monkeypatch.setattr(ebm.EnergyModel, moment, interrupted)
    assert fit(table, tmp_path / "run", "--overwrite") == 130
    error = capsys.readouterr().err
    if moment == "export":  # the training is done, and is kept
        assert "continue with `tfp-ebm fit --resume " in error
        shutil.rmtree(tmp_path / "run.training")
    assert snapshot(tmp_path) == before
    assert sorted(tmp_path.iterdir()) == [tmp_path / "run"]
    assert "interrupted" in error


def test_training_that_diverges_is_an_error(table, tmp_path, capsys):
    assert fit(table, tmp_path / "run", "--learning-rate", "1e30") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "--learning-rate" in errors[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_warnings_are_one_line_each_and_not_repeated(table, tmp_path, capsys):
    x = np.load(table)
    np.save(tmp_path / "x.npy", np.column_stack([x, np.full(len(x), 7.0), x[:, 0] + x[:, 1]]))
    assert fit(tmp_path / "x.npy", tmp_path / "run", "--kernel", "random_walk") == 0
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("tfp-ebm: warning: ") for line in lines) and len(set(lines)) == len(lines)
    assert sum("1 of 4 coordinates are constant" in line for line in lines) == 1
    assert sum("covariance is singular" in line for line in lines) == 1


# --- as a process --------------------------------------------------------------------------------------------------


def test_help_is_quick_and_shows_every_default(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("fit", "sample", "evaluate"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        for line in capsys.readouterr().out.split("\n  -")[2:]:
            assert "(default: " in line or line.startswith("-out OUT"), line


def test_the_process_parses_before_it_imports_tensorflow():
    code = "import sys, runpy; sys.orig_argv = ['python', '-m', 'tfp_ebm']; sys.argv = ['tfp_ebm', '--version']\n"
    code += "try: runpy.run_module('tfp_ebm', run_name='__main__')\n"
    code += "except SystemExit as stop: print(stop.code, 'tensorflow' in sys.modules, 'keras' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split()[1:] == ["0", "False", "False"]


@pytest.mark.slow
def test_the_process_says_nothing_of_tensorflow_s(run, tmp_path):
    """Its start-up chatter would be the first lines of stderr; the tests' own setting against it is taken away."""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "tfp_ebm", "sample", str(run), "-n", "3", "--burnin", "2", "--kernel", "langevin"]
    result = subprocess.run(
        [*command, "--quiet", "--out", str(tmp_path / "x.npy")], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert all(line.startswith("tfp-ebm: warning: ") for line in result.stderr.splitlines())
    assert result.stdout.splitlines()[-1] == str(tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").shape == (3, 2)
