"""Writes training steps and chains as XLA programs, for a machine that has a GPU and JAX but no TensorFlow.

`tf.function(jit_compile=True)` turns a step into one XLA program, with the batch and all weights (of network,
optimizer, loss and metrics) as arguments, and their new values among the results. Each program becomes two files:
`NAME.hlo`, a serialized HloModuleProto before optimization, and `NAME.npz` with its arguments and with the results of
TensorFlow's own XLA on this processor. `programs.json` lists them: what is fed back into the next step, the operations
of the matrix products, and the network, from which `gpu_run.py` builds the peers' steps.

    python benchmarks/gpu.py programs [--cases 2-128] [--losses denoising] [--chains HMC] [--dtypes float32]
    python benchmarks/gpu_run.py programs              # on the machine with the GPU

A step is the model's own train step: loss, parameter gradient, Adam. In bfloat16 the layers compute in bfloat16, while
weights, energies and chains remain in float32 (Keras's policy `mixed_bfloat16`).
"""

import argparse
import dataclasses
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from maximum_likelihood import CAPACITY, LikelihoodCase
from peers import LEARNING_RATE, SIGMA
from samplers import LEAPFROG_STEPS, SamplingCase

import tfp_ebm as ebm

CASES = {
    case.name: case
    for case in (
        LikelihoodCase("2-128", (2,), 256, (128, 128)),
        LikelihoodCase("64-256", (64,), 256, (256, 256)),
        LikelihoodCase("784-512", (784,), 64, (512, 512), chunk_size=112),
        LikelihoodCase("28x28", (28, 28, 1), 64, (128,), filters=(32, 64), chunk_size=28),
    )
}
DTYPES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
NUM_CLASSES, NUM_CHAIN_STEPS = 10, 100


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of tensors to write, its arguments, and the floating-point operations of its matrix products.

    `flops` is None where there is no formula; the runner then states no share of the rate of a large product.
    """

    name: str
    function: object
    arguments: tuple
    flops: float | None
    kind: str
    objective: str
    case: object
    dtype: str


# --- steps of the losses ----------------------------------------------------------------------------------------------


def plain_network(case, dtype, weights=True):
    """The network of the case, with the weights that the peers have too."""
    build = ebm.networks.convnet if case.filters else ebm.networks.mlp
    size = {"filters": case.filters} if case.filters else {}
    network = build(case.event_shape, **size, units=case.units, dtype=DTYPES[dtype])
    if weights:
        network.set_weights(case.weights())
    return network


def noise_level_network(case, dtype):
    """A network of (x, σ) of the same size."""
    if case.filters:
        return ebm.networks.noise_level_convnet(case.event_shape, case.filters, units=case.units, dtype=DTYPES[dtype])
    return ebm.networks.noise_level_mlp(case.event_shape, case.units, num_components=1, dtype=DTYPES[dtype])


def joint_network(case, dtype):
    """A classifier of the same size as an energy."""
    trunk = plain_network(case, dtype, weights=False)
    logits = keras.layers.Dense(NUM_CLASSES, dtype=DTYPES[dtype])(trunk.layers[-2].output)
    return ebm.networks.JointEnergy(keras.Model(trunk.inputs, logits))


def autoregressive_network(case, dtype):
    """An autoregressive energy of the same width; it computes in float32."""
    return ebm.networks.autoregressive(case.event_shape, case.units, seed=0)


def standard_normal(case):
    """The base and the noise of all."""
    zeros = tf.zeros(case.event_shape)
    return tfp.distributions.Independent(tfp.distributions.Normal(zeros, 1.0), len(case.event_shape))


LOSSES = {
    "denoising": (plain_network, lambda case: ebm.losses.DenoisingScoreMatching(SIGMA)),
    "multiscale": (
        plain_network,
        lambda case: ebm.losses.MultiscaleDenoisingScoreMatching([SIGMA, 2 * SIGMA, 4 * SIGMA], SIGMA),
    ),
    "noise conditional": (
        noise_level_network,
        lambda case: ebm.losses.NoiseConditionalDenoisingScoreMatching([SIGMA, 1.0]),
    ),
    "dual": (noise_level_network, lambda case: ebm.losses.DualScoreMatching(SIGMA, 10.0)),
    "sliced": (plain_network, lambda case: ebm.losses.SlicedScoreMatching()),
    "exact": (plain_network, lambda case: ebm.losses.ScoreMatching(chunk_size=case.chunk_size)),
    "noise contrastive": (plain_network, lambda case: ebm.losses.NoiseContrastiveEstimation(standard_normal(case))),
    "contrastive divergence": (plain_network, lambda case: ebm.losses.ContrastiveDivergence()),
    "improved": (
        plain_network,
        lambda case: ebm.losses.ImprovedContrastiveDivergence(ebm.mcmc.MALA(0.1), 1, ebm.mcmc.FromData()),
    ),
    "short run": (
        plain_network,
        lambda case: ebm.losses.MaximumLikelihood(ebm.mcmc.Langevin(0.1), case.num_steps, ebm.mcmc.FromBase()),
    ),
    "persistent": (
        plain_network,
        lambda case: ebm.losses.PersistentContrastiveDivergence(None, case.num_steps, CAPACITY),
    ),
    "joint": (joint_network, lambda case: ebm.losses.JointEnergyLoss(ebm.losses.DenoisingScoreMatching(SIGMA))),
    "likelihood": (autoregressive_network, lambda case: ebm.losses.NegativeLogLikelihood()),
}
TAKES_BASE = ("noise contrastive", "short run", "persistent")


def flops_of(case, objective):
    """Operations of the matrix products of a step, or None."""
    if objective in ("denoising", "multiscale", "sliced", "exact", "noise contrastive"):
        return float(case.flops(objective))  # a row of data and one of noise are 6 passes together, too
    if objective in ("short run", "persistent"):
        return float(case.flops("PCD"))
    if objective == "contrastive divergence":
        return float(dataclasses.replace(case, num_steps=1).flops("PCD"))
    return None


def step_of(case, objective, dtype):
    """The train step of a loss as a program, with the weights of a network that has not been trained."""
    build, loss = LOSSES[objective]
    base = standard_normal(case) if objective in TAKES_BASE else None
    x = tf.constant(case.batches(1)[0])
    model = ebm.EnergyModel(build(case, dtype), base_measure=base)
    if objective in ("noise conditional", "dual"):
        model.adapt(case.batches(4).reshape(-1, *case.event_shape))
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss(case), auto_scale_loss=False)
    model.build((None, *case.event_shape))
    model._build_optimizer()
    labels = (tf.constant(np.arange(case.batch) % NUM_CLASSES, tf.int32),) if objective == "joint" else ()

    def step(*data):
        model.train_step(data)
        return model._loss_tracker.result()

    return Program(
        f"{objective} {case.name} {dtype}",
        step,
        (x, *labels),
        flops_of(case, objective),
        "step",
        objective,
        case,
        dtype,
    )


# --- chains -----------------------------------------------------------------------------------------------------------


def chain_of(case, sampler, dtype):
    """A hundred steps of chains on ½‖x‖² plus the network, of which all states are kept, as in `samplers.py`.

    The results are the last states and the means of the states, so that files stay small.
    """
    case = SamplingCase(case.name, case.event_shape, case.batch, case.units, case.filters)
    network = plain_network(case, dtype)
    step_size = case.step_size(sampler)
    kernel = {
        "MALA": lambda: ebm.mcmc.MALA(step_size),
        "HMC": lambda: ebm.mcmc.HMC(step_size, LEAPFROG_STEPS),
    }[sampler]()

    def target(x):
        return -network(x)[:, 0] - 0.5 * tf.reduce_sum(x**2, list(range(1, x.shape.rank)))

    def chain(x, seed):
        states = ebm.mcmc.sample(target, x, kernel, num_results=NUM_CHAIN_STEPS, seed=seed).states
        return states[-1], tf.reduce_mean(states, 0)

    evaluations = {"MALA": 1, "HMC": LEAPFROG_STEPS}[sampler] * NUM_CHAIN_STEPS
    flops = float(evaluations * case.flops("ULA"))
    arguments = tf.constant(case.start()), tf.constant([0, 1])
    return Program(f"{sampler} {case.name} {dtype}", chain, arguments, flops, "chain", sampler, case, dtype)


# --- files ------------------------------------------------------------------------------------------------------------


def captured(concrete):
    """The variables, or constants, behind the arguments that a traced function captures, in the program's order."""
    by_handle = {id(variable.handle): variable for variable in concrete.graph.variables}
    return [by_handle.get(id(tensor), tensor) for tensor in concrete.captured_inputs]


