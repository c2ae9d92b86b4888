"""Draws what `quality.py` has written: the densities of all models of the first seed, beside the truth.

    python benchmarks/quality_figures.py --out runs/quality [--overview tutorials/figures/quality.png]

One figure for each target, contestants by methods, goes to the folder; the overview has all targets, with the columns
that `OVERVIEW` names. Every panel of a target has the same scale, the square root of the density up to the truth's
highest, so that a density too sharp, too blurred or in the wrong place looks it. Beneath stands the median KL of seeds.
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

OVERVIEW = (
    *(("preset", method) for method in ("NCE", "PCD")),
    *(("tfp_ebm", method) for method in ("SM", "DSM")),
    *(("ebmkit", method) for method in ("NCE", "PCD", "SM", "DSM")),
    *(("torchebm", method) for method in ("PCD", "SM", "DSM")),
)
NAMES = {"preset": "tfp_ebm", "tfp_ebm": "tfp_ebm"}
# What is drawn of the plane; the densities that are kept reach a little further.
SIDE = 3.4
# A panel's side and the space for its text, inches.
PANEL, TEXT = 1.05, 0.2


def truth(target):
    """The target's density on the square that is drawn."""
    nodes, _ = quality.grid()
    _, log_p = quality.target_of(target)
    return square(np.exp(log_p[np.abs(nodes).max(1) <= quality.SHOWN]))


def square(density):
    """The part within ±SIDE of a density on the square that is kept, given flat or not."""
    side = round(np.sqrt(density.size))
    axis = 2 * quality.SHOWN * ((np.arange(side) + 0.5) / side - 0.5)
    inside = np.abs(axis) <= SIDE
    return density.reshape(side, side)[np.ix_(inside, inside)]


def panel(ax, density, highest):
    """One density; x₁ to the right, x₂ upwards."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_color("0.8")
    if density is None:
        ax.text(0.5, 0.5, "no\ndensity", ha="center", va="center", transform=ax.transAxes, fontsize=9, color="0.3")
        return
    shade = np.sqrt(np.clip(density / highest, 0.0, 1.0))
    ax.imshow(shade.T, origin="lower", cmap="cividis", vmin=0.0, vmax=1.0, interpolation="bilinear")


def density_of(folder, contestant, method, target):
    """What a run has left, if it had a density."""
    path = folder / f"{contestant}_{method}_{target}.npy"
    return square(np.load(path)) if path.exists() else None


def caption(runs, contestant, method, target):
    """The median KL; as a bound where mass is at the rim of the grid."""
    values = quality.of(runs, contestant, method, target, "kl")
    rims = quality.of(runs, contestant, method, target, "at_rim")
    bound = any(quality.MAX_AT_RIM < rim < np.inf for rim in rims)
    return ("≥ " if bound else "") + quality.number(quality.median(values))


def overview(runs, folder, path):
    """All targets, one a row: the truth, then the columns of `OVERVIEW`."""
    shape = (len(quality.TARGETS), 1 + len(OVERVIEW))
    size = (shape[1] * PANEL + 0.2, shape[0] * (PANEL + TEXT) + 0.4)
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    for row, target in enumerate(quality.TARGETS):
        density = truth(target)
        panel(axes[row, 0], density, density.max())
        axes[row, 0].set_ylabel(target.replace("_", " "), fontsize=9)
        for column, (contestant, method) in enumerate(OVERVIEW, 1):
            ax = axes[row, column]
            panel(ax, density_of(folder, contestant, method, target), density.max())
            text = caption(runs, contestant, method, target)
            ax.set_xlabel(text, fontsize=10, labelpad=2, fontweight="bold" if contestant in quality.OURS else "normal")
    axes[0, 0].set_title("truth", fontsize=10)
    for column, (contestant, method) in enumerate(OVERVIEW, 1):
        ours = contestant in quality.OURS
        title = f"{NAMES.get(contestant, contestant)}\n{method}"
        axes[0, column].set_title(title, fontsize=10, fontweight="bold" if ours else "normal")
    write(figure, path)


def of_target(runs, folder, target, path):
    """One target: contestants by methods, and the truth."""
    methods, contestants = list(quality.LOSSES), list(dict.fromkeys(entry[0] for entry in quality.ENTRIES))
    shape = (len(contestants), 1 + len(methods))
    size = (shape[1] * 1.5, shape[0] * 1.75)
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained")
    density = truth(target)
    for row, contestant in enumerate(contestants):
        for column, method in enumerate(methods, 1):
            ax = axes[row, column]
            if (contestant, method) not in quality.ENTRIES:
                ax.axis("off")
                continue
            panel(ax, density_of(folder, contestant, method, target), density.max())
            ax.set_title(f"{contestant} {method}", fontsize=9)
            ax.set_xlabel(f"KL {caption(runs, contestant, method, target)}", fontsize=9)
        axes[row, 0].axis("off")
    axes[0, 0].axis("on")
    panel(axes[0, 0], density, density.max())
    axes[0, 0].set_title(target.replace("_", " "), fontsize=9)
    write(figure, path)


def write(figure, path):
    """As a picture of 256 colours, a third of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
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
