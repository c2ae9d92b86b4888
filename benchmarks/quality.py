"""Measures trained energies on known densities: every method of the note's Table 1, and the peers' same methods.

Persistent contrastive divergence (PCD), exact, sliced and denoising score matching (SM, SSM, DSM), multi-scale
denoising (MDSM) and noise contrastive estimation (NCE), on six distributions of the plane. All contestants have the
same network of two layers of SiLU units, the same 50 000 rows, and as many steps with batches of 256: "tfp_ebm" is
`recipes.low_dimensional(x, loss, fourier_features=0)` through `fit`, the peers are in `quality_peers.py`; "preset" is
the recipe with the network that it chooses itself.

A model is judged by its density exp(−E)/Z on a grid of ±12, four times as wide as the data, which is finer within ±3:
a good model of the checkerboard rises in a hundredth of a unit at its edges, where much of its KL is. KL in nats,
total variation, and the squared MMD (bandwidth .3) of 2000 draws of that gridded density, by its inverse distribution
function, from 2000 of the target. So no sampler is judged. A figure is a lower bound ("≥") where more than a
thousandth of the mass is at the rim of the grid: that model may have no normaliser at all. Of our models of the first
seed annealed importance sampling estimates log Z too, and z is its distance from the grid's in its standard errors.
`seconds` are those of the processor, since the machine may be shared, tracing and compilation included.

Each run is written down when it is done, and is not repeated: stop and start again as you like.

    python benchmarks/quality.py --out runs/quality [--jobs 2] [--seeds 0 1 2] [--targets banana] [--methods NCE DSM]

The folder then has `runs.json`, `tables.md` and `densities/`; `quality_figures.py` draws them.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import pathlib
import statistics
import time
import warnings

import numpy as np
import quality_peers

TARGETS = ("two_gaussians", "eight_gaussians", "two_moons", "banana", "checkerboard", "rings")
LOSSES = {
    "PCD": "persistent_contrastive_divergence",
    "NCE": "noise_contrastive_estimation",
    "SM": "score_matching",
    "SSM": "sliced_score_matching",
    "DSM": "denoising_score_matching",
    "MDSM": "multiscale_denoising_score_matching",
}
ENTRIES = (
    *(("tfp_ebm", method) for method in LOSSES),
    *(("preset", method) for method in ("PCD", "NCE")),
    *quality_peers.TRAINERS,
)
OURS = ("tfp_ebm", "preset")
# What the best of our methods must reach, in nats.
AIMS = {
    **{"two_gaussians": 0.002, "eight_gaussians": 0.003, "two_moons": 0.004},
    **{"banana": 0.008, "checkerboard": 0.015, "rings": 0.005},
}
NUM_ROWS, BATCH_SIZE, UNITS, SIGMA = 50_000, 256, (128, 128), 0.1
# The grid: cells of 1/32, and of 1/256 within ±3, with edges where the checkerboard has. On one model of it, by Monte
# Carlo .0199 ± .0003 from its truth, cells of 1/256 give .0197, of 1/64 .0145, and nodes 1/32 apart on its edges .052:
# coarse centres step over the layer that costs, and coarse nodes charge log 2 for a whole cell of it. The sharpest one
# seen is still a tenth short: .0095 against .0106 ± .0002. The rim is one unit wide.
HALF_WIDTH, NUM_CELLS, RIM, MAX_AT_RIM = 12.0, 768, 11.0, 1e-3
INNER, REFINEMENT = 3.0, 8
NUM_DRAWS, BANDWIDTH = 2000, 0.3
# The square that figures show, and nodes along its side.
SHOWN, NUM_SHOWN = 4.0, 256


def centres(half_width, num_cells):
    """The centres of the cells of a square around 0, `[n, 2]`, in rows of equal x₁."""
    axis = half_width * (2 * np.arange(num_cells) + 1 - num_cells) / num_cells
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


@functools.cache
def grid():
    """The centres of all cells `[n, 2]`, and the areas of these `[n]`."""
    width = 2 * HALF_WIDTH / NUM_CELLS
    outer = centres(HALF_WIDTH, NUM_CELLS)
    outer = outer[np.abs(outer).max(1) > INNER]
    inner = centres(INNER, round(2 * INNER / width) * REFINEMENT)
    areas = np.repeat([width**2, (width / REFINEMENT) ** 2], [len(outer), len(inner)])
    return np.concatenate([outer, inner]), areas


@functools.cache
def target_of(name):
    """The target, and its log density at the nodes."""
    import tensorflow as tf

    import tfp_ebm as ebm

    target = getattr(ebm.targets, name)(tf.float64)
    nodes, _ = grid()
    return target, np.concatenate([target.log_prob(part).numpy() for part in np.array_split(nodes, 200)])


def judge(log_p, energies, nodes, cell):
    """How far exp(−E)/Z is from p, by their values at the nodes of a grid whose cells have these areas.

    Returns:
      `kl`, KL(p‖model); `grid_total_variation`; `log_normalizer`, log Z; `at_rim`, the model's mass beyond
      `RIM`. NaN where an energy is NaN or −∞, which is no density.
    """
    energies = np.asarray(energies, np.float64)
    if np.isnan(energies).any() or energies.min() == -np.inf:
        return dict.fromkeys(("kl", "grid_total_variation", "log_normalizer", "at_rim"), float("nan"))
    lowest = energies.min()
    log_z = np.log(np.sum(np.exp(lowest - energies) * cell)) - lowest
    log_q = -energies - log_z
    q, seen = np.exp(log_q), log_p > -np.inf
    cell = np.broadcast_to(cell, log_p.shape)
    kl = np.sum(np.exp(log_p[seen]) * (log_p[seen] - log_q[seen]) * cell[seen])
    return {
        "kl": float(kl),
        "grid_total_variation": float(0.5 * np.sum(np.abs(np.exp(log_p) - q) * cell)),
        "log_normalizer": float(log_z),
        "at_rim": float(np.sum((q * cell)[np.abs(nodes).max(1) > RIM])),
    }


def draws(energies, nodes, cell, num_draws, seed):
    """Draws of the gridded density: a node by the inverse of the distribution function, and a place in its cell."""
    rng = np.random.default_rng(seed)
    cell = np.broadcast_to(cell, energies.shape)
    cumulative = np.cumsum(np.exp(energies.min() - energies) * cell)
    chosen = np.searchsorted(cumulative, rng.random(num_draws) * cumulative[-1], side="right")
    return nodes[chosen] + np.sqrt(cell[chosen])[:, None] * (rng.random((num_draws, 2)) - 0.5)


def train_ours(contestant, method, x, num_steps, seed):
    """The recipe, through `fit`; denoising without standardisation, so that all contestants have the same noise."""
    import keras

    import tfp_ebm as ebm
    from tfp_ebm.energy.data import shuffled_batches

    if method == "DSM":
        loss = ebm.losses.DenoisingScoreMatching(SIGMA)
        model = ebm.EnergyModel(ebm.networks.mlp([2], UNITS, seed=seed), base_measure=ebm.fit_base(x), seed=seed)
        rate = ebm.recipes.settings_for(loss, 2)["learning_rate"]
        schedule = keras.optimizers.schedules.CosineDecay(rate, num_steps)
        model.compile(keras.optimizers.Adam(schedule), loss, steps_per_execution=100)
    else:
        options = {"fourier_features": 0} if contestant == "tfp_ebm" else {}
        model = ebm.recipes.low_dimensional(x, LOSSES[method], num_steps, units=UNITS, seed=seed, **options)
    model.fit(shuffled_batches(x, BATCH_SIZE, seed), epochs=1, steps_per_epoch=num_steps, shuffle=False, verbose=0)
    return model


def log_normalizer_by_chains(model, seed):
    """log Z by annealed importance sampling, and its standard error."""
    import tfp_ebm as ebm

    estimate = ebm.evaluation.annealed_importance_sampling(model, num_temperatures=200, num_chains=256, seed=seed)
    return {"log_normalizer": estimate.value, "standard_error": estimate.standard_error, "ess": estimate.ess}


def run(task):
    """Trains one contestant and judges it; a failure is a result."""
    contestant, method, name, seed, num_steps, folder, with_chains = task
    import tfp_ebm as ebm

    result = {"contestant": contestant, "method": method, "target": name, "seed": seed, "num_steps": num_steps}
    target, log_p = target_of(name)
    nodes, cell = grid()
    x = np.asarray(getattr(ebm.targets, name)().sample(NUM_ROWS, seed=seed))
    start = time.process_time()
    try:
        if contestant in OURS:
            model = train_ours(contestant, method, x, num_steps, seed)
            result["seconds"] = time.process_time() - start
            trained = functools.partial(ebm.evaluation.densities.energies, model)
        else:
            import torch

            torch.manual_seed(seed)
            trained = quality_peers.TRAINERS[contestant, method](x, UNITS, num_steps, BATCH_SIZE, SIGMA)
            result["seconds"] = time.process_time() - start
        energies = np.asarray(trained(nodes), np.float64)
    except Exception as error:
        return result | {"reason": f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"}
    figures = judge(log_p, energies, nodes, cell)
    result |= {name: value for name, value in figures.items() if np.isfinite(value)}
    if "kl" not in result:
        result["reason"] = "no density, or none where data are"
    else:
        mine = draws(energies, nodes, cell, NUM_DRAWS, seed)
        theirs = target.sample(NUM_DRAWS, seed=[seed, 1]).numpy()
        result["mmd"] = ebm.evaluation.mmd(theirs, mine, bandwidth=BANDWIDTH, num_permutations=1).value
        if seed == 0:
            density = np.exp(-trained(centres(SHOWN, NUM_SHOWN)) - result["log_normalizer"])
            density = density.reshape(NUM_SHOWN, NUM_SHOWN).astype("float32")
            np.save(folder / f"{contestant}_{method}_{name}.npy", density)
    if with_chains and contestant in OURS and "kl" in result:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            chains = log_normalizer_by_chains(model, seed)
        chains["z"] = (chains["log_normalizer"] - result["log_normalizer"]) / chains["standard_error"]
        result["chains"] = chains | {"warnings": [str(each.message)[:200] for each in caught]}
    return result


def begin():
    """A worker: one thread in each framework."""
    os.environ.update(OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1")
    import tensorflow as tf
    import torch

    with contextlib.suppress(ImportError):  # before the clock starts
        import ebm  # noqa: F401
        import torchebm.losses
        import torchebm.samplers  # noqa: F401
    torch.set_num_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def key(result):
    """What a run is known by."""
    return tuple(result[name] for name in ("contestant", "method", "target", "seed", "num_steps"))


def save(path, runs):
    """Writes the runs in one step: an interrupt leaves the file before or after."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(runs, indent=1) + "\n")
    os.replace(temporary, path)


