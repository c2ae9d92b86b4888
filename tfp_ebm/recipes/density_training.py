"""Training of one autoregressive energy on a table, judged by the exact likelihood of held-out rows."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import losses
from tfp_ebm.caller import warn
from tfp_ebm.energy.data import shuffled_batches
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.linear import LinearEnergy
from tfp_ebm.networks.normalized import NormalizedEnergy
from tfp_ebm.tracing import graph_function

# How often a training is judged on the held-out rows, and after which share of these without a better one it ends.
NUM_JUDGEMENTS, _PATIENCE = 40, 0.3
_MAX_JUDGED_ROWS = 5000
# Rows from which two columns are trained for longer, since they do not overfit.
MANY_ROWS = 10_000
# Seconds of a training step on two processor cores, and for each number in its batch.
_SECONDS_PER_STEP, _SECONDS_PER_NUMBER = 1.5e-3, 1.4e-6

# Nodes of the lattices that are tried, and their error at most, in nats a row.
_NUM_NODES, _MAX_QUADRATURE_ERROR = (128, 512), 1e-3

# A training that learns linear combinations of the columns moves them, by about this factor at most.
_LINEAR_RANGE = 1.5


class Settings(NamedTuple):
    """How autoregressive energies are trained.

    Attributes:
      num_steps: optimizer steps, a multiple of `num_judgements`.
      batch_size: rows of each.
      width: units of each hidden layer.
      dropout: share of hidden units dropped.
      weight_decay: of the optimizer.
      learning_rate: at the start; it falls along a cosine.
      num_judgements: how often the rows held out judge the averaged weights.
    """

    num_steps: int
    batch_size: int
    width: int
    dropout: float
    weight_decay: float
    learning_rate: float
    num_judgements: int


def settings_for_rows(num_rows: int, size: int) -> Settings:
    """Chooses the size of a network and its training by the number of rows.

    >>> settings_for_rows(300, 10).dropout > settings_for_rows(100_000, 10).dropout
    True
    """
    batch_size = min(num_rows, 256 if num_rows >= 4000 else 128 if num_rows >= 1000 else 64)
    logarithm = math.log10(num_rows)
    dropout = float(np.interp(logarithm, [2.3, 3.0, 4.0, 5.0], [0.4, 0.3, 0.1, 0.0]))
    decay = 10.0 ** float(np.interp(logarithm, [3.0, 5.0], [-1.5, -4.0]))
    passes = num_rows // batch_size
    num_steps = min(500 + 100 * passes, 4000 if num_rows < (MANY_ROWS if size <= 2 else 100_000) else 8000)
    return Settings(num_steps - num_steps % NUM_JUDGEMENTS, batch_size, 128, dropout, decay, 4e-3, NUM_JUDGEMENTS)


def seconds_of(settings: Settings, size: int) -> float:
    """Returns about how long a training takes on two processor cores, without compilation.

    >>> round(seconds_of(settings_for_rows(20_000, 8), 8))
    17
    """
    return settings.num_steps * (_SECONDS_PER_STEP + _SECONDS_PER_NUMBER * size * settings.batch_size)


def set_mixture(network: Any, mixture: MixtureParameters, order: list[int]) -> None:
    """Makes the conditionals of a mixture, its columns in the given order, the proposals of a network."""
    covariance = mixture.scale_tril @ mixture.scale_tril.transpose(0, 2, 1)
    network.proposal.assign(mixture.probs, mixture.loc[:, order], covariance[:, order][:, :, order])


class _GapsAsFlags(NormalizedEnergy):
    """A network of rows with missing cells as one of finite numbers: the cells, then for each whether it is missing."""

    def __init__(self, network: NormalizedEnergy) -> None:
        super().__init__([2 * network.event_shape[0]], dtype=network.dtype)
        self.network = network
        self.built = True

    @staticmethod
    def rows(x: np.ndarray) -> np.ndarray:
        """Returns the finite numbers `[rows, 2 size]` of rows `[rows, size]`."""
        return np.concatenate([np.nan_to_num(x), np.isnan(x)], 1).astype(np.float32)

    def _with_gaps(self, x: tf.Tensor) -> tf.Tensor:
        values, flags = tf.split(x, 2, axis=1)
        return tf.where(flags > 0.5, tf.constant(math.nan, x.dtype), values)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.network(self._with_gaps(x), training=training)

    def training_energy(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return self.network.training_energy(self._with_gaps(x), seed)


class _Schedule(keras.callbacks.Callback):
    """Lowers the learning rate along a cosine, keeps the best averaged weights, and ends a training in time.

    The cosine ends with the last step, or at the deadline if that comes first.

    Args:
      held_out_loss: returns the loss of the rows held out with the network's current weights.
      settings: of the training.
      seconds: time for it, may be infinite; the first judgement, which compiles it, is not counted.
      snapshot_every: judgements from one copy of the weights to the next; 0 keeps the best weights alone.
    """

    snapshots: dict[int, list[np.ndarray]]

    def __init__(
        self, held_out_loss: Callable[[], float], settings: Settings, seconds: float, snapshot_every: int = 0
    ) -> None:
        super().__init__()
        self.held_out_loss, self.settings, self.seconds = held_out_loss, settings, seconds
        self.snapshot_every, self.snapshots = snapshot_every, {}
        self.losses: list[float] = []
        self.held_out_losses: list[float] = []
        self.best, self.weights, self.waited = math.inf, None, 0
        self.is_cut, self.progress, self.start = False, 0.0, 0.0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if epoch == 1:
            self.start = time.monotonic()  # the first epoch compiles
        self.progress = epoch / self.settings.num_judgements
        if epoch > 1:
            spent = (time.monotonic() - self.start) / self.seconds
            self.is_cut |= spent > self.progress + 0.5 / self.settings.num_judgements
            self.progress = max(self.progress, spent) if self.is_cut else self.progress
        rate = self.settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.progress)))
        self.model.optimizer.learning_rate = max(rate, 1e-6)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        loss = self.held_out_loss()
        self.losses.append(float((logs or {}).get("loss", math.nan)))
        self.held_out_losses.append(loss)
        if self.snapshot_every and epoch % self.snapshot_every == 0:
            self.snapshots[epoch] = self.model.network.get_weights()
        if loss < self.best:
            self.best, self.weights, self.waited = loss, self.model.network.get_weights(), 0
        else:
            self.waited += 1
        self.model.stop_training = self.waited >= _PATIENCE * self.settings.num_judgements or self.progress >= 1.0

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if self.weights is not None:
            self.model.network.set_weights(self.weights)


class Training(NamedTuple):
    """The result of a training.

    Attributes:
      weights: of the best judgement; None if an interrupt came before the first.
      is_cut: whether the deadline or an interrupt ended it.
      is_interrupted: whether an interrupt did.
      losses, held_out_losses: mean energies of the rows at each judgement: in training, with dropout and the weights of
        the moment, and held out, with averaged weights.
      snapshots: copies of the weights by number of the judgement, if they were wanted.
    """

    weights: list[np.ndarray] | None
    is_cut: bool
    is_interrupted: bool
    losses: list[float]
    held_out_losses: list[float]
    snapshots: dict[int, list[np.ndarray]]

    def of_units(self, shift: float) -> Training:
        """Returns the training with losses of rows in other units, in which energies are larger by a number."""
        losses = [loss + shift for loss in self.losses]
        return self._replace(losses=losses, held_out_losses=[loss + shift for loss in self.held_out_losses])


def history_of(
    trainings: Sequence[Training],
    log_slope: float,
    held_out_log_slope: float,
    kept: int | None = None,
    shares: np.ndarray | None = None,
) -> dict[str, Any]:
    """Returns the mean curve of trainings: log-likelihoods per judgement, and the judgement kept.

    Args:
      trainings: one, or those of several folds.
      log_slope, held_out_log_slope: mean log |dy/dx| of the rows, which turns log densities of y into those of x.
      kept: the judgement kept; default: the best.
      shares: of the rows in each fold, by which held-out curves are weighed; default: equal.
    """
    length = min(len(training.losses) for training in trainings)

    def mean(curves: Iterable[Sequence[float]], slope: float, weights: np.ndarray | None = None) -> list[float]:
        return [float(slope - value) for value in np.average([curve[:length] for curve in curves], 0, weights)]

    held_out = mean((training.held_out_losses for training in trainings), held_out_log_slope, shares)
    return {
        "log_likelihood": mean((training.losses for training in trainings), log_slope),
        "held_out_log_likelihood": held_out,
        "kept": int(np.argmax(held_out)) if kept is None else kept,
    }


class Trainer:
    """Trains one network again and again from its initial weights: the training step is compiled once.

    Args:
      network: the network, whose weights are those of the training in progress.
      settings: of all its trainings.
      seed: of the batches and of dropout.
    """

    def __init__(self, network: NormalizedEnergy, settings: Settings, seed: int) -> None:
        self.network, self.settings = network, settings
        self._is_linear = isinstance(network, LinearEnergy)
        self._autoregressive: Any = network.network if isinstance(network, LinearEnergy) else network
        self._initial = network.get_weights()
        self._model = EnergyModel(_GapsAsFlags(network) if network.allows_missing else network, seed=seed)
        optimizer = keras.optimizers.Adam(
            settings.learning_rate,
            weight_decay=settings.weight_decay,
            global_clipnorm=10.0,
            use_ema=True,
            ema_momentum=min(0.998, 1.0 - 0.25 * settings.num_judgements / settings.num_steps),
        )
        steps_per_epoch = settings.num_steps // settings.num_judgements
        self._model.compile(
            optimizer,
            losses.NegativeLogLikelihood(),
            steps_per_execution=max(n for n in range(1, 51) if steps_per_epoch % n == 0),
            jit_compile=True,
        )
        self._fresh: list[np.ndarray] | None = None
        signature = [tf.TensorSpec((None, *network.event_shape), network.dtype)]
        self._energy = graph_function(lambda rows: network(rows), input_signature=signature)

    @property
    def step(self) -> int:
        """The number of steps made so far in all trainings, on which the noise of the next one depends."""
        return int(self._model._step.numpy())

    @step.setter
    def step(self, value: int) -> None:
        self._model._step.assign(value)

    def start_at(self, mixture: MixtureParameters, order: list[int]) -> None:
        """Makes the conditionals of a mixture, its columns in the given order, the proposals of the next training."""
        set_mixture(self.network, mixture, order)
        present = {variable.path: np.array(variable) for variable in self.network.proposal.weights}
        self._initial = [
            present.get(variable.path, value)
            for variable, value in zip(self.network.weights, self._initial, strict=True)
        ]

    def start_from(self, weights: list[np.ndarray]) -> None:
        """Makes weights those from which the next trainings start."""
        self._initial = weights

    def train(
        self,
        z: np.ndarray,
        held_out: np.ndarray,
        seconds: float,
        seed: int,
        snapshot_every: int = 0,
        row_weights: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    ) -> Training:
        """Trains from the initial weights until the end, the deadline or an interrupt.

        Batches hold rows in proportion to `row_weights`, those of the rows and of the rows held out; None: equal ones.
        """
        settings = self.settings
        optimizer = self._model.optimizer
        self.network.set_weights(self._initial)
        ordered = z[:, list(self._autoregressive.order)]
        seen = np.stack([np.nanmin(ordered, axis=0), np.nanmax(ordered, axis=0)])
        self._autoregressive.seen_range.assign(_LINEAR_RANGE * seen if self._is_linear else seen)
        if self._fresh is None:
            optimizer.build(self._model.trainable_variables)
            self._fresh = [np.array(variable) for variable in optimizer.variables]
        else:
            for variable, value in zip(optimizer.variables, self._fresh, strict=True):
                variable.assign(value)
        schedule = _Schedule(lambda: self._mean_energy(held_out, row_weights[1]), settings, seconds, snapshot_every)
        rows = _GapsAsFlags.rows(z) if self.network.allows_missing else z
        is_interrupted = False
        with warnings.catch_warnings():
            # Of the base, which is not used here.
            warnings.filterwarnings("ignore", message="the covariance is singular")
            try:
                self._model.fit(
                    shuffled_batches(rows, settings.batch_size, seed, weights=row_weights[0]),
                    epochs=settings.num_judgements,
                    steps_per_epoch=settings.num_steps // settings.num_judgements,
                    shuffle=False,
                    verbose=0,
                    callbacks=[
                        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
                        schedule,
                        keras.callbacks.TerminateOnNaN(),
                    ],
                )
            except KeyboardInterrupt:
                is_interrupted = True
        weights = schedule.weights if is_interrupted else self.network.get_weights()
        return Training(
            weights,
            schedule.is_cut or is_interrupted,
            is_interrupted,
            schedule.losses,
            schedule.held_out_losses,
            schedule.snapshots,
        )

    def _mean_energy(self, z: np.ndarray, weights: np.ndarray | None = None) -> float:
        """Returns the mean of the energies of at most 5000 rows, infinite where it is not a number."""
        energies = self._energy(z[:_MAX_JUDGED_ROWS])
        if weights is None:
            mean = float(np.mean(energies, dtype=np.float64))
        else:
            mean = float(np.average(np.asarray(energies, np.float64), weights=weights[:_MAX_JUDGED_ROWS]))
        return mean if math.isfinite(mean) else math.inf


def settle_nodes(network: Any, y: np.ndarray) -> float:
    """Makes the lattice finer until its error is small; returns the error of the mean log density of rows, in nats."""
    if isinstance(network, LinearEnergy):
        network, y = network.network, network.forward(y)
    error = math.inf
    for number in _NUM_NODES:
        network.num_nodes = (network.num_nodes[0], number)
        error = float(tf.abs(tf.reduce_mean(network(y, num_nodes=4 * number) - network(y))))
        if error <= _MAX_QUADRATURE_ERROR:
            break
    return error


def is_settled(name: str, error: float) -> bool:
    """Returns whether the error of a quadrature is small, and warns if it is not."""
    if error > _MAX_QUADRATURE_ERROR:
        warn(f"{name} is left out: its quadrature has an error of {error:.2g} nat a row, as for collinear columns.")
    return error <= _MAX_QUADRATURE_ERROR
