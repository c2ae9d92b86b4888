"""Draws of a class, and refinement of states, by the chains with which a joint energy was trained.

The chains in the buffer of a trained `networks.JointEnergy` are draws of p(x). By Bayes' rule

    p(x|y) = p(x) p(y|x) / p(y),

so that chains which are drawn again with probabilities ∝ p(y|x) are draws of p(x|y). Further steps of the kernel on the
energy E(x, y) = −f(x)[y] of the class (Grathwohl et al. 2020) leave p(x|y) invariant and separate equal chains. Chains
that start at the base instead have to find the class first, and short ones end in no class.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special
import tensorflow as tf

from tfp_ebm import mcmc, random
from tfp_ebm.arguments import check_count, check_data
from tfp_ebm.energy.shapes import by_blocks
from tfp_ebm.losses.joint_energy import JointEnergyLoss
from tfp_ebm.losses.maximum_likelihood import MaximumLikelihood
from tfp_ebm.mcmc.weights import resample
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.joint_energy import JointEnergy, labels_of
from tfp_ebm.random import fold_in, stateless_seed
from tfp_ebm.tracing import graph_function

# Range of the logarithm of the temperature of class probabilities.
_LOG_TEMPERATURES = (-5.0, 8.0)
# Effective number of chains of a class below which its draws are few different ones.
_MIN_CHAINS = 10.0


def class_samples(model: EnergyModel, labels: Any, *, num_steps: int = 100, seed: Any) -> tf.Tensor:
    """Draws x from p(x|y) for each label y: chains of the buffer, chosen by p(y|x), then steps of the kernel.

    Each draw starts at one of the chains of p(x) that training has left in the buffer, chosen with probability
    ∝ p(y|x), and makes `num_steps` steps on E(x, y) = −f(x)[y] by the loss's kernel with its present step size. If the
    chains have the model's distribution and the kernel is calibrated, so are the draws exact; several draws from one
    chain depend on each other until they have moved apart.

    Args:
      model: a model of a `networks.JointEnergy`, trained by a `losses.JointEnergyLoss` of persistent chains, as by
        `recipes.small_images` or `recipes.jem`.
      labels: the class of each draw, whole numbers from 0, `[n]`.
      num_steps: number of steps; 0 returns chains of the buffer.
      seed: int or int32[2]; the same seed gives the same bits.

    Returns:
      The draws in x, `[n, *event]`.

    Raises:
      TypeError, ValueError: if the model is of another kind or not trained, or a label is not one of its classes.

    Warns if fewer than ten chains, by their effective number, belong to a class.

    Reference: W. Grathwohl, K.-C. Wang, J.-H. Jacobsen, D. Duvenaud, M. Norouzi, K. Swersky, Your classifier is
    secretly an energy based model and you should treat it like one, 2020, arXiv:1912.03263.

    >>> import keras, tfp_ebm as ebm
    >>> keras.utils.set_random_seed(0)
    >>> layers = [keras.layers.Flatten(), keras.layers.Dense(8, "silu"), keras.layers.Dense(2)]
    >>> classifier = keras.Sequential([keras.Input([8, 8, 1]), *layers])
    >>> model = ebm.recipes.jem(ebm.networks.JointEnergy(classifier), pixels=(0, 1))
    >>> x = ebm.datasets.digits(images=True)[:128]
    >>> history = model.fit(x, np.mean(x, (1, 2, 3)) > 0.3, batch_size=64, epochs=2, verbose=0)
    >>> ebm.recipes.class_samples(model, [1, 1, 1], num_steps=5, seed=0).shape
    TensorShape([3, 8, 8, 1])
    """
    loss, network = _likelihood(model), model.network
    if not isinstance(loss.chains, mcmc.ReplayBuffer):
        raise ValueError(f"`model` must have been trained with a ReplayBuffer, got {type(loss.chains).__name__}.")
    if not loss.built or not np.any(loss.chains.ages.numpy() > 0):
        raise ValueError("`model` must be trained: the buffer of its loss has no chains yet.")
    classes = _checked_labels(labels, model)
    check_count("num_steps", num_steps, minimum=0)
    chains = tf.boolean_mask(loss.chains.states.value, loss.chains.ages.value > 0)
    first, second = (fold_in(stateless_seed(seed), i) for i in range(2))
    log_probs = tf.cast(tf.nn.log_softmax(network.logits(chains)), tf.float64).numpy()
    starts = tf.gather(chains, _chosen(log_probs, classes, first))
    z = _moved(model, loss, starts, classes, num_steps, second) if num_steps else starts
    return model.standardization.to_x(z)


def refine(model: EnergyModel, x: Any, labels: Any = None, *, num_steps: int = 10, seed: Any) -> tf.Tensor:
    """Moves states by a few steps of the chains of a joint energy, on E(x, y) for given labels, else on E(x).

    The steps remove noise and other small perturbations that make a state improbable.

    Args:
      model: as for `class_samples`; its chains need not be persistent.
      x: states, `[n, *event]`, inside the range of the kernel's bijector if it has one.
      labels: the classes towards which the states move, `[n]`, or None.
      num_steps: number of steps of the loss's kernel.
      seed: int or int32[2]; the same seed gives the same bits.

    Returns:
      The states after the steps, `[n, *event]`.

    Raises:
      TypeError, ValueError: as `class_samples`, or if `x` is not finite or of another shape.

    Reference: as for `class_samples`, section 5.4.

    >>> import keras, tfp_ebm as ebm
    >>> classifier = keras.Sequential([keras.Input([2]), keras.layers.Dense(8, "silu"), keras.layers.Dense(2)])
    >>> model = ebm.EnergyModel(ebm.networks.JointEnergy(classifier))
    >>> model.compile(loss=ebm.losses.JointEnergyLoss(ebm.losses.ContrastiveDivergence(ebm.mcmc.MALA(0.1))))
    >>> refine(model, tf.zeros([3, 2]), [0, 1, 1], num_steps=2, seed=0).shape
    TensorShape([3, 2])
    """
    loss = _likelihood(model)
    x = check_data("x", x, model.event_shape)
    classes = None if labels is None else _checked_labels(labels, model)
    if classes is not None and len(classes) != len(x):
        raise ValueError(f"`labels` must have shape ({len(x)},), one label for each row of x, got {classes.shape}.")
    z = model.standardization.to_z(tf.cast(x, model.dtype))
    if isinstance(loss.kernel, mcmc.Kernel):
        loss.kernel.check_start(z)
    z = _moved(model, loss, z, classes, check_count("num_steps", num_steps), stateless_seed(seed))
    return model.standardization.to_x(z)


def calibrate(model: EnergyModel, x: Any, labels: Any) -> float:
    """Sets the temperature of the class probabilities of a joint energy by labelled rows, and returns it.

    The probabilities become softmax f(x)/T with the T of the largest likelihood, so that they are right as often as
    they say. Which class is the most probable does not change, nor do energies and draws. Chains that lag behind the
    energy make a joint energy too sure; then T > 1. The rows must not be those of the training, whose labels the
    classifier knows too well.

    Args:
      model: a trained model of a `networks.JointEnergy`.
      x: rows that the training has not seen, `[n, *event]`; some hundreds suffice, for a single number.
      labels: their classes, whole numbers from 0, `[n]`.

    Returns:
      The temperature T.

    Raises:
      TypeError, ValueError: if the model is of another kind, or rows and labels do not fit together.

    Reference: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, On calibration of modern neural networks, 2017,
    arXiv:1706.04599.

    >>> import keras, tfp_ebm as ebm
    >>> sure = keras.Sequential([keras.Input([1]), keras.layers.Dense(2)])
    >>> sure.set_weights([np.array([[-5.0, 5.0]]), np.zeros(2)])  # p(1|x) = 1/(1 + exp(−10 x))
    >>> x = np.random.default_rng(0).normal(size=(20_000, 1))
    >>> labels = np.random.default_rng(1).random(20_000) < 1.0 / (1.0 + np.exp(-2.0 * x[:, 0]))
    >>> model = ebm.EnergyModel(ebm.networks.JointEnergy(sure), event_shape=[1])
    >>> abs(calibrate(model, x, labels) - 5.0) < 0.3
    True
    """
    network = _network(model)
    rows = check_data("x", x, model.event_shape)
    classes = _checked_labels(labels, model)
    if len(classes) != len(rows):
        raise ValueError(f"`labels` must be one for each row of `x`, got {len(classes)} for {len(rows)} rows.")
    z = model.standardization.to_z(tf.constant(rows, model.dtype))
    logits = by_blocks(network.logits, z).numpy().astype(np.float64)

    def cross_entropy(log_temperature: float) -> float:
        log_probs = scipy.special.log_softmax(logits * np.exp(-log_temperature), 1)
        return -float(np.mean(log_probs[np.arange(len(classes)), classes]))

    found = scipy.optimize.minimize_scalar(cross_entropy, bounds=_LOG_TEMPERATURES, method="bounded")
    network.temperature.assign(np.exp(found.x))
    return float(np.exp(found.x))


def _network(model: Any) -> JointEnergy:
    """Returns the joint energy of a model; raises if it is of another kind."""
    network = getattr(model, "network", None)
    if not isinstance(model, EnergyModel) or not isinstance(network, JointEnergy):
        kind = type(model if network is None else network).__name__
        raise TypeError(f"`model` must be an EnergyModel of a networks.JointEnergy, got {kind}.")
    return network


def _likelihood(model: Any) -> MaximumLikelihood:
    """Returns the density loss by chains of a joint energy; raises if there is none."""
    _network(model)
    loss = model.loss.density_loss if isinstance(model.loss, JointEnergyLoss) else model.loss
    if not isinstance(loss, MaximumLikelihood):
        raise ValueError(f"`model` must have a density loss with chains, got {type(loss).__name__}.")
    return loss


def _checked_labels(labels: Any, model: Any) -> np.ndarray:
    classes = np.asarray(labels_of(labels, "labels"))
    if classes.ndim != 1 or not classes.size:
        raise ValueError(f"`labels` must have shape [n], one label for each draw, got {classes.shape}.")
    count = model.network.num_classes
    if count is None:  # a layer without a known output shape
        count = model.network.logits(tf.zeros([1, *model.event_shape], model.dtype)).shape[1]
    if classes.max() >= count:
        raise ValueError(f"`labels` must be below the number of classes, {count}, got {classes.max()}.")
    return classes


def _chosen(log_probs: np.ndarray, classes: np.ndarray, seed: tf.Tensor) -> np.ndarray:
    """Returns the number of a chain for each label y, with probabilities ∝ p(y|x), spread evenly in each class.

    Args:
      log_probs: log p(y|x) of the chains, `[num_chains, classes]`.
      classes: labels `[n]`.
      seed: int32[2].
    """
    chosen: np.ndarray = np.zeros(len(classes), np.int64)
    few = {}
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        weights = np.exp(log_probs[:, label] - log_probs[:, label].max())
        weights /= weights.sum()
        if (effective := 1.0 / np.sum(weights**2)) < min(_MIN_CHAINS, len(log_probs)):
            few[int(label)] = round(float(effective), 1)
        shift, order = (
            random.uniform([size], fold_in(fold_in(seed, int(label)), i), tf.float64).numpy()
            for i, size in enumerate((1, len(rows)))
        )
        chosen[rows[np.argsort(order)]] = resample(tf.constant(log_probs[None, :, label]), shift, len(rows))[0]
    if few:
        warnings.warn(
            f"class_samples: few chains belong to a class, by their effective number ({few}): its draws are few "
            "different ones. Train longer, or with a larger `capacity`.",
            stacklevel=3,
        )
    return chosen


def _moved(
    model: EnergyModel, loss: MaximumLikelihood, z: tf.Tensor, classes: Any, num_steps: int, seed: tf.Tensor
) -> tf.Tensor:
    """Returns standardised states after steps on −E(x, y), or on −E(x) without labels."""
    network, energy_fn = model.network, model.energy_function
    if not loss.built:
        loss.build(model.event_shape, model.dtype)

    def target(z: tf.Tensor) -> tf.Tensor:
        if classes is None:
            return -energy_fn(z)
        log_prob = -network.energy(z, classes)
        return log_prob if model.base_measure is None else log_prob + network(z) - energy_fn(z)  # tilted by the base

    @graph_function
    def run(z: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return loss.moved(target, z, num_steps, seed, model.standardization)

    moved = run(z, seed)
    finite = tf.reduce_all(tf.math.is_finite(moved), list(range(1, len(moved.shape))))
    if lost := int(tf.reduce_sum(tf.cast(~finite, tf.int32))):
        warnings.warn(f"{lost} of {len(finite)} chains became NaN or infinite.", stacklevel=3)
    return moved
