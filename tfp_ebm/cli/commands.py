"""The command line: from a name or a file to a trained, sampled and exported model in one command.

    python -m tfp_ebm fit two_moons --out runs/moons
    python -m tfp_ebm sample runs/moons -n 1000
    python -m tfp_ebm evaluate runs/moons data.csv

TensorFlow is imported inside the commands, once the arguments are parsed, so that `--help` and a mistyped option answer
at once. A run is written when all of it is there, in one step: whatever goes wrong before leaves the disk as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import pathlib
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfp_ebm import __version__
from tfp_ebm.cli.options import TOYS, make_parser
from tfp_ebm.files import written_atomically

if TYPE_CHECKING:
    from tfp_ebm import datasets, losses, mcmc
    from tfp_ebm.model.energy_model import EnergyModel

RUN_FILES = ("model.keras", "saved_model", "samples.npy", "figure.png", "report.json")

# The only loss with a `--sigma`.
_DENOISING = "denoising_score_matching"
# Options that decide nothing about a run.
_NO_SETTINGS = ("command", "out", "overwrite", "quiet")
# The share of rows kept from training, to report the loss on.
_HELD_OUT = 0.1
# States kept of each chain for R-hat and effective sample size, and steps between two.
_KEPT_STATES, _STEPS_BETWEEN = 50, 4
# Those of them that are samples: far enough apart to be nearly independent, for a quarter of the chains.
_SAMPLED = (12, 24, 37, 49)
# Chains whose R-hat is above this have not mixed (Vehtari et al. 2021 would even say above 1.01).
_MAX_RHAT = 1.05
# Progress is reported this often, if the number of steps divides so.
_MAX_EPOCHS = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: what follows the program's name; default: those of this process.

    Returns:
      The exit code: 0; 2 for bad input, after one line on stderr that names it; 130 when interrupted.

    >>> main(["sample", "no/such/run"])
    2
    """
    try:
        options = make_parser().parse_args(arguments)
        command = {"fit": _fit, "sample": _sample, "evaluate": _evaluate}[options.command]
        with _quiet_tensorflow(), warnings.catch_warnings():
            warnings.simplefilter("once", UserWarning)
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of a NaN that our own warnings explain
            warnings.showwarning = lambda message, *_, **__: _say("warning", message)
            command(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        _say("error", error)
        return 2
    except KeyboardInterrupt:
        _say("error", "interrupted; nothing was written")
        return 130
    return 0


def _say(kind: str, message: Any) -> None:
    print(f"tfp-ebm: {kind}: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _quiet_tensorflow() -> Iterator[None]:
    """Imports TensorFlow without its start-up messages, and drops what is logged below errors."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("MPLBACKEND", "Agg")
    if "tensorflow" not in sys.modules:
        # Its libraries write to the file descriptor while they are loaded, before they look at the level.
        descriptor = os.dup(2)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(descriptor, 2)
            os.close(descriptor)

    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def _check_free(out: pathlib.Path, overwrite: bool, is_run: bool) -> None:
    """Raises ValueError if a run, or a file, cannot or must not be written at `out`, an absolute path."""
    if out.exists():
        if not overwrite:
            raise ValueError(f"`--out` {out} exists; pass --overwrite to replace it.")
        ours = (*RUN_FILES, "samples_*.npy")
        if is_run and not (out.is_dir() and all(any(map(path.match, ours)) for path in out.iterdir())):
            raise ValueError(f"`--out` {out} holds something else than a run; it is not overwritten.")
        if not is_run and not out.is_file():
            raise ValueError(f"`--out` {out} is not a file; it is not overwritten.")
    parent = next(folder for folder in out.parents if folder.exists())
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise ValueError(f"`--out` {out} cannot be written: {error}") from error


def _load(options: argparse.Namespace) -> datasets.Table:
    from tfp_ebm import datasets
    from tfp_ebm.arguments import check_count

    rows = check_count("--rows", options.rows)
    return datasets.load_table(
        options.data, options.key, options.delimiter, options.dequantize, n=rows, seed=options.seed
    )


def _kernel(options: argparse.Namespace) -> mcmc.Kernel:
    """The kernel, once all options of sampling are checked."""
    from tfp_ebm import mcmc
    from tfp_ebm.arguments import check_count, check_positive

    check_count("--num-samples", options.num_samples)
    check_count("--burnin", options.burnin, minimum=0)
    start = {"random_walk": 0.3, "langevin": 0.05}.get(options.kernel, 0.1)
    step = start if options.step_size is None else check_positive("--step-size", options.step_size)
    if options.kernel == "langevin":
        return mcmc.Langevin(step)
    if options.kernel == "hmc":
        return mcmc.Adaptive(mcmc.HMC(step, num_leapfrog_steps=10))
    return mcmc.Adaptive({"mala": mcmc.MALA, "nuts": mcmc.NUTS, "random_walk": mcmc.RandomWalk}[options.kernel](step))


def _loss(train: np.ndarray, options: argparse.Namespace) -> losses.Loss:
    """The loss, whose name and σ are noted among the options."""
    from tfp_ebm import losses, recipes

    if options.sigma is not None:
        return losses.DenoisingScoreMatching(options.sigma)
    loss = recipes.loss_for(train, options.loss)
    options.loss, options.sigma = losses.alias(type(loss)), getattr(loss, "sigma", None)
    return loss


def _load_run(run: pathlib.Path) -> EnergyModel:
    import keras

    import tfp_ebm.model  # noqa: F401, Keras finds the classes of a file only where they are imported

    missing = [name for name in RUN_FILES if not (run / name).exists()]
    if missing:
        raise FileNotFoundError(f"`run` {run} is not a complete run: {', '.join(missing)} missing.")
    try:
        return keras.saving.load_model(run / "model.keras")
    except Exception as error:
        raise ValueError(f"`run` {run}: model.keras cannot be read: {error}") from error


def _fit(options: argparse.Namespace) -> None:
    import keras
    from matplotlib import pyplot

    from tfp_ebm import plotting, recipes
    from tfp_ebm.arguments import check_count, check_positive
    from tfp_ebm.energy.data import shuffled_batches

    out = options.out.resolve()
    _check_free(out, options.overwrite, is_run=True)
    num_steps = check_count("--steps", options.steps)
    batch_size = check_count("--batch-size", options.batch_size)
    units = [check_count("--units", width) for width in options.units]
    if options.fourier_features is not None:
        check_count("--fourier-features", options.fourier_features, minimum=0)
    if options.learning_rate is not None:
        check_positive("--learning-rate", options.learning_rate)
    if options.sigma is not None:
        check_positive("--sigma", options.sigma)
        options.loss = options.loss or _DENOISING
        if options.loss != _DENOISING:
            raise ValueError(f"`--sigma` must not be given with --loss {options.loss}, but with {_DENOISING}.")
    kernel = _kernel(options)
    table = _load(options)
    train, held_out = _split(table.values, options.seed)
    if batch_size > len(train):
        raise ValueError(
            f"`--batch-size` must not exceed the rows to train on, got {batch_size} for {len(train)} of "
            f"{len(table.values)} rows ({len(held_out)} are held out)."
        )

    loss = _loss(train, options)
    preset = recipes.settings_for(loss, train[0].size)
    if options.fourier_features is None:
        options.fourier_features = preset["fourier_features"]
    if options.learning_rate is None:
        options.learning_rate = preset["learning_rate"]
    start = time.perf_counter()
    epochs = max(number for number in range(1, _MAX_EPOCHS + 1) if num_steps % number == 0)
    steps_per_epoch = num_steps // epochs
    execution = max(number for number in range(1, 101) if steps_per_epoch % number == 0)
    model = recipes.low_dimensional(
        train,
        loss,
        num_steps,
        units=units,
        fourier_features=options.fourier_features,
        learning_rate=options.learning_rate,
        steps_per_execution=execution,
        seed=options.seed,
    )
    history = model.fit(
        shuffled_batches(train, batch_size, options.seed),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        shuffle=False,
        verbose=0 if options.quiet else 1,
        callbacks=[keras.callbacks.TerminateOnNaN()],
    )
    if not math.isfinite(history.history["loss"][-1]):
        raise ValueError(
            f"training went to a loss of {history.history['loss'][-1]}; try a lower --learning-rate than "
            f"{options.learning_rate}. Nothing was written."
        )
    held_out_loss = _mean_loss(model, held_out)
    print(f"loss {held_out_loss:.4f} on the {len(held_out)} rows held out")
    fitted = time.perf_counter()
    samples, sampling = _draw(model, kernel, options)
    seconds = {"fit": fitted - start, "sample": time.perf_counter() - fitted}
    report = {
        "settings": {key: value for key, value in sorted(vars(options).items()) if key not in _NO_SETTINGS},
        "data": {"rows": len(table.values), "held_out": len(held_out), "event_shape": list(train.shape[1:])},
        "loss": {"by_epoch": history.history["loss"], "held_out": held_out_loss},
        "metrics": {name: values[-1] for name, values in history.history.items() if name != "loss"},
        "sampling": sampling,
        "seconds": seconds,
        "version": __version__,
    }

    image_shape = (8, 8) if options.data == "digits" else train.shape[1:] if train.ndim in (3, 4) else None
    names = None if options.data in TOYS else table.columns
    figure = plotting.run_figure(model.energy, held_out, samples, names, image_shape)
    _check_free(out, options.overwrite, is_run=True)  # somebody may have come first
    with written_atomically(out) as folder:
        folder.mkdir()
        model.save(folder / "model.keras")
        model.export(folder / "saved_model", kernel=kernel, verbose=False)
        np.save(folder / "samples.npy", samples)
        figure.savefig(folder / "figure.png", dpi=110)
        (folder / "report.json").write_text(json.dumps(_plain(report), indent=2) + "\n")
    pyplot.close(figure)
    print(f"{options.out}: {', '.join(RUN_FILES)}")


def _mean_loss(model: EnergyModel, x: np.ndarray) -> float:
    return float(model.evaluate(x, batch_size=1024, verbose=0, return_dict=True)["loss"])


def _split(x: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.default_rng(seed % 2**64).permutation(len(x))
    count = max(1, int(_HELD_OUT * len(x)))
    return x[order[count:]], x[order[:count]]


def _draw(model: EnergyModel, kernel: mcmc.Kernel, options: argparse.Namespace) -> tuple[np.ndarray, dict[str, Any]]:
    """Samples from the chains, and what these say of themselves, which is printed too."""
    from tfp_ebm import mcmc
    from tfp_ebm.model.distribution import EnergyDistribution

    p = EnergyDistribution(model, kernel=kernel, num_burnin_steps=options.burnin)
    thinning: dict[str, Any] = {"num_steps_between_results": _STEPS_BETWEEN, "progress": not options.quiet}
    num_chains = -(-options.num_samples // len(_SAMPLED))
    chains = p.sample_chains(_KEPT_STATES, num_chains, seed=options.seed, **thinning)
    diagnostics = mcmc.diagnose(chains)
    ess, rhat = float(np.min(diagnostics.ess)), float(np.max(diagnostics.rhat))
    print(f"acceptance {diagnostics.acceptance_rate:.2f}, R-hat {rhat:.3f}, effective sample size {ess:.0f}")
    if rhat > _MAX_RHAT:
        warnings.warn(
            f"R-hat is {rhat:.2f}, above {_MAX_RHAT}: the chains have not mixed, and each mode's share of the samples "
            "may still be that of the chains' starts; a larger --burnin lets them mix.",
            stacklevel=2,
        )
    samples = chains.states.numpy()[list(_SAMPLED)].reshape(-1, *model.event_shape)[: options.num_samples]
    return samples, {
        "acceptance_rate": diagnostics.acceptance_rate,
        "step_size": np.asarray(chains.step_size).tolist(),
        "min_ess": ess,
        "max_rhat": rhat,
        "num_nonfinite": diagnostics.num_nonfinite,
        "num_stuck": diagnostics.num_stuck,
    }


def _sample(options: argparse.Namespace) -> None:
    out = (options.out or options.run / f"samples_{options.seed}.npy").resolve()
    kernel = _kernel(options)
    model = _load_run(options.run)
    _check_free(out, options.overwrite, is_run=False)
    samples, _ = _draw(model, kernel, options)
    _save_array(out, samples)
    print(out)


def _evaluate(options: argparse.Namespace) -> None:
    from tfp_ebm.arguments import check_data

    model = _load_run(options.run)
    if options.out is not None:
        _check_free(options.out.resolve(), options.overwrite, is_run=False)
    x = _load(options).values
    check_data("data", x, model.event_shape)
    energies = model.predict(x, batch_size=1024, verbose=0)
    loss = _mean_loss(model, x)
    result = {"rows": len(x), "loss": loss, "energy": {"mean": float(energies.mean()), "sd": float(energies.std())}}
    if options.out is not None:
        _save_array(options.out.resolve(), energies)
    print(json.dumps(_plain(result), indent=2))


def _save_array(out: pathlib.Path, array: np.ndarray) -> None:
    with written_atomically(out) as temporary, temporary.open("wb") as file:  # given a path, NumPy would add a suffix
        np.save(file, array)


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
