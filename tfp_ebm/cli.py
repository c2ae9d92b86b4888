"""The command line: from a name or a file to a trained, sampled and exported model in one command.

python -m tfp_ebm fit two_moons --out runs/moons
python -m tfp_ebm sample runs/moons -n 1000
python -m tfp_ebm evaluate runs/moons data.csv
"""

from __future__ import annotations

import argparse
import inspect
import json
import pathlib
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

import tfp_ebm
from tfp_ebm import datasets, losses, mcmc, plotting, recipes
from tfp_ebm.arguments import check_count, check_positive, stateless_seed
from tfp_ebm.batches import shuffled_batches
from tfp_ebm.distribution import EnergyDistribution
from tfp_ebm.files import written_atomically
from tfp_ebm.model import EnergyModel

__all__ = ["main"]

RUN_FILES = ("model.keras", "saved_model", "samples.npy", "figure.png", "report.json")

# The share of rows kept from training, to report the loss on.
_HELD_OUT = 0.1
# States kept per chain for R-hat and effective sample size; the last ones are the samples.
_KEPT_STATES = 50
# Progress is reported this often, if the number of steps divides so.
_MAX_EPOCHS = 10

KERNELS = {
    "hmc": lambda step: mcmc.Adaptive(mcmc.HMC(step or 0.1, num_leapfrog_steps=10)),
    "mala": lambda step: mcmc.Adaptive(mcmc.MALA(step or 0.1)),
    "nuts": lambda step: mcmc.Adaptive(mcmc.NUTS(step or 0.1)),
    "random_walk": lambda step: mcmc.Adaptive(mcmc.RandomWalk(step or 0.3)),
    "langevin": lambda step: mcmc.Langevin(step or 0.05),
}


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog="tfp-ebm", description="Fit, sample and evaluate energy-based models.")
    parser.add_argument("--version", action="version", version=tfp_ebm.__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    fit = commands.add_parser("fit", help="train a model on data", formatter_class=formatter)
    toys = ", ".join(datasets.TOY_NAMES)
    fit.add_argument("data", help=f"a .npy, .npz or .csv file, digits, or one of {toys}")
    fit.add_argument("--out", required=True, type=pathlib.Path, help="directory to write the run to")
    fit.add_argument("--overwrite", action="store_true", help="replace the directory if it exists")
    _add_data_options(fit)
    fit.add_argument("--rows", type=int, default=50_000, help="rows to draw of a toy distribution")
    fit.add_argument("--loss", choices=losses.aliases(), default="denoising_score_matching", help="what to minimise")
    fit.add_argument("--sigma", type=float, default=0.1, help="noise of denoising, in standard deviations of the data")
    fit.add_argument("--units", type=int, nargs="+", default=[128, 128], help="widths of the hidden layers")
    fit.add_argument("--fourier-features", type=int, default=0, help="random frequencies in front of them")
    fit.add_argument("--steps", type=int, default=5000, help="optimizer steps")
    fit.add_argument("--batch-size", type=int, default=256, help="rows per step")
    fit.add_argument("--learning-rate", type=float, default=5e-3, help="at the start; decays along a cosine to zero")
    _add_sampling_options(fit)
    fit.add_argument("--seed", type=int, default=0, help="of weights, noise, order of batches and samples")
    fit.add_argument("--quiet", action="store_true", help="no progress bars")

    sample = commands.add_parser("sample", help="draw more samples of a fitted model", formatter_class=formatter)
    sample.add_argument("run", type=pathlib.Path, help="directory that `fit` wrote")
    _add_sampling_options(sample)
    sample.add_argument("--seed", type=int, default=1, help="of the samples")
    sample.add_argument("--out", type=pathlib.Path, help="file to write, .npy (default: samples_SEED.npy in the run)")

    evaluate = commands.add_parser("evaluate", help="score data under a fitted model", formatter_class=formatter)
    evaluate.add_argument("run", type=pathlib.Path, help="directory that `fit` wrote")
    evaluate.add_argument("data", help="what `fit` takes")
    _add_data_options(evaluate)
    evaluate.add_argument("--rows", type=int, default=10_000, help="rows to draw of a toy distribution")
    evaluate.add_argument("--seed", type=int, default=1, help="of toy data and dequantisation")
    evaluate.add_argument("--out", type=pathlib.Path, help="file for the energy of each row, .npy (default: none)")
    return parser


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", help="which array of a .npz file")
    parser.add_argument("--delimiter", help="between the cells of a .csv file (default: found)")
    parser.add_argument("--dequantize", action="store_true", help="add U(0, 1) to whole numbers, such as pixels")


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernel", choices=tuple(KERNELS), default="hmc", help="how to sample")
    parser.add_argument("--step-size", type=float, help="in standardised units; where adaptation starts")
    parser.add_argument("-n", "--num-samples", type=int, default=1000, help="samples, each of a chain of its own")
    parser.add_argument("--burnin", type=int, default=300, help="steps of each chain before its first kept state")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0, or 2 after printing what was wrong with the input.

    >>> main(["sample", "no/such/run"])
    2
    """
    options = _parser().parse_args(arguments)
    command = {"fit": _fit, "sample": _sample, "evaluate": _evaluate}[options.command]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(f"tfp-ebm: warning: {message}", file=sys.stderr)
            command(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"tfp-ebm: error: {error}", file=sys.stderr)
        return 2
    return 0


def _load(options: argparse.Namespace) -> datasets.Table:
    return datasets.load_table(
        options.data,
        key=options.key,
        delimiter=options.delimiter,
        dequantize=options.dequantize,
        n=check_count("--rows", options.rows),
        seed=options.seed,
    )


def _kernel(options: argparse.Namespace) -> Any:
    step = None if options.step_size is None else check_positive("--step-size", options.step_size)
    return KERNELS[options.kernel](step)


def _loss(options: argparse.Namespace) -> losses.Loss:
    loss = losses.get(options.loss)
    if "sigma" in inspect.signature(type(loss)).parameters:
        return type(loss)(sigma=check_positive("--sigma", options.sigma))
    return loss


def _fit(options: argparse.Namespace) -> None:
    if options.out.exists() and not options.overwrite:
        raise ValueError(f"`--out` {options.out} exists; pass --overwrite to replace it.")
    if options.out.exists() and not (
        options.out.is_dir() and {p.name for p in options.out.iterdir()} <= set(RUN_FILES)
    ):
        raise ValueError(f"`--out` {options.out} holds something else than a run; it is not overwritten.")
    num_steps = check_count("--steps", options.steps)
    batch_size = check_count("--batch-size", options.batch_size)
    num_samples = check_count("--num-samples", options.num_samples)
    burnin = check_count("--burnin", options.burnin, minimum=0)
    stateless_seed(options.seed, "--seed")
    kernel, loss = _kernel(options), _loss(options)
    with written_atomically(options.out) as folder:
        folder.mkdir()
        table = _load(options)
        train, held_out = _split(table.values, options.seed)
        if batch_size > len(train):
            raise ValueError(
                f"`--batch-size` must not exceed the rows to train on, got {batch_size} for {len(train)} of "
                f"{len(table.values)} rows ({len(held_out)} are held out)."
            )
        keras.utils.clear_session()
        start = time.perf_counter()
        epochs = max(number for number in range(1, _MAX_EPOCHS + 1) if num_steps % number == 0)
        steps_per_epoch = num_steps // epochs
        model = recipes.low_dimensional(
            train,
            loss,
            num_steps,
            units=[check_count("--units", width) for width in options.units],
            fourier_features=check_count("--fourier-features", options.fourier_features, minimum=0),
            learning_rate=check_positive("--learning-rate", options.learning_rate),
            steps_per_execution=min(100, steps_per_epoch),
            seed=options.seed,
        )
        history = model.fit(
            shuffled_batches(train, batch_size, options.seed),
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            shuffle=False,
            verbose=0 if options.quiet else 1,
        )
        held_out_loss = float(model.evaluate(held_out, batch_size=1024, verbose=0))
        fitted = time.perf_counter()
        p = EnergyDistribution(model, kernel=kernel, num_burnin_steps=burnin)
        chains = p.sample_chains(_KEPT_STATES, num_samples, seed=options.seed, progress=not options.quiet)
        diagnostics = mcmc.diagnose(chains)
        samples = chains.states[-1].numpy()
        sampled = time.perf_counter()

        model.save(folder / "model.keras")
        model.export(folder / "saved_model", kernel=kernel, verbose=False)
        np.save(folder / "samples.npy", samples)
        image_shape = (8, 8) if options.data == "digits" else train.shape[1:] if train.ndim == 4 else None
        figure = plotting.run_figure(model.energy, held_out, samples, table.columns, image_shape)
        figure.savefig(folder / "figure.png", dpi=110)
        report = {
            "settings": {key: value for key, value in sorted(vars(options).items()) if key not in ("command", "out")},
            "data": {"rows": len(table.values), "held_out": len(held_out), "event_shape": list(train.shape[1:])},
            "loss": {"by_epoch": history.history["loss"], "held_out": held_out_loss},
            "sampling": _summary(chains, diagnostics),
            "seconds": {"fit": fitted - start, "sample": sampled - fitted},
            "version": tfp_ebm.__version__,
        }
        (folder / "report.json").write_text(json.dumps(_plain(report), indent=2) + "\n")
    print(f"{options.out}: {', '.join(RUN_FILES)}")


def _split(x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(abs(seed)).permutation(len(x))
    count = max(1, int(_HELD_OUT * len(x)))
    return x[order[count:]], x[order[:count]]


def _summary(chains: mcmc.Samples, diagnostics: mcmc.Diagnostics) -> dict[str, Any]:
    return {
        "acceptance_rate": float(diagnostics.acceptance_rate),
        "step_size": np.asarray(chains.step_size).tolist(),
        "min_ess": float(np.min(diagnostics.ess)),
        "max_rhat": float(np.max(diagnostics.rhat)),
        "num_nonfinite": int(diagnostics.num_nonfinite),
        "num_stuck": int(diagnostics.num_stuck),
    }


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, pathlib.Path) else value


def _load_run(run: pathlib.Path) -> EnergyModel:
    missing = [name for name in RUN_FILES if not (run / name).exists()]
    if missing:
        raise FileNotFoundError(f"`run` {run} is not a complete run: {', '.join(missing)} missing.")
    try:
        return keras.saving.load_model(run / "model.keras")
    except Exception as error:
        raise ValueError(f"`run` {run}: model.keras cannot be read: {error}") from error


def _sample(options: argparse.Namespace) -> None:
    num_samples = check_count("--num-samples", options.num_samples)
    kernel = _kernel(options)
    model = _load_run(options.run)
    p = EnergyDistribution(model, kernel=kernel, num_burnin_steps=options.burnin)
    out = options.out or options.run / f"samples_{options.seed}.npy"
    with written_atomically(out) as temporary, temporary.open("wb") as file:
        np.save(file, p.sample(num_samples, seed=options.seed).numpy())
    print(out)


def _evaluate(options: argparse.Namespace) -> None:
    model = _load_run(options.run)
    x = _load(options).values
    if x.shape[1:] != model.event_shape:
        raise ValueError(f"`data` must have rows of shape {model.event_shape} like the model's, got {x.shape[1:]}.")
    energies = model.predict(x, batch_size=1024, verbose=0)
    loss = float(model.evaluate(x, batch_size=1024, verbose=0))
    result = {"rows": len(x), "loss": loss, "energy": {"mean": float(energies.mean()), "sd": float(energies.std())}}
    if options.out is not None:
        with written_atomically(options.out) as temporary, temporary.open("wb") as file:
            np.save(file, energies)
    print(json.dumps(_plain(result), indent=2))
