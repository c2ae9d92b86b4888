"""Exports a model as a SavedModel that loads with TensorFlow alone: energies, scores and a sampler.

The exported sampler is a chain of this package with a fixed kernel and the step size as an argument. By default it is
in graph mode, since XLA would compile it again for every batch size.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc
from tfp_ebm.arguments import check_kernel
from tfp_ebm.caller import warn
from tfp_ebm.energy.function import EnergyFunction
from tfp_ebm.energy.standardization import Coordinates
from tfp_ebm.files import written_atomically
from tfp_ebm.mcmc.frozen import TROUBLE_OF_PLAN, FrozenDraws
from tfp_ebm.mcmc.kernels import DEFAULT_KERNEL
from tfp_ebm.mcmc.noise_levels import frozen_descent
from tfp_ebm.mcmc.running.steps import last_state
from tfp_ebm.mcmc.sequential_monte_carlo import frozen_run
from tfp_ebm.model.default_draws import suits_sequential_monte_carlo
from tfp_ebm.networks.noise_levels import has_log_normalizer_zero, level_of
from tfp_ebm.networks.normalized import is_normalized
from tfp_ebm.tracing import graph_function

# Numbers of chains and steps of the run that adapts the step size of an adaptive kernel.
_ADAPTATION_CHAINS, _ADAPTATION_STEPS = 32, 120
# Names of the files and directories of a SavedModel.
_SAVED_MODEL = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra"}


def replaceable_directory(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns `path` as an absolute path if a SavedModel may be written there without overwriting other files.

    >>> replaceable_directory("no/such/directory").is_absolute()
    True
    """
    path = pathlib.Path(path).resolve()
    if path.exists() and not path.is_dir():
        raise ValueError(f"`filepath` must be a directory, but {path} is a file.")
    others = {entry.name for entry in path.iterdir()} - _SAVED_MODEL if path.is_dir() else set()
    if others:
        raise ValueError(
            f"`filepath` {path} holds other files than a SavedModel ({', '.join(sorted(others)[:3])}); it is not "
            "replaced."
        )
    return path


def export_saved_model(
    model: Any, filepath: str | os.PathLike[str], verbose: bool, kernel: Any, jit_compile: bool, condition: Any
) -> None:
    """Writes an `EnergyModel` as a SavedModel; the arguments are those of `EnergyModel.export`."""
    if kernel is not None:
        check_kernel(kernel)
    path, energy_function = replaceable_directory(filepath), model.energy_function
    base = model.base if model._has_base else None
    if condition is not None and not model.is_conditional:
        raise ValueError("`condition` must not be given: the network takes x alone.")
    samplers = exported_samplers(model, energy_function, base, kernel, jit_compile, condition)
    # TensorFlow Serving looks for `serve`, and for the first endpoint.
    endpoints = {"serve": model._endpoints.energy, **vars(model._endpoints), **samplers}
    with written_atomically(path) as temporary:
        write_saved_model(model, endpoints, temporary)
    if verbose:
        print(f"Saved model at {path}, with the endpoints {', '.join(endpoints)}.")


def write_saved_model(
    model: Any,
    endpoints: Mapping[str, tf.types.experimental.PolymorphicFunction],
    path: str | os.PathLike[str],
) -> None:
    """Writes compiled functions of a model, by name, to the directory `path`; the first is the default signature."""
    archive = keras.export.ExportArchive()
    archive.track(_weights_of(model) if model.is_conditional else model)
    checked = {id(function): _checks_shapes(function) for function in endpoints.values()}  # traced once for all names
    for name, function in endpoints.items():
        archive.add_endpoint(name, checked[id(function)])
    archive.write_out(str(path), verbose=False)  # its lines name a temporary directory


def _weights_of(model: Any) -> tf.Module:
    """Returns an object that has the weights of a model, and nothing else.

    From the model itself TensorFlow would export a function of its first input alone, which a conditional one is not.
    """
    holder = tf.Module()
    holder.weights = [weight.value for weight in model.weights]
    return holder


