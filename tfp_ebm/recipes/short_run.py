"""Maximum likelihood with short cold chains from a replay buffer, as in the code of three papers (§2, eqs. 6-10).

All three minimise E(x) − E(x⁻). The negatives x⁻ continue from their states in a buffer by a few Langevin steps
x' = x − η∇E(x) + τZ; one in twenty restarts from uniform noise. The step is `mcmc.Langevin` with ε = √(2η):

    ½ε² = η,      T = τ²/ε² = τ²/(2η)

                      η      ε        τ       T            gradient  box       order
    Du & Mordatch     10     4.472    .005    1.25·10⁻⁶    ±.01      [0, 1]    noise, gradient there, clamp
    course notes      10     4.472    .005    1.25·10⁻⁶    ±.03      [−1, 1]   noise, clamp, gradient there, clamp
    JEM               1      1.414    .01     5·10⁻⁵       free      none      gradient, noise

If the gradient is clipped to ±c, its part of a step moves a pixel by at most ηc: .1 in the first, .3 in the second.

Two details differ from the papers. A drawn chain is written back to its own slot of the buffer, and no slot is drawn
twice in a step (the papers draw with replacement; the first two append states and drop the oldest ones). Chains are
stored in floating point (the first paper stores bytes, and adds uniform noise of one grey level to drawn states).
"""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm import losses, mcmc
from tfp_ebm.arguments import check_count
from tfp_ebm.energy.shapes import input_event_shape
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.recipes.pixels import adam, compile_for, model_of_pixels, uniform_base


def du_mordatch_2019(
    network: Any, pixels: tuple[float, float] = (0.0, 1.0), *, event_shape: Any = None, seed: int = 0
) -> EnergyModel:
    """Returns a model for implicit generation and modelling (Du & Mordatch 2019), configured as for CIFAR-10.

        x̃ = x + .005·Z,      x' = clamp(x̃ − 10·clip(∇E(x̃), ±.01), [0, 1]),      60 steps
        loss = E(x) − E(x⁻) + E(x)² + E(x⁻)²

    The buffer holds 10 000 chains, of which 5 % restart from uniform noise in each step. The optimizer is Adam with
    learning rate 10⁻⁴, β₁ = 0, β₂ = .999, and each gradient is clipped to 3 standard deviations (`DuMordatchAdam`). The
    paper's batches have 128 rows, its networks use spectral normalisation (`networks.SpectralNormalization`), and its
    data are dequantised by uniform noise of one grey level. The term that differentiates through the chain is omitted,
    as in the commands published by the authors.

    Args:
      network: any Keras network `[batch, *event] -> [batch]` or `[batch, 1]`; its inputs are pixels in [0, 1].
      pixels: (low, high), the range of your data.
      event_shape: the shape of one image, for a network whose input shape is unknown.
      seed: the seed of all random numbers.

    Returns:
      A compiled `EnergyModel`; its standardisation maps `pixels` to [0, 1].

    Raises:
      TypeError, ValueError: for an argument that is not of the form above.

    Reference: Y. Du, I. Mordatch, Implicit generation and modeling with energy-based models, 2019, arXiv:1903.08689.

    >>> import tfp_ebm as ebm
    >>> model = du_mordatch_2019(ebm.networks.convnet([8, 8, 1], filters=[4], units=[8], seed=0), pixels=(0, 16))
    >>> x = ebm.datasets.load("digits").astype("float32").reshape(-1, 8, 8, 1)
    >>> history = model.fit(x[:64], batch_size=32, verbose=0)
    >>> model.loss.num_steps, model.loss.chains.capacity, round(model.loss.kernel.step_size, 3)
    (60, 10000, 4.472)
    """
    model = model_of_pixels(network, pixels, (0.0, 1.0), event_shape, seed)
    kernel = mcmc.Langevin(
        step_size=math.sqrt(2 * 10.0), noise_scale=0.005, gradient_clip=0.01, noise_first=True, clamp=(0.0, 1.0)
    )
    chains = mcmc.ReplayBuffer(10_000, restart_probability=0.05, base=uniform_base(model, pixels))
    model.compile(
        optimizer=DuMordatchAdam(1e-4, beta_1=0.0, beta_2=0.999, epsilon=1e-8),
        loss=losses.MaximumLikelihood(kernel, num_steps=60, chains=chains, energy_penalty=1.0),
    )
    return model


