"""Training an energy: Keras's `fit`, with a step in which a loss sees the energy *function*.

A Keras loss compares predictions with labels. An energy-based one perturbs x, differentiates in x or runs chains, so it
needs the function itself. `EnergyTrainer` is what that changes in a `keras.Model`: compile, fit, evaluate and the two
steps. Everything random in a step follows from the model's seed and a counter that is one of its weights, so that a run
cut and resumed equals one that was not; an evaluation changes no weight and has the same noise each time.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import losses
from tfp_ebm.arguments import check_count, check_data, check_weights
from tfp_ebm.energy.base import GaussianBase
from tfp_ebm.energy.data import batches_of_tuples, first_rows, is_array
from tfp_ebm.energy.function import EnergyFunction
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.energy.shapes import as_state
from tfp_ebm.energy.standardization import Standardization
from tfp_ebm.networks.normalized import NormalizedEnergy
from tfp_ebm.random import fold_in

# What the seeds of a training step and of an evaluation are folded with, so that the two never share noise.
_TRAINING, _EVALUATION = 0, 1
# The first `fit` of a model without a base distribution fits one to this many rows.
_BASE_ROWS = 10_000


class _Trackers:
    """Running means of what a loss reports; an object, since Keras would count a tuple of metrics among the weights."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.means = {name: keras.metrics.Mean(name=name) for name in names}

    def update(self, metrics: Mapping[str, tf.Tensor], batch_size: tf.Tensor) -> None:
        for name, value in metrics.items():
            self.means[name].update_state(value, sample_weight=batch_size)


class _StopAtNonFiniteLoss(keras.callbacks.Callback):
    """Ends training with an error at the first loss that is not finite; no gradient of it reached the weights."""

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss became {loss} within batch {batch} of the epoch; no gradient of it reached the weights. "
                "Is `x` finite? If it is, lower the learning rate."
            )


class _TrainingWarnings(keras.callbacks.Callback):
    """Warns, once, of what the loss has to say about the metrics of an epoch."""

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self.complained = False

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        training_warning = "" if self.complained else self.model.loss.training_warning(logs or {})
        if training_warning:
            self.complained = True
            warnings.warn(f"{type(self.model.loss).__name__} in epoch {epoch + 1}: {training_warning}", stacklevel=2)


def _labels(x: Any, y: Any, sample_weight: Any) -> Any:
    """y, or labels of no width where there are none: Keras drops the weights of an array that comes without labels."""
    if y is not None or sample_weight is None or not is_array(x):
        return y
    return np.zeros((len(x), 0), "float32")


def _handles_divergence(callback: keras.callbacks.Callback) -> bool:
    return isinstance(callback, keras.callbacks.TerminateOnNaN) or getattr(callback, "handles_divergence", False)


def _is_absent(y: Any) -> bool:
    return y is None or (hasattr(y, "shape") and len(y.shape) == 2 and y.shape[1] == 0)


