"""Denoising at many scales with one energy, and its annealed sampler (Li, Chen & Sommer 2019).

The energy is trained at noise scales σᵢ from below to far above the scale σ₀ of its target. Its gradient then points to
the data from every point, but its scale differs from that of the data: for Gaussian data of covariance Σ it learns the
covariance σ₀²(I + κΣ), where κ is the mean of σᵢ⁻². To sample, Langevin chains start from noise at temperature 100 and
are cooled,

    x' = x − ½ε²∇E(x) + √T·εZ,      ε = .02,

with constant drift and step. The last steps decrease T from 1 to 0. A final step denoises, x − σ₀²∇E(x).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import losses, random
from tfp_ebm.arguments import check_count, check_positive
from tfp_ebm.derivatives import score
from tfp_ebm.energy.standardization import Coordinates
from tfp_ebm.mcmc.kernels.langevin import UncalibratedLangevin
from tfp_ebm.mcmc.running.compiled import compile_once
from tfp_ebm.mcmc.running.finite import is_finite
from tfp_ebm.mcmc.running.loop import run_steps
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.random import fold_in, stateless_seed
from tfp_ebm.recipes.pixels import adam, model_of_pixels

_SIGMA0 = 0.1
_STEP_SIZE = 0.02


def li_chen_sommer_2019(
    network: Any,
    pixels: tuple[float, float] = (0.0, 1.0),
    sigmas: Sequence[float] | None = None,
    num_steps: int = 300_000,
    learning_rate: float = 5e-5,
    *,
    event_shape: Any = None,
    seed: int = 0,
) -> EnergyModel:
    """Returns a model for multi-scale denoising score matching (Li, Chen & Sommer 2019), configured as for CIFAR-10.

        ½‖∇E(x*) − (x* − x)/σ₀²‖²/σᵢ²,      x* = x + σᵢZ,      σ₀ = .1,      σᵢ = .05 … 1.2, 128 of them evenly

    The optimizer is Adam with β₁ = .9, β₂ = .95 and a learning rate that decreases along a cosine from 5·10⁻⁵ to 10⁻⁶.
    The paper's loss is twice this one, which makes no difference for Adam. Its batches have 128 rows, one for each
    scale. Its networks are ResNets with ELU, without normalisation, whose last layer is a quadratic form. For
    Fashion-MNIST its `sigmas` are `np.geomspace(.1, 3, 128)`, with 100 000 steps and an initial learning rate of 10⁻⁴.

    Args:
      network: as for `du_mordatch_2019`; its inputs are pixels in [0, 1].
      pixels: (low, high), the range of the data.
      sigmas: the noise scales, in the units of [0, 1].
      num_steps: optimizer steps that `fit` will take.
      learning_rate: the learning rate at the start.
      event_shape: the shape of one image, for a network whose input shape is unknown.
      seed: the seed of all random numbers.

    Returns:
      A compiled `EnergyModel`; its standardisation maps `pixels` to [0, 1]. `li_chen_sommer_2019_samples` samples it.

    Raises:
      TypeError, ValueError: for an argument that is not of the form above.

    Reference: Z. Li, Y. Chen, F. T. Sommer, Learning energy-based models in high-dimensional spaces with multi-scale
    denoising score matching, 2019, arXiv:1910.07762.

    >>> import tfp_ebm as ebm
    >>> model = li_chen_sommer_2019(ebm.networks.convnet([8, 8, 1], [4], units=[8], activation="elu"), pixels=(0, 16))
    >>> len(model.loss.sigmas), model.loss.sigma0
    (128, 0.1)
    """
    sigmas = np.linspace(0.05, 1.2, 128).tolist() if sigmas is None else sigmas
    check_positive("learning_rate", learning_rate)
    check_count("num_steps", num_steps)
    model = model_of_pixels(network, pixels, (0.0, 1.0), event_shape, seed)
    cosine = keras.optimizers.schedules.CosineDecay(learning_rate, num_steps, alpha=1e-6 / learning_rate)
    model.compile(
        optimizer=adam(cosine, beta_1=0.9, beta_2=0.95),
        loss=losses.MultiscaleDenoisingScoreMatching(sigmas, sigma0=_SIGMA0),
    )
    return model


def _temperatures() -> np.ndarray:
    """Returns the paper's temperatures: 500 steps at 100, 2000 geometrically towards 1, 200 linearly from 1 to 0."""
    falling = 100.0 * np.exp(-np.arange(2000) * math.log(100.0) / 2000)
    return np.concatenate([np.full(500, 100.0), falling, np.linspace(1.0, 0.0, 200)])