def uva_mnist(
    network: Any,
    pixels: tuple[float, float] = (-1.0, 1.0),
    steps_per_epoch: int = 468,
    *,
    event_shape: Any = None,
    seed: int = 0,
) -> EnergyModel:
    """Returns the MNIST model of the University of Amsterdam's deep-learning course (tutorial 8).

        x̃ = clamp(x + .005·Z, [−1, 1]),      x' = clamp(x̃ − 10·clip(∇E(x̃), ±.03), [−1, 1]),      60 steps
        loss = E(x̂) − E(x⁻) + .1(E(x̂)² + E(x⁻)²),      x̂ = clamp(x + .005·Z, [−1, 1])

    The buffer holds 8192 chains, of which 5 % restart from uniform noise in each step. The optimizer is Adam with a
    learning rate of 10⁻⁴ that decreases by 3 % per epoch, β₁ = 0, and the gradient's norm clipped to .1. The notes use
    batches of 128 rows, 60 epochs, and a convolutional network of four layers with swish. (Their sign is the opposite:
    their network returns −E.)

    Args:
      network: as for `du_mordatch_2019`; its inputs are pixels in [−1, 1].
      pixels: (low, high), the range of your data.
      steps_per_epoch: number of steps after which the learning rate decreases; MNIST has 468 full batches of 128.
      event_shape: the shape of one image, for a network whose input shape is unknown.
      seed: the seed of all random numbers.

    Returns:
      A compiled `EnergyModel`; its standardisation maps `pixels` to [−1, 1].

    Raises:
      TypeError, ValueError: for an argument that is not of the form above.

    Reference: P. Lippe, UvA deep learning tutorials, 2020, tutorial 8: deep energy-based generative models.

    >>> import tfp_ebm as ebm
    >>> model = uva_mnist(ebm.networks.convnet([28, 28, 1], seed=0), pixels=(0, 255))
    >>> model.loss.kernel.clamp, model.loss.data_noise
    ((-1.0, 1.0), 0.005)
    """
    check_count("steps_per_epoch", steps_per_epoch)
    model = model_of_pixels(network, pixels, (-1.0, 1.0), event_shape, seed)
    kernel = mcmc.Langevin(
        step_size=math.sqrt(2 * 10.0),
        noise_scale=0.005,
        gradient_clip=0.03,
        noise_first=True,
        clamp=(-1.0, 1.0),
        clamp_noised=True,
    )
    chains = mcmc.ReplayBuffer(8192, restart_probability=0.05, base=uniform_base(model, pixels))
    schedule = keras.optimizers.schedules.ExponentialDecay(1e-4, steps_per_epoch, 0.97, staircase=True)
    model.compile(
        optimizer=adam(schedule, beta_1=0.0, global_clipnorm=0.1),
        loss=losses.MaximumLikelihood(kernel, num_steps=60, chains=chains, energy_penalty=0.1, data_noise=0.005),
    )
    return model


