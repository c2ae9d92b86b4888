"""The loss of a classifier that is a density too: cross-entropy of the labels plus a density loss of x.

    −log p(x, y) = −log p(y|x) − log p(x),

where the first term is the cross-entropy of the logits and the second one has an unknown log Z, so that any loss that
trains a density of x stands for it (Grathwohl et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_nonnegative
from tfp_ebm.losses.base import Loss, LossOutput
from tfp_ebm.networks.joint_energy import JointEnergy, labels_of
from tfp_ebm.random import fold_in, normal

# In front of the names of the density loss's metrics: a metric `accuracy` is that of the labels.
_PREFIX = "density_"

# Number folded into the seed of a step for the noise on classified rows; those of density losses are small.
_LABEL_NOISE = 1001


@keras.saving.register_keras_serializable("tfp_ebm")
class JointEnergyLoss(Loss):
    """The loss of a `networks.JointEnergy`: per row −log p(y|x) plus a weight times a density loss of x.

    `fit(x, y)` takes the labels y, whole numbers from 0, in Keras's second position, and
    `compile(metrics=["accuracy"])` compares them with the logits.

    Args:
      density_loss: a loss that trains a density of x, such as `losses.PersistentContrastiveDivergence()` or
        `losses.DenoisingScoreMatching(0.3)`. Its data noise, if any, is not added to the rows that are classified.
      weight: its weight, not negative.
      label_noise: standard deviation of the noise added to the rows that are classified in training, in standardised
        units. Energies change much over short distances, and a classifier that has seen few rows is then sure of its
        class between them, too; noise of about the distance between rows cures that.

    Metrics: `cross_entropy`, the mean of −log p(y|x); `density_loss`, the mean of the density loss; and the metrics of
    the density loss, with `density_` in front of their names.

    Raises:
      TypeError, ValueError: if `density_loss` is not a loss of x alone, or the weight is negative.

    Reference: W. Grathwohl, K.-C. Wang, J.-H. Jacobsen, D. Duvenaud, M. Norouzi, K. Swersky, Your classifier is
    secretly an energy based model and you should treat it like one, 2020, arXiv:1912.03263.

    >>> import tfp_ebm as ebm
    >>> classifier = keras.Sequential([keras.Input([2]), keras.layers.Dense(8, "silu"), keras.layers.Dense(2)])
    >>> model = ebm.EnergyModel(ebm.networks.JointEnergy(classifier))
    >>> model.compile(loss=JointEnergyLoss(ebm.losses.DenoisingScoreMatching(0.3)), metrics=["accuracy"])
    >>> x = tf.random.stateless_normal([64, 2], [0, 1])
    >>> history = model.fit(x, tf.cast(x[:, 0] > 0.0, tf.int32), verbose=0).history
    >>> sorted(history)
    ['accuracy', 'cross_entropy', 'density_loss', 'loss']
    """

    takes_labels = True

    def __init__(self, density_loss: Loss, weight: float = 1.0, label_noise: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(density_loss, Loss):
            raise TypeError(f"`density_loss` must be an `ebm.losses.Loss`, got {density_loss!r}.")
        if density_loss.takes_labels or density_loss.gives_condition:
            raise ValueError(f"`density_loss` must be a loss of x alone, got {type(density_loss).__name__}.")
        self.density_loss = density_loss
        self.weight = check_nonnegative("weight", weight)
        self.label_noise = check_nonnegative("label_noise", label_noise)
        inner = (_PREFIX + name for name in density_loss.metric_names)
        self.metric_names = ("cross_entropy", "density_loss", *inner)

    @property
    def differentiates_score(self) -> bool:  # type: ignore[override]
        """Whether the parameter gradient contains the derivative of ∇ₓE, as for the density loss."""
        return self.density_loss.differentiates_score

    @property
    def needs_curvature(self) -> bool:  # type: ignore[override]
        """Whether the loss contains ∇²ₓE, as for the density loss."""
        return self.density_loss.needs_curvature

    @property
    def known_log_normalizer(self) -> tf.Tensor | None:
        """Returns log Z of p(x) if the density loss learns it, else None."""
        return self.density_loss.known_log_normalizer

    def build(self, event_shape: tuple[int, ...], dtype: str = "float32") -> None:
        """Creates the weights of the density loss."""
        if not self.density_loss.built:
            self.density_loss.build(event_shape, dtype)
        self.built = True

    def check(self, energy_fn: Callable[..., tf.Tensor]) -> None:
        """Raises ValueError unless the network is a `networks.JointEnergy` that the density loss can train."""
        network = getattr(energy_fn, "network", None)
        if not isinstance(network, JointEnergy):
            raise ValueError(
                "`network` must be a networks.JointEnergy(classifier) for JointEnergyLoss, got "
                f"{type(energy_fn if network is None else network).__name__}."
            )
        self.density_loss.check(energy_fn)

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """Returns −log p(y|x) + weight · (the density loss) of each row."""
        if condition is None:
            raise ValueError("`y` must be given: JointEnergyLoss takes labels, as in `fit(x, y)`.")
        network: Any = getattr(energy_fn, "network", None)
        rows = x
        if training and self.label_noise > 0.0:  # the density loss has the seed itself
            rows += self.label_noise * normal(tf.shape(x), fold_in(seed, _LABEL_NOISE), x.dtype)
        logits = network.logits(rows, training)
        labels = labels_of(tf.reshape(condition, tf.shape(x)[:1]))
        entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)  # NaN for a label that is no class
        output = self.density_loss(energy_fn, x, seed=seed, training=training)
        metrics = {_PREFIX + name: value for name, value in output.metrics.items()}
        metrics |= {"cross_entropy": tf.reduce_mean(entropy), "density_loss": tf.reduce_mean(output.per_example)}
        return LossOutput(entropy + self.weight * output.per_example, metrics, logits)

    def training_warning(self, metrics: Mapping[str, float]) -> str:
        """See `Loss.training_warning`: the warning of the density loss."""
        inner = {name[len(_PREFIX) :]: value for name, value in metrics.items() if name.startswith(_PREFIX)}
        return self.density_loss.training_warning(inner)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        density_loss = keras.saving.serialize_keras_object(self.density_loss)
        own = {"density_loss": density_loss, "weight": self.weight, "label_noise": self.label_noise}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> JointEnergyLoss:
        """Creates the loss from the result of `get_config`."""
        return cls(**{**config, "density_loss": keras.saving.deserialize_keras_object(config["density_loss"])})
