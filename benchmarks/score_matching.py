"""Full training steps (loss, parameter gradient, Adam) of the score-matching losses, beside the peers'.

Every contestant runs in a process of its own on the same cores, with the same initial weights and the same batches, a
different one in every step. The contestants of a case are timed in turns, in an order drawn anew for every round, so
that a drift of the machine hits all alike: read the minimum first, the quartiles tell how disturbed the machine was.
Exact losses must agree on the first batch, or the run says so. Peak memory is that of the process, less what it had
after its imports. "x floor" is the time over that of the step's matrix products (`Case.flops`) at the better rate at
which TensorFlow or PyTorch multiplied large matrices in the same rounds. A peer that is not installed, fails, or takes
longer or more memory than the limits is listed with the reason.

    python benchmarks/score_matching.py [--cases mlp64 convolution] [--losses exact] [--json out.json] [--figure d.png]

The peers: `pip install torch torchebm jax folx optax` (the extra `bench`), and ebmkit from its repository.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import random
import resource
import statistics
import sys
import time

from peers import LEARNING_RATE, PEERS, PRODUCTS, SIGMA, Case, Contestant, repeated

CASES = {
    case.name: case
    for case in (
        Case("mlp2", (2,), 256, (128, 128)),
        Case("mlp64", (64,), 256, (256, 256)),
        Case("mlp784", (784,), 64, (512, 512), chunk_size=112),
        Case("convolution", (8, 8, 1), 128, (64,), filters=(16, 32)),
    )
}
PRODUCT = Case("matrix product", (256,), 16384, (256,))
GROWTH = [Case(f"d={d}", (d,), 128, (256, 256), chunk_size=16) for d in (2, 4, 16, 64, 256, 1024)]


def tfp_ebm(case, objective, mode):
    """The road of a user: the model's own train step, compiled as a graph or by XLA, or Keras's `fit`."""
    import keras
    import tensorflow as tf

    import tfp_ebm as ebm

    if case.filters:
        network = ebm.networks.convnet(case.event_shape, case.filters, units=case.units)
    else:
        network = ebm.networks.mlp(case.event_shape, case.units)
    network.set_weights(case.weights())
    loss = {
        "denoising": lambda: ebm.losses.DenoisingScoreMatching(SIGMA),
        "multiscale": lambda: ebm.losses.MultiscaleDenoisingScoreMatching([SIGMA, 2 * SIGMA, 4 * SIGMA], SIGMA),
        "sliced": ebm.losses.SlicedScoreMatching,
        "exact": ebm.losses.ScoreMatching,
        "chunked": lambda: ebm.losses.ScoreMatching(chunk_size=case.chunk_size),
    }[objective]()
    model = ebm.EnergyModel(network)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss, steps_per_execution=100 if mode == "fit" else 1)
    if mode == "fit":
        batches = tf.data.Dataset.from_tensor_slices(case.batches()).repeat()
        return lambda num_steps: model.fit(batches, steps_per_epoch=num_steps, verbose=0, shuffle=False).history[
            "loss"
        ][0]
    model.optimizer.build(model.trainable_variables)
    step = tf.function(lambda x: model.train_step((x,))["loss"], jit_compile=mode == "XLA")
    return repeated(step, [tf.constant(x) for x in case.batches()])


OURS = {
    f"tfp_ebm {mode}": Contestant(("tfp_ebm",), functools.partial(tfp_ebm, mode=mode), 100 if mode == "fit" else 1)
    for mode in ("graph", "XLA", "fit")
}
STEPS = ("tfp_ebm graph", "tfp_ebm XLA")
CONTESTANTS = OURS | PEERS | PRODUCTS
LOSSES = {
    "denoising": [
        *((name, "denoising") for name in OURS),
        ("tfp_ebm graph", "multiscale"),
        ("tfp_ebm XLA", "multiscale"),
        *((name, "denoising") for name in ("ebmkit", "torchebm", "JAX")),
    ],
    "sliced": [(name, "sliced") for name in (*OURS, "ebmkit", "torchebm", "JAX")],
    "exact": [
        *((name, "exact") for name in OURS),
        ("tfp_ebm graph", "chunked"),
        ("tfp_ebm XLA", "chunked"),
        *((name, "exact") for name in ("ebmkit", "torchebm", "JAX folx", "JAX hessian", "JAX jet")),
    ],
}
# What is aimed at: case, loss, who is to be faster by which factor than whom (the fastest of those named).
TARGETS = [
    *(("mlp64", "exact", [peer], 5.0) for peer in ("ebmkit", "torchebm", "JAX folx")),
    *((case, "sliced", ["ebmkit", "torchebm"], 1.8) for case in ("mlp2", "mlp64")),
    *((case, "sliced", ["JAX"], 1.2) for case in ("mlp2", "mlp64")),
    *((case, "denoising", ["ebmkit", "torchebm"], 1.0) for case in ("mlp2", "mlp64")),
]
FLOOR_TARGET = ("mlp64", "exact", 1.6)


def peak_mebibytes():
    """The most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(connection, name, case, objective, threads, memory_limit):
    """A contestant's process: imports, builds, then runs as many steps as it is asked for, and says how long it took.

    `threads` cores are all it sees, whatever its framework would take. What frameworks tell the terminal is dropped;
    failures go through the connection.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    resource.setrlimit(resource.RLIMIT_DATA, (memory_limit << 30, memory_limit << 30))
    contestant = CONTESTANTS[name]
    try:
        for module in contestant.modules:
            importlib.import_module(module)
    except ImportError as error:
        connection.send({"reason": f"not installed: {error}"})
        return
    imported = peak_mebibytes()
    connection.send({})
    run = None
    try:
        while (num_steps := connection.recv()) is not None:
            start = time.perf_counter()
            run = run or contestant.build(case, objective)
            loss = run(num_steps)
            connection.send({"seconds": time.perf_counter() - start, "loss": loss})
        connection.send({"peak_mib": peak_mebibytes() - imported})
    except Exception as error:  # a peer's failure is a result, whatever it is
        connection.send({"reason": f"failed: {type(error).__name__}: {str(error).splitlines()[0][:90]}"})


@dataclasses.dataclass
class Runner:
    """A contestant from outside: its process, and what became of it."""

    name: str
    objective: str
    unit: int
    process: object
    connection: object
    limit: float
    reason: str | None = None
    first_call: float = 0.0
    first_loss: float = 0.0
    num_steps: int = 1
    spent: float = 0.0
    milliseconds: list = dataclasses.field(default_factory=list)
    peak_mib: float = 0.0

    def ask(self, *request, seconds):
        """Sends a request, if there is one, and waits for the answer."""
        try:
            for message in request:
                self.connection.send(message)
            if self.connection.poll(seconds):
                answer = self.connection.recv()
                self.reason = answer.get("reason", self.reason)
            else:
                what = f"{request[0]} steps" if request else "imports"
                self.reason = f"left out: {what} took over {seconds:g} s"
        except (EOFError, OSError):
            self.reason = "died, likely of the memory limit"
        if self.reason:
            self.process.kill()
            return None
        return answer

    def begin(self, seconds_per_round):
        """First call, warm-up, and how many steps make a round."""
        if answer := self.ask(self.unit, seconds=2 * self.limit):
            self.first_call, self.first_loss = answer["seconds"], answer["loss"]
            for _ in range(2):
                if answer := answer and self.ask(self.unit, seconds=self.limit):
                    units = int(seconds_per_round / answer["seconds"])
                    self.num_steps = self.unit * max(1, min(units, 1000))

    def time(self):
        """One round."""
        if answer := self.ask(self.num_steps, seconds=10 * self.limit):
            self.spent += answer["seconds"]
            self.milliseconds.append(1e3 * answer["seconds"] / self.num_steps)

    def end(self):
        """Peak memory, and the end of the process."""
        if not self.reason and (answer := self.ask(None, seconds=self.limit)):
            self.peak_mib = answer["peak_mib"]
        self.process.join()


def measure(case, entries, options):
    """Times all entries (contestant, loss) of a case, and matrix products, in interleaved rounds; one row for each."""
    context, family = multiprocessing.get_context("spawn"), entries[0][1]
    runners = []
    entries = [entry for entry in entries if not options.contestants or entry[0] in options.contestants]
    for name, objective in [*entries, *((name, "product") for name in PRODUCTS)]:
        ours, theirs = context.Pipe()
        arguments = (theirs, name, of_entry(case, name), objective, options.threads, options.memory_limit)
        process = context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        runners.append(Runner(name, objective, CONTESTANTS[name].unit, process, ours, options.limit))
    for runner in runners:
        runner.ask(seconds=300)
    for runner in runners:
        if not runner.reason:
            runner.begin(options.seconds)
    for i in range(options.rounds):
        for runner in random.sample(runners, len(runners)):
            if not runner.reason and (i < 3 or runner.spent < options.budget):
                runner.time()
    for runner in runners:
        runner.end()
    return [row(runner, case) | {"family": family} for runner in runners]


def of_entry(case, name):
    """The case that a contestant runs: matrix products have their own."""
    return PRODUCT if name in PRODUCTS else case


def row(runner, case):
    """What is reported of a contestant."""
    result = {"case": case.name, "contestant": runner.name, "loss": runner.objective, "reason": runner.reason}
    if runner.reason:
        return result
    times = runner.milliseconds
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else 3 * times
    return result | {
        "ms_min": min(times),
        "ms_median": median,
        "ms_quartiles": [low, high],
        "rounds": len(times),
        "steps_per_round": runner.num_steps,
        "gflops": of_entry(case, runner.name).flops(runner.objective) / min(times) / 1e6,
        "peak_mib": runner.peak_mib,
        "first_call_s": runner.first_call,
        "first_loss": runner.first_loss if runner.unit == 1 else None,
        "load": os.getloadavg()[0],
    }


def fastest(rows, case, loss, names):
    """The least time of those contestants, or None if none of them ran."""
    times = [
        r["ms_min"]
        for r in rows
        if not r["reason"] and (r["case"], r["loss"]) == (case, loss) and r["contestant"] in names
    ]
    return min(times, default=None)


def show(rows, case):
    """Prints the rows of one case and loss family; ratios are to the faster of our own two compiled steps."""
    loss, rate = rows[0]["family"], product_rate(rows)
    ours = fastest(rows, case.name, loss, STEPS)
    print(
        f"\n{case.name}: {loss}, batch {case.batch}, {case.flops(loss) / 1e9:.3g} GFLOP, load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"  {'':26s}{'min ms':>9s}{'median':>9s}{'quartiles':>17s}{'x ours':>8s}{'GFLOP/s':>9s}{'x floor':>8s}"
        f"{'MiB':>7s}{'1st s':>7s}"
    )
    for r in rows:
        label = r["contestant"] + (f" {r['loss']}" if r["loss"] != loss else "")
        if r["reason"]:
            print(f"  {label:26s} {r['reason']}")
            continue
        quartiles = "{:.3f}-{:.3f}".format(*r["ms_quartiles"])
        ratio = r["ms_min"] / ours if ours else float("nan")
        print(
            f"  {label:26s}{r['ms_min']:9.3f}{r['ms_median']:9.3f}{quartiles:>17s}{ratio:8.2f}{r['gflops']:9.1f}"
            f"{rate / r['gflops']:8.2f}{r['peak_mib']:7.0f}{r['first_call_s']:7.1f}"
        )
    values = [
        r["first_loss"] for r in rows if not r["reason"] and r["loss"] in ("exact", "chunked") and r["first_loss"]
    ]
    if values and max(values) - min(values) > 1e-3 * max(map(abs, values)):
        print(f"  THE EXACT LOSSES DISAGREE on the first batch: {values}")
    sys.stdout.flush()


def judge(rows):
    """Prints which targets hold."""
    print("\nTargets (fastest of graph and XLA, by minima)")
    for case, loss, peers, factor in TARGETS:
        ours, theirs = fastest(rows, case, loss, STEPS), fastest(rows, case, loss, peers)
        if ours and theirs:
            verdict = "holds" if theirs / ours >= factor else "FALLS SHORT"
            print(f"  {case} {loss}: {theirs / ours:.2f}x {' / '.join(peers)}, aim {factor:g}x: {verdict}")
    case, loss, factor = FLOOR_TARGET
    group = [r for r in rows if (r["case"], r["family"]) == (case, loss)]
    if ours := fastest(rows, case, loss, STEPS):
        ratio = ours * product_rate(group) * 1e6 / CASES[case].flops(loss)
        verdict = "holds" if ratio <= factor else "FALLS SHORT"
        print(f"  {case} {loss}: {ratio:.2f}x the matrix products alone, aim {factor:g}x: {verdict}")


def product_rate(rows):
    """The better rate of a large matrix product, in GFLOP/s, measured in the same rounds."""
    return max((r["gflops"] for r in rows if r["loss"] == "product" and not r["reason"]), default=float("nan"))


def draw(rows, path):
    """Time and memory of a step against d, for exact, chunked and sliced score matching."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    labels = {"exact": "exact", "chunked": f"exact, {GROWTH[0].chunk_size} directions at a time", "sliced": "sliced"}
    for ax, key, title in zip(axes, ("ms_min", "peak_mib"), ("ms a step", "peak memory, MiB"), strict=True):
        for contestant, loss in dict.fromkeys((r["contestant"], r["loss"]) for r in rows if r["loss"] in labels):
            points = [r for r in rows if (r["contestant"], r["loss"]) == (contestant, loss) and not r["reason"]]
            ours = contestant in OURS
            ax.loglog(
                [int(r["case"].removeprefix("d=")) for r in points],
                [r[key] for r in points],
                "o-" if ours else "x:",
                label=f"{contestant.split()[0]}: {labels[loss]}",
                markersize=4,
            )
        ax.set(xlabel="dimension d", title=title)
        ax.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main():
    """Measures what is asked for, prints the tables, and writes JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--losses", nargs="*", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--contestants", nargs="*", choices=OURS | PEERS, help="only these")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a round of one contestant")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds after which it gets no more than 3 rounds")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds that a step may take; twice in the first")
    parser.add_argument("--memory-limit", type=int, default=8, help="GiB that a contestant may hold")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--figure")
    options = parser.parse_args()
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu", OMP_NUM_THREADS=str(options.threads))

    versions = {}
    for package in ("tfp_ebm", "tensorflow", "keras", "torch", "ebmkit", "torchebm", "jax", "folx", "optax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    print(", ".join(f"{name} {version}" for name, version in versions.items()), f"; {options.threads} threads")
    if (load := os.getloadavg()[0]) > 0.5:
        # By default PyTorch's threads wait for each other by spinning, a hundred times too long where a core is taken.
        os.environ["OMP_WAIT_POLICY"] = "passive"
        print(f"THE MACHINE IS BUSY (load {load:.1f}): OMP_WAIT_POLICY=passive, to be fair to PyTorch; better wait.")
    rows, growth = [], []
    for case in map(CASES.get, options.cases):
        for loss in options.losses:
            entries = [entry for entry in LOSSES[loss] if entry[1] != "chunked" or case.chunk_size]
            rows += (measured := measure(case, entries, options))
            show(measured, case)
    judge(rows)
    if options.figure:
        entries = [*(("tfp_ebm graph", loss) for loss in ("exact", "chunked", "sliced")), ("ebmkit", "exact")]
        for case in GROWTH:
            growth += (measured := measure(case, entries, options))
            show(measured, case)
        draw(growth, options.figure)
    if options.json:
        with open(options.json, "w") as file:
            report = {"versions": versions, "threads": options.threads}
            json.dump(report | {"rows": rows, "growth": growth}, file, indent=2)


if __name__ == "__main__":
    main()
