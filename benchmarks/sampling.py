"""Langevin (ULA), MALA, HMC and NUTS on a network's energy, beside the peers': steps and effective draws per second.

The same network, starts, step sizes and number of chains for all (`samplers.py`); `contest.py` describes
how they are timed. A step is one transition of all chains. "ESS/s" is steps per second times the effective draws per
step of all chains, of the coordinate that mixes worst. "x floor" is the time of a step over that of its matrix products
at the better rate at which TensorFlow or PyTorch multiplied large matrices in the same rounds.

    python benchmarks/sampling.py [--cases 2-128] [--samplers HMC NUTS] [--json out.json]

The peers: `pip install torch torchebm jax blackjax numpyro` (the extra `bench`), and ebmkit from its repository.
"""

import argparse
import json
import os
import sys

from contest import add_options, fastest, measure, prepare, product_rate
from samplers import SamplingCase, contestants

CASES = {
    case.name: case
    for case in (
        SamplingCase("2-128", (2,), 1000, (128, 128), langevin_step=0.8),
        SamplingCase("64-256", (64,), 256, (256, 256), langevin_step=0.4),
        SamplingCase("784-256", (784,), 128, (256, 256), langevin_step=0.25),
    )
}
OURS = ("tfp_ebm graph", "tfp_ebm XLA")
PEERS = ("ebmkit", "torchebm", "JAX", "blackjax", "numpyro")
# What is aimed at: case, sampler, by which factor to be faster than the fastest of whom.
TARGETS = [
    ("2-128", "ULA", PEERS, 1.5),
    ("64-256", "ULA", PEERS, 1.2),
    ("784-256", "ULA", PEERS, 1.0),
    *((case, "HMC", ("blackjax",), 1.2) for case in CASES),
    *((case, "NUTS", ("blackjax",), 1.0) for case in CASES),
]


def show(rows, case):
    """Prints the rows of one case and sampler."""
    sampler, rate = rows[0]["family"], product_rate(rows)
    ours = fastest(rows, case.name, sampler, OURS)
    print(
        f"\n{case.name}: {sampler}, {case.batch} chains, {case.flops(sampler) / 1e9:.3g} GFLOP a step, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    print(
        f"  {'':16s}{'min ms':>9s}{'median':>9s}{'quartiles':>17s}{'x ours':>8s}{'steps/s':>9s}{'ESS/step':>10s}"
        f"{'ESS/s':>10s}{'x floor':>8s}{'MiB':>7s}{'1st s':>7s}"
    )
    for r in rows:
        if r["reason"]:
            print(f"  {r['contestant']:16s} {r['reason']}")
            continue
        quartiles = "{:.3f}-{:.3f}".format(*r["ms_quartiles"])
        ess = r.get("ess_per_step", float("nan"))
        r["steps_per_s"], r["ess_per_s"] = 1e3 / r["ms_min"], 1e3 * ess / r["ms_min"]
        print(
            f"  {r['contestant']:16s}{r['ms_min']:9.3f}{r['ms_median']:9.3f}{quartiles:>17s}"
            f"{r['ms_min'] / ours if ours else float('nan'):8.2f}{r['steps_per_s']:9.0f}{ess:10.1f}"
            f"{r['ess_per_s']:10.0f}{rate / r['gflops']:8.2f}{r['peak_mib']:7.0f}{r['first_call_s']:7.1f}"
        )
    sys.stdout.flush()


def judge(rows):
    """Prints which targets hold: HMC's and NUTS's by effective draws per second."""
    print("\nTargets (the better of graph and XLA)")
    for case, sampler, peers, factor in TARGETS:

        def best(names, case=case, sampler=sampler):
            key = "steps_per_s" if sampler == "ULA" else "ess_per_s"
            rates = [
                r[key]
                for r in rows
                if not r["reason"] and (r["case"], r["loss"]) == (case, sampler) and r["contestant"] in names
            ]
            return max(rates, default=None)

        ours, theirs = best(OURS), best(peers)
        if ours and theirs:
            verdict = "holds" if ours / theirs >= factor else "FALLS SHORT"
            print(f"  {case} {sampler}: {ours / theirs:.2f}x {' / '.join(peers)}, aim {factor:g}x: {verdict}")


def main():
    """Measures the chosen cases, prints the tables, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    samplers = ("ULA", "MALA", "HMC", "NUTS")
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--samplers", nargs="*", choices=samplers, default=list(samplers))
    parser.add_argument("--contestants", nargs="*", choices=(*OURS, *PEERS), help="only these")
    add_options(parser, seconds=0.3, rounds=20)
    options = parser.parse_args()
    versions = prepare(options, ("torch", "ebmkit", "torchebm", "jax", "blackjax", "numpyro"))
    rows = []
    for case in map(CASES.get, options.cases):
        for sampler in options.samplers:
            taking_part = contestants(sampler)
            rows += (measured := measure(case, [(name, sampler) for name in taking_part], taking_part, options))
            show(measured, case)
    judge(rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"versions": versions, "threads": options.threads, "rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
