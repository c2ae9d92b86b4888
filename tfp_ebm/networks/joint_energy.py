"""Classifiers as energies: their logits f(x) define a joint density of x and its label y.

    p(x, y) = exp f(x)[y] / Z,      E(x, y) = −f(x)[y],      E(x) = −log Σ_y exp f(x)[y],

so that p(y|x) is the classifier's softmax and p(x) = exp(−E(x))/Z a density of x (Grathwohl et al. 2020).
`losses.JointEnergyLoss` trains both. The energy −f(x)[y] of one label is −log p(x|y) up to a constant.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm import serialization
from tfp_ebm.arguments import check_keras_3
from tfp_ebm.derivatives.forward_laplacian import forward_laplacian_rule, propagate
from tfp_ebm.derivatives.jet import Jet
from tfp_ebm.energy.shapes import state_dtype
from tfp_ebm.networks.precision import at_least_float32


@keras.saving.register_keras_serializable("tfp_ebm")
class JointEnergy(keras.Model):
    """The energy E(x) = −log Σ_y exp f(x)[y] of a classifier's logits f (eq. 1); `energy(x, y)` is −f(x)[y].

    In an `EnergyModel`, x is in the model's standardised units here, as for every network. There,
    `model.class_probabilities(x)` and `model.given(label)` take x in the data's own units.

    Args:
      classifier: a Keras model or layer `[batch, *event] -> [batch, classes]` that returns logits, without a softmax.
      **kwargs: passed to `keras.Model`.

    Raises:
      TypeError: if `classifier` is not a Keras layer.
      ValueError: if it does not return at least two numbers per row (when it is called).

    Reference: W. Grathwohl, K.-C. Wang, J.-H. Jacobsen, D. Duvenaud, M. Norouzi, K. Swersky, Your classifier is
    secretly an energy based model and you should treat it like one, 2020, arXiv:1912.03263.

    >>> classifier = keras.Sequential([keras.Input([2]), keras.layers.Dense(3)])
    >>> joint, x = JointEnergy(classifier), tf.ones([4, 2])
    >>> bool(np.allclose(joint(x), -np.log(np.exp(classifier(x)).sum(1)), atol=1e-6))
    True
    >>> joint.energy(x, [0, 1, 2, 0]).shape, joint.predict_proba(x).shape
    (TensorShape([4]), TensorShape([4, 3]))
    """

    def __init__(self, classifier: keras.layers.Layer, **kwargs: Any) -> None:
        check_keras_3("classifier", classifier)
        if not isinstance(classifier, keras.layers.Layer):
            raise TypeError(f"`classifier` must be a Keras model or layer, got {type(classifier).__name__}.")
        # the policy of the energies: the classifier's layers have their own, and half precision is too coarse
        kwargs.setdefault("dtype", state_dtype(classifier))
        super().__init__(**kwargs)
        self.classifier = classifier
        self.temperature = self.add_weight(shape=(), initializer="ones", trainable=False, name="temperature")

    @property
    def input_shape(self) -> Any:
        """The shape of a batch, or None if the classifier does not know it."""
        return getattr(self.classifier, "input_shape", None)

    def build(self, input_shape: Any) -> None:
        """Builds the classifier, if it is not built yet."""
        if not self.classifier.built:
            self.classifier(keras.KerasTensor(input_shape, self.compute_dtype))

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None if the classifier has no known output shape."""
        shape: Any = getattr(self.classifier, "output_shape", None) if self.classifier.built else None
        return shape[-1] if isinstance(shape, tuple) and len(shape) == 2 else None

    def logits(self, x: Any, training: bool = False) -> tf.Tensor:
        """Returns the classifier's logits f(x), `[batch, classes]`, of states `[batch, *event]`.

        Raises:
          ValueError: if the classifier's output is not at least two numbers per row.
        """
        logits = self.classifier(x, training=training)
        shape: Any = getattr(logits, "shape", ())
        if len(shape) != 2 or shape[1] is None or shape[1] < 2:
            raise ValueError(
                "`classifier` must return logits of shape [batch, classes] with at least two classes, got shape "
                f"{tuple(shape)}."
            )
        return at_least_float32(logits)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns E(x) = −log Σ_y exp f(x)[y], `[batch]`, of states `[batch, *event]`."""
        return -tf.reduce_logsumexp(self.logits(x, training), -1)

    def energy(self, x: Any, y: Any = None, training: bool = False) -> tf.Tensor:
        """Returns E(x, y) = −f(x)[y], `[batch]`, of states `[batch, *event]` and labels `[batch]`; without y, E(x)."""
        if y is None:
            return self(x, training=training)
        return -tf.gather(self.logits(x, training), labels_of(y), axis=1, batch_dims=1)

    def predict_proba(self, x: Any) -> tf.Tensor:
        """Returns p(y|x) = softmax f(x)/T, `[batch, classes]`, of states `[batch, *event]`.

        T is 1, where p(y|x) is that of the joint density, unless `recipes.calibrate` has set it.
        """
        logits = self.logits(x)
        return tf.nn.softmax(logits / tf.cast(self.temperature.value, logits.dtype), -1)

    def given(self, label: int) -> ClassEnergy:
        """Returns the network of the energy −f(x)[label] of x, which is −log p(x|label) up to a constant."""
        return ClassEnergy(self, label)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        config = {"classifier": serialization.serialized_part(self.classifier)}
        return {"name": self.name, "trainable": self.trainable, "dtype": self.dtype, **config}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> JointEnergy:
        """Rebuilds the network from `get_config`."""
        classifier = keras.saving.deserialize_keras_object(config["classifier"], custom_objects)
        return cls(**{**config, "classifier": classifier})


@keras.saving.register_keras_serializable("tfp_ebm")
class ClassEnergy(keras.layers.Layer):
    """The energy −f(x)[label] of one class of a `JointEnergy`, whose weights it shares.

    Args:
      network: a `JointEnergy`.
      label: the number of the class, from 0.

    Raises:
      TypeError, ValueError: if `network` is no `JointEnergy`, or the label is not one of its classes.

    >>> classifier = keras.Sequential([keras.Input([2]), keras.layers.Dense(3)])
    >>> x = tf.ones([4, 2])
    >>> bool(np.allclose(ClassEnergy(JointEnergy(classifier), 2)(x), -classifier(x)[:, 2]))
    True
    """

    def __init__(self, network: JointEnergy, label: int, **kwargs: Any) -> None:
        if not isinstance(network, JointEnergy):
            raise TypeError(f"`network` must be a networks.JointEnergy, got {type(network).__name__}.")
        number, count = int(labels_of(label, "label")), network.num_classes
        if count is not None and number >= count:
            raise ValueError(f"`label` must be below the number of classes, {count}, got {number}.")
        kwargs.setdefault("dtype", network.dtype)
        super().__init__(autocast=False, **kwargs)
        self.network, self.label = network, number

    def build(self, input_shape: Any) -> None:
        """Builds the joint energy, if it is not built yet."""
        if not self.network.built:
            self.network.build(input_shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns −f(x)[label], `[batch]`, of states `[batch, *event]`."""
        return -self.network.logits(x, training)[:, self.label]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        config = {"network": serialization.serialized_part(self.network), "label": self.label}
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ClassEnergy:
        """Rebuilds the layer from `get_config`."""
        return cls(**{**config, "network": keras.saving.deserialize_keras_object(config["network"], custom_objects)})


