"""Checks that an energy E and a log density −E are not confused, which would silently give exp(+E).

A plain function does not show which of the two it is. An object that does show it raises an error if it is used in the
wrong place: `mcmc` takes log densities, everything else takes energies.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.energy.function import BaseTilt, EnergyFunction

# Methods of a layer, a model or an energy function that return an energy, or the gradient of one.
_ENERGY_METHODS = {"__call__", "call", "energy", "network_term", "predict", "predict_on_batch", "predict_step", "score"}
_DENSITY_METHODS = {"log_prob", "prob", "unnormalized_log_prob"}
_ENERGIES = (keras.layers.Layer, EnergyFunction, BaseTilt)


def _innermost(function: Any) -> Any:
    """Returns the function that a `functools.partial` or a `tf.function` calls."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, tf.types.experimental.PolymorphicFunction):
            function = function.python_function
        else:
            return function


def _owner_and_name(function: Any) -> tuple[Any, str]:
    """Returns the object of a bound method and the method's name; (None, "") for anything else."""
    owner = getattr(function, "__self__", None)
    return (None, "") if owner is None else (owner, str(getattr(function, "__name__", "")))


def _as_text(function: Any, owner: Any, method: str) -> str:
    described = type(function if owner is None else owner).__name__
    name = getattr(function if owner is None else owner, "name", None)
    described += f" {name!r}" if isinstance(name, str) else ""
    return described if owner is None else f"the method `{method}` of {described}"


def is_energy(function: Any) -> bool:
    """Returns whether `function` is known to return an energy (or a score) and not a log density.

    >>> is_energy(keras.layers.Dense(1)), is_energy(keras.layers.Dense(1).call), is_energy(lambda x: x)
    (True, True, False)
    """
    function = _innermost(function)
    owner, method = _owner_and_name(function)
    if isinstance(function, _ENERGIES):
        return True
    return isinstance(owner, _ENERGIES) and method in _ENERGY_METHODS


def check_target(target: Any, name: str = "target_log_prob_fn") -> Callable[..., tf.Tensor]:
    """Returns `target` if it may be a log density; for a distribution, its `unnormalized_log_prob`.

    Args:
      target: a callable log density up to a constant, or a `tfp.distributions.Distribution`.
      name: the argument's name, for the error messages.

    Raises:
      TypeError: if `target` is known to be an energy, which has the opposite sign, or if it is not callable.

    >>> check_target(tfp.distributions.Normal(0.0, 1.0))(0.0).shape
    TensorShape([])
    """
    if isinstance(target, tfp.distributions.Distribution):
        return target.unnormalized_log_prob
    if not callable(target):
        raise TypeError(f"`{name}` must be a callable log density, got {target!r}.")
    if is_energy(target):
        inner = _innermost(target)
        owner, method = _owner_and_name(inner)
        holder = inner if owner is None else owner
        if hasattr(holder, "unnormalized_log_prob"):
            variable = "energy_function" if isinstance(holder, EnergyFunction) else "model"
            cure = f"`{variable}.unnormalized_log_prob`"
        else:
            cure = "`ebm.EnergyModel(network).unnormalized_log_prob`, or a function that returns −E(x)"
        raise TypeError(
            f"`{name}` must be a log density, −E(x) up to a constant, got {_as_text(inner, owner, method)}, which is "
            f"{'a gradient' if method == 'score' else 'an energy'}: pass {cure}."
        )
    return target


def check_energy(energy_fn: Any, name: str = "energy_fn") -> None:
    """Raises TypeError if `energy_fn` is known to be a log density, such as `log_prob` of a model or distribution.

    >>> check_energy(lambda x: x)
    """
    inner = _innermost(energy_fn)
    owner, method = _owner_and_name(inner)
    if isinstance(owner, (*_ENERGIES, tfp.distributions.Distribution)) and method in _DENSITY_METHODS:
        raise TypeError(
            f"`{name}` must be an energy, got {_as_text(inner, owner, method)}, which is a density: pass the object "
            "itself, or a function that returns −log p(x)."
        )
