"""`EnergyDistribution`: an energy as a TensorFlow Probability distribution.

    p(x) = exp(−E(x)) / Z        (eq. 1)

What TFP can do with a density known up to a constant, it can do with this one: any `tfp.mcmc` kernel takes its
`unnormalized_log_prob`, a joint distribution takes it as a prior. `log_prob` exists only once log Z is known.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import samplers

from tfp_ebm import mcmc
from tfp_ebm.arguments import check_count, check_event_shape
from tfp_ebm.energy.base import check_base
from tfp_ebm.energy.shapes import as_state, one_per_row, over_leading_dimensions
from tfp_ebm.mcmc.arrival import MAX_RHAT, MIN_CHAINS, last_states
from tfp_ebm.mcmc.kernels import DEFAULT_KERNEL
from tfp_ebm.mcmc.running.compiled import find_compiled
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.networks.normalized import NormalizedEnergy
from tfp_ebm.random import stateless_seed

tfb, tfd = tfp.bijectors, tfp.distributions

# Below this many chains a run is over before XLA has compiled it, and R-hat says little. TFP's joint distributions draw
# a single sample to learn the structure of their parts, each time they are traced.
_FEW_CHAINS = MIN_CHAINS


def _exact_sampler(model: EnergyModel) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns the compiled function (number, seed) -> samples `[number, *event]` of a network that draws exactly."""
    network, standardization = model.network, model.standardization
    signature = [tf.TensorSpec((), tf.int32), tf.TensorSpec((2,), tf.int32)]
    draw = functools.partial(lambda n, seed: standardization.to_x(network.draw(n, seed)))
    return tf.function(draw, input_signature=signature, autograph=False)


