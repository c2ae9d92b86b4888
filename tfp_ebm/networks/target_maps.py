"""Maps of targets with bounds onto numbers without bounds, so that a density on the line becomes one on an interval.

    y in (0, 1):  u = log y − log(1 − y)        y > 0:  u = log y        y < 0:  u = −log(−y)        else u = y

and v = (u − loc)/scale; then log p(y) = log p(v) + Σ log |dv/dy|. A uniform y has a standard logistic u.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_ebm.arguments import check_choice

KINDS = ("line", "interval", "positive", "negative")
# Targets are kept so far from their bounds, in float32 about ten of its steps at 1.
_MARGIN = 1e-6


def kinds_of(low: np.ndarray, high: np.ndarray) -> tuple[str, ...]:
    """Returns the kind of each coordinate with the bounds `low` and `high`, which may be infinite.

    >>> kinds_of(np.array([-np.inf, 0.0, 0.0, -np.inf]), np.array([np.inf, 1.0, np.inf, 5.0]))
    ('line', 'interval', 'positive', 'negative')
    """
    names = {(False, False): "line", (True, True): "interval", (True, False): "positive", (False, True): "negative"}
    return tuple(names[bool(a), bool(b)] for a, b in zip(np.isfinite(low), np.isfinite(high), strict=True))


@keras.saving.register_keras_serializable("tfp_ebm")
class TargetMap(keras.layers.Layer):
    """The map from targets y to numbers v without bounds, and back.

    Args:
      kinds: for each coordinate "line", "interval" (from 0 to 1), "positive" or "negative".
      loc, scale: of u, arrays `[targets]`; default 0 and 1.

    >>> layer = TargetMap(["interval", "line"])
    >>> v, log_slope = layer.forward(tf.constant([[0.5, 3.0], [2.0, 3.0]]))
    >>> v.numpy()[0].tolist(), log_slope.numpy().astype(float).round(4).tolist()  # log 4, and outside
    ([0.0, 3.0], [1.3863, -inf])
    """

    def __init__(self, kinds: Sequence[str], loc: Any = None, scale: Any = None, **kwargs: Any) -> None:
        super().__init__(trainable=False, **kwargs)
        self.kinds = tuple(check_choice("kinds", kind, KINDS) for kind in kinds)
        shape = (len(self.kinds),)
        self.loc = self.add_weight(shape=shape, initializer="zeros", trainable=False, name="loc")
        self.scale = self.add_weight(shape=shape, initializer="ones", trainable=False, name="scale")
        if loc is not None:
            self.loc.assign(loc)
        if scale is not None:
            self.scale.assign(scale)
        self.built = True

    def _is(self, kind: str) -> np.ndarray:
        return np.array([own == kind for own in self.kinds])

    def forward(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns v `[batch, targets]` and Σ log |dv/dy| `[batch]`, which is −∞ outside of the support."""
        inside = tf.clip_by_value(y, _MARGIN, 1.0 - _MARGIN)
        log_below, log_above = tf.math.log(inside), tf.math.log1p(-inside)
        log_size = tf.math.log(tf.maximum(tf.where(self._is("negative"), -y, y), _MARGIN))
        u = tf.where(self._is("interval"), log_below - log_above, y)
        u = tf.where(self._is("positive"), log_size, tf.where(self._is("negative"), -log_size, u))
        slopes = tf.where(self._is("interval"), -log_below - log_above, tf.zeros_like(y))
        slopes = tf.where(self._is("positive") | self._is("negative"), -log_size, slopes)
        is_outside = ((y < 0.0) & (self._is("positive") | self._is("interval"))) | (
            ((y > 0.0) & self._is("negative")) | ((y > 1.0) & self._is("interval"))
        )
        slopes = tf.where(is_outside, tf.constant(-np.inf, y.dtype), slopes - tf.math.log(self.scale.value))
        return (u - self.loc.value) / self.scale.value, tf.reduce_sum(slopes, -1)

    def inverse(self, v: tf.Tensor) -> tf.Tensor:
        """Returns y `[batch, targets]`, inside of the support, of numbers v."""
        u = self.loc.value + self.scale.value * v
        on_interval = tf.clip_by_value(tf.sigmoid(u), _MARGIN, 1.0 - _MARGIN)
        is_negative = self._is("negative")
        size = tf.exp(tf.clip_by_value(tf.where(is_negative, -u, u), np.log(_MARGIN), 80.0))
        y = tf.where(self._is("interval"), on_interval, u)
        return tf.where(self._is("positive"), size, tf.where(is_negative, -size, y))

    def get_config(self) -> dict[str, Any]:
        """Returns the kinds, for Keras; `loc` and `scale` are weights."""
        return {**super().get_config(), "kinds": list(self.kinds)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TargetMap:
        """Rebuilds the layer from `get_config`."""
        config = dict(config)
        config.pop("trainable", None)
        return cls(**config)
