"""`fit`: trains a model on data, samples it, and writes a run."""

from __future__ import annotations

import argparse
import math
import pathlib
import time
from typing import Any

import keras
import numpy as np

from tfp_ebm import recipes
from tfp_ebm.arguments import check_count, check_positive
from tfp_ebm.cli import runs
from tfp_ebm.cli.data import Rows, decoded, is_named, load_mixed, load_rows
from tfp_ebm.cli.evaluate import log_normalizer_entries, mean_loss
from tfp_ebm.cli.judgement import Judgement, judge, save_references
from tfp_ebm.cli.messages import flag, note, say, shows_progress
from tfp_ebm.cli.options import TOYS
from tfp_ebm.cli.run_figure import run_figure
from tfp_ebm.cli.sample import check_sampling_options, draw, kernel_for
from tfp_ebm.cli.table_figure import table_figure
from tfp_ebm.cli.table_report import print_report, table_report
from tfp_ebm.cli.unfinished import Unfinished, restore_options, unfinished_training
from tfp_ebm.energy.data import shuffled_batches
from tfp_ebm.files import written_atomically
from tfp_ebm.losses.base import alias
from tfp_ebm.model.energy_model import EnergyModel

# Rows of a table that are drawn, at most.
_MAX_DRAWN_ROWS = 20_000
# Losses with an option of their own.
_DENOISING, _CONTRASTIVE = "denoising_score_matching", "noise_contrastive_estimation"
# The loss of `fit_density`, and the number of columns up to which it is the default.
_LIKELIHOOD, _MAX_COLUMNS = "negative_log_likelihood", 100
# Options of the training by all other losses, with their defaults where these do not depend on the data.
_TRAINING = {
    **{"steps": 5000, "batch_size": 256, "units": [128, 128]},
    **dict.fromkeys(("sigma", "noise_ratio", "base_width", "fourier_features", "learning_rate")),
}
# Options not recorded among the settings of report.json.
_NO_SETTINGS = ("command", "command_line", "out", "overwrite", "quiet", "resume", "unfinished")
# The share of rows kept from training, to report the loss on.
_HELD_OUT = 0.1
# One row is held out, and one row alone has no variance.
_MIN_ROWS = 3
# At most this many epochs, each of which prints a line; the number of steps must be divisible by it.
_MAX_EPOCHS = 10


def fit(options: argparse.Namespace) -> bool:
    """Runs the command; returns whether the run is good."""
    if options.resume is not None:
        restore_options(options)
    missing = [name for name in ("data", "--out") if getattr(options, name.strip("-")) is None]
    if missing:
        raise ValueError(f"the following arguments are required: {', '.join(missing)} (see tfp-ebm fit --help)")
    out = options.out.resolve()
    runs.check_free(out, options.overwrite, is_run=True)
    _check_training_options(options)
    check_sampling_options(options)
    rows = load_mixed(options) if _takes_tables(options) else load_rows(options)
    _choose_loss(options, rows)
    train, held_out = _split(len(rows.values), options)
    with unfinished_training(out, options, rows.values) as unfinished:
        return _run(out, options, rows, train, held_out, unfinished)


