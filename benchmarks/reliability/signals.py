"""Sends signals to `fit` and `sample` at random moments, continues them, and counts what was lost.

The command runs in a process of its own, saves itself every tenth of a second, and receives SIGKILL, SIGTERM or SIGINT
(Ctrl-C) at a random moment. Its exit code must be the right one, and what is left must be a complete run, a training
that `--resume` continues, or nothing. In the end its weights and samples must be those of a command that was not
disturbed; after Ctrl-C within the training, the model as it was then is a run of its own.

    python benchmarks/reliability/signals.py [--tries 50] [--jobs fit sample] [--json out.json]
"""

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np

import tfp_ebm  # noqa: F401, so that forked processes need not import it
from tfp_ebm.cli import main as command_line
from tfp_ebm.cli import unfinished
from tfp_ebm.mcmc.running import backup

SIGNALS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
# 1010 steps in 10 epochs of 101, each step a call of its own.
FIT = ["--quiet", "--loss", "pcd", "--steps", "1010", "--units", "8", "--batch-size", "32", "-n", "50"]
SAMPLER = ["--kernel", "mala", "--burnin", "300", "--num-chains", "50"]
SAMPLE = ["--quiet", "-n", "50", *SAMPLER]


def started(arguments, log):
    """Starts the command line in a fork; it is safe as long as this process runs no operation of TensorFlow."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        unfinished._SECONDS = backup._SECONDS = 0.1
        status = command_line([str(argument) for argument in arguments])
    except BaseException:  # what Python would print, were this not a fork
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def ended(child):
    """The exit code of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def differences(run, expected):
    """What is not as in the expected run: called in a fork."""
    models = [keras.saving.load_model(folder / "model.keras") for folder in (run, expected)]
    pairs = zip(*(model.weights for model in models), strict=True)
    same = all(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs)
    return [] if same else ["other weights"]


def in_fork(function, *arguments):
    """The result of a function in a process of its own, as JSON."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, json.dumps(function(*arguments)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else ["the check failed"]


def try_fit(data, folder, expected, kind, moment):
    """Disturbs `fit`, continues it, and returns what happened, and what is wrong."""
    out, log = folder / "run", folder / "log"
    child = started(["fit", data, "--out", out, *FIT, *SAMPLER], log)
    time.sleep(moment)
    os.kill(child, kind)
    code = ended(child)
    text = log.read_text(errors="replace").strip()
    left = sorted(path.name for path in folder.iterdir() if path.name != "log")
    faults = []
    if code not in (SIGNALS[kind], 0, 3) and not (kind == signal.SIGTERM and code == -15):
        faults.append(f"exit code {code}: {text[-200:]}")
    if "Traceback" in text:
        faults.append(f"a traceback: {text[text.index('Traceback') :][:1500]}")
    if code in (0, 3) and "the training was interrupted" in text:
        return "a run of the model as it was", faults if (out / "model.keras").exists() else [*faults, "no run"]
    if "run" not in left:
        again = ["--resume", out] if "run.training" in left else [data, "--out", out, *FIT, *SAMPLER]
        code = ended(started(["fit", *again, "--quiet"], log))
        if code not in (0, 3):
            return "continued", [*faults, f"{code} when continued: {log.read_text()[-200:]}"]
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".") or "training" in path.name]
    faults += [f"left over: {hidden}"] * (bool(hidden) and kind != signal.SIGKILL)
    faults += in_fork(differences, out, expected)
    return "finished" if "run" in left else "continued" if "run.training" in left else "begun anew", faults


def try_sample(run, folder, expected, kind, moment):
    """Disturbs `sample`, continues it, and returns what happened, and what is wrong."""
    file, log = folder / "x.npy", folder / "log"
    child = started(["sample", run, "--out", file, *SAMPLE], log)
    time.sleep(moment)
    os.kill(child, kind)
    code = ended(child)
    text = log.read_text(errors="replace").strip()
    faults = [] if code in (SIGNALS[kind], 0) or code == -15 else [f"exit code {code}: {text[-200:]}"]
    done, kept = file.exists(), (folder / "x.npy.chains").exists()
    if not done and (code := ended(started(["sample", run, "--out", file, *SAMPLE], log))) != 0:
        return "continued", [*faults, f"{code} when continued: {log.read_text()[-200:]}"]
    if not np.array_equal(np.load(file), np.load(expected)):
        faults.append("other samples")
    return "finished" if done else "continued" if kept else "begun anew", faults


def main():
    """Disturbs, continues, compares, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--jobs", nargs="+", choices=("fit", "sample"), default=["fit", "sample"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    options = parser.parse_args()
    rng, results = random.Random(options.seed), {}
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        data, expected, samples = root / "x.npy", root / "expected", root / "samples.npy"
        np.save(data, np.random.default_rng(0).normal(size=(300, 2)))
        begin = time.monotonic()
        ended(started(["fit", data, "--out", expected, *FIT, *SAMPLER], root / "log"))
        times = {"fit": time.monotonic() - begin}
        begin = time.monotonic()
        ended(started(["sample", expected, "--out", samples, *SAMPLE], root / "log"))
        times["sample"] = time.monotonic() - begin
        for job, attempt, source, truth in (
            ("fit", try_fit, data, expected),
            ("sample", try_sample, expected, samples),
        ):
            if job not in options.jobs:
                continue
            results[job] = []
            for number in range(options.tries):
                kind = list(SIGNALS)[number % 3]
                folder, moment = root / f"{job}{number}", rng.uniform(0.0, 1.1 * times[job])
                folder.mkdir()
                ending, faults = attempt(source, folder, truth, kind, moment)
                results[job].append({"signal": kind.name, "seconds": moment, "ending": ending, "faults": faults})
                for fault in faults:
                    print(f"    {job}, {kind.name} after {moment:.2f} s: {fault}", flush=True)
            endings = [one["ending"] for one in results[job]]
            counts = ", ".join(f"{endings.count(ending)} {ending}" for ending in sorted(set(endings)))
            faulty = sum(bool(one["faults"]) for one in results[job])
            print(f"{job:8s} disturbed {options.tries} times ({counts}), faults {faulty}", flush=True)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))
    sys.exit(any(one["faults"] for tries in results.values() for one in tries))


if __name__ == "__main__":
    main()
