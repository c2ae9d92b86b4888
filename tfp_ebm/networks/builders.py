"""Ready-made energy networks: functional Keras models x -> E(x).

An energy network needs a scalar output that is smooth in x (its gradient is the score, and its second derivatives enter
score matching) and has no additive constant, since a score loss cannot learn one. Both builders therefore end in a
dense layer without bias. They return `[batch, 1]`, and compute the last sum in float32 or better, because differences
of energies are exponents.

Initial weights and biases are uniform on ±1/√fan_in, so that the units of the first layer are nonlinear at different
points of the data's range; in an `mlp` the range is three times wider for the first layer. With Keras's default
(Glorot, zero biases), a network of two or three inputs starts almost linear; trained on known densities, its error was
several times larger. The inputs are expected to be standardised, as by `EnergyModel.adapt`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_count
from tfp_ebm.networks.conditioning import (
    Condition,
    check_sizes,
    check_used,
    condition_of,
    joined_of,
    modulated,
    uniform_weights,
)
from tfp_ebm.networks.fourier import FourierFeatures
from tfp_ebm.random import stateless_seed

Activation = str | Callable[[Any], Any]

_FIRST_LAYER_GAIN = 3.0


def mlp(
    event_shape: Sequence[int],
    units: Sequence[int] = (128, 128),
    activation: Activation = "silu",
    fourier_features: int = 0,
    dtype: Any = None,
    seed: Any = 0,
    *,
    condition_shape: Any = None,
    num_labels: Any = None,
    conditioning: str = "concatenation",
) -> keras.Model:
    """A dense network `[batch, *event]` -> `[batch, 1]`, initialised for low dimensions.

        E(x) = w · h_L,   h_l = s(W_l h_{l−1} + b_l),   h_0 = x flattened, or [x, cos(xB), sin(xB)]

    With a condition c it is a network of [x, c] for `EnergyModel.fit(x, c)`. Either h_0 = [x, c] ("concatenation"), or
    h_l = s(γ_l(c) (W_l h_{l−1} + b_l) + β_l(c)) ("film"), where γ_l and β_l are linear in one hidden layer of c.

    Args:
      event_shape: shape of one data point, of any rank; points are flattened.
      units: width of each hidden layer.
      activation: name of a Keras activation, or a callable. Score matching needs a smooth one: the second derivatives
        of `relu` are zero almost everywhere.
      fourier_features: if positive, the number of plane waves that a `FourierFeatures` layer adds to x before the
        first dense layer. They resolve narrow modes much better. They are meant for noise-contrastive estimation and
        maximum likelihood, preferably with a base measure; score matching without a base measure overfits with them.
      dtype: Keras dtype or policy of every layer and of the model; None for Keras's global policy. The energy is
        computed in float32 at least.
      seed: an int or a pair of ints that determines the initial weights; None uses `keras.utils.set_random_seed`.
      condition_shape: shape of one condition, `()` for a number; or a dictionary of shapes, for conditions that are
        dictionaries. None for a network of x alone, and for a single label.
      num_labels: the number of labels, if the condition is a label, 0 to `num_labels` − 1, or holds some; with a
        dictionary of shapes, a dictionary for those that are labels. A label becomes a learned vector.
      conditioning: "concatenation" or "film".

    Returns:
      A functional `keras.Model`.

    Raises:
      TypeError, ValueError: if an argument is not of the form above.

    References:
      Ramachandran, Zoph, Le. Searching for activation functions (silu). 2017. arXiv:1710.05941.
      Perez, Strub, de Vries, Dumoulin, Courville. FiLM: Visual reasoning with a general conditioning layer. AAAI 2018.
      arXiv:1709.07871.

    >>> network = mlp([2], units=[16, 16], seed=0)
    >>> network(np.zeros([5, 2], "float32")).shape
    TensorShape([5, 1])
    >>> network = mlp([2], units=[16, 16], num_labels=10, conditioning="film")
    >>> network([np.zeros([5, 2], "float32"), np.arange(5)]).shape
    TensorShape([5, 1])
    """
    event_shape = check_sizes("event_shape", event_shape)
    units = check_sizes("units", units)
    activation = check_activation(activation)
    check_count("fourier_features", fourier_features, minimum=0)
    policy, seeds = checked_policy(dtype), layer_seeds(seed)

    inputs = keras.Input(event_shape, dtype=policy.variable_dtype)
    x = inputs if len(event_shape) == 1 else keras.layers.Flatten(dtype=policy)(inputs)
    if fourier_features:
        x = FourierFeatures(fourier_features, seed=next(seeds), dtype=policy, name="fourier_features")(x)
    condition = condition_of(condition_shape, num_labels, conditioning, activation, policy, seeds)
    check_used(condition, len(units), "units")
    gain = 1.0 if fourier_features else _FIRST_LAYER_GAIN
    x = dense_layers(x, units, activation, policy, seeds, gain, condition)
    return functional_model(_inputs_of(inputs, condition), energy_head(x, policy, seeds), policy)


def convnet(
    event_shape: Sequence[int],
    filters: Sequence[int] = (32, 64, 64),
    kernel_size: int = 3,
    strides: int | Sequence[int] = 2,
    units: Sequence[int] = (128,),
    activation: Activation = "silu",
    dtype: Any = None,
    seed: Any = 0,
    *,
    condition_shape: Any = None,
    num_labels: Any = None,
    conditioning: str = "concatenation",
) -> keras.Model:
    """A small convolutional network for images, `[batch, height, width, channels]` -> `[batch, 1]`.

    The convolutions (the first at full resolution, all others strided) are followed by dense layers on the flattened
    result, because in centred images such as digits the position of a stroke matters. With zero padding, every image
    size down to 1×1 is possible, also odd ones. A larger kernel with a stride in the first convolution
    (`kernel_size=4, strides=[2]`) is cheaper.

    Args:
      event_shape: `[height, width, channels]`.
      filters: number of channels of each convolution.
      kernel_size: side of the square kernels.
      strides: stride of every convolution after the first; or a list with the stride of each convolution.
      units: width of each dense layer after the convolutions.
      activation: name of a Keras activation, or a callable; see `mlp`.
      dtype: Keras dtype or policy of every layer and of the model; None for Keras's global policy. The energy is
        computed in float32 at least.
      seed: an int or a pair of ints that determines the initial weights; None uses `keras.utils.set_random_seed`.
      condition_shape, num_labels, conditioning: as for `mlp`. With "concatenation", images of the height and width of x
        become channels of x, and all other conditions join the flattened result of the convolutions. With "film", all
        but these images modulate the channels of each convolution and the units of each dense layer.

    Returns:
      A functional `keras.Model`.

    Raises:
      TypeError, ValueError: if an argument is not of the form above.

    References:
      Nijkamp, Hill, Zhu, Wu. Learning non-convergent non-persistent short-run MCMC toward energy-based model.
      NeurIPS 2019. arXiv:1904.09770 (the strided architecture).

    >>> network = convnet([5, 7, 3], filters=[4, 8], units=[8], seed=0)
    >>> network(np.zeros([2, 5, 7, 3], "float32")).shape
    TensorShape([2, 1])
    """
    event_shape, filters = check_image_sizes(event_shape, filters, kernel_size)
    units = check_sizes("units", units)
    strides = check_strides(strides, len(filters))
    activation = check_activation(activation)
    policy, seeds = checked_policy(dtype), layer_seeds(seed)

    inputs = keras.Input(event_shape, dtype=policy.variable_dtype)
    condition = condition_of(condition_shape, num_labels, conditioning, activation, policy, seeds, event_shape)
    if condition is not None and condition.modulation is None:
        check_used(condition, len(units), "units")
    x = convolution_layers(inputs, filters, kernel_size, strides, activation, policy, seeds, condition)
    x = dense_layers(x, units, activation, policy, seeds, condition=condition)
    return functional_model(_inputs_of(inputs, condition), energy_head(x, policy, seeds), policy)


def _inputs_of(x: Any, condition: Condition | None) -> Any:
    return x if condition is None else [x, condition.inputs]


def check_image_sizes(
    event_shape: Sequence[int], filters: Sequence[int], kernel_size: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the checked `event_shape` and `filters` of a convolutional network, whose kernel size is checked too."""
    event_shape, filters = check_sizes("event_shape", event_shape), check_sizes("filters", filters)
    if len(event_shape) != 3:
        raise ValueError(f"`event_shape` must be [height, width, channels], got {list(event_shape)}.")
    if not filters:
        raise ValueError("`filters` must have an entry for at least one convolution, got an empty list.")
    check_count("kernel_size", kernel_size)
    return event_shape, filters


