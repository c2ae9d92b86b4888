"""Full training steps of persistent contrastive divergence (chains, parameter gradient, Adam), beside the peers'.

The same network, batches, number of chains (one for each row), Langevin steps of the same size, and a buffer of 10 000
chains for all; `contest.py` describes how they are timed. "calibrated" is this package's default instead: MALA
with an adapted step and a global move. "x floor" is the time over that of the step's matrix products at the better rate
at which TensorFlow or PyTorch multiplied large matrices in the same rounds.

    python benchmarks/maximum_likelihood.py [--cases 2-128] [--steps 20] [--json out.json]

The peers: `pip install torch torchebm` (the extra `bench`), and ebmkit from its repository.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys

from contest import add_options, fastest, measure, prepare, product_rate
from peers import LEARNING_RATE, Case, Contestant, repeated, torch_run
from samplers import torch_energy

CAPACITY = 10_000
STEP_SIZE = 0.1


@dataclasses.dataclass(frozen=True)
class LikelihoodCase(Case):
    """A network, its batch, and the kernel steps of one training step."""

    num_steps: int = 20

    def flops(self, objective):
        """Of matrix products: with chains ("PCD", "calibrated"), an energy and its gradient in x are 2 passes of a row
        through every kernel, for each kernel step and the start; energies of data and chains with their parameter
        gradients 6 together."""
        if objective not in ("PCD", "calibrated"):
            return super().flops(objective)
        passes = super().flops("denoising") / 6  # one pass of the batch
        return passes * (2 * (self.num_steps + 1) + 6)


CASES = [
    LikelihoodCase(f"{name}, {num_steps} steps", shape, batch, units, num_steps=num_steps)
    for num_steps in (20, 60)
    for name, shape, batch, units in (
        ("2-128", (2,), 256, (128, 128)),
        ("64-256", (64,), 256, (256, 256)),
        ("784-256", (784,), 128, (256, 256)),
    )
]


def tfp_ebm(case, objective, mode):
    """Runs what a user runs: the model's own train step, as a graph, with XLA for the chains or for all, or `fit`."""
    import keras
    import tensorflow as tf
    import tensorflow_probability as tfp

    import tfp_ebm as ebm

    network = ebm.networks.mlp(case.event_shape, case.units)
    network.set_weights(case.weights())
    base = tfp.distributions.MultivariateNormalDiag(tf.zeros(case.event_shape), tf.ones(case.event_shape))
    model = ebm.EnergyModel(network, base_measure=base)
    kernel = None if objective == "calibrated" else ebm.mcmc.Langevin(STEP_SIZE)
    loss = ebm.losses.PersistentContrastiveDivergence(
        kernel, case.num_steps, CAPACITY, jit_compile=mode.endswith("chains")
    )
    unit = 20 if mode.startswith("fit") else 1
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE), loss, steps_per_execution=unit, jit_compile=mode.endswith("XLA")
    )
    if mode.startswith("fit"):
        batches = case.dataset()
        return lambda num_steps: model.fit(batches, steps_per_epoch=num_steps, verbose=0, shuffle=False).history[
            "loss"
        ][0]
    model.optimizer.build(model.trainable_variables)
    step = tf.function(lambda x: model.train_step((x,))["loss"], jit_compile=mode == "XLA")
    return repeated(step, [tf.constant(x) for x in case.batches()])


def ebmkit(case, objective):
    """ebmkit: Langevin's step size is ε²/2."""
    import ebm

    network = torch_energy(case)
    loss = ebm.ContrastiveDivergence(
        ebm.LangevinDynamics(STEP_SIZE**2 / 2, case.num_steps),
        ebm.ReplayBuffer(CAPACITY, case.event_shape, reinit_prob=0.0),
    )
    return torch_run(case, network, lambda x: loss(network, x).loss)


