"""`EnergyModel`: a Keras model whose output is an energy.

    p(x) = exp(−E(x)) / Z        (eqs. 1-2)

It is a plain `keras.Model`: `fit` with every callback, `save`, `predict`, `export`. It adds to a network the
standardisation of the data, a base distribution, scores, and (in `trainer.py`) a training step for energy functions.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import types
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import serialization
from tfp_ebm.arguments import check_event_shape, check_keras_3, check_kernel
from tfp_ebm.derivatives import refuse_faulty_layers, score
from tfp_ebm.energy.base import GaussianBase, check_base
from tfp_ebm.energy.data import row_blocks
from tfp_ebm.energy.function import EnergyFunction
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.energy.shapes import as_state, input_event_shape, over_leading_dimensions, state_dtype
from tfp_ebm.energy.standardization import Standardization
from tfp_ebm.files import written_atomically
from tfp_ebm.model.export import export_energy, exported_samplers, replaceable_directory, write_saved_model
from tfp_ebm.model.trainer import EnergyTrainer
from tfp_ebm.networks.conditional import FixedCondition, serialized, takes_condition
from tfp_ebm.networks.noise_levels import adapt_noise_levels
from tfp_ebm.types import KernelLike, Seed

Function: TypeAlias = tf.types.experimental.PolymorphicFunction


@dataclasses.dataclass(frozen=True)
class _Endpoints:
    """Compiled functions of states `[batch, *event]`, and of conditions `[batch]` where the network takes them."""

    energy: Function
    score: Function
    unnormalized_log_prob: Function


@keras.saving.register_keras_serializable("tfp_ebm")
class EnergyModel(EnergyTrainer):
    """An energy-based model p(x) = exp(−E(x))/Z around any Keras network (eq. 1).

    Args:
      network: any Keras model or layer `[batch, *event] -> [batch]` or `[batch, 1]`. If it also takes a condition, one
        number per row such as a noise scale, the model is conditional. Such a network is a functional model with a
        second input of shape () or (1,), or a layer whose `call` has a second required argument.
      base_measure: a `tfd.Distribution` over x, which gives E(x) = network(x) − log base(x) and keeps Z finite in every
        direction. None for the network alone.
      event_shape: shape of one x. Needed only if the network's input shape is unknown and there is no batch yet.
      seed: int or two ints; together with the model's step counter, it determines all random numbers in training.

    Raises:
      TypeError: if `network` is not a Keras layer, the base measure has another dtype, or a `dtype` is given.
      ValueError: if the network does not return one number per row, or takes more inputs than x and one condition.

    The network receives z = (x − loc)/scale, where `adapt` computes loc and scale, and losses and noise scales refer to
    z. Everything public (`energy`, `score`, `base`, `predict`, the exported model) uses x, with E(x) = E_z(z) + Σ log
    scale. A condition reaches the network unchanged: a noise scale is in standard deviations of the data, as z is.

    A conditional model is trained on x alone, by a loss that draws conditions. `energy`, `score` and
    `unnormalized_log_prob` take the condition as second argument; Keras's own methods take it as second input:
    `model([x, condition])`, `model.predict([x, condition])`. All other functions need a single density:
    `model.given(condition)` is a model of x.

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
        # The dtype policy is that of the states, not of the network: in half precision the data would lose digits
        # before standardisation. The network's layers still use their own policies.
        super().__init__(dtype=state_dtype(network), **kwargs)
        self.network = network
        self.seed = seed  # checked and normalised by the setter
        self.columns: tuple[str, ...] | None = None  # names of the coordinates, saved with the model
        self.encoder: Any = None  # the `TableEncoder` of the table that x encodes, saved with the model
        # Hidden from TensorFlow, which would otherwise track every part of a distribution in every export.
        self._given = types.SimpleNamespace(base_measure=base_measure)
        known = input_event_shape(network)
        if base_measure is not None:
            check_base("base_measure", base_measure, self.dtype)
            known = tuple(base_measure.event_shape) if known is None else known
        if event_shape is not None:
            event_shape = check_event_shape(event_shape)
            if known is not None and known != event_shape:
                raise ValueError(f"`event_shape` must be that of the network's input, {known}, got {event_shape}.")
            known = event_shape
        if known is not None:
            self.build((None, *known))

    # --- parts of the model ----------------------------------------------------------------------------------------

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates all weights for inputs `[batch, *event]`; called automatically once the event shape is known."""
        if self._energy_function is not None:
            return
        if input_shape and isinstance(input_shape[0], list | tuple):  # the shapes of [x, condition]
            input_shape = input_shape[0]
        event_shape = tuple(size for size in input_shape[1:] if size is not None)
        if not event_shape or len(event_shape) < len(input_shape) - 1:
            raise ValueError(f"the event shape must be known and not empty, got input shape {tuple(input_shape)}.")
        if self.base_measure is not None and tuple(self.base_measure.event_shape) != event_shape:
            raise ValueError(
                f"`base_measure` must have the event shape {event_shape}, got {tuple(self.base_measure.event_shape)}."
            )
        if self._standardization is None:
            self._standardization = Standardization(event_shape, self.dtype)
            self._fitted_base = GaussianBase(event_shape, self.dtype) if self.base_measure is None else None
        energy_function = EnergyFunction(
            self.network, event_shape, self._standardization, self.base_measure, fitted_base=self._fitted_base
        )
        energy_function.check_network()
        self._energy_function = energy_function
        self._build_training()

        # `export` writes these same functions, so that a served model returns the same bits.
        signature = [tf.TensorSpec((None, *event_shape), self.dtype, name="x")]
        if energy_function.is_conditional:
            signature.append(tf.TensorSpec((None,), self.dtype, name="condition"))

        def compiled(function: Callable[..., tf.Tensor]) -> Function:
            of_x = function if energy_function.is_conditional else lambda x: function(x, None)
            # `partial`, because TensorFlow counts traces by code object and would issue a warning at the fifth model
            return tf.function(functools.partial(of_x), input_signature=signature)

        def energy(x: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
            return self._energy(x, condition, training=False)

        def score_of(x: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
            refuse_faulty_layers(self.network, "The score", training=False, order=1, inputs=signature)
            return score(lambda x: energy(x, condition), x)

        self._endpoints = _Endpoints(
            energy=compiled(energy),
            score=compiled(score_of),
            unnormalized_log_prob=compiled(lambda x, condition: -energy(x, condition)),
        )

    def _energy(self, x: tf.Tensor, condition: tf.Tensor | None, training: bool) -> tf.Tensor:
        """Computes E(x) = E_z(z) + Σ log scale for states `[..., *event]`."""
        z = self.standardization.to_z(x)
        return self.energy_function(z, condition, training=training) + self.standardization.log_scale_sum()

    def call(self, x: Any, training: bool = False) -> tf.Tensor:
        """Returns the energies of x `[..., *event]`, or of [x, condition] for a conditional network; shape `[...]`."""
        condition = None
        if isinstance(x, list | tuple):
            if len(x) != 2:
                raise ValueError(f"`x` must be one tensor, or [x, condition], got {len(x)} tensors.")
            x, condition = x[0], tf.cast(x[1], self.dtype)
        x = as_state(tf.cast(x, self.dtype), self.dtype, self.energy_function.event_shape)
        if condition is not None and condition.shape.rank is None:  # Keras was called with both vectors and columns
            condition = tf.reshape(condition, tf.shape(x)[: x.shape.rank - len(self.event_shape)])
        return self._energy(x, condition, training)

    @property
    def is_conditional(self) -> bool:
        """Whether the network takes a condition in addition to x."""
        return takes_condition(self.network)

    def given(self, condition: float) -> EnergyModel:
        """Returns the model of x at one value of the condition: an ordinary, unconditional `EnergyModel`.

        It shares network, standardisation and base with this model: training or adapting either model changes both.
        Saving it writes an independent copy.

        Args:
          condition: a number. A noise scale is in standardised units, as in training.

        Raises:
          TypeError, ValueError: if the condition is not a finite number, or the network takes none.

        >>> import keras, tfp_ebm as ebm
        >>> inputs = [keras.Input((2,)), keras.Input((1,))]
        >>> hidden = keras.layers.Dense(8, "silu")(keras.layers.Concatenate()(inputs))
        >>> model = ebm.EnergyModel(keras.Model(inputs, keras.layers.Dense(1)(hidden)))
        >>> x = tf.zeros([3, 2])
        >>> sharp = model.given(0.1)
        >>> bool(tf.reduce_all(sharp.energy(x) == model.energy(x, 0.1)))
        True
        """
        if not self.is_conditional:
            raise ValueError("`condition` must not be given: the network takes x alone.")
        energy_function = self.energy_function
        model = EnergyModel(FixedCondition(self.network, condition), seed=self.seed)
        # A layer has no input shape, so the new model is not built yet. The parts set here are not created by `build`.
        model._given.base_measure = self.base_measure
        model._standardization, model._fitted_base = self._standardization, self._fitted_base
        model.build((None, *energy_function.event_shape))
        return model

    @property
    def standardization(self) -> Standardization:
        """The standardisation, computed by `adapt`."""
        return self.energy_function.standardization

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
        return self.energy_function.base if self.base_measure is None else self.base_measure

    @property
    def _has_base(self) -> bool:
        return self.base_measure is not None or (self._fitted_base is not None and self._fitted_base.is_fitted)

    # --- energies --------------------------------------------------------------------------------------------------

    # A condition is one number, or one number per state, `[...]`. Only conditional networks take it.

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
        if not self.built:
            self.build(np.shape(x))
        x = as_state(x, self.dtype, self.event_shape)
        function = getattr(self._endpoints, name)
        rows = self.energy_function.condition_of_rows(condition, x)
        if rows is not None:
            function = functools.partial(function, condition=rows)
        return over_leading_dimensions(function, x, len(self.event_shape), keeps_event)

    # --- data ------------------------------------------------------------------------------------------------------

    def adapt(self, x: Any) -> None:
        """Computes the location and scale of each coordinate of the data, and fits the base distribution to the data.

        Constant coordinates keep scale 1; a single warning names them. A base measure remains the base.

        Args:
          x: array `[rows, *event]`, or anything that yields batches of it, such as a `tf.data.Dataset`.

        Raises:
          TypeError, ValueError: if `x` is not numeric, not finite, empty, all constant, or of another event shape.
        """
        shape = self.event_shape if self.built else None
        moments = None
        for block in row_blocks(x, shape):
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
            "event_shape": None if self._energy_function is None else list(self.event_shape),
            "seed": list(self.seed),
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

    def save(self, filepath: str | os.PathLike[str], overwrite: bool = True, **kwargs: Any) -> None:
        """Saves the model as Keras's `save` does, but atomically: an interrupted save keeps the previous file."""
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                f"`filepath` must end in .keras, got {filepath}: the old HDF5 format cannot hold an energy model. "
                "(`save_weights` writes .weights.h5.)"
            )
        exists = os.path.exists(filepath)
        if os.path.isdir(filepath) or (exists and not overwrite) or not str(filepath).endswith(".keras"):
            super().save(filepath, overwrite=overwrite, **kwargs)  # Keras prompts the user or raises an error
            return
        with written_atomically(filepath) as temporary:
            super().save(temporary, **kwargs)

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool = True,
        *,
        kernel: KernelLike | None = None,
        jit_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        """Writes a SavedModel that loads with TensorFlow alone, without this package.

        Its endpoints, for states x `[batch, *event]` of any batch size:
          energy(x), serve(x): E(x) `[batch]`.
          score(x): ∇ log p(x) = −∇E(x) `[batch, *event]`.
          unnormalized_log_prob(x): −E(x) `[batch]`.
          sample(initial_state, seed, num_steps): the states after `num_steps` steps of the kernel; seed is int32[2]. An
            optional `step_size` replaces the kernel's own.
        Without `kernel`, if log Z is known: log_prob(x), and exact samples by sample(num_samples, seed) or draw; else,
          with a base of at most 50 coordinates, or at one noise level: draw(num_samples, seed), log_normalizer(seed).

        Args:
          filepath: the directory. If it exists, it must be empty or hold a SavedModel, which is replaced atomically.
          format: "tf_saved_model"; any other format is passed to Keras, which exports the energy alone. A "litert" file
            is loaded after writing; if LiteRT's own interpreter cannot run it, the file is removed.
          verbose: whether to print one line with the directory and the endpoints.
          kernel: the kernel that `sample` runs, in standardised units; default: HMC. An adaptive kernel is adapted
            during the export, starting from the base distribution, and exported with the resulting step size.
          jit_compile: whether XLA compiles `sample`, once for each batch size.
          **kwargs: passed to Keras, for other formats.

        Raises:
          RuntimeError: if LiteRT cannot run the exported file.
          ValueError: if `filepath` holds anything other than a SavedModel, the event shape is unknown, or the network
            takes a condition (export `model.given(condition)` instead).
          TypeError: if `kernel` is not a kernel, or an argument is unknown.
        """
        if self.is_conditional:
            raise ValueError("a conditional model cannot be exported: export `model.given(condition)`.")
        if format != "tf_saved_model":
            if kernel is not None or jit_compile:
                raise TypeError(f"`kernel` and `jit_compile` are for format 'tf_saved_model', got format {format!r}.")
            export = functools.partial(super().export, filepath, format=format, verbose=verbose, **kwargs)
            export_energy(self, export, filepath if format == "litert" else None)
            return
        if kwargs:
            raise TypeError(f"export takes no argument {', '.join(map(repr, kwargs))} with format 'tf_saved_model'.")
        if kernel is not None:
            check_kernel(kernel)
        path, energy_function = replaceable_directory(filepath), self.energy_function
        base = self.base if self._has_base else None
        samplers = exported_samplers(self, energy_function, base, kernel, jit_compile)
        # TensorFlow Serving looks for `serve`, and for the first endpoint.
        endpoints = {"serve": self._endpoints.energy, **vars(self._endpoints), **samplers}
        with written_atomically(path) as temporary:
            write_saved_model(self, endpoints, temporary)
        if verbose:
            print(f"Saved model at {path}, with the endpoints {', '.join(endpoints)}.")
