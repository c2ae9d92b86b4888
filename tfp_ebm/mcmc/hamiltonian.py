"""TFP's Hamiltonian Monte Carlo with momenta from `tfp_ebm.noise`.

TFP's kernel draws its momenta by a generator that XLA runs slowly on a CPU: for 784 coordinates and ten leapfrog steps
they took a quarter of the time. The leapfrog is written out here because TFP's kernel draws and integrates in one
method; what surrounds it, the acceptance by `tfp.mcmc.MetropolisHastings` above all, is TFP's.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import noise

__all__ = ["HamiltonianMonteCarlo"]


class _Trajectory(tfp.mcmc.UncalibratedHamiltonianMonteCarlo):
    """A momentum p ~ N(0, I) and L leapfrog steps (eqs. 16-20); for a state of one part."""

    def one_step(
        self, current_state: tf.Tensor, previous_kernel_results: Any, seed: Any = None
    ) -> tuple[tf.Tensor, Any]:
        """The end of the trajectory, and its results."""
        seed = tfp.random.sanitize_seed(seed)
        (x,) = map(tf.convert_to_tensor, tf.nest.flatten(current_state))
        stored = previous_kernel_results.step_size  # by an adapting kernel around this one; else an empty list
        step_size = tf.convert_to_tensor(stored if tf.is_tensor(stored) else self.step_size, x.dtype)
        drawn = noise.normal(tf.shape(x), seed, x.dtype)
        (gradient,) = previous_kernel_results.grads_target_log_prob
        log_prob = previous_kernel_results.target_log_prob

        def leap(
            count: tf.Tensor, x: tf.Tensor, p: tf.Tensor, log_prob: tf.Tensor, gradient: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            # the half kicks of neighbouring steps are one whole kick
            x = tf.ensure_shape(x + step_size * p, x.shape)
            log_prob, (gradient,) = tfp.math.value_and_gradient(self.target_log_prob_fn, [x])
            return count + 1, x, p + step_size * gradient, log_prob, gradient

        start = (tf.constant(0), x, drawn + 0.5 * step_size * gradient, log_prob, gradient)
        _, x, p, log_prob, gradient = tf.while_loop(
            lambda count, *_: count < self.num_leapfrog_steps, leap, start, parallel_iterations=1
        )
        p -= 0.5 * step_size * gradient
        axes = tf.range(tf.rank(log_prob), tf.rank(x))
        return tf.nest.pack_sequence_as(current_state, [x]), previous_kernel_results._replace(
            log_acceptance_correction=0.5 * tf.reduce_sum(drawn**2 - p**2, axes),
            target_log_prob=log_prob,
            grads_target_log_prob=[gradient],
            initial_momentum=[drawn],
            final_momentum=[p],
            seed=seed,
        )


class HamiltonianMonteCarlo(tfp.mcmc.HamiltonianMonteCarlo):
    """`tfp.mcmc.HamiltonianMonteCarlo` for a state of one part; other momenta of the same law.

    Args:
      *args, **kwargs: as TFP's.

    >>> kernel = HamiltonianMonteCarlo(lambda x: -0.5 * tf.reduce_sum(x**2, -1), 0.5, 3)
    >>> x = tf.ones([3, 2])
    >>> x_next, results = kernel.one_step(x, kernel.bootstrap_results(x), seed=tf.constant([0, 1]))
    >>> x_next.shape, results.is_accepted.shape
    (TensorShape([3, 2]), TensorShape([3]))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # where TFP's class keeps the kernel that it is a face of
        self._impl: Any = tfp.mcmc.MetropolisHastings(_Trajectory(**self.parameters))
