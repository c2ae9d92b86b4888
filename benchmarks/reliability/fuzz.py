"""Feeds the package thousands of random and damaged inputs, and counts what is refused without a clear error.

Parts: `files` (random and mutated files of every format, given to `fit`), `commands` (random command lines), `runs`
(the files of a run, given to `sample` and `evaluate`), `models` (random architectures, shapes and dtypes through
energy, score, Laplacian, fit, save and export). An input is *unclear* if the command ends in an exception, prints more
or less than one line, or one in the words of Python's or a library's insides. An unpickled object or a file written
outside the folder is counted, too. Each input has a number, and `--only NUMBER` repeats it.

    python benchmarks/reliability/fuzz.py [--parts files commands runs models] [--num 4000] [--seed 0] [--json out.json]
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tests"))

import fuzzed_files
import fuzzing
import numpy as np

from tfp_ebm.cli import main as command_line

PARTS = ("files", "commands", "runs", "models")
# Inputs of the slower parts, in terms of --num.
SHARES = {"files": 1.0, "commands": 1.0, "runs": 0.05, "models": 0.02}


def prepared(folder):
    """Writes what the command lines refer to: a table, an array, a folder with something in it, and a small run."""
    x = np.random.default_rng(0).normal(size=(60, 2)).astype("float32")
    np.save(folder / "array.npy", x)
    np.savetxt(folder / "table.csv", x, delimiter=",", header="a,b", comments="")
    (folder / "a_folder").mkdir()
    (folder / "a_folder" / "kept.txt").write_text("kept")
    small = ["--quiet", "--steps", "2", "--units", "4", "--batch-size", "16", "--burnin", "2", "-n", "4"]
    command_line(["fit", str(folder / "table.csv"), "--out", str(folder / "run"), "--sampler", "langevin", *small])


def files(rng, folder, mark):
    """One file, given to `fit`."""
    suffix, raw = fuzzed_files.random_file(rng, mark)
    path = folder / f"input{suffix}"
    path.write_bytes(raw)
    options = rng.choice([[], [], ["--loss", "dsm"], ["--missing", "drop"], ["--missing", "model"], ["--dequantize"]])
    try:
        return fuzzing.judged(["fit", str(path), "--out", str(folder / "new"), *options])
    finally:
        path.unlink()


def commands(rng, folder, mark):
    """One command line."""
    return fuzzing.judged(fuzzing.random_command(rng, folder))


def runs(rng, folder, mark):
    """One run with a damaged file, given to `sample` or `evaluate`."""
    copy = folder / "damaged"
    shutil.copytree(folder / "run", copy)
    try:
        name = rng.choice(["model.keras", "model.keras", "report.json", "references.npz"])
        path = copy / name
        path.write_bytes(
            fuzzed_files.mutated_archive(rng, path.read_bytes())
            if name != "report.json"
            else fuzzed_files.mutated(rng, path.read_bytes())
        )
        if rng.random() < 0.5 and name != "references.npz":
            return fuzzing.judged(["sample", str(copy), "-n", "2", "--out", str(copy / "x.npy")])
        return fuzzing.judged(["evaluate", str(copy), str(folder / "table.csv")])
    finally:
        shutil.rmtree(copy)


def models(rng, folder, mark):
    """One random architecture."""
    from architectures import check, random_case

    case = random_case(rng)
    try:
        check(case, folder / "model")
        return "accepted"
    except Exception as error:
        return f"FAULT {case}: {type(error).__name__}: {str(error)[:300]}"
    finally:
        shutil.rmtree(folder / "model", ignore_errors=True)


def main():
    """Runs the parts and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--num", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--json")
    options = parser.parse_args()
    table, faults = {}, []
    with tempfile.TemporaryDirectory() as place:
        folder, mark = pathlib.Path(place) / "in", pathlib.Path(place) / "unpickled"
        folder.mkdir()
        prepared(folder)
        for part in options.parts:
            counts, start = collections.Counter(), time.perf_counter()
            numbers = range(int(options.num * SHARES[part])) if options.only is None else [options.only]
            before, kept = fuzzing.names_in(place), fuzzing.stopped_early()
            with kept:
                for number in numbers:
                    verdict = globals()[part](random.Random(f"{part}/{options.seed}/{number}"), folder, mark)
                    if fuzzing.names_in(place) != before:
                        changed = sorted(set(fuzzing.names_in(place)) ^ set(before))
                        verdict, before = f"FAULT wrote {changed}", fuzzing.names_in(place)
                    counts[verdict.split()[0]] += 1
                    if verdict.startswith("FAULT"):
                        faults.append(f"{part} {number}: {verdict}")
                        print(faults[-1], flush=True)
            table[part] = {**counts, "seconds": round(time.perf_counter() - start, 1)}
        table["unpickled"] = int(mark.exists())
    print(f"{'part':10s} {'tried':>7s} {'accepted':>9s} {'refused':>8s} {'unclear':>8s} {'seconds':>8s}")
    for part in options.parts:
        row = table[part]
        tried = sum(row.get(name, 0) for name in ("accepted", "refused", "FAULT"))
        cells = [tried, *(row.get(name, 0) for name in ("accepted", "refused", "FAULT"))]
        print(f"{part:10s} {cells[0]:7d} {cells[1]:9d} {cells[2]:8d} {cells[3]:8d} {row['seconds']:8.1f}")
    print(f"objects unpickled: {table['unpickled']}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"seed": options.seed, **table, "faults": faults}, indent=2))
    sys.exit(bool(faults) or table["unpickled"])


if __name__ == "__main__":
    main()