class EnergyDistribution(tfp.distributions.Distribution):
    """The distribution p(x) = exp(−E(x))/Z of an energy, for everything in TFP that takes a target density (eq. 1).

    `sample(n, seed)` runs n independent chains from the base and returns their last states. From 16 chains on it warns,
    with the figure, where the chains' R-hat over the second half of the burn-in exceeds 1.05 beyond doubt: where they
    have not forgotten their starts, as between separated modes, or still drift (`mcmc/arrival.py` has the formula).
    Inside a `tf.function` nothing is said.

    Args:
      energy: an `EnergyModel`, any Keras network, or a callable `[batch, *event] -> [batch]`.
      event_shape: shape of one x; needed for callables, and for networks that do not know theirs.
      kernel: what `sample` runs, a kernel of `ebm.mcmc` or any callable `target -> tfp.mcmc.TransitionKernel`. With an
        `EnergyModel` it works in standardised units, like the model's loss. Default: adaptive HMC of 10 leapfrog steps.
      base: a `tfd.Distribution` over x where chains start; default: the model's.
      num_burnin_steps: kernel steps from there to a sample.
      log_normalizer: log Z, if known; default: what the loss of an `EnergyModel` has learned, if it learns it.
      dtype: of x, for callables; default: that of `base`, else float32.
      validate_args, allow_nan_stats, name: as for any TFP distribution.

    Raises:
      TypeError: if `energy` cannot be called.
      ValueError: if the event shape is unknown, or the network takes a condition beside x (see `EnergyModel.given`).

    >>> import tensorflow as tf, tfp_ebm as ebm
    >>> p = EnergyDistribution(lambda x: 0.5 * tf.reduce_sum(x**2, -1), event_shape=[2])
    >>> p.unnormalized_log_prob([[1.0, 1.0]]).numpy().tolist()
    [-1.0]
    >>> q = p.with_log_normalizer(1.8378770)  # log 2π
    >>> round(float(q.log_prob([0.0, 0.0])), 4)
    -1.8379
    """

    def __init__(
        self,
        energy: EnergyModel | keras.layers.Layer | Callable[[tf.Tensor], tf.Tensor],
        event_shape: Any = None,
        kernel: Any = None,
        base: tfp.distributions.Distribution | None = None,
        num_burnin_steps: int = 300,
        log_normalizer: Any = None,
        dtype: Any = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "EnergyDistribution",
    ) -> None:
        parameters = dict(locals())
        if isinstance(energy, keras.layers.Layer) and not isinstance(energy, EnergyModel):
            energy = EnergyModel(energy, event_shape=event_shape)
        if isinstance(energy, EnergyModel):
            if energy.is_conditional:
                raise ValueError("`energy` must be of x alone, got a conditional model: pass `model.given(condition)`.")
            known = energy.event_shape
            if event_shape is not None and tuple(event_shape) != known:
                raise ValueError(f"`event_shape` must be that of the model, {known}, got {tuple(event_shape)}.")
            event_shape, dtype = known, energy.dtype
            # A tf.Module finds tf.Variables in its attributes, and does not find those of a Keras 3 model.
            self._variables_of_energy = [
                weight.value for weight in (*energy.network.weights, *energy.standardization.weights)
            ]
        elif not callable(energy):
            raise TypeError(f"`energy` must be an EnergyModel, a Keras network or a callable, got {energy!r}.")
        elif event_shape is None:
            raise ValueError("`event_shape` must be given for a callable energy.")
        else:
            dtype = dtype or getattr(base, "dtype", tf.float32)
        dtype = tf.as_dtype(dtype)
        event_shape = check_event_shape(event_shape)
        if base is not None:
            check_base("base", base, dtype, event_shape)
        if kernel is not None and not callable(kernel):
            raise TypeError(f"`kernel` must map a target to a tfp.mcmc.TransitionKernel, got {kernel!r}.")
        if log_normalizer is not None:
            if isinstance(log_normalizer, tuple):
                raise TypeError(f"`log_normalizer` must be a number, as an estimate's value is, got {log_normalizer}.")
            log_normalizer = tf.convert_to_tensor(log_normalizer, dtype)
            if log_normalizer.shape.rank != 0:
                raise ValueError(f"`log_normalizer` must be a number, got shape {tuple(log_normalizer.shape)}.")
            known = tf.get_static_value(log_normalizer)
            if known is not None and not np.isfinite(known):
                raise ValueError(f"`log_normalizer` must be finite, got {known}.")
        self._energy = energy
        self._event = event_shape
        self._kernel = DEFAULT_KERNEL if kernel is None else kernel
        self._base = base
        self._num_burnin_steps = check_count("num_burnin_steps", num_burnin_steps, minimum=0)
        self._log_normalizer = log_normalizer
        super().__init__(
            dtype=dtype,
            reparameterization_type=tfd.NOT_REPARAMETERIZED,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    # --- the density -----------------------------------------------------------------------------------------------

    def _unnormalized_log_prob(self, x: tf.Tensor) -> tf.Tensor:
        if isinstance(self._energy, EnergyModel):
            return self._energy.unnormalized_log_prob(x)
        x = as_state(x, self.dtype, self._event)
        return -over_leading_dimensions(lambda flat: one_per_row(self._energy(flat), flat), x, len(self._event))

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        log_normalizer = self.log_normalizer
        if log_normalizer is None:
            raise NotImplementedError(
                "log_prob needs log Z, which an energy does not tell: estimate it and use "
                "p.with_log_normalizer(value).log_prob(x), or use p.unnormalized_log_prob(x) = −E(x)."
            )
        return self._unnormalized_log_prob(x) - log_normalizer

    @property
    def log_normalizer(self) -> tf.Tensor | None:
        """log Z (eq. 2), or None if it is not known: what was given, else what the model's loss has learned by now."""
        if self._log_normalizer is None and isinstance(self._energy, EnergyModel):
            return self._energy.log_normalizer
        return self._log_normalizer

    def with_log_normalizer(self, value: Any) -> EnergyDistribution:
        """The same distribution with log Z known to be `value`, so that `log_prob` works."""
        return self.copy(log_normalizer=value)

    # --- samples ---------------------------------------------------------------------------------------------------

    @property
    def kernel(self) -> Any:
        """The kernel that `sample` runs."""
        return self._kernel

    @property
    def base(self) -> tfp.distributions.Distribution:
        """Where chains start.

        Raises:
          ValueError: if there is no base distribution.
        """
        if self._base is not None:
            return self._base
        if isinstance(self._energy, EnergyModel):
            return self._energy.base
        raise ValueError("`base` must be given to sample from a callable energy: chains need somewhere to start.")

    def sample_chains(
        self,
        num_results: int,
        num_chains: int,
        seed: Any,
        num_burnin_steps: int | None = None,
        num_steps_between_results: int = 0,
        **kwargs: Any,
    ) -> mcmc.Samples:
        """Runs chains from the base distribution and keeps what `ebm.mcmc.diagnose` wants to see.

        Args:
          num_results: states kept per chain.
          num_chains: number of independent chains.
          seed: int or int32[2].
          num_burnin_steps: steps before the first kept one; default: the distribution's.
          num_steps_between_results: steps dropped between two kept ones.
          **kwargs: further arguments of `ebm.mcmc.sample`, such as `progress`.

        Returns:
          `mcmc.Samples` with states `[num_results, num_chains, *event]` and −E at them.

        >>> import tensorflow as tf, tfp_ebm as ebm
        >>> tfd = tfp.distributions
        >>> p = EnergyDistribution(
        ...     lambda x: 0.5 * x[..., 0] ** 2, event_shape=[1], base=tfd.MultivariateNormalDiag([0.0], [2.0])
        ... )
        >>> p.sample_chains(num_results=5, num_chains=3, seed=0, num_burnin_steps=10).states.shape
        TensorShape([5, 3, 1])
        """
        target, start, seed = self._chains(check_count("num_chains", num_chains), stateless_seed(seed))
        samples = mcmc.sample(
            target,
            start,
            self._kernel,
            num_results=num_results,
            num_burnin_steps=self._num_burnin_steps if num_burnin_steps is None else num_burnin_steps,
            num_steps_between_results=num_steps_between_results,
            seed=seed,
            **kwargs,
        )
        if not isinstance(self._energy, EnergyModel):
            return samples
        standardization = self._energy.energy_function.standardization
        return samples._replace(
            states=standardization.to_x(samples.states),
            unnormalized_log_prob=samples.unnormalized_log_prob - standardization.log_scale_sum(),
        )

    def _chains(
        self, num_chains: Any, seed: tf.Tensor
    ) -> tuple[Callable[[tf.Tensor], tf.Tensor], tf.Tensor, tf.Tensor]:
        """Target and starts of chains, in standardised units if the energy is a model's, and the chains' seed."""
        start_seed, chain_seed = samplers.split_seed(seed, n=2)
        # A new tensor, because TFP's bijectors remember what they drew, and a remembered value has no gradient.
        start = tf.identity(self.base.sample(num_chains, seed=start_seed))
        if not isinstance(self._energy, EnergyModel):
            return self.unnormalized_log_prob, start, chain_seed
        function = self._energy.energy_function
        return function.unnormalized_log_prob, function.standardization.to_z(start), chain_seed

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        # TFP documents None as "any seed", and takes an int for a stateful one; here an int means the same bits again.
        # An int beyond 64 bits is one that TFP itself derived: its auto-batched joint distributions hand the same one
        # to every draw, and count on each draw being another.
        derived = isinstance(seed, int) and seed.bit_length() > 64
        seed = samplers.sanitize_seed(seed) if seed is None or derived else stateless_seed(seed)
        if self._draws_exactly:
            return self._exact_samples(n, seed)
        static = tf.get_static_value(n)
        num_chains = n if static is None else int(static)
        if static is not None and static < _FEW_CHAINS:
            return self.sample_chains(1, num_chains, seed, jit_compile=False).states[0]
        if self._num_burnin_steps == 0 or tf.inside_function():
            return self.sample_chains(1, num_chains, seed).states[0]
        target, start, seed = self._chains(num_chains, seed)
        states, arrival = last_states(target, start, self._kernel, num_burnin_steps=self._num_burnin_steps, seed=seed)
        if arrival.at_least > MAX_RHAT:
            warnings.warn(
                f"R-hat is {arrival.rhat:.3g}, above {MAX_RHAT}: in the second half of the {self._num_burnin_steps} "
                "burn-in steps the chains did not forget where they were, and each mode's share of the samples may be "
                "that of the starts. A larger `num_burnin_steps`, or a kernel that crosses between modes, helps.",
                stacklevel=2,
            )
        return (
            self._energy.energy_function.standardization.to_x(states)
            if isinstance(self._energy, EnergyModel)
            else states
        )

    @property
    def _draws_exactly(self) -> bool:
        """Whether the energy draws samples by itself, and no kernel was asked for."""
        is_normalized = isinstance(self._energy, EnergyModel) and isinstance(self._energy.network, NormalizedEnergy)
        return is_normalized and self.parameters["kernel"] is None and self._energy.base_measure is None

    def _exact_samples(self, n: Any, seed: tf.Tensor) -> tf.Tensor:
        draw = find_compiled(
            self._energy.unnormalized_log_prob,
            "exact samples",
            lambda resolve: _exact_sampler(resolve().__self__),
        )
        return draw(tf.cast(n, tf.int32), seed)

    # --- TFP's contract --------------------------------------------------------------------------------------------

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape(self._event)

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant(self._event, tf.int32)

    def _batch_shape(self) -> tf.TensorShape:
        return tf.TensorShape([])

    def _batch_shape_tensor(self) -> tf.Tensor:
        return tf.constant([], tf.int32)

    def _default_event_space_bijector(self) -> tfp.bijectors.Bijector:
        return tfb.Identity(validate_args=self.validate_args)

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        return {}
