"""The options of the command line, each with its default; kept free of TensorFlow so that `--help` answers at once."""

from __future__ import annotations

import argparse
import pathlib
from typing import NoReturn

from tfp_ebm import __version__

# What the package offers under these names; repeated here because asking it would import TensorFlow.
TOYS = (
    *("two_moons", "two_gaussians", "eight_gaussians", "pinwheel", "rings", "checkerboard", "swiss_roll"),
    *("banana", "rosenbrock", "funnel"),
)
LOSSES = (
    *("contrastive_divergence", "denoising_score_matching", "multiscale_denoising_score_matching"),
    *("noise_contrastive_estimation", "persistent_contrastive_divergence", "score_matching"),
    "sliced_score_matching",
)
KERNELS = ("hmc", "mala", "nuts", "random_walk", "langevin")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Leaves its errors to `main`, to be printed on one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; a mistyped option is a ValueError.

    >>> make_parser().parse_args(["fit", "rings", "--out", "runs/rings"]).steps
    5000
    """
    parser = _Parser(prog="tfp-ebm", description="Fit, sample and evaluate energy-based models.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    fit = commands.add_parser("fit", help="train a model on data", formatter_class=_Formatter)
    fit.add_argument("data", help=f"a .npy, .npz or .csv file, digits, or one of {', '.join(TOYS)}")
    fit.add_argument("--out", required=True, type=pathlib.Path, help="directory to write the run to")
    _add_data_options(fit, rows=50_000)
    loss = "what to minimise (default: noise contrastive estimation for 5000 rows and more to train on, of up to 3 "
    loss += "coordinates, denoising for all else)"
    fit.add_argument("--loss", choices=LOSSES, help=loss)
    sigma = "noise of denoising, which it asks for, in standard deviations of the data (default: 3/4 of Scott's rule, "
    sigma += "at most 0.4)"
    fit.add_argument("--sigma", type=float, help=sigma)
    fit.add_argument("--units", type=int, nargs="+", default=[128, 128], help="widths of the hidden layers")
    fit.add_argument(
        "--fourier-features", type=int, help="random frequencies in front of them (default: as suits the loss)"
    )
    fit.add_argument("--steps", type=int, default=5000, help="optimizer steps")
    fit.add_argument("--batch-size", type=int, default=256, help="rows per step")
    rate = "at the start; decays along a cosine to zero (default: as suits the loss)"
    fit.add_argument("--learning-rate", type=float, help=rate)
    _add_sampling_options(fit)
    fit.add_argument("--seed", type=int, default=0, help="of weights, noise, order of batches and samples")

    sample = commands.add_parser("sample", help="draw more samples of a fitted model", formatter_class=_Formatter)
    sample.add_argument("run", type=pathlib.Path, help="directory that `fit` wrote")
    sample.add_argument("--out", type=pathlib.Path, help=".npy file to write (default: samples_SEED.npy in the run)")
    _add_sampling_options(sample)
    sample.add_argument("--seed", type=int, default=1, help="of the samples")

    evaluate = commands.add_parser("evaluate", help="score data under a fitted model", formatter_class=_Formatter)
    evaluate.add_argument("run", type=pathlib.Path, help="directory that `fit` wrote")
    evaluate.add_argument("data", help="what `fit` takes")
    evaluate.add_argument("--out", type=pathlib.Path, help=".npy file for the energy of each row (default: none)")
    _add_data_options(evaluate, rows=10_000)
    evaluate.add_argument("--seed", type=int, default=1, help="of toy data and dequantisation")

    for command in (fit, sample, evaluate):
        command.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    for command in (fit, sample):
        command.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def _add_data_options(parser: argparse.ArgumentParser, rows: int) -> None:
    parser.add_argument("--key", help="which array of a .npz file (default: the only one)")
    parser.add_argument("--delimiter", help="between the cells of a .csv file (default: found)")
    parser.add_argument("--dequantize", action="store_true", help="add U(0, 1) to whole numbers, such as pixels")
    parser.add_argument("--rows", type=int, default=rows, help="rows to draw of a toy distribution")


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernel", choices=KERNELS, default="hmc", help="how to sample")
    step_size = "in standardised units; all but langevin adapt it (default: 0.1, random_walk 0.3, langevin 0.05)"
    parser.add_argument("--step-size", type=float, help=step_size)
    parser.add_argument("-n", "--num-samples", type=int, default=4000, help="samples, four of each chain")
    parser.add_argument("--burnin", type=int, default=300, help="steps of each chain before its first kept state")
