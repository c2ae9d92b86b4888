"""Derivatives of an energy along directions, in forward or reverse mode for each term, optionally in chunks.

A term is differentiated in forward mode if it can be, unless reverse mode is requested. The results of all terms (E,
∇E and second derivatives along directions) are added.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_ebm.derivatives.chunks import map_over_chunks, sum_over_chunks
from tfp_ebm.derivatives.energies import Energy, Term, as_energy, as_floating, as_vector
from tfp_ebm.derivatives.forward_laplacian import NoForwardRule, no_rule, propagate
from tfp_ebm.derivatives.jet import Jet, derivatives_along
from tfp_ebm.derivatives.reverse import UNROLLED, gradient_of_energy, reverse_jet


class Problem(NamedTuple):
    """An energy and flat states `[batch, *event]` (for a plain callable, states keep their leading dimensions)."""

    energy: Energy
    x: tf.Tensor
    leading: tf.Tensor
    static_leading: tf.TensorShape
    event_shape: tuple[int, ...]

    def restore(self, t: tf.Tensor, before: int = 0) -> tf.Tensor:
        """Restores the leading dimensions of `t`, `[*before, batch, *after]`."""
        batch_rank = self.x.shape.rank - len(self.event_shape)
        if batch_rank == self.static_leading.rank:
            return t
        shape = tf.shape(t)
        restored = tf.reshape(t, tf.concat([shape[:before], self.leading, shape[before + 1 :]], 0))
        return tf.ensure_shape(restored, [*t.shape[:before], *self.static_leading, *t.shape[before + 1 :]])

    def flatten(self, v: tf.Tensor) -> tf.Tensor:
        """Reshapes `[K, ..., *event]` to `[K, batch, *event]`."""
        if self.x.shape.rank == v.shape.rank - 1:
            return v
        count = v.shape[0] if v.shape[0] is not None else tf.shape(v)[0]
        return tf.reshape(v, [count, -1, *self.event_shape])


def pose(energy_fn: Any, x: Any) -> Problem:
    """Returns an energy together with its states, flattened; raises if they do not fit."""
    x = as_floating(energy_fn, x)
    energy = as_energy(energy_fn, x)
    expected = energy.event_shape
    if expected is None:
        energies = tf.convert_to_tensor(energy(x))
        rank = energies.shape.rank
        if rank is None or rank >= x.shape.rank or not energies.shape.is_compatible_with(x.shape[:rank]):
            raise ValueError(
                "`energy_fn` must map [..., *event] to [...], one energy per state, "
                f"but it maps shape {tuple(x.shape)} to {tuple(energies.shape)}."
            )
        split = rank
    else:
        split = x.shape.rank - len(expected)
    if split < 0 or (expected is not None and not x.shape[split:].is_compatible_with(expected)):
        raise ValueError(f"`x` must have shape [..., {', '.join(map(str, expected or ()))}], got {tuple(x.shape)}.")
    event_shape = x.shape[split:]
    if not event_shape.is_fully_defined():
        raise ValueError(f"`x` must have a known event shape, got {tuple(x.shape)}, from axis {split} on.")
    leading, static_leading = tf.shape(x)[:split], x.shape[:split]
    if expected is not None and split != 1:
        x = tf.reshape(x, [-1, *event_shape])
    return Problem(energy, x, leading, static_leading, tuple(event_shape))


def _forward(
    term: Term, x: tf.Tensor, directions: tf.Tensor, per_direction: bool, training: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes E, ∇E and second derivatives of a term in forward mode."""

    def energy(jet: Jet) -> Jet:
        jet = propagate(term.source, term.inward(jet), training=training)
        return (jet if term.dtype is None else jet.cast(term.dtype)).linear(as_vector)

    if term.unit is None:
        return derivatives_along(energy, x, directions, per_direction)
    unit = term.unit()
    value, gradient, second = derivatives_along(energy, x, unit * directions, per_direction)
    return value, gradient, second / unit**2


def unit_directions(problem: Problem, first: Any = 0, count: int | None = None) -> tf.Tensor:
    """Returns unit vectors `[count, 1.., *event]`, starting with number `first`; zeros after the last."""
    size = math.prod(problem.event_shape)
    count = size if count is None else count
    ones = [1] * (problem.x.shape.rank - len(problem.event_shape))
    rows = tf.one_hot(first + tf.range(count), size, dtype=problem.x.dtype)
    return tf.reshape(rows, [count, *ones, *problem.event_shape])


