"""Draws what `quality.py` has written: the densities of all models of the first seed, beside the truth.

    python benchmarks/quality_figures.py --out runs/quality [--overview tutorials/figures/quality.png]

One figure for each target goes to the folder, contestants by methods: the energy above its minimum, up to `DEEPEST`
nats, and draws of the density, beside the truth's energy and the data. The overview has all targets, with the columns
that `OVERVIEW` names; its panels show the square root of the density up to the truth's highest, so that a density too
sharp, too blurred or in the wrong place is seen. The median KL of the seeds is below.
"""

import argparse
import io
import json
import pathlib

import matplotlib
import numpy as np
import quality

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import tfp_ebm as ebm

OVERVIEW = (
    *(("preset", method) for method in ("NCE", "PCD")),
    *(("tfp_ebm", method) for method in ("SM", "DSM")),
    *(("ebmkit", method) for method in ("NCE", "PCD", "SM", "DSM")),
    *(("torchebm", method) for method in ("PCD", "SM", "DSM")),
)
# What is drawn of the plane; the densities that are kept reach a little further.
SIDE = 3.4
# The highest energy that is distinguished from higher ones, and draws shown.
DEEPEST, NUM_DRAWN = 10.0, 1500
# A panel's side and the space for its text, inches.
PANEL, TEXT = 1.05, 0.2


def truth(target):
    """The target's density on the square that is kept."""
    side = quality.NUM_SHOWN
    nodes = quality.centres(quality.SHOWN, side).astype("float32")
    return getattr(ebm.targets, target)().prob(nodes).numpy().reshape(side, side)


def within(density):
    """The part within ±SIDE."""
    inside = np.abs(quality.centres(quality.SHOWN, len(density))[:: len(density), 0]) <= SIDE
    return density[np.ix_(inside, inside)]


def empty(ax, text):
    """A panel without a picture."""
    ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, fontsize=9, color="0.3")
    ax.set_aspect("equal", "box")


def bare(ax):
    """A panel without ticks."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_color("0.8")


def image(ax, values, highest, colours):
    """Values from 0 to `highest`; x₁ to the right, x₂ upwards."""
    ax.imshow(values.T, origin="lower", cmap=colours, vmin=0.0, vmax=highest, interpolation="bilinear")


def energy(ax, density):
    """−log p above its minimum."""
    with np.errstate(divide="ignore"):
        values = np.log(density.max()) - np.log(within(density))
    image(ax, np.minimum(values, DEEPEST), DEEPEST, "cividis_r")


def scatter(ax, density):
    """Draws of a density that is given on the square."""
    nodes = quality.centres(quality.SHOWN, len(density))
    cell = (2 * quality.SHOWN / len(density)) ** 2
    with np.errstate(divide="ignore"):
        x = quality.draws(-np.log(density.ravel()), nodes, cell, NUM_DRAWN, seed=0)
    ax.scatter(*x.T, s=1.0, lw=0, color="0.1", rasterized=True)
    ax.set(xlim=(-SIDE, SIDE), ylim=(-SIDE, SIDE), aspect="equal")


def density_of(folder, contestant, method, target):
    """What the run of the first seed has left, if it had a density."""
    path = folder / f"{contestant}_{method}_{target}.npy"
    return np.load(path) if path.exists() else None


def caption(runs, contestant, method, target):
    """The median KL; as a bound where mass is at the rim of the grid."""
    return quality.typical(runs, contestant, method, target, "kl") or "not run"


def overview(runs, folder, path):
    """All targets, one a row: the truth, then the columns of `OVERVIEW`."""
    shape = (len(quality.TARGETS), 1 + len(OVERVIEW))
    size = (shape[1] * PANEL + 0.2, shape[0] * (PANEL + TEXT) + 0.4)
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for ax in axes.flat:
        bare(ax)
    for row, target in enumerate(quality.TARGETS):
        known = truth(target)
        highest = known.max()
        image(axes[row, 0], np.sqrt(within(known)), np.sqrt(highest), "cividis")
        axes[row, 0].set_ylabel(target.replace("_", " "), fontsize=9)
        for column, (contestant, method) in enumerate(OVERVIEW, 1):
            ax = axes[row, column]
            density = density_of(folder, contestant, method, target)
            if density is None:
                empty(ax, "no\ndensity")
            else:
                image(ax, np.sqrt(within(density)), np.sqrt(highest), "cividis")
            text = caption(runs, contestant, method, target)
            ax.set_xlabel(text, fontsize=10, labelpad=2, fontweight="bold" if contestant in quality.OURS else "normal")
    axes[0, 0].set_title("truth", fontsize=10)
    for column, (contestant, method) in enumerate(OVERVIEW, 1):
        ours = contestant in quality.OURS
        title = f"{'tfp_ebm' if ours else contestant}\n{method}"
        axes[0, column].set_title(title, fontsize=10, fontweight="bold" if ours else "normal")
    write(figure, path)


def of_target(runs, folder, target, path):
    """One target: contestants by methods, each with its energy and draws; the truth and data at the top left."""
    methods, contestants = list(quality.LOSSES), list(dict.fromkeys(entry[0] for entry in quality.ENTRIES))
    shape = (len(contestants), 2 * (1 + len(methods)))
    size = (shape[1] * PANEL, shape[0] * (PANEL + 2 * TEXT) + 0.2)
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0.01, hspace=0.02)
    pairs = axes.reshape(len(contestants), -1, 2)
    cells = {(0, 0): (truth(target), f"{target.replace('_', ' ')}: energy, data", "")}
    for row, contestant in enumerate(contestants):
        for column, method in enumerate(methods, 1):
            if (contestant, method) in quality.ENTRIES:
                text = f"KL {caption(runs, contestant, method, target)}"
                cells[row, column] = (density_of(folder, contestant, method, target), f"{contestant} {method}", text)
    for place in np.ndindex(pairs.shape[:2]):
        if place not in cells:
            for ax in pairs[place]:
                ax.axis("off")
            continue
        density, title, text = cells[place]
        for draw, ax in zip((energy, scatter), pairs[place], strict=True):
            bare(ax)
            if density is None:
                empty(ax, "no density")
            else:
                draw(ax, density)
        pairs[place][0].set_title(title, fontsize=9, loc="left")
        pairs[place][0].set_xlabel(text, fontsize=9, loc="left")
    write(figure, path)


def write(figure, path):
    """As a picture of 256 colours, a third of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=105)
    plt.close(figure)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main():
    """Draws all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="what quality.py wrote")
    parser.add_argument("--overview", type=pathlib.Path, help="default: overview.png in that folder")
    options = parser.parse_args()
    runs = json.loads((options.out / "runs.json").read_text())
    folder = options.out / "densities"
    for target in quality.TARGETS:
        of_target(runs, folder, target, options.out / f"{target}.png")
    overview(runs, folder, options.overview or options.out / "overview.png")


if __name__ == "__main__":
    main()
