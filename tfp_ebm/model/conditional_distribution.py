"""The distributions p(y | x) of a batch of conditions, for networks whose log Z is 0 for every x."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm.arguments import check_probability
from tfp_ebm.random import stateless_seed

# Draws by which moments and quantiles of several targets are computed.
_NUM_DRAWS = 2048


class ConditionalDistribution(tfp.distributions.Distribution):
    """The distributions p(y | x) for a batch of x, of batch shape `[batch]` and the event shape of y.

    With one target, `mean`, `stddev`, `mode`, `quantile`, `interval` and `cdf` are integrals on a fine lattice. With
    several, they are those of each coordinate over 2048 exact draws, `mode` is the best of these draws, and there is no
    `cdf`.

    Args:
      model: a conditional `EnergyModel` of a `networks.targets.RegressionEnergy`.
      x: conditions `[batch, inputs]`.
    """

    def __init__(self, model: Any, x: Any, name: str = "ConditionalDistribution") -> None:
        parameters = dict(locals())
        self._model, self._size = model, tuple(model.event_shape)
        self._x = tf.convert_to_tensor(x, model.dtype)
        super().__init__(
            dtype=tf.as_dtype(model.dtype),
            reparameterization_type=tfp.distributions.NOT_REPARAMETERIZED,
            validate_args=False,
            allow_nan_stats=True,
            parameters=parameters,
            name=name,
        )

    def _log_prob(self, y: tf.Tensor) -> tf.Tensor:
        batch, shape = tf.shape(self._x)[0], tf.shape(y)
        leading = tf.broadcast_dynamic_shape(shape[:-1], batch[None])
        y = tf.reshape(tf.broadcast_to(y, tf.concat([leading, shape[-1:]], 0)), [-1, *self._size])
        x = tf.tile(self._x, tf.stack([tf.shape(y)[0] // batch, 1]))
        return -tf.reshape(self._model.energy(y, x), leading)

    @property
    def log_normalizer(self) -> tf.Tensor:
        """log Z of each condition, which is 0, `[batch]`."""
        return tf.zeros(tf.shape(self._x)[:1], self.dtype)

    def _sample_n(self, n: Any, seed: Any = None) -> tf.Tensor:
        words = tfp.random.sanitize_seed(None) if seed is None else stateless_seed(seed)
        batch = tf.shape(self._x)[0]
        z = self._model.network.draw_given(tf.tile(self._x, tf.stack([n, 1])), words)
        y = self._model.standardization.to_x(z)
        return tf.reshape(y, tf.concat([[n], batch[None], self._size], 0))

    def _points(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns sorted places of each coordinate and their masses, `[batch, targets, number]`."""
        if self._size == (1,):
            z, masses = self._model.network.first_target(self._x)
            units = self._model.standardization
            places, masses = (units.loc.value + units.scale.value * z)[:, None], masses[:, None]
        else:
            drawn = self._sample_n(_NUM_DRAWS, tf.constant([0, 1]))
            places = tf.transpose(drawn, [1, 2, 0])
            masses = tf.fill(tf.shape(places), tf.constant(1.0 / _NUM_DRAWS, places.dtype))
        order = tf.argsort(places, -1)
        return tf.gather(places, order, batch_dims=2), tf.gather(masses, order, batch_dims=2)

    def _mean(self) -> tf.Tensor:
        places, masses = self._points()
        return tf.reduce_sum(places * masses, -1)

    def _variance(self) -> tf.Tensor:
        places, masses = self._points()
        mean = tf.reduce_sum(places * masses, -1, keepdims=True)
        return tf.reduce_sum(tf.square(places - mean) * masses, -1)

    def _stddev(self) -> tf.Tensor:
        return tf.sqrt(self._variance())

    def _mode(self) -> tf.Tensor:
        """Returns the place of the largest density, among the nodes of the lattice or the draws."""
        if self._size == (1,):
            candidates = tf.transpose(self._points()[0], [2, 0, 1])
        else:
            candidates = self._sample_n(_NUM_DRAWS, tf.constant([0, 1]))
        best = tf.argmax(self._log_prob(candidates), 0)
        return tf.gather(tf.transpose(candidates, [1, 0, 2]), best, batch_dims=1)

    def _quantile(self, value: Any) -> tf.Tensor:
        """Returns the quantile of each coordinate, linear between the places."""
        q = tf.convert_to_tensor(value, self.dtype)
        places, masses = self._points()
        below = tf.cumsum(masses, -1) - 0.5 * masses
        shape = tf.broadcast_dynamic_shape(tf.shape(q), tf.shape(places)[:-1])
        q = tf.broadcast_to(q, shape)
        at = tf.reduce_sum(tf.cast(below < q[..., None], tf.int32), -1)
        high = tf.clip_by_value(at, 1, tf.shape(places)[-1] - 1)

        def of(values: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
            wide = tf.broadcast_to(values, tf.concat([shape, tf.shape(values)[-1:]], 0))
            return tf.gather(wide, index[..., None], batch_dims=len(wide.shape) - 1)[..., 0]

        low_place, high_place = of(places, high - 1), of(places, high)
        low, up = of(below, high - 1), of(below, high)
        tiny = tf.constant(np.finfo(self.dtype.as_numpy_dtype).tiny, self.dtype)
        share = tf.clip_by_value((q - low) / tf.maximum(up - low, tiny), 0.0, 1.0)
        return low_place + share * (high_place - low_place)

    def interval(self, probability: float = 0.9) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the ends of the central interval that holds a given probability of each target, `[batch, targets]`.

        Both tails beyond it have the same probability.
        """
        share = check_probability("probability", probability)
        return self.quantile(0.5 - 0.5 * share), self.quantile(0.5 + 0.5 * share)

    def _cdf(self, y: tf.Tensor) -> tf.Tensor:
        """Returns P(Y ≤ y | x) of one target, linear between the places."""
        if self._size != (1,):
            raise NotImplementedError("`cdf` is that of one target; for several, use shares of draws.")
        places, masses = (part[:, 0] for part in self._points())
        below = tf.cumsum(masses, -1) - 0.5 * masses
        y = tf.convert_to_tensor(y, self.dtype)[..., 0]
        shape = tf.broadcast_dynamic_shape(tf.shape(y), tf.shape(places)[:1])
        columns = tf.transpose(tf.reshape(tf.broadcast_to(y, shape), [-1, tf.shape(places)[0]]))
        low = tf.clip_by_value(tf.searchsorted(places, columns) - 1, 0, tf.shape(places)[1] - 2)
        ends = [tf.gather(part, low + step, batch_dims=1) for part in (places, below) for step in (0, 1)]
        width = tf.maximum(ends[1] - ends[0], tf.constant(np.finfo(self.dtype.as_numpy_dtype).tiny, self.dtype))
        share = tf.clip_by_value((columns - ends[0]) / width, 0.0, 1.0)
        return tf.reshape(tf.transpose(ends[2] + share * (ends[3] - ends[2])), shape)

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape(self._size)

    def _event_shape_tensor(self) -> tf.Tensor:
        return tf.constant(self._size, tf.int32)

    def _batch_shape(self) -> tf.TensorShape:
        return self._x.shape[:1]

    def _batch_shape_tensor(self) -> tf.Tensor:
        return tf.shape(self._x)[:1]

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        return {}