def along(
    problem: Problem, directions: tf.Tensor, method: str, per_direction: bool = False
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes E, ∇E and second derivatives along directions, term by term."""
    x, energy = problem.x, problem.energy
    parts = []
    for term in energy.terms:
        try:
            if method == "reverse" or x.shape.rank != 1 + len(problem.event_shape):
                raise no_rule(term.source, "is to be differentiated in reverse mode")
            parts.append(_forward(term, x, directions, per_direction, energy.training))
        except NoForwardRule:
            if method == "forward":
                raise
            parts.append(_reverse(term, x, directions, per_direction, energy.training))
    energies, gradients, seconds = zip(*parts, strict=True)
    return energy.total(energies), sum(gradients[1:], gradients[0]), sum(seconds[1:], seconds[0])


def _reverse(
    term: Term, x: tf.Tensor, directions: tf.Tensor, per_direction: bool, training: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes E, ∇E and second derivatives of a term in reverse mode.

    Many directions are processed in chunks, each of which runs the network again. A loop over the backward passes of a
    single run would take fewer operations, but XLA cannot compile its gradient for every layer.
    """
    count = directions.shape[0]
    if count is None or count <= UNROLLED or not _can_run_again(term.source, training):
        return reverse_jet(term.function, x, directions, per_direction)
    energy, gradient = gradient_of_energy(term.function, x)
    chunks = -(-count // UNROLLED)
    padded = tf.pad(directions, [[0, chunks * UNROLLED - count], *[[0, 0]] * x.shape.rank])
    batches = tf.reshape(padded, tf.concat([[chunks, UNROLLED], tf.shape(directions)[1:]], 0))
    batches = tf.ensure_shape(batches, [chunks, UNROLLED, *directions.shape[1:]])

    def of_chunk(x: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
        return reverse_jet(term.function, x, v, True)[2]

    second = map_over_chunks(of_chunk, x, batches)
    second = tf.reshape(second, [chunks * UNROLLED, -1])[:count]
    second = tf.ensure_shape(second, [count, *x.shape[:1]])
    return energy, gradient, second if per_direction else tf.reduce_sum(second, 0)


def _can_run_again(source: Any, training: bool) -> bool:
    """Returns whether a term has the same value when computed again: a network that draws no noise, on one device."""
    if not isinstance(source, keras.Layer) or tf.distribute.get_strategy().num_replicas_in_sync > 1:
        return False
    return not (training and _draws_noise(source))


def _draws_noise(network: keras.Layer) -> bool:
    return any(hasattr(layer, "seed_generator") for layer in network._flatten_layers())


def trace_in_chunks(
    problem: Problem, method: str, num_chunks: int, directions: Callable[[Any], tf.Tensor]
) -> tf.Tensor:
    """Computes Σₖ vₖᵀ∇²E vₖ, chunk by chunk for networks.

    Plain callables are not recomputed in the gradient, because the gradient could miss tensors that they capture.
    """
    energy, traces = problem.energy, []
    for term in energy.terms:
        part = problem._replace(energy=dataclasses.replace(energy, terms=(term,), offset=None))
        if num_chunks > 1 and isinstance(term.source, keras.Layer):
            if energy.training and _draws_noise(term.source):
                raise ValueError(
                    "`chunk_size` must be None for a network that draws noise in training mode: "
                    f"each chunk would draw its own, got {num_chunks} chunks."
                )
            chunk = functools.partial(_trace_of_chunk, part, method, directions)
            traces.append(sum_over_chunks(chunk, problem.x, num_chunks))
        else:
            every = tf.concat([directions(i) for i in range(num_chunks)], 0)
            traces.append(along(part, every, method)[2])
    return tf.add_n(traces)


def _trace_of_chunk(
    problem: Problem, method: str, directions: Callable[[Any], tf.Tensor], x: tf.Tensor, i: tf.Tensor
) -> tf.Tensor:
    return along(problem._replace(x=x), directions(i), method)[2]
