"""Keras callbacks for the training of an energy: for divergence, for samples, and for trainings that are interrupted.

Training with sampled negatives can fail in two ways: a number becomes NaN or infinite, or all numbers remain finite but
the energy's scale grows without bound, since a very steep energy traps its chains wherever they are. Neither a test for
NaN nor the loss, which stays around 0, shows the second failure, but the standard deviation of the energy does. For a
Gaussian in d dimensions it is √(d/2), whatever its covariance.
"""

from __future__ import annotations

import math
import os
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfp_ebm.arguments import check_count, check_nonnegative, check_positive
from tfp_ebm.files import written_atomically
from tfp_ebm.model import backups
from tfp_ebm.model.distribution import EnergyDistribution
from tfp_ebm.model.trainer import EnergyTrainer
from tfp_ebm.random import fold_in, stateless_seed
from tfp_ebm.replicas import is_first_machine

__all__ = ["Backup", "DivergenceGuard", "SampleSnapshots"]

# The default limit of an energy's standard deviation, in units of √d.
_MAX_SPREAD = 100.0
# A state is kept as a good one only if it is this far below the limits, so that no rollback ends close to divergence.
_MARGIN = 0.1


@keras.saving.register_keras_serializable("tfp_ebm")
class _ScaledSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning-rate schedule times a factor that can change while a compiled step uses it."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, factor: float = 1.0) -> None:
        self.schedule = schedule
        self.factor = keras.Variable(factor, trainable=False, dtype="float32", name="learning_rate_factor")

    def __call__(self, step: Any) -> Any:
        return self.schedule(step) * self.factor

    def get_config(self) -> dict[str, Any]:
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "factor": float(self.factor.numpy()),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _ScaledSchedule:
        return cls(**{**config, "schedule": keras.saving.deserialize_keras_object(config["schedule"])})


