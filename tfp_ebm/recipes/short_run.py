"""Maximum likelihood with short cold chains from a replay buffer, as three papers' code has it (§2, eqs. 6-10).

All three minimise E(x) − E(x⁻) over negatives x⁻ that a few Langevin steps x' = x − η∇E(x) + τZ lead away from where
they were left in a buffer; one in twenty restarts from uniform noise. The step is `mcmc.Langevin` of ε = √(2η):

    ½ε² = η,      T = τ²/ε² = τ²/(2η)

                      η      ε        τ       T            gradient  box       order
    Du & Mordatch     10     4.472    .005    1.25·10⁻⁶    ±.01      [0, 1]    noise, gradient there, clamp
    course notes      10     4.472    .005    1.25·10⁻⁶    ±.03      [−1, 1]   noise, clamp, gradient there, clamp
    JEM               1      1.414    .01     5·10⁻⁵       free      none      gradient, noise

Where the gradient is clipped to ±c a pixel moves by at most ηc a step: .1 in the first, .3 in the second.

What differs here: a drawn chain is written back to its own slot of the buffer, and no slot is drawn twice in a step
(the papers draw with replacement; the first two append and drop the oldest); chains are kept in floating point (the
first keeps bytes, and adds uniform noise of one grey level to what it draws).
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
from tfp_ebm.recipes.pixels import adam, model_of_pixels, uniform_base


def du_mordatch_2019(
    network: Any, pixels: tuple[float, float] = (0.0, 1.0), *, event_shape: Any = None, seed: int = 0
) -> EnergyModel:
    """Implicit generation and modelling (Du & Mordatch 2019): CIFAR-10's configuration.

        x̃ = x + .005·Z,      x' = clamp(x̃ − 10·clip(∇E(x̃), ±.01), [0, 1]),      60 steps
        loss = E(x) − E(x⁻) + E(x)² + E(x⁻)²

    Chains are 10 000 in a buffer, 5 % restart from uniform noise; Adam of learning rate 10⁻⁴, β₁ = 0, β₂ = .999, each
    gradient clipped to 3 standard deviations (`DuMordatchAdam`). The paper's batches have 128 rows, its networks
    spectral normalisation (`networks.SpectralNormalization`); its data is dequantised, by uniform noise of one grey
    level. The term that differentiates through the chain is off, as in the commands that its authors publish.

    Args:
      network: any Keras network `[batch, *event] -> [batch]` or `[batch, 1]`; it sees pixels in [0, 1].
      pixels: (low, high), the box of your data.
      event_shape: of one image, for a network that does not know its input shape.
      seed: of all noise.

    Returns:
      A compiled `EnergyModel`; its units map `pixels` to [0, 1].

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
    """The MNIST model of the University of Amsterdam's deep-learning course (tutorial 8).

        x̃ = clamp(x + .005·Z, [−1, 1]),      x' = clamp(x̃ − 10·clip(∇E(x̃), ±.03), [−1, 1]),      60 steps
        loss = E(x̂) − E(x⁻) + .1(E(x̂)² + E(x⁻)²),      x̂ = clamp(x + .005·Z, [−1, 1])

    Chains are 8192 in a buffer, 5 % restart from uniform noise; Adam of learning rate 10⁻⁴ that falls by 3 % an epoch,
    β₁ = 0, the gradient's norm clipped to .1. The notes' batches have 128 rows, their 60 epochs a convolutional network
    of four layers and swish (their sign is the other one: their network gives −E).

    Args:
      network: as for `du_mordatch_2019`; it sees pixels in [−1, 1].
      pixels: (low, high), the box of your data.
      steps_per_epoch: after how many steps the learning rate falls; MNIST has 468 whole batches of 128.
      event_shape: of one image, for a network that does not know its input shape.
      seed: of all noise.

    Returns:
      A compiled `EnergyModel`; its units map `pixels` to [−1, 1].

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
    """The chains of joint energy models (Grathwohl et al. 2020).

        x' = x − ∇E(x) + .01·Z,      20 steps,      loss = E(x + .03·Z) − E(x⁻)

    Chains are 10 000 in a buffer, 5 % restart from uniform noise; nothing is clipped or clamped; Adam of learning rate
    10⁻⁴, reached along a line in 1000 steps. The paper's batches have 64 rows, its network is a wide ResNet without
    normalisation. A noise of .1 on the data is more stable, its authors say.

    A network of several outputs f(x)[y] is taken for a classifier's logits, and made the energy of x that it implies:

        E(x) = −log Σ_y exp f(x)[y],      as p(x, y) = exp f(x)[y]/Z.

    It is this p(x) that is trained here; the paper's other term, the cross-entropy of p(y|x), is not in the recipe.

    Args:
      network: any Keras network `[batch, *event] -> [batch]`, `[batch, 1]`, or `[batch, classes]`; it sees pixels in
        [−1, 1].
      pixels: (low, high), the box of your data.
      event_shape: of one image, for a network that does not know its input shape.
      seed: of all noise.

    Returns:
      A compiled `EnergyModel`; its units map `pixels` to [−1, 1].

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
    model.compile(
        optimizer=adam(warm_up),
        loss=losses.MaximumLikelihood(kernel, num_steps=20, chains=chains, data_noise=0.03),
    )
    return model


def _energy_of_classifier(network: Any, event_shape: Any) -> Any:
    """−log Σ exp of the outputs, where there are several; the network itself where there is one, or no telling."""
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
    """Adam that clips each number of a gradient to ±(3√v̂ + .1), v̂ the mean square of those before it.

    v̂ is Adam's second moment v over 1 − β₂ᵗ at step t, before this step's gradient entered it; so the first gradient is
    clipped to ±.1. From the code of Du & Mordatch (2019). The arguments are those of `keras.optimizers.Adam`.

    >>> import numpy as np
    >>> weight = keras.Variable([0.0, 0.0])
    >>> DuMordatchAdam(1.0, beta_1=0.0).apply([tf.constant([0.05, 9.0])], [weight])
    >>> np.asarray(weight).round(3).tolist()
    [-1.0, -1.0]
    """

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """Adam's step of the clipped gradient."""
        velocity = tf.convert_to_tensor(self._velocities[self._get_variable_index(variable)])
        beta_2 = tf.cast(self.beta_2, velocity.dtype)
        power = tf.pow(beta_2, tf.cast(self.iterations + 1, velocity.dtype))
        bound = 3.0 * tf.sqrt(velocity / (1.0 - power)) + 0.1
        gradient = tf.cast(gradient, velocity.dtype)
        super().update_step(tf.clip_by_value(gradient, -bound, bound), variable, learning_rate)
