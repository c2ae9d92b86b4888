"""How long a training step takes with one process and with two, and where more of them stop to pay.

Measured, on one core for each process: the step of one process for several batches, each once as `fit` runs it and once
in a cluster of one machine, which has the host's work of a distributed step without an exchange; the all-reduces of a
step, counted in its graph, with their bytes; and the time of an all-reduce of several sizes between two processes.

The model, for n processes that share a batch of B rows:

    step(n, B) = work(B / n) + Σ over messages: 2 (n - 1) (latency + bytes / (n bandwidth))

`work` is a line through the measured steps in a cluster of one machine, and the sum is a ring all-reduce, TensorFlow's
own. Nothing is fitted to the step of two processes: it is predicted and then measured, and so is the all-reduce of
four. The model then says for how many processes a step of a fixed batch is shortest, and for how many a step is still
half work if each process has a batch of its own: with the constants measured here, and with those of GPUs and networks
that are assumed (options).

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
# Numbers in an all-reduce.
MESSAGES = (1, 10_000, 100_000, 1_000_000)
FOUR_BYTES = 4
# Batches in a large batch.
MANY = 256


# --- the model ------------------------------------------------------------------------------------------------------


def exchange_time(bytes_of_messages, number, latency, bandwidth):
    """Seconds that a step of `number` processes spends in ring all-reduces of these messages, one after the other."""
    hops = 2 * (number - 1)
    return sum(hops * (latency + size / (number * bandwidth)) for size in bytes_of_messages)


def step_time(rows, number, bytes_of_messages, fixed, per_row, latency, bandwidth):
    """Seconds of a step of `number` processes with `rows` rows in all."""
    return fixed + per_row * rows / number + exchange_time(bytes_of_messages, number, latency, bandwidth)


def line(x, y):
    """The intercept and the slope of the line through points, by least squares; neither is negative."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    slope = max(slope, 0.0)
    return max(mean_y - slope * mean_x, 0.0), slope


def constants_of(seconds):
    """Latency and bandwidth of a ring of two, from the time of all-reduces of `MESSAGES` numbers."""
    # an all-reduce of two: 2 (latency + bytes / (2 bandwidth)) = 2 latency + bytes / bandwidth
    small, large = seconds[MESSAGES[0]], seconds[MESSAGES[-1]]
    return small / 2, FOUR_BYTES * (MESSAGES[-1] - MESSAGES[0]) / max(large - small, 1e-9)


def powers_of_two(most):
    """1, 2, 4, ..., up to `most`."""
    return [2**i for i in range(most.bit_length())]


def best_number(rows, most, *constants):
    """The number of processes, a power of two up to `most`, with the shortest step, and that step's seconds."""
    return min((step_time(rows, n, *constants), n) for n in powers_of_two(most))[::-1]


def last_efficient(rows, most, *constants):
    """The largest number of processes, a power of two up to `most`, with `rows` rows each, whose step is half work."""
    alone = step_time(rows, 1, *constants)
    return max(n for n in powers_of_two(most) if step_time(rows * n, n, *constants) <= 2 * alone)


# --- what the processes measure -------------------------------------------------------------------------------------


