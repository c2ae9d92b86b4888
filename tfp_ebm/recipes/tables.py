"""Recipes for tables: models of up to some hundred coordinates that train well without further settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfp_ebm import losses, networks
from tfp_ebm.arguments import check_count, check_data, check_positive
from tfp_ebm.energy.base import fit_base
from tfp_ebm.energy.moments import FULL_COVARIANCE_LIMIT
from tfp_ebm.losses.base import alias
from tfp_ebm.model.energy_model import EnergyModel

# Number of batches that one compiled call runs: Keras's cost per call is then small compared with that of a step.
_STEPS_PER_EXECUTION = 100

# In more coordinates, random frequencies carry little information on any one of them.
_MAX_FOURIER_SIZE = 3

# Noise contrastive estimation is the default up to this many coordinates, since in more of them noise and data are too
# easily distinguished, and from this many rows on: with fewer it overfits (two moons, KL in nats after 5000 steps: .08
# from 5000 rows, where denoising ends at .18, but 5.2 from 1000 rows, where denoising ends at .30).
_MAX_CONTRASTIVE_SIZE, _MIN_CONTRASTIVE_ROWS = 3, 5000
# Noise samples for each row, and the number of Gaussians that they come from.
_NOISE_RATIO, _NUM_COMPONENTS = 4.0, 8

# The number of scales of multiscale denoising, and the ratio of the largest to the smallest.
_NUM_SCALES, _WIDEST = 6, 4.0

# The largest σ: more noise blurs visible structure, and 64 coordinates need no more.
_MAX_NOISE_SCALE = 0.4


def noise_scale(x: Any) -> float:
    """Returns the σ with which denoising score matching learns a smooth density from n rows of d coordinates.

        σ = ¾ n^(−1/(d + 4)), at most 0.4, in standard deviations of the data

    For a finite sample, the minimum of the objective is the sample blurred by σ (eqs. 47-48), a kernel density
    estimate:
    with a small σ it has one sharp mode around each row, and chains do not move between these modes. n^(−1/(d + 4)) is
    the best bandwidth for a Gaussian (Scott's rule); data with more structure need a smaller one.

    Args:
      x: the data `[rows, *event]`.

    Returns:
      σ.

    Raises:
      TypeError, ValueError: if `x` is not a finite array of numbers.

    Reference: D. W. Scott, Multivariate Density Estimation, 1992, §6.3.

    >>> import numpy as np
    >>> round(noise_scale(np.zeros([45_000, 2])), 3), round(noise_scale(np.zeros([4500, 5])), 3)
    (0.126, 0.295)
    """
    x = check_data("x", x)
    return min(_MAX_NOISE_SCALE, 0.75 * len(x) ** (-1.0 / (x[0].size + 4)))


def loss_for(x: Any, loss: Any = None, *, sigma: float | None = None, noise_ratio: float | None = None) -> losses.Loss:
    """Returns a loss with arguments chosen for the data; losses not listed here have their defaults.

        noise_contrastive_estimation          4 noise samples for each row, from a mixture of Gaussians fitted to x
        denoising_score_matching              σ = `noise_scale(x)`
        multiscale_denoising_score_matching   6 scales from that σ to 4σ; σ₀ = (mean of σᵢ⁻²)^(−½), for which a Gaussian
                                              is learned with its own width, blurred by σ₀
        persistent_contrastive_divergence     chains compiled by XLA

    Args:
      x: the data `[rows, *event]`.
      loss: an alias as above or of `losses.aliases()`, or a loss, which is returned unchanged. None: noise contrastive
        estimation for at least 5000 rows with at most three coordinates, denoising score matching otherwise.
      sigma: σ of denoising score matching. Default: `noise_scale(x)`.
      noise_ratio: number of noise samples per row in noise contrastive estimation. Default: 4.

    Returns:
      A loss.

    Raises:
      TypeError, ValueError: as for `losses.get`; if `x` is not a finite array of numbers.

    >>> import numpy as np
    >>> loss_for(np.random.default_rng(0).normal(size=[4500, 5])).sigma < 0.3
    True
    """
    x = check_data("x", x)
    if loss is None:
        is_contrastive = x[0].size <= _MAX_CONTRASTIVE_SIZE and len(x) >= _MIN_CONTRASTIVE_ROWS
        loss = alias(losses.NoiseContrastiveEstimation if is_contrastive else losses.DenoisingScoreMatching)
    if loss == alias(losses.NoiseContrastiveEstimation):
        noise = "gaussian_mixture" if x[0].size <= FULL_COVARIANCE_LIMIT else None
        contrastive = losses.NoiseContrastiveEstimation(
            noise,
            _NOISE_RATIO if noise_ratio is None else noise_ratio,
            num_components=min(_NUM_COMPONENTS, len(x)),
        )
        contrastive.adapt(x)
        return contrastive
    if loss == alias(losses.DenoisingScoreMatching):
        return losses.DenoisingScoreMatching(noise_scale(x) if sigma is None else sigma)
    if loss == alias(losses.MultiscaleDenoisingScoreMatching):
        sigmas = noise_scale(x) * np.geomspace(1.0, _WIDEST, _NUM_SCALES)
        return losses.MultiscaleDenoisingScoreMatching(sigmas.tolist(), float(np.mean(sigmas**-2.0) ** -0.5))
    if loss == alias(losses.PersistentContrastiveDivergence):
        return losses.PersistentContrastiveDivergence(jit_compile=True)
    return losses.get(loss)


def settings_for(loss: losses.Loss, size: int) -> dict[str, Any]:
    """Returns the defaults for a loss: `fourier_features`, `fourier_stddev`, `learning_rate`, `beta_2`, `base_width`.

    In few coordinates, random frequencies help losses of energies, which otherwise learn details late. They make second
    derivatives noisy, so they are not used for losses of scores.

    Persistent chains need an energy that changes slowly: the banana's KL is .006 nats at a learning rate of 10⁻³, .012
    at 2·10⁻³, .08 at 4·10⁻³. Score matching also needs a small learning rate: at 5·10⁻³ exact score matching failed on
    the checkerboard. Its gradients grow when the energy between modes rises, so Adam should forget earlier, small
    gradients. With β₂ = .99 instead of .999, exact score matching ended at a KL of .11 instead of .31 on the rings
    (medians of 8 seeds), and at .10 instead of .12 on the checkerboard (of 3); sliced score matching ended at .09
    instead of .11 on the checkerboard (of 3), and was no better on the rings (.23 and .16, of 8).

    The standard deviation 2 of the frequencies is a compromise between smooth rings and the edges of a checkerboard:
    their KL was .003 and .020 at 1.5, .005 and .014 at 2 (one seed each). For chains 1.5 is sufficient.

    The base is the Gaussian fitted to the data, with its standard deviations multiplied by `base_width`. Where the
    noise density of noise contrastive estimation is low, the base alone determines the energy, so its tails should not
    be lighter than those of the data (banana). Chains propose from the base, so it should be narrow for losses with
    chains.

    Args:
      loss: any loss.
      size: number of coordinates.

    >>> settings_for(losses.PersistentContrastiveDivergence(), 2)
    {'fourier_features': 64, 'fourier_stddev': 1.5, 'learning_rate': 0.001, 'beta_2': 0.999, 'base_width': 1.0}
    """
    settings = {
        "fourier_features": 0,
        "fourier_stddev": 1.5,
        "learning_rate": 2e-3,
        "beta_2": 0.999,
        "base_width": 1.0,
    }
    if isinstance(loss, losses.MaximumLikelihood):
        settings |= {"fourier_features": 64, "learning_rate": 1e-3}
    elif isinstance(loss, losses.NoiseContrastiveEstimation):
        settings |= {"fourier_features": 64, "fourier_stddev": 2.0, "learning_rate": 5e-3, "base_width": 2.0}
    elif isinstance(loss, losses.ScoreMatching | losses.SlicedScoreMatching):
        settings["beta_2"] = 0.99
    if size > _MAX_FOURIER_SIZE:
        settings["fourier_features"] = 0
    return settings


def low_dimensional(
    x: Any,
    loss: Any = None,
    num_steps: int = 5000,
    *,
    units: Sequence[int] = (128, 128),
    fourier_features: int | None = None,
    learning_rate: float | None = None,
    base_width: float | None = None,
    steps_per_execution: int = _STEPS_PER_EXECUTION,
    seed: int = 0,
) -> EnergyModel:
    """Returns a compiled model for data of up to some hundred coordinates, ready to `fit`.

    The energy is E(x) = network(x) − log base(x), with a dense network on standardised data and the Gaussian fitted to
    the data as base, so that the model has no mass far from the data. The optimizer is Adam; its learning rate decays
    along a cosine to zero at `num_steps`. See `settings_for` for the loss-dependent defaults.

    Args:
      x: the data `[rows, *event]`.
      loss: an `ebm.losses.Loss`, or an alias, or None: see `loss_for`.
      num_steps: optimizer steps that `fit` will take; afterwards, the learning rate is zero.
      units: widths of the hidden layers.
      fourier_features: number of random frequencies before the first layer. None: the default for the loss.
      learning_rate: the learning rate at the start. None: the default for the loss.
      base_width: standard deviations of the base in terms of the data's. None: the default for the loss.
      steps_per_execution: number of batches run by one compiled call.
      seed: seed of the initial weights and of all random numbers.

    Returns:
      A compiled, adapted `EnergyModel`.

    Raises:
      TypeError, ValueError: if `x` is not a finite array of numbers, or an argument is out of range.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(512, 2)).astype("float32")
    >>> model = low_dimensional(x, num_steps=100)
    >>> history = model.fit(x, batch_size=256, epochs=1, verbose=0)
    """
    x = check_data("x", x)
    loss = loss_for(x, loss)
    preset = settings_for(loss, x[0].size)
    fourier_features = preset["fourier_features"] if fourier_features is None else fourier_features
    learning_rate = preset["learning_rate"] if learning_rate is None else learning_rate
    schedule = keras.optimizers.schedules.CosineDecay(
        check_positive("learning_rate", learning_rate), check_count("num_steps", num_steps)
    )
    network = networks.mlp(x.shape[1:], units, fourier_features=fourier_features, seed=seed)
    if fourier_features:
        waves = network.get_layer("fourier_features")
        waves.kernel.assign(waves.kernel.value * (preset["fourier_stddev"] / waves.stddev))
        waves.stddev = preset["fourier_stddev"]  # for the layer's configuration
    width = preset["base_width"] if base_width is None else check_positive("base_width", base_width)
    model = EnergyModel(network, base_measure=fit_base(x, width=width), seed=seed)
    model.adapt(x)
    model.compile(
        optimizer=keras.optimizers.Adam(schedule, beta_2=preset["beta_2"]),
        loss=loss,
        steps_per_execution=check_count("steps_per_execution", steps_per_execution),
    )
    return model
