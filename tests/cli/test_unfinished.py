"""Trainings of the command line that are interrupted, terminated or without memory, and continued by `--resume`."""

import functools
import json
import os
import shutil
import signal
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from laws import assert_same

import tfp_ebm as ebm
from tfp_ebm.cli import main, unfinished

# 101 is prime: each step is a call of its own, so that a training can be cut within an epoch
SMALL = ["--quiet", "--steps", "202", "--units", "8", "--batch-size", "32", "-n", "20", "--burnin", "5"]
SMALL += ["--kernel", "langevin"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(100, 2)))
    return path


def fit(*arguments):
    """The exit code, 0 for a run that its report calls failed: these are short."""
    code = main(["fit", *map(str, arguments)])
    return 0 if code == 3 else code


def report_of(run):
    report = json.loads((run / "report.json").read_text())
    del report["seconds"], report["command_line"]
    return report


def at_step(number, monkeypatch, action):
    """Does something at the end of a step of the training."""
    usual = unfinished._Progress.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        usual(self, batch, logs)
        if int(self.model._step.numpy()) == number:
            action()

    monkeypatch.setattr(unfinished._Progress, "on_train_batch_end", on_train_batch_end)


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.long
def test_a_terminated_training_is_continued_with_the_same_bits(table, tmp_path, monkeypatch, capsys):
    """A real SIGTERM within the second epoch; weights and report are those of a training that was not cut."""
    assert fit(table, "--out", tmp_path / "whole", *SMALL) == 0
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        at_step(150, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert fit(os.path.relpath(table), "--out", "cut", *SMALL) == 143
    assert "terminated. The training is kept: continue with `tfp-ebm fit --resume cut`." in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.training", "whole"]
    assert fit(table, "--out", "cut", *SMALL) == 2
    assert "continue it with --resume cut" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path.parent)
    assert fit("--resume", tmp_path / "cut", "--quiet") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "whole"]
    whole, cut = (keras.saving.load_model(tmp_path / name / "model.keras") for name in ("whole", "cut"))
    assert_same(whole.weights, cut.weights)
    assert_same([v.numpy() for v in whole.optimizer.variables], [v.numpy() for v in cut.optimizer.variables])
    np.testing.assert_array_equal(
        np.load(tmp_path / "whole" / "samples.npy"), np.load(tmp_path / "cut" / "samples.npy")
    )
    reports = [report_of(tmp_path / name) for name in ("whole", "cut")]
    for report in reports:
        assert len(report["loss"]["by_epoch"]) == 2
        del report["settings"]["data"]  # absolute in the continued command
    assert reports[0] == reports[1]
    assert fit("--resume", tmp_path / "cut") == 2
    assert "its training is finished" in capsys.readouterr().err


def test_what_cannot_be_resumed_is_named(table, tmp_path, monkeypatch, capsys):
    assert fit("--resume", tmp_path / "none") == 2
    assert "`--resume`" in capsys.readouterr().err
    shutil.copy(table, tmp_path / "x.npy")
    at_step(50, monkeypatch, interrupt)
    assert fit(tmp_path / "x.npy", "--out", tmp_path / "new" / "run", *SMALL) == 130
    assert "interrupted. The training is kept" in capsys.readouterr().err
    for extra, name in ((["--steps", "3"], "--steps"), ([table], "data"), (["--out", "x"], "--out")):
        assert fit("--resume", tmp_path / "new" / "run", *extra) == 2
        assert f"`{name}` must not be given with --resume" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(size=(100, 2)))
    assert fit("--resume", tmp_path / "new" / "run.training") == 2
    assert "have changed" in capsys.readouterr().err
    (tmp_path / "new" / "run.training" / "command.json").write_text("{")
    assert fit("--resume", tmp_path / "new" / "run") == 2
    assert "command.json cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_interrupted_after_an_epoch_is_a_run_with_a_warning(table, tmp_path, monkeypatch, capsys):
    """Also with --quiet: its model is not the one that was asked for."""
    at_step(150, monkeypatch, interrupt)
    assert fit(table, "--out", tmp_path / "run", *SMALL) == 0
    assert "the training was interrupted: the model is kept as it is now" in capsys.readouterr().err
    assert len(report_of(tmp_path / "run")["loss"]["by_epoch"]) == 1