def step_seconds(size, width, batch, strategy):
    """The median time of a training step of denoising score matching, in `fit`, and the bytes of its all-reduces.

    `around` is what a `fit` of one epoch takes before and after it. Under a strategy, TensorFlow's iterators over
    several devices have a thread that tunes them, and their end waits for it, up to as long again as the epoch took.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    import tfp_ebm as ebm

    graphs = []

    class Model(ebm.EnergyModel):
        """Keeps the graphs of its steps."""

        def train_step(self, data):
            """See Keras."""
            graph = tf.compat.v1.get_default_graph()
            while isinstance(graph, tf.Graph) and graph not in graphs:
                graphs.append(graph)
                graph = getattr(graph, "outer_graph", None)
            return super().train_step(data)

    x = np.random.default_rng(0).normal(size=(batch * STEPS, size)).astype("float32")
    with strategy.scope():
        model = Model(ebm.networks.mlp([size], units=[width, width], seed=0))
        model.compile(keras.optimizers.Adam(1e-4), "denoising_score_matching")

    class Epochs(keras.callbacks.Callback):
        """Notes when an epoch begins and ends."""

        def on_epoch_begin(self, epoch, logs=None):
            """See Keras."""
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            """See Keras."""
            self.seconds = time.perf_counter() - self.start

    model.fit(x, batch_size=batch, verbose=0)
    times, waits, epoch = [], [], Epochs()
    for _ in range(REPEATS):
        start = time.perf_counter()
        model.fit(x, batch_size=batch, verbose=0, callbacks=[epoch])
        times.append(epoch.seconds / STEPS)
        waits.append(time.perf_counter() - start - epoch.seconds)
    operations = [operation for graph in graphs for operation in graph.get_operations()]
    messages = [
        operation.inputs[0].shape.num_elements() * operation.inputs[0].dtype.size
        for operation in operations
        if operation.type.startswith("CollectiveReduce")
    ]
    return {
        "seconds": sorted(times)[REPEATS // 2],
        "spread": (min(times), max(times)),
        "around": sorted(waits)[REPEATS // 2],
        "messages": messages,
    }


def exchange_seconds(strategy, size):
    """The median time of one all-reduce of `size` float32 numbers."""
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
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        many()
        times.append((time.perf_counter() - start) / 20)
    return sorted(times)[REPEATS // 2]


def work(kind, batches, names, path):
    """What each process does: measures steps or exchanges; the first of a cluster writes them."""
    import tensorflow as tf

    is_plain = kind == "plain"
    strategy = tf.distribute.get_strategy() if is_plain else tf.distribute.MultiWorkerMirroredStrategy()
    if kind == "exchange":
        found = {size: exchange_seconds(strategy, size) for size in MESSAGES}
    else:
        found = {name: {batch: step_seconds(*SIZES[name], batch, strategy) for batch in batches} for name in names}
    if is_plain or strategy.cluster_resolver.task_id == 0:
        path.write_text(json.dumps(found))


def measured(kind, clusters, number, batches, names, cores):
    """Runs `clusters` clusters of `number` processes each, all at the same time; returns what the first one wrote."""
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for cluster in range(clusters):
            workers = [f"127.0.0.1:{port}" for port in free_ports(number)]
            for index in range(number):
                environment = dict(os.environ)
                if kind != "plain":
                    task = {"type": "worker", "index": index}
                    environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
                command = [sys.executable, __file__, "--kind", kind, "--batches", *map(str, batches)]
                command += ["--path", str(pathlib.Path(folder) / f"out {cluster}"), "--sizes", *names]
                if hasattr(os, "sched_setaffinity"):
                    command = ["taskset", "-c", str(cores[len(processes) % len(cores)]), *command]
                processes.append(subprocess.Popen(command, env=environment))
        if any(process.wait() for process in processes):
            raise SystemExit("a process failed")
        found = json.loads((pathlib.Path(folder) / "out 0").read_text())
    if kind == "exchange":
        return {int(size): seconds for size, seconds in found.items()}
    return {name: {int(batch): entry for batch, entry in steps.items()} for name, steps in found.items()}


# --- what is printed ------------------------------------------------------------------------------------------------


def print_network(name, batch, results, latency, bandwidth, options):
    """Prints steps of one network: measured and predicted for two processes, and the prediction for more."""
    of_one, messages = results["one"][name], results["two"][name][batch]["messages"]
    batches = sorted(of_one)
    fixed, per_row = line(batches, [of_one[rows]["seconds"] for rows in batches])
    constants = (messages, fixed, per_row)
    two, plain = results["two"][name][batch], results["plain"][name]
    predicted = step_time(batch, 2, *constants, latency, bandwidth)
    exchanged = exchange_time(messages, 2, latency, bandwidth)
    print(f"\n{name}: {len(messages)} all-reduces of {sum(messages) / 1e3:.1f} kB in all, batch {batch}; ms")
    rows = ", ".join(f"{r}: {1e3 * plain[r]['seconds']:.2f} | {1e3 * of_one[r]['seconds']:.2f}" for r in batches)
    print(f"  one process by its rows, alone | in a cluster of one:  {rows}")
    low, high = two["spread"]
    print(
        f"  two processes: predicted {1e3 * predicted:.2f} (of which exchange {1e3 * exchanged:.2f}), measured "
        f"{1e3 * two['seconds']:.2f} ({1e3 * low:.2f} to {1e3 * high:.2f}), "
        f"ratio {two['seconds'] / predicted:.2f}; around an epoch of {STEPS} steps {1e3 * two['around']:.0f}"
    )
    gpu = (messages, options.gpu_fixed, per_row * options.gpu_row_ratio)
    network = (options.network_latency, options.network_bandwidth)
    machines = {
        "64 processes as here": (64, *constants, latency, bandwidth),
        "64 machines, assumed network": (64, *constants, *network),
        "8 GPUs of a machine, assumed": (8, *gpu, options.gpu_latency, options.gpu_bandwidth),
        "64 machines of a GPU, assumed": (64, *gpu, *network),
    }
    found = {"predicted": predicted, "measured": two["seconds"], "messages": messages}
    for what, (most, *of_machine) in machines.items():
        number, seconds = best_number(batch, most, *of_machine)
        many, seconds_of_many = best_number(MANY * batch, most, *of_machine)
        speedup = step_time(MANY * batch, 1, *of_machine) / seconds_of_many
        last = last_efficient(batch, most, *of_machine)
        print(
            f"  {what:31s}  shortest step of {batch} rows: {number} ({1e3 * seconds:.2f} ms), of {MANY * batch}: "
            f"{many} ({speedup:.1f} × the speed of one); {batch} rows on each: work is half of a step up to {last}"
        )
        found[what] = {"best": number, "best_of_many": many, "speedup_of_many": speedup, "last_efficient": last}
    return found


def main():
    """Measures, predicts, and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    assumed = parser.add_argument_group("assumed, not measured")
    assumed.add_argument("--gpu-fixed", type=float, default=5e-4, help="seconds of a step on a GPU for no rows")
    assumed.add_argument("--gpu-row-ratio", type=float, default=1e-3, help="time for a row, to that of a core here")
    assumed.add_argument("--gpu-latency", type=float, default=1e-5, help="seconds of a hop between GPUs of a machine")
    assumed.add_argument("--gpu-bandwidth", type=float, default=2e11, help="bytes a second between them")
    assumed.add_argument("--network-latency", type=float, default=5e-5, help="seconds of a hop between machines")
    assumed.add_argument("--network-bandwidth", type=float, default=1e10, help="bytes a second between them")
    parser.add_argument("--kind", choices=("plain", "worker", "exchange"), help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--json")
    options = parser.parse_args()
    if options.kind:
        work(options.kind, options.batches, options.sizes, options.path)
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    batch, names = options.batch, options.sizes
    shares = [batch // 4, batch // 2, batch]
    exchange = measured("exchange", 1, 2, [batch], names, cores)
    of_four = measured("exchange", 1, 4, [batch], names, cores)
    results = {
        # two at a time, as the two processes of a cluster are
        "plain": measured("plain", 2, 1, shares, names, cores),
        "one": measured("worker", 2, 1, shares, names, cores),
        "two": measured("worker", 1, 2, [batch], names, cores),
    }
    latency, bandwidth = constants_of(exchange)
    print(f"a hop: {1e3 * latency:.3f} ms, {bandwidth / 1e6:.0f} MB/s; all-reduces in ms, measured (predicted):")
    for number, seconds in ((2, exchange), (4, of_four)):
        parts = [
            f"{size}: {1e3 * found:.2f} ({1e3 * exchange_time([FOUR_BYTES * size], number, latency, bandwidth):.2f})"
            for size, found in seconds.items()
        ]
        print(f"  {number} processes on {len(cores)} cores, by numbers: {', '.join(parts)}")
    found = {name: print_network(name, batch, results, latency, bandwidth, options) for name in names}
    if options.json:
        everything = {"exchange": exchange, "exchange_of_four": of_four, **results, "model": found}
        pathlib.Path(options.json).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
