"""Small images by persistent contrastive divergence whose chains are exact: draws at temperature 1 that can be shown.

The recipes of `short_run` learn energies of which short cold chains give pictures. This one learns the density: chains
of MALA in the box of the pixels, moved where x = sigmoid(z) so that none sticks to a face, their step adapted, none
restarted. What the buffer holds are draws of exp(−E)/Z itself.

What decides is how sharp the network can be. Dequantised pixels (n + u)/L fill L cells, and half of all pixels of a
digit lie in the first; the density falls from L to nothing at its end. A network with weights of order one over pixels
in [0, 1] cannot fall within 1/L, its draws have grey noise where paper should be, and training only slowly sharpens it.
So here it sees pixels in grey levels, [−L/2, L/2], where one level is one unit. (Around zero: over [0, L] a
training of the same length ended far behind.)
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import losses, mcmc
from tfp_ebm.arguments import check_count, check_positive
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.recipes.pixels import model_of_pixels, uniform_base


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
    """Persistent contrastive divergence for small images of few grey levels, such as scikit-learn's digits.

        x = low + (high − low)·sigmoid(z),      z ← MALA,      `kernel_steps` steps of some of `capacity` chains
        loss = E(x) − E(x⁻)

    Adam of β₁ = .5, its learning rate falling along a cosine to zero at `num_steps`, compiled by XLA. Batches of 64
    rows are meant. Chains start at uniform noise, and arrive within some hundred training steps; there is no global
    move.

    The draws are `model.standardization.to_x(model.loss.chains.states)`, at temperature 1.

    Args:
      network: any Keras network `[batch, *event] -> [batch]` or `[batch, 1]`; it sees pixels in [−L/2, L/2]. A first
        convolution that is strided, `networks.convnet(shape, [64], kernel_size=4, strides=[2], units=[256])`,
        is cheaper than one at full resolution.
      pixels: (low, high), the box of your data, which must be dequantised: (n + u)/L of n in 0 … L − 1 is in [0, 1].
      num_levels: L, the number of grey levels.
      num_steps: optimizer steps that `fit` will take.
      learning_rate: at the start.
      kernel_steps: steps of MALA in a training step.
      capacity: number of chains.
      event_shape: of one image, for a network that does not know its input shape.
      seed: of all noise.

    Returns:
      A compiled `EnergyModel`; its units map `pixels` to [−L/2, L/2].

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
    model.compile(keras.optimizers.Adam(cosine, beta_1=0.5), loss, jit_compile=True, steps_per_execution=10)
    return model