class DivergenceGuard(keras.callbacks.Callback):
    """Detects divergence, restores the last good state, lowers the learning rate, and stops after `max_rollbacks`.

    After every batch (with `steps_per_execution`, after every compiled call) it checks the loss, `energy_spread` and
    `energy_gap` if the loss reports them, and the norm of the gradient, which this callback makes the model report.
    Keras averages these values over the epoch so far. A good state consists of the weights of the model, of the loss
    (replay buffer, step sizes) and of the optimizer, and of the step counter. A learning-rate schedule continues with a
    factor. Under a `keras.optimizers.LossScaleOptimizer` (float16), the optimizer skips steps whose gradients overflow
    while the scale is adapted; the scale itself is not restored.

    Args:
      max_energy_spread: limit of the energy's standard deviation over data and negatives, and of its gap between the
        two; None for 100·√d, more than a hundred times that of a Gaussian in d dimensions.
      max_gradient_norm: limit of the norm of the gradient; None for no limit, except that it must be finite.
      factor: the factor by which the learning rate is multiplied at a rollback.
      max_rollbacks: number of rollbacks after which the next divergence stops the training, at the last good state.
      keep_every: number of steps between two good states kept.

    Attributes:
      events: one dict for each divergence: `step` (of the optimizer), `reason`, `learning_rate` after it.

    Raises:
      TypeError, ValueError: for arguments out of range, or a model that is not an `EnergyModel`.

    >>> guard = DivergenceGuard(max_rollbacks=3)
    >>> guard.events
    []
    """

    # `fit` need not stop at a non-finite loss if a callback handles it.
    handles_divergence = True

    def __init__(
        self,
        max_energy_spread: float | None = None,
        max_gradient_norm: float | None = None,
        factor: float = 0.5,
        max_rollbacks: int = 5,
        keep_every: int = 100,
    ) -> None:
        super().__init__()
        self.max_energy_spread = (
            None if max_energy_spread is None else check_positive("max_energy_spread", max_energy_spread)
        )
        self.max_gradient_norm = (
            math.inf if max_gradient_norm is None else check_positive("max_gradient_norm", max_gradient_norm)
        )
        self.factor = check_positive("factor", factor)
        if self.factor >= 1.0:
            raise ValueError(f"`factor` must be below 1, got {factor!r}.")
        self.max_rollbacks = check_count("max_rollbacks", max_rollbacks, minimum=0)
        self.keep_every = check_count("keep_every", keep_every)
        self.events: list[dict[str, Any]] = []
        self._good: list[np.ndarray] = []
        self._good_step = 0

    def set_model(self, model: Any) -> None:
        """Sets the model, before Keras compiles its step."""
        if not isinstance(model, EnergyTrainer):
            raise TypeError(f"DivergenceGuard needs an EnergyModel, got {type(model).__name__}.")
        super().set_model(model)
        model.report_gradient_norm()
        schedule = self._optimizer._learning_rate  # the public attribute is its value at this step
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule) and not isinstance(
            schedule, _ScaledSchedule
        ):
            self._optimizer.learning_rate = _ScaledSchedule(schedule)
            model.train_function = None  # the compiled step uses the old schedule

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Keeps the initial state as the first good one."""
        self.events = []
        self._keep()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Keeps the state if the metrics are good, and restores the last good state otherwise."""
        figures = {name: float(value) for name, value in (logs or {}).items()}
        reason = self._trouble(figures)
        if reason:
            self._roll_back(reason)
        elif self._step - self._good_step >= self.keep_every and not self._trouble(figures, _MARGIN):
            self._keep()

    @property
    def _optimizer(self) -> Any:
        return getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)

    @property
    def _step(self) -> int:
        return int(self._optimizer.iterations.numpy())

    @property
    def _state(self) -> list[keras.Variable]:
        # not the scale of the loss, which belongs to its optimizer: the value in the kept state may have overflowed
        return [*self.model.weights, *self._optimizer.variables]

    def _trouble(self, figures: Mapping[str, float], margin: float = 1.0) -> str:
        """Returns a text about the metric above `margin` times its limit; empty if there is none."""
        spread = self.max_energy_spread
        if spread is None:
            spread = _MAX_SPREAD * math.sqrt(math.prod(self.model.event_shape))
        limits = {"loss": math.inf, "energy_spread": spread, "energy_gap": spread}
        for name, limit in {**limits, "gradient_norm": self.max_gradient_norm}.items():
            value = figures.get(name, 0.0)
            if not math.isfinite(value) or abs(value) > margin * limit:
                return f"{name} is {value:.3g}" + (f", the limit {limit:.3g}" if math.isfinite(value) else "")
        return ""

    def _keep(self) -> None:
        self._good = [np.array(variable.numpy()) for variable in self._state]
        self._good_step = self._step

    def _roll_back(self, reason: str) -> None:
        step = self._step
        schedule = self._optimizer._learning_rate
        rate = schedule.factor if isinstance(schedule, _ScaledSchedule) else schedule
        lowered = self.factor * float(rate.numpy())
        for variable, value in zip(self._state, self._good, strict=True):
            variable.assign(value)
        rate.assign(lowered)
        self.model.reset_metrics()
        self.events.append(
            {"step": step, "reason": reason, "learning_rate": float(self._optimizer.learning_rate.numpy())}
        )
        gives_up = len(self.events) > self.max_rollbacks
        self.model.stop_training = self.model.stop_training or gives_up
        warnings.warn(
            f"Training diverged by step {step}: {reason}; back to step {self._good_step}, "
            + (
                f"where it stops after {self.max_rollbacks} rollbacks."
                if gives_up
                else f"with a learning rate of {self.events[-1]['learning_rate']:.3g}."
            ),
            stacklevel=2,
        )