def of(runs, contestant, method, target, measure):
    """That figure of all seeds; infinite for a run that failed, or has no density."""
    wanted = (contestant, method, target)
    found = [r.get(measure, np.inf) for r in runs if (r["contestant"], r["method"], r["target"]) == wanted]
    return [np.inf if np.isscalar(value) and np.isnan(value) else value for value in found]


def median(values):
    """The median; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def number(value):
    """Three digits at most."""
    if not np.isfinite(value):
        return "∞" if value > 0 else "nan"
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 0.1 else f"{value:.3g}"


def typical(runs, contestant, method, target, measure):
    """The median as text, as a bound where mass is at the rim of the grid; empty of nothing."""
    values = of(runs, contestant, method, target, measure)
    rims = of(runs, contestant, method, target, "at_rim")
    bound = "≥ " if any(MAX_AT_RIM < rim < np.inf for rim in rims) else ""
    return f"{bound}{number(median(values))}" if values else ""


def table(runs, measure):
    """Markdown: a row for each contestant and method, a column for each target; median, least and greatest of seeds."""
    lines = [f"| {measure} | {' | '.join(TARGETS)} |", "|---" * (len(TARGETS) + 1) + "|"]
    for contestant, method in ENTRIES:
        cells = []
        for target in TARGETS:
            values = of(runs, contestant, method, target, measure)
            spread = f" ({number(min(values))}–{number(max(values))})" if len(values) > 1 else ""
            cells.append(typical(runs, contestant, method, target, measure) + spread)
        if any(cells):
            lines.append(f"| {contestant} {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def best_of(runs, entries, target):
    """The entry with the least median KL, and that; None and NaN where nobody has run."""
    medians = {entry: median(of(runs, *entry, target, "kl")) for entry in entries}
    medians = {entry: value for entry, value in medians.items() if not np.isnan(value)}
    return min(medians.items(), key=lambda item: item[1]) if medians else (None, float("nan"))


def verdicts(runs):
    """Lines: whether the best of ours is within its aim, and each of our losses no worse than the peers' same one."""
    lines = []
    for target in TARGETS:
        entry, value = best_of(runs, [entry for entry in ENTRIES if entry[0] in OURS], target)
        if entry:
            holds = "holds" if value <= AIMS[target] else "FALLS SHORT"
            lines.append(f"- {target}: {' '.join(entry)} {number(value)}, aim {number(AIMS[target])}: {holds}")
    for method in LOSSES:
        peers = [entry for entry in quality_peers.TRAINERS if entry[1].split()[0] == method]
        for target in TARGETS:
            entry, theirs = best_of(runs, peers, target)
            ours = median(of(runs, "tfp_ebm", method, target, "kl"))
            if entry and not np.isnan(ours):
                holds = "holds" if ours <= theirs and ours < np.inf else "FALLS SHORT"
                lines.append(f"- {method} on {target}: {number(ours)}, {' '.join(entry)} {number(theirs)}: {holds}")
    return "\n".join(lines)


