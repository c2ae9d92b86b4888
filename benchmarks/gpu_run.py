"""Runs the programs of `gpu.py` with JAX alone: checks their results, and times them beside the peers.

JAX's PJRT client compiles and runs each program on the first device that JAX finds, a GPU if there is one; TensorFlow
and this package are not needed. The results of the first call are compared with the stored ones. Then every contestant
makes some steps to warm up and 20 rounds of steps; a round ends when its last step has ended on the device. Given are
the median and the quartiles of the time of a step (of a kernel step, for chains). "GEMM" is the rate of the matrix
products over that of a large matrix product in the same precision on the same device. Memory is that of arguments,
results and temporaries as the compiler plans them; for PyTorch, the peak of its allocator on a GPU.

The peers, where they are installed: ebmkit and torchebm, eagerly and with their loss compiled by `torch.compile`, and
JAX (with folx for exact score matching; blackjax and numpyro for chains), from the same weights, in float32. Their
persistent chains are Langevin's without acceptance, and here MALA with a global move.
TensorFloat-32 is off for all, unless `--tf32` is given.

    python benchmarks/gpu_run.py programs [--only denoising] [--peers none] [--json out.json]

It needs `jax[cuda12]`; the peers: `pip install torch torchebm optax folx blackjax numpyro`, and ebmkit.
"""

import argparse
import functools
import importlib.metadata
import json
import logging
import os
import pathlib
import statistics
import time
from unittest import mock

import numpy as np

ROUNDS, SECONDS_PER_ROUND, MAX_STEPS = 20, 0.05, 1000
# An entry agrees if it differs by less than this times (its size + the root mean square of its array).
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
# The share of entries that must agree. A rounding error can turn an acceptance, and then a chain goes another way; or
# the sign of a gradient near 0, by which Adam's first step divides.
SHARE = {"step": 0.98, "chain": 0.9}
STEP_PEERS = {
    "denoising": ("ebmkit", "torchebm", "JAX"),
    "sliced": ("ebmkit", "torchebm", "JAX"),
    "exact": ("ebmkit", "torchebm", "JAX folx"),
}


class Executable:
    """A program compiled for a device by JAX's PJRT client; called with a list of arrays, returns one.

    The functions of JAX that do this are not public: they are those of jax 0.10.
    """

    def __init__(self, serialized, device):
        from jax._src import compiler
        from jax._src.interpreters import mlir
        from jax._src.lib import _jax, xla_client
        from jax._src.lib.mlir import ir

        computation = xla_client.XlaComputation(serialized)
        with mlir.make_ir_context():
            module = ir.Module.parse(_jax.mlir.xla_computation_to_mlir_module(computation))
            settings = compiler.get_compile_options(num_replicas=1, num_partitions=1)
            devices = xla_client.DeviceList((device,))
            self.loaded = compiler.backend_compile_and_load(device.client, module, devices, settings, [])

    def __call__(self, arguments):
        """Runs the program."""
        results = self.loaded.execute_sharded(list(arguments)).disassemble_into_single_device_arrays()
        return [shards[0] for shards in results]

    def peak_bytes(self):
        """Returns the memory of arguments, results and temporaries; what is overwritten in place counts once."""
        stats = self.loaded.get_compiled_memory_stats()
        sizes = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
        return sizes - stats.alias_size_in_bytes


