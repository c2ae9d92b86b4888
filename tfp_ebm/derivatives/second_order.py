"""Score, Hessian-vector products, directional second derivatives and Laplacians of an energy.

Score matching (eq. 44) needs tr ∇²ₓE, and sliced score matching (eqs. 53-57) needs vᵀ∇²ₓE v for a few directions v.
There are two ways to compute them. Forward mode (`forward_laplacian`) reads the network's graph layer by layer and
propagates K directions through it, so one pass gives energy, score and exact Laplacian. Reverse mode (`reverse`) uses
nested tapes, with one backward pass for each direction, and works for any differentiable function. Both give the same
values; `auto` uses forward mode for each term for which it is possible.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfp_ebm.arguments import check_choice, check_count
from tfp_ebm.derivatives.energies import as_energy, as_floating
from tfp_ebm.derivatives.engine import Problem, along, pose, trace_in_chunks, unit_directions
from tfp_ebm.derivatives.failures import naming_the_layer
from tfp_ebm.derivatives.faults import refuse_faulty_layers
from tfp_ebm.derivatives.reverse import gradient_of_energy
from tfp_ebm.memory import naming_memory
from tfp_ebm.random import rademacher, stateless_seed

_CURVATURE = "The curvature of the energy"
_FEWER_ROWS = "pass fewer rows at a time"
METHODS = ("auto", "forward", "reverse", "hutchinson")


@naming_memory(_FEWER_ROWS)
def score(energy_fn: Any, x: Any) -> tf.Tensor:
    """Computes the score ∇ₓ log p(x) = −∇ₓE(x), which does not need log Z, since log Z does not depend on x.

    Args:
      energy_fn: E: a callable mapping `[..., *event]` to `[...]`, a Keras network, or an `EnergyModel`.
      x: floating-point states `[..., *event]`.

    Returns:
      The score, of the shape of `x`.

    Raises:
      TypeError: if `x` does not hold floating-point numbers.
      ValueError: if E is not differentiable in x.

    References:
      Hyvärinen, Estimation of non-normalized statistical models by score matching, JMLR 2005.

    >>> score(lambda x: 0.5 * tf.reduce_sum(x**2, -1), [[1.0, -2.0]]).numpy().tolist()
    [[-1.0, 2.0]]
    """
    x = as_floating(energy_fn, x)
    energy = as_energy(energy_fn, x)
    if energy.event_shape is None:  # a plain callable accepts any leading dimensions
        return -gradient_of_energy(energy, x)[1]
    problem = _checked(pose(energy_fn, x), "The score", order=1)
    return problem.restore(-gradient_of_energy(problem.energy, problem.x)[1])


def _checked(problem: Problem, purpose: str, order: int) -> Problem:
    """Returns `problem`, or raises if a layer's derivatives up to `order` are silently wrong."""
    inputs = [tf.TensorSpec([None, *problem.event_shape], problem.x.dtype)]
    for term in problem.energy.terms:
        refuse_faulty_layers(term.source, purpose, problem.energy.training, order, inputs)
    return problem


def _pose_twice(energy_fn: Any, x: Any) -> Problem:
    """Like `pose`, but first rejects layers whose second derivatives are silently wrong."""
    return _checked(pose(energy_fn, x), _CURVATURE, order=2)


@naming_memory(_FEWER_ROWS)
def hvp(energy_fn: Any, x: Any, v: Any) -> tf.Tensor:
    """Computes the Hessian-vector product ∇²ₓE(x) v by reverse over reverse mode; its cost does not grow with d.

    Args:
      energy_fn: E: a callable mapping `[..., *event]` to `[...]`, a Keras network, or an `EnergyModel`.
      x: floating-point states `[..., *event]`.
      v: vectors of the shape of `x`.

    Returns:
      ∇²ₓE(x) v, of the shape of `x`.

    Raises:
      TypeError, ValueError: as for `score`; ValueError if `v` has another shape than `x`, or for a layer of the network
        whose second derivatives are silently wrong (for example, Keras's LayerNormalization).

    References:
      Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 1994.

    >>> hvp(lambda x: tf.reduce_sum(x**3, -1), [[1.0, -2.0]], [[1.0, 1.0]]).numpy().tolist()
    [[6.0, -12.0]]
    """
    problem = _pose_twice(energy_fn, x)
    v = _directions(v, as_floating(energy_fn, x), allow_several=False)
    v = problem.flatten(v[tf.newaxis])[0]
    zero = tf.UnconnectedGradients.ZERO
    with naming_the_layer(energy_fn, _CURVATURE):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(problem.x)
            _, gradient = gradient_of_energy(problem.energy, problem.x)
        product = tape.gradient(gradient, problem.x, output_gradients=v, unconnected_gradients=zero)
    return problem.restore(product)