def storable(value):
    """A NumPy array that a file of NumPy can hold: bfloat16 as float32."""
    array = np.asarray(value)
    return array.astype("float32") if array.dtype.name == "bfloat16" else array


def write(program, folder):
    """Writes one program with its arguments and results; returns its entry of the list.

    Arguments are those of the function, then the weights that it captures. Results are those of the function, then the
    new values of the weights that it assigns; the program itself lists which result overwrites which argument.
    """
    from tensorflow.compiler.xla.service import hlo_pb2  # TensorFlow has its own copy of XLA's messages

    function = tf.function(program.function, jit_compile=True, autograph=False)
    serialized = function.experimental_get_compiler_ir(*program.arguments)(stage="hlo_serialized")
    weights = captured(function.get_concrete_function(*program.arguments))
    arguments = [storable(value) for value in (*program.arguments, *weights)]
    start = time.perf_counter()
    results = [storable(value) for value in tf.nest.flatten(function(*program.arguments))]
    seconds = time.perf_counter() - start

    module = hlo_pb2.HloModuleProto.FromString(serialized)
    check_shapes(program, [array.shape for array in arguments], module.host_program_shape.parameters)
    aliases = [(alias.output_shape_index[0], alias.parameter_number) for alias in module.input_output_alias.entries]
    for _, argument in sorted(aliases):
        results.append(storable(weights[argument - len(program.arguments)]))
    check_shapes(program, [array.shape for array in results], module.host_program_shape.result.tuple_shapes)

    name = program.name.replace(" ", "_")
    (folder / f"{name}.hlo").write_bytes(serialized)
    arrays = {f"argument_{i}": array for i, array in enumerate(arguments)}
    np.savez(folder / f"{name}.npz", **arrays, **{f"result_{i}": array for i, array in enumerate(results)})
    return {
        "name": program.name,
        "program": f"{name}.hlo",
        "arrays": f"{name}.npz",
        "kind": program.kind,
        "objective": program.objective,
        "dtype": program.dtype,
        "case": dataclasses.asdict(program.case),
        "flops": program.flops,
        "steps_per_call": NUM_CHAIN_STEPS if program.kind == "chain" else 1,
        "num_arguments": len(arguments),
        "num_results": len(results),
        "feedback": [[0, 0]] * (program.kind == "chain") + sorted(map(list, aliases)),
        "seconds_on_cpu": seconds,
    }