def _checks_shapes(
    function: tf.types.experimental.PolymorphicFunction,
) -> tf.types.experimental.PolymorphicFunction:
    """Returns the function with a check of the shapes of its signature at each call.

    TensorFlow does not check: `loaded.signatures["serving_default"](x=...)`, and hence TensorFlow Serving, pass any
    shape, and one column would broadcast to two.
    """
    if function.input_signature is None:  # the sampler, which has its own check
        return function

    def checked(*arguments: tf.Tensor) -> Any:
        pairs = zip(arguments, function.input_signature, strict=True)
        return function(*(tf.ensure_shape(argument, spec.shape) for argument, spec in pairs))

    return graph_function(checked, input_signature=function.input_signature)


@contextlib.contextmanager
def without_solves(energy_function: EnergyFunction) -> Iterator[None]:
    """Context in which an energy with a Gaussian base measure is traced without solving linear equations."""
    with contextlib.nullcontext() if energy_function.tilt is None else energy_function.tilt.without_solves():
        yield


def export_energy(model: Any, export: Callable[[], None], litert_path: str | os.PathLike[str] | None) -> None:
    """Exports the energy alone by Keras's own `export`.

    Args:
      model: the `EnergyModel`.
      export: calls Keras's `export`.
      litert_path: the path of the file if it is for LiteRT, else None.
    """
    x = tf.zeros((1, *model.event_shape), model.dtype)
    spec = model.energy_function.condition_spec
    model([x, tf.zeros((1, *spec.shape), spec.dtype)] if model.is_conditional else x)  # Keras exports what was called
    with without_solves(model.energy_function):
        export()
    if litert_path is not None:
        check_litert(litert_path)