def convolution_layers(
    x: Any,
    filters: Sequence[int],
    kernel_size: int,
    strides: Sequence[int],
    activation: Any,
    policy: Any,
    seeds: Iterator[int | None],
    condition: Condition | None = None,
) -> Any:
    """Returns the flattened output of convolutions."""
    modulation = None if condition is None else condition.modulation
    if condition is not None and condition.channels is not None:
        x = joined_of([x, condition.channels], policy)
    for i, (channels, stride) in enumerate(zip(filters, strides, strict=True)):
        name = f"convolution_{i}"
        x = keras.layers.Conv2D(
            channels,
            kernel_size,
            strides=stride,
            padding="same",
            activation=activation if modulation is None else None,
            dtype=policy,
            name=name,
            **uniform_weights(kernel_size**2 * x.shape[-1], seeds),
        )(x)
        if modulation is not None:
            x = modulated(x, modulation, name, policy, seeds)
            x = keras.layers.Activation(activation, dtype=policy)(x)
    return keras.layers.Flatten(dtype=policy)(x)


def dense_layers(
    x: Any,
    units: Sequence[int],
    activation: Any,
    policy: Any,
    seeds: Iterator[int | None],
    first_gain: float = 1.0,
    condition: Condition | None = None,
) -> Any:
    """Returns the output of hidden dense layers; `first_gain` is that of the weights of the first."""
    modulation = None if condition is None else condition.modulation
    if condition is not None and condition.features is not None:
        x = joined_of([x, condition.features], policy)
    for i, width in enumerate(units):
        weights, name = uniform_weights(x.shape[-1], seeds, first_gain if i == 0 else 1.0), f"hidden_{i}"
        if modulation is None:
            x = keras.layers.Dense(width, activation, dtype=policy, name=name, **weights)(x)
        else:
            x = keras.layers.Dense(width, dtype=policy, name=name, **weights)(x)
            x = modulated(x, modulation, name, policy, seeds)
            x = keras.layers.Activation(activation, dtype=policy)(x)
    return x