class EnergyTrainer(keras.Model):
    """The training half of an `EnergyModel`, which provides the energy function, the units and the base."""

    network: keras.layers.Layer
    seed: tuple[int, int]
    loss: Any  # the Loss that `compile` was given; Keras starts with None
    _standardization: Standardization | None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trackers = _Trackers(())
        self._energy_function: EnergyFunction | None = None
        self._standardization = None
        self._fitted_base: GaussianBase | None = None

    @property
    def energy_function(self) -> EnergyFunction:
        """E_z, the energy in standardised coordinates z = (x − loc)/scale, as losses and samplers see it."""
        if self._energy_function is None:
            raise ValueError(
                "the model does not know its event shape yet: pass `event_shape`, call `adapt` or `fit`, or call it "
                "on a batch."
            )
        return self._energy_function

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one x."""
        return self.energy_function.event_shape

    @property
    def log_normalizer(self) -> tf.Tensor | None:
        """log Z (eq. 2) as the loss has learned it, such as noise contrastive estimation; None if it is not known."""
        if isinstance(self.network, NormalizedEnergy) and getattr(self, "base_measure", None) is None:
            return tf.zeros([], self.dtype)
        return None if self.loss is None else self.loss.known_log_normalizer

    def _build_training(self) -> None:
        """Creates the weights that training needs, once the energy function is there."""
        self._step = self.add_weight(shape=(), dtype="int64", initializer="zeros", trainable=False, name="step")
        if self.loss is not None:
            self._build_loss()

    def _look_at(self, x: Any) -> Any:
        """Checks `x` before Keras sees it, and takes from its first rows what the model lacks: shape and base."""
        lacks_base = self._energy_function is None or (
            self._fitted_base is not None and not self._fitted_base.is_fitted
        )
        if is_array(x) or lacks_base:
            rows, x = first_rows(x, _BASE_ROWS, self.event_shape if self.built else None)
            self.build((None, *rows.shape[1:]))
            if lacks_base and self._fitted_base is not None:
                self._fitted_base.assign(DataMoments.of([rows]))
        return batches_of_tuples(x)

    def _refuse_labels(self, y: Any) -> None:
        if not _is_absent(y) and self.loss is not None and not self.loss.takes_labels:
            raise ValueError(
                f"`y` must not be given: {type(self.loss).__name__} learns the density of x and takes no labels. "
                "(Pass x alone; validation_data too is x alone, or (x, None, sample_weight).)"
            )

    def compile(self, optimizer: Any = "adam", loss: Any = None, **kwargs: Any) -> None:
        """Configures training.

        Args:
          optimizer: as in Keras.
          loss: an `ebm.losses.Loss` or its alias, such as "denoising_score_matching".
          **kwargs: as in Keras, but for `metrics` and `loss_weights`, which compare predictions with labels.
        """
        for name in ("metrics", "weighted_metrics", "loss_weights"):
            if kwargs.pop(name, None):
                raise ValueError(f"`{name}` must not be given: an energy model has no labels to compare with.")
        loss = losses.get(loss)
        optimizer = keras.optimizers.get(optimizer)
        half = any(layer.compute_dtype == "float16" for layer in self.network._flatten_layers())
        if (
            half
            and kwargs.get("auto_scale_loss", True)
            and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        ):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        # Keras would wrap the loss for predictions and labels, so it is not told of it.
        super().compile(optimizer=optimizer, loss=None, **kwargs)
        self._replace_loss(loss)
        self._trackers = _Trackers(loss.metric_names)

    def report_gradient_norm(self) -> None:
        """Makes training report the norm of the parameters' gradient beside the loss's metrics."""
        if "gradient_norm" not in self._trackers.means:
            self._trackers = _Trackers((*self._trackers.means, "gradient_norm"))
            self.train_function = None  # compiled without it

    def _replace_loss(self, loss: losses.Loss) -> None:
        # Keras locks a built model against new state and never lets go of an old layer's weights; a recompiled model
        # must do both. `_tracker` is private to Keras: this is the one place that touches it, and a test pins it.
        self._tracker.unlock()
        if self.loss is not None:
            self._tracker.untrack(self.loss)
        self.loss = loss
        if self._energy_function is not None:
            self._build_loss()
        if self.built:
            self._tracker.lock()

    def _build_loss(self) -> None:
        self.loss.check(self.energy_function)
        if not self.loss.built:
            self.loss.build(self.event_shape, self.dtype)

    def make_train_function(self, force: bool = False) -> Any:
        """Keras's, once the optimizer has its weights: `BackupAndRestore` loads into them before the first step."""
        if self.built:
            self._build_optimizer()
        return super().make_train_function(force)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Keras's, with the optimizer's weights too, if the file has them."""
        if self.compiled and self.built:
            self._build_optimizer()
        super().load_weights(filepath, *args, **kwargs)

    def _build_optimizer(self) -> None:
        if self.optimizer.built:
            return
        optimizer: Any = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if self.loss.trainable_variables:
            optimizer.exclude_from_weight_decay(self.loss.trainable_variables)
        self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras's metrics and those of the loss."""
        return [*super().metrics, *self._trackers.means.values()]

    def fit(self, x: Any = None, y: Any = None, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains the model: Keras's `fit`, with x alone.

        Arrays are checked before the first step (finite, right shape, not fewer rows than `batch_size`). If there is
        no base distribution yet, the Gaussian of the first 10 000 rows becomes it. A loss that is not finite, as from a
        NaN in a batch that could not be looked at, gives no gradient, and ends the training with an error (unless
        `callbacks.DivergenceGuard` or `keras.callbacks.TerminateOnNaN` is there to deal with it).
        """
        self._assert_compile_called("fit")
        call = inspect.signature(super().fit).bind(x, y, batch_size, *args, **kwargs).arguments
        if call.pop("class_weight", None) is not None:
            raise ValueError("`class_weight` must not be given: there are no classes; use `sample_weight`.")
        self._refuse_labels(y)
        call["x"] = x = self._look_at(x)
        weights = call.get("sample_weight")
        if is_array(x):
            num_rows = int(len(x) * (1.0 - call.get("validation_split", 0.0)))
            if batch_size is not None and check_count("batch_size", batch_size) > num_rows:
                raise ValueError(
                    f"`batch_size` must not exceed the rows to train on, got {batch_size} for {num_rows} rows."
                )
            if weights is not None:
                call["sample_weight"] = check_weights("sample_weight", weights, len(x))
        call["y"] = _labels(x, y, weights)
        if call.get("validation_data") is not None:
            call["validation_data"] = self._validation(call["validation_data"])
        callbacks = call.get("callbacks")
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = list(tf.nest.flatten(callbacks)) if callbacks is not None else []
            if not any(map(_handles_divergence, callbacks)):
                callbacks.append(_StopAtNonFiniteLoss())
            callbacks.append(_TrainingWarnings())
            call["callbacks"] = callbacks
        return super().fit(**call)

    def _validation(self, data: Any) -> Any:
        """Validation data, checked before the first step if they are arrays, with labels of no width for weights."""
        if not isinstance(data, list | tuple):
            if is_array(data):
                check_data("validation_data", data, self.event_shape)
            return data
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        self._refuse_labels(y)
        if is_array(x):
            rows = check_data("validation_data", x, self.event_shape)
            if weights is not None:
                check_weights("validation_data[2]", weights, len(rows))
        return x, _labels(x, y, weights), weights

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """Keras's `train_on_batch`, with x alone, checked."""
        self._refuse_labels(y)
        x = self._look_at(x)
        if sample_weight is not None:
            sample_weight = check_weights("sample_weight", sample_weight, len(x))
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """The loss on data: Keras's `evaluate`, with x alone. It changes no weight; its noise is always the same."""
        self._assert_compile_called("evaluate")
        self._refuse_labels(y)
        if is_array(x):
            x = first_rows(x, 0, self.event_shape if self.built else None)[1]
            if kwargs.get("sample_weight") is not None:
                check_weights("sample_weight", kwargs["sample_weight"], len(x))
        return super().evaluate(batches_of_tuples(x), _labels(x, y, kwargs.get("sample_weight")), *args, **kwargs)

    def _loss_of(self, data: Any, seed: tf.Tensor, training: bool) -> tf.Tensor:
        """The batch's loss as this replica's share of the whole, and the metrics updated with it."""
        x, condition, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        self._refuse_labels(condition)
        condition = None if _is_absent(condition) else condition
        x = as_state(tf.cast(x, self.dtype), self.dtype, self.event_shape)
        if x.shape.rank != 1 + len(self.event_shape):
            raise ValueError(
                f"`x` must come in batches of shape [batch, {', '.join(map(str, self.event_shape))}], "
                f"got {tuple(x.shape)}."
            )
        replica = tf.distribute.get_replica_context()
        if replica.num_replicas_in_sync > 1:
            seed = fold_in(seed, replica.replica_id_in_sync_group)
        output = self.loss(
            self.energy_function, self.energy_function.standardization.to_z(x), condition, seed=seed, training=training
        )
        per_example = output.per_example
        if sample_weight is not None:
            per_example *= tf.cast(tf.reshape(sample_weight, [-1]), per_example.dtype)
        loss = tf.reduce_mean(per_example)
        if self.losses:
            loss += tf.cast(tf.add_n(self.losses), loss.dtype)
        batch_size = tf.shape(x)[0]
        self._loss_tracker.update_state(loss, sample_weight=batch_size)
        self._trackers.update(output.metrics, batch_size)
        return loss / replica.num_replicas_in_sync

    def train_step(self, data: Any) -> dict[str, Any]:
        """One optimizer step; all its noise follows from the model's seed and its step counter."""
        if not self.built:
            self.build(keras.utils.unpack_x_y_sample_weight(data)[0].shape)
        seed = self._seed(_TRAINING, self._step.value)
        with tf.GradientTape() as tape:
            loss = self._loss_of(data, seed, training=True)
            scaled_loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        if variables:
            # Unconnected variables get zeros: no score depends on an additive constant, so the bias of a last layer
            # rightly has no gradient, and Keras would warn of it at every fit.
            values = [variable.value for variable in variables]
            gradients = tape.gradient(scaled_loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            # A loss that is not finite must not reach the weights; `fit` reports it.
            finite = tf.math.is_finite(loss)
            gradients = [tf.where(finite, gradient, tf.zeros_like(gradient)) for gradient in gradients]
            if "gradient_norm" in self._trackers.means:
                norm = tf.linalg.global_norm(gradients) / self.optimizer.scale_loss(tf.ones([]))
                self._trackers.update({"gradient_norm": norm}, tf.constant(1))
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        self._step.assign_add(1)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> dict[str, Any]:
        """The loss of one batch; its noise follows from the number of rows evaluated before it."""
        if not self.built:
            self.build(keras.utils.unpack_x_y_sample_weight(data)[0].shape)
        self._loss_of(data, self._seed(_EVALUATION, self._loss_tracker.count.value), training=False)
        return {name: value for name, value in self.get_metrics_result().items() if name != "gradient_norm"}

    def _seed(self, purpose: int, count: tf.Tensor) -> tf.Tensor:
        return fold_in(fold_in(tf.constant(self.seed, tf.int32), purpose), tf.cast(count, tf.int64))

    def get_compile_config(self) -> dict[str, Any]:
        """Keras's, with the loss."""
        if not self.compiled:
            return {}
        return {**super().get_compile_config(), "loss": keras.saving.serialize_keras_object(self.loss)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model, and gives its optimizer the weights that are about to be loaded."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self._build_optimizer()