def chains_table(runs):
    """Markdown: how far log Z by annealed importance sampling is from the grid's, in standard errors."""
    lines = [f"| z | {' | '.join(TARGETS)} |", "|---" * (len(TARGETS) + 1) + "|"]
    for contestant, method in ENTRIES:
        found = [of(runs, contestant, method, target, "chains") for target in TARGETS]
        found = [[chains for chains in cell if isinstance(chains, dict)] for cell in found]
        if any(found):
            cells = [", ".join(f"{c['z']:+.1f} ± {c['standard_error']:.4f}" for c in cell) for cell in found]
            lines.append(f"| {contestant} {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    """Runs what is missing, writes it down, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=TARGETS)
    parser.add_argument("--contestants", nargs="*", choices=sorted({entry[0] for entry in ENTRIES}))
    parser.add_argument("--methods", nargs="*", choices=sorted({entry[1] for entry in ENTRIES}))
    parser.add_argument("--num-steps", type=int, default=5000)
    options = parser.parse_args()
    path, folder = options.out / "runs.json", options.out / "densities"
    folder.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text()) if path.exists() else []
    done = {key(each) for each in runs}
    tasks = [
        (contestant, method, target, seed, options.num_steps, folder, seed == options.seeds[0])
        for seed in options.seeds
        for target in options.targets
        for contestant, method in ENTRIES
        if contestant in (options.contestants or (contestant,)) and method in (options.methods or (method,))
        if (contestant, method, target, seed, options.num_steps) not in done
    ]
    context = multiprocessing.get_context("spawn")  # TensorFlow does not survive a fork
    with context.Pool(options.jobs, begin, maxtasksperchild=50) as pool:
        for count, result in enumerate(pool.imap_unordered(run, tasks), 1):
            runs.append(result)
            save(path, runs)
            what = result.get("reason") or f"KL {number(result['kl'])}, {result['seconds']:.0f} s"
            print(f"{count}/{len(tasks)}", *key(result)[:4], what, flush=True)
    runs = [each for each in runs if each["num_steps"] == options.num_steps]
    parts = [table(runs, measure) for measure in ("kl", "grid_total_variation", "mmd", "seconds")]
    text = "\n\n".join([*parts, chains_table(runs), verdicts(runs)]) + "\n"
    (options.out / "tables.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
