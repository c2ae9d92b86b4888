"""The compiled functions of an `EnergyModel`: its methods call them, and `export` writes them.

A served model returns the same bits as the model, because both run the same functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from tfp_ebm.derivatives import refuse_faulty_layers, score
from tfp_ebm.tracing import graph_function

Function: TypeAlias = tf.types.experimental.PolymorphicFunction


@dataclasses.dataclass(frozen=True)
class Endpoints:
    """Compiled functions of states `[batch, *event]`, and of conditions, one per row, where the network takes them."""

    energy: Function
    score: Function
    unnormalized_log_prob: Function


def endpoints_of(energy: Callable[..., tf.Tensor], energy_function: Any) -> Endpoints:
    """Returns the compiled functions of a model.

    Args:
      energy: E of states x `[batch, *event]` and conditions, None for a network that takes none.
      energy_function: the model's `EnergyFunction`.
    """
    signature = [tf.TensorSpec((None, *energy_function.event_shape), energy_function.dtype, name="x")]
    if energy_function.is_conditional:
        spec = energy_function.condition_spec
        signature.append(tf.TensorSpec((None, *spec.shape), spec.dtype, name="condition"))

    def compiled(function: Callable[..., tf.Tensor]) -> Function:
        def of_x(x: tf.Tensor) -> tf.Tensor:
            return function(x, None)

        chosen = function if energy_function.is_conditional else of_x
        return graph_function(chosen, input_signature=signature, autograph=True)

    def score_of(x: tf.Tensor, condition: tf.Tensor | None) -> tf.Tensor:
        refuse_faulty_layers(energy_function.network, "The score", training=False, order=1, inputs=signature)
        return score(lambda x: energy(x, condition), x)

    return Endpoints(
        energy=compiled(lambda x, condition: energy(x, condition)),
        score=compiled(score_of),
        unnormalized_log_prob=compiled(lambda x, condition: -energy(x, condition)),
    )