def labels_of(y: Any, name: str = "y") -> Any:
    """Returns labels as whole numbers: a tensor int32 if y is one, else a NumPy array int32.

    Raises:
      TypeError: if they are not whole numbers.
      ValueError: if one is negative.

    >>> labels_of([[0.0], [2.0]]).tolist()
    [0, 2]
    """
    if tf.is_tensor(y):
        if not (y.dtype.is_integer or y.dtype.is_floating or y.dtype.is_bool):
            raise TypeError(f"`{name}` must be labels, whole numbers from 0, got a tensor of dtype {y.dtype.name}.")
        labels = tf.cast(y, tf.int32)
        return tf.squeeze(labels, -1) if labels.shape.rank == 2 and labels.shape[1] == 1 else labels
    array = np.asarray(y)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`{name}` must be labels, whole numbers from 0, got {type(y).__name__} of {array.dtype}.")
    if array.size and not (np.isfinite(array).all() and (array == np.floor(array)).all()):
        raise TypeError(f"`{name}` must be labels, whole numbers from 0, got fractions or NaN.")
    if array.size and array.min() < 0:
        raise ValueError(f"`{name}` must be labels, whole numbers from 0, got {array.min()}.")
    labels = array.astype(np.int32)
    return labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels


@forward_laplacian_rule(JointEnergy, takes_training=True)
def _joint_energy(layer: JointEnergy, jet: Jet, training: bool = False) -> Jet:
    logits = _logits(layer, jet, training)
    largest = tf.stop_gradient(tf.reduce_max(logits.value, -1, keepdims=True))
    total = (logits - largest).elementwise(tf.exp).sum(-1)
    return -(total.elementwise(tf.math.log) + largest[:, 0])


@forward_laplacian_rule(ClassEnergy, takes_training=True)
def _class_energy(layer: ClassEnergy, jet: Jet, training: bool = False) -> Jet:
    return -_logits(layer.network, jet, training).linear(lambda t: t[:, layer.label])


def _logits(layer: JointEnergy, jet: Jet, training: bool) -> Jet:
    logits = propagate(layer.classifier, jet, training=training)
    return logits.cast(tf.as_dtype(keras.backend.result_type(logits.dtype.name, "float32")))
