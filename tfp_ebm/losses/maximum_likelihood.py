"""Maximum likelihood with negatives from Markov chains (§2, eqs. 6-10).

The gradient of the mean log-likelihood needs no normaliser, only draws of the model (eqs. 8-10):

    −∂/∂θ E_data[log p(x)] = E_data[∂E(x)/∂θ] − E_model[∂E(x⁻)/∂θ],

so the loss is E(x) − E(x⁻), where the negatives x⁻ are constants. Its *value* means little (it stays close to 0).

The result depends on the distribution of the negatives. The energy compensates for errors of chains that have not
converged or are biased by a discretisation: draws of *those chains* then look right, but the density is wrong. For
example, with an unadjusted Langevin chain (`mcmc.Langevin`) of step ε, the precision learned for N(0, s²) is
2(1 − √(1 − ε²/s²))/ε² instead of 1/s². Metropolis kernels have no such bias, but local moves do not cross between
modes. One *global move* at the start of each training step does: a draw of the base distribution, accepted by the
Metropolis rule, or a tempered transition if the base does not overlap with the model.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc, random
from tfp_ebm.arguments import check_choice, check_count, check_jit_compile, check_kernel, check_nonnegative
from tfp_ebm.derivatives import refuse_faulty_layers
from tfp_ebm.energy.base import check_base, draw
from tfp_ebm.energy.function import EnergyFunction
from tfp_ebm.energy.standardization import Coordinates
from tfp_ebm.losses.base import Loss, LossOutput, input_specs
from tfp_ebm.mcmc.kernels.adaptive import log_step_size_change
from tfp_ebm.mcmc.kernels.kernel import is_calibrated
from tfp_ebm.mcmc.kernels.langevin import clamped
from tfp_ebm.mcmc.running.finite import is_finite
from tfp_ebm.mcmc.running.steps import Moved, move, move_by_xla
from tfp_ebm.mcmc.starts import ChainStart
from tfp_ebm.random import fold_in
from tfp_ebm.replicas import mean_over_rows

GLOBAL_MOVES = ("auto", "independence", "tempered")

# The gain of the step-size adaptation: log ε changes by this times (acceptance − optimum) per training step.
_ADAPTATION_GAIN = 0.1


@keras.saving.register_keras_serializable("tfp_ebm")
class MaximumLikelihood(Loss):
    """Maximum likelihood: per row E(x) − E(x⁻), with negatives x⁻ from Markov chains (eqs. 6-10).

    Each training step uses as many chains as the batch has rows. It restarts chains that are not finite, makes one
    global move and `num_steps` steps of the kernel, and stores the chains if they are persistent. No gradient flows
    through them. Chains run in standardised coordinates.

    Args:
      kernel: a kernel of `ebm.mcmc`, or any callable `target -> tfp.mcmc.TransitionKernel`. The step size of an
        `mcmc.Adaptive` kernel, also inside `mcmc.Transformed`, adapts to the acceptance from training step to training
        step, and is stored as a weight.
      num_steps: number of kernel steps per training step.
      chains: the starting states: `mcmc.FromData()`, `FromBase()` or `ReplayBuffer(capacity)`.
      global_move: the move at the start of each training step. "independence": an `mcmc.IndependenceMetropolis` move
        from the base; "tempered": an `mcmc.TemperedTransition`, for dimensions in which draws of the base are never
        accepted; None: no move; "auto": "independence" for persistent chains whose kernel leaves the model's
        distribution exactly invariant.
      num_temperatures: number of temperatures of the tempered move.
      energy_penalty: α of α(E(x)² + E(x⁻)²), which keeps energies near 0.
      data_noise: standard deviation of the noise added to x, in standardised units. If the kernel clamps its chains to
        a box, the noisy data are clamped as well; otherwise points outside the box would distinguish data from
        negatives.
      jit_compile: whether XLA compiles the kernel's steps if the training step itself is not compiled by XLA. On a CPU
        they are then two to three times as fast, but each batch size needs some seconds of compilation, and XLA must
        support the network. If the kernel moves chains independently, they then run as two halves at the same time,
        each with its own noise, so the random numbers differ. With `compile(jit_compile=True)` this option saves
        nothing.

    Metrics: mean energy of data and of negatives (`data_energy`, `sample_energy`) and `energy_gap`, the latter minus
    the former; `energy_spread`, the standard deviation of the energy over both, which is free of additive constants;
    `acceptance_rate`, `global_acceptance_rate`; `num_restarted`, the number of chains that got a new state; and
    `num_nonfinite`, the number of these that had no finite state or energy.

    Raises:
      TypeError, ValueError: for arguments of the wrong kind or out of range, or if a base is needed and missing.

    Reference: Y. Du, I. Mordatch, Implicit generation and modeling with energy-based models, 2019, arXiv:1903.08689.

    >>> import tensorflow as tf, tfp_ebm as ebm
    >>> loss = MaximumLikelihood(ebm.mcmc.MALA(0.5), num_steps=5, chains=ebm.mcmc.FromData())
    >>> x = tf.random.stateless_normal([200, 2], seed=[0, 0])
    >>> output = loss(lambda x: 0.5 * tf.reduce_sum(x**2, -1), x, seed=0)
    >>> output.per_example.shape, bool(output.metrics["acceptance_rate"] > 0.5)
    (TensorShape([200]), True)
    """

    def __init__(
        self,
        kernel: Any,
        num_steps: int,
        chains: ChainStart,
        *,
        global_move: str | None = "auto",
        num_temperatures: int = 10,
        energy_penalty: float = 0.0,
        data_noise: float = 0.0,
        jit_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(chains, ChainStart):
            raise TypeError(f"`chains` must be mcmc.FromData(), FromBase() or ReplayBuffer(capacity), got {chains!r}.")
        if global_move is not None:
            check_choice("global_move", global_move, GLOBAL_MOVES)
        self.kernel = check_kernel(kernel)
        self.step_size: keras.Variable | None = None
        self.num_steps = check_count("num_steps", num_steps)
        self.chains = chains
        self.global_move = global_move
        self.energy_penalty = check_nonnegative("energy_penalty", energy_penalty)
        self.data_noise = check_nonnegative("data_noise", data_noise)
        self.jit_compile = check_jit_compile(jit_compile, choices=(True, False))
        self.num_temperatures = check_count("num_temperatures", num_temperatures)
        if global_move == "tempered" and not isinstance(kernel, mcmc.Kernel):
            raise TypeError(f"`kernel` must be one of ebm.mcmc for a tempered move, got {kernel!r}.")
        unadapted = kernel.unadapted if isinstance(kernel, mcmc.Kernel) else kernel
        self._moves_globally = global_move in ("independence", "tempered") or (
            global_move == "auto" and chains.is_persistent and is_calibrated(unadapted)
        )
        self.metric_names = (
            "data_energy",
            "sample_energy",
            "energy_gap",
            "energy_spread",
            "acceptance_rate",
            *(("global_acceptance_rate",) if self._moves_globally else ()),
            "num_restarted",
            "num_nonfinite",
        )

    def check(self, energy_fn: Callable[..., tf.Tensor]) -> None:
        """See `Loss.check`; the chains need the energy's derivative."""
        super().check(energy_fn)
        is_conditional = getattr(energy_fn, "is_conditional", False)
        self.chains.keep_conditions(getattr(energy_fn, "condition_spec", None) if is_conditional else None)
        network = getattr(energy_fn, "network", None)
        if isinstance(energy_fn, EnergyFunction) and getattr(self.kernel, "uses_gradient", False):
            purpose = f"The kernel of {type(self).__name__}"
            refuse_faulty_layers(network, purpose, training=False, order=1, inputs=input_specs(energy_fn))

    def build(self, event_shape: tuple[int, ...], dtype: str = "float32") -> None:
        """Creates the chains' weights and, for a kernel of `ebm.mcmc`, the weight `step_size`."""
        if isinstance(self.kernel, mcmc.Kernel):
            self.kernel.check_event(tuple(event_shape))
            step = self.kernel.initial_step_size
            if isinstance(step, np.ndarray):  # a sequence of kernels may have none, or several
                self.step_size = self.add_weight(
                    shape=step.shape,
                    dtype=dtype,
                    initializer=lambda shape, dtype=None: tf.constant(step, dtype),
                    trainable=False,
                    autocast=False,
                    name="step_size",
                )
        if not self.chains.built:
            self.chains.build(tuple(event_shape), dtype)
        self.built = True

    def get_build_config(self) -> None:
        """Returns None: a loaded model creates the weights, since it knows whether chains have conditions."""

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """Returns E(x) − E(x⁻) of each row, plus the energy penalty."""
        if self.data_noise > 0.0:
            x += self.data_noise * random.normal(tf.shape(x), fold_in(seed, 0), x.dtype)
            box = getattr(self.kernel, "clamp", None)
            x = x if box is None else clamped(x, *box)
        negatives, weights, metrics, conditions = self._moved_chains(energy_fn, x, fold_in(seed, 1), training)
        both: Any = energy_fn
        if conditions is not None:  # those of the chains may be others than those of the data
            both = both.with_condition(tf.concat([both.condition, conditions], 0))
            energy_fn = both.with_condition(conditions)
        # one call for both: matrices are larger, and layers treat data and negatives in the same way
        data_energy, sample_energy = tf.split(both(tf.concat([x, negatives], 0)), 2)
        per_example = self._contrast(data_energy, sample_energy, weights)
        if self.energy_penalty > 0.0:
            per_example += self.energy_penalty * (tf.square(data_energy) + weights * tf.square(sample_energy))
        extra = self._extra(energy_fn, negatives, fold_in(seed, 2))
        if extra is not None:
            per_example += weights * extra
        data_mean, sample_mean = tf.reduce_mean(data_energy), tf.reduce_mean(weights * sample_energy)
        squares = tf.square(data_energy - data_mean) + weights * tf.square(sample_energy - sample_mean)
        metrics = {
            "data_energy": data_mean,
            "sample_energy": sample_mean,
            "energy_gap": sample_mean - data_mean,
            "energy_spread": tf.sqrt(0.5 * tf.reduce_mean(squares)),
            **metrics,
        }
        return LossOutput(per_example, metrics)

    def _contrast(self, data_energy: tf.Tensor, sample_energy: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Returns each row's loss, from the energies of data and negatives, `[batch]`."""
        return data_energy - weights * sample_energy

    def _extra(self, energy_fn: Any, negatives: tf.Tensor, seed: tf.Tensor) -> tf.Tensor | None:
        """Returns a further term for each of the negatives, `[batch]`; None if there is none."""
        del energy_fn, negatives, seed
        return None

    def negatives(
        self, energy_fn: Callable[..., tf.Tensor], x: tf.Tensor, seed: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """Moves as many chains as x has rows.

        Returns:
          Their states `[batch, *event]`; weights `[batch]` of mean 1, with 0 for a chain whose state became non-finite,
          or NaN if all have; metrics.
        """
        return self._moved_chains(energy_fn, x, seed, training)[:3]

    def _moved_chains(
        self, energy_fn: Any, x: tf.Tensor, seed: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor], tf.Tensor | None]:
        """Returns the results of `negatives`, and the conditions of the chains, `[batch, ...]`, if there are any."""
        energy_fn = energy_fn.in_mode(False) if hasattr(energy_fn, "in_mode") else energy_fn

        def target(z: tf.Tensor) -> tf.Tensor:
            return -energy_fn(z)

        seeds = [fold_in(seed, i) for i in range(4)]
        base = self._base(energy_fn, x)
        fresh = x if base is None else tf.ensure_shape(draw(base, tf.shape(x)[:1], seeds[0]), x.shape)
        condition = getattr(energy_fn, "condition", None)
        if condition is None:
            start = self.chains.start(x, fresh, seeds[1])
        else:
            start = self.chains.start(x, fresh, seeds[1], condition)
            energy_fn = energy_fn.with_condition(start.condition)
        lost = ~is_finite(start.states, 1, target(start.states))
        start = start._replace(states=tf.where(_like(lost, x), fresh, start.states), restarted=start.restarted | lost)
        metrics = {}
        states = start.states
        if self._moves_globally:
            moved = move(self._global_kernel(base)(target), states, 1, seeds[2])
            states, metrics["global_acceptance_rate"] = moved.states, moved.accept_prob
        kernel = self._kernel_in(getattr(energy_fn, "standardization", None))
        # a half of the chains would take the conditions of the other one
        halve = condition is None and getattr(kernel, "moves_chains_alone", False)
        moved = self._local_moves(kernel, target, states, seeds[3], training, halve)
        log_prob = target(moved.states) if moved.log_prob is None else moved.log_prob
        finite = is_finite(moved.states, 1, log_prob)
        if training:
            kept = tf.where(_like(finite, x), moved.states, fresh)
            self.chains.keep(start._replace(restarted=start.restarted | ~finite), kept)
        metrics |= {
            "acceptance_rate": moved.accept_prob,
            "num_restarted": tf.reduce_sum(tf.cast(start.restarted | ~finite, x.dtype)),
            "num_nonfinite": tf.reduce_sum(tf.cast(lost | ~finite, x.dtype)),
        }
        weights = tf.cast(finite, x.dtype)
        # x is a placeholder: any finite value, its weight is 0
        negatives = tf.stop_gradient(tf.where(_like(finite, x), moved.states, x))
        return negatives, weights / tf.reduce_mean(weights), metrics, start.condition

    def _kernel_in(self, standardization: Any) -> Any:
        """Returns the kernel without its adaptation, for chains in standardised coordinates."""
        kernel = self.kernel.unadapted if isinstance(self.kernel, mcmc.Kernel) else self.kernel
        if isinstance(kernel, mcmc.Kernel) and standardization is not None:
            kernel = kernel.in_coordinates(standardization)
        return kernel

    def moved(self, target: Any, states: tf.Tensor, num_steps: int, seed: tf.Tensor, standardization: Any) -> tf.Tensor:
        """Moves chains of any target by the kernel with its present step size, and changes no weight.

        Args:
          target: log p up to a constant, `[num_chains, *event] -> [num_chains]`.
          states: the first states, in standardised coordinates, `[num_chains, *event]`.
          num_steps: number of kernel steps.
          seed: int32[2].
          standardization: the model's.

        Returns:
          The states after the last step.
        """
        kernel = self._kernel_in(standardization)
        built = kernel(target) if self.step_size is None else kernel.build(target, tf.identity(self.step_size.value))
        return move(built, states, num_steps, seed).states

    def _global_kernel(self, base: tfp.distributions.Distribution) -> Callable[..., tfp.mcmc.TransitionKernel]:
        if self.global_move != "tempered":
            return mcmc.IndependenceMetropolis(base)
        recipe = mcmc.TemperedTransition(self.kernel.unadapted, base, self.num_temperatures)
        step_size = self.kernel.initial_step_size if self.step_size is None else self.step_size.value
        return lambda target: recipe.build(target, step_size)

    def _local_moves(
        self,
        kernel: Any,
        target: Callable[[tf.Tensor], tf.Tensor],
        states: tf.Tensor,
        seed: tf.Tensor,
        training: bool,
        halve: bool,
    ) -> Moved:
        run = move
        if self.jit_compile:
            run = functools.partial(move_by_xla, halve=halve)
        if self.step_size is None:
            return run(kernel(target), states, self.num_steps, seed)
        step_size = tf.identity(self.step_size.value)
        moved = run(kernel.build(target, step_size), states, self.num_steps, seed)
        aim = self.kernel.target_accept_prob
        if training and aim is not None:
            # all replicas adapt to the acceptance of all chains, so that their step sizes remain equal
            accept_prob = mean_over_rows(moved.accept_prob, tf.shape(states)[0])
            change = log_step_size_change(_ADAPTATION_GAIN, accept_prob, aim)
            # without rows the acceptance is undefined
            factor = tf.where(tf.math.is_nan(accept_prob), tf.ones_like(change), tf.exp(change))
            self.step_size.assign(step_size * factor)
        return moved

    def _base(self, energy_fn: Any, x: tf.Tensor) -> tfp.distributions.Distribution | None:
        """Returns the base in the coordinates of the chains; None if there is no base and none is needed."""
        base = self.chains.base
        if base is not None:
            check_base("base", base, x.dtype, tuple(x.shape[1:]))
        elif not (self.chains.needs_base or self._moves_globally):
            return None
        elif hasattr(energy_fn, "base"):
            base = energy_fn.base
        else:
            raise ValueError(f"`base` must be given to {type(self.chains).__name__} for an energy without a base.")
        return Coordinates.of(energy_fn).distribution_in_chain(base)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {
            **super().get_config(),
            "kernel": keras.saving.serialize_keras_object(self.kernel),
            "num_steps": self.num_steps,
            "chains": keras.saving.serialize_keras_object(self.chains),
            "global_move": self.global_move,
            "num_temperatures": self.num_temperatures,
            "energy_penalty": self.energy_penalty,
            "data_noise": self.data_noise,
            "jit_compile": self.jit_compile,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MaximumLikelihood:
        """Creates the object from the result of `get_config`."""
        config = dict(config)
        if "form" not in inspect.signature(cls.__init__).parameters:  # in files of version 0.1
            moved = {"form": config.pop("form", "difference"), "kl_weight": config.pop("kl_weight", 0.0)}
            if moved != {"form": "difference", "kl_weight": 0.0}:
                raise ValueError(f"`form` and `kl_weight` moved to ImprovedContrastiveDivergence, got {moved}.")
        for name in {"kernel", "chains"} & set(config):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def _like(per_chain: tf.Tensor, states: tf.Tensor) -> tf.Tensor:
    """Reshapes `[batch]` to `[batch, 1, ...]`."""
    return tf.reshape(per_chain, [-1] + [1] * (states.shape.rank - 1))