def li_chen_sommer_2019_samples(
    model: EnergyModel, num_samples: int, *, temperatures: Sequence[float] | None = None, seed: Any
) -> tf.Tensor:
    """Samples a model of `li_chen_sommer_2019` by annealed Langevin chains and one step of denoising.

    In the model's [0, 1] units:

        x₀ = .5 + Z,      x ← x − ½·.02²∇E(x) + √T·.02·Z for each temperature T,      x − σ₀²∇E(x) at the end

    Args:
      model: an `EnergyModel` whose loss is a `MultiscaleDenoisingScoreMatching`, which provides σ₀.
      num_samples: number of chains, which run together.
      temperatures: T of each step, not negative. Default: the paper's 2700, from 100 to 0.
      seed: int, or int32[2].

    Returns:
      `[num_samples, *event]`, in x.

    Raises:
      TypeError, ValueError: for an argument that is not of the form above.

    >>> import tfp_ebm as ebm
    >>> model = li_chen_sommer_2019(ebm.networks.mlp([4], units=[8], seed=0))
    >>> li_chen_sommer_2019_samples(model, 3, temperatures=[4.0, 1.0, 0.0], seed=0).shape
    TensorShape([3, 4])
    """
    if not isinstance(model, EnergyModel) or not isinstance(model.loss, losses.MultiscaleDenoisingScoreMatching):
        raise TypeError(
            "`model` must be an EnergyModel compiled with a MultiscaleDenoisingScoreMatching loss, got "
            f"{model.loss if isinstance(model, EnergyModel) else model!r}."
        )
    check_count("num_samples", num_samples)
    values = np.asarray(_temperatures() if temperatures is None else temperatures)
    if values.dtype.kind not in "iuf" or values.ndim != 1 or not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"`temperatures` must be a list of numbers that are not negative, got {temperatures!r}.")
    energy_function = model.energy_function
    shape = (num_samples, *energy_function.event_shape)
    run = compile_once(energy_function.unnormalized_log_prob, _anneal, shape, key=(num_samples,))
    z = run(tf.constant(values, model.dtype), tf.constant(model.loss.sigma0, model.dtype), stateless_seed(seed))
    num_lost = num_samples - int(tf.reduce_sum(tf.cast(is_finite(z, 1), tf.int32)))
    if num_lost > 0:
        warnings.warn(f"{num_lost} of {num_samples} chains became NaN or infinite.", stacklevel=2)
    return Coordinates.of(energy_function).from_chain(z)


def _anneal(
    resolve: Callable[[], Callable[[tf.Tensor], tf.Tensor]],
    shape: tuple[int, ...],
    temperatures: tf.Tensor,
    sigma0: tf.Tensor,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Returns the denoised last states of chains, in z."""
    target, dtype = resolve(), temperatures.dtype
    start = 0.5 + random.normal(shape, fold_in(seed, 0), dtype)
    key = fold_in(seed, 1)

    def kernel(temperature: tf.Tensor) -> UncalibratedLangevin:
        noise_scale = _STEP_SIZE * tf.sqrt(temperature)
        return UncalibratedLangevin(target, _STEP_SIZE, noise_scale, compute_acceptance=False)

    # Log density and gradient do not depend on the temperature.
    results = kernel(tf.ones([], dtype)).bootstrap_results(start)
    steps = (0, tf.size(temperatures))
    z, _, _ = run_steps(lambda t: kernel(temperatures[t]), start, results, steps, lambda t: fold_in(key, t))
    return tf.stop_gradient(z + sigma0**2 * score(lambda z: -target(z), z))