def jem(
    network: Any, pixels: tuple[float, float] = (-1.0, 1.0), *, event_shape: Any = None, seed: int = 0
) -> EnergyModel:
    """Returns a model trained with the chains of joint energy models (Grathwohl et al. 2020).

        x' = x − ∇E(x) + .01·Z,      20 steps,      loss = E(x + .03·Z) − E(x⁻)

    The buffer holds 10 000 chains, of which 5 % restart from uniform noise in each step; nothing is clipped or clamped.
    The optimizer is Adam with a learning rate that increases linearly to 10⁻⁴ in 1000 steps. The paper's batches have
    64 rows, and its network is a wide ResNet without normalisation. According to its authors, training is more stable
    with noise of .1 on the data.

    Several outputs f(x)[y] of a network are treated as a classifier's logits, which imply the energy of x

        E(x) = −log Σ_y exp f(x)[y],      as p(x, y) = exp f(x)[y]/Z.

    The recipe trains this p(x). For a `networks.JointEnergy(classifier)` it adds the paper's other term, the
    cross-entropy of p(y|x) of rows with the same noise, and `fit(x, y)` takes labels; `recipes.class_samples` then
    draws images of given classes.

    Args:
      network: any Keras network `[batch, *event] -> [batch]`, `[batch, 1]`, or `[batch, classes]`; its inputs are
        pixels in [−1, 1].
      pixels: (low, high), the range of your data.
      event_shape: the shape of one image, for a network whose input shape is unknown.
      seed: the seed of all random numbers.

    Returns:
      A compiled `EnergyModel`; its standardisation maps `pixels` to [−1, 1].

    Raises:
      TypeError, ValueError: for an argument that is not of the form above.

    Reference: W. Grathwohl, K.-C. Wang, J.-H. Jacobsen, D. Duvenaud, M. Norouzi, K. Swersky, Your classifier is
    secretly an energy based model and you should treat it like one, 2020, arXiv:1912.03263.

    >>> import keras, numpy as np
    >>> classifier = keras.Sequential([keras.Input([8, 8, 1]), keras.layers.Flatten(), keras.layers.Dense(10)])
    >>> model = jem(classifier)
    >>> x = np.zeros([3, 8, 8, 1], "float32")
    >>> bool(np.allclose(model.energy(x), -np.log(np.exp(classifier(x)).sum(1))))
    True
    """
    model = model_of_pixels(_energy_of_classifier(network, event_shape), pixels, (-1.0, 1.0), event_shape, seed)
    kernel = mcmc.Langevin(step_size=math.sqrt(2 * 1.0), noise_scale=0.01)
    chains = mcmc.ReplayBuffer(10_000, restart_probability=0.05, base=uniform_base(model, pixels))
    warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, decay_steps=1000, end_learning_rate=1e-4)
    loss = losses.MaximumLikelihood(kernel, num_steps=20, chains=chains, data_noise=0.03)
    return compile_for(model, loss, adam(warm_up), weight=1.0, label_noise=0.03)


def _energy_of_classifier(network: Any, event_shape: Any) -> Any:
    """Returns −log Σ exp of several outputs as a network; the network itself if it has one output or is not built."""
    if not isinstance(network, keras.layers.Layer):
        return network
    shape = input_event_shape(network) or event_shape
    if shape is None:
        return network
    inputs = keras.Input(shape, dtype=network.variable_dtype)
    outputs = network(inputs)
    if len(outputs.shape) != 2 or outputs.shape[1] == 1:
        return network
    outputs = keras.ops.cast(outputs, network.variable_dtype)  # no energy is summed in half precision
    energy = keras.Model(inputs, -keras.ops.logsumexp(outputs, axis=-1))
    energy.dtype_policy = network.dtype_policy
    return energy


@keras.saving.register_keras_serializable("tfp_ebm")
class DuMordatchAdam(keras.optimizers.Adam):
    """Adam that clips each entry of a gradient to ±(3√v̂ + .1), where v̂ is the mean square of earlier gradients.

    v̂ is Adam's second moment v divided by 1 − β₂ᵗ at step t, before the update by this step's gradient; the first
    gradient is therefore clipped to ±.1. From the code of Du & Mordatch (2019). The arguments are those of
    `keras.optimizers.Adam`.

    >>> import numpy as np
    >>> weight = keras.Variable([0.0, 0.0])
    >>> DuMordatchAdam(1.0, beta_1=0.0).apply([tf.constant([0.05, 9.0])], [weight])
    >>> np.asarray(weight).round(3).tolist()
    [-1.0, -1.0]
    """

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """Makes Adam's step with the clipped gradient."""
        velocity = tf.convert_to_tensor(self._velocities[self._get_variable_index(variable)])
        beta_2 = tf.cast(self.beta_2, velocity.dtype)
        power = tf.pow(beta_2, tf.cast(self.iterations + 1, velocity.dtype))
        bound = 3.0 * tf.sqrt(velocity / (1.0 - power)) + 0.1
        gradient = tf.cast(gradient, velocity.dtype)
        super().update_step(tf.clip_by_value(gradient, -bound, bound), variable, learning_rate)
