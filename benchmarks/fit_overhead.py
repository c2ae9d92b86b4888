"""What Keras's `fit` costs over the bare compiled training step.

A 2×128 network, batches of 256 fresh rows, denoising score matching and Adam. Each round times, in random order, the
step called in a Python loop from one compiled function, and `fit` at several `steps_per_execution`; rounds are
repeated and their medians and spreads printed.

    python benchmarks/fit_overhead.py [--steps 2000] [--rounds 7] [--json out.json]
"""

import argparse
import json
import os
import random
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.energy.data import shuffled_batches

BATCH = 256


def compiled_model(steps_per_execution):
    """Returns the model that every variant trains."""
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[128, 128], seed=0))
    model.compile(
        keras.optimizers.Adam(1e-3), ebm.losses.DenoisingScoreMatching(), steps_per_execution=steps_per_execution
    )
    return model


def bare_steps(batches):
    """`train_step` under `tf.function`, called from Python with the next batch of the same pipeline."""
    model = compiled_model(1)
    model.fit(batches, steps_per_epoch=1, verbose=0, shuffle=False)
    step = tf.function(lambda x: model.train_step((x,)))

    def run(num_steps):
        iterator = iter(batches)
        for _ in range(num_steps):
            logs = step(next(iterator))
        return float(logs["loss"])

    return run


def bare_loop(batches):
    """The same step in a loop inside one compiled function: no Python between steps at all."""
    model = compiled_model(1)
    model.fit(batches, steps_per_epoch=1, verbose=0, shuffle=False)

    @tf.function
    def loop(iterator, num_steps):
        loss = 0.0
        for _ in tf.range(num_steps):
            loss = model.train_step((next(iterator),))["loss"]
        return loss

    return lambda num_steps: float(loop(iter(batches), tf.constant(num_steps)))


def fit(batches, steps_per_execution):
    """Keras's `fit`, on the same pipeline."""
    model = compiled_model(steps_per_execution)

    def run(num_steps):
        model.fit(batches, steps_per_epoch=num_steps, epochs=1, verbose=0, shuffle=False)

    return run


def main():
    """Times all variants and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json")
    options = parser.parse_args()

    batches = shuffled_batches(ebm.datasets.two_moons(50_000, seed=0), BATCH, seed=0)
    roads = {
        "bare step, called from Python": bare_steps(batches),
        "bare step, compiled loop": bare_loop(batches),
        **{f"fit, steps_per_execution={n}": fit(batches, n) for n in (1, 10, 100, "auto")},
    }
    for run in roads.values():
        run(200)  # traces, and warms up
    times = {name: [] for name in roads}
    for _ in range(options.rounds):
        for name in random.sample(list(roads), len(roads)):
            start = time.perf_counter()
            roads[name](options.steps)
            times[name].append(1e3 * (time.perf_counter() - start) / options.steps)
    reference = statistics.median(times["bare step, called from Python"])
    print(f"{'variant':34s} {'ms a step':>10s} {'min':>7s} {'max':>7s} {'/ bare':>7s}")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:34s} {median:10.3f} {min(values):7.3f} {max(values):7.3f} {median / reference:7.2f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(
                {"steps": options.steps, "batch": BATCH, "ms_per_step": times, "numpy": np.__version__}, file, indent=2
            )


if __name__ == "__main__":
    main()
