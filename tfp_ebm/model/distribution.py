"""`EnergyDistribution`: an energy as a TensorFlow Probability distribution.

    p(x) = exp(−E(x)) / Z        (eq. 1)

Any `tfp.mcmc` kernel accepts its `unnormalized_log_prob`, and a joint distribution accepts it as a prior. `log_prob`
works only if log Z is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import mcmc
from tfp_ebm.arguments import check_count, check_event_shape, check_keras_3, check_kernel
from tfp_ebm.energy.base import check_base
from tfp_ebm.energy.signs import check_energy
from tfp_ebm.energy.standardization import Coordinates
from tfp_ebm.mcmc.arrival import MIN_CHAINS
from tfp_ebm.model import default_draws
from tfp_ebm.model.contract import (
    UnfrozenVariables,
    bijector_of,
    check_count_or_tensor,
    checked_log_normalizer,
    with_added_axes,
)
from tfp_ebm.model.energy_model import EnergyModel
from tfp_ebm.model.exact_draws import draws_exactly, exact_draws, trusted_draws
from tfp_ebm.model.joint_draws import next_draw
from tfp_ebm.model.negative_energy import model_of, negative_energy_of, unnormalized_log_prob
from tfp_ebm.model.product import Composable
from tfp_ebm.model.restarts import sample_with_restarts
from tfp_ebm.model.usable_starts import usable_starts
from tfp_ebm.random import stateless_seed

tfb, tfd = tfp.bijectors, tfp.distributions


class EnergyDistribution(tfp.distributions.Distribution, Composable):
    """The distribution p(x) = exp(−E(x))/Z of an energy, for everything in TFP that takes a target density (eq. 1).

    `sample(n, seed)` draws by sequential Monte Carlo from the base, as `draw` does, and warns if the result cannot be
    trusted. A network that draws exactly does so. `sample` runs n independent chains from the base and returns their
    last states if a `kernel` or `bijector` is given, inside a `tf.function`, in TFP's auto-batched joint distributions,
    for more than 50 coordinates, and if the base has no normalised density. It then warns about chains that never moved
    and about NaN gradients at points of finite density. With at least 16 chains, it also warns if R-hat over the second
    half of the burn-in is significantly above 1.02: the chains then have not forgotten their initial states, for
    example because of separated modes, or still drift. Inside a `tf.function` there are no warnings. Initial states of
    zero or NaN density are drawn again.

    `unnormalized_log_prob` is −E(x), or −E(x) − log Z if `log_normalizer` was given: if log Z depends on another
    variable of a joint distribution, the joint density needs it. If log Z is unknown or irrelevant,
    `with_log_normalizer(0.0)` makes TFP's wrappers that call `log_prob` (`tfd.Sample`, `tfd.MixtureSameFamily`,
    `tfd.TransformedDistribution`) compute with −E(x).

    `trainable_variables` follows Keras: it does not contain weights with `trainable = False`, and a `GradientTape` does
    not watch these weights in `unnormalized_log_prob`. This is not possible for a callable that closes over a network;
    in that case pass `trainable_variables` to TFP's optimisers.

    Args:
      energy: an `EnergyModel`, any Keras network, or a callable `[batch, *event] -> [batch]`.
      event_shape: shape of one x; default: that of the model, of the network's input, or of `base`.
      kernel: the kernel of the chains: a kernel of `ebm.mcmc` or any callable `target ->
        tfp.mcmc.TransitionKernel`. If it is given, `sample` runs chains. With an `EnergyModel`, step sizes and boxes
        are in standardised coordinates, as in the model's loss, but the base of an `IndependenceMetropolis` or
        `TemperedTransition` is over x, like `base`. Default: a global move from the base and adaptive HMC,
        `ebm.mcmc.default_kernel(base)`.
      base: the `tfd.Distribution` over x from which draws and chains start; default: the model's base.
      num_burnin_steps: number of kernel steps before the sample of a chain.
      log_normalizer: log Z, if known: a number, an `Estimate` of `ebm.evaluation`, a scalar tensor or a variable.
        Default: the value learned by the loss of an `EnergyModel`, if any.
      dtype: the dtype of x, for callables; default: that of `base`, else float32.
      bijector: a `tfb.Bijector` from unconstrained numbers onto the support of p, for energies that are defined on a
        subset of space only. It becomes `experimental_default_event_space_bijector`, which variational inference uses,
        and the default kernel uses it. Default: the base's bijector for the former, none for the latter.
      validate_args, allow_nan_stats, name: as for any TFP distribution.

    Raises:
      TypeError: if `energy` is not callable.
      ValueError: if the event shape is unknown, or the network also takes a condition (see `EnergyModel.given`).

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
        bijector: tfp.bijectors.Bijector | None = None,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "EnergyDistribution",
    ) -> None:
        parameters = dict(locals())
        check_keras_3("energy", energy)
        if tf.is_tensor(event_shape):
            event_shape = tf.get_static_value(event_shape).tolist()
        if isinstance(energy, keras.layers.Layer) and not isinstance(energy, EnergyModel):
            energy = model_of(energy, event_shape)
        if isinstance(energy, EnergyModel):
            if energy.is_conditional:
                raise ValueError("`energy` must be of x alone, got a conditional model: pass `model.given(condition)`.")
            known = energy.event_shape
            if event_shape is not None and check_event_shape(event_shape) != known:
                raise ValueError(f"`event_shape` must be that of the model, {known}, got {tuple(event_shape)}.")
            event_shape, dtype = known, energy.dtype
            # A tf.Module finds the tf.Variables in its attributes, but not those of a Keras 3 model.
            self._variables_of_energy = UnfrozenVariables(energy)
        elif not callable(energy):
            raise TypeError(f"`energy` must be an EnergyModel, a Keras network or a callable, got {energy!r}.")
        elif event_shape is None and base is None:
            raise ValueError("`event_shape` or `base` must be given for a callable energy.")
        else:
            check_energy(energy, "energy")
            dtype = dtype or getattr(base, "dtype", tf.float32)
            event_shape = getattr(base, "event_shape", None) if event_shape is None else event_shape
        dtype = tf.as_dtype(dtype)
        event_shape = check_event_shape(event_shape)
        if base is not None:
            check_base("base", base, dtype, event_shape)
        if kernel is not None:
            check_kernel(kernel)
        if bijector is not None:
            if not isinstance(bijector, tfb.Bijector):
                raise TypeError(f"`bijector` must be a tfp.bijectors.Bijector, got {bijector!r}.")
            if bijector.dtype is not None and bijector.dtype != dtype:
                raise TypeError(f"`bijector` must have the energy's dtype {dtype.name}, got {bijector.dtype}.")
        self._energy = energy
        self._event = event_shape
        # One object for all distributions of one energy, so that they share compiled chains.
        self._target: Callable[[tf.Tensor], tf.Tensor] | None = None
        if not isinstance(energy, EnergyModel):
            self._target = negative_energy_of(energy, dtype, event_shape)
        self._kernel = kernel
        self._base = base
        self._bijector = bijector
        self._num_burnin_steps = check_count("num_burnin_steps", num_burnin_steps, minimum=0)
        self._log_normalizer = None if log_normalizer is None else checked_log_normalizer(log_normalizer, dtype)
        super().__init__(
            dtype=dtype,
            reparameterization_type=tfd.NOT_REPARAMETERIZED,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    # --- the density -----------------------------------------------------------------------------------------------

    @property
    def negative_energy(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """The function −E(x), without log Z: the target of the chains, shared by all distributions of one energy."""
        if self._target is not None:
            return self._target
        model: Any = self._energy
        return lambda x: unnormalized_log_prob(model, x)

    def _unnormalized_log_prob(self, x: tf.Tensor) -> tf.Tensor:
        negative_energy = self.negative_energy(x)
        return negative_energy if self._log_normalizer is None else negative_energy - self.log_normalizer

    def _log_prob(self, x: tf.Tensor) -> tf.Tensor:
        log_normalizer = self.log_normalizer
        if log_normalizer is None:
            raise NotImplementedError(
                "log_prob needs log Z, which an energy does not determine: estimate it, for example by "
                "ebm.evaluation.annealed_importance_sampling, and use p.with_log_normalizer(value). If a constant "
                "does not matter, as in MCMC, use p.unnormalized_log_prob(x) = −E(x); for tfd.Sample and other "
                "TFP wrappers that call log_prob, use p.with_log_normalizer(0.0), whose log_prob is −E(x)."
            )
        return self.negative_energy(x) - log_normalizer

    @property
    def log_normalizer(self) -> tf.Tensor | None:
        """log Z (eq. 2): the given value, else the value that the model's loss has learned so far, else None."""
        if self._log_normalizer is not None:
            return tf.convert_to_tensor(self._log_normalizer, self.dtype)
        return self._energy.log_normalizer if isinstance(self._energy, EnergyModel) else None

    def with_log_normalizer(self, value: Any) -> EnergyDistribution:
        """Returns the same distribution with a known log Z, an `Estimate` or a number, so that `log_prob` works."""
        return self.copy(log_normalizer=value)

    # --- samples ---------------------------------------------------------------------------------------------------

    @property
    def kernel(self) -> Any:
        """The kernel of chains: the given kernel, else `ebm.mcmc.default_kernel` of the base."""
        return self._default_kernel(self._bijector) if self._kernel is None else self._kernel

    def _default_kernel(self, bijector: tfp.bijectors.Bijector | None) -> mcmc.Kernel:
        base = self._known_base()
        # A draw of another energy requires a chain, which is too expensive for a single move.
        proposes = default_draws.has_density(base) and not isinstance(base, EnergyDistribution)
        return mcmc.default_kernel(base if proposes else None, bijector)

    def _known_base(self) -> tfp.distributions.Distribution | None:
        try:
            return self.base
        except ValueError:
            return None

    @property
    def base(self) -> tfp.distributions.Distribution:
        """The distribution over x from which chains start.

        Raises:
          ValueError: if there is no base distribution.
        """
        if self._base is not None:
            return self._base
        if isinstance(self._energy, EnergyModel):
            return self._energy.base
        raise ValueError("`base` must be given to sample from a callable energy: chains start at its draws.")

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
        """Runs chains from the base distribution and keeps their states, for `ebm.mcmc.diagnose`.

        Chains that never moved, if others did, run again from other draws of the base, with a warning.

        Args:
          num_results: number of states kept per chain.
          num_chains: number of independent chains; an int, or a scalar tensor if it is known at run time only.
          seed: int or int32[2].
          num_burnin_steps: number of steps before the first kept one; default: the distribution's.
          num_steps_between_results: number of steps dropped between two kept ones.
          **kwargs: further arguments of `ebm.mcmc.sample`, such as `progress`.

        Returns:
          `mcmc.Samples` with states `[num_results, num_chains, *event]` and the values of −E.

        >>> import tensorflow as tf, tfp_ebm as ebm
        >>> tfd = tfp.distributions
        >>> p = EnergyDistribution(
        ...     lambda x: 0.5 * x[..., 0] ** 2, event_shape=[1], base=tfd.MultivariateNormalDiag([0.0], [2.0])
        ... )
        >>> p.sample_chains(num_results=5, num_chains=3, seed=0, num_burnin_steps=10).states.shape
        TensorShape([5, 3, 1])
        """
        num_chains = check_count_or_tensor("num_chains", num_chains)
        if "kernel" in kwargs:
            raise TypeError("`kernel` belongs to the distribution: use p.copy(kernel=kernel).sample_chains(...).")
        settings = {
            "num_results": num_results,
            "num_burnin_steps": self._num_burnin_steps if num_burnin_steps is None else num_burnin_steps,
            "num_steps_between_results": num_steps_between_results,
        }
        samples = sample_with_restarts(self._chains, num_chains, stateless_seed(seed), settings | kwargs)
        samples = self._coordinates.finish(samples)
        if self._log_normalizer is None:
            return samples
        return samples._replace(unnormalized_log_prob=samples.unnormalized_log_prob - self.log_normalizer)

    def draw(self, num_samples: int, seed: Any, **kwargs: Any) -> mcmc.Draws:
        """Draws by sequential Monte Carlo from the base, with log Z of exp(−E), its error, and a verdict on both.

        It does not use `kernel`, and runs eagerly only. Networks that draw exactly do so.

        Args:
          num_samples: number of draws.
          seed: int or int32[2].
          **kwargs: further arguments of `ebm.mcmc.sequential_monte_carlo`.

        Raises:
          NotImplementedError: inside a `tf.function`, or if the distribution has a `bijector`.
          ValueError: if there is no base distribution.

        >>> base = tfd.MultivariateNormalDiag([0.0], [2.0])
        >>> p = EnergyDistribution(lambda x: 0.5 * x[..., 0] ** 2, event_shape=[1], base=base)
        >>> draws = p.draw(100, seed=0)
        >>> draws.states.shape, draws.trouble, round(draws.log_normalizer.value, 1)  # log √(2π)
        (TensorShape([100, 1]), (), 0.9)
        """
        if self._bijector is not None:
            raise NotImplementedError("`draw` does not support a `bijector`; use `sample`.")
        is_exact = draws_exactly(self._energy)
        return trusted_draws(
            self._energy, self.negative_energy, None if is_exact else self.base, num_samples, seed, kwargs
        )

    @property
    def _coordinates(self) -> Coordinates:
        """The chains' coordinates: z for a model, x for a callable (for an `EnergyFunction`, its argument z)."""
        return Coordinates.of(self._energy.energy_function) if isinstance(self._energy, EnergyModel) else Coordinates()

    def _chains(self, num_chains: Any, seed: tf.Tensor) -> tuple[Callable[..., tf.Tensor], tf.Tensor, Any, tf.Tensor]:
        """Returns target, initial states and kernel of chains, in standardised coordinates for a model, and a seed."""
        start_seed, chain_seed = tf.unstack(tfp.random.split_seed(seed, n=2))
        start = usable_starts(self.base, self.negative_energy, num_chains, start_seed)
        bijector, kernel = self._bijector, self._kernel
        if not isinstance(self._energy, EnergyModel):
            return self.negative_energy, start, self._default_kernel(bijector) if kernel is None else kernel, chain_seed
        function = self._energy.energy_function
        standardization = function.standardization
        if bijector is not None:
            loc, scale = standardization.loc.value, standardization.scale.value
            bijector = tfb.Chain([tfb.Scale(1.0 / scale), tfb.Shift(-loc), bijector])
        kernel = self._default_kernel(bijector) if kernel is None else kernel
        if isinstance(kernel, mcmc.Kernel):
            kernel = kernel.in_coordinates(standardization)
        return function.unnormalized_log_prob, standardization.to_z(start), kernel, chain_seed

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        # TFP documents None as "any seed", and treats an int as stateful; here an int always gives the same bits.
        # TFP's auto-batched joint distributions pass the same int beyond 64 bits for draws that must differ.
        static = tf.get_static_value(n)
        num_chains = n if static is None else int(static)
        if isinstance(seed, int) and seed.bit_length() > 64:
            if not tf.executing_eagerly() and num_chains == 1:
                drawn = next_draw(self._last_states, seed, self.dtype, self._event)
                if drawn is not None:
                    return drawn
            return self._default_draws(num_chains, tfp.random.sanitize_seed(seed))
        return self._default_draws(num_chains, tfp.random.sanitize_seed(None) if seed is None else stateless_seed(seed))

    def _default_draws(self, num: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns draws `[num, *event]` by sequential Monte Carlo where it is possible, else as `_last_states`."""
        if not tf.executing_eagerly() or self._kernel is not None or self._bijector is not None:
            return self._last_states(num, seed)
        base = None if draws_exactly(self._energy) or default_draws.is_for_structure() else self._known_base()
        if isinstance(base, EnergyDistribution) or not default_draws.suits_sequential_monte_carlo(base):
            return self._last_states(num, seed)
        return default_draws.warned_states(self.draw(num, seed=seed))

    def _last_states(self, num_chains: Any, seed: tf.Tensor) -> tf.Tensor:
        """Returns the last states of chains, `[num_chains, *event]`, or exact samples if the network draws them."""
        if self._kernel is None and draws_exactly(self._energy):
            return exact_draws(self._energy, num_chains, seed)
        # with few, as TFP's joint distributions draw, a run ends before XLA would have compiled it
        if isinstance(num_chains, int) and num_chains < MIN_CHAINS:
            return self.sample_chains(1, num_chains, seed=seed, jit_compile=False).states[0]
        if self._num_burnin_steps == 0 or not tf.executing_eagerly():
            return self.sample_chains(1, num_chains, seed=seed).states[0]
        states = default_draws.warned_last_states(*self._chains(num_chains, seed), self._num_burnin_steps)
        return self._coordinates.from_chain(states)

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
        if self._bijector is not None:
            return self._bijector
        return bijector_of(self._known_base(), self.validate_args)

    def __getitem__(self, slices: Any) -> tfp.distributions.Distribution:
        """Adds axes of size 1 to the batch shape, which is (): `p[..., tf.newaxis]`.

        Raises:
          IndexError: for an index or a slice, since there is no axis to index.
        """
        return with_added_axes(self, slices)

    def __reduce__(self) -> Any:
        # TFP's attributes hold functions and name scopes, so only the arguments are copied or pickled
        return _rebuilt, (type(self), dict(self.parameters))

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        return {}


def _rebuilt(cls: type[EnergyDistribution], arguments: dict[str, Any]) -> EnergyDistribution:
    return cls(**arguments)