def test_nothing_is_left_where_the_command_cannot_be_written(table, tmp_path, monkeypatch, capsys):
    usual = unfinished.written_atomically

    def full(path):
        if path.name == "command.json":
            raise OSError(28, "No space left on device")
        return usual(path)

    monkeypatch.setattr(unfinished, "written_atomically", full)
    assert fit(table, "--out", tmp_path / "new" / "run", *SMALL) == 2
    assert "No space left" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_training_that_saved_nothing(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ebm.EnergyModel, "fit", lambda *args, **kwargs: interrupt())
    assert fit(table, "--out", tmp_path / "new" / "run", *SMALL) == 130
    assert "interrupted. Nothing was written." in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), MemoryError("Unable to allocate")],
    ids=["tensorflow", "numpy"],
)
def test_memory_that_runs_out_is_one_line_with_the_option(error, table, tmp_path, monkeypatch, capsys):
    def exhausted(*args, **kwargs):
        raise error

    monkeypatch.setattr(ebm.EnergyModel, "make_train_function", exhausted)
    assert fit(table, "--out", tmp_path / "run", *SMALL) == 2
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1 and "out of memory: a smaller --batch-size" in line
    assert list(tmp_path.iterdir()) == []
    # in Python, TensorFlow's error remains what it is, and names the argument
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[4]))
    model.compile("adam", "denoising_score_matching")
    with pytest.raises(type(error), match="`batch_size`" if isinstance(error, tf.errors.OpError) else "Unable"):
        model.fit(np.load(table).astype("float32"))


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_was_saved(table, tmp_path, monkeypatch, capsys):
    """At the backup, a warning, and training goes on; at the run, an error, and the training can be continued."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unfinished, "_SECONDS", 0.0)
    saved, usual = [], unfinished.backups.save

    def save(model, folder, position):
        saved.append(int(model._step.numpy()))
        (full if len(saved) == 2 else usual)(model, folder, position)

    monkeypatch.setattr(unfinished.backups, "save", save)
    monkeypatch.setattr(ebm.EnergyModel, "save", full)
    short = ["2" if value == "202" else value for value in SMALL]
    assert fit(table, "--out", tmp_path / "run", *short) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any("no backup could be written to" in line and "No space left" in line for line in lines)
    assert "No space left on device" in lines[-1] and "--resume" in lines[-1]
    assert saved == [1, 2, 2] and [path.name for path in tmp_path.iterdir()] == ["run.training"]


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize("kind", [RuntimeError, OSError])
def test_an_interrupt_that_c_code_turned_into_another_error(number, code, word, kind, monkeypatch, capsys, request):
    """As by HDF5, whose writing calls Python; the same error without a signal is what it is."""

    def interrupted(options):
        try:
            if sends:
                os.kill(os.getpid(), number)
                time.sleep(5)
        except BaseException:
            pass
        raise kind("unable to write")

    monkeypatch.setattr("tfp_ebm.cli.sample.sample", interrupted)
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    sends = True
    assert main(["sample", "no/such/run"]) == code
    assert capsys.readouterr().err.endswith(f"{word} ({kind.__name__}: unable to write). Nothing was written.\n")
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    sends = False
    if kind is OSError:
        assert main(["sample", "no/such/run"]) == 2
    else:
        with pytest.raises(RuntimeError, match="unable to write"):
            main(["sample", "no/such/run"])


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_while_python_deletes_an_object_is_not_lost(number, code, word, monkeypatch, capsys, request):
    """Python ignores what a finalizer raises, and prints it: one of 400 interrupts of a training was lost so."""

    class Deleted:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(5)

    def deletes(options):
        Deleted()
        for _ in range(500):
            time.sleep(0.01)
        return True

    def deletes_at_the_end(options):
        Deleted()
        return True

    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr("tfp_ebm.cli.sample.sample", deletes)
    assert main(["sample", "no/such/run"]) == code
    assert capsys.readouterr().err == f"tfp-ebm: error: {word}. Nothing was written.\n"
    monkeypatch.setattr("tfp_ebm.cli.sample.sample", deletes_at_the_end)
    monkeypatch.setattr("tfp_ebm.cli.messages._PAUSE", 0.2)
    assert main(["sample", "no/such/run"]) == 0  # the command was done
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]


def test_other_errors_of_finalizers_are_printed_as_ever(monkeypatch, capsys):
    class Deleted:
        def __del__(self):
            raise ValueError("of a finalizer")

    def deletes(options):
        Deleted()
        return True

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: seen.append(str(ignored.exc_value)))
    monkeypatch.setattr("tfp_ebm.cli.sample.sample", deletes)
    assert main(["sample", "no/such/run"]) == 0 and seen == ["of a finalizer"]
