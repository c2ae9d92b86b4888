"""Maximum likelihood with negatives from Markov chains (§2, eqs. 6-10).

The gradient of the mean log-likelihood needs no normaliser, only draws of the model (eqs. 8-10):

    −∂/∂θ E_data[log p(x)] = E_data[∂E(x)/∂θ] − E_model[∂E(x⁻)/∂θ],

so the loss is E(x) − E(x⁻), its *value* means little (it hovers around 0), and the negatives x⁻ are constants.

Everything depends on their distribution. Errors of chains that have not converged, or that a discretisation biases,
are learned by the energy, which then looks right *through those chains* and is wrong as a density: an unadjusted
Langevin chain (`mcmc.Langevin`) of step ε on N(0, s²) teaches a precision of 2(1 − √(1 − ε²/s²))/ε² instead of 1/s².
Metropolis kernels have no such bias; what remains is that local moves do not cross between modes. One *global
move* at the start of each training step does: a draw of the base distribution, accepted by Metropolis' rule, or a
tempered transition where the base does not overlap with the model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc, random
from tfp_ebm.arguments import check_choice, check_count, check_nonnegative
from tfp_ebm.energy.base import check_base, draw
from tfp_ebm.energy.standardization import Coordinates
from tfp_ebm.losses.base import Loss, LossOutput
from tfp_ebm.mcmc.kernels.kernel import is_calibrated
from tfp_ebm.mcmc.kernels.langevin import clamped
from tfp_ebm.mcmc.running.finite import is_finite
from tfp_ebm.mcmc.running.steps import Moved, move, move_by_xla
from tfp_ebm.mcmc.starts import ChainStart
from tfp_ebm.random import fold_in

FORMS = ("difference", "softplus", "logsumexp")
GLOBAL_MOVES = ("auto", "independence", "tempered")

# How fast a step size follows its acceptance: its logarithm changes by this times (acceptance − optimum) per step.
_ADAPTATION_GAIN = 0.1


@keras.saving.register_keras_serializable("tfp_ebm")
class MaximumLikelihood(Loss):
    """Maximum likelihood: per row E(x) − E(x⁻), with negatives x⁻ from Markov chains (eqs. 6-10).

    Each training step takes as many chains as the batch has rows, restarts those that are not finite, makes one global
    move and `num_steps` steps of the kernel, and keeps the chains if they are persistent. No gradient flows through
    them. ChainStart run in standardised coordinates.

    Args:
      kernel: a kernel of `ebm.mcmc`, or any callable `target -> tfp.mcmc.TransitionKernel`. The step size of an
        `mcmc.Adaptive` kernel, or of one inside `mcmc.Transformed`, follows its acceptance from training step to
        training step, and is kept as a weight.
      num_steps: kernel steps per training step.
      chains: where they start: `mcmc.FromData()`, `FromBase()` or `ReplayBuffer(capacity)`.
      global_move: what each training step begins with. "independence": an `mcmc.IndependenceMetropolis` move from the
        base; "tempered": an `mcmc.TemperedTransition`, for dimensions where a plain draw of the base is never accepted;
        None: nothing; "auto": "independence" for chains that persist under a kernel that leaves the model's law exact.
      num_temperatures: of the tempered move.
      form: "difference", E(x) − E(x⁻); "softplus" of it, or "logsumexp", which weighs negatives by softmax(−E(x⁻))
        (both as in the code of Du & Mordatch 2019).
      energy_penalty: α of α(E(x)² + E(x⁻)²), which keeps energies near 0.
      kl_weight: weight of the term that improved contrastive divergence adds (Du et al. 2021): the energy, with fixed
        parameters, of negatives moved by one more gradient step through which the parameters are differentiated, less
        the entropy of those by nearest neighbours.
      data_noise: standard deviation of the noise added to x, in standardised units. Where the kernel clamps its chains
        to a box, the noised data is clamped to it as well: what sticks out would tell data from negatives.
      jit_compile: whether XLA compiles the kernel's steps in a training step that is not compiled as a whole: on a
        processor two to three times as fast, for some seconds of compiling per size of batch and a network that XLA
        compiles. The chains of a kernel that moves each by itself then run as two halves at the same time, each with
        noise of its own, so that the numbers drawn are others. In a step that `compile(jit_compile=True)` compiles as
        a whole it saves nothing.

    Metrics: mean energy of data and of negatives (`data_energy`, `sample_energy`) and `energy_gap`, the latter minus
    the former; `energy_spread`, the standard deviation of the energy over both, which no additive constant changes;
    `acceptance_rate`, `global_acceptance_rate`; `num_restarted`, chains that were given a new state, and
    `num_nonfinite`, those of them that had no finite state or energy.

    Raises:
      TypeError, ValueError: for arguments of the wrong kind or out of range, or no base where one is needed.

    References: Y. Du, I. Mordatch, Implicit generation and modeling with energy-based models, 2019, arXiv:1903.08689.
    Y. Du, S. Li, J. Tenenbaum, I. Mordatch, Improved contrastive divergence training, 2021, arXiv:2012.01316.

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
        form: str = "difference",
        energy_penalty: float = 0.0,
        kl_weight: float = 0.0,
        data_noise: float = 0.0,
        jit_compile: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not callable(kernel):
            raise TypeError(f"`kernel` must map a target to a tfp.mcmc.TransitionKernel, got {kernel!r}.")
        if not isinstance(chains, ChainStart):
            raise TypeError(f"`chains` must be mcmc.FromData(), FromBase() or ReplayBuffer(capacity), got {chains!r}.")
        if global_move is not None:
            check_choice("global_move", global_move, GLOBAL_MOVES)
        self.kernel = kernel
        self.step_size: keras.Variable | None = None
        self.num_steps = check_count("num_steps", num_steps)
        self.chains = chains
        self.global_move = global_move
        self.form = check_choice("form", form, FORMS)
        self.energy_penalty = check_nonnegative("energy_penalty", energy_penalty)
        self.kl_weight = check_nonnegative("kl_weight", kl_weight)
        self.data_noise = check_nonnegative("data_noise", data_noise)
        if self.kl_weight > 0.0 and not (isinstance(kernel, mcmc.Kernel) and kernel.uses_gradient):
            raise ValueError(f"`kl_weight` needs a kernel of ebm.mcmc that follows the gradient, got {kernel!r}.")
        if jit_compile not in (True, False):
            raise ValueError(f"`jit_compile` must be True or False, got {jit_compile!r}.")
        self.jit_compile = bool(jit_compile)
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

    @property
    def differentiates_score(self) -> bool:  # type: ignore[override]
        """Whether the parameter gradient goes through ∇ₓE: only with the KL term."""
        return self.kl_weight > 0.0

    def build(self, event_shape: tuple[int, ...], dtype: str = "float32") -> None:
        """Creates the chains' weights, and `step_size`, of a kernel of `ebm.mcmc`."""
        if isinstance(self.kernel, mcmc.Kernel):
            self.kernel.check_event(tuple(event_shape))
            step = self.kernel.step
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

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """E(x) − E(x⁻) of each row, in the form asked for."""
        if self.data_noise > 0.0:
            x += self.data_noise * random.normal(tf.shape(x), fold_in(seed, 0), x.dtype)
            box = getattr(self.kernel, "clamp", None)
            x = x if box is None else clamped(x, *box)
        negatives, weights, metrics = self.negatives(energy_fn, x, fold_in(seed, 1), training)
        # one call for both: larger matrices, and the layers see data and negatives alike
        data_energy, sample_energy = tf.split(energy_fn(tf.concat([x, negatives], 0)), 2)
        gap = data_energy - weights * sample_energy
        if self.form == "softplus":
            per_example = tf.where(weights > 0, tf.math.softplus(gap), tf.zeros_like(gap))
        elif self.form == "logsumexp":
            shares = tf.nn.softmax(tf.stop_gradient(tf.where(weights > 0, -sample_energy, -float("inf"))))
            per_example = data_energy - shares * tf.cast(tf.size(shares), x.dtype) * sample_energy
        else:
            per_example = gap
        if self.energy_penalty > 0.0:
            per_example += self.energy_penalty * (tf.square(data_energy) + weights * tf.square(sample_energy))
        if self.kl_weight > 0.0:
            per_example += self.kl_weight * weights * self._kl_term(energy_fn, negatives, fold_in(seed, 2))
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

    def negatives(
        self, energy_fn: Callable[..., tf.Tensor], x: tf.Tensor, seed: tf.Tensor, training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        """Moves as many chains as x has rows.

        Returns:
          Their states `[batch, *event]`; weights `[batch]` of mean 1, 0 for a chain that went to a non-finite state,
          NaN if all have; metrics.
        """
        energy_fn = energy_fn.in_mode(False) if hasattr(energy_fn, "in_mode") else energy_fn

        def target(z: tf.Tensor) -> tf.Tensor:
            return -energy_fn(z)

        seeds = [fold_in(seed, i) for i in range(4)]
        base = self._base(energy_fn, x)
        fresh = x if base is None else tf.ensure_shape(draw(base, tf.shape(x)[:1], seeds[0]), x.shape)
        start = self.chains.start(x, fresh, seeds[1])
        lost = ~is_finite(start.states, 1, target(start.states))
        start = start._replace(states=tf.where(_like(lost, x), fresh, start.states), restarted=start.restarted | lost)
        metrics = {}
        states = start.states
        if self._moves_globally:
            moved = move(self._global_kernel(base)(target), states, 1, seeds[2])
            states, metrics["global_acceptance_rate"] = moved.states, moved.accept_prob
        moved = self._local_moves(target, states, seeds[3], training)
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
        negatives = tf.stop_gradient(tf.where(_like(finite, x), moved.states, x))  # x: no matter what, but finite
        return negatives, weights / tf.reduce_mean(weights), metrics

    def _global_kernel(self, base: tfp.distributions.Distribution) -> Callable[..., tfp.mcmc.TransitionKernel]:
        if self.global_move != "tempered":
            return mcmc.IndependenceMetropolis(base)
        recipe = mcmc.TemperedTransition(self.kernel.unadapted, base, self.num_temperatures)
        return lambda target: recipe.build(target, self.kernel.step if self.step_size is None else self.step_size.value)

    def _local_moves(
        self, target: Callable[[tf.Tensor], tf.Tensor], states: tf.Tensor, seed: tf.Tensor, training: bool
    ) -> Moved:
        kernel = self.kernel.unadapted if isinstance(self.kernel, mcmc.Kernel) else self.kernel
        run = move
        if self.jit_compile:
            run = functools.partial(move_by_xla, halve=getattr(kernel, "moves_chains_alone", False))
        if self.step_size is None:
            return run(kernel(target), states, self.num_steps, seed)
        step_size = tf.identity(self.step_size.value)
        moved = run(kernel.build(target, step_size), states, self.num_steps, seed)
        adaptive = _adaptive_part(self.kernel)
        if training and adaptive is not None:
            excess = moved.accept_prob - tf.cast(adaptive.target_accept_prob, states.dtype)
            self.step_size.assign(step_size * tf.exp(_ADAPTATION_GAIN * excess))
        return moved

    def _base(self, energy_fn: Any, x: tf.Tensor) -> tfp.distributions.Distribution | None:
        """The base in the coordinates of the chains; None if there is none and nothing needs it."""
        base = self.chains.base
        if base is not None:
            check_base("base", base, x.dtype, tuple(x.shape[1:]))
        elif not (self.chains.needs_base or self._moves_globally):
            return None
        elif hasattr(energy_fn, "base"):
            base = energy_fn.base
        else:
            raise ValueError(f"`base` must be given to {type(self.chains).__name__} for an energy that has none.")
        return Coordinates.of(energy_fn).distribution_in_chain(base)

    def _kl_term(self, energy_fn: Callable[..., tf.Tensor], negatives: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """sg(E)(x') − log min_j ‖x' − x⁻_j‖ with x' = x⁻ − ½ε²∇E(x⁻) + εZ, of each row."""
        epsilon = tf.identity(self.step_size)
        with tf.GradientTape() as tape:
            tape.watch(negatives)
            total = tf.reduce_sum(energy_fn(negatives))
        slope = tape.gradient(total, negatives)
        after = (
            negatives - 0.5 * epsilon**2 * slope + epsilon * random.normal(tf.shape(negatives), seed, negatives.dtype)
        )
        fixed = tf.stop_gradient(after)
        with tf.GradientTape() as tape:
            tape.watch(fixed)
            energy = energy_fn(fixed)
        force = tf.stop_gradient(tape.gradient(energy, fixed))
        axes = list(range(1, after.shape.rank))
        # the energy's value, with the gradient that it has through `after` alone
        energy = tf.stop_gradient(energy) + tf.reduce_sum(force * (after - fixed), axes)
        flat, others = (tf.reshape(states, [tf.shape(states)[0], -1]) for states in (after, negatives))
        squares = tf.reduce_sum(tf.square(flat[:, None] - others[None]), -1)
        squares += tf.linalg.diag(tf.fill(tf.shape(squares)[:1], tf.constant(float("inf"), squares.dtype)))
        return energy - 0.5 * tf.math.log(tf.reduce_min(squares, 1))

    def get_config(self) -> dict[str, Any]:
        """The arguments, for Keras."""
        return {
            **super().get_config(),
            "kernel": keras.saving.serialize_keras_object(self.kernel),
            "num_steps": self.num_steps,
            "chains": keras.saving.serialize_keras_object(self.chains),
            "global_move": self.global_move,
            "num_temperatures": self.num_temperatures,
            "form": self.form,
            "energy_penalty": self.energy_penalty,
            "kl_weight": self.kl_weight,
            "data_noise": self.data_noise,
            "jit_compile": self.jit_compile,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MaximumLikelihood:
        """The inverse of `get_config`."""
        config = dict(config)
        for name in {"kernel", "chains"} & set(config):
            config[name] = keras.saving.deserialize_keras_object(config[name])
        return cls(**config)


def _adaptive_part(kernel: Any) -> mcmc.Adaptive | None:
    """The adaptive kernel that `kernel` is, or is made around."""
    while kernel is not None and not isinstance(kernel, mcmc.Adaptive):
        kernel = getattr(kernel, "kernel", None)
    return kernel


def _like(per_chain: tf.Tensor, states: tf.Tensor) -> tf.Tensor:
    """`[batch]` as `[batch, 1, ...]`."""
    return tf.reshape(per_chain, [-1] + [1] * (states.shape.rank - 1))
