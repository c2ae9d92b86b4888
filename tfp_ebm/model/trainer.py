"""Training of an energy by Keras's `fit`, with a step in which the loss receives the energy *function*.

A Keras loss compares predictions with labels. An energy-based loss perturbs x, differentiates in x or runs chains, so
it needs the function itself. `EnergyTrainer` changes the parts of `keras.Model` that depend on this: compile, fit,
evaluate and the two steps. All random numbers of a step follow from the model's seed and a counter among its weights,
so that a run that was resumed equals one without a break. An evaluation changes no weight, and its noise is the same.
"""

from __future__ import annotations

import inspect
import types
import warnings
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm import losses
from tfp_ebm.arguments import check_keras_3
from tfp_ebm.derivatives.failures import naming_the_layer
from tfp_ebm.energy.base import GaussianBase
from tfp_ebm.energy.data import Prepared, check_kind, check_source, is_array, prepared
from tfp_ebm.energy.function import EnergyFunction
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.energy.shapes import as_state
from tfp_ebm.energy.standardization import Standardization
from tfp_ebm.failures import naming_failures_of_training
from tfp_ebm.model import monitoring, second_input
from tfp_ebm.model.executions import StepsTogether
from tfp_ebm.model.layer_losses import adds_losses, losses_of_call, regularization
from tfp_ebm.model.passes import in_order_of_seed, in_their_order
from tfp_ebm.networks.noise_levels import has_log_normalizer_zero
from tfp_ebm.random import fold_in, stateless_seed
from tfp_ebm.replicas import keras_logs, replica_and_number, sum_over_replicas
from tfp_ebm.tracing import forgets_inputs

# Numbers folded into the seeds of a training step and of an evaluation, so that the two never share noise.
_TRAINING, _EVALUATION = 0, 1
# The first `fit` of a model without a base distribution fits one to this many rows.
_BASE_ROWS = 10_000


