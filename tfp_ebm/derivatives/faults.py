"""Keras layers whose derivatives are silently wrong, and the check that keeps them out.

A loss that trains the score differentiates E twice: in x for the score, then once more (in x or in the weights). A few
layers of Keras get that second derivative wrong without any error, while the energy and the score themselves are
right, so that only a finite difference of the gradient shows it. Some get even the first one wrong. The table below is
the outcome of comparing every Keras layer that can stand in an energy network with such differences, in float64; the
tests repeat the comparison for the layers named here and for their allowed neighbours. `operations` does the same for
the operations of TensorFlow that a network of the user's own is made of.

`_FAULTS` is about Keras's classes and what inherits from them. A subclass that writes the moments out, as those of
`tfp_ebm.networks` do, declares it by an attribute, `differentiates_moments = True`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_ebm.arguments import check_keras_3
from tfp_ebm.derivatives.operations import operation_faults


@dataclasses.dataclass(frozen=True)
class _Fault:
    """Objects of the Keras class named `kind` for which `applies` holds have the fault `reason`, and a `cure`.

    With `only_in_training` they have it in training mode alone. `order` is that of the first derivative that is wrong.
    """

    kind: str
    reason: str
    cure: str
    applies: Callable[[Any], bool] = lambda layer: True
    only_in_training: bool = False
    order: int = 2

    def strikes(self, layer: Any) -> bool:
        """Whether `layer` has this fault. By name, since Keras's operations have no public classes."""
        kinds = [base.__name__ for base in type(layer).__mro__ if base.__module__.startswith("keras.")]
        return self.kind in kinds and self.applies(layer)


_MOMENTS = "holds the mean inside its variance constant when it is differentiated"
_RESIZE = "resizes by an operation of TensorFlow that has no second derivative (by bilinear ones it is taken for zero)"
_RESIZE_CURE = 'Use interpolation="nearest" with keras.layers.UpSampling2D, or a transposed convolution'
_WARP = "warps images by an operation of TensorFlow whose registered gradient is not its derivative"
_COLOR = "changes colours by an operation of TensorFlow whose gradient is taken for zero (HSVToRGB)"
_AUGMENT = "Augment the data before `fit`, for example by `dataset.map`,"

_FAULTS = (
    _Fault(
        "LayerNormalization",
        _MOMENTS,
        "Use tfp_ebm.networks.LayerNormalization or keras.layers.RMSNormalization",
        lambda layer: not (getattr(layer, "differentiates_moments", False) or layer.rms_scaling),
    ),
    _Fault(
        "GroupNormalization",
        _MOMENTS,
        "Use tfp_ebm.networks.GroupNormalization",
        lambda layer: not getattr(layer, "differentiates_moments", False),
    ),
    _Fault(
        "BatchNormalization",
        "normalises in training by the batch, so that an example's energy depends on the other examples and its "
        "second derivative on a mean held constant",
        "Use tfp_ebm.networks.GroupNormalization, or freeze it with `trainable = False`",
        lambda layer: layer.trainable,
        only_in_training=True,
    ),
    _Fault(
        "SpectralNormalization",
        "overwrites its kernel whenever it is called in training, and takes no gradient through the norm",
        "Use tfp_ebm.networks.SpectralNormalization",
        only_in_training=True,
    ),
    _Fault("UpSampling2D", _RESIZE, _RESIZE_CURE, lambda layer: layer.interpolation != "nearest"),
    _Fault("Resizing", _RESIZE, _RESIZE_CURE),
    _Fault("Resize", _RESIZE, _RESIZE_CURE),
    *(
        _Fault(kind, _WARP, _AUGMENT, only_in_training=True, order=1)
        for kind in (
            *("RandomRotation", "RandomZoom", "RandomTranslation", "RandomShear", "RandomPerspective"),
            *("AugMix", "RandAugment"),
        )
    ),
    _Fault("AffineTransform", _WARP, "Use layers made of smooth arithmetic", order=1),
    _Fault("PerspectiveTransform", _WARP, "Use layers made of smooth arithmetic", order=1),
    *(
        _Fault(kind, _COLOR, _AUGMENT, only_in_training=True, order=1)
        for kind in ("RandomHue", "RandomSaturation", "RandomColorJitter")
    ),
    _Fault("HSVToRGB", _COLOR, "Use layers made of smooth arithmetic", order=1),
    _Fault(
        "Layer",
        "is rematerialised, and what is computed again in the backward pass has no second derivative",
        "Make it outside of keras.RematScope",
        lambda layer: getattr(layer, "_remat_mode", None) is not None,
    ),
    _Fault("Moments", _MOMENTS, "Use keras.ops.mean of x and of (x − mean)²"),
    _Fault(
        "LayerNorm", _MOMENTS, "Use tfp_ebm.networks.LayerNormalization", lambda operation: not operation.rms_scaling
    ),
)


def refuse_faulty_layers(
    network: Any,
    purpose: str,
    training: bool = True,
    order: int = 2,
    inputs: Sequence[tf.TensorSpec] | None = None,
) -> None:
    """Raises if `network` contains a layer or an operation whose derivative in x is silently wrong.

    All layers are checked, also nested, wrapped and subclassed ones, and `keras.ops` on the tensors of a functional
    model. Where the shape of the network's input is known, the network is traced too, and the operations of TensorFlow
    in it are checked: those of a `Lambda`, and of a layer's own `call`.

    Args:
      network: a Keras layer or model; any other callable passes unchecked.
      purpose: what needs the derivatives, to open the error message with (a loss's name).
      training: whether the network is run in training mode, where more layers are at fault.
      order: 1 for the score alone, 2 where the score is differentiated once more.
      inputs: specs of the network's inputs; default: those that it knows itself.

    Raises:
      ValueError: naming the first such layer, what is wrong with it and what to use instead.

    >>> from tfp_ebm.networks import LayerNormalization
    >>> refuse_faulty_layers(keras.Sequential([keras.layers.Dense(3), LayerNormalization()]), "Score matching")
    >>> network = keras.Sequential([keras.layers.LayerNormalization(name="n")])
    >>> refuse_faulty_layers(network, "Score matching")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: Score matching needs second derivatives of the network, and those of its layer `n` ...
    """

    def refuse(fault_order: int, layer: Any, reason: str, cure: str) -> None:
        needed = "second derivatives" if fault_order == 2 else "derivatives"
        raise ValueError(
            f"{purpose} needs {needed} of the network, and those of its layer `{layer.name}` "
            f"({type(layer).__name__}) are wrong: it {reason}. {cure} instead."
        )

    check_keras_3("network", network)
    if not isinstance(network, keras.layers.Layer):
        return
    for layer in _layers(network):
        for fault in _FAULTS:
            if fault.order <= order and (training or not fault.only_in_training) and fault.strikes(layer):
                refuse(fault.order, layer, fault.reason, fault.cure)
    for found in operation_faults(network, training, inputs):
        if found.order <= order:
            refuse(found.order, found.layer, found.reason, found.cure)


def _layers(network: Any) -> Iterator[Any]:
    """Every layer within `network`, itself included, and every operation on a functional model's tensors."""
    # private: Keras's public `layers` stops at the first level and knows nothing of wrapped layers
    for layer in network._flatten_layers():
        yield layer
        yield from (part for part in getattr(layer, "operations", ()) if not isinstance(part, keras.layers.Layer))