def _run(
    out: pathlib.Path,
    options: argparse.Namespace,
    rows: Rows,
    train: np.ndarray,
    held_out: np.ndarray,
    unfinished: Unfinished,
) -> bool:
    """Trains, samples, judges and writes the run; returns whether it is good."""
    x = rows.values[train]
    start = time.perf_counter()
    is_density = options.loss == _LIKELIHOOD
    fitted_by = _fitted_density(x, rows, options, unfinished) if is_density else _trained(x, options, unfinished)
    model, history = fitted_by
    model.columns, model.encoder = rows.columns, rows.encoder
    fitted = time.perf_counter()
    loss = mean_loss(model, rows.values[held_out])
    kernel = kernel_for(model, options)
    samples, sampling = draw(model, kernel, options, unfinished.directory / "chains")
    by_epoch = history.pop("loss", None)
    report = {
        "settings": {key: value for key, value in sorted(vars(options).items()) if key not in _NO_SETTINGS},
        "data": {"rows": len(rows.values), "held_out": len(held_out), "event_shape": list(x.shape[1:])},
        "loss": {"by_epoch": by_epoch, "held_out": loss},
        "metrics": {name: values[-1] for name, values in history.items()},
        "draws": sampling,
        "command_line": options.command_line,
        "versions": runs.versions(),
        "version": runs.versions()["tfp_ebm"],
        "format_version": runs.FORMAT_VERSION,
    }
    is_table = x.ndim == 2 and options.data != "digits"
    judgement = judge(model, rows, train, held_out, samples, sampling, options.seed % 2**32) if is_table else None
    judged = report_of_images(sampling) if judgement is None else judgement.report
    judged["held_out"] |= log_normalizer_entries(model)
    report = {**judged, **report, "seconds": {"fit": fitted - start, "sample": time.perf_counter() - fitted}}
    figure = _figure(model, rows.values[held_out], samples, rows, options, judgement, by_epoch)
    # without a kernel, the endpoint `draw` is exported beside `sample`
    exported = None if sampling["sampler"] == "smc" else kernel
    _write(out, options.overwrite, model, exported, samples, figure, report, rows, judgement)
    if not options.quiet:
        print_report(judged)
    elif judged["failures"]:
        print("\n".join(["FAILED:", *judged["failures"]]))
    print(f"{options.out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return judged["status"] == "ok"


def _takes_tables(options: argparse.Namespace) -> bool:
    """Returns whether the data are a file for `fit_density`, whose columns may be of several kinds."""
    by_default = options.loss is None and all(getattr(options, name) is None for name in _TRAINING)
    takes = not is_named(options) and (options.loss == _LIKELIHOOD or by_default)
    for name, default in (("kind", None), ("missing", "refuse")):
        if not takes and getattr(options, name) != default:
            raise ValueError(f"`{flag(name)}` is for tables in files and --loss {_LIKELIHOOD}.")
    return takes


def _check_training_options(options: argparse.Namespace) -> None:
    """Raises TypeError or ValueError if an option of training is out of range, or belongs to another loss."""
    for name in ("steps", "batch_size"):
        if getattr(options, name) is not None:
            check_count(flag(name), getattr(options, name))
    for width in options.units or ():
        check_count("--units", width)
    if options.fourier_features is not None:
        check_count("--fourier-features", options.fourier_features, minimum=0)
    for name in ("learning_rate", "base_width", "sigma", "noise_ratio", "minutes"):
        if getattr(options, name) is not None:
            check_positive(flag(name), getattr(options, name))
    for name, loss in (("sigma", _DENOISING), ("noise_ratio", _CONTRASTIVE), ("minutes", _LIKELIHOOD)):
        if getattr(options, name) is not None:
            options.loss = options.loss or loss
            if options.loss != loss:
                raise ValueError(f"`{flag(name)}` must not be given with --loss {options.loss}, but with {loss}.")
    given = [name for name in _TRAINING if getattr(options, name) is not None]
    if options.loss == _LIKELIHOOD and given:
        raise ValueError(f"`{flag(given[0])}` must not be given with --loss {_LIKELIHOOD}, which takes --minutes.")


def _choose_loss(options: argparse.Namespace, rows: Rows) -> None:
    """Sets the loss of a user's table to `negative_log_likelihood`, unless an option of the other losses is given."""
    is_table = not is_named(options) and rows.values.ndim == 2
    is_small = is_table and (rows.values.shape[1] <= _MAX_COLUMNS or bool(rows.supports) or np.isnan(rows.values).any())
    if options.loss is None and is_small and all(getattr(options, name) is None for name in _TRAINING):
        options.loss = _LIKELIHOOD
    if options.loss == _LIKELIHOOD:
        if rows.values.ndim != 2:
            raise ValueError(f"`--loss` {_LIKELIHOOD} needs a table, got rows of shape {rows.values.shape[1:]}.")
        return
    for name, default in _TRAINING.items():
        if getattr(options, name) is None:
            setattr(options, name, default)


def _split(num_rows: int, options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of training rows and of held-out rows; a batch larger than the former is made smaller."""
    if num_rows < _MIN_ROWS:
        raise ValueError(f"`{options.data}` must have at least {_MIN_ROWS} rows, got {num_rows}.")
    order = np.random.default_rng(options.seed % 2**64).permutation(num_rows)
    count = max(1, int(_HELD_OUT * num_rows))
    train, held_out = order[count:], order[:count]
    if options.batch_size is not None and options.batch_size > len(train):
        note(options, f"the batch size is {len(train)}, the number of rows to train on, not {options.batch_size}.")
        options.batch_size = len(train)
    return train, held_out


def _fitted_density(
    train: np.ndarray, rows: Rows, options: argparse.Namespace, unfinished: Unfinished
) -> tuple[EnergyModel, dict[str, list[float]]]:
    """Fits a density by `fit_density`; returns it, and the log-likelihood of each candidate."""
    model = recipes.fit_density(
        train,
        minutes=options.minutes,
        kinds=rows.supports,
        seed=options.seed % 2**32,
        verbose=0 if options.quiet else 1,
        backup_dir=unfinished.candidates,
    )
    return model, {name: [value] for name, (value, _) in model.candidates.items()}


def _trained(
    train: np.ndarray, options: argparse.Namespace, unfinished: Unfinished
) -> tuple[EnergyModel, dict[str, list[float]]]:
    """The trained model, and its loss and metrics by epoch; what was chosen for the loss is noted in the options."""
    loss = recipes.loss_for(train, options.loss, sigma=options.sigma, noise_ratio=options.noise_ratio)
    options.loss, options.sigma = alias(type(loss)), getattr(loss, "sigma", None)
    options.noise_ratio = getattr(loss, "noise_ratio", None)
    preset = recipes.settings_for(loss, train[0].size)
    for name in ("fourier_features", "learning_rate", "base_width"):
        if getattr(options, name) is None:
            setattr(options, name, preset[name])
    epochs = max(number for number in range(1, _MAX_EPOCHS + 1) if options.steps % number == 0)
    steps_per_epoch = options.steps // epochs
    model = recipes.low_dimensional(
        train,
        loss,
        options.steps,
        units=options.units,
        fourier_features=options.fourier_features,
        learning_rate=options.learning_rate,
        base_width=options.base_width,
        steps_per_execution=max(number for number in range(1, 101) if steps_per_epoch % number == 0),
        seed=options.seed,
    )
    history = unfinished.train(
        model,
        lambda step: shuffled_batches(train, options.batch_size, options.seed, step),
        epochs,
        options.steps,
        verbose=0 if options.quiet else 1 if shows_progress(options) else 2,  # 2: a line for each epoch
        callbacks=[keras.callbacks.TerminateOnNaN()],
    )
    if len(history["loss"]) < epochs and math.isfinite(history["loss"][-1]):
        say("warning", "the training was interrupted: the model is kept as it is now.")
    if not math.isfinite(history["loss"][-1]):
        unfinished.forget()
        raise ValueError(
            f"the loss became {history['loss'][-1]}; try a lower --learning-rate than {options.learning_rate}. Nothing "
            "was written."
        )
    return model, history


def report_of_images(sampling: dict[str, Any]) -> dict[str, Any]:
    """Returns the report of data that are no table: the verdict is on the samples alone."""
    return table_report(np.zeros((0, 1)), np.zeros((0, 1)), [], sampling=sampling)


def _figure(
    model: EnergyModel,
    held_out: np.ndarray,
    samples: np.ndarray,
    rows: Rows,
    options: argparse.Namespace,
    judgement: Judgement | None,
    by_epoch: list[float] | None,
) -> Any:
    shape = held_out.shape[1:]
    is_plain = rows.encoder is None or set(judgement.kinds if judgement else ()) <= {"continuous", "whole"}
    if judgement is not None and (shape[0] > 2 or not is_plain):
        data = rows.values if rows.frame is None else rows.frame
        if len(data) > _MAX_DRAWN_ROWS:
            chosen = np.random.default_rng(0).permutation(len(data))[:_MAX_DRAWN_ROWS]
            data = data[chosen] if rows.frame is None else rows.frame.iloc[chosen]
        return table_figure(data, judgement.samples, judgement.kinds, judgement.report, _curve(model, by_epoch))
    image_shape = (8, 8) if options.data == "digits" else shape if len(shape) in (2, 3) else None
    names = rows.columns
    if names is None and options.data not in TOYS and len(shape) == 1:
        names = tuple(f"column {i + 1}" for i in range(shape[0]))
    return run_figure(model.energy, held_out, samples, names, image_shape)


def _curve(model: EnergyModel, by_epoch: list[float] | None) -> dict[str, Any]:
    """Returns the curve of the training for the picture; of several networks, that of the best."""
    histories = getattr(model, "histories", None)
    if not histories:
        return {"loss": by_epoch or []}
    name = max(histories, key=lambda name: max(histories[name]["held_out_log_likelihood"]))
    curve = histories[name]
    return {
        "loss": [-value for value in curve["log_likelihood"]],
        "val_loss": [-value for value in curve["held_out_log_likelihood"]],
        "epoch_kept": curve["kept"] + 1,
        "name": name,
        "step": "part of the training",
    }


def _write(
    out: pathlib.Path,
    overwrite: bool,
    model: EnergyModel,
    kernel: Any,
    samples: np.ndarray,
    figure: Any,
    report: dict[str, Any],
    rows: Rows,
    judgement: Judgement | None,
) -> None:
    """Writes the run in one step."""
    from matplotlib import pyplot

    runs.check_free(out, overwrite, is_run=True)  # somebody may have come first
    with written_atomically(out) as folder:
        folder.mkdir()
        model.save(folder / "model.keras")
        model.export(folder / "saved_model", kernel=kernel, verbose=False)
        np.save(folder / "samples.npy", samples)
        figure.savefig(folder / "figure.png", dpi=110)
        (folder / "report.json").write_text(runs.to_json(report) + "\n", encoding="utf-8")
        if judgement is not None:
            save_references(folder / "references.npz", judgement.references)
        if rows.encoder is not None:
            decoded(rows.encoder, samples).to_csv(folder / "samples.csv", index=False)
    pyplot.close(figure)
