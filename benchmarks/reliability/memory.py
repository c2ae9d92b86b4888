"""Asks for more memory than a process may have, and counts what does not end in an error that says so.

Each piece of work runs in a process of its own, which may take 4 GB more than it holds after a small training. (The
stacks of threads count too, and a process that cannot start a thread is ended.) It must end with an error that names
memory, and in Python the argument that needs less; the process must not be ended by the allocator, and must do smaller
work afterwards.

    python benchmarks/reliability/memory.py [--json out.json]
"""

import argparse
import json
import os
import pathlib
import resource
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
from faults import X, tried
from kills import model_of

import tfp_ebm as ebm

EXTRA = 2**32


def wide(rows):
    """A training step of exact score matching with all rows in one batch."""
    model = ebm.EnergyModel(ebm.networks.mlp([64], units=[512, 512], seed=0))
    model.compile("adam", "score_matching")
    x = np.random.default_rng(0).normal(size=(rows, 64)).astype("float32")
    model.fit(x, batch_size=rows, verbose=0)


WORK = {
    "fit": lambda model: wide(20_000),
    "energy": lambda model: model.energy(np.zeros([200_000_000, 2], "float32")),
    "score": lambda model: model.score(np.zeros([60_000_000, 2], "float32")),
    "laplacian": lambda model: ebm.derivatives.laplacian(model, np.zeros([40_000_000, 2], "float32")),
    "sample": lambda model: ebm.mcmc.sample(
        model.unnormalized_log_prob, tf.zeros([100_000, 2]), ebm.mcmc.MALA(0.1), num_results=10_000, seed=0
    ),
    "summarize": lambda model: ebm.mcmc.summarize(
        model.unnormalized_log_prob, tf.zeros([40_000_000, 2]), ebm.mcmc.MALA(0.1), num_results=100, seed=0
    ),
    "draw": lambda model: ebm.EnergyDistribution(model).draw(40_000_000, seed=0),
}


def limited(work):
    """Does something with less memory than it needs."""
    model = model_of(0)
    model.compile("adam", "denoising_score_matching")
    model.fit(X, verbose=0)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + EXTRA, now + EXTRA))
    try:
        WORK[work](model)
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"    {text}", flush=True)
        faults = [] if "out of memory" in text.lower() or "MemoryError" in text else [f"unclear: {text}"]
    else:
        return "done", []
    model.fit(X, verbose=0)
    return "refused", faults


def main():
    """Prints what was tried, and how it ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--json")
    options = parser.parse_args()
    results = {}
    for work in options.work:
        ending, faults = tried(limited, work)
        results[work] = {"ending": ending, "faults": faults}
        print(f"{work:12s} {ending}  {'; '.join(faults)}", flush=True)
    faults = sum(bool(one["faults"]) for one in results.values())
    print(f"{len(results)} tried, {faults} with faults")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
