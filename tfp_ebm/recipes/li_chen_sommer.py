"""Denoising at many scales with one energy, and its annealed sampler (Li, Chen & Sommer 2019).

Trained at noise scales σᵢ from below to far above the one σ₀ of its target, the energy leads to the data from wherever
a chain starts, but has a scale of its own: a Gaussian of covariance Σ is learned as one of σ₀²(I + κΣ), κ the mean of
σᵢ⁻². To sample, Langevin chains start from noise at the temperature 100 and are cooled,

    x' = x − ½ε²∇E(x) + √T·εZ,      ε = .02,

drift and step the same throughout. A last part brings T from 1 to 0, and one step of denoising, x − σ₀²∇E(x), ends it.
"""

from __future__ import annotations

import functools
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
from tfp_ebm.mcmc.running.compiled import find_compiled
from tfp_ebm.mcmc.running.finite import is_finite
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
    """Multi-scale denoising score matching (Li, Chen & Sommer 2019): CIFAR-10's configuration.

        ½‖∇E(x*) − (x* − x)/σ₀²‖²/σᵢ²,      x* = x + σᵢZ,      σ₀ = .1,      σᵢ = .05 … 1.2, 128 of them evenly

    with Adam of β₁ = .9, β₂ = .95, its learning rate falling along a cosine from 5·10⁻⁵ to 10⁻⁶ (the paper's loss is
    twice this one, which Adam does not see). The paper's batches have 128 rows, so that each scale comes once in each;
    its networks are ResNets with ELU, without normalisation, that end in a quadratic form. For Fashion-MNIST its
    `sigmas` are `np.geomspace(.1, 3, 128)`, with 100 000 steps from 10⁻⁴.

    Args:
      network: as for `du_mordatch_2019`; it sees pixels in [0, 1].
      pixels: (low, high), the box of your data.
      sigmas: the noise scales, in the units of [0, 1].
      num_steps: optimizer steps that `fit` will take.
      learning_rate: at the start.
      event_shape: of one image, for a network that does not know its input shape.
      seed: of all noise.

    Returns:
      A compiled `EnergyModel`; its units map `pixels` to [0, 1]. `li_chen_sommer_2019_samples` samples it.

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
    """The paper's code: 500 steps at 100, 2000 that fall geometrically towards 1, 200 from 1 to 0 along a line."""
    falling = 100.0 * np.exp(-np.arange(2000) * math.log(100.0) / 2000)
    return np.concatenate([np.full(500, 100.0), falling, np.linspace(1.0, 0.0, 200)])


def li_chen_sommer_2019_samples(
    model: EnergyModel, num_samples: int, *, temperatures: Sequence[float] | None = None, seed: Any
) -> tf.Tensor:
    """Samples a model that `li_chen_sommer_2019` made and `fit` trained: annealed Langevin chains, then one denoising.

    In the units of the model's [0, 1] box:

        x₀ = .5 + Z,      x ← x − ½·.02²∇E(x) + √T·.02·Z for each temperature T,      x − σ₀²∇E(x) at the end

    Args:
      model: an `EnergyModel` whose loss is a `MultiscaleDenoisingScoreMatching`, which knows σ₀.
      num_samples: number of chains, which are run at once.
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
    key = ("li_chen_sommer_2019", num_samples)
    shape = (num_samples, *energy_function.event_shape)
    run = find_compiled(
        energy_function.unnormalized_log_prob,
        key,
        lambda resolve: tf.function(functools.partial(_anneal, resolve, shape), autograph=False),
    )
    z = run(tf.constant(values, model.dtype), tf.constant(model.loss.sigma0, model.dtype), stateless_seed(seed))
    num_lost = num_samples - int(tf.reduce_sum(tf.cast(is_finite(z, 1), tf.int32)))
    if num_lost > 0:
        warnings.warn(f"{num_lost} of {num_samples} chains went to a NaN or an infinity.", stacklevel=2)
    return Coordinates.of(energy_function).from_chain(z)


def _anneal(
    resolve: Callable[[], Callable[[tf.Tensor], tf.Tensor]],
    shape: tuple[int, ...],
    temperatures: tf.Tensor,
    sigma0: tf.Tensor,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Denoised ends of chains, in z."""
    target, dtype = resolve(), temperatures.dtype
    start = 0.5 + random.normal(shape, fold_in(seed, 0), dtype)
    key = fold_in(seed, 1)

    def kernel(temperature: tf.Tensor) -> UncalibratedLangevin:
        noise_scale = _STEP_SIZE * tf.sqrt(temperature)
        return UncalibratedLangevin(target, _STEP_SIZE, noise_scale, compute_acceptance=False)

    def step(i: tf.Tensor, z: tf.Tensor, results: Any) -> tuple[tf.Tensor, tf.Tensor, Any]:
        z, results = kernel(temperatures[i]).one_step(z, results, seed=fold_in(key, i))
        return i + 1, z, results

    results = kernel(tf.ones([], dtype)).bootstrap_results(start)  # log density and gradient, at no temperature
    _, z, _ = tf.while_loop(
        lambda i, *_: i < tf.size(temperatures), step, (tf.constant(0), start, results), parallel_iterations=1
    )
    return tf.stop_gradient(z + sigma0**2 * score(lambda z: -target(z), z))