class EnergyTrainer(StepsTogether):
    """The training half of an `EnergyModel`; the other half provides energy function, standardisation and base.

    It is one class in two files, because Keras expects all methods of a model in one class.
    """

    network: keras.layers.Layer
    loss: Any  # the Loss passed to `compile`; Keras initialises it with None
    _standardization: Standardization | None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._trackers = monitoring.Trackers(())
        # The values with which a compiled step was traced; hidden from Keras, which would track their variables.
        self._traced = types.SimpleNamespace(variables=None, loss=None)
        self._energy_function: EnergyFunction | None = None
        # What is known of x and of conditions before the energy function exists; hidden from Keras's tracking.
        self._known = types.SimpleNamespace(event_shape=None, condition=None, loss=None)
        self._standardization = None
        self._fitted_base: GaussianBase | None = None

    @property
    def seed(self) -> tuple[int, int]:
        """The seed of all random numbers in training and evaluation. It can be set to an int or two ints."""
        return self._noise_seed

    @seed.setter
    def seed(self, value: Any) -> None:
        self._noise_seed: tuple[int, int] = tuple(stateless_seed(value).numpy().tolist())
        self._retrace()

    def _retrace(self) -> None:
        """Makes Keras compile its steps again, because a value with which they were traced has changed."""
        self.train_function = self.test_function = None

    @property
    def energy_function(self) -> EnergyFunction:
        """E_z, the energy in standardised coordinates z = (x − loc)/scale, which losses and samplers use."""
        if self._energy_function is None and self._known.event_shape is not None:
            self.build((None, *self._known.event_shape))
        if self._energy_function is None:
            raise ValueError(
                "the model does not know its event shape yet: pass `event_shape`, call `adapt` or `fit`, or call it "
                "on a batch."
            )
        return self._energy_function

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one x."""
        return self._known.event_shape or self.energy_function.event_shape

    @property
    def log_normalizer(self) -> tf.Tensor | None:
        """log Z (eq. 2) if the loss learns it, as noise contrastive estimation does; None if it is unknown."""
        if has_log_normalizer_zero(self):
            return tf.zeros([], self.dtype)
        loss = self.loss or self._known.loss  # that of the model with conditions, for `given`
        return None if loss is None else loss.known_log_normalizer

    def _build_training(self) -> None:
        """Creates the weights for training, once the energy function exists."""
        self._step = self.add_weight(shape=(), dtype="int64", initializer="zeros", trainable=False, name="step")
        if self.loss is not None:
            self._build_loss()

    def _prepared(self, x: Any, y: Any, sample_weight: Any, steps: str | None, training: bool = True) -> Prepared:
        """Checks data before Keras uses them; in training, their first rows determine a missing shape and base."""
        y = second_input.checked(self, x, y)
        lacks_base = training and (
            self._energy_function is None or (self._fitted_base is not None and not self._fitted_base.is_fitted)
        )
        data = prepared(
            x,
            y,
            sample_weight,
            event_shape=self._known.event_shape,
            limit=_BASE_ROWS if lacks_base else 0 if training and is_array(x) else None,
            steps=steps,
        )
        if data.first_rows is not None:
            self.build((None, *data.first_rows.shape[1:]))
            if lacks_base and self._fitted_base is not None and not self._fitted_base.is_fitted:
                self._fitted_base.assign(DataMoments.of([data.first_rows]))
        return data

    def compile(self, optimizer: Any = "adam", loss: Any = None, **kwargs: Any) -> None:
        """Configures training.

        Args:
          optimizer: as in Keras.
          loss: an `ebm.losses.Loss` or its alias, such as "denoising_score_matching".
          **kwargs: as in Keras. `metrics` and `weighted_metrics`, which compare predictions with labels, need a loss
            that takes labels, such as `losses.JointEnergyLoss`. `steps_per_execution` is "auto" by default: one call
            runs as many steps as take about 50 ms, or one if a callback acts on single batches.
        """
        loss = losses.get(loss)
        kwargs |= second_input.metrics_of(loss, kwargs)
        check_keras_3("optimizer", optimizer)
        optimizer = keras.optimizers.get(optimizer)
        half = any(layer.compute_dtype == "float16" for layer in self.network._flatten_layers())
        is_scaled = monitoring.is_scaler(optimizer) or optimizer.loss_scale_factor is not None
        if half and kwargs.get("auto_scale_loss", True) and not is_scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        # Keras would wrap the loss as loss(y_true, y_pred), so it is not passed on.
        super().compile(optimizer=optimizer, loss=None, **kwargs)
        self._replace_loss(loss)
        self._trackers = monitoring.Trackers(loss.metric_names)

    def report_gradient_norm(self) -> None:
        """Makes training report the norm of the parameters' gradient in addition to the loss's metrics."""
        if "gradient_norm" not in self._trackers.means:
            self._trackers = monitoring.Trackers([*self._trackers.means, "gradient_norm"])
            self.train_function = None  # the compiled step does not report the norm

    def _replace_loss(self, loss: losses.Loss) -> None:
        # Keras locks a built model against new state and never releases an old layer's weights; a recompiled model
        # must allow both. `_tracker` is private to Keras: only this code uses it, and a test covers it.
        self._tracker.unlock()
        if self.loss is not None:
            self._tracker.untrack(self.loss)
        self.loss = loss
        # a loss that draws conditions draws numbers, so that a subclassed network need not wait for others
        if self._energy_function is not None or (loss.gives_condition and self._known.event_shape is not None):
            self._build_loss()
        if self.built:
            self._tracker.lock()
        self._traced = types.SimpleNamespace(variables=None, loss=loss)

    def _build_loss(self) -> None:
        with self.distribute_strategy.scope():
            self.loss.check(self.energy_function)
            if not self.loss.built:
                self.loss.build(self.event_shape, self.dtype)
        for training in (True, False):  # now, while no step is being traced
            adds_losses(self.energy_function, training)

    def make_train_function(self, force: bool = False) -> Any:
        """See Keras; creates the optimizer's weights first, since `BackupAndRestore` loads them before training."""
        if self.built:
            self._build_optimizer()
            self._follow_changes()
        return super().make_train_function(force)

    def _follow_changes(self) -> None:
        """Traces the steps again if `trainable` has changed; raises for changes that need `compile`."""
        variables = [variable.value for variable in self.trainable_variables]
        known = {id(variable.value) for variable in getattr(self._inner_optimizer, "_trainable_variables", ())}
        new = [variable.path for variable in self.trainable_variables if id(variable.value) not in known]
        if new and known:
            raise ValueError(
                f"`trainable` was set after `compile`, and the optimizer has no state for {', '.join(new[:5])}: "
                "compile the model again."
            )
        if self._traced.loss is not self.loss:
            raise ValueError("`loss` was set on the model: pass it to `compile`, which creates its weights.")
        ids = [id(variable) for variable in variables]
        if self._traced.variables not in (None, ids):
            self._retrace()
        self._traced.variables = ids
        count = 0 if self._trackers.nonfinite is None else self._trackers.nonfinite.counts.shape[0] - 2
        if count != len(variables):
            with self.distribute_strategy.scope():
                self._trackers.nonfinite = monitoring.NonFiniteSteps(len(variables))

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Loads weights as Keras does, and those of the optimizer if the file has them."""
        if self.compiled and self.built:
            self._build_optimizer()
        super().load_weights(filepath, *args, **kwargs)

    @property
    def _inner_optimizer(self) -> Any:
        return getattr(self.optimizer, "inner_optimizer", self.optimizer)

    def _build_optimizer(self) -> None:
        if self.optimizer.built:
            return
        optimizer = self._inner_optimizer
        if self.loss.trainable_variables:
            # Keras replaces earlier exclusions, so those of the user are restored
            excluded = set(getattr(optimizer, "_exclude_from_weight_decay", ()))
            pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
            optimizer.exclude_from_weight_decay(
                var_list=self.loss.trainable_variables, var_names=None if pattern is None else [pattern.pattern]
            )
            optimizer._exclude_from_weight_decay |= excluded
        with self.distribute_strategy.scope():
            self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics of Keras and those of the loss."""
        return [*super().metrics, *self._trackers.means.values()]

    def fit(self, x: Any = None, y: Any = None, batch_size: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trains the model: Keras's `fit`, with x alone, or with labels or conditions y.

        A loss that takes labels gets them as y. A network of (x, condition) gets the conditions of the rows as y,
        unless the loss draws them.

        Arrays are checked before the first step (finite, right shape, not fewer rows than `batch_size`). If there is
        no base distribution yet, the Gaussian of the first 10 000 rows becomes it. A step whose loss or gradient is not
        finite changes no weight by its gradient and ends the training with an error that names the cause (unless
        `callbacks.DivergenceGuard` handles it; `keras.callbacks.TerminateOnNaN` handles the loss alone). The model's
        seed and step counter decide the order in which arrays are shuffled.
        """
        self._assert_compile_called("fit")
        call = inspect.signature(super().fit).bind(x, y, batch_size, *args, **kwargs).arguments
        if call.pop("class_weight", None) is not None:
            raise ValueError("`class_weight` must not be given: there are no classes; use `sample_weight`.")
        steps = None if call.get("steps_per_epoch") else "steps_per_epoch"
        data = self._prepared(x, y, call.pop("sample_weight", None), steps)
        call |= {"x": data.x, "y": data.y, "sample_weight": data.sample_weight}
        if call.get("validation_data") is not None:
            steps = None if call.get("validation_steps") else "validation_steps"
            call["validation_data"] = self._validation(call["validation_data"], steps)
        call["callbacks"] = monitoring.with_watchers(self, call.get("callbacks"))
        with naming_failures_of_training(self.distribute_strategy):
            return super().fit(**in_order_of_seed(self, call))

    def _validation(self, data: Any, steps: str | None) -> Any:
        """Returns validation data, checked before the first step as far as they are known."""
        is_tuple = isinstance(data, list | tuple)
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data) if is_tuple else (data, None, None)
        y = second_input.checked(self, x, y, "validation_data[1]")
        data = prepared(x, y, weights, event_shape=self._known.event_shape, steps=steps, name="validation_data")
        return (data.x, data.y, data.sample_weight) if is_tuple else data.x

    def train_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """Trains on one batch: Keras's `train_on_batch`, with x alone, which is checked."""
        data = self._prepared(x, y, sample_weight, None)
        logs = super().train_on_batch(data.x, y, data.sample_weight, **kwargs)
        error = monitoring.nonfinite_error(self)
        if error.startswith("the gradient"):  # a non-finite loss is visible in the result
            raise ValueError(error)
        return logs

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Computes the loss on data: Keras's `evaluate`, with x alone. It changes no weight and reuses its noise."""
        self._assert_compile_called("evaluate")
        call = inspect.signature(super().evaluate).bind(x, y, *args, **kwargs).arguments
        monitoring.checked_callbacks(call.get("callbacks"))
        extra = call.pop("kwargs", {})
        steps = None if call.get("steps") else "steps"
        data = self._prepared(x, y, call.pop("sample_weight", None), steps, training=False)
        call |= {"x": data.x, "y": data.y, "sample_weight": data.sample_weight}
        return super().evaluate(**in_their_order(self, call), **extra)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The energies of data: Keras's `predict`; a conditional model takes [x, condition]."""
        call = inspect.signature(super().predict).bind(x, *args, **kwargs).arguments
        if not (isinstance(x, list | tuple) and self.is_conditional):
            check_source("x", x, None if call.get("steps") else "steps")
        return super().predict(**call)

    def predict_on_batch(self, x: Any) -> Any:
        """Keras's `predict_on_batch`, of one array, or of [x, condition] for a conditional model."""
        check_kind("x", x)
        return super().predict_on_batch(x)

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # Keras adds up the first batch over replicas, which fails if they have different numbers of rows
        if not self.built:
            super()._maybe_symbolic_build(*args, **kwargs)

    def make_test_function(self, force: bool = False) -> Any:
        """See Keras; traces the step again if `trainable` has changed."""
        if self.built and self._traced.loss is not self.loss:
            self._follow_changes()
        return super().make_test_function(force)

    @forgets_inputs
    def _loss_of(self, data: Any, seed: tf.Tensor, training: bool) -> tf.Tensor:
        """Computes this replica's share of the batch's loss, and updates the metrics."""
        x, condition, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        condition = second_input.of_batch(self, condition)
        check_kind("x", x)
        x = as_state(tf.cast(x, self.dtype), self.dtype, self.event_shape)
        if x.shape.rank != 1 + len(self.event_shape):
            raise ValueError(
                f"`x` must come in batches of shape [batch, {', '.join(map(str, self.event_shape))}], "
                f"got {tuple(x.shape)}."
            )
        replica, num_replicas = replica_and_number()
        if num_replicas > 1:
            seed = fold_in(seed, replica)
        z = self.energy_function.standardization.to_z(x)
        self._clear_losses()  # removes the losses of earlier graphs
        output = self.loss(self.energy_function, z, condition, seed=seed, training=training)
        second_input.update_metrics(self._compile_metrics, condition, output.predictions, sample_weight)
        per_example = output.per_example
        if sample_weight is not None:
            per_example *= tf.cast(tf.reshape(sample_weight, [-1]), per_example.dtype)
        num_rows = tf.shape(x)[0]
        # the last batch of an epoch may leave a replica without rows
        mean = tf.where(num_rows > 0, tf.reduce_mean(per_example), tf.zeros([], per_example.dtype))
        added = (*losses_of_call(self.energy_function, z, training), *regularization(self))
        penalties = [tf.cast(penalty, mean.dtype) for penalty in added]
        self._clear_losses()
        loss = tf.add_n([mean, *penalties]) if penalties else mean
        self._loss_tracker.update_state(loss, sample_weight=num_rows)
        self._trackers.update(output.metrics, num_rows)
        if num_replicas == 1:
            return loss
        rows = tf.cast(num_rows, mean.dtype)
        return rows / tf.maximum(sum_over_replicas(rows), 1.0) * mean + (loss - mean) / num_replicas

    def _build_for(self, data: Any) -> None:
        x, condition, _ = keras.utils.unpack_x_y_sample_weight(data)
        second_input.note(self, condition)
        self.build(x.shape)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Makes one optimizer step; its random numbers follow from the model's seed and step counter."""
        if not self.built:
            self._build_for(data)
        seed = self._seed(_TRAINING, self._step.value)
        variables = self.trainable_variables
        with naming_the_layer(self.energy_function, type(self.loss).__name__):
            with tf.GradientTape() as tape:
                loss = self._loss_of(data, seed, training=True)
                scaled_loss = self.optimizer.scale_loss(loss)
            # Unconnected variables get zeros: no score depends on an additive constant, so the bias of a last layer
            # rightly has no gradient, and Keras would warn about it at every fit.
            values = [variable.value for variable in variables]
            gradients = tape.gradient(scaled_loss, values, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        if variables:
            gradients = monitoring.finite_update(self.optimizer, loss, gradients, self._trackers)
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        else:
            warnings.warn("The model does not have any trainable weights.", stacklevel=2)
        self._step.assign_add(1)
        return keras_logs(self.get_metrics_result())

    def test_step(self, data: Any) -> dict[str, Any]:
        """Computes the loss of one batch; its noise follows from the number of rows evaluated before it."""
        if not self.built:
            self._build_for(data)
        with naming_the_layer(self.energy_function, type(self.loss).__name__):
            self._loss_of(data, self._seed(_EVALUATION, self._loss_tracker.count.value), training=False)
        return keras_logs({name: value for name, value in self.get_metrics_result().items() if name != "gradient_norm"})

    def _seed(self, purpose: int, count: tf.Tensor) -> tf.Tensor:
        return fold_in(fold_in(tf.constant(self.seed, tf.int32), purpose), tf.cast(count, tf.int64))

    def get_compile_config(self) -> dict[str, Any]:
        """Returns Keras's compile configuration, with the loss."""
        if not self.compiled:
            return {}
        return {**super().get_compile_config(), "loss": keras.saving.serialize_keras_object(self.loss)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model, and creates the optimizer's weights, which are loaded afterwards."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self._build_optimizer()
