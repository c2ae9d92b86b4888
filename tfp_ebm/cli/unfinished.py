"""A training that is not finished: the directory beside its run, with the command and the backups to resume it from.

The run itself is written in one step at the end, and then this directory, RUN.training, is removed. A backup is written
about every minute, at the end of the training, and where the process is asked to end (SIGTERM).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.cli.messages import Terminated, flag, say
from tfp_ebm.cli.options import make_parser
from tfp_ebm.files import written_atomically
from tfp_ebm.model import backups
from tfp_ebm.model.trainer import EnergyTrainer

_SUFFIX = ".training"
_COMMAND, _BACKUPS, _CANDIDATES = "command.json", "backups", "candidates"
# Seconds between two backups.
_SECONDS = 60.0
# Options that may be given with --resume, which takes all others from the command that it continues.
_WITH_RESUME = ("command", "command_line", "resume", "quiet")


def directory_of(out: pathlib.Path) -> pathlib.Path:
    """Returns the directory beside a run that holds its unfinished training.

    >>> directory_of(pathlib.Path("runs/moons")).name
    'moons.training'
    """
    return out.with_name(out.name + _SUFFIX)


def restore_options(options: argparse.Namespace) -> None:
    """Replaces the options by those of the command that `--resume` continues.

    Raises:
      ValueError: if another option is given, or there is nothing to resume.
    """
    path = options.resume
    out = path.with_name(path.name.removesuffix(_SUFFIX))
    plain = vars(make_parser().parse_args(["fit"]))
    given = [name for name, value in vars(options).items() if name not in _WITH_RESUME and value != plain.get(name)]
    if given:
        name = given[0] if given[0] == "data" else flag(given[0])
        raise ValueError(f"`{name}` must not be given with --resume, which has the options of its command.")
    file = directory_of(out.resolve()) / _COMMAND
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        restored = make_parser().parse_args(record["arguments"])
    except FileNotFoundError as error:
        finished = "; its training is finished" if out.exists() else ""
        raise ValueError(f"`--resume` {path}: there is no {file.parent.name} beside it{finished}.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"`--resume` {path}: {file} cannot be read: {error}") from error
    quiet = options.quiet or restored.quiet
    vars(options).update(vars(restored))
    options.quiet, options.out, options.resume = quiet, out, path
    options.data = record["data"]
    options.command_line = ["tfp-ebm", *record["arguments"]]


class Unfinished:
    """The directory of a training in progress.

    Args:
      out: the run that it becomes, an absolute path.
    """

    def __init__(self, out: pathlib.Path) -> None:
        self.out, self.directory = out, directory_of(out)
        self._missing = [folder for folder in self.directory.parents if not folder.exists()]
        self.candidates = self.directory / _CANDIDATES
        self._backups = self.directory / _BACKUPS

    @property
    def is_resumable(self) -> bool:
        """Whether something is saved."""
        return bool(backups.found(self._backups)) or any(self.candidates.glob("*.npz"))

    def begin(self, options: argparse.Namespace, values: np.ndarray) -> None:
        """Creates the directory with the command, or checks that the data are those of the command that is resumed.

        Raises:
          ValueError: if the data have changed, or another training is saved here and `--overwrite` is not given.
        """
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        if options.resume is not None:
            record = json.loads((self.directory / _COMMAND).read_text(encoding="utf-8"))
            if record["digest"] != digest:
                raise ValueError(f"`--resume` {options.resume}: the data {options.data} have changed.")
            return
        if self.is_resumable and not options.overwrite:
            raise ValueError(
                f"`--out` {options.out} has a training that is not finished: continue it with --resume {options.out}, "
                "or pass --overwrite to begin anew."
            )
        self.forget()
        data = os.path.abspath(options.data) if os.path.exists(options.data) else options.data
        record = {"arguments": options.command_line[1:], "data": data, "digest": digest}
        try:
            self.directory.mkdir(parents=True)
            with written_atomically(self.directory / _COMMAND) as temporary:
                temporary.write_text(json.dumps(record), encoding="utf-8")
        except BaseException:  # as on a full disk: a directory without a command would look like a training
            self.forget()
            raise

    def forget(self) -> None:
        """Removes the directory, and those above it that were made for it and are empty."""
        shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in self._missing:
                folder.rmdir()

    def train(
        self,
        model: EnergyTrainer,
        batches_from: Callable[[int], tf.data.Dataset],
        epochs: int,
        num_steps: int,
        **fit: Any,
    ) -> dict[str, list[float]]:
        """Trains a model from the last backup on, or from the beginning; returns the metrics by epoch.

        Args:
          model: the model, compiled and built.
          batches_from: maps the number of a step to an endless dataset that begins with the batch of this step.
          epochs: number of epochs.
          num_steps: number of steps in all, a multiple of the number of epochs.
          **fit: further arguments of `fit`.

        Raises:
          KeyboardInterrupt: at an interrupt before the end of an epoch; a later one ends the training.
          Terminated: after a backup.
        """
        per_epoch = num_steps // epochs
        progress = _Progress(self._backups, per_epoch)
        step = progress.restore(model)
        fit = {"shuffle": False, **fit, "callbacks": [*fit.get("callbacks", ()), progress]}
        epoch, done = divmod(step, per_epoch)
        parts = [(step, epoch, epoch + 1, per_epoch - done)] * (done > 0)
        epoch += done > 0
        parts += [(epoch * per_epoch, epoch, epochs, per_epoch)] * (epoch < epochs)
        try:
            for first, initial_epoch, last, steps in parts:
                batches = batches_from(first)
                model.fit(batches, initial_epoch=initial_epoch, epochs=last, steps_per_epoch=steps, **fit)
                if model.stop_training:
                    break
        except KeyboardInterrupt:
            if not progress.history.get("loss"):  # not one epoch is done
                progress.save()
                raise
        except Terminated:
            progress.save()
            raise
        else:
            progress.save()
        return progress.history


@contextlib.contextmanager
def unfinished_training(out: pathlib.Path, options: argparse.Namespace, values: np.ndarray) -> Iterator[Unfinished]:
    """Context in which a run is made; its directory is removed at the end, or after an error if nothing is saved."""
    unfinished = Unfinished(out)
    unfinished.begin(options, values)
    options.unfinished = unfinished
    try:
        yield unfinished
    except BaseException:
        if not unfinished.is_resumable:
            unfinished.forget()
        raise
    unfinished.forget()


class _Progress(keras.callbacks.Callback):
    """Saves a training with its metrics, also within epochs.

    Args:
      folder: of the backups.
      per_epoch: steps in each epoch.
    """

    def __init__(self, folder: pathlib.Path, per_epoch: int) -> None:
        super().__init__()
        self._folder, self._per_epoch = folder, per_epoch
        self.history: dict[str, list[float]] = {}
        self._metrics: list[Any] | None = None
        self._last = time.monotonic()

    def restore(self, model: EnergyTrainer) -> int:
        """Loads the last backup; returns the number of steps that are done."""
        self.set_model(model)
        position = backups.load(model, self._folder)
        if position is not None:
            self.history, self._metrics = position["history"], position["metrics"]
        return int(model._step.numpy())

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Restores the means of an epoch that is continued."""
        if self._metrics:
            for variable, value in zip(self._means(), self._metrics, strict=True):
                variable.assign(value)
        self._metrics = None

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Saves once a minute."""
        if time.monotonic() - self._last >= _SECONDS:
            self.save()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Notes the metrics of the epoch."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))

    def save(self) -> None:
        """Writes a backup. If that fails, as on a full disk, it prints a warning, and the training goes on."""
        step = int(self.model._step.numpy())
        if step == 0:
            return
        self._last = time.monotonic()
        epochs, done = divmod(step, self._per_epoch)
        history = {name: list(values) for name, values in self.history.items()}
        if len(history.get("loss", ())) < epochs:  # interrupted before the end of the epoch was noted
            for name, value in self.model.get_metrics_result().items():
                history.setdefault(name, []).append(float(value))
        means = [variable.numpy().tolist() for variable in self._means()] if done else None
        try:
            backups.save(self.model, self._folder, {"history": history, "metrics": means})
        except (OSError, RuntimeError) as error:  # the latter from h5py
            say("warning", f"no backup could be written to {self._folder}: {error}")

    def _means(self) -> list[Any]:
        return [variable for metric in self.model.metrics for variable in metric.variables]
