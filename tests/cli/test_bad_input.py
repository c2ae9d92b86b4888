"""Random and damaged files and command lines: read rightly, or refused in one clear line; nothing else happens.

`benchmarks/reliability/fuzz.py` feeds thousands of the same inputs.
"""

import io
import json
import random
import zipfile

import fuzzed_files
import fuzzing
import numpy as np
import pytest

from tfp_ebm.cli import data, main


@pytest.fixture
def folder(tmp_path):
    """What random command lines refer to, but for a run, which is only a folder here."""
    place = tmp_path / "in"
    (place / "a_folder").mkdir(parents=True)
    (place / "a_folder" / "kept.txt").write_text("kept")
    (place / "run").mkdir()
    x = np.random.default_rng(0).normal(size=(60, 2)).astype("float32")
    np.save(place / "array.npy", x)
    np.savetxt(place / "table.csv", x, delimiter=",", header="a,b", comments="")
    return place


def test_random_files(folder, tmp_path):
    """A mark shows that nothing was unpickled, and the listing that nothing was written."""
    mark, path, counts = tmp_path / "unpickled", folder / "input", {"accepted": 0, "refused": 0}
    with fuzzing.stopped_early():
        for number in range(250):
            suffix, raw = fuzzed_files.random_file(random.Random(f"files/test/{number}"), mark)
            file = path.with_suffix(suffix)
            file.write_bytes(raw)
            before = fuzzing.names_in(tmp_path)
            verdict = fuzzing.judged(["fit", str(file), "--out", str(folder / "new")])
            assert verdict in counts, (number, verdict)
            assert fuzzing.names_in(tmp_path) == before, number
            counts[verdict] += 1
    assert not mark.exists()
    assert min(counts.values()) > 10  # both happen, so the inputs are neither all good nor all bad


def test_random_command_lines(folder, tmp_path):
    counts = {"accepted": 0, "refused": 0}
    before = fuzzing.names_in(tmp_path)
    with fuzzing.stopped_early():
        for number in range(400):
            arguments = fuzzing.random_command(random.Random(f"commands/test/{number}"), folder)
            verdict = fuzzing.judged(arguments)
            assert verdict in counts, (number, arguments, verdict)
            counts[verdict] += 1
    assert fuzzing.names_in(tmp_path) == before
    assert counts["refused"] > 100 and counts["accepted"] > 3


def test_the_judge_sees_what_is_unclear(folder, monkeypatch):
    """The control of both tests: planted faults of three kinds."""
    arguments = ["fit", str(folder / "array.npy"), "--out", str(folder / "new")]
    with fuzzing.stopped_early():
        assert fuzzing.judged(arguments) == "accepted"
        for error in (KeyError("x"), ValueError("NoneType object has no attribute shape in it"), ZeroDivisionError()):

            def broken(*_, error=error, **__):
                raise error

            monkeypatch.setattr(data, "load_named", broken)
            monkeypatch.setattr(data, "load_frame", broken)
            assert fuzzing.judged(arguments).startswith("FAULT"), error
    assert fuzzing.fault_of("tfp-ebm: error: one\ntfp-ebm: error: two and three more words\n")
    assert not fuzzing.fault_of("tfp-ebm: error: `data` must be a number, got 'KeyError'\n")


def refused(arguments, capsys, *words):
    """Checks that a command line is refused, by one line with these words."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert not fuzzing.fault_of(error), error
    for word in words:
        assert word in error, error


def test_an_array_that_claims_to_be_large(tmp_path, capsys):
    """Such a header must not be believed: the array would need 800 GB."""
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (50000000000, 2), }"
    (tmp_path / "x.npy").write_bytes(fuzzed_files.npy(np.zeros((8, 2)), header))
    refused(["fit", tmp_path / "x.npy", "--out", tmp_path / "run"], capsys, "x.npy", "more numbers than")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", fuzzed_files.npy(np.zeros((8, 2)), header))
    (tmp_path / "x.npz").write_bytes(file.getvalue())
    refused(["fit", tmp_path / "x.npz", "--out", tmp_path / "run"], capsys, "x.npz", "more numbers than")


def test_json_nested_too_deeply(tmp_path, capsys):
    (tmp_path / "x.json").write_text("[" * 10**5 + "]" * 10**5)
    refused(["fit", tmp_path / "x.json", "--out", tmp_path / "run"], capsys, "x.json", "nested")
    (tmp_path / "y.json").write_text(json.dumps([{"a": 1}] * 3).replace("1", "[" * 50000 + "]" * 50000))
    refused(["fit", tmp_path / "y.json", "--out", tmp_path / "run"], capsys, "y.json", "nested")


@pytest.mark.parametrize("option", ["--out", "data"])
def test_a_path_with_a_null_character(option, tmp_path, capsys):
    data = "two_moons" if option == "--out" else "a\0b"
    out = tmp_path / ("a\0b" if option == "--out" else "run")
    refused(["fit", data, "--out", out], capsys, option if option == "--out" else "neither a file nor a known name")


def test_seeds_that_no_generator_takes(tmp_path, capsys):
    with fuzzing.stopped_early():
        for seed in ("99999999999999999999", "-99999999999999999999"):
            assert fuzzing.judged(
                ["fit", "two_moons", "--rows", "10", "--out", str(tmp_path / "r"), "--seed", seed]
            ) in (
                "accepted",
                "refused",
            )
