"""Training objectives: each takes an energy function and a batch, and returns one number per row."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from tfp_ebm.arguments import check_keras_3
from tfp_ebm.losses.base import Loss, LossOutput, alias
from tfp_ebm.losses.contrastive_divergence import (
    ContrastiveDivergence,
    ImprovedContrastiveDivergence,
    PersistentContrastiveDivergence,
)
from tfp_ebm.losses.denoising import (
    DenoisingScoreMatching,
    MultiscaleDenoisingScoreMatching,
    NoiseConditionalDenoisingScoreMatching,
)
from tfp_ebm.losses.dual_score_matching import DualScoreMatching
from tfp_ebm.losses.joint_energy import JointEnergyLoss
from tfp_ebm.losses.maximum_likelihood import MaximumLikelihood
from tfp_ebm.losses.negative_log_likelihood import NegativeLogLikelihood
from tfp_ebm.losses.noise_contrastive import NoiseContrastiveEstimation
from tfp_ebm.losses.ratio_estimation import ContrastiveRatioEstimation
from tfp_ebm.losses.score_matching import ScoreMatching
from tfp_ebm.losses.sliced import SlicedScoreMatching

__all__ = [
    "ContrastiveDivergence",
    "ContrastiveRatioEstimation",
    "DenoisingScoreMatching",
    "DualScoreMatching",
    "ImprovedContrastiveDivergence",
    "JointEnergyLoss",
    "Loss",
    "LossOutput",
    "MaximumLikelihood",
    "MultiscaleDenoisingScoreMatching",
    "NegativeLogLikelihood",
    "NoiseConditionalDenoisingScoreMatching",
    "NoiseContrastiveEstimation",
    "PersistentContrastiveDivergence",
    "ScoreMatching",
    "SlicedScoreMatching",
    "aliases",
    "get",
]

_CLASSES: dict[str, type[Loss]] = {
    alias(loss): loss
    for loss in (
        ContrastiveDivergence,
        ContrastiveRatioEstimation,
        DenoisingScoreMatching,
        DualScoreMatching,
        ImprovedContrastiveDivergence,
        JointEnergyLoss,
        MaximumLikelihood,
        MultiscaleDenoisingScoreMatching,
        NegativeLogLikelihood,
        NoiseConditionalDenoisingScoreMatching,
        NoiseContrastiveEstimation,
        PersistentContrastiveDivergence,
        ScoreMatching,
        SlicedScoreMatching,
    )
}


def _missing(loss_class: type[Loss]) -> list[str]:
    """Returns the required arguments of a loss."""
    return [
        name
        for name, parameter in inspect.signature(loss_class).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]


def aliases() -> tuple[str, ...]:
    """Returns the strings that `compile(loss=...)` and the command line accept, sorted: losses without arguments.

    >>> "denoising_score_matching" in aliases()
    True
    """
    return tuple(sorted(name for name, loss_class in _CLASSES.items() if not _missing(loss_class)))


def get(identifier: Any) -> Loss:
    """Returns the loss for a loss object, a string alias or a serialized config.

    Raises:
      ValueError: for an unknown string (the error lists the known ones), or a string whose loss needs arguments.
      TypeError: for anything else, including Keras's own losses, since they compare predictions with labels.

    >>> get("denoising_score_matching").sigma
    0.1
    """
    if isinstance(identifier, Loss):
        return identifier
    if isinstance(identifier, dict):
        return get(keras.saving.deserialize_keras_object(identifier))
    check_keras_3("loss", identifier)
    if not isinstance(identifier, str):
        raise TypeError(
            f"`loss` must be an `ebm.losses.Loss` or one of {', '.join(aliases())}, got {identifier!r} "
            f"of type {type(identifier).__name__}."
        )
    if identifier not in _CLASSES:
        raise ValueError(f"`loss` must be one of {', '.join(sorted(_CLASSES))}, or a Loss, got {identifier!r}.")
    loss_class = _CLASSES[identifier]
    missing = _missing(loss_class)
    if missing:
        raise ValueError(
            f"`loss` {identifier!r} needs {', '.join(missing)}: pass ebm.losses.{loss_class.__name__}"
            f"({', '.join(f'{name}=...' for name in missing)})."
        )
    return loss_class()
