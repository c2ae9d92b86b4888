"""Times contestants fairly: each in a process of its own on the same cores, in turns, in a new order each round.

A drift of the machine then affects all alike: read the minimum first; the quartiles show how disturbed the machine
was. Peak memory is that of the process, less what it had after its imports. A peer that is not installed, fails, or
takes longer or more memory than the limits is listed with the reason.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import multiprocessing
import os
import random
import resource
import statistics
import sys
import time

from peers import PRODUCTS, Case, Contestant

PRODUCT = Case("matrix product", (256,), 16384, (256,))


def peak_mebibytes():
    """Returns the peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(connection, contestant, case, objective, threads, memory_limit):
    """Serves in a contestant's process: imports, builds, then runs the requested steps and returns the seconds.

    The process sees `threads` cores, whatever its framework would take. What frameworks print is dropped;
    failures go through the connection. What `run` returns is sent back; at the end, the result of
    `run.report()` is sent too, if there is one.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    resource.setrlimit(resource.RLIMIT_DATA, (memory_limit << 30, memory_limit << 30))
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
        peak = peak_mebibytes() - imported
        connection.send({"peak_mib": peak, "report": run.report() if hasattr(run, "report") else {}})
    except Exception as error:  # a peer's failure is a result, whatever it is
        connection.send({"reason": f"failed: {type(error).__name__}: {str(error).splitlines()[0][:90]}"})


@dataclasses.dataclass
class Runner:
    """The parent's side of a contestant: its process and its results."""

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
    report: dict = dataclasses.field(default_factory=dict)

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
        """Makes the first call, warms up, and sets the number of steps in a round."""
        if answer := self.ask(self.unit, seconds=2 * self.limit):
            self.first_call, self.first_loss = answer["seconds"], answer["loss"]
            for _ in range(2):
                if answer := answer and self.ask(self.unit, seconds=self.limit):
                    units = int(seconds_per_round / answer["seconds"])
                    self.num_steps = self.unit * max(1, min(units, 1000))

    def time(self):
        """Times one round."""
        if answer := self.ask(self.num_steps, seconds=10 * self.limit):
            self.spent += answer["seconds"]
            self.milliseconds.append(1e3 * answer["seconds"] / self.num_steps)

    def end(self):
        """Fetches peak memory and the report, and ends the process."""
        if not self.reason and (answer := self.ask(None, seconds=2 * self.limit)):
            self.peak_mib, self.report = answer["peak_mib"], answer["report"]
        self.process.join()


def measure(case, entries, contestants, options):
    """Times all entries (contestant, objective) of a case, and matrix products, in interleaved rounds; a row for each.

    Args:
      case: the network and batch that they run.
      entries: pairs of names.
      contestants: by name.
      options: `contestants` (only these, if any), `threads`, `memory_limit`, `limit`, `seconds`, `rounds`, `budget`.
    """
    context, family = multiprocessing.get_context("spawn"), entries[0][1]
    contestants: dict[str, Contestant] = contestants | PRODUCTS
    entries = [entry for entry in entries if not options.contestants or entry[0] in options.contestants]
    runners = []
    for name, objective in [*entries, *((name, "product") for name in PRODUCTS)]:
        ours, theirs = context.Pipe()
        arguments = (contestants[name], of_entry(case, name), objective, options.threads, options.memory_limit)
        process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
        process.start()
        theirs.close()
        runners.append(Runner(name, objective, contestants[name].unit, process, ours, options.limit))
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
    """Returns the case that a contestant runs: matrix products have their own."""
    return PRODUCT if name in PRODUCTS else case


def row(runner, case):
    """Returns what is reported of a contestant."""
    result = {"case": case.name, "contestant": runner.name, "loss": runner.objective, "reason": runner.reason}
    if runner.reason:
        return result
    times = runner.milliseconds
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else 3 * times
    return (
        result
        | {
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
        | runner.report
    )


def fastest(rows, case, loss, names):
    """Returns the least time of those contestants, or None if none of them ran."""
    times = [
        r["ms_min"]
        for r in rows
        if not r["reason"] and (r["case"], r["loss"]) == (case, loss) and r["contestant"] in names
    ]
    return min(times, default=None)


def product_rate(rows):
    """Returns the better rate of a large matrix product, in GFLOP/s, measured in the same rounds."""
    return max((r["gflops"] for r in rows if r["loss"] == "product" and not r["reason"]), default=float("nan"))


def add_options(parser, seconds, rounds=30):
    """Adds the options of measuring, for all benchmarks of this kind."""
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seconds", type=float, default=seconds, help="length of a round of one contestant")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds after which it gets no more than 3 rounds")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds that a step may take; twice in the first")
    parser.add_argument("--memory-limit", type=int, default=8, help="GiB that a contestant may hold")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")


def prepare(options, packages):
    """Makes the settings that all processes inherit; prints and returns the versions of what is compared."""
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu", OMP_NUM_THREADS=str(options.threads))
    versions = {}
    for package in ("tfp_ebm", "tensorflow", "keras", *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    print(", ".join(f"{name} {version}" for name, version in versions.items()), f"; {options.threads} threads")
    if (load := os.getloadavg()[0]) > 0.5:
        # By default PyTorch's threads wait for each other by spinning, a hundred times too long where a core is taken.
        os.environ["OMP_WAIT_POLICY"] = "passive"
        print(f"THE MACHINE IS BUSY (load {load:.1f}): OMP_WAIT_POLICY=passive, to be fair to PyTorch; better wait.")
    return versions
