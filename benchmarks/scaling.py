"""How training scales: step times of one and two processes, and a model of bytes and messages for more of them.

A step of k workers, each with the rows B/k of a batch B, takes about

    t(k) = a + c·B/k + o + m·(k − 1)·l + 2 (k − 1)/k · p / w            (ring all-reduce)

with a the time that does not depend on rows, c the time of a row, o what Keras and TensorFlow add to each step where
several processes train, p the bytes of the parameters (their gradient is what is exchanged), m the number of
all-reduces, l the time of a message and w the bytes per second of a link. Persistent chains also exchange the moved
states, B·event·4 bytes, to which each worker contributes its share. The benchmark measures a and c in one process, l, w
and o (by a tiny network) with two processes on loopback. It predicts t(2) of larger networks, and measures it.

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
# The network that the overhead of a step is measured with.
TINY = {"2-8": (2, 8)}
STEPS, REPEATS = 40, 5
# Assumed for the predictions: seconds of a message and bytes per second of a link, and how much faster a device is than
# the two cores measured here. These three are no measurements.
LINKS = {
    "8 GPUs, NVLink": (8, 10e-6, 200e9, 50.0),
    "64 machines, 10 Gbit/s": (64, 50e-6, 1.1e9, 1.0),
    "64 machines with a GPU, 100 Gbit/s": (64, 20e-6, 11e9, 50.0),
}


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
    steps = {name: step_seconds(*(SIZES | TINY)[name], batch, strategy)[0] for name in names}
    if strategy.cluster_resolver.task_id == 0:
        path.write_text(json.dumps({"exchange": exchange, "steps": steps}))


def alone(batch, names, path):
    """What one process does: measures the steps of a batch and of half of it."""
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    found = {}
    for name in names:
        size = (SIZES | TINY)[name]
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


def predicted(one, batch, number, latency, bandwidth, overhead, speed=1.0):
    """The seconds of a step of `number` workers, by the model above."""
    row = 2.0 * (one["seconds"] - one["half"]) / batch
    fixed = max(one["seconds"] - row * batch, 0.0)
    # gradients are exchanged in one pack, the counts of rows and the check of finite numbers in two more
    exchange = 3 * (number - 1) * latency + 2 * (number - 1) / number * one["bytes"] / bandwidth
    return (fixed + row * batch / number) / speed + overhead + exchange


def main():
    """Prints what was measured, what the model says of it, and what it says of more workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--sizes", nargs="+", choices=SIZES | TINY, default=list(SIZES))
    parser.add_argument("--kind", choices=("alone", "worker"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.kind:
        (alone if options.kind == "alone" else worker)(options.batch, options.sizes, options.path)
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    sizes = [*TINY, *options.sizes]
    one = measured("alone", 1, options.batch, sizes, cores)
    two = measured("worker", 2, options.batch, sizes, cores)
    latency = two["exchange"]["1"]
    bandwidth = 4e6 / max(two["exchange"]["1000000"] - latency, 1e-9)  # 2 (k − 1)/k = 1 for two
    (tiny,) = TINY
    overhead = max(two["steps"][tiny] - predicted(one[tiny], options.batch, 2, latency, bandwidth, 0.0), 0.0)
    print(f"all-reduce of two processes on loopback: {1e6 * latency:.0f} us a message, {bandwidth / 1e9:.2f} GB/s")
    print(f"overhead of a step of several processes: {1e3 * overhead:.2f} ms")
    print(f"batch {options.batch}, one core each; ms a step: one process | two measured | two predicted")
    results = {
        "latency": latency,
        "bandwidth": bandwidth,
        "overhead": overhead,
        "one": one,
        "two": two["steps"],
        "predicted": {},
    }
    for name, entry in one.items():
        guess = predicted(entry, options.batch, 2, latency, bandwidth, overhead)
        results["predicted"][name] = guess
        print(f"  {name:8s} {1e3 * entry['seconds']:7.2f} | {1e3 * two['steps'][name]:7.2f} | {1e3 * guess:7.2f}")
    print("speed-up at the same batch of each device, by the model (its constants for these are assumed):")
    for label, (number, message, link, speed) in LINKS.items():
        line = []
        for name, entry in one.items():
            single = entry["seconds"] / speed
            together = predicted(entry, options.batch * number, number, message, link, overhead, speed)
            line.append(f"{name} {number * single / together:.1f}")
        print(f"  {label:36s} {'   '.join(line)}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
