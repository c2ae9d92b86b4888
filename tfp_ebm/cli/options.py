"""The options of the command line, each with its default; kept free of TensorFlow so that `--help` answers at once."""

from __future__ import annotations

import argparse
import ast
import pathlib
from typing import Any, NoReturn

from tfp_ebm import __version__

# What the package offers under these names; repeated here because importing the package would import TensorFlow.
TOYS = (
    *("two_moons", "two_gaussians", "eight_gaussians", "pinwheel", "rings", "checkerboard", "swiss_roll"),
    *("banana", "rosenbrock", "funnel"),
)
# Short names of the losses, their full names, and when to use them.
LOSSES = {
    "nll": ("negative_log_likelihood", "exact, by fit_density: log p and samples need no chains; tables"),
    "nce": ("noise_contrastive_estimation", "density and log Z; few columns, many rows"),
    "dsm": ("denoising_score_matching", "blurs the data by --sigma; any number of columns"),
    "mdsm": ("multiscale_denoising_score_matching", "the same with six widths of noise; separate modes"),
    "sm": ("score_matching", "exact; smooth densities"),
    "ssm": ("sliced_score_matching", "along random directions; many columns"),
    "pcd": ("persistent_contrastive_divergence", "maximum likelihood by persistent chains; few columns"),
    "cd": ("contrastive_divergence", "maximum likelihood by short chains from the data"),
}
SAMPLERS = ("smc", "hmc", "mala", "nuts", "random_walk", "langevin")
TABLES = (".csv", ".parquet")
# Kinds of columns, as `datasets.TableEncoder` knows them, and what may be done with missing cells.
KINDS = ("continuous", "whole", "rating", "boolean", "category", "constant", "duplicate")
MISSING = ("refuse", "drop", "model")

_FIT = f"""\
example:
  python -m tfp_ebm fit lake.csv --out runs/lake
  fits a density to the columns of lake.csv and writes runs/lake: model.keras, saved_model/, samples.npy, samples.csv,
  figure.png, references.npz and report.json. Add --minutes 0.1 for a quick look, or --loss dsm to train a network by
  another loss. The exit code is 3 if the report says FAILED: the files are there, but the model is not good.
  python -m tfp_ebm fit --resume runs/lake
  continues that command if it was interrupted.

losses:
{chr(10).join(f"  {short:5} {name}: {use}" for short, (name, use) in LOSSES.items())}"""
_SAMPLE = """\
example:
  python -m tfp_ebm sample runs/lake -n 1000 --out lake_samples.csv
  draws 1000 rows from the model of runs/lake and writes them under the names of its columns, in their kinds.
  python -m tfp_ebm sample runs/lake --given holes.csv -n 20 --out filled.csv
  fills the empty cells of holes.csv, 20 times for each row."""
_EVALUATE = """\
example:
  python -m tfp_ebm evaluate runs/lake new.csv --out new_with_energies.csv
  prints the mean log-likelihood of the rows of new.csv with its standard error, and writes the rows with their
  energies beside them. Columns are found by name."""
_OUTLIERS = """\
example:
  python -m tfp_ebm outliers runs/lake new.csv --calibration kept.csv --out new_with_p_values.csv
  prints how many rows of new.csv have a p-value of at most .01, and writes the rows with their statistics and p-values
  beside them. On average, at most one row in a hundred like those of kept.csv has such a p-value, however good the
  model is."""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, where there is one, and examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """Raises its errors, for `main` to print on one line like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def read_options(text: str) -> dict[str, Any]:
    """Parses keyword arguments with literal values, as `--read` takes them; nothing is executed.

    >>> read_options("sep=';', na_values=[-999], header=None")
    {'sep': ';', 'na_values': [-999], 'header': None}
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("only keyword arguments")
        return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise argparse.ArgumentTypeError(
            f"must be keyword arguments of pandas.read_csv with literal values, such as \"sep=';', decimal=','\", got "
            f"{text!r}"
        ) from error


def path(text: str) -> pathlib.Path:
    """Returns a path.

    >>> path("runs/lake").name
    'lake'
    """
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"must be the path of a file or folder, got {text!r}")
    return pathlib.Path(text)


