"""The base class of training objectives, which map an energy function and a batch to one number per row.

    loss(energy_fn, x, condition=None, *, seed, training=False) -> LossOutput(per_example [batch], metrics)

A loss has no access to a model: `energy_fn` is any callable `[batch, *event] -> [batch]`. A loss does not reduce; the
trainer weights the rows (`sample_weight`), averages them and divides by the number of replicas. The state of a loss (a
learned log Z, a replay buffer, an adapted step size) consists of Keras weights, so that `.keras` files, weight files
and checkpoints contain it. With `training=False` a loss does not change its state.
"""

from __future__ import annotations

import functools
import inspect
import re
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_ebm.derivatives import explain, refuse_faulty_layers
from tfp_ebm.energy.function import EnergyFunction
from tfp_ebm.energy.rows import check_rows
from tfp_ebm.random import stateless_seed

# Networks whose activations a loss has checked, so that there is one warning for each.
_looked_at: weakref.WeakSet[keras.layers.Layer] = weakref.WeakSet()
# Networks whose rows are independent in training mode, with the variables that were trainable at the check.
_mixes_no_rows: weakref.WeakKeyDictionary[keras.layers.Layer, list[bool]] = weakref.WeakKeyDictionary()


def input_specs(energy_fn: Any) -> list[tf.TensorSpec] | None:
    """Returns the specs of the inputs of an energy function's network; None for any other callable."""
    if not hasattr(energy_fn, "network_term"):
        return None
    specs = [tf.TensorSpec((None, *energy_fn.event_shape), energy_fn.dtype)]
    if energy_fn.is_conditional or energy_fn.condition is not None:
        spec = energy_fn.condition_spec
        shapes = getattr(energy_fn.network, "input_shape", None)  # where a number is a column
        shape = shapes[1][1:] if isinstance(shapes, list) and len(shapes) == 2 else spec.shape
        specs.append(tf.TensorSpec((None, *shape), spec.dtype))
    return specs


class LossOutput(NamedTuple):
    """The result of a loss: `per_example` of shape `[batch]`, not reduced, and `metrics`, scalars by name.

    A loss that takes labels may also return `predictions` `[batch, ...]`, which `compile(metrics=...)` compares with
    the labels.
    """

    per_example: tf.Tensor
    metrics: Mapping[str, tf.Tensor] = {}
    predictions: tf.Tensor | None = None


def alias(loss_class: type) -> str:
    """Returns the string for a loss in `compile(loss=...)`: its class name in snake case.

    >>> alias(type("DenoisingScoreMatching", (), {}))
    'denoising_score_matching'
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", loss_class.__name__).lower()


@functools.cache
def _arguments(loss_class: Any) -> frozenset[str]:
    """Returns the names of the arguments of a loss's constructor, and of the constructors of its base classes."""
    classes = [kind for kind in loss_class.__mro__ if issubclass(kind, Loss) and kind is not Loss]
    names = {name for kind in classes for name in inspect.signature(kind.__init__).parameters}
    return frozenset(names - {"self", "args", "kwargs", "name", "trainable", "dtype"})


