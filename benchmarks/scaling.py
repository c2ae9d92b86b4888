"""How long a training step takes with one process and with two, and what their exchange costs alone.

Each process has one core. The batch is that of all processes together. Printed for denoising score matching by networks
of three sizes: the step of one process with the batch, with half of it, and of two processes with the batch; the bytes
of the parameters, which two processes exchange in each step; and the time of an all-reduce of one number and of a
million. There is no model of more processes: the sum of these parts is far below the step of two processes, and what
Keras and TensorFlow add to it has not been taken apart.

    python benchmarks/scaling.py [--batch 256] [--json out.json]
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
sys.path.insert(0, str(pathlib.Path(__file__).parent / "reliability"))

from workers import free_ports

# Coordinates and width of the networks: two hidden layers.
SIZES = {"2-128": (2, 128), "64-256": (64, 256), "784-512": (784, 512)}
STEPS, REPEATS = 40, 5


def step_seconds(size, width, batch, strategy):
    """The time of a training step of denoising score matching, in `fit`; the least of a few."""
    import keras
    import numpy as np

    import tfp_ebm as ebm

    x = np.random.default_rng(0).normal(size=(batch * STEPS, size)).astype("float32")
    with strategy.scope():
        model = ebm.EnergyModel(ebm.networks.mlp([size], units=[width, width], seed=0))
        model.compile(keras.optimizers.Adam(1e-4), "denoising_score_matching")
    model.fit(x, batch_size=batch, verbose=0)
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        model.fit(x, batch_size=batch, verbose=0)
        best = min(best, time.perf_counter() - start)
    parameters = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    return best / STEPS, 4 * parameters, len(model.trainable_variables)


def exchange_seconds(strategy, size):
    """The time of one all-reduce of `size` float32 numbers."""
    import tensorflow as tf

    def each():
        context, value = tf.distribute.get_replica_context(), tf.ones([size])
        for _ in range(20):
            value = 0.5 * context.all_reduce(tf.distribute.ReduceOp.SUM, value)
        return value

    @tf.function
    def many():
        return strategy.run(each)

    many()
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        many()
        best = min(best, time.perf_counter() - start)
    return best / 20


def worker(batch, names, path):
    """What each of two processes does: measures exchanges and steps, and writes them."""
    import tensorflow as tf

    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    exchange = {size: exchange_seconds(strategy, size) for size in (1, 1_000_000)}
    steps = {name: step_seconds(*SIZES[name], batch, strategy)[0] for name in names}
    if strategy.cluster_resolver.task_id == 0:
        path.write_text(json.dumps({"exchange": exchange, "steps": steps}))


def alone(batch, names, path):
    """What one process does: measures the steps of a batch and of half of it."""
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    found = {}
    for name in names:
        size = SIZES[name]
        seconds, parameters, number = step_seconds(*size, batch, strategy)
        found[name] = {
            "seconds": seconds,
            "half": step_seconds(*size, batch // 2, strategy)[0],
            "bytes": parameters,
            "variables": number,
        }
    path.write_text(json.dumps(found))


def measured(kind, number, batch, names, cores):
    """Runs processes of this file, each on its own cores, and returns what the first one wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "out"
        workers = [f"127.0.0.1:{port}" for port in free_ports(number)]
        processes = []
        for index in range(number):
            environment = dict(os.environ)
            if number > 1:
                cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
                environment["TF_CONFIG"] = json.dumps(cluster)
            command = [sys.executable, __file__, "--kind", kind, "--batch", str(batch)]
            command += ["--path", str(path), "--sizes", *names]
            if hasattr(os, "sched_setaffinity"):
                command = ["taskset", "-c", str(cores[index % len(cores)]), *command]
            processes.append(subprocess.Popen(command, env=environment))
        if any(process.wait() for process in processes):
            raise SystemExit("a process failed")
        return json.loads(path.read_text())


def main():
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--kind", choices=("alone", "worker"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.kind:
        (alone if options.kind == "alone" else worker)(options.batch, options.sizes, options.path)
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    one = measured("alone", 1, options.batch, options.sizes, cores)
    two = measured("worker", 2, options.batch, options.sizes, cores)
    for number, seconds in two["exchange"].items():
        print(f"all-reduce of {number} numbers between two processes on loopback: {1e3 * seconds:.2f} ms")
    print(f"batch {options.batch}, one core each; ms a step: one process | with half the batch | two processes | kB")
    for name, entry in one.items():
        times = (entry["seconds"], entry["half"], two["steps"][name])
        print(f"  {name:8s} {' | '.join(f'{1e3 * value:7.2f}' for value in times)} | {entry['bytes'] / 1e3:7.0f}")
    results = {"exchange": two["exchange"], "one": one, "two": two["steps"]}
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
