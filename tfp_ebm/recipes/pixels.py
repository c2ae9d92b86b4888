"""Models in the units of a paper: pixels are mapped to the paper's range, in which chains start uniformly."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import losses
from tfp_ebm.arguments import check_finite
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.joint_energy import JointEnergy

tfd = tfp.distributions


def model_of_pixels(network: Any, pixels: Any, box: tuple[float, float], event_shape: Any, seed: Any) -> EnergyModel:
    """Returns a model of x in the range `pixels`, with z = (x − loc)/scale in `box`.

    Raises:
      TypeError, ValueError: if `pixels` is not a pair of numbers, low < high, or the event shape is not known.
    """
    low, high = _check_box(pixels)
    model = EnergyModel(network, event_shape=event_shape, seed=seed)
    shape = model.event_shape  # raises an error that names `event_shape` if it is unknown
    scale = (high - low) / (box[1] - box[0])
    model.standardization.loc.assign(np.full(shape, low - box[0] * scale))
    model.standardization.scale.assign(np.full(shape, scale))
    return model


def compile_for(
    model: EnergyModel, loss: losses.Loss, optimizer: Any, weight: float, label_noise: float, **kwargs: Any
) -> EnergyModel:
    """Compiles a model with a density loss; for a `networks.JointEnergy`, with the cross-entropy of labels in addition.

    The metric `accuracy` is then that of the classifier. `weight` and `label_noise` are as in `losses.JointEnergyLoss`.
    """
    if isinstance(model.network, JointEnergy):
        loss = losses.JointEnergyLoss(loss, weight, label_noise)
        kwargs["metrics"] = ["accuracy"]
    model.compile(optimizer=optimizer, loss=loss, **kwargs)
    return model


def uniform_base(model: EnergyModel, pixels: Any) -> tfp.distributions.Distribution:
    """Returns the uniform distribution over images, in x, from which chains start and restart."""
    low, high = (tf.fill(model.event_shape, tf.constant(bound, model.dtype)) for bound in _check_box(pixels))
    return tfd.Independent(tfd.Uniform(low, high), len(model.event_shape))


def adam(learning_rate: Any, beta_1: float = 0.9, beta_2: float = 0.999, **kwargs: Any) -> keras.optimizers.Adam:
    """Returns Adam with ε = 10⁻⁸, the default of the papers' frameworks, instead of Keras's 10⁻⁷."""
    return keras.optimizers.Adam(learning_rate, beta_1, beta_2, epsilon=1e-8, **kwargs)


def _check_box(pixels: Any) -> tuple[float, float]:
    if not isinstance(pixels, list | tuple | np.ndarray) or len(pixels) != 2:
        raise ValueError(f"`pixels` must be a pair (low, high) of numbers with low < high, got {pixels!r}.")
    low, high = (check_finite(f"pixels[{i}]", bound) for i, bound in enumerate(pixels))
    if not low < high:
        raise ValueError(f"`pixels` must be a pair (low, high) of numbers with low < high, got {pixels!r}.")
    return low, high