def check_shapes(program, ours, theirs):
    """Raises RuntimeError if the shapes of a program are not those of the arrays."""
    found = [tuple(shape.dimensions) for shape in theirs]
    if found != ours:
        raise RuntimeError(f"{program.name}: the arrays have shapes {ours}, the program {found}.")


def programs(options):
    """The chosen programs, one after the other."""
    for case in map(CASES.get, options.cases):
        for dtype in options.dtypes:
            for objective in options.losses:
                # An autoregressive energy computes in float32; of 784 coordinates its masks alone fill 200 MB of file.
                if objective != "likelihood" or (dtype == "float32" and case.dimension <= 64):
                    yield step_of(case, objective, dtype)
            for sampler in options.chains:
                yield chain_of(case, sampler, dtype)


def main():
    """Writes the programs, and after each one the list of those written so far."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--losses", nargs="*", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--chains", nargs="*", choices=("MALA", "HMC"), default=["MALA", "HMC"])
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=list(DTYPES))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for program in programs(options):
        start = time.perf_counter()
        try:
            entries.append(write(program, options.folder))
        except Exception as error:
            print(f"{program.name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
            continue
        print(f"{program.name}: {time.perf_counter() - start:.1f} s", flush=True)
        (options.folder / "programs.json").write_text(json.dumps(entries, indent=1))
        keras.backend.clear_session(free_memory=True)


if __name__ == "__main__":
    main()