def energy_head(x: Any, policy: Any, seeds: Iterator[int | None]) -> Any:
    """Returns the last sum, without a bias (E + c has the same score) and never in half precision."""
    kernel = uniform_weights(x.shape[-1], seeds)["kernel_initializer"]
    dtype = "float64" if policy.compute_dtype == "float64" else "float32"
    return keras.layers.Dense(1, use_bias=False, kernel_initializer=kernel, dtype=dtype, name="energy")(x)


def layer_seeds(seed: Any) -> Iterator[int | None]:
    """Yields a different seed for each initialiser (a Keras initialiser with a seed always draws the same numbers)."""
    if seed is None:
        return itertools.repeat(None)
    words = stateless_seed(seed).numpy().view(np.uint32).tolist()
    return (int(np.random.SeedSequence([*words, i]).generate_state(1)[0]) for i in itertools.count())


def checked_policy(dtype: Any) -> Any:
    """Returns the Keras policy for `dtype`; the global one if None."""
    try:
        policy = keras.config.dtype_policy() if dtype is None else keras.dtype_policies.get(dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`dtype` must be a Keras dtype or policy, got {dtype!r}: {error}") from error
    if policy.quantization_mode is not None or not tf.as_dtype(policy.compute_dtype).is_floating:
        raise ValueError(f"`dtype` must be a floating-point dtype or policy, got {dtype!r}.")
    return policy


def functional_model(inputs: Any, outputs: Any, policy: Any) -> keras.Model:
    """Returns a functional model with `policy` (Keras ignores the `dtype` argument of a functional model)."""
    model = keras.Model(inputs, outputs)
    model.dtype_policy = policy
    return model


def check_strides(strides: Any, num_convolutions: int) -> tuple[int, ...]:
    """Returns the stride of each convolution, or raises an error that names the argument."""
    if not hasattr(strides, "__iter__"):
        return (1, *[check_count("strides", strides)] * (num_convolutions - 1))
    strides = check_sizes("strides", strides)
    if len(strides) != num_convolutions:
        raise ValueError(
            f"`strides` must have one entry for each of the {num_convolutions} convolutions, got {list(strides)}."
        )
    return strides


def check_activation(activation: Any) -> Any:
    """Returns `activation` as a Keras activation function, or raises an error that names the argument."""
    try:
        return keras.activations.get(activation)
    except ValueError as error:
        raise ValueError(
            f"`activation` must be the name of a Keras activation or a callable, got {activation!r}."
        ) from error
