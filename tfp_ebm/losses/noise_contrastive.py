"""Noise contrastive estimation: learn an energy, and log Z with it, by telling data from noise (eqs. 58-64).

Mix each draw of the data with ν draws of noise whose density q is known (eq. 58). Whether x is data follows, by Bayes'
rule, from the two densities, and the model says so by its own (eqs. 59-61):

    h(x) = p(x) / (p(x) + ν q(x)) = σ(u(x)),      u(x) = −E(x) − log Z − log q(x) − log ν.

The mean log-likelihood of these labels, per draw of the data, is the objective. Z is a number that is learned like any
other parameter: the classifier is right only for normalised densities, so that p = p_data and log Z = log ∫exp(−E)
where it is minimal (eq. 64).

For a network of (x, c), data and noise have the same conditions. With the noise "shuffled" these are pairs (x, c') from
different rows, draws of p(x) p(c), so that the network learns the ratio p(x, c)/(p(x) p(c)) = exp(−E(x; c))/Z, and
needs no density of noise: ratio estimation (Hermans, Begy & Louppe 2020; Miller, Weniger & Forré 2022).

The ν of Gutmann & Hyvärinen, used here, counts noise per data; the note's is its inverse. Its eq. 63 drops the weights
P(y) of eq. 62, without which the optimum is off by log ν in log Z; they are the ν in front of the noise's term here.
"""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import serialization
from tfp_ebm.arguments import check_choice, check_count, check_positive
from tfp_ebm.energy.base import check_base, draw
from tfp_ebm.energy.data import first_rows, row_blocks
from tfp_ebm.energy.moments import DataMoments
from tfp_ebm.energy.standardization import Coordinates
from tfp_ebm.losses.base import Loss, LossOutput
from tfp_ebm.losses.noise_models import MIXTURE_ROWS, FittedNoise, check_usable, decoded, encoded, is_function
from tfp_ebm.random import fold_in, uniform

FITTED = ("gaussian", "gaussian_mixture", "kernel_density")
NOISES = (*FITTED, "shuffled")

# Below this overlap a training warns that its noise is too easy: one row in fifty still has a gradient.
_SATURATED = 0.02
# log Z begins where it balances the first batch, found by halving an interval so many times.
_HALVINGS = 80


