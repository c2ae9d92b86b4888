"""Recipes of one energy of the data at all noise levels, with log p at each: few coordinates, and small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfp_ebm import losses, networks
from tfp_ebm.arguments import check_count, check_data, check_positive
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.noise_levels import NoiseLevelEnergy

# Number of batches that one compiled call runs, and the steps over which weights are averaged.
_STEPS_PER_EXECUTION, _AVERAGED_STEPS = 50, 500.0


def noise_levels(
    x: Any,
    num_steps: int = 5000,
    *,
    sigma_min: float = 0.02,
    sigma_max: float = 10.0,
    units: Sequence[int] = (192, 192, 192),
    fourier_features: int = 64,
    num_components: int = 16,
    num_waves: int = 0,
    is_bounded: bool = False,
    adapts_units: bool = True,
    learning_rate: float = 2e-3,
    average_targets: bool = True,
    seed: int = 0,
) -> EnergyModel:
    """Returns a compiled conditional model for data of few coordinates, ready to `fit` by dual score matching.

    After `fit`, `model.given(sigma_min)` is the model of the data, whose log Z is 0 up to the error of training:
    `EnergyDistribution(model.given(sigma_min))` has `log_prob`, and its `draw` starts at the largest level. In two
    coordinates, after 5000 steps of batches of 256, log Z was within .02 of 0. Check it by the log Z of `draw`, and by
    `evaluation.probability_flow_log_likelihood`. Weights of separate modes are learned too, however far apart they are.

    The network is `networks.noise_level_mlp`. The optimizer is Adam with β₂ = .99; its learning rate decays along a
    cosine to zero at `num_steps`, and `fit` ends with averaged weights.

    Args:
      x: the data `[rows, *event]`.
      num_steps: optimizer steps that `fit` will take.
      sigma_min: the smallest noise scale, in standard deviations of the data: the model is sharp down to it. Data with
        edges, such as a checkerboard, need .01, `num_waves=6`, `num_components=1` and `is_bounded=True`.
      sigma_max: the largest noise scale.
      units: widths of the hidden layers.
      fourier_features: number of plane waves among the inputs; they help in eight coordinates too.
      num_components: number of Gaussians in the mixture at which the model starts.
      num_waves: number of frequencies 1, 2, 4, … of waves of each coordinate among the inputs, which resolve edges.
      is_bounded: whether the data have a known range, outside of which the energy then grows as that of noise. Set it
        with `num_waves`, because waves can put mass outside of the data where no loss sees it.
      adapts_units: whether noise is added in units in which columns with heavy tails, and columns that are almost
        linear combinations of others, are as other columns; not with `is_bounded`.
      learning_rate: the learning rate at the start.
      average_targets: as for `losses.DualScoreMatching`; False for rows with sample weights.
      seed: seed of the initial weights and of all random numbers.

    Returns:
      A compiled, adapted `EnergyModel`.

    Raises:
      TypeError, ValueError: if `x` is not a finite array of numbers, or an argument is out of range.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(512, 2)).astype("float32")
    >>> model = noise_levels(x, num_steps=2, units=[8])
    >>> history = model.fit(x, batch_size=256, epochs=1, verbose=0)
    >>> float(model.given(0.02).log_normalizer)
    0.0
    """
    x = check_data("x", x)
    network = networks.noise_level_mlp(
        x.shape[1:],
        units,
        sigma_max=sigma_max,
        fourier_features=fourier_features,
        num_components=num_components,
        seed=seed,
        num_waves=num_waves,
        is_bounded=is_bounded,
        adapts_units=adapts_units and not is_bounded,
    )
    model = EnergyModel(network, seed=seed)
    model.adapt(x)
    return _compiled(model, sigma_min, num_steps, learning_rate, average_targets)


def noise_level_images(
    x: Any,
    num_steps: int = 5000,
    *,
    sigma_min: float = 0.05,
    sigma_max: float = 10.0,
    units: Sequence[int] = (256, 256, 256),
    num_components: int = 8,
    network: NoiseLevelEnergy | None = None,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> EnergyModel:
    """Returns a compiled conditional model for small images of few grey levels, ready to `fit` by dual score matching.

    It has the same log p, draws and checks as the model of `noise_levels`. All pixels have one scale, the standard
    deviation of the pixels of `x` around their means, which is also the unit of the noise scales. Bits per dimension
    are `evaluation.bits_per_dimension(model.given(sigma_min), test, 0.0, bin_width)`. The network sees grey levels by
    waves of each pixel, and its energy is quadratic in its outputs, without which there is mass between the digits.

    Args:
      x: dequantised images `[rows, height, width, channels]`, such as `datasets.digits(images=True)`.
      num_steps: optimizer steps that `fit` will take. The settings are meant for batches of 256 rows.
      sigma_min: the smallest noise scale; by default, a third of a grey level of scikit-learn's digits.
      sigma_max: the largest noise scale.
      units: widths of the hidden layers of `networks.noise_level_mlp`.
      num_components: number of Gaussians in the mixture at which the model starts; few rows get fewer.
      network: another network, such as `networks.noise_level_convnet`, in place of that; `units` and
        `num_components` then have no effect.
      learning_rate: the learning rate at the start.
      seed: seed of the initial weights and of all random numbers.

    Returns:
      A compiled, adapted `EnergyModel`.

    Raises:
      TypeError, ValueError: if `x` is not a finite array of images, or an argument is out of range.

    >>> import tfp_ebm as ebm
    >>> x = ebm.datasets.digits(images=True)[:128]
    >>> network = ebm.networks.noise_level_convnet([8, 8, 1], filters=[4], units=[8])
    >>> model = noise_level_images(x, num_steps=2, network=network)
    >>> history = model.fit(x, batch_size=64, epochs=1, verbose=0)
    >>> float(model.given(0.05).log_normalizer)
    0.0
    """
    x = check_data("x", x)
    if x.ndim != 4:
        raise ValueError(f"`x` must be images [rows, height, width, channels], got the shape {x.shape}.")
    if network is None:
        network = networks.noise_level_mlp(
            x.shape[1:],
            units,
            sigma_max=sigma_max,
            fourier_features=0,
            num_components=num_components,
            seed=seed,
            num_waves=5,
            is_quadratic=True,
            is_bounded=True,
        )
    elif not isinstance(network, NoiseLevelEnergy):
        raise TypeError(f"`network` must be a `NoiseLevelEnergy`, got {type(network).__name__}.")
    model = EnergyModel(network, seed=seed)
    model.adapt(x)
    standardization = model.standardization
    scale = np.sqrt(np.mean(np.square(standardization.scale.numpy())))
    standardization.scale.assign(np.full(x.shape[1:], scale))
    standardization.loc.assign(np.full(x.shape[1:], 0.5 * (np.min(x) + np.max(x))))
    network.adapt_to(standardization.to_z(np.asarray(x, model.dtype)).numpy())
    return _compiled(model, sigma_min, num_steps, learning_rate, average_targets=True)


def _compiled(
    model: EnergyModel, sigma_min: float, num_steps: int, learning_rate: float, average_targets: bool
) -> EnergyModel:
    """Compiles a model of a `NoiseLevelEnergy` with dual score matching between `sigma_min` and its largest level."""
    num_steps = check_count("num_steps", num_steps)
    loss = losses.DualScoreMatching(sigma_min, model.network.sigma_max, average_targets=average_targets)
    schedule = keras.optimizers.schedules.CosineDecay(check_positive("learning_rate", learning_rate), num_steps)
    optimizer = keras.optimizers.Adam(
        schedule,
        beta_2=0.99,
        global_clipnorm=10.0,
        use_ema=True,
        ema_momentum=1.0 - 1.0 / min(_AVERAGED_STEPS, 2.0 + 0.1 * num_steps),
    )
    model.compile(optimizer, loss, steps_per_execution=min(_STEPS_PER_EXECUTION, num_steps))
    return model