def loss_name(text: str) -> str:
    """Returns the full name of a loss.

    >>> loss_name("nce"), loss_name("score_matching")
    ('noise_contrastive_estimation', 'score_matching')
    """
    names = {short: name for short, (name, _) in LOSSES.items()}
    if text not in (*names, *names.values()):
        known = ", ".join(f"{short} ({name})" for short, name in names.items())
        raise argparse.ArgumentTypeError(f"must be one of {known}, got {text!r}")
    return names.get(text, text)


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands; a mistyped option is a ValueError.

    >>> make_parser().parse_args(["fit", "rings", "--out", "runs/rings"]).rows
    50000
    """
    parser = _Parser(prog="tfp-ebm", description="Fit, sample and evaluate energy-based models, and find outliers.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, help: str, epilog: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=epilog, formatter_class=_Formatter
        )

    fit = add("fit", "train a model on data", _FIT)
    files = "a file (.csv, .tsv, .txt, .parquet, .xlsx, .json, .npy, .npz and others, also .gz, .bz2, .xz or .zip)"
    fit.add_argument("data", nargs="?", help=f"{files}, digits, or one of {', '.join(TOYS)}")
    fit.add_argument("--out", type=path, help="directory to write the run to")
    resume = (
        "continue the training of this run, which was interrupted; it is saved about every minute in RUN.training, "
    )
    resume += "and all other options are those of its command (default: none)"
    fit.add_argument("--resume", type=path, metavar="RUN", help=resume)
    _add_data_options(fit, rows=50_000)
    _add_training_options(fit)
    _add_sampling_options(fit)
    fit.add_argument("--seed", type=int, default=0, help="seed of weights, noise, order of batches and samples")

    sample = add("sample", "draw more samples from a fitted model", _SAMPLE)
    sample.add_argument("run", type=path, help="directory that `fit` wrote")
    given = "file of rows with empty cells, which are filled by draws given all other cells; -n is the number of draws "
    given += "for each row (default: none)"
    sample.add_argument("--given", metavar="FILE", help=given)
    file = "file to write: .npy, .csv or .parquet (default: samples_SEED.npy in the run)"
    sample.add_argument("--out", type=path, help=file)
    _add_sampling_options(sample, num_samples=None)
    read = "options of pandas for reading --given (default: found in the file)"
    sample.add_argument("--read", type=read_options, metavar="OPTIONS", help=read)
    sample.add_argument("--seed", type=int, default=1, help="seed of the samples")

    evaluate = add("evaluate", "compute energies and log-likelihoods of data under a fitted model", _EVALUATE)
    evaluate.add_argument("run", type=path, help="directory that `fit` wrote")
    evaluate.add_argument("data", help="the data, as for `fit`")
    energies = "file to write: .csv or .parquet for the rows with their energies, .npy for the energies (default: none)"
    evaluate.add_argument("--out", type=path, help=energies)
    _add_data_options(evaluate, rows=10_000)
    evaluate.add_argument("--seed", type=int, default=1, help="seed of toy data and of --dequantize")

    outliers = add("outliers", "compute p-values of rows, small for outliers, under a fitted model", _OUTLIERS)
    outliers.add_argument("run", type=path, help="directory that `fit` wrote")
    outliers.add_argument("data", help="the rows to test, as for `fit`")
    calibration = "rows like the training rows, which the model was not trained on; they are read as the data are"
    outliers.add_argument("--calibration", metavar="FILE", required=True, help=calibration)
    rate = "expected share of false alarms; rows with p-values of at most this number are counted as outliers"
    outliers.add_argument("--rate", type=float, default=0.01, help=rate)
    tested = "file to write: .csv or .parquet for the rows with statistic and p_value, .npy for the p-values "
    outliers.add_argument("--out", type=path, help=f"{tested}(default: none)")
    _add_data_options(outliers, rows=10_000)
    outliers.add_argument("--seed", type=int, default=1, help="seed of toy data and of the noise of whole numbers")

    for command in (fit, sample, evaluate, outliers):
        command.add_argument("--overwrite", action="store_true", help="replace what exists at --out")
        command.add_argument("--quiet", action="store_true", help="print no progress and no notes")
    return parser


def _add_data_options(parser: argparse.ArgumentParser, rows: int) -> None:
    read = "options of pandas for reading the file, such as \"sep=';', decimal=','\" (default: found in the file)"
    parser.add_argument("--read", type=read_options, metavar="OPTIONS", help=read)
    parser.add_argument("--key", help="array of a .npz file, or file of a .zip, to read (default: the only one)")
    parser.add_argument("--delimiter", help="character between the cells of a text file (default: found in the file)")
    parser.add_argument("--dequantize", action="store_true", help="add U(0, 1) to whole numbers, such as pixels")
    parser.add_argument("--rows", type=int, default=rows, help="number of rows to draw from a toy distribution")


def column_kind(text: str) -> tuple[str, str]:
    """Returns the name of a column and its kind.

    >>> column_kind("quality=category")
    ('quality', 'category')
    """
    name, _, kind = text.rpartition("=")
    if not name or kind not in KINDS:
        raise argparse.ArgumentTypeError(f"must be COLUMN=KIND with one of {', '.join(KINDS)}, got {text!r}")
    return name, kind


def _add_training_options(fit: argparse.ArgumentParser) -> None:
    loss = f"what to minimise: {', '.join(LOSSES)}, or a full name from the list below (default: nll for a table of up "
    loss += "to 100 columns unless an option of the other losses is given; else nce for 5000 or more training rows of "
    loss += "up to 3 columns, dsm otherwise)"
    fit.add_argument("--loss", type=loss_name, help=loss)
    minutes = "time for the trainings of --loss nll, about (default: by the size of the table, 0.4 to 2.5)"
    fit.add_argument("--minutes", type=float, help=minutes)
    kind = f"kind of a column: {', '.join(KINDS)}; may be repeated (default: found in the file)"
    fit.add_argument("--kind", type=column_kind, action="append", metavar="COLUMN=KIND", help=kind)
    missing = "what to do with missing cells: refuse them, drop their rows, or model them: their rows are "
    missing += "used, and a missing cell has no factor in the density"
    fit.add_argument("--missing", choices=MISSING, default="refuse", help=missing)
    sigma = "noise level of denoising score matching, in standard deviations of the data; implies that loss (default: "
    sigma += "3/4 of Scott's rule, at most 0.4)"
    fit.add_argument("--sigma", type=float, help=sigma)
    ratio = "noise samples per row, for noise contrastive estimation (default: 4)"
    fit.add_argument("--noise-ratio", type=float, help=ratio)
    width = "width of the Gaussian base in terms of the data's standard deviations (default: chosen for the loss)"
    fit.add_argument("--base-width", type=float, help=width)
    units = "widths of the hidden layers (default: 128 128)"
    fit.add_argument("--units", type=int, nargs="+", help=units)
    fourier = "number of random Fourier features before the first layer (default: chosen for the loss)"
    fit.add_argument("--fourier-features", type=int, help=fourier)
    fit.add_argument("--steps", type=int, help="number of optimizer steps (default: 5000)")
    batch = "rows per step; at most the number of training rows (default: 256)"
    fit.add_argument("--batch-size", type=int, help=batch)
    rate = "learning rate at the start; it decays along a cosine to zero (default: chosen for the loss)"
    fit.add_argument("--learning-rate", type=float, help=rate)


def _add_sampling_options(parser: argparse.ArgumentParser, num_samples: int | None = 4000) -> None:
    sampler = "sequential Monte Carlo, or the kernel of chains; each step of all kernels but langevin begins with "
    sampler += (
        "proposals from the base distribution (default: exact samples for --loss nll, hmc if an option of chains "
    )
    sampler += "is given or for more than 50 columns, else smc); --kernel is the same option"
    parser.add_argument("--sampler", "--kernel", choices=SAMPLERS, dest="sampler", help=sampler)
    step_size = "first step size, in standardised coordinates; all kernels but langevin adapt it (default: 0.1, "
    step_size += "random_walk 0.3, langevin 0.05)"
    parser.add_argument("--step-size", type=float, help=step_size)
    number = "number of samples" + (" (default: 4000)" if num_samples is None else "")
    parser.add_argument("-n", "--num", "--num-samples", type=int, default=num_samples, dest="num_samples", help=number)
    chains = "number of chains; samples are taken from all of them (default: a quarter of the samples)"
    parser.add_argument("--num-chains", type=int, help=chains)
    parser.add_argument("--burnin", type=int, help="steps of each chain before the first kept state (default: 300)")
    parser.add_argument("--thin", type=int, help="steps from one kept state of a chain to the next (default: 5)")