class Program:
    """A program of the list and its files: `run(num_steps)` makes calls that go on from each other."""

    def __init__(self, entry, folder, device):
        import jax

        self.entry = entry
        with np.load(folder / entry["arrays"]) as arrays:
            self.expected = [arrays[f"result_{i}"] for i in range(entry["num_results"])]
            arguments = [arrays[f"argument_{i}"] for i in range(entry["num_arguments"])]
        with jax.enable_x64(True):  # counters are int64; the peers' JAX remains in float32
            self.arguments = [jax.device_put(array, device) for array in arguments]
        start = time.perf_counter()
        self.executable = Executable((folder / entry["program"]).read_bytes(), device)
        self.compile_seconds = time.perf_counter() - start

    def check(self):
        """Makes the first call; returns the smallest share of entries of a result that agree, and whether it holds."""
        results = [np.asarray(array).astype("float64") for array in self.step()]
        tolerance = TOLERANCE[self.entry["dtype"]]
        shares = [share_of_agreement(*pair, tolerance) for pair in zip(results, self.expected, strict=True)]
        return min(shares), min(shares) >= SHARE[self.entry["kind"]]

    def step(self):
        """Makes one call, whose results replace the arguments that they are the new values of."""
        results = self.executable(self.arguments)
        for result, argument in self.entry["feedback"]:
            self.arguments[argument] = results[result]
        return results

    def __call__(self, num_steps):
        """Makes calls, and waits for the last one."""
        for _ in range(-(-num_steps // self.entry["steps_per_call"])):
            results = self.step()
        return results[0].block_until_ready()


def share_of_agreement(result, expected, tolerance):
    """Returns the share of entries of two arrays that agree; NaN agrees with nothing, integers must be equal."""
    if expected.dtype.kind != "f":
        return float(np.mean(result == expected))
    expected = expected.astype("float64")
    scale = np.sqrt(np.mean(expected**2)) if expected.size else 0.0
    return float(np.mean(np.abs(result - expected) <= tolerance * (np.abs(expected) + scale)))


def timed(run, unit=1):
    """Warms up, and times rounds of steps; returns milliseconds of a step: median and quartiles."""
    for _ in range(2):
        run(unit)
    start = time.perf_counter()
    run(unit)
    units = int(np.clip(SECONDS_PER_ROUND / (time.perf_counter() - start), 1, MAX_STEPS))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run(unit * units)
        times.append(1e3 * (time.perf_counter() - start) / (unit * units))
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"ms_median": median, "ms_quartiles": [low, high], "steps_per_round": unit * units}


def product_rates(device, size):
    """Returns, by precision, the rate of a product of two large square matrices, in FLOP/s."""
    import jax

    rates = {}
    for dtype in TOLERANCE:
        a = jax.device_put(np.random.default_rng(0).standard_normal((size, size), "float32"), device).astype(dtype)
        product = jax.jit(lambda a, b: a @ b)

        def run(num_steps, product=product, a=a):
            for _ in range(num_steps):
                result = product(a, a)
            return result.block_until_ready()

        rates[dtype] = 2e3 * size**3 / timed(run)["ms_median"]
    return rates


# --- peers ------------------------------------------------------------------------------------------------------------


def case_of(entry):
    """Returns the case of `peers.py` from its fields."""
    from maximum_likelihood import LikelihoodCase
    from samplers import SamplingCase

    kind = SamplingCase if entry["kind"] == "chain" else LikelihoodCase
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in entry["case"].items()})


def compiled_run(original, case, network, loss):
    """`peers.torch_run` with the loss compiled."""
    import torch

    return original(case, network, torch.compile(loss))


def peers_of(entry):
    """Returns the peers of a program: by name, a function that builds `run(num_steps)`, and the unit of its steps."""
    import maximum_likelihood
    import peers
    import samplers

    case, objective = case_of(entry), entry["objective"]
    if entry["kind"] == "chain":
        if case.filters:  # the peers' chains are of flat rows
            return {}
        others = samplers.contestants(objective)
        return {
            name: (functools.partial(contestant.build, case, objective), contestant.unit)
            for name, contestant in others.items()
            if not name.startswith("tfp_ebm")
        }
    found = {}
    if objective == "persistent":
        builds = {"ebmkit": maximum_likelihood.ebmkit, "torchebm": maximum_likelihood.torchebm}
    else:
        builds = {name: peers.PEERS[name].build for name in STEP_PEERS.get(objective, ())}
    for name, build in builds.items():
        found[name] = (functools.partial(build, case, objective), 1)
        if name in ("ebmkit", "torchebm"):
            found[f"{name} compiled"] = (functools.partial(with_compiled_loss, build, case, objective), 1)
    return found


def with_compiled_loss(build, case, objective):
    """Builds a peer of PyTorch whose loss `torch.compile` compiles."""
    import maximum_likelihood
    import peers

    patched = functools.partial(compiled_run, peers.torch_run)
    with mock.patch.object(peers, "torch_run", patched), mock.patch.object(maximum_likelihood, "torch_run", patched):
        return build(case, objective)


