"""Serializes TFP distributions: to JSON, to store a base measure in a `.keras` file, and for `copy` and `pickle`.

TFP's distributions are not Keras objects. But each consists of a class in `tensorflow_probability.distributions` (or
`.bijectors`) and its `parameters`: further distributions, arrays and plain values. Arrays are stored as base64, so that
every bit is restored.

`copy.deepcopy` and `pickle` first create an object without arguments. This fails for TFP's classes that choose a
subclass by their arguments (`tfd.Sample`, and hence every multivariate normal; `tfd.Independent`,
`tfd.MixtureSameFamily`, …). `copyreg` rebuilds these from their parameters instead.
"""

from __future__ import annotations

import base64
import copyreg
import inspect
from collections.abc import Hashable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

_MODULES = {"distributions": tfp.distributions, "bijectors": tfp.bijectors}


# The format version of `.keras` files: 2 since attributes with weights were renamed (`units` to `standardization`).
FORMAT_VERSION = 2


def check_format_version(version: int) -> None:
    """Raises ValueError if a `.keras` file of this format version cannot be read.

    >>> check_format_version(FORMAT_VERSION)
    """
    if version != FORMAT_VERSION:
        raise ValueError(
            f"this model was saved in format version {version}, but this tfp_ebm reads version {FORMAT_VERSION}. Load "
            "it with the tfp_ebm that wrote it, save its network there by `model.network.save(...)`, then here create "
            "`EnergyModel(network)` with it and `adapt` it to the same data; or train again."
        )


def report_of(model: Any) -> dict[str, Any] | None:
    """Returns what `fit_density` reports of a model, as plain values; None of another model.

    >>> report_of(object()) is None
    True
    """
    if getattr(model, "candidates", None) is None:
        return None
    return {
        "candidates": {name: list(result) for name, result in model.candidates.items()},
        "histories": {
            name: {key: list(value) if isinstance(value, list) else value for key, value in curve.items()}
            for name, curve in model.histories.items()
        },
        "cut_by_clock": model.cut_by_clock,
    }


def with_report(model: Any, report: dict[str, Any] | None) -> Any:
    """Returns a model that has the attributes of a report from `report_of`.

    >>> import types
    >>> report = {"candidates": {"gaussian": [-1.4, 0.1]}, "histories": {}, "cut_by_clock": False}
    >>> with_report(types.SimpleNamespace(), report).candidates
    {'gaussian': (-1.4, 0.1)}
    """
    if report is not None:
        model.candidates = {name: tuple(result) for name, result in report["candidates"].items()}
        model.histories, model.cut_by_clock = report["histories"], report["cut_by_clock"]
    return model


def serialized_part(part: Any) -> dict[str, Any]:
    """Returns the config of a Keras object that another one is made of, and that others may be made of as well.

    Keras marks what it serialises twice, so that it becomes one object again when it is loaded. It loses the first mark
    of an object inside the config of a subclassed model, so every such object is marked here.

    >>> serialized_part(keras.layers.Dense(1))["class_name"]
    'Dense'
    """
    config = keras.saving.serialize_keras_object(part)
    config["shared_object_id"] = id(part)
    return config