@keras.saving.register_keras_serializable("tfp_ebm")
class NoiseContrastiveEstimation(Loss):
    """Noise contrastive estimation: per row softplus(−u(x)) + ν·mean softplus(u(x')), x' ~ q (eqs. 61-63, weighted).

        u(x) = −E(x) − log Z − log q(x) − log ν

    The noise term is the mean over the batch's ⌈ν·batch⌉ draws, the same in each row, so that `sample_weight` weighs
    data alone. The loss is log(1 + ν) + ν log((1 + ν)/ν) where model, noise and data agree, and at most that at the
    optimum. As q approaches the data, the estimate of log Z and of the energy's parameters has 1 + 1/ν times the
    variance of maximum likelihood.

    Args:
      noise: q, over x: a `tfd.Distribution`, or what `adapt` shall fit: "gaussian", "gaussian_mixture" or
        "kernel_density". None: the Gaussian if `adapt` was called, else the base distribution of the model, which is
        the Gaussian fitted to its data, or its base measure. It must cover the data, and better a little more: where
        its density is zero nothing is learned, and where neither falls nothing holds the energy. For a network of
        (x, c) also "shuffled", with a `base_measure` of the model as p(x), so that p(x | c) is p(x) times the ratio; or
        a function of conditions `[rows, *condition]` that returns distributions of x of batch shape `[rows]`. To be
        saved, it must be registered by `keras.saving.register_keras_serializable`.
      noise_ratio: ν, draws of noise per row of data, any number > 0.
      num_components: Gaussians of a "gaussian_mixture", beside the one twice as wide as the data that has a tenth.
      num_centers: rows of the data that a "kernel_density" smooths, at most. Its density at these very
        rows is too high, by their own kernels: `adapt` to rows kept out of training where rows are few or coordinates
        many (log Z came out .02 too low for 1000 rows of 2 coordinates, 1.9 for 1000 of 10, .07 for 20 000).
      bandwidth: h of a "kernel_density", in standard deviations of the data; None: Scott's rule.

    Attributes:
      log_normalizer: log Z, a trainable weight; None before the loss is built. It is the same in x and in standardised
        units, and `EnergyDistribution` of the trained model uses it. The first training step starts it where it
        balances the classifier on that batch.

    Metrics: `accuracy` of the classifier p > q, with data and noise in equal shares: ½ where they agree, 1 where they
    do not overlap; `overlap`, the share of rows that still teach: (1 + 1/ν)·E_data[1 − h], and the noise's share
    likewise, 1 where all agree and 0 for a saturated classifier, of which `fit` warns below .02; `log_normalizer`; and
    `uncovered`, the share of rows where a given noise has no density, of which it warns too.

    Raises:
      TypeError, ValueError: for noise that is no single distribution, has no `log_prob`, no `sample` that works in a
        graph, or another event shape or dtype than the energy; for a ratio that is not positive, or noise that was
        never fitted.

    Reference: M. Gutmann, A. Hyvärinen, Noise-contrastive estimation of unnormalized statistical models, 2012.

    >>> import numpy as np, tensorflow as tf
    >>> x = np.random.default_rng(0).normal(size=(1000, 2)).astype("float32")
    >>> loss = NoiseContrastiveEstimation(noise_ratio=4.0)
    >>> loss.adapt(x)
    >>> output = loss(lambda x: 0.5 * tf.reduce_sum(x**2, -1), x, seed=0, training=True)
    >>> abs(float(loss.log_normalizer) - math.log(2 * math.pi)) < 0.1  # balances the first batch
    True
    >>> abs(float(tf.reduce_mean(output.per_example)) - (math.log(5) + 4 * math.log(5 / 4))) < 0.1
    True
    """

    def __init__(
        self,
        noise: tfp.distributions.Distribution | Callable[[tf.Tensor], Any] | str | None = None,
        noise_ratio: float = 1.0,
        *,
        num_components: int = 8,
        num_centers: int = 1000,
        bandwidth: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(noise, str):
            check_choice("noise", noise, NOISES)
        elif noise is not None and not is_function(noise):
            check_base("noise", noise)
            check_usable(noise)
        self.noise_ratio = check_positive("noise_ratio", noise_ratio)
        self.num_components = check_count("num_components", num_components)
        self.num_centers = check_count("num_centers", num_centers)
        self.bandwidth = None if bandwidth is None else check_positive("bandwidth", bandwidth)
        self.log_normalizer: Any = None
        # Out of Keras's and TensorFlow's sight, which would track all that a distribution is made of.
        self._given = types.SimpleNamespace(noise=noise, fitted=None, is_used=False, has_measure=False)
        self.metric_names = ("accuracy", "overlap", "log_normalizer", *(("uncovered",) if self._may_miss else ()))

    @property
    def noise(self) -> tfp.distributions.Distribution | Callable[[tf.Tensor], Any] | str | None:
        """What was given as `noise`."""
        return self._given.noise

    @property
    def _may_miss(self) -> bool:
        return isinstance(self.noise, tfp.distributions.Distribution) or is_function(self.noise)

    def adapt(self, x: Any) -> None:
        """Fits the noise to data, in the units of the data; before training.

        A given distribution is left as it is. Without a kind of noise named it is the Gaussian of all rows; the others
        look at the first 20 000.

        Args:
          x: array `[rows, *event]`, or anything that yields batches of it.

        Raises:
          TypeError, ValueError: if `x` is not whole, or has fewer rows than the mixture has components.
          ValueError: once the loss has been used: a compiled step would go on with the noise of then.
        """
        if self._may_miss or self.noise == "shuffled":
            return
        if self._given.is_used:
            raise ValueError("`adapt` must come before the loss is used: make a new one and compile again.")
        if self.noise in (None, "gaussian"):
            blocks = iter(row_blocks(x))
            first = list(itertools.islice(blocks, 1))
            moments = DataMoments.of(itertools.chain(first, blocks))
            self._given.fitted = FittedNoise.gaussian(moments, first[0].shape[1:])
        elif self.noise == "gaussian_mixture":
            rows, _ = first_rows(x, MIXTURE_ROWS, None)
            self._given.fitted = FittedNoise.gaussian_mixture(rows, self.num_components)
        else:
            rows, _ = first_rows(x, MIXTURE_ROWS, None)
            self._given.fitted = FittedNoise.kernel_density(rows, self.num_centers, self.bandwidth)

    def build(self, event_shape: tuple[int, ...], dtype: str = "float32") -> None:
        """Creates log Z, and the note whether it has begun to be learned."""
        self.log_normalizer = self.add_weight(
            shape=(), dtype=dtype, initializer="zeros", autocast=False, aggregation="mean", name="log_normalizer"
        )
        self._begun = self.add_weight(
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name="begun",
        )
        self.built = True

    def check(self, energy_fn: Callable[..., tf.Tensor]) -> None:
        """See `Loss.check`; the noise must be of the energy's dtype and event shape."""
        super().check(energy_fn)
        if self.noise == "shuffled" or is_function(self.noise):
            if not getattr(energy_fn, "is_conditional", False):
                raise ValueError(f"`noise` {self.noise!r} needs a network of (x, condition), got one of x alone.")
            self._given.has_measure = getattr(energy_fn, "base_measure", None) is not None
        elif self._may_miss and hasattr(energy_fn, "event_shape"):
            check_base("noise", self.noise, getattr(energy_fn, "dtype", None), tuple(energy_fn.event_shape))

    def call(
        self,
        energy_fn: Callable[..., tf.Tensor],
        x: tf.Tensor,
        condition: tf.Tensor | None,
        *,
        seed: tf.Tensor,
        training: bool,
    ) -> LossOutput:
        """softplus(−u(x)) of each row, plus ν times the mean of softplus(u(x')) over the noise."""
        num_noise = tf.cast(tf.math.ceil(self.noise_ratio * tf.cast(tf.shape(x)[0], tf.float64)), tf.int32)
        if self.noise == "shuffled":
            log_ratio = self._ratio_to_shuffled(energy_fn, x, num_noise, seed)
        else:
            log_ratio = self._ratio_to_noise(energy_fn, x, num_noise, fold_in(seed, 0))
        if training:
            self._begin(tf.stop_gradient(log_ratio), tf.shape(x)[0])
        log_ratio -= self.log_normalizer.value
        u = log_ratio - math.log(self.noise_ratio)
        num_rows = tf.shape(x)[0]
        of_noise = self.noise_ratio * tf.reduce_mean(tf.nn.softplus(u[num_rows:]))
        per_example = tf.nn.softplus(-u[:num_rows]) + of_noise
        return LossOutput(tf.ensure_shape(per_example, x.shape[:1]), self._figures(log_ratio, u, num_rows))

    def _ratio_to_noise(self, energy_fn: Any, x: tf.Tensor, num_noise: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns log p/q, but for log Z, of the rows and of draws of the noise."""
        if is_function(self.noise):
            both = tf.range(tf.shape(x)[0] + num_noise) % tf.maximum(tf.shape(x)[0], 1)
            conditions = tf.gather(energy_fn.condition, both)  # those of the noise are those of the rows, in turn
            drawn = draw(self._given_noise(energy_fn, x, conditions[tf.shape(x)[0] :]), tf.zeros([0], tf.int32), seed)
            noise = self._given_noise(energy_fn, x, conditions)
        else:
            noise = self._noise(energy_fn, x)
            drawn = draw(noise, num_noise[None], seed)
        both = tf.concat([x, tf.ensure_shape(drawn, [None, *x.shape[1:]])], 0)
        # one call of the network for both: larger matrices, and its layers see data and noise alike
        return -energy_fn(both) - noise.log_prob(both)

    def _given_noise(self, energy_fn: Any, x: tf.Tensor, conditions: tf.Tensor) -> tfp.distributions.Distribution:
        """Returns the noise of each condition, in the coordinates of the energy function."""
        function: Any = self.noise
        noise = function(conditions)
        if not isinstance(noise, tfp.distributions.Distribution):
            raise TypeError(f"`noise` must return a tfp.distributions.Distribution, got {noise!r}.")
        if noise.batch_shape.rank != 1 or tuple(noise.event_shape) != tuple(x.shape[1:]) or noise.dtype != x.dtype:
            raise ValueError(
                f"`noise` must return {x.dtype.name} distributions of batch shape [rows] and event shape "
                f"{tuple(x.shape[1:])}, got {noise}."
            )
        return Coordinates.of(energy_fn).distribution_in_chain(noise)

    def _ratio_to_shuffled(self, energy_fn: Any, x: tf.Tensor, num_noise: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns log p(x | c)/p(x), but for log Z, of the rows and of rows with the conditions of others.

        The base measure of the model is p(x), so its density is not part of the ratio.
        """
        number = tf.maximum(tf.shape(x)[0], 1)
        i = tf.range(num_noise)
        others = tf.maximum(number - 1, 1)
        # whole turns of the batch: no row meets its own condition, and each pair occurs once before any occurs again
        first = tf.cast(uniform([], seed, tf.float32) * tf.cast(others, tf.float32), tf.int32)
        turns = 1 + (first + i // number) % others
        conditions = tf.gather(energy_fn.condition, (i + turns) % number)
        joined = energy_fn.with_condition(tf.concat([energy_fn.condition, conditions], 0))
        return -joined.network_term(tf.concat([x, tf.gather(x, i % number)], 0))

    def _figures(self, log_ratio: tf.Tensor, u: tf.Tensor, num_rows: tf.Tensor) -> dict[str, tf.Tensor]:
        sign = tf.sign(log_ratio)  # 0 for a tie, half of which is right
        accuracy = 0.5 + 0.25 * (tf.reduce_mean(sign[:num_rows]) - tf.reduce_mean(sign[num_rows:]))
        teaches = tf.reduce_mean(tf.nn.sigmoid(-u[:num_rows])), tf.reduce_mean(tf.nn.sigmoid(u[num_rows:]))
        overlap = 0.5 * (1.0 + 1.0 / self.noise_ratio) * (teaches[0] + self.noise_ratio * teaches[1])
        metrics = {"accuracy": accuracy, "overlap": overlap, "log_normalizer": tf.identity(self.log_normalizer.value)}
        if self._may_miss:
            metrics["uncovered"] = tf.reduce_mean(tf.cast(log_ratio[:num_rows] == float("inf"), log_ratio.dtype))
        return metrics

    def _noise(self, energy_fn: Any, x: tf.Tensor) -> tfp.distributions.Distribution:
        """The noise in the coordinates of the energy function."""
        self._given.is_used = True
        if self._may_miss:
            noise = self.noise
        elif self._given.fitted is not None:
            noise = self._given.fitted.distribution(x.dtype)
        elif self.noise is None and hasattr(energy_fn, "base"):
            noise = energy_fn.base
        else:
            raise ValueError(
                "`noise` must be given, or fitted by `adapt(x)` of the loss"
                + (", for an energy that has no base." if self.noise is None else f": {self.noise!r} is not yet.")
            )
        check_base("noise", noise, x.dtype, tuple(x.shape[1:]))
        return Coordinates.of(energy_fn).distribution_in_chain(noise)

    def _begin(self, log_ratio: tf.Tensor, num_rows: tf.Tensor) -> None:
        """Starts log Z, in the first training step that can, at the minimum of this batch's loss over log Z alone."""
        value, has_begun = self.log_normalizer.value, self._begun.value > 0
        start = tf.cond(has_begun, lambda: tf.identity(value), lambda: self._balance(log_ratio, num_rows))
        usable = tf.math.is_finite(start)
        replica = tf.distribute.get_replica_context()
        if replica is not None and replica.num_replicas_in_sync > 1:  # some may have no rows, and no start
            total = replica.all_reduce(
                tf.distribute.ReduceOp.SUM,
                tf.stack([tf.where(usable, start, tf.zeros_like(start)), tf.cast(usable, start.dtype)]),
            )
            usable = total[1] > 0.0
            start = total[0] / tf.maximum(total[1], 1.0)
        self.log_normalizer.assign(tf.where(usable, start, value))
        self._begun.assign(tf.cast(has_begun | usable, tf.int32))

    def _balance(self, log_ratio: tf.Tensor, num_rows: tf.Tensor) -> tf.Tensor:
        """The c at which E_data[1 − h] = ν E_noise[h], a root of an increasing function, by halving."""
        # beyond these, neighbouring values of c are the same float32; a NaN stays one
        u = tf.clip_by_value(log_ratio - math.log(self.noise_ratio), -1e8, 1e8)

        def excess(c: tf.Tensor) -> tf.Tensor:
            data, noise = tf.nn.sigmoid(c - u[:num_rows]), tf.nn.sigmoid(u[num_rows:] - c)
            return tf.reduce_mean(data) - self.noise_ratio * tf.reduce_mean(noise)

        def halve(i: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            middle = 0.5 * (low + high)
            is_low = excess(middle) < 0.0
            return i + 1, tf.where(is_low, middle, low), tf.where(is_low, high, middle)

        # so far out one of the two terms is below any ratio in use
        start = (tf.constant(0), tf.reduce_min(u) - 50.0, tf.reduce_max(u) + 50.0)
        _, low, high = tf.while_loop(lambda i, *_: i < _HALVINGS, halve, start, maximum_iterations=_HALVINGS)
        return 0.5 * (low + high)

    @property
    def known_log_normalizer(self) -> tf.Tensor | None:
        """See `Loss.known_log_normalizer`: log Z once training has begun."""
        if self.log_normalizer is None or (self.noise == "shuffled" and not self._given.has_measure):
            return None
        with tf.init_scope():  # whether it has begun is a fact, also while a function of it is traced
            has_begun = bool(self._begun.value.numpy())
        return tf.identity(self.log_normalizer.value) if has_begun else None

    def training_warning(self, metrics: Mapping[str, float]) -> str:
        """See `Loss.training_warning`: noise that is too easy, or does not cover the data."""
        if metrics.get("uncovered", 0.0) > 0.0:
            return (
                f"the noise has no density at {metrics['uncovered']:.2%} of the data, where nothing is learned: take "
                "noise that covers the data, such as a wider one or the default."
            )
        if metrics.get("overlap", 1.0) < _SATURATED:
            return (
                f"the classifier is saturated: it tells noise from data with accuracy {metrics['accuracy']:.4f}, and "
                f"the overlap is {metrics['overlap']:.2g}, below {_SATURATED}, so that little is learned and log Z is "
                'uncertain. Noise nearer to the data (noise="gaussian_mixture" or "kernel_density") helps.'
            )
        return ""

    def get_config(self) -> dict[str, Any]:
        """The arguments, for Keras, and the noise that was fitted."""
        fitted = self._given.fitted
        return {
            **super().get_config(),
            "noise": encoded(self.noise),
            "noise_ratio": self.noise_ratio,
            "num_components": self.num_components,
            "num_centers": self.num_centers,
            "bandwidth": self.bandwidth,
            "fitted": None if fitted is None else [serialization.encode(value, "noise") for value in fitted],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NoiseContrastiveEstimation:
        """The inverse of `get_config`."""
        config = dict(config)
        fitted = config.pop("fitted")
        loss = cls(**{**config, "noise": decoded(config["noise"])})
        if fitted is not None:
            shape, loc, scale, probs = (serialization.decode(value) for value in fitted)
            probs = None if probs is None else probs.numpy()
            loss._given.fitted = FittedNoise(tuple(shape), loc.numpy(), scale.numpy(), probs)
        return loss
