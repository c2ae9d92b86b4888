"""Small images by persistent contrastive divergence with exact chains, whose draws at temperature 1 look like the data.

The recipes of `short_run` learn energies whose short cold chains generate images. This recipe learns the density. Its
chains use MALA in the range of the pixels. They move z, with x = sigmoid(z), so that no chain sticks to a face of the
box; their step size adapts, and no chain restarts. The states in the buffer are draws of exp(−E)/Z itself.

The scale of the network's inputs is decisive. Dequantised pixels (n + u)/L fill L cells, and half of all pixels of a
digit lie in the first cell, at whose end the density falls steeply. A network with weights of order one and pixels in
[0, 1] cannot change within 1/L: its draws have grey noise in the background, and training sharpens it slowly. The
network here therefore receives pixels in grey levels, [−L/2, L/2], where one level is one unit. (The range is centred,
since training of the same length with the range [0, L] gave much worse results.)
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import losses, mcmc
from tfp_ebm.arguments import check_count, check_positive
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.recipes.pixels import compile_for, model_of_pixels, uniform_base

# Weight of the density loss beside the cross-entropy of labels, and noise on the classified rows in grey levels, for
# images of 64 pixels. With weight 1 or without noise the classifier of digits was too sure where it erred
# (`benchmarks/joint_energy.py`). The density loss is a sum over pixels, and so is the squared length of the noise: both
# stay the same for larger images. With noise of two levels on 784 pixels the classified rows were so far from the
# digits that the classes of digits without noise were wrong.
_LABELS, _PIXELS = (0.1, 2.0), 64


def small_images(
    network: Any,
    pixels: tuple[float, float] = (0.0, 1.0),
    num_levels: float = 17.0,
    num_steps: int = 3000,
    learning_rate: float = 1e-3,
    *,
    kernel_steps: int = 10,
    capacity: int = 1024,
    event_shape: Any = None,
    seed: int = 0,
) -> EnergyModel:
    """Returns a model for small images of few grey levels, such as scikit-learn's digits.

    It is compiled with persistent contrastive divergence:

        x = low + (high − low)·sigmoid(z),      z ← MALA,      `kernel_steps` steps of some of `capacity` chains
        loss = E(x) − E(x⁻)

    The optimizer is Adam with β₁ = .5 and a learning rate that decreases along a cosine to zero at `num_steps`. XLA
    compiles the chains. The settings are meant for batches of 64 rows. Chains start at uniform noise, and reach the
    model's distribution within some hundred training steps; there is no global move.

    The draws are `model.standardization.to_x(model.loss.chains.states)`, at temperature 1.

    A `networks.JointEnergy(classifier)` is trained by `losses.JointEnergyLoss` with the same chains, so that the model
    is a classifier too. For images of d pixel values the density loss has the weight .1·64/d beside the cross-entropy,
    and the rows that are classified have noise of 2·8/√d grey levels, without which the classifier is too sure: .1 and
    2 for 8×8 pixels. `fit(x, y)` then takes labels, the chains are `model.loss.density_loss.chains`, and
    `recipes.class_samples(model, labels, seed=0)` draws images of given classes.

    Args:
      network: any Keras network `[batch, *event] -> [batch]` or `[batch, 1]`; its inputs are pixels in [−L/2, L/2]. A
        first convolution with a stride, `networks.convnet(shape, [64], kernel_size=4, strides=[2], units=[256])`, is
        cheaper than one at full resolution.
      pixels: (low, high), the range of your data, which must be dequantised: (n + u)/L with n in 0 … L − 1 is in [0,
        1].
      num_levels: L, the number of grey levels.
      num_steps: optimizer steps that `fit` will take.
      learning_rate: the learning rate at the start.
      kernel_steps: number of MALA steps in a training step.
      capacity: number of chains.
      event_shape: the shape of one image, for a network whose input shape is unknown.
      seed: the seed of all random numbers.

    Returns:
      A compiled `EnergyModel`; its standardisation maps `pixels` to [−L/2, L/2].

    Raises:
      TypeError, ValueError: for an argument that is not of the form above.

    References: T. Tieleman, Training restricted Boltzmann machines using approximations to the likelihood gradient,
    2008. L. Theis, A. van den Oord, M. Bethge, A note on the evaluation of generative models, 2016, arXiv:1511.01844
    (dequantisation).

    >>> import tfp_ebm as ebm
    >>> network = ebm.networks.convnet([8, 8, 1], filters=[4], kernel_size=4, strides=[2], units=[8], seed=0)
    >>> model = small_images(network, num_steps=4, kernel_steps=2, capacity=64)
    >>> history = model.fit(ebm.datasets.digits(images=True)[:128], batch_size=32, verbose=0)
    >>> model.standardization.to_x(model.loss.chains.states.value).shape
    TensorShape([64, 8, 8, 1])
    """
    half = 0.5 * check_positive("num_levels", num_levels)
    model = model_of_pixels(network, pixels, (-half, half), event_shape, seed)
    box = tfp.bijectors.Sigmoid(*(tf.constant(bound, model.dtype) for bound in (-half, half)))
    loss = losses.PersistentContrastiveDivergence(
        mcmc.Transformed(mcmc.Adaptive(mcmc.MALA(0.1)), box),
        kernel_steps,
        capacity,
        base=uniform_base(model, pixels),
        global_move=None,
    )
    cosine = keras.optimizers.schedules.CosineDecay(
        check_positive("learning_rate", learning_rate), check_count("num_steps", num_steps)
    )
    optimizer = keras.optimizers.Adam(cosine, beta_1=0.5)
    (weight, noise), share = _LABELS, _PIXELS / math.prod(model.event_shape)
    return compile_for(
        model, loss, optimizer, weight * share, noise * math.sqrt(share), jit_compile=True, steps_per_execution=10
    )