class Loss(keras.layers.Layer):
    """The base class of all training objectives: a Keras layer, which a compiled model lists in `model.layers`.

    A subclass implements `call`, and `build` if it has weights. Once the loss is built, the arguments of its
    constructor can no longer be set, because compiled training steps would continue with the old values.

    Subclasses set:
      differentiates_score: whether the parameter gradient contains ∂/∂θ ∇ₓE. Networks with layers whose second
        derivatives are silently wrong then raise an error.
      needs_curvature: whether the loss contains ∇²ₓE, which is zero almost everywhere for a piecewise linear network;
        there is one warning for each such network.
      gives_condition: whether the loss draws the conditions itself and calls the energy as `energy_fn(x, condition)`. A
        network of (x, condition) trained by another loss needs its conditions in `fit(x, condition)`. The loss then
        receives an energy of x alone, in which row i of any batch [x; ...] has the condition of row i of x.
      takes_labels: whether `fit(x, y)` passes y to the loss as `condition`; for other losses, labels raise an error.
      metric_names: the keys of `LossOutput.metrics`, shown in the progress bar and in the history.

    A loss in five lines:

    >>> import tensorflow as tf
    >>> from tfp_ebm.random import normal
    >>> class EnergyGap(Loss):
    ...     metric_names = ("data_energy",)
    ...     def call(self, energy_fn, x, condition, *, seed, training):
    ...         data_energy = energy_fn(x)
    ...         gap = data_energy - energy_fn(normal(tf.shape(x), seed, x.dtype))
    ...         return LossOutput(gap, {"data_energy": tf.reduce_mean(data_energy)})
    >>> output = EnergyGap()(lambda x: tf.reduce_sum(x**2, -1), tf.zeros([4, 2]), seed=0)
    >>> output.per_example.shape, float(output.metrics["data_energy"])
    (TensorShape([4]), 0.0)
    """

    differentiates_score: bool = False
    needs_curvature: bool = False
    gives_condition: bool = False
    takes_labels: bool = False
    metric_names: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        kind: Any = type(self)
        if not name.startswith("_") and getattr(self, "built", False) and name in _arguments(kind):
            raise AttributeError(
                f"`{name}` of {type(self).__name__} is fixed once the loss is built: create a new loss and compile the "
                "model with it. (A number that changes during training must be a weight of the loss.)"
            )
        super().__setattr__(name, value)

    def build(self, event_shape: tuple[int, ...], dtype: str = "float32") -> None:
        """Creates the loss's weights, if it has any; `dtype` is that of states and energies."""
        del event_shape, dtype  # a body, because AutoGraph fails for a method that has only a docstring

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """Computes the objective; implemented by the subclass. `seed` is int32[2]."""
        raise NotImplementedError(f"{type(self).__name__} must implement `call`.")

    # Keras's own __call__ rejects a callable as first argument and would cast x, so this method replaces it.
    def __call__(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: Any,
        condition: Any = None,
        *,
        seed: Any,
        training: bool = False,
    ) -> LossOutput:
        """Evaluates the objective.

        Args:
          energy_fn: callable `[batch, *event] -> [batch]`; `(x, condition) -> [batch]` for a loss that gives one.
          x: data `[batch, *event]`; in standardised units if called by the trainer.
          condition: the argument y of `fit`: labels for losses that take them, or the conditions of the rows for a
            network of (x, condition).
          seed: int or int32[2]; the same seed gives the same bits.
          training: whether weights of the loss may change, and network layers run in training mode.

        Returns:
          `LossOutput(per_example [batch], metrics)`.
        """
        x = tf.convert_to_tensor(x)
        self.check(energy_fn)
        if getattr(energy_fn, "is_conditional", False) and not self.gives_condition:
            conditional: Any = energy_fn
            energy_fn = conditional.with_condition(conditional.condition_of_rows(condition, x))
            condition = None
        if condition is not None and not self.takes_labels:
            raise ValueError(f"{type(self).__name__} takes no labels, but `condition` was given.")
        if not self.built:
            self.build(tuple(x.shape[1:]), x.dtype.name)
        if hasattr(energy_fn, "in_mode"):
            energy_fn = energy_fn.in_mode(training)
        output = self.call(energy_fn, x, condition, seed=stateless_seed(seed), training=training)
        if set(output.metrics) != set(self.metric_names):
            raise ValueError(
                f"{type(self).__name__} declares metric_names {self.metric_names}, "
                f"but returned {tuple(output.metrics)}."
            )
        return output

    @property
    def known_log_normalizer(self) -> tf.Tensor | None:
        """Returns the current log Z of the energy if the loss learns it and has begun to do so, else None."""
        return None

    def training_warning(self, metrics: Mapping[str, float]) -> str:
        """Returns a warning message if the epoch's mean metrics indicate failing training, else "".

        `fit` issues the warning once.
        """
        return ""

    def check(self, energy_fn: Callable[..., tf.Tensor]) -> None:
        """Raises ValueError if this loss cannot train `energy_fn`; a plain callable is not checked."""
        network = getattr(energy_fn, "network", None)
        if self.gives_condition and not getattr(energy_fn, "is_conditional", True):
            raise ValueError(
                f"{type(self).__name__} gives the network a condition, so `network` must take (x, condition), got one "
                "that takes x alone."
            )
        if self.differentiates_score and network is not None:
            refuse_faulty_layers(
                network, f"{type(self).__name__}, which differentiates the score,", inputs=input_specs(energy_fn)
            )
        if isinstance(network, keras.layers.Layer) and isinstance(energy_fn, EnergyFunction):
            trainable = [layer.trainable for layer in network._flatten_layers()]
            if _mixes_no_rows.get(network) != trainable:
                check_rows(energy_fn, training=True)
                _mixes_no_rows[network] = trainable
        if self.needs_curvature and network is not None and network not in _looked_at:
            _looked_at.add(network)
            flat = explain(network).piecewise_linear
            if flat:
                warnings.warn(
                    f"{type(self).__name__} learns from the curvature of the energy, which is zero almost everywhere "
                    f"behind {', '.join(flat)}: use smooth activations, such as silu.",
                    stacklevel=3,
                )