def _directions(v: Any, x: tf.Tensor, allow_several: bool = True) -> tf.Tensor:
    v = tf.convert_to_tensor(v, dtype_hint=x.dtype)
    several = allow_several and v.shape.rank == x.shape.rank + 1
    if v.dtype != x.dtype:
        raise TypeError(f"`v` must have the dtype of `x`, {x.dtype.name}, got {v.dtype.name}.")
    if v.shape.rank != x.shape.rank + several or not v.shape[int(several) :].is_compatible_with(x.shape):
        expected = f"the shape of `x`, {tuple(x.shape)}" + (
            ", or that shape with one more leading axis" * allow_several
        )
        raise ValueError(f"`v` must have {expected}, got {tuple(v.shape)}.")
    return v


@naming_memory(_FEWER_ROWS)
def directional_derivatives(
    energy_fn: Any, x: Any, v: Any, method: str = "auto"
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes E, v·∇ₓE and vᵀ∇²ₓE v: value, slope and curvature of the energy along straight lines (eqs. 53-57).

    Args:
      energy_fn: E: a callable mapping `[..., *event]` to `[...]`, a Keras network, or an `EnergyModel`.
      x: floating-point states `[..., *event]`.
      v: directions, of the shape of `x` (one for each state) or `[K, ..., *event]` (K for each state).
      method: "auto", "forward" or "reverse", see `laplacian`.

    Returns:
      `(E [...], slopes, curvatures)`; slopes and curvatures are `[...]`, or `[K, ...]` for K directions.

    Raises:
      TypeError, ValueError: as for `hvp`; ValueError if `method` is "forward" but forward mode is impossible.

    References:
      Song, Garg, Shi & Ermon, Sliced score matching, UAI 2019.

    >>> energy, slope, bend = directional_derivatives(lambda x: tf.reduce_sum(x**3, -1), [[1.0, 2.0]], [[1.0, -1.0]])
    >>> energy.numpy().item(), slope.numpy().item(), bend.numpy().item()
    (9.0, -9.0, 18.0)
    """
    energy, gradient, bends = energy_score_curvature(energy_fn, x, v, method)
    gradient = -gradient
    event_axes = list(range(energy.shape.rank - gradient.shape.rank, 0))
    return energy, tf.reduce_sum(gradient * v, event_axes), bends


@naming_memory(_FEWER_ROWS)
def energy_score_curvature(
    energy_fn: Any, x: Any, v: Any, method: str = "auto"
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes E, the score −∇ₓE and vᵀ∇²ₓE v together, as variance-reduced sliced score matching needs (eqs. 53-57).

    Args:
      energy_fn: E: a callable mapping `[..., *event]` to `[...]`, a Keras network, or an `EnergyModel`.
      x: floating-point states `[..., *event]`.
      v: directions, of the shape of `x` (one for each state) or `[K, ..., *event]` (K for each state).
      method: "auto", "forward" or "reverse", see `laplacian`.

    Returns:
      `(E [...], score [..., *event], vᵀ∇²ₓE v [...] or [K, ...])`.

    Raises:
      TypeError, ValueError: see `directional_derivatives`.

    >>> _, s, bend = energy_score_curvature(lambda x: tf.reduce_sum(x**3, -1), [[1.0, 2.0]], [[1.0, -1.0]])
    >>> s.numpy().tolist(), bend.numpy().item()
    ([[-3.0, -12.0]], 18.0)
    """
    check_choice("method", method, ("auto", "forward", "reverse"))
    problem = _pose_twice(energy_fn, x)
    state = as_floating(energy_fn, x)
    v = _directions(v, state)
    several = v.shape.rank > state.shape.rank
    directions = problem.flatten(v if several else v[tf.newaxis])
    with naming_the_layer(energy_fn, _CURVATURE):
        energy, gradient, bends = along(problem, directions, method, per_direction=True)
    bends = problem.restore(bends, 1)
    return problem.restore(energy), problem.restore(-gradient), bends if several else bends[0]


@naming_memory(f"{_FEWER_ROWS}, or a smaller `chunk_size`")
def energy_score_laplacian(
    energy_fn: Any,
    x: Any,
    method: str = "auto",
    chunk_size: int | None = None,
    *,
    num_probes: int = 1,
    seed: Any = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes E, the score −∇ₓE and the Laplacian tr ∇²ₓE together, as exact score matching needs them (eq. 44).

    Args:
      energy_fn: E: a callable mapping `[..., *event]` to `[...]`, a Keras network, or an `EnergyModel`.
      x: floating-point states `[..., *event]`.
      method: see `laplacian`.
      chunk_size: see `laplacian`.
      num_probes: see `laplacian`.
      seed: see `laplacian`.

    Returns:
      `(E [...], score [..., *event], Laplacian of E [...])`. The Laplacian of log p is its negative.

    Raises:
      TypeError, ValueError: see `laplacian`.

    >>> energy, s, trace = energy_score_laplacian(lambda x: tf.reduce_sum(x**3, -1), [[1.0, 2.0]])
    >>> energy.numpy().item(), s.numpy().tolist(), trace.numpy().item()
    (9.0, [[-3.0, -12.0]], 18.0)
    """
    check_choice("method", method, METHODS)
    problem = _pose_twice(energy_fn, x)
    with naming_the_layer(energy_fn, _CURVATURE):
        energy, gradient, trace = _with_trace(problem, method, chunk_size, num_probes, seed)
    return problem.restore(energy), problem.restore(-gradient), problem.restore(trace)


def _sign_vectors(x: tf.Tensor, count: int, step: int, seed: tf.Tensor) -> tf.Tensor:
    """Draws `count` sign vectors per state, in chunks `[chunks, step, *shape of x]`; the last is padded with zeros."""
    chunks = -(-count // step)
    signs = rademacher(tf.concat([[count], tf.shape(x)], 0), seed, x.dtype)
    signs = tf.pad(signs, [[0, chunks * step - count], *[[0, 0]] * x.shape.rank])
    return tf.ensure_shape(tf.reshape(signs, tf.concat([[chunks, step], tf.shape(x)], 0)), [chunks, step, *x.shape])


def _with_trace(
    problem: Problem, method: str, chunk_size: int | None, num_probes: int, seed: Any
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes E, ∇E and tr ∇²E at flat states."""
    size = math.prod(problem.event_shape)
    if method == "hutchinson":
        size = check_count("num_probes", num_probes)
        step = size if chunk_size is None else min(check_count("chunk_size", chunk_size), size)
        probes = _sign_vectors(problem.x, size, step, stateless_seed(seed))
        energy, gradient = gradient_of_energy(problem.energy, problem.x)
        trace = trace_in_chunks(problem, "auto", probes.shape[0], lambda i: probes[i]) / size
    else:
        step = size if chunk_size is None else min(check_count("chunk_size", chunk_size), size)
        if step == size:
            energy, gradient, trace = along(problem, unit_directions(problem), method)
        else:
            energy, gradient = gradient_of_energy(problem.energy, problem.x)
            trace = trace_in_chunks(
                problem, method, -(-size // step), lambda i: unit_directions(problem, i * step, step)
            )
    return energy, gradient, trace


@naming_memory(f"{_FEWER_ROWS}, or a smaller `chunk_size`")
def laplacian(
    energy_fn: Any,
    x: Any,
    method: str = "auto",
    chunk_size: int | None = None,
    *,
    num_probes: int = 1,
    seed: Any = None,
) -> tf.Tensor:
    """Computes the Laplacian tr ∇²ₓE(x) of the energy (the Laplacian of log p is its negative), for any event shape.

    Args:
      energy_fn: E: a callable mapping `[..., *event]` to `[...]`, a Keras network, or an `EnergyModel`.
      x: floating-point states `[..., *event]`.
      method: "forward" propagates directions through the layers of a network, and raises if a layer has no rule;
        "reverse" uses one backward pass for each coordinate, and works for any function; "auto" uses forward mode where
        possible (see `explain`), with the same values; "hutchinson" estimates the trace by the mean of vᵀ∇²ₓE v over
        random signs v, without bias and with variance 2 Σ_{i≠j} (∂ᵢ∂ⱼE)² / num_probes.
      chunk_size: number of directions processed at once; None for all. Memory use, including that of parameter
        gradients, is that of one chunk; in return, gradients compute each chunk twice.
      num_probes: number of random directions of "hutchinson".
      seed: an int or two ints; required for "hutchinson".

    Returns:
      tr ∇²ₓE, `[...]`.

    Raises:
      TypeError: if `x` does not hold floating-point numbers, or "hutchinson" has no seed.
      ValueError: for an unknown method, a chunk size below 1, states of the wrong shape, a layer without a rule in
        "forward" mode (names the layer, and explains how to add a rule), or a layer whose second derivatives are
        silently wrong (names the layer and a replacement).

    References:
      Li et al., A computational framework for neural network-based variational Monte Carlo with Forward Laplacian,
      Nature Machine Intelligence 2024. Hutchinson, A stochastic estimator of the trace of the influence matrix for
      Laplacian smoothing splines, 1990.

    >>> laplacian(lambda x: tf.reduce_sum(x**3, -1), [[1.0, 2.0]]).numpy().tolist()
    [18.0]
    """
    return energy_score_laplacian(energy_fn, x, method, chunk_size, num_probes=num_probes, seed=seed)[2]
