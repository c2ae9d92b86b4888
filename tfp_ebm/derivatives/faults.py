"""Keras layers whose second derivatives are silently wrong, and the door that keeps them out.

A loss that trains the score differentiates E twice: in x for the score, then once more (in x or in the weights). A few
layers of Keras get that second derivative wrong without any error, while the energy and the score themselves are
right, so that nothing but a finite difference of the gradient shows it. The table below is the outcome of comparing
every Keras layer that can stand in an energy network with such differences, in float64; the tests repeat the
comparison for the layers named here and for their allowed neighbours.

`_FAULTS` is about Keras's classes and what inherits from them. A subclass that writes the moments out, as those of
`tfp_ebm.networks` do, says so by an attribute, `differentiates_moments = True`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class _Fault:
    """Objects of the Keras class named `kind` for which `applies` holds have the fault `reason`, and a `cure`.

    With `only_in_training` they have it in training mode alone.
    """

    kind: str
    reason: str
    cure: str
    applies: Callable[[Any], bool] = lambda layer: True
    only_in_training: bool = False

    def strikes(self, layer: Any) -> bool:
        """Whether `layer` has this fault. By name, since Keras's operations have no public classes."""
        kinds = [base.__name__ for base in type(layer).__mro__ if base.__module__.startswith("keras.")]
        return self.kind in kinds and self.applies(layer)


_MOMENTS = "holds the mean inside its variance constant when it is differentiated"
_RESIZE = "resizes by an operation of TensorFlow that has no second derivative and counts as constant there"
_RESIZE_CURE = 'Use interpolation="nearest" with keras.layers.UpSampling2D, or a transposed convolution'

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
    _Fault("UpSampling2D", _RESIZE, _RESIZE_CURE, lambda layer: layer.interpolation == "bilinear"),
    _Fault("Resizing", _RESIZE, _RESIZE_CURE, lambda layer: layer.interpolation == "bilinear"),
    _Fault("Resize", _RESIZE, _RESIZE_CURE, lambda operation: operation.interpolation == "bilinear"),
    _Fault("Moments", _MOMENTS, "Use keras.ops.mean of x and of (x − mean)²"),
    _Fault(
        "LayerNorm", _MOMENTS, "Use tfp_ebm.networks.LayerNormalization", lambda operation: not operation.rms_scaling
    ),
)


def refuse_faulty_layers(network: Any, purpose: str, training: bool = True) -> None:
    """Raises if `network` contains a Keras layer whose second derivative is silently wrong.

    All layers are looked at, also nested, wrapped and subclassed ones, and `keras.ops` on the tensors of a functional
    model. What cannot be seen is arithmetic in a `Lambda`, in a layer's own `call` or in a plain callable:
    `tf.nn.moments` there has the same fault, and explicit means have not.

    Args:
      network: a Keras layer or model; any other callable passes unseen.
      purpose: what needs second derivatives, to open the error message with (a loss's name).
      training: whether the network is run in training mode, where more layers are at fault.

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
    for layer in _layers(network):
        for fault in _FAULTS:
            if (training or not fault.only_in_training) and fault.strikes(layer):
                raise ValueError(
                    f"{purpose} needs second derivatives of the network, and those of its layer `{layer.name}` "
                    f"({type(layer).__name__}) are wrong: it {fault.reason}. {fault.cure} instead."
                )


def _layers(network: Any) -> Iterator[Any]:
    """Every layer within `network`, itself included, and every operation on a functional model's tensors."""
    if isinstance(network, keras.layers.Layer):
        # private: Keras's public `layers` stops at the first level and knows nothing of wrapped layers
        for layer in network._flatten_layers():
            yield layer
            yield from (part for part in getattr(layer, "operations", ()) if not isinstance(part, keras.layers.Layer))
