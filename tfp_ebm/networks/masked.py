"""A masked residual network: the output of each coordinate depends on the coordinates before it alone.

Each hidden unit has a degree m, and sees the first m coordinates. The output of coordinate i, counted from 1, sees the
units of degree below i (Germain et al. 2015, MADE, arXiv:1502.03509).
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import random


def sees(places: np.ndarray, degrees: np.ndarray) -> np.ndarray:
    """Returns the mask `[inputs, outputs]`: an output of degree m sees the inputs of degree up to m.

    >>> sees(np.array([1, 2]), np.array([1, 2])).astype(int).tolist()
    [[1, 1], [0, 1]]
    """
    return places[:, None] <= degrees[None, :]


class MaskedDense(keras.layers.Layer):
    """A dense layer with a mask on its kernel; initial weights have the variance gain²/(number of inputs seen)."""

    def __init__(self, mask: np.ndarray, gain: float, seed: Any, use_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        fan_in = np.maximum(mask.sum(0), 1)
        start = np.random.default_rng(seed).normal(size=mask.shape) * mask * gain / np.sqrt(fan_in)
        self.mask = mask
        self.kernel = self.add_weight(shape=mask.shape, initializer="zeros", name="kernel")
        self.kernel.assign(start)
        self.bias = self.add_weight(shape=mask.shape[1:], initializer="zeros", name="bias") if use_bias else None
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns x W + b with the masked W."""
        y = tf.matmul(x, self.kernel.value * tf.constant(self.mask, self.kernel.dtype))
        return y if self.bias is None else y + self.bias.value

    def part(self, x: tf.Tensor, at: tf.Tensor, number: int) -> tf.Tensor:
        """Returns part `at` of the outputs, which are in `number` parts of equal size."""
        masked = tf.reshape(self.kernel.value * tf.constant(self.mask, self.kernel.dtype), [x.shape[1], number, -1])
        y = tf.matmul(x, tf.gather(masked, at, axis=1))
        return y if self.bias is None else y + tf.gather(tf.reshape(self.bias.value, [number, -1]), at)


class MaskedNetwork(keras.layers.Layer):
    """Residual blocks and a linear skip from x, `[batch, inputs] -> [batch, size, num_outputs]`; zero at the start.

    Args:
      size: number of coordinates.
      width: units of each layer.
      num_blocks: residual blocks of two layers.
      num_outputs: numbers for each coordinate.
      dropout: share of the units of a block that training drops.
      seed: of the initial weights.
      inputs: for each number of an input, the coordinate that it describes, counted from 1, or 0 for what all see;
        default: one each.
      least_degree: 0 if there are inputs that all outputs see.
    """

    def __init__(
        self,
        size: int,
        width: int,
        num_blocks: int,
        num_outputs: int,
        dropout: float,
        seed: int,
        inputs: np.ndarray | None = None,
        least_degree: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        places = np.arange(1, size + 1)
        inputs = places if inputs is None else inputs
        degrees = least_degree + np.sort(np.arange(width) % max(1, size - least_degree))
        outputs: np.ndarray = np.repeat(places - 1, num_outputs)  # a coordinate does not see itself
        self.size, self.dropout, self.num_outputs = size, dropout, num_outputs
        seeds = iter(np.random.SeedSequence(seed).spawn(1 + 2 * num_blocks))

        def dense(mask: np.ndarray, gain: float, use_bias: bool = True) -> MaskedDense:
            return MaskedDense(mask, gain, next(seeds) if gain else 0, use_bias, dtype=self.dtype)

        self.first = dense(sees(inputs, degrees), 1.0)
        self.blocks = [
            (dense(sees(degrees, degrees), math.sqrt(2.0)), dense(sees(degrees, degrees), 0.3))
            for _ in range(num_blocks)
        ]
        self.block_layers = [layer for block in self.blocks for layer in block]  # where Keras finds them
        self.last = dense(sees(degrees, outputs), 0.0)
        self.skip = dense(sees(inputs, outputs), 0.0, use_bias=False)
        self.built = True

    def call(self, x: tf.Tensor, seed: tf.Tensor | None = None, at: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the outputs of all coordinates, or `[batch, num_outputs]` of the one with the number `at`.

        With a seed, int32[2], units are dropped.
        """
        hidden = self.first(x)
        for number in range(len(self.block_layers) // 2):
            first, second = self.block_layers[2 * number : 2 * number + 2]
            update = tf.nn.silu(first(tf.nn.silu(hidden)))
            if seed is not None and self.dropout > 0.0:
                kept = random.uniform(tf.shape(update), random.fold_in(seed, number), update.dtype) >= self.dropout
                update = tf.where(kept, update / (1.0 - self.dropout), tf.zeros_like(update))
            hidden += second(update)
        hidden = tf.nn.silu(hidden)
        if at is None:
            outputs = self.last(hidden) + self.skip(x)
            return tf.reshape(outputs, [-1, self.size, self.num_outputs])
        return self.last.part(hidden, at, self.size) + self.skip.part(x, at, self.size)
