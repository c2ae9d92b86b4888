"""`EnergyModel`: a Keras model whose output is an energy.

    p(x) = exp(−E(x)) / Z        (eqs. 1-2)

It is a plain `keras.Model`: `fit` with every callback, `save`, `predict`, `export`. It adds to a network the
standardisation of the data, a base distribution, scores, and (in `trainer.py`) a training step for energy functions.
"""

from __future__ import annotations

import functools
import os
import types
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import serialization
from tfp_ebm.arguments import check_event_shape, check_keras_3
from tfp_ebm.energy.base import GaussianBase, check_base
from tfp_ebm.energy.data import row_blocks
from tfp_ebm.energy.function import EnergyFunction
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.energy.shapes import as_state, by_blocks, input_event_shape, over_leading_dimensions, state_dtype
from tfp_ebm.energy.standardization import Standardization
from tfp_ebm.model import second_input
from tfp_ebm.model.conditional_distribution import ConditionalDistribution
from tfp_ebm.model.endpoints import endpoints_of
from tfp_ebm.model.export import export_energy, export_saved_model
from tfp_ebm.model.tables import TableModel
from tfp_ebm.model.trainer import EnergyTrainer
from tfp_ebm.networks.conditional import serialized, takes_condition
from tfp_ebm.networks.joint_energy import JointEnergy
from tfp_ebm.networks.noise_levels import adapt_noise_levels
from tfp_ebm.networks.packed_conditions import packed, with_packed_conditions
from tfp_ebm.networks.targets import RegressionEnergy
from tfp_ebm.tracing import forgets_inputs
from tfp_ebm.types import KernelLike, Seed


