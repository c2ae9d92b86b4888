"""Trains on two replicas and prints what came of it, as JSON; run by `test_training_faults`."""

import json

import keras
import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

import tfp_ebm as ebm  # noqa: E402

X = np.random.default_rng(0).normal([2.0, -1.0], [1.0, 0.5], size=(193, 2)).astype("float32")
STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


class Linear(ebm.losses.Loss):
    def call(self, energy_fn, x, condition, *, seed, training):
        return ebm.losses.LossOutput(energy_fn(x))


def make(loss, optimizer=None, compiles=True):
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
    model = ebm.EnergyModel(network)
    model.adapt(X)
    if compiles:
        model.compile(optimizer or keras.optimizers.SGD(0.01), loss)
    return model


def trained(loss):
    with STRATEGY.scope():
        model = make(loss)
    history = model.fit(X, batch_size=64, epochs=2, verbose=0).history
    values = [*history.values(), model.evaluate(X, batch_size=64, verbose=0), *(w.numpy() for w in model.weights)]
    return {"finite": bool(all(np.isfinite(value).all() for value in values))}


def log_normalizer(scope):
    with scope:
        model = make("noise_contrastive_estimation", keras.optimizers.SGD(0.0))
    model.fit(X[:1], batch_size=1, verbose=0)
    return float(model.loss.log_normalizer.numpy())


def linear():
    with STRATEGY.scope():
        network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        model = ebm.EnergyModel(network)
        model.compile(keras.optimizers.SGD(1.0), Linear())
    model._fitted_base.assign(ebm.energy.moments.DataMoments.of([X]))
    model.fit(X[:3], batch_size=3, verbose=0, shuffle=False)
    moved = -network.get_weights()[0][:, 0]
    return [v.tolist() for v in (moved, X[:3].mean(0), 0.5 * (X[:2].mean(0) + X[2]))]


def copies(variable):
    return [value.numpy() for value in STRATEGY.experimental_local_results(variable.value)]


def persistent():
    """Uneven batches; the last of 1 row leaves a replica without rows, and the next epoch goes on after it.

    The model is compiled outside of the scope in which it was made; its loss is built inside all the same.
    """
    with STRATEGY.scope():
        model = make(None, compiles=False)
    model.compile("sgd", ebm.losses.PersistentContrastiveDivergence(num_steps=2, capacity=66))
    before = float(model.loss.step_size.numpy())
    history = model.fit(X, batch_size=64, epochs=3, verbose=0).history
    buffer = model.loss.chains
    return {
        "finite": bool(all(np.isfinite(value).all() for value in history.values())),
        "step_sizes": [before, *map(float, copies(model.loss.step_size))],
        "differing": [w.path for w in model.weights if not np.array_equal(*copies(w))],
        "ages": [int(np.sum(buffer.ages.numpy()[:33])), int(np.sum(buffer.ages.numpy()[33:]))],
        "unused": [bool((buffer.states.numpy()[part] == 0).all()) for part in (slice(0, 33), slice(33, 66))],
    }


def same_as_alone():
    """Exact score matching has no noise: two replicas end where one device does."""
    models = []
    for strategy in (STRATEGY, tf.distribute.get_strategy()):
        with strategy.scope():
            model = make("score_matching", keras.optimizers.Adam(0.01))
        model.fit(X, batch_size=64, epochs=3, verbose=0)
        models.append(model)
    pairs = zip(models[0].network.get_weights(), models[1].network.get_weights(), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


if __name__ == "__main__":
    result = {
        "noise contrastive": trained("noise_contrastive_estimation"),
        "persistent": persistent(),
        "same as alone": same_as_alone(),
        "log normalizers": [log_normalizer(STRATEGY.scope()), log_normalizer(tf.distribute.get_strategy().scope())],
        "linear": linear(),
    }
    print(json.dumps(result))