def measure_peer(build, unit):
    """Returns the row of a peer; its failure is a result, whatever it is."""
    try:
        on_gpu = prepare_torch()
        run = build()
        return timed(run, unit) | ({"mib": torch_peak_mebibytes()} if on_gpu else {})
    except Exception as error:
        return {"reason": f"{type(error).__name__}: {str(error).splitlines()[0][:90] if str(error) else ''}"}


def prepare_torch():
    """Puts PyTorch's tensors on the GPU, if PyTorch sees one; returns whether it does."""
    try:
        import torch
    except ImportError:
        return False
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # it lists what it does not compile
    if not torch.cuda.is_available():
        return False
    torch.set_default_device("cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return True


def torch_peak_mebibytes():
    """Returns the peak of PyTorch's memory on the GPU in MiB; 0 for a peer that does not use PyTorch."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


# --- reports ----------------------------------------------------------------------------------------------------------


def measure(entry, folder, device, rate):
    """Returns the row of a program: its check, times, share of the rate of a matrix product, and memory."""
    program = Program(entry, folder, device)
    share, holds = program.check()
    row = {"program": entry["name"], "contestant": "tfp_ebm", "agreement": share, "holds": holds}
    row |= timed(program, entry["steps_per_call"])
    flops = entry["flops"]
    return row | {
        "gemm": None if flops is None else 1e3 * flops / entry["steps_per_call"] / row["ms_median"] / rate,
        "mib": program.executable.peak_bytes() / 2**20,
        "compile_s": program.compile_seconds,
    }


def show(row):
    """Prints a row."""
    name = row["program"] if row["contestant"] == "tfp_ebm" else f"  {row['contestant']}"
    if "reason" in row:
        print(f"{name:36s} {row['reason']}", flush=True)
        return
    check = "" if "holds" not in row else f"{row['agreement']:.4f} " + ("" if row["holds"] else "DIFFERS")
    quartiles = "{:.3f}-{:.3f}".format(*row["ms_quartiles"])
    gemm = "" if row.get("gemm") is None else f"{100 * row['gemm']:.1f} %"
    memory = f"{row['mib']:.0f}" if "mib" in row else ""
    print(f"{name:36s}{row['ms_median']:10.3f}{quartiles:>20s}{gemm:>9s}{memory:>8s}  {check}", flush=True)


def versions():
    """Returns the versions of what is installed."""
    found = {}
    for package in ("jax", "jaxlib", "torch", "ebmkit", "torchebm", "folx", "optax", "blackjax", "numpyro"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main():
    """Runs the programs of a folder and their peers, prints a table, and writes JSON; exit code 1 if values differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="what gpu.py has written")
    parser.add_argument("--only", nargs="*", default=[], help="programs whose name has one of these parts")
    parser.add_argument("--peers", choices=("all", "none"), default="all")
    parser.add_argument("--size", type=int, default=0, help="of the matrix product; 0: 8192 on a GPU, else 1024")
    parser.add_argument("--tf32", action="store_true", help="allows TensorFloat-32 in products of float32")
    parser.add_argument("--json", type=pathlib.Path)
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory, too
    os.environ["NVIDIA_TF32_OVERRIDE"] = "1" if options.tf32 else "0"

    import jax

    device = jax.devices()[0]
    report = {"device": device.device_kind, "platform": device.platform, "versions": versions(), "tf32": options.tf32}
    rates = product_rates(device, options.size or (8192 if device.platform == "gpu" else 1024))
    report["tflops"] = {dtype: rate / 1e12 for dtype, rate in rates.items()}
    print(json.dumps(report))
    print(f"{'':36s}{'ms':>10s}{'quartiles':>20s}{'GEMM':>9s}{'MiB':>8s}  agreement")
    rows = []
    for entry in json.loads((options.folder / "programs.json").read_text()):
        if options.only and not any(part in entry["name"] for part in options.only):
            continue
        rows.append(measure(entry, options.folder, device, rates[entry["dtype"]]))
        show(rows[-1])
        if options.peers == "none" or entry["dtype"] != "float32":
            continue
        for name, (build, unit) in peers_of(entry).items():
            rows.append({"program": entry["name"], "contestant": name} | measure_peer(build, unit))
            show(rows[-1])
    if options.json:
        options.json.write_text(json.dumps(report | {"rows": rows}, indent=2))
    return 1 if any(row.get("holds") is False for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
