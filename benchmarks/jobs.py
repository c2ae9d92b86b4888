"""Runs the parts of a benchmark, each in a process of its own, and keeps their results for the next call.

A part is one contestant on one case with one seed. The script runs it by `--out FILE --one CASE SEED CONTESTANT`.
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys


def command_line(description, **parts):
    """The options of a benchmark: its folder, seeds, cases and contestants, and `--one` part.

    Args:
      description: the docstring of the benchmark.
      parts: the name of the option, a plural, and the default, all of them, of the cases and then of the contestants.
    """
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    for name, values in parts.items():
        parser.add_argument(f"--{name}", nargs="+", default=list(values))
    case, contestant = (name[:-1].upper() for name in parts)
    parser.add_argument("--one", nargs=3, metavar=(case, "SEED", contestant), help=argparse.SUPPRESS)
    return parser


def wrote_one(options, run, *more):
    """Runs the part of `--one`, if it is given, by `run(case, seed, contestant, *more)`; returns whether it is."""
    if options.one is None:
        return False
    case, seed, contestant = options.one
    options.out.write_text(json.dumps(run(case, int(seed), contestant, *more)))
    return True


def run_missing(script, out, cases, seeds, contestants, more=(), interpreters=None, quiet=False):
    """Runs what is missing, and returns all results in the folder by (case, seed, contestant), three strings.

    Args:
      script: the path of the benchmark.
      out: the folder; each result is a file in its folder `runs`.
      cases, seeds, contestants: the parts.
      more: further arguments of the script.
      interpreters: the Python of the contestants that need another one than this.
      quiet: whether to drop what the parts print.
    """
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    for seed, case, contestant in itertools.product(seeds, cases, contestants):
        path = folder / f"{case}.{seed}.{contestant}.json"
        if path.exists():
            continue
        unfinished = path.with_suffix(".part")
        python = (interpreters or {}).get(contestant, sys.executable)
        subprocess.run(
            [python, script, *more, "--out", str(unfinished), "--one", case, str(seed), contestant],
            check=False,
            stdout=subprocess.DEVNULL if quiet else None,
            env=environment,
        )
        if unfinished.exists():
            unfinished.replace(path)
        print(path.stem, path.read_text()[:200] if path.exists() else "failed", flush=True)
    return {tuple(path.stem.split(".")): json.loads(path.read_text()) for path in folder.glob("*.json")}
