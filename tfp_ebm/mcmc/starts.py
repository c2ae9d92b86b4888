"""Starting states of the chains in a training step, and the buffer that keeps chains between steps.

Maximum likelihood needs draws of the model in every step (eq. 10), and methods differ in where the chains start.
Contrastive divergence starts at the data (Hinton 2002), short-run sampling at draws of the base distribution (Nijkamp
et al. 2019). Chains that continue from their last states (Tieleman 2008) stay close to the model's distribution if it
changes slowly: a buffer holds many more chains than a batch has rows, and each step moves some of them (Du & Mordatch
2019).

A slot of the buffer is a chain: the state taken from a slot is written back to it, so a chain keeps its identity. Under
a distribution strategy each replica moves chains of its own part of the buffer, and all replicas store the states of
all.
"""

from __future__ import annotations

import functools
import math
import types
from typing import Any, NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_ebm import random, serialization
from tfp_ebm.arguments import check_count, check_probability
from tfp_ebm.energy.base import check_base
from tfp_ebm.random import fold_in
from tfp_ebm.replicas import replica_and_number, rows_of_replicas

# Number of candidate strides from one drawn slot to the next; each stride visits every slot once.
_MAX_STRIDES = 512


class Start(NamedTuple):
    """The starting states of the chains of one step.

    Attributes:
      states: `[num_chains, *event]`.
      slots: int32 `[num_chains]`, the slots of the buffer that hold the chains, or () if there is no buffer.
      restarted: bool `[num_chains]`, whether the chain had a state that was replaced by a new one.
      condition: the conditions of the chains, `[num_chains, ...]`, if the energy takes them, else None.
    """

    states: tf.Tensor
    slots: Any
    restarted: tf.Tensor
    condition: tf.Tensor | None = None


