"""Runs the parts of a benchmark, each in a process of its own, and keeps their results for the next call.

A part is one contestant on one case with one seed. The script runs it by `--out FILE --one CASE SEED CONTESTANT`.
"""

import itertools
import json
import os
import subprocess
import sys


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
