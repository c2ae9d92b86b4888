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


def refusal(make_and_train):
    try:
        make_and_train()
    except ValueError as error:
        return str(error)
    return "nothing was refused"


def in_scope(loss):
    def attempt():
        with STRATEGY.scope():
            make(loss)

    return attempt


def compiled_outside():
    with STRATEGY.scope():
        model = make(None, compiles=False)
    model.compile("sgd", "contrastive_divergence")
    model.fit(X, verbose=0)


if __name__ == "__main__":
    mcmc, losses = ebm.mcmc, ebm.losses
    adaptive = mcmc.Adaptive(mcmc.MALA(0.1))
    transformed = mcmc.Transformed(adaptive, ebm.energy.base.tfb.Identity())
    result = {
        "denoising": trained("denoising_score_matching"),
        "noise contrastive": trained("noise_contrastive_estimation"),
        "fixed steps": trained(losses.ContrastiveDivergence(mcmc.MALA(0.1))),
        "log normalizers": [log_normalizer(STRATEGY.scope()), log_normalizer(tf.distribute.get_strategy().scope())],
        "linear": linear(),
        "refused": {
            "persistent": refusal(in_scope(losses.PersistentContrastiveDivergence(capacity=256))),
            "replay buffer": refusal(in_scope(losses.MaximumLikelihood(mcmc.MALA(0.1), 2, mcmc.ReplayBuffer(256)))),
            "adapted": refusal(in_scope(losses.ContrastiveDivergence())),
            "adapted in Transformed": refusal(in_scope(losses.ContrastiveDivergence(transformed))),
            "compiled outside of the scope": refusal(compiled_outside),
        },
    }
    print(json.dumps(result))