class ChainStart(keras.layers.Layer):
    """Base class of `FromData`, `FromBase` and `ReplayBuffer`; a Keras layer, so that its weights are saved.

    Args:
      base: the `tfd.Distribution` over x from which chains start and restart; None for the model's base.

    Attributes:
      is_persistent: whether chains continue in the next step.
      needs_base: whether chains start from the base.

    >>> issubclass(ReplayBuffer, ChainStart), FromData().is_persistent
    (True, False)
    """

    is_persistent = False
    needs_base = True

    def __init__(self, base: tfp.distributions.Distribution | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if base is not None:
            check_base("base", base)
        # Hidden in a namespace, because Keras and TensorFlow would track all parts of a distribution.
        self._given = types.SimpleNamespace(base=base, condition_spec=None)

    @property
    def base(self) -> tfp.distributions.Distribution | None:
        """The argument `base`: a distribution over x, or None."""
        return self._given.base

    def keep_conditions(self, spec: tf.TensorSpec | None) -> None:
        """Notes shape and dtype of the condition that each chain has; None for an energy of x alone."""
        self._given.condition_spec = spec

    def build(self, event_shape: tuple[int, ...], dtype: str = "float32") -> None:
        """Creates the weights, if there are any."""
        self.built = True

    def start(self, x: tf.Tensor, fresh: tf.Tensor, seed: tf.Tensor, condition: tf.Tensor | None = None) -> Start:
        """Returns the starting states of as many chains as x has rows, in standardised coordinates.

        Args:
          x: the batch, `[batch, *event]`.
          fresh: independent draws of the base, `[batch, *event]`.
          seed: int32[2].
          condition: the conditions of the batch's rows, `[batch, ...]`, if the energy takes them.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement `start`.")

    def keep(self, start: Start, states: tf.Tensor) -> None:
        """Stores the states after the step, `[batch, *event]`, which are all finite."""
        del start, states  # a body, because AutoGraph fails for a method that has only a docstring

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        spec = self._given.condition_spec  # needed before the weights are created
        conditions = {} if spec is None else {"conditions": [list(spec.shape), spec.dtype.name]}
        return {**super().get_config(), "base": serialization.encode(self.base, "base"), **conditions}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ChainStart:
        """Creates the layer from the result of `get_config`."""
        config = dict(config)
        conditions = config.pop("conditions", None)
        start = cls(**{**config, "base": serialization.decode(config["base"])})
        start.keep_conditions(None if conditions is None else tf.TensorSpec(*conditions))
        return start


@keras.saving.register_keras_serializable("tfp_ebm")
class FromData(ChainStart):
    """Chains that start at the rows of the batch: contrastive divergence.

    Reference: G. E. Hinton, Training products of experts by minimizing contrastive divergence, 2002.

    >>> x = tf.zeros([4, 2])
    >>> FromData().start(x, tf.ones([4, 2]), tf.constant([0, 0])).states is x
    True
    """

    needs_base = False

    def start(self, x: tf.Tensor, fresh: tf.Tensor, seed: tf.Tensor, condition: tf.Tensor | None = None) -> Start:
        """See `ChainStart.start`."""
        return Start(x, (), tf.zeros(tf.shape(x)[:1], tf.bool), condition)


@keras.saving.register_keras_serializable("tfp_ebm")
class FromBase(ChainStart):
    """Chains that start at independent draws of the base distribution: short-run sampling.

    Args:
      base: a `tfd.Distribution` over x; None for the model's base.

    Reference: E. Nijkamp, M. Hill, S.-C. Zhu, Y. N. Wu, Learning non-convergent non-persistent short-run MCMC toward
    energy-based model, 2019, arXiv:1904.09770.

    >>> fresh = tf.ones([4, 2])
    >>> FromBase().start(tf.zeros([4, 2]), fresh, tf.constant([0, 0])).states is fresh
    True
    """

    def start(self, x: tf.Tensor, fresh: tf.Tensor, seed: tf.Tensor, condition: tf.Tensor | None = None) -> Start:
        """See `ChainStart.start`."""
        return Start(fresh, (), tf.zeros(tf.shape(x)[:1], tf.bool), condition)


@keras.saving.register_keras_serializable("tfp_ebm")
class ReplayBuffer(ChainStart):
    """Persistent chains in a buffer: each step moves chains drawn without replacement, and stores them again.

    Args:
      capacity: number of chains; at least the number of rows in a batch. Each chain is moved every `capacity / batch`
        steps on average.
      restart_probability: probability, per chain and step, of a restart from the base. With 0 the chains follow the
        model's distribution. Restarted chains have not reached it yet, and the model learns to compensate for them.
        (The value in Du & Mordatch 2019 is .05.)
      base: a `tfd.Distribution` over x; None for the model's base. The chain of an unused slot starts at a draw of it.

    Attributes:
      states: weight `[capacity, *event]`, in standardised coordinates.
      conditions: weight `[capacity, ...]`, the conditions of the chains, if the energy takes them.
      ages: weight `[capacity]`, training steps since the chain of that slot started; 0 for a slot that was never used.

    Raises:
      TypeError, ValueError: for a capacity below 1 or a probability outside [0, 1].

    References: T. Tieleman, Training restricted Boltzmann machines using approximations to the likelihood gradient,
    2008. Y. Du, I. Mordatch, Implicit generation and modeling with energy-based models, 2019, arXiv:1903.08689.

    >>> buffer = ReplayBuffer(capacity=8)
    >>> buffer.build((2,))
    >>> start = buffer.start(tf.zeros([4, 2]), tf.ones([4, 2]), tf.constant([0, 0]))
    >>> buffer.keep(start, start.states + 1.0)
    >>> len(set(start.slots.numpy().tolist())), int(tf.reduce_sum(buffer.ages.value))
    (4, 4)
    """

    is_persistent = True

    def __init__(
        self,
        capacity: int,
        restart_probability: float = 0.0,
        base: tfp.distributions.Distribution | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(base, **kwargs)
        self.capacity = check_count("capacity", capacity)
        self.restart_probability = check_probability("restart_probability", restart_probability)

    def build(self, event_shape: tuple[int, ...], dtype: str = "float32") -> None:
        """Creates `states` and `ages`."""
        shape = (self.capacity, *event_shape)
        self.states = self.add_weight(
            shape=shape, dtype=dtype, initializer="zeros", trainable=False, autocast=False, name="states"
        )
        self.ages = self.add_weight(
            shape=shape[:1], dtype="int32", initializer="zeros", trainable=False, autocast=False, name="ages"
        )
        spec = self._given.condition_spec
        if spec is not None:
            self.conditions = self.add_weight(
                shape=(self.capacity, *spec.shape),
                dtype=spec.dtype.name,
                initializer="zeros",
                trainable=False,
                autocast=False,
                name="conditions",
            )
        self.built = True

    def start(self, x: tf.Tensor, fresh: tf.Tensor, seed: tf.Tensor, condition: tf.Tensor | None = None) -> Start:
        """See `ChainStart.start`; a chain keeps its condition until it restarts."""
        num_chains = tf.shape(x)[0]
        replica, number = replica_and_number()
        size = self.capacity // number
        message = f"`capacity` must be at least the number of rows in a batch, got {self.capacity}"
        message += f", of which each of {number} replicas has {size}," if number > 1 else ""
        if x.shape[0] is not None and x.shape[0] > size:
            raise ValueError(f"{message} for {x.shape[0]} rows.")
        with tf.control_dependencies([tf.debugging.assert_less_equal(num_chains, size, message)]):
            slots = _slots(size, num_chains, seed) + replica * size
        if self.restart_probability > 0.0:
            draws = random.uniform([num_chains], fold_in(seed, 1), x.dtype)
            restarted = draws < tf.constant(self.restart_probability, x.dtype)
        else:
            restarted = tf.zeros([num_chains], tf.bool)
        is_used = tf.gather(self.ages.value, slots) > 0
        goes_on = tf.reshape(is_used & ~restarted, [-1] + [1] * (x.shape.rank - 1))
        states = tf.ensure_shape(tf.where(goes_on, tf.gather(self.states.value, slots), fresh), x.shape)
        if condition is not None:
            goes_on = tf.reshape(is_used & ~restarted, [-1] + [1] * (condition.shape.rank - 1))
            condition = tf.where(goes_on, tf.gather(self.conditions.value, slots), condition)
        return Start(states, slots, is_used & restarted, condition)

    def keep(self, start: Start, states: tf.Tensor) -> None:
        """See `ChainStart.keep`."""
        ages = tf.where(start.restarted, 0, tf.gather(self.ages.value, start.slots)) + 1
        kept = [(self.states, tf.cast(states, self.states.dtype)), (self.ages, ages)]
        if start.condition is not None:
            kept.append((self.conditions, start.condition))
        slots, *updates = rows_of_replicas([start.slots[:, None], *(update for _, update in kept)])
        for (variable, _), update in zip(kept, updates, strict=True):
            # in place, since assigning the complete buffer would copy it in every step; by its handle, since the method
            # `scatter_nd_update` is missing in variables of several replicas
            tf.raw_ops.ResourceScatterNdUpdate(ref=variable.value.handle, indices=slots, updates=update)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments, for Keras."""
        return {
            **super().get_config(),
            "capacity": self.capacity,
            "restart_probability": self.restart_probability,
        }


@functools.lru_cache(maxsize=64)
def _strides(size: int) -> tuple[int, ...]:
    """Returns candidate strides: numbers coprime to `size`."""
    strides = [stride for stride in range(1, max(2, size)) if math.gcd(stride, size) == 1]
    return tuple(strides[:: math.ceil(len(strides) / _MAX_STRIDES)])


def _slots(size: int, num_chains: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws distinct numbers below `size`: an arithmetic progression modulo `size`, with a stride coprime to `size`.

    A random permutation of all slots would need a sort in each step, which costs more than a small network.
    """
    draws = tf.random.stateless_uniform([2], seed, None, None, tf.int32, alg="philox")
    strides = _strides(size)
    first, choice = tf.unstack(tf.cast(draws, tf.int64))
    # `gather`, because XLA treats the index of a slice as a constant and compiles again for each index
    stride = tf.gather(tf.constant(strides, tf.int64), tf.math.floormod(choice, len(strides)))
    slots = tf.math.floormod(first + stride * tf.range(num_chains, dtype=tf.int64), size)
    return tf.cast(slots, tf.int32)
