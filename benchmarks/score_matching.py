"""Full training steps (loss, parameter gradient, Adam) of the score-matching losses, beside the peers'.

Every contestant has the same initial weights and batches, a different one in every step; `contest.py` describes
how they are timed. Exact losses must agree on the first batch, or the run reports it. "x floor" is the time over that
of the step's matrix products (`Case.flops`) at the better rate at which TensorFlow or PyTorch multiplied large matrices
in the same rounds.

    python benchmarks/score_matching.py [--cases mlp64 convolution] [--losses exact] [--json out.json] [--figure d.png]

The peers: `pip install torch torchebm jax folx optax` (the extra `bench`), and ebmkit from its repository.
"""

import argparse
import functools
import json
import os
import sys

from contest import add_options, fastest, measure, prepare, product_rate
from peers import LEARNING_RATE, PEERS, SIGMA, Case, Contestant, repeated

CASES = {
    case.name: case
    for case in (
        Case("mlp2", (2,), 256, (128, 128)),
        Case("mlp48", (48,), 256, (128, 128)),
        Case("mlp64", (64,), 256, (256, 256)),
        Case("mlp784", (784,), 64, (512, 512), chunk_size=112),
        Case("convolution", (8, 8, 1), 128, (64,), filters=(16, 32)),
    )
}
GROWTH = [Case(f"d={d}", (d,), 128, (256, 256), chunk_size=16) for d in (2, 4, 16, 64, 256, 1024)]


def tfp_ebm(case, objective, mode):
    """Runs what a user runs: the model's own train step, compiled as a graph or by XLA, or `fit` with its defaults."""
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
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss, steps_per_execution="auto" if mode == "fit" else 1)
    if mode == "fit":
        batches = case.dataset()
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
CONTESTANTS = OURS | PEERS
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
# The aims: case, loss, peers, and the factor by which the faster of our compiled steps is to beat the fastest of them.
TARGETS = [
    *(("mlp64", "exact", [peer], 5.0) for peer in ("ebmkit", "torchebm", "JAX folx")),
    *((case, "sliced", ["ebmkit", "torchebm"], 1.8) for case in ("mlp2", "mlp64")),
    *((case, "sliced", ["JAX"], 1.2) for case in ("mlp2", "mlp64")),
    *((case, "denoising", ["ebmkit", "torchebm"], 1.0) for case in ("mlp2", "mlp64")),
]
# The same for plain `fit`.
FIT_TARGETS = [
    ("mlp2", "denoising", ["ebmkit", "torchebm"], 1.3),
    ("mlp2", "sliced", ["ebmkit", "torchebm"], 2.0),
    ("mlp48", "exact", ["ebmkit", "torchebm"], 5.0),
]
FLOOR_TARGET = ("mlp64", "exact", 1.6)


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
    for names, targets in ((STEPS, TARGETS), (("tfp_ebm fit",), FIT_TARGETS)):
        print(f"\nTargets ({' or '.join(names)}, by minima)")
        for case, loss, peers, factor in targets:
            ours, theirs = fastest(rows, case, loss, names), fastest(rows, case, loss, peers)
            if ours and theirs:
                verdict = "holds" if theirs / ours >= factor else "FALLS SHORT"
                print(f"  {case} {loss}: {theirs / ours:.2f}x {' / '.join(peers)}, aim {factor:g}x: {verdict}")
    case, loss, factor = FLOOR_TARGET
    group = [r for r in rows if (r["case"], r["family"]) == (case, loss)]
    if ours := fastest(rows, case, loss, STEPS):
        ratio = ours * product_rate(group) * 1e6 / CASES[case].flops(loss)
        verdict = "holds" if ratio <= factor else "FALLS SHORT"
        print(f"  {case} {loss}: {ratio:.2f}x the matrix products alone, aim {factor:g}x: {verdict}")


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
    """Measures the chosen cases, prints the tables, and writes JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--losses", nargs="*", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--contestants", nargs="*", choices=OURS | PEERS, help="only these")
    add_options(parser, seconds=0.1)
    parser.add_argument("--figure")
    options = parser.parse_args()
    versions = prepare(options, ("torch", "ebmkit", "torchebm", "jax", "folx", "optax"))
    rows, growth = [], []
    for case in map(CASES.get, options.cases):
        for loss in options.losses:
            entries = [entry for entry in LOSSES[loss] if entry[1] != "chunked" or case.chunk_size]
            rows += (measured := measure(case, entries, CONTESTANTS, options))
            show(measured, case)
    judge(rows)
    if options.figure:
        entries = [*(("tfp_ebm graph", loss) for loss in ("exact", "chunked", "sliced")), ("ebmkit", "exact")]
        for case in GROWTH:
            growth += (measured := measure(case, entries, CONTESTANTS, options))
            show(measured, case)
        draw(growth, options.figure)
    if options.json:
        with open(options.json, "w") as file:
            report = {"versions": versions, "threads": options.threads}
            json.dump(report | {"rows": rows, "growth": growth}, file, indent=2)


if __name__ == "__main__":
    main()
