"""The second input of the network builders: conditions, and the two ways in which a network uses them.

    concatenation    the numbers of c stand beside those of x (or of an image's features) in a dense layer
    film             each hidden layer is h = s(γ(c) (Wh' + b) + β(c)) (Perez et al. 2018, FiLM)

Labels become vectors by an embedding, which is learned. In a convolutional network, an image of the height and width of
x becomes further channels of x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

from tfp_ebm.arguments import check_choice, check_count

CONDITIONINGS = ("concatenation", "film")

# Numbers of a label's vector, and width of the layer from which the modulations of all layers are made.
_EMBEDDING, _FILM_UNITS = 16, 64


class Condition(NamedTuple):
    """The condition of a network that is being built.

    Attributes:
      inputs: the Keras input, or a dictionary of them.
      features: the numbers of c, `[batch, number]`; None if all are channels.
      channels: images of the height and width of x, `[batch, height, width, number]`; None if there are none.
      modulation: the layer from which γ(c) and β(c) are made; None for concatenation.
    """

    inputs: Any
    features: Any
    channels: Any
    modulation: Any


def condition_of(
    condition_shape: Any,
    num_labels: Any,
    conditioning: str,
    activation: Any,
    policy: Any,
    seeds: Iterator[int | None],
    image_shape: Sequence[int] | None = None,
) -> Condition | None:
    """Returns the condition of a network, or None if it takes none.

    Args:
      condition_shape: shape of one condition, or a dictionary of shapes; None for labels, and for no condition.
      num_labels: the number of different labels, if the condition is one or holds some; with a dictionary of shapes, a
        dictionary for those that are labels.
      conditioning: "concatenation" or "film".
      activation, policy, seeds: those of the network.
      image_shape: shape of x, if it is an image.

    Raises:
      TypeError, ValueError: if an argument is not of the form above.
    """
    check_choice("conditioning", conditioning, CONDITIONINGS)
    if condition_shape is None and num_labels is None:
        return None
    shapes, counts = _named(condition_shape, num_labels)
    inputs: dict[str, Any] = {}
    features: list[Any] = []
    channels: list[Any] = []
    for name, shape in shapes.items():
        inputs[name], part = _one(name, shape, counts.get(name), policy, seeds)
        is_image = image_shape is not None and len(shape) == 3 and shape[:2] == tuple(image_shape[:2])
        (channels if is_image and counts.get(name) is None else features).append(part)
    flat = [part if len(part.shape) == 2 else keras.layers.Flatten(dtype=policy)(part) for part in features]
    joined, modulation = joined_of(flat, policy), None
    if conditioning == "film" and joined is not None:
        weights = uniform_weights(joined.shape[-1], seeds)
        modulation = keras.layers.Dense(_FILM_UNITS, activation, dtype=policy, name="condition_hidden", **weights)
        modulation = modulation(joined)
        joined = None
    given: Any = inputs if isinstance(condition_shape, dict) else next(iter(inputs.values()))
    return Condition(given, joined, joined_of(channels, policy), modulation)


def _named(condition_shape: Any, num_labels: Any) -> tuple[dict[str, tuple[int, ...]], dict[str, int | None]]:
    """Returns shapes and numbers of labels by name; a single condition is called "condition"."""
    if not isinstance(condition_shape, dict):
        shape = check_sizes("condition_shape", () if condition_shape is None else condition_shape)
        count = None if num_labels is None else check_count("num_labels", num_labels, minimum=2)
        return {"condition": () if shape == (1,) else shape}, {"condition": count}
    if not condition_shape:
        raise ValueError("`condition_shape` must hold at least one shape, got an empty dictionary.")
    if not isinstance(num_labels, dict | None):
        raise TypeError(f"`num_labels` must be a dictionary as `condition_shape` is, got {num_labels!r}.")
    counts = {} if num_labels is None else num_labels
    if unknown := sorted(set(counts) - set(condition_shape)):
        raise ValueError(
            f"`num_labels` must have names of `condition_shape`, {sorted(condition_shape)}, got {unknown}."
        )
    names = sorted(condition_shape)  # Keras's order of dictionaries
    shapes = {name: check_sizes(f"condition_shape[{name!r}]", condition_shape[name]) for name in names}
    return shapes, {name: check_count(f"num_labels[{name!r}]", count, minimum=2) for name, count in counts.items()}


def _one(
    name: str, shape: tuple[int, ...], count: int | None, policy: Any, seeds: Iterator[int | None]
) -> tuple[Any, Any]:
    """Returns the Keras input of one condition, and its numbers as a network of the policy takes them."""
    if count is None:
        given = keras.Input(shape, dtype=policy.variable_dtype, name=name)
        return given, given if shape else keras.layers.Reshape((1,), dtype=policy)(given)
    given = keras.Input(shape, dtype="int32", name=name)
    limit = math.sqrt(3.0)  # of variance 1, as standardised numbers have
    start = keras.initializers.RandomUniform(-limit, limit, seed=next(seeds))
    embedding = keras.layers.Embedding(
        count, _EMBEDDING, embeddings_initializer=start, dtype=policy, name=f"{name}_embedding"
    )
    return given, embedding(given)


def joined_of(parts: Sequence[Any], policy: Any) -> Any:
    """Returns tensors side by side along the last axis; the tensor itself if there is one, None if there is none."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return keras.layers.Concatenate(dtype=policy)(list(parts))


def modulated(h: Any, modulation: Any, name: str, policy: Any, seeds: Iterator[int | None]) -> Any:
    """Returns γ(c) h + β(c), one γ and β for each channel, the last axis of h; γ starts around 1."""
    width = h.shape[-1]
    weights = [uniform_weights(modulation.shape[-1], seeds) for _ in range(2)]
    weights[0]["bias_initializer"] = keras.initializers.Ones()
    parts = []
    for kind, initializers in zip(("scale", "shift"), weights, strict=True):
        part = keras.layers.Dense(width, dtype=policy, name=f"{name}_{kind}", **initializers)(modulation)
        if len(h.shape) > 2:
            part = keras.layers.Reshape((*[1] * (len(h.shape) - 2), width), dtype=policy)(part)
        parts.append(part)
    scaled = keras.layers.Multiply(dtype=policy)([h, parts[0]])
    return keras.layers.Add(dtype=policy)([scaled, parts[1]])


def check_used(condition: Condition | None, num_hidden: int, name: str) -> None:
    """Raises ValueError if a network without hidden layers would add the same to all energies of one condition."""
    if condition is not None and num_hidden == 0 and condition.channels is None:
        raise ValueError(f"`{name}` must have at least one layer for a network with conditions, got an empty list.")


def uniform_weights(fan_in: int, seeds: Iterator[int | None], gain: float = 1.0) -> dict[str, Any]:
    """Returns the initialisers of kernel and bias: uniform on ±gain/√fan_in."""
    limit = gain / math.sqrt(fan_in)
    return {
        f"{weight}_initializer": keras.initializers.RandomUniform(-limit, limit, seed=next(seeds))
        for weight in ("kernel", "bias")
    }


def check_sizes(name: str, value: Any) -> tuple[int, ...]:
    """Returns `value` as a tuple of counts, or raises an error that names the argument."""
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__") or isinstance(value, dict):
        raise TypeError(f"`{name}` must be a list of whole numbers, got {value!r}.")
    return tuple(check_count(f"{name}[{i}]", entry) for i, entry in enumerate(value))