@keras.saving.register_keras_serializable("tfp_ebm")
class EnergyModel(EnergyTrainer, TableModel):
    """An energy-based model p(x) = exp(−E(x))/Z around any Keras network (eq. 1).

    Args:
      network: any Keras model or layer `[batch, *event] -> [batch]` or `[batch, 1]`. If it also takes a condition, such
        as a noise scale, a vector, an image or a label for each row, the model is conditional. Such a network is a
        functional model with a second input, or a layer whose `call` has a second required argument. With further
        inputs, or a dictionary as the second, its conditions are dictionaries, by the names of the inputs.
      base_measure: a `tfd.Distribution` over x, which gives E(x) = network(x) − log base(x) and keeps Z finite in every
        direction. None for the network alone.
      event_shape: shape of one x. Needed only if the network's input shape is unknown and there is no batch yet.
      seed: int or two ints; together with the model's step counter, it determines all random numbers in training.
      condition_shape, condition_dtype: of one condition, such as (3,), or () and "int32" for labels. Needed only if a
        subclassed network must be built before its first conditions come, numbers by default; or if its conditions are
        dictionaries: then a dictionary of shapes, and one of the dtypes that are not floating-point.

    Raises:
      TypeError: if `network` is not a Keras layer, the base measure has another dtype, or a `dtype` is given.
      ValueError: if the network does not return one number per row, or takes more inputs than x and one condition.

    The network receives z = (x − loc)/scale, where `adapt` computes loc and scale, and losses and noise scales refer to
    z. Everything public (`energy`, `score`, `base`, `predict`, the exported model) uses x, with E(x) = E_z(z) + Σ log
    scale. A condition reaches the network unchanged: a noise scale is in standard deviations of the data, as z is.

    A conditional model is trained by `fit(x, condition)`, with one condition for each row, or on x alone by a loss that
    draws conditions, such as noise levels. `energy`, `score` and `unnormalized_log_prob` take the condition as second
    argument; Keras's own methods take it as second input: `model([x, condition])`, `model.predict([x, condition])`.
    All other functions need a single density: `model.given(condition)` is a model of x.

    >>> import keras, numpy as np, tfp_ebm as ebm
    >>> x = np.random.default_rng(0).normal(5.0, 2.0, size=(512, 2)).astype("float32")
    >>> model = ebm.EnergyModel(ebm.networks.mlp([2], units=[16], seed=0))
    >>> model.adapt(x)
    >>> model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="denoising_score_matching")
    >>> history = model.fit(x, batch_size=128, epochs=2, verbose=0)
    >>> model.energy(x).shape, model.score(x).shape
    (TensorShape([512]), TensorShape([512, 2]))
    """

    def __init__(
        self,
        network: keras.layers.Layer,
        base_measure: tfp.distributions.Distribution | None = None,
        event_shape: tuple[int, ...] | list[int] | None = None,
        seed: Seed = 0,
        condition_shape: Any = None,
        condition_dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        check_keras_3("network", network)
        if not isinstance(network, keras.layers.Layer):
            raise TypeError(
                f"`network` must be a Keras model or layer, got {type(network).__name__}; wrap a function in "
                "keras.layers.Lambda or in your own layer."
            )
        if "dtype" in kwargs:
            raise TypeError(f"`dtype` is set in the network's layers: pass dtype={kwargs['dtype']!r} to them instead.")
        network, condition_shape, condition_dtype = with_packed_conditions(network, condition_shape, condition_dtype)
        # The dtype policy is that of the states, not of the network: in half precision the data would lose digits
        # before standardisation. The network's layers still use their own policies.
        super().__init__(dtype=state_dtype(network), **kwargs)
        self.network = network
        self.seed = seed  # checked and normalised by the setter
        # Hidden from TensorFlow, which would otherwise track every part of a distribution in every export.
        self._given = types.SimpleNamespace(base_measure=base_measure)
        self._known.condition = second_input.known_spec(network, condition_shape, condition_dtype, self.dtype)
        known = input_event_shape(network)
        if base_measure is not None:
            check_base("base_measure", base_measure, self.dtype)
            known = tuple(base_measure.event_shape) if known is None else known
        if event_shape is not None:
            event_shape = check_event_shape(event_shape)
            if known is not None and known != event_shape:
                raise ValueError(f"`event_shape` must be that of the network's input, {known}, got {event_shape}.")
            known = event_shape
        self._known.event_shape = known
        if known is not None and not second_input.is_pending(self):
            self.build((None, *known))

    # --- parts of the model ----------------------------------------------------------------------------------------

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights for inputs `[batch, *event]`; called automatically once the event shape is known."""
        if self._energy_function is not None:
            return
        if input_shape and isinstance(input_shape[0], list | tuple):  # the shapes of [x, condition]
            second_input.note(self, tf.TensorSpec(input_shape[1], self.dtype))
            input_shape = input_shape[0]
        event_shape = tuple(size for size in input_shape[1:] if size is not None)
        if not event_shape or len(event_shape) < len(input_shape) - 1:
            raise ValueError(f"the event shape must be known and not empty, got input shape {tuple(input_shape)}.")
        if self.base_measure is not None and tuple(self.base_measure.event_shape) != event_shape:
            raise ValueError(
                f"`base_measure` must have the event shape {event_shape}, got {tuple(self.base_measure.event_shape)}."
            )
        self._known.event_shape = event_shape
        self._create_units(event_shape)
        units, spec = self.standardization, self._known.condition
        energy_function = EnergyFunction(
            self.network, event_shape, units, self.base_measure, fitted_base=self._fitted_base, condition_spec=spec
        )
        energy_function.check_network()
        self._known.condition = energy_function.condition_spec if energy_function.is_conditional else None
        self._energy_function = energy_function
        self._build_training()

        self._endpoints = endpoints_of(functools.partial(self._energy, training=False), energy_function)

    def _create_units(self, event_shape: tuple[int, ...]) -> None:
        """Creates the standardisation and the base, which do not depend on conditions."""
        if self._standardization is None:
            self._known.event_shape = event_shape
            self._standardization = Standardization(event_shape, self.dtype)
            self._fitted_base = GaussianBase(event_shape, self.dtype) if self.base_measure is None else None

    def _energy(self, x: tf.Tensor, condition: tf.Tensor | None, training: bool) -> tf.Tensor:
        """Computes E(x) = E_z(z) + Σ log scale for states `[..., *event]`."""
        z = self.standardization.to_z(x)
        return self.energy_function(z, condition, training=training) + self.standardization.log_scale_sum()

    @forgets_inputs
    def call(self, x: Any, training: bool = False) -> tf.Tensor:
        """Returns the energies of x `[..., *event]`, or of [x, condition] for a conditional network; shape `[...]`."""
        condition = None
        if isinstance(x, list | tuple):
            if len(x) != 2:
                raise ValueError(f"`x` must be one tensor, or [x, condition], got {len(x)} tensors.")
            condition = tf.cast(packed(self.network, x[1]), self.energy_function.condition_spec.dtype)
            x = x[0]
        x = as_state(tf.cast(x, self.dtype), self.dtype, self.energy_function.event_shape)
        if condition is not None and condition.shape.rank is None:  # Keras was called with both vectors and columns
            leading = tf.shape(x)[: x.shape.rank - len(self.event_shape)]
            condition = tf.reshape(condition, tf.concat([leading, self.energy_function.condition_spec.shape], 0))
        return self._energy(x, condition, training)

    @property
    def is_conditional(self) -> bool:
        """Whether the network takes a condition in addition to x."""
        return takes_condition(self.network)

    def given(self, condition: Any, as_distribution: bool = False) -> Any:
        """Returns the model of x at one value of the condition, or the distributions for a batch of conditions.

        A model for one condition is an ordinary `EnergyModel`. It shares network, standardisation and base with this
        model: training or adapting either model changes both. Saving it writes an independent copy.

        Args:
          condition: one condition: a number, an array or a label. A noise scale is in standardised units, as in
            training. For a `networks.JointEnergy`, a label: the model is then the energy −f(x)[label] of the class,
            which is −log p(x|label) up to a constant. Of a batch, `[n, *condition]`, the result is an
            `EnergyDistribution` of batch shape `[n]`.
          as_distribution: whether the result is a distribution in any case, of batch shape () for one condition, as
            joint distributions need it: `x=lambda c: model.given(c, as_distribution=True)`.

        Raises:
          TypeError, ValueError: if the condition is not finite, has another shape, or the network takes none.

        >>> import tfp_ebm as ebm
        >>> model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], condition_shape=[1]))
        >>> x = tf.zeros([3, 2])
        >>> sharp = model.given(0.1)
        >>> bool(tf.reduce_all(sharp.energy(x) == model.energy(x, 0.1)))
        True
        """
        if isinstance(self.network, RegressionEnergy) and len(np.shape(condition)) == 2 and not as_distribution:
            return ConditionalDistribution(self, condition)
        if as_distribution or second_input.is_batch(self, condition):
            from tfp_ebm.model.given_conditions import GivenConditions  # which is made of models

            return GivenConditions(self, condition)
        return self.with_network(second_input.given_network(self, condition))

    @property
    def sigma_min(self) -> float:
        """The smallest noise scale of the loss, in standardised units; AttributeError if the loss has none."""
        return self.loss.sigma_min

    def with_network(self, network: keras.layers.Layer) -> EnergyModel:
        """Returns a model of another network that shares standardisation, base and learned log Z with this one."""
        model = EnergyModel(network, seed=self.seed)
        # A layer has no input shape, so the new model is not built yet. The parts set here are not created by `build`.
        model._given.base_measure = self.base_measure
        model._standardization, model._fitted_base = self._standardization, self._fitted_base
        model._known.loss = self.loss
        model.build((None, *self.event_shape))
        return model

    def class_probabilities(self, x: Any) -> tf.Tensor:
        """Returns p(y|x) of states `[batch, *event]`, `[batch, classes]`; TypeError if it is no `JointEnergy`."""
        if not isinstance(self.network, JointEnergy):
            raise TypeError(f"the network must be a networks.JointEnergy, got {type(self.network).__name__}.")
        return self.network.predict_proba(self.standardization.to_z(as_state(x, self.dtype, self.event_shape)))

    @property
    def standardization(self) -> Standardization:
        """The standardisation, computed by `adapt`."""
        return self.energy_function.standardization if self._standardization is None else self._standardization

    @property
    def base_measure(self) -> tfp.distributions.Distribution | None:
        """The distribution over x that is part of the energy, or None."""
        return self._given.base_measure

    @property
    def base(self) -> tfp.distributions.Distribution:
        """The base distribution, over x: the base measure, else the Gaussian fitted by `adapt` or the first `fit`.

        Raises:
          ValueError: if there is no base distribution yet.
        """
        if self.base_measure is not None:
            return self.base_measure
        return self._fitted_base.distribution() if self._fitted_base and self._has_base else self.energy_function.base

    @property
    def _has_base(self) -> bool:
        return self.base_measure is not None or (self._fitted_base is not None and self._fitted_base.is_fitted)

    # --- energies --------------------------------------------------------------------------------------------------

    # A condition is one for all states, or one for each, `[..., *condition]`. Only conditional networks take it.

    def energy(self, x: Any, condition: Any = None) -> tf.Tensor:
        """Returns E(x) (eq. 1) of states `[..., *event]`, shape `[...]`; −E is the log-density up to log Z."""
        return self._evaluate("energy", x, condition)

    def score(self, x: Any, condition: Any = None) -> tf.Tensor:
        """Returns the score ∇ₓ log p(x) = −∇ₓE(x) of states `[..., *event]`, same shape as x."""
        return self._evaluate("score", x, condition, keeps_event=True)

    def unnormalized_log_prob(self, x: Any, condition: Any = None) -> tf.Tensor:
        """Returns −E(x) of states `[..., *event]`, shape `[...]`: a target for any `tfp.mcmc` kernel."""
        return self._evaluate("unnormalized_log_prob", x, condition)

    def _evaluate(self, name: str, x: Any, condition: Any, keeps_event: bool = False) -> tf.Tensor:
        condition = packed(self.network, condition)
        if not self.built:
            self._known.event_shape = self._known.event_shape or tuple(np.shape(x)[1:])
            second_input.note_for_states(self, condition, x)
            self.build((None, *self.event_shape))
        x = as_state(x, self.dtype, self.event_shape)
        function = getattr(self._endpoints, name)
        rows = self.energy_function.condition_of_rows(condition, x)
        given = () if rows is None else (rows,)
        return over_leading_dimensions(lambda x: by_blocks(function, x, *given), x, len(self.event_shape), keeps_event)

    # --- data ------------------------------------------------------------------------------------------------------

    def adapt(self, x: Any) -> None:
        """Computes the location and scale of each coordinate of the data, and fits the base distribution to the data.

        Constant coordinates keep scale 1; a single warning names them. A base measure remains the base.

        Args:
          x: array `[rows, *event]`, or anything that yields batches of it, such as a `tf.data.Dataset`.

        Raises:
          TypeError, ValueError: if `x` is not numeric, not finite, empty, all constant, or of another event shape.
        """
        moments = None
        for block in row_blocks(x, self._known.event_shape):
            self._create_units(block.shape[1:])
            if not second_input.is_pending(self):
                self.build((None, *block.shape[1:]))
            moments = DataMoments.of([block]) if moments is None else moments.merged(DataMoments.of([block]))
        if moments is None:
            raise ValueError("`x` must not be empty, got no rows.")
        self.standardization.assign(moments)
        adapt_noise_levels(self.network, row_blocks(x, self.event_shape), self.standardization.to_z)
        if self._fitted_base is not None:
            self._fitted_base.assign(moments)

    # --- files -----------------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments and the format version; `serialization` encodes the base measure."""
        return {
            "format_version": serialization.FORMAT_VERSION,
            "network": serialized(self.network),
            "base_measure": serialization.encode(self.base_measure),
            "event_shape": None if self._known.event_shape is None else list(self.event_shape),
            "seed": list(self.seed),
            **second_input.config_of(self._known.condition),
            "columns": None if self.columns is None else list(self.columns),
            "encoder": None if self.encoder is None else keras.saving.serialize_keras_object(self.encoder),
            "report": serialization.report_of(self),
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> EnergyModel:
        """Rebuilds the model from `get_config`; a ValueError names another format version than this package's."""
        config = dict(config)
        serialization.check_format_version(config.pop("format_version", 1))
        network = keras.saving.deserialize_keras_object(config["network"], custom_objects=custom_objects)
        base_measure = serialization.decode(config["base_measure"])
        columns, encoder, report = (config.pop(key, None) for key in ("columns", "encoder", "report"))
        model = cls(**{**config, "network": network, "base_measure": base_measure})
        model.columns = None if columns is None else tuple(columns)
        model.encoder = None if encoder is None else keras.saving.deserialize_keras_object(encoder)
        return serialization.with_report(model, report)

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool = True,
        *,
        kernel: KernelLike | None = None,
        jit_compile: bool = False,
        condition: Any = None,
        **kwargs: Any,
    ) -> None:
        """Writes a SavedModel that loads with TensorFlow alone, without this package.

        Its endpoints, for states x `[batch, *event]` of any batch size:
          energy(x), serve(x): E(x) `[batch]`.
          score(x): ∇ log p(x) = −∇E(x) `[batch, *event]`.
          unnormalized_log_prob(x): −E(x) `[batch]`.
          sample(initial_state, seed, num_steps): the states after `num_steps` steps of the kernel; seed is int32[2]. An
            optional `step_size` replaces the kernel's own.
        Without `kernel`, if log Z is known: log_prob(x), and sample(num_samples, seed) gives exact samples. If it is
          known, for a base of at most 50 coordinates, or at one noise level: draw(num_samples, seed), a dictionary of
          `states`, `log_normalizer`, `standard_error` and `trouble`, 0 or a sum of 1: the run that chose temperatures
          had trouble, 2: estimates of Z from groups of particles differ, 4: few ancestors, 8: R-hat is too large.
        Those of a conditional model take conditions `[batch, *condition]`, one for each row: energy(x, condition) and
          so on, and sample(initial_state, condition, seed, num_steps); or sample(condition, seed), one exact draw each.
          Several conditions are one vector for each row, their numbers in the order of their names.

        Args:
          filepath: the directory. If it exists, it must be empty or hold a SavedModel, which is replaced atomically.
          format: "tf_saved_model"; any other format is passed to Keras, which exports the energy alone. A "litert" file
            (Keras 3.13 or later) is loaded after writing; if LiteRT's interpreter cannot run it, the file is removed.
          verbose: whether to print one line with the directory and the endpoints.
          kernel: the kernel that `sample` runs, in standardised units; default: HMC. An adaptive kernel is adapted
            during the export, starting from the base distribution, and exported with the resulting step size.
          jit_compile: whether XLA compiles `sample`, once for each batch size.
          condition: for a conditional model, conditions `[n, *condition]` to which an adaptive kernel is adapted;
            without them it is exported with its initial step size.
          **kwargs: passed to Keras, for other formats.

        Raises:
          RuntimeError: if LiteRT cannot run the exported file.
          ValueError: if `filepath` holds anything other than a SavedModel, or the event shape is unknown.
          TypeError: if `kernel` is not a kernel, or an argument is unknown.
        """
        if format != "tf_saved_model":
            if kernel is not None or jit_compile or condition is not None:
                raise TypeError(f"`kernel` and `jit_compile` are for format 'tf_saved_model', got format {format!r}.")
            export = functools.partial(super().export, filepath, format=format, verbose=verbose, **kwargs)
            export_energy(self, export, filepath if format == "litert" else None)
            return
        if kwargs:
            raise TypeError(f"export takes no argument {', '.join(map(repr, kwargs))} with format 'tf_saved_model'.")
        export_saved_model(self, filepath, verbose, kernel, jit_compile, packed(self.network, condition))