def encode(value: Any, name: str = "base_measure") -> Any:
    """Converts a distribution to nested dicts of plain values.

    Args:
      value: a distribution, bijector, array, or plain value.
      name: the argument's name, for the error messages.

    Raises:
      TypeError: for a class from outside TFP, or a parameter that is not an array, distribution, bijector or plain
        value (such as a function).

    >>> encode(tfp.distributions.Normal(0.0, 1.0))["class"]
    'distributions.Normal'
    """
    # np.float64 is also a float, but its dtype must be kept
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, tf.DType):
        return {"dtype": value.name}
    if isinstance(value, tfp.distributions.Distribution | tfp.bijectors.Bijector):
        kind = "distributions" if isinstance(value, tfp.distributions.Distribution) else "bijectors"
        class_name = type(value).__name__
        if getattr(_MODULES[kind], class_name, None) is not type(value):
            raise TypeError(
                f"`{name}` cannot be saved: {type(value).__module__}.{class_name} is not one of tfp.{kind}; "
                "build it from TFP's own, or save weights only."
            )
        defaults = inspect.signature(type(value).__init__).parameters
        parameters = {
            key: encode(item, f"{name}.{key}")
            for key, item in value.parameters.items()
            if item is not defaults[key].default  # some defaults are functions, and all are restored automatically
        }
        return {"class": f"{kind}.{class_name}", "parameters": parameters}
    if isinstance(value, dict):
        return {"mapping": {key: encode(item, f"{name}[{key!r}]") for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return [encode(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, np.ndarray | np.generic | tf.Variable | keras.Variable) or tf.is_tensor(value):
        array = np.ascontiguousarray(value)
        data = base64.b64encode(array.tobytes()).decode()
        return {"array": data, "dtype": array.dtype.name, "shape": list(np.shape(value))}
    raise TypeError(
        f"`{name}` cannot be saved: {type(value).__name__} is not an array, a plain value, nor a distribution or "
        "bijector of TFP."
    )


def decode(value: Any) -> Any:
    """Rebuilds a distribution from the result of `encode`.

    A file may have been changed on purpose: only the classes that `encode` writes are created, and nothing else is
    called.

    Raises:
      ValueError: if `value` is not from `encode`, or names another class.

    >>> p = tfp.distributions.Normal([0.0, 1.0], 2.0)
    >>> decode(encode(p)).loc.numpy().tolist()
    [0.0, 1.0]
    """
    if isinstance(value, list | tuple):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        if "class" in value:
            parameters = {key: decode(item) for key, item in value["parameters"].items()}
            return _class_named(value["class"])(**parameters)
        if "mapping" in value:
            return {key: decode(item) for key, item in value["mapping"].items()}
        if "array" in value:
            flat = np.frombuffer(base64.b64decode(value["array"]), value["dtype"])
            return tf.constant(flat.reshape(value["shape"]))
        return tf.as_dtype(value["dtype"])
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"the distribution in the file is damaged, or of another version: {type(error).__name__}: {error}"
        ) from error


def _class_named(path: Any) -> type:
    """Returns the class that a file names; raises ValueError if `encode` would not write its name."""
    kind, _, name = path.partition(".") if isinstance(path, str) else ("", "", "")
    is_public = kind in _MODULES and name.isidentifier() and not name.startswith("_")
    found = getattr(_MODULES[kind], name, None) if is_public else None
    if isinstance(found, type) and issubclass(found, tfp.distributions.Distribution | tfp.bijectors.Bijector):
        return found
    raise ValueError(f"the file names {path!r}, which is no class of tfp.distributions or tfp.bijectors: not created.")


def fingerprint(value: Any) -> Hashable:
    """Returns a hashable key that is equal for two distributions or bijectors that are and stay interchangeable.

    They have the same classes, equal constants, and the same variables (as objects), since two variables of equal value
    may differ later. All other parameters, such as functions, must be the same object.

    >>> tfd = tfp.distributions
    >>> fingerprint(tfd.Normal([0.0, 1.0], 2.0)) == fingerprint(tfd.Normal(np.float32([0.0, 1.0]), 2.0))
    False
    >>> fingerprint(tfd.Normal([0.0, 1.0], 2.0)) == fingerprint(tfd.Normal([0.0, 1.0], 2.0))
    True
    >>> fingerprint(tfd.Normal(tf.Variable(0.0), 2.0)) == fingerprint(tfd.Normal(tf.Variable(0.0), 2.0))
    False
    """
    if isinstance(value, np.ndarray | np.generic) or (isinstance(value, tf.Tensor) and hasattr(value, "numpy")):
        array = np.asarray(value)
        return array.dtype.name, array.shape, array.tobytes()
    if value is None or isinstance(value, bool | int | float | str | tf.DType):
        return type(value), value
    if isinstance(value, tfp.distributions.Distribution | tfp.bijectors.Bijector) and value.parameters is not None:
        return type(value), fingerprint(dict(value.parameters))
    if isinstance(value, dict):
        return dict, tuple((key, fingerprint(value[key])) for key in sorted(value))
    if isinstance(value, list | tuple):
        return type(value), tuple(map(fingerprint, value))
    return type(value), id(value)


def _rebuilt(cls: type, parameters: dict[str, Any]) -> Any:
    return cls(**parameters)


def _reduced(distribution: tfp.distributions.Distribution) -> tuple[Any, ...]:
    return _rebuilt, (type(distribution), dict(distribution.parameters))


def _register_reducers() -> None:
    """Lets `copy` and `pickle` rebuild the TFP distributions whose classes cannot be created without arguments."""
    for cls in vars(tfp.distributions).values():
        if isinstance(cls, type) and issubclass(cls, tfp.distributions.Distribution) and "__new__" in vars(cls):
            for each in (cls, *cls.__bases__[:1]):  # `tfd.Sample(...)` is a tfd.Sample or a _Sample
                if issubclass(each, tfp.distributions.Distribution):
                    copyreg.pickle(each, _reduced)


_register_reducers()
