"""Draws samples and computes log-likelihoods on two devices, and compares them bit for bit with those of one device.

The devices are two logical processors of this machine. Each has its own copy of the model, and its own share of the
chains and rows, with a seed that follows from the number of the share. Tried: five kernels in graph mode and under XLA,
energies and scores.

    python benchmarks/reliability/devices.py [--json out.json]
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf

import tfp_ebm as ebm

TWO, ONE = ("CPU:0", "CPU:1"), ("CPU:0", "CPU:0")
CHAINS, ROWS = 300, 1001


def on(devices, path, work):
    """The results of the shares of some work, each on its device, joined."""

    def share(i):
        with tf.device(devices[i]):
            return work(keras.saving.load_model(path), i, len(devices))

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return np.concatenate(list(pool.map(share, range(len(devices)))))


def chains(kernel, jit_compile):
    """Work: chains of a kernel, of which each device has its share."""

    def work(model, i, number):
        p = ebm.EnergyDistribution(model, kernel=kernel, num_burnin_steps=5)
        seed = (0, i)
        return p.sample_chains(3, CHAINS // number, seed=seed, jit_compile=jit_compile).states.numpy().swapaxes(0, 1)

    return work


def rows(method):
    """Work: a method of the model on rows, of which each device has its share."""
    x = np.random.default_rng(0).normal(size=(ROWS, 2)).astype("float32")
    return lambda model, i, number: getattr(model, method)(np.array_split(x, number)[i]).numpy()


def model_at(path):
    """Writes a small model."""
    x = ebm.datasets.two_moons(500, seed=0)
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[16], seed=0), base_measure=ebm.fit_base(x))
    model.adapt(x)
    model.save(path)


def main():
    """Prints what was compared, and what differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json")
    options = parser.parse_args()
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
    m, results = ebm.mcmc, {}
    kernels = {
        "MALA": m.MALA(0.3),
        "adaptive HMC": m.Adaptive(m.HMC(0.3, 3)),
        "NUTS": m.NUTS(0.3, max_tree_depth=4),
        "random walk": m.RandomWalk(0.5),
        "replica exchange": m.ReplicaExchange(m.MALA(0.3), [1.0, 0.5]),
    }
    work = {
        f"{name}, {'XLA' if xla else 'graph'}": chains(kernel, xla)
        for name, kernel in kernels.items()
        for xla in (False, True)
    }
    work = {**work, "energy": rows("energy"), "score": rows("score")}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model_at(path)
        for name, one in work.items():
            start = time.perf_counter()
            try:
                two, alone = on(TWO, path, one), on(ONE, path, one)
                results[name] = "" if np.array_equal(two, alone) and np.isfinite(two).all() else "other bits"
            except Exception as error:
                results[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            print(
                f"{name:28s} {time.perf_counter() - start:5.1f} s  {results[name] or 'the bits of one device'}",
                flush=True,
            )
    faults = sum(map(bool, results.values()))
    print(f"{len(results)} tried, {faults} with faults")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
