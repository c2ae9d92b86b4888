"""Keras layers whose derivatives are silently wrong, and the check that rejects them.

A loss that trains the score differentiates E twice: in x for the score, then once more (in x or in the weights). A few
Keras layers compute this second derivative wrong without any error. The energy and the score are right, so only a
finite difference of the gradient shows the error. Some layers compute even the first derivative wrong. The table below
is the result of comparing every Keras layer that an energy network may contain with finite differences, in float64. The
tests repeat the comparison for the layers named here and for similar layers without a fault. `operations` does the same
for TensorFlow operations in the user's own layers.

`_FAULTS` covers Keras's classes and their subclasses. A subclass that computes the moments explicitly, as those in
`tfp_ebm.networks` do, sets the attribute `differentiates_moments = True`.
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
    """A fault of the Keras class named `kind`: objects for which `applies` holds have the fault `reason`.

    `cure` is the advice to the user. With `only_in_training` the fault occurs only in training mode. `order` is the
    order of the first wrong derivative.
    """

    kind: str
    reason: str
    cure: str
    applies: Callable[[Any], bool] = lambda layer: True
    only_in_training: bool = False
    order: int = 2

    def strikes(self, layer: Any) -> bool:
        """Returns whether `layer` has this fault. Compares names, since Keras's operations have no public classes."""
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

    All layers are checked, including nested, wrapped and subclassed ones, and `keras.ops` on the tensors of a
    functional model. If the shape of the network's input is known, the network is also traced, to check the TensorFlow
    operations of a `Lambda` and of a custom layer's `call`.

    Args:
      network: a Keras layer or model; any other callable is not checked.
      purpose: the subject of the error message, which needs the derivatives (for example a loss's name).
      training: whether the network is run in training mode, where more layers have faults.
      order: 1 for the score alone, 2 if the score is differentiated once more.
      inputs: specs of the network's inputs; default: the network's own.

    Raises:
      ValueError: if there is such a layer; names the first one, its fault and a replacement.

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
    """Yields every layer of `network`, itself included, and every operation on a functional model's tensors."""
    # private: Keras's public `layers` has only the first level, without wrapped layers
    for layer in network._flatten_layers():
        yield layer
        yield from (part for part in getattr(layer, "operations", ()) if not isinstance(part, keras.layers.Layer))