def check_litert(path: str | os.PathLike[str]) -> None:
    """Runs a LiteRT file once, and removes it if the interpreter fails.

    Loading is not sufficient, because a missing operation is detected only at run time.

    Raises:
      RuntimeError: if the file was removed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorFlow warns that its interpreter moves to another package
            interpreter = tf.lite.Interpreter(str(path))
        interpreter.allocate_tensors()
        for given in interpreter.get_input_details():
            interpreter.set_tensor(given["index"], np.zeros(given["shape"], given["dtype"]))
        interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        pathlib.Path(path).unlink()
        # TensorFlow's own operations carry this prefix
        missing = sorted(set(re.findall(r"Flex(\w+)", str(error)))) or [str(error).strip().splitlines()[0]]
        raise RuntimeError(
            f"`format` 'litert' cannot hold this energy, because LiteRT lacks one of its operations: "
            f"{', '.join(missing)}. Nothing was written; format='tf_saved_model' supports all TensorFlow operations."
        ) from error


def exact_sampler(model: Any) -> tf.types.experimental.PolymorphicFunction:
    """Returns the function (num_samples, seed) to exact samples `[num_samples, *event]` of a `NormalizedEnergy`."""
    network, standardization = model.network, model.standardization
    signature = [tf.TensorSpec((), tf.int32, name="num_samples"), tf.TensorSpec((2,), tf.int32, name="seed")]

    def draw(num_samples: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return standardization.to_x(network.draw(num_samples, seed))

    return graph_function(draw, input_signature=signature)


def exact_conditional_sampler(model: Any) -> tf.types.experimental.PolymorphicFunction:
    """Returns the function (condition, seed) to one exact sample `[rows, *event]` for each condition."""
    network, standardization, spec = model.network, model.standardization, model.energy_function.condition_spec
    signature = [
        tf.TensorSpec((None, *spec.shape), spec.dtype, name="condition"),
        tf.TensorSpec((2,), tf.int32, name="seed"),
    ]

    def draw(condition: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return standardization.to_x(network.draw_given(condition, seed))

    return graph_function(draw, input_signature=signature)


def exported_samplers(
    model: Any,
    energy_function: EnergyFunction,
    base: tfp.distributions.Distribution | None,
    kernel: Any,
    jit_compile: bool,
    condition: Any = None,
) -> dict[str, tf.types.experimental.PolymorphicFunction]:
    """Returns the endpoints that draw samples, by name, and that of the log density where it is known exactly.

    Args:
      model: the `EnergyModel`.
      energy_function, base: see `exported_sampler`.
      kernel: see `exported_sampler`; None: the default, and sequential Monte Carlo where the base allows it, or exact
        samples if the network draws them.
      jit_compile, condition: see `exported_sampler`.
    """
    if energy_function.is_conditional:
        if kernel is None and getattr(model.network, "is_normalized", False) and model.base_measure is None:
            return exact_endpoints(model, exact_conditional_sampler(model))
        kernel = DEFAULT_KERNEL if kernel is None else kernel
        return {"sample": exported_sampler(energy_function, base, kernel, jit_compile, condition)}
    if kernel is None and is_normalized(model):
        return exact_endpoints(model, exact_sampler(model))
    if kernel is not None:
        return {"sample": exported_sampler(energy_function, base, kernel, jit_compile)}
    samplers = {"sample": exported_sampler(energy_function, base, DEFAULT_KERNEL, jit_compile)}
    if has_log_normalizer_zero(model):
        samplers["log_prob"] = model._endpoints.unnormalized_log_prob
    level = level_of(model)
    if level is not None and level[1] < level[0].sigma_max:
        of_levels = level[0].unnormalized_log_prob
        samplers["draw"] = particle_draws(energy_function, of_levels, *frozen_descent(*level), level[0].to_state)
    elif suits_sequential_monte_carlo(base):
        target, start = energy_function.unnormalized_log_prob, Coordinates.of(energy_function)
        frozen = frozen_run(target, start.distribution_in_chain(base))
        samplers["draw"] = particle_draws(energy_function, target, *frozen)
    return samplers


def particle_draws(
    energy_function: EnergyFunction, target: Any, frozen: Any, drawn: mcmc.Draws, to_state: Any = tf.identity
) -> tf.types.experimental.PolymorphicFunction:
    """Returns the endpoint draw(num_samples, seed), a dictionary: particles that follow the plan of a run, as judged.

    `states` are `[num_samples, *event]`, in passes of 1024 particles; `log_normalizer` is log Ẑ, where the mean of Ẑ is
    Z, with its `standard_error`; `trouble` is 0 or a sum of 1: the run had trouble; 2: estimates of Z from groups of
    particles disagree; 4: the particles descend from few draws of the base; 8: nested R-hat is too large. Base,
    temperatures or noise levels, and step sizes are those of the run. A warning gives its verdict, unless it is empty.

    Args:
      energy_function: E_z, with its standardisation.
      target: −E_z, or that at all noise levels, of states and their noise scales.
      frozen: the plan, of `frozen_run` or `frozen_descent`.
      drawn: the draws of its run.
      to_state: z of the particles.
    """
    coordinates = Coordinates.of(energy_function)
    if drawn.trouble:
        warn(f"The endpoint `draw` may not have the distribution of the energy. {' '.join(drawn.trouble)}")
    count, words = tf.TensorSpec((), tf.int32, name="num_samples"), tf.TensorSpec((2,), tf.int32, name="seed")

    def draw(num_samples: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        check = tf.debugging.assert_positive(num_samples, "`num_samples` must be at least 1.")
        with tf.control_dependencies([] if check is None else [check]):
            num_samples = tf.identity(num_samples)
        found = frozen.draw(target, num_samples, seed)
        states = to_state(tf.reshape(found.states, [-1, *energy_function.event_shape]))
        trouble = found.trouble + TROUBLE_OF_PLAN * int(bool(drawn.trouble))
        return found._replace(states=coordinates.from_chain(states), trouble=trouble)._asdict()

    return graph_function(draw, input_signature=[count, words])


def exact_endpoints(
    model: Any, sampler: tf.types.experimental.PolymorphicFunction
) -> dict[str, tf.types.experimental.PolymorphicFunction]:
    """Returns the endpoints of a density with log Z = 0, by name."""
    return {"log_prob": model._endpoints.unnormalized_log_prob, "sample": sampler, "draw": of_exact(sampler)}


def of_exact(sampler: tf.types.experimental.PolymorphicFunction) -> tf.types.experimental.PolymorphicFunction:
    """Returns the endpoint `draw` of exact samples: the same dictionary as `particle_draws` has, with log Z = 0."""

    def draw(*arguments: tf.Tensor) -> dict[str, tf.Tensor]:
        exact = tf.zeros([], tf.float64)
        return FrozenDraws(sampler(*arguments), exact, exact, tf.constant(0))._asdict()

    return graph_function(draw, input_signature=sampler.input_signature)


def exported_sampler(
    energy_function: EnergyFunction,
    base: tfp.distributions.Distribution | None,
    kernel: Any,
    jit_compile: bool,
    condition: Any = None,
) -> tf.types.experimental.PolymorphicFunction:
    """Returns sample(initial_state, seed, num_steps, step_size=...), traced with and without the optional step size.

    That of a network with conditions is sample(initial_state, condition, seed, num_steps, step_size=...).

    Args:
      energy_function: E_z, with its standardisation.
      base: the base from which the adaptation of an adaptive kernel starts; None keeps the kernel's initial step size.
      kernel: a kernel of `ebm.mcmc`, or any callable `target -> tfp.mcmc.TransitionKernel`.
      jit_compile: whether XLA compiles the sampler.
      condition: conditions of the adaptation, for a network that takes some; None keeps the initial step size.
    """
    coordinates, dtype = Coordinates.of(energy_function), energy_function.dtype
    is_conditional, spec = energy_function.is_conditional, energy_function.condition_spec
    settled: Any = ()
    if isinstance(kernel, mcmc.Kernel):
        kernel = kernel.in_coordinates(coordinates.standardization)
        settled = kernel.initial_step_size
        if kernel.is_adaptive:
            if base is not None and not (is_conditional and condition is None):
                settled = _adapted_step_size(energy_function, base, kernel, condition)
            kernel = kernel.unadapted
        settled = tf.nest.map_structure(lambda step: np.asarray(step, dtype), settled)
        kernel = kernel.without_step_size

    def run(
        function: EnergyFunction, initial_state: tf.Tensor, seed: tf.Tensor, num_steps: tf.Tensor, step_size: Any
    ) -> tf.Tensor:
        initial_state = tf.ensure_shape(initial_state, state.shape)
        seed, num_steps = tf.ensure_shape(seed, [2]), tf.ensure_shape(num_steps, [])
        step_size = tf.nest.map_structure(tf.constant, settled) if step_size is None else step_size
        target, z = function.unnormalized_log_prob, coordinates.to_chain(initial_state)
        return coordinates.from_chain(last_state(target, kernel, z, step_size, seed, num_steps))

    def sample(initial_state: tf.Tensor, seed: tf.Tensor, num_steps: tf.Tensor, step_size: Any = None) -> tf.Tensor:
        return run(energy_function, initial_state, seed, num_steps, step_size)

    def sample_given(
        initial_state: tf.Tensor, condition: tf.Tensor, seed: tf.Tensor, num_steps: tf.Tensor, step_size: Any = None
    ) -> tf.Tensor:
        condition = tf.ensure_shape(condition, [None, *spec.shape])
        number = tf.shape(initial_state)[0]
        check = tf.debugging.assert_equal(
            tf.shape(condition)[0], number, "`condition` must have one row for each state."
        )
        with tf.control_dependencies([] if check is None else [check]):
            given = energy_function.with_condition(tf.identity(condition))
        return run(given, initial_state, seed, num_steps, step_size)

    function = graph_function(sample_given if is_conditional else sample, jit_compile=jit_compile)
    state = tf.TensorSpec((None, *energy_function.event_shape), dtype, name="initial_state")
    arguments = [state, tf.TensorSpec((2,), tf.int32, name="seed"), tf.TensorSpec((), tf.int32, name="num_steps")]
    if is_conditional:
        arguments.insert(1, tf.TensorSpec((None, *spec.shape), spec.dtype, name="condition"))
    function.get_concrete_function(*arguments)
    if tf.nest.flatten(settled):
        steps = tf.nest.map_structure(lambda step: tf.TensorSpec(step.shape, dtype, name="step_size"), settled)
        function.get_concrete_function(*arguments, step_size=steps)
    return function


def _adapted_step_size(
    energy_function: EnergyFunction, base: tfp.distributions.Distribution, kernel: mcmc.Kernel, condition: Any
) -> Any:
    start = base.sample(_ADAPTATION_CHAINS, seed=tf.constant([0, 0]))
    z = Coordinates.of(energy_function).to_chain(start)
    if condition is not None:
        rank = len(energy_function.condition_spec.shape)
        rows = np.asarray(condition).reshape(-1, *np.shape(condition)[np.ndim(condition) - rank :])
        rows = rows[np.arange(_ADAPTATION_CHAINS) % len(rows)]
        energy_function = energy_function.with_condition(energy_function.condition_of_rows(rows, z))
    samples = mcmc.sample(
        energy_function.unnormalized_log_prob,
        z,
        kernel,
        num_results=1,
        num_burnin_steps=_ADAPTATION_STEPS,
        seed=1,
        jit_compile=False,
    )
    return samples.step_size
