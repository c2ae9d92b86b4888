"""Ready-made networks of (y, σ) for `losses.DualScoreMatching`, which are known at the largest noise level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras

from tfp_ebm.arguments import check_count, check_positive
from tfp_ebm.networks.builders import (
    Activation,
    check_activation,
    check_image_sizes,
    check_strides,
    checked_policy,
    convolution_layers,
    dense_layers,
    functional_model,
    layer_seeds,
)
from tfp_ebm.networks.conditioning import check_sizes
from tfp_ebm.networks.noise_level_features import NoiseLevelFeatures, NoiseLevelImages
from tfp_ebm.networks.noise_levels import NoiseLevelEnergy


def noise_level_mlp(
    event_shape: Sequence[int],
    units: Sequence[int] = (192, 192, 192),
    activation: Activation = "silu",
    sigma_max: float = 10.0,
    fourier_features: int = 64,
    num_components: int = 16,
    dtype: Any = None,
    seed: Any = 0,
    *,
    num_waves: int = 0,
    is_quadratic: bool = False,
    is_bounded: bool = False,
    adapts_units: bool = False,
) -> NoiseLevelEnergy:
    """A dense network of (y, σ): a mixture of the noisy data plus a residual that vanishes at `sigma_max`.

    E(y, σ) = −log p_t(y), t = σ², if trained by `losses.DualScoreMatching`; see `NoiseLevelEnergy` for its form. Its
    initial energy is that of a Gaussian mixture with noise, once `EnergyModel.adapt` has fitted it.

    Args:
      event_shape: shape of one data point, of any rank; points are flattened.
      units: width of each hidden layer.
      activation: name of a smooth Keras activation, or a callable.
      sigma_max: the largest noise scale, in standard deviations of the data; the loss should have the same.
      fourier_features: number of plane waves among the inputs, which fade with the noise; 0 for none.
      num_components: number of Gaussians in the mixture; small data get fewer. Of more than 50 coordinates, they differ
        in the 50 first principal ones.
      dtype: Keras dtype or policy of the layers; None for Keras's global policy. The energy is computed in float32 at
        least.
      seed: an int or a pair of ints that determines the initial weights; None uses `keras.utils.set_random_seed`.
      num_waves: number of frequencies 1, 2, 4, … of waves of each coordinate among the inputs, for data with steps,
        such as pixels of few grey levels.
      is_quadratic: whether the residual is u·v + ½‖v‖² with d + 1 outputs v of the network, for data of many
        coordinates.
      is_bounded: whether all coordinates have one known range, as in `NoiseLevelEnergy`.
      adapts_units: whether noise is added in units that suit heavy tails and collinear columns, as there.

    Returns:
      A `NoiseLevelEnergy`, `[batch, *event]` and `[batch]` -> `[batch]`.

    Raises:
      TypeError, ValueError: if an argument is not of the form above.

    >>> import numpy as np
    >>> network = noise_level_mlp([2], units=[16], seed=0)
    >>> network(np.zeros([5, 2], "float32"), np.ones([5], "float32")).shape
    TensorShape([5])
    """
    event_shape, units = check_sizes("event_shape", event_shape), check_sizes("units", units)
    activation = check_activation(activation)
    check_count("fourier_features", fourier_features, minimum=0)
    sigma_max = check_positive("sigma_max", sigma_max)
    policy, seeds = checked_policy(dtype), layer_seeds(seed)
    y, sigma = keras.Input(event_shape, dtype=policy.variable_dtype), keras.Input((), dtype=policy.variable_dtype)
    flat = y if len(event_shape) == 1 else keras.layers.Flatten(dtype=policy.variable_dtype)(y)
    features = NoiseLevelFeatures(
        fourier_features, seed=next(seeds), num_waves=num_waves, dtype=policy, name="features"
    )
    h = dense_layers(features(flat, sigma), units, activation, policy, seeds)
    network = functional_model([y, sigma], _head(h, policy, event_shape, is_quadratic), policy)
    return NoiseLevelEnergy(network, sigma_max, num_components, is_bounded, adapts_units)


def noise_level_convnet(
    event_shape: Sequence[int],
    filters: Sequence[int] = (32, 64, 64),
    kernel_size: int = 3,
    strides: int | Sequence[int] = 2,
    units: Sequence[int] = (128,),
    activation: Activation = "silu",
    sigma_max: float = 10.0,
    num_components: int = 1,
    dtype: Any = None,
    seed: Any = 0,
    *,
    num_waves: int = 0,
    is_quadratic: bool = False,
    is_bounded: bool = False,
) -> NoiseLevelEnergy:
    """A convolutional network of noisy images and their noise scale; see `noise_level_mlp` and `convnet`.

    Args:
      event_shape: `[height, width, channels]`.
      filters, kernel_size, strides, units, activation: as for `convnet`.
      sigma_max, num_components, dtype, seed, num_waves, is_quadratic, is_bounded: as for `noise_level_mlp`.

    Returns:
      A `NoiseLevelEnergy`, `[batch, height, width, channels]` and `[batch]` -> `[batch]`.

    Raises:
      TypeError, ValueError: if an argument is not of the form above.

    >>> import numpy as np
    >>> network = noise_level_convnet([5, 7, 1], filters=[4, 8], units=[8], seed=0)
    >>> network(np.zeros([2, 5, 7, 1], "float32"), np.ones([2], "float32")).shape
    TensorShape([2])
    """
    event_shape, filters = check_image_sizes(event_shape, filters, kernel_size)
    units = check_sizes("units", units)
    strides = check_strides(strides, len(filters))
    activation = check_activation(activation)
    sigma_max = check_positive("sigma_max", sigma_max)
    policy, seeds = checked_policy(dtype), layer_seeds(seed)
    y, sigma = keras.Input(event_shape, dtype=policy.variable_dtype), keras.Input((), dtype=policy.variable_dtype)
    h = NoiseLevelImages(num_waves, dtype=policy, name="channels")(y, sigma)
    h = convolution_layers(h, filters, kernel_size, strides, activation, policy, seeds)
    h = dense_layers(h, units, activation, policy, seeds)
    network = functional_model([y, sigma], _head(h, policy, event_shape, is_quadratic), policy)
    return NoiseLevelEnergy(network, sigma_max, num_components, is_bounded)


def _head(h: Any, policy: Any, event_shape: Sequence[int], is_quadratic: bool) -> Any:
    """Returns the last sums, which start at 0 and are never in half precision."""
    width = math.prod(event_shape) + 1 if is_quadratic else 1
    dtype = "float64" if policy.compute_dtype == "float64" else "float32"
    return keras.layers.Dense(width, kernel_initializer="zeros", dtype=dtype, name="residual")(h)