class SampleSnapshots(keras.callbacks.Callback):
    """Writes samples of the model to `directory/samples_EPOCH.npy` after every few epochs.

    If a file cannot be written, as on a full disk, there is a warning, and the training goes on.

    Args:
      directory: the directory of the files; created if it does not exist.
      num_samples: number of rows in each file.
      every: number of epochs from one file to the next.
      seed: int or int32[2]; each epoch draws its own samples from it.
      **kwargs: further arguments of `EnergyDistribution`, such as `kernel`.

    Raises:
      TypeError, ValueError: for counts below 1; for a `directory` that is not a path.

    >>> SampleSnapshots("no/such/directory", num_samples=64).num_samples
    64
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        num_samples: int = 1000,
        every: int = 1,
        seed: Any = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if not isinstance(directory, str | os.PathLike):
            raise TypeError(f"`directory` must be a path, got {directory!r}.")
        self.directory = pathlib.Path(directory)
        self.num_samples = check_count("num_samples", num_samples)
        self.every = check_count("every", every)
        self._seed = stateless_seed(seed)
        self._kwargs = kwargs

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Creates one distribution for all epochs, so that its chain is compiled once."""
        self._distribution = EnergyDistribution(self.model, **self._kwargs)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Draws samples and writes them to a file."""
        if (epoch + 1) % self.every:
            return
        samples = self._distribution.sample(self.num_samples, seed=fold_in(self._seed, epoch)).numpy()
        path = self.directory / f"samples_{epoch + 1:04d}.npy"
        try:
            with written_atomically(path) as temporary:
                np.save(temporary, samples)
        except OSError as error:
            warnings.warn(f"{path} could not be written: {error}", stacklevel=2)


class Backup(keras.callbacks.Callback):
    """Saves the state of a training at the end of an epoch, about once a minute, and resumes an interrupted one.

    The same script run again continues after the last backup, and ends with the same bits as a training that was not
    interrupted; where the training is complete, nothing is trained. A backup holds all weights of the model, its loss
    and its optimizer, and the number of epochs, but not the states of other callbacks. It is written atomically, and
    the one before it is kept: if the last one is damaged, a warning names it and the one before it is used. If a backup
    cannot be written, as on a full disk, there is a warning, and the training goes on.

    If several machines train together, the first one writes, and all read: `backup_dir` must be a directory that all
    share. With `keras.callbacks.BackupAndRestore`, machines with directories of their own may resume at different
    epochs; and it has no check sum, and keeps its directory only where `delete_checkpoint=False`.

    Args:
      backup_dir: directory of the backups of this training alone.
      minutes: shortest time between two backups; 0 for one in each epoch. There is always one at the end.

    Raises:
      ValueError: from `fit`, if all backups are damaged, or are those of another model.

    >>> import tempfile, tfp_ebm as ebm
    >>> x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    >>> def train(epochs):
    ...     model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0))
    ...     model.compile("adam", "denoising_score_matching")
    ...     history = model.fit(x, epochs=epochs, verbose=0, callbacks=[Backup(folder)])
    ...     return len(history.epoch)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     train(epochs=3), train(epochs=5), train(epochs=5)
    (3, 2, 0)
    """

    def __init__(self, backup_dir: str | os.PathLike[str], minutes: float = 1.0) -> None:
        super().__init__()
        self.backup_dir = pathlib.Path(backup_dir)
        self.minutes = check_nonnegative("minutes", minutes)
        self._epochs, self._is_saved, self._last = 0, False, 0.0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Loads the last backup."""
        if not self.model.built:
            raise ValueError("callbacks.Backup needs a model whose event shape is known: pass `event_shape` to it.")
        position = backups.load(self.model, self.backup_dir)
        self._epochs, self._is_saved = (0, False) if position is None else (position["epoch"], True)
        if position is not None:
            self.model._initial_epoch = self._epochs  # as keras.callbacks.BackupAndRestore does
        self._last = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Saves, if the last backup is old enough."""
        self._epochs, self._is_saved = epoch + 1, False
        if time.monotonic() - self._last >= 60.0 * self.minutes:
            self._save()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Saves, if the last epoch is not saved yet."""
        self.model._initial_epoch = None  # Keras would begin every later `fit` there
        if not self._is_saved:
            self._save()

    def _save(self) -> None:
        self._last = time.monotonic()
        if not is_first_machine(self.model.distribute_strategy):
            return
        try:
            backups.save(self.model, self.backup_dir, {"epoch": self._epochs})
            self._is_saved = True
        except (OSError, RuntimeError) as error:  # the latter from h5py
            warnings.warn(f"no backup could be written to {self.backup_dir}: {error}", stacklevel=2)
