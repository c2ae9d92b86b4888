"""`GivenConditions`: the distributions p(x | c) of a conditional model for a batch of conditions c.

    p(x | cᵢ) = exp(−E(x; cᵢ)) / Zᵢ        (eq. 1, with one Z for each condition)

Draws by sequential Monte Carlo take one condition after the other. They share compiled functions: the conditions are
in a variable, which these functions read.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc
from tfp_ebm.arguments import check_count
from tfp_ebm.energy.shapes import as_state
from tfp_ebm.model.conditional_distribution import ConditionalDistribution
from tfp_ebm.model.contract import check_count_or_tensor
from tfp_ebm.model.distribution import EnergyDistribution
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.model.held_conditions import held_model, held_network
from tfp_ebm.networks.conditional import in_dtype
from tfp_ebm.networks.noise_levels import NoiseLevelEnergy, has_log_normalizer_zero
from tfp_ebm.networks.packed_conditions import packed
from tfp_ebm.random import fold_in, stateless_seed
from tfp_ebm.types import Estimate

# Draws of each condition by which moments and quantiles are computed.
_NUM_DRAWS = 2048


def conditions_of(model: EnergyModel, condition: Any) -> tf.Tensor:
    """Returns one condition or a batch of any rank as a tensor `[*batch, *condition]`.

    Raises:
      TypeError, ValueError: if the model takes no condition, or it has another shape or dtype, or is not finite.
    """
    if not model.is_conditional:
        raise ValueError("`condition` must not be given: the network takes x alone.")
    spec = model.energy_function.condition_spec
    condition = in_dtype(packed(model.network, condition), spec)
    if tf.is_tensor(condition) and condition.dtype.is_floating:
        condition = tf.cast(condition, spec.dtype)
    found = as_state(condition, spec.dtype, tuple(spec.shape), "condition")
    known = tf.get_static_value(found)
    if known is not None and not np.isfinite(known).all():
        raise ValueError(f"`condition` must be finite, got {int((~np.isfinite(known)).sum())} NaN or infinities.")
    if not found.shape.is_fully_defined() and found.shape.rank is None:
        raise ValueError("`condition` must have a known number of axes.")
    return found


@dataclasses.dataclass(frozen=True)
class ConditionalDraws:
    """Draws of each condition.

    Attributes:
      states: the draws `[num_samples, *batch, *event]`.
      log_normalizer: an `Estimate` of log Z of each condition, whose numbers are arrays of the batch shape.
      parts: the `mcmc.Draws` of each condition, in the order of the flattened batch.
      trouble: sentences that describe what is wrong, with the number of the condition; empty if nothing was found.
    """

    states: tf.Tensor
    log_normalizer: Estimate
    parts: tuple[mcmc.Draws, ...]
    trouble: tuple[str, ...]


class GivenConditions(EnergyDistribution):
    """The distributions p(x | c) of a conditional model for a batch of conditions; `EnergyModel.given` makes it.

    Its batch shape is that of the conditions, and its methods broadcast as those of any TFP distribution. `draw` and
    `sample` treat one condition after the other by sequential Monte Carlo; with a `kernel`, inside a `tf.function`, and
    for more than 50 coordinates, chains of all conditions run together. `log_prob` needs one log Z for each condition:
    it is known for a network that is normalised, and as far as noise contrastive estimation has learned it; else
    `p.with_log_normalizer(p.draw(1000, seed=0).log_normalizer)` estimates it. Mean, standard deviation and quantiles of
    each coordinate are those of 2048 draws.

    Args:
      model: a conditional `EnergyModel`.
      condition: `[*batch, *condition]`; a dictionary of them, for a network of several conditions.
      kernel, num_burnin_steps, validate_args, allow_nan_stats, name: as for `EnergyDistribution`.
      log_normalizer: log Z of each condition, `[*batch]`, if known.

    Raises:
      TypeError, ValueError: if the model takes no condition, or the conditions have another shape or dtype.

    >>> import tfp_ebm as ebm
    >>> model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], condition_shape=[3]))
    >>> p = model.given(np.zeros([5, 3], "float32"))
    >>> p.batch_shape, p.unnormalized_log_prob(tf.zeros([7, 1, 2])).shape
    (TensorShape([5]), TensorShape([7, 5]))
    """

    def __init__(
        self,
        model: EnergyModel,
        condition: Any,
        kernel: Any = None,
        num_burnin_steps: int = 300,
        log_normalizer: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "GivenConditions",
    ) -> None:
        parameters = dict(locals())
        conditions = conditions_of(model, condition)
        super().__init__(
            held_model(model),
            kernel=kernel,
            num_burnin_steps=num_burnin_steps,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            name=name,
        )
        self._parameters = self._no_dependency(parameters)
        self._model, self._conditions = model, conditions
        self._spec = model.energy_function.condition_spec
        self._given_log_normalizer = None if log_normalizer is None else self._checked(log_normalizer)

    def _checked(self, value: Any) -> tf.Tensor:
        value = value.value if isinstance(value, keras.Variable | Estimate) else value
        value = tf.convert_to_tensor(value if tf.is_tensor(value) else np.asarray(value), self.dtype)
        batch = self._batch_shape()
        if value.shape.is_fully_defined() and batch.is_fully_defined():
            if value.shape.rank > batch.rank or not _broadcasts(value.shape, batch):
                raise ValueError(
                    f"`log_normalizer` must have the batch shape {tuple(batch)}, got {tuple(value.shape)}."
                )
            known = tf.get_static_value(value)
            if known is not None and not np.isfinite(known).all():
                raise ValueError(f"`log_normalizer` must be finite, got {known}.")
        return tf.broadcast_to(value, self._batch_shape_tensor())

    # --- the density -----------------------------------------------------------------------------------------------

    @property
    def conditions(self) -> tf.Tensor:
        """The conditions, `[*batch, *condition]`."""
        return self._conditions

    @property
    def energy_model(self) -> EnergyModel:
        """The conditional model, which can be saved and exported."""
        return self._model

    @property
    def negative_energy(self) -> Any:
        """The function −E(x; c) of states `[..., *event]` whose leading axes broadcast with the batch shape."""
        return self._negative_energy

    def _negative_energy(self, x: Any) -> tf.Tensor:
        x = as_state(x, self.dtype, self._event)
        rank, own = len(self._event), len(self._spec.shape)
        leading = tf.broadcast_dynamic_shape(tf.shape(x)[: x.shape.rank - rank], self._batch_shape_tensor())
        static = tf.broadcast_static_shape(x.shape[: x.shape.rank - rank], self._batch_shape())
        wide = tf.ensure_shape(tf.broadcast_to(x, tf.concat([leading, self._event], 0)), [*static, *self._event])
        shape = self._conditions.shape[self._conditions.shape.rank - own :]
        rows = tf.broadcast_to(self._conditions, tf.concat([leading, shape], 0))
        return self._model.unnormalized_log_prob(wide, tf.ensure_shape(rows, [*static, *shape]))

    def _unnormalized_log_prob(self, x: tf.Tensor) -> tf.Tensor:
        value = self._negative_energy(x)
        return value if self._given_log_normalizer is None else value - self._given_log_normalizer

    @property
    def log_normalizer(self) -> tf.Tensor | None:
        """log Z of each condition, `[*batch]`: given, 0 for a normalised network, or learned by the loss; else None."""
        if self._given_log_normalizer is not None:
            return self._given_log_normalizer
        value = self._model.log_normalizer  # learned, or None
        if _is_normalized(self._model, self._conditions):
            value = tf.zeros([], self.dtype)
        return None if value is None else tf.broadcast_to(tf.cast(value, self.dtype), self._batch_shape_tensor())

    # --- samples ---------------------------------------------------------------------------------------------------

    @property
    def _flat(self) -> tf.Tensor:
        """The conditions `[number, *condition]`."""
        return tf.reshape(self._conditions, [-1, *self._spec.shape])

    def _in_batches(self, states: tf.Tensor, before: int) -> tf.Tensor:
        """Returns states `[..., number, *event]`, with `before` axes in front, as `[..., *batch, *event]`."""
        shape = tf.concat([tf.shape(states)[:before], self._batch_shape_tensor(), self._event], 0)
        static = [*states.shape[:before], *self._batch_shape(), *self._event]
        return tf.ensure_shape(tf.reshape(states, shape), static)

    def draw(self, num_samples: int, seed: Any, **kwargs: Any) -> Any:
        """Draws of each condition by sequential Monte Carlo from the base, as `EnergyDistribution.draw` does.

        Args:
          num_samples: number of draws of each condition.
          seed: int or int32[2].
          **kwargs: further arguments of `ebm.mcmc.sequential_monte_carlo`.

        Returns:
          A `ConditionalDraws`.

        Raises:
          NotImplementedError: inside a `tf.function`.
          ValueError: if there is no base distribution.
        """
        num_samples, words = check_count("num_samples", num_samples), stateless_seed(seed)
        if not tf.executing_eagerly():
            raise NotImplementedError("`draw` runs eagerly only; inside a `tf.function`, use `sample`.")
        model, parts = self._model, []
        # networks with draws of their own
        is_exact = isinstance(model.network, NoiseLevelEnergy) or hasattr(model.network, "draw_given")
        for number, condition in enumerate(tf.unstack(self._flat)):
            if is_exact:
                part = EnergyDistribution(model.given(condition.numpy()))
            else:
                held_network(self._energy).hold(condition[None])
                part = EnergyDistribution(self._energy)
            parts.append(part.draw(num_samples, seed=fold_in(words, number), **kwargs))
        batch = tuple(self._batch_shape())
        found = [
            np.reshape([getattr(part.log_normalizer, name) for part in parts], batch) for name in Estimate._fields[:3]
        ]
        sentences = [(i, sentence) for i, part in enumerate(parts) for sentence in part.trouble]
        return ConditionalDraws(
            self._in_batches(tf.stack([part.states for part in parts], 1), 1),
            Estimate(*found),
            tuple(parts),
            tuple(f"Condition {i}: {sentence}" for i, sentence in sentences),
        )

    def sample_chains(
        self,
        num_results: int,
        num_chains: int,
        *,
        seed: Any,
        num_burnin_steps: int | None = None,
        num_steps_between_results: int = 0,
        **kwargs: Any,
    ) -> mcmc.Samples:
        """Runs `num_chains` chains of each condition, all together; states `[num_results, num_chains, *batch, *event]`.

        Args:
          num_results, num_chains, seed, num_burnin_steps, num_steps_between_results, **kwargs: as for
            `EnergyDistribution.sample_chains`. An adaptive kernel has one step size for all conditions.
        """
        num_chains = check_count_or_tensor("num_chains", num_chains)
        start_seed, chain_seed = tf.unstack(tfp.random.split_seed(stateless_seed(seed), n=2))
        flat = self._flat
        start = self.base.sample(tf.stack([num_chains, tf.shape(flat)[0]]), seed=start_seed)
        static = num_chains if isinstance(num_chains, int) else None
        start = tf.ensure_shape(tf.identity(start), [static, flat.shape[0], *self._event])
        function = self._energy.energy_function
        if tf.executing_eagerly():
            held_network(self._energy).hold(flat)
        else:
            function = self._model.energy_function.with_condition(flat)
        kernel = self._default_kernel(None) if self._kernel is None else self._kernel
        if isinstance(kernel, mcmc.Kernel):
            kernel = kernel.in_coordinates(function.standardization)
        samples = mcmc.sample(
            function.unnormalized_log_prob,
            function.standardization.to_z(start),
            kernel,
            num_results=num_results,
            num_burnin_steps=self._num_burnin_steps if num_burnin_steps is None else num_burnin_steps,
            num_steps_between_results=num_steps_between_results,
            seed=chain_seed,
            **kwargs,
        )
        samples = self._coordinates.finish(samples)
        shape = tf.concat([tf.shape(samples.is_accepted)[:2], self._batch_shape_tensor()], 0)
        log_prob = tf.reshape(samples.unnormalized_log_prob, shape)
        if self._given_log_normalizer is not None:
            log_prob -= self._given_log_normalizer
        return samples._replace(
            states=self._in_batches(samples.states, 2),
            unnormalized_log_prob=log_prob,
            is_accepted=tf.reshape(samples.is_accepted, shape),
        )

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        if not hasattr(self._model.network, "draw_given") or self._kernel is not None:
            return super()._sample_n(n, seed)
        words = tfp.random.sanitize_seed(None) if seed is None else stateless_seed(seed)
        flat = self._flat
        rows = tf.tile(flat, tf.stack([n, *[1] * len(self._spec.shape)]))
        states = self._model.standardization.to_x(self._model.network.draw_given(rows, words))
        return self._in_batches(tf.reshape(states, tf.stack([n, tf.shape(flat)[0], *self._event])), 1)

    def _last_states(self, num_chains: Any, seed: tf.Tensor) -> tf.Tensor:
        return self.sample_chains(1, num_chains, seed=seed).states[0]

    def _points(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns sorted draws of each coordinate and their masses, `[*batch, *event, number]`."""
        drawn = self._sample_n(_NUM_DRAWS, tf.constant([0, 1]))
        places = tf.sort(tf.transpose(drawn, [*range(1, len(drawn.shape)), 0]), -1)
        return places, tf.fill(tf.shape(places), tf.constant(1.0 / _NUM_DRAWS, places.dtype))

    # the same formulas of places and masses
    _mean: Any = ConditionalDistribution._mean
    _variance: Any = ConditionalDistribution._variance
    _stddev: Any = ConditionalDistribution._stddev
    _quantile: Any = ConditionalDistribution._quantile

    # --- TFP's contract --------------------------------------------------------------------------------------------

    def _batch_shape(self) -> tf.TensorShape:
        return self._conditions.shape[: self._conditions.shape.rank - len(self._spec.shape)]

    def _batch_shape_tensor(self) -> tf.Tensor:
        return tf.shape(self._conditions)[: self._conditions.shape.rank - len(self._spec.shape)]

    def __getitem__(self, slices: Any) -> GivenConditions:
        """Returns the distributions of some of the conditions, as TFP slices batches: `p[0]`, `p[..., tf.newaxis]`."""
        batch = tuple(self._batch_shape())
        chosen = np.arange(int(np.prod(batch))).reshape(batch)[slices]
        changes = {"condition": tf.gather(self._flat, chosen)}
        if self._given_log_normalizer is not None:
            changes["log_normalizer"] = tf.gather(tf.reshape(self._given_log_normalizer, [-1]), chosen)
        return self.copy(**changes)


def _broadcasts(shape: tf.TensorShape, batch: tf.TensorShape) -> bool:
    try:
        return tf.broadcast_static_shape(shape, batch) == batch
    except ValueError:
        return False


def _is_normalized(model: EnergyModel, conditions: tf.Tensor) -> bool:
    """Returns whether log Z is 0 for all these conditions."""
    if model.base_measure is not None:
        return False
    if isinstance(model.network, NoiseLevelEnergy):
        largest = tf.get_static_value(conditions)
        return largest is not None and has_log_normalizer_zero(model.given(float(np.max(largest))))
    return bool(getattr(model.network, "is_normalized", False))