def torchebm(case, objective):
    """torchebm: Langevin's step size is ε²/2; its buffer is warmed up by few steps, before the clock starts."""
    import torchebm.core
    import torchebm.losses
    import torchebm.samplers

    network = torch_energy(case, torchebm.core.BaseModel)
    loss = torchebm.losses.ContrastiveDivergence(
        network,
        torchebm.samplers.LangevinDynamics(network, step_size=STEP_SIZE**2 / 2),
        k_steps=case.num_steps,
        persistent=True,
        buffer_size=CAPACITY,
        init_steps=1,
        new_sample_ratio=0.0,
        energy_reg_weight=0.0,
    )
    return torch_run(case, network, lambda x: loss(x)[0])


CONTESTANTS = {
    **{
        f"tfp_ebm {mode}": Contestant(
            ("tfp_ebm",), functools.partial(tfp_ebm, mode=mode), 20 if mode.startswith("fit") else 1
        )
        for mode in ("graph", "chains", "XLA", "fit", "fit chains", "fit XLA")
    },
    "ebmkit": Contestant(("ebm",), ebmkit),
    "torchebm": Contestant(("torchebm",), torchebm),
}
OURS = tuple(name for name in CONTESTANTS if name.startswith("tfp_ebm"))
PEERS = ("ebmkit", "torchebm")
ENTRIES = [*((name, "PCD") for name in CONTESTANTS), *((name, "calibrated") for name in OURS[:3])]


def show(rows, case):
    """Prints the rows of one case."""
    rate, ours = product_rate(rows), fastest(rows, case.name, "PCD", OURS)
    print(f"\n{case.name}: batch {case.batch}, {case.flops('PCD') / 1e9:.3g} GFLOP, load {os.getloadavg()[0]:.1f}")
    print(
        f"  {'':26s}{'min ms':>9s}{'median':>9s}{'quartiles':>19s}{'x ours':>8s}{'x floor':>8s}{'MiB':>7s}{'1st s':>7s}"
    )
    for r in rows:
        label = r["contestant"] + (f" {r['loss']}" if r["loss"] != "PCD" else "")
        if r["reason"]:
            print(f"  {label:26s} {r['reason']}")
            continue
        quartiles = "{:.2f}-{:.2f}".format(*r["ms_quartiles"])
        print(
            f"  {label:26s}{r['ms_min']:9.2f}{r['ms_median']:9.2f}{quartiles:>19s}"
            f"{r['ms_min'] / ours if ours else float('nan'):8.2f}{rate / r['gflops']:8.2f}{r['peak_mib']:7.0f}"
            f"{r['first_call_s']:7.1f}"
        )
    sys.stdout.flush()


def judge(rows, cases):
    """Prints which targets hold: 1.3 times as fast as the fastest peer, and at 784 coordinates no slower."""
    print("\nTargets (the fastest of ours, by minima)")
    for case in cases:
        ours, theirs = (fastest(rows, case.name, "PCD", names) for names in (OURS, PEERS))
        if ours and theirs:
            factor = 1.0 if case.dimension == 784 else 1.3
            verdict = "holds" if theirs / ours >= factor else "FALLS SHORT"
            print(f"  {case.name}: {theirs / ours:.2f}x {' / '.join(PEERS)}, aim {factor:g}x: {verdict}")


def main():
    """Measures the chosen cases, prints the tables, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted({case.name.split(",")[0] for case in CASES})
    parser.add_argument("--cases", nargs="*", choices=names, default=names)
    parser.add_argument("--steps", nargs="*", type=int, choices=(20, 60), default=(20, 60))
    parser.add_argument("--contestants", nargs="*", choices=CONTESTANTS, help="only these")
    add_options(parser, seconds=0.3, rounds=15)
    options = parser.parse_args()
    versions = prepare(options, ("torch", "ebmkit", "torchebm"))
    cases = [case for case in CASES if case.name.split(",")[0] in options.cases and case.num_steps in options.steps]
    rows = []
    for case in cases:
        rows += (measured := measure(case, ENTRIES, CONTESTANTS, options))
        show(measured, case)
    judge(rows, cases)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"versions": versions, "threads": options.threads, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
