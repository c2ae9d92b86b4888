"""Where chains start: the replay buffer's slots, restarts and rescue of lost chains, and what is saved."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import assert_same

import tfp_ebm as ebm

tfd = tfp.distributions
X = np.random.default_rng(0).normal([2.0, -1.0], [1.0, 0.5], size=(512, 2)).astype("float32")


def make(loss=None, steps_per_execution=1, **kwargs):
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[16], seed=0), base_measure=ebm.fit_base(X))
    model.adapt(X)
    loss = loss or ebm.losses.PersistentContrastiveDivergence(num_steps=2, capacity=64, **kwargs)
    model.compile(keras.optimizers.Adam(1e-3), loss, steps_per_execution=steps_per_execution)
    return model


def test_slots_are_drawn_without_replacement_and_evenly():
    """Each of 60 slots is drawn with probability 25/60 per step: over 2400 steps 1000 ± 24; 5 errors is a false alarm
    in 30 000 suites, and a slot drawn half as often is off by 20."""
    buffer = ebm.mcmc.ReplayBuffer(60)
    buffer.build((1,))
    x = tf.zeros([25, 1])
    draw = tf.function(lambda seed: buffer.start(x, x, seed).slots)
    counts = np.zeros(60)
    pairs = set()
    for i in range(2400):
        slots = draw(tf.constant([3, i])).numpy()
        assert len(set(slots.tolist())) == 25 and slots.min() >= 0 and slots.max() < 60
        counts[slots] += 1
        pairs.add((slots[0], slots[1]))
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(2400 * (25 / 60) * (35 / 60))
    assert len(pairs) > 700  # of 960: any first slot, and each of the 16 strides prime to 60; 880 ± 15 are expected


def test_chains_go_back_to_the_slots_that_they_came_from():
    buffer = ebm.mcmc.ReplayBuffer(10)
    buffer.build((1,))
    before = tf.reshape(tf.range(10, dtype=tf.float32), [10, 1])
    buffer.states.assign(before)
    buffer.ages.assign(tf.ones([10], tf.int32))
    start = buffer.start(tf.zeros([4, 1]), -tf.ones([4, 1]), tf.constant([0, 1]))
    np.testing.assert_array_equal(start.states[:, 0], tf.cast(start.slots, tf.float32))
    buffer.keep(start, start.states + 100.0)
    moved = buffer.states.numpy()[:, 0] - before.numpy()[:, 0]
    assert sorted(np.flatnonzero(moved == 100.0)) == sorted(start.slots.numpy())
    assert (moved[np.setdiff1d(np.arange(10), start.slots)] == 0.0).all()
    assert sorted(buffer.ages.numpy()) == [1] * 6 + [2] * 4


def test_unused_slots_start_at_the_base_and_are_no_restarts():
    buffer = ebm.mcmc.ReplayBuffer(10)
    buffer.build((1,))
    start = buffer.start(tf.zeros([4, 1]), 7.0 * tf.ones([4, 1]), tf.constant([0, 1]))
    assert (start.states.numpy() == 7.0).all() and not start.restarted.numpy().any()


def test_restarts_are_drawn_per_chain():
    """With probability .3 per chain: 10 000 chains give 3000 ± 46; a decision per batch would give 0 or 10 000."""
    buffer = ebm.mcmc.ReplayBuffer(10_000, restart_probability=0.3)
    buffer.build((1,))
    buffer.ages.assign(tf.ones([10_000], tf.int32))
    fresh = tf.ones([10_000, 1])
    start = buffer.start(fresh, fresh, tf.constant([0, 1]))
    restarted = start.restarted.numpy()
    assert abs(restarted.sum() - 3000) < 4 * np.sqrt(10_000 * 0.3 * 0.7)
    np.testing.assert_array_equal(start.states.numpy()[:, 0], restarted)
    buffer.keep(start, start.states)
    np.testing.assert_array_equal(buffer.ages.numpy()[start.slots], np.where(restarted, 1, 2))


@pytest.fixture(scope="module")
def trained():
    """A model trained for an epoch, whose step is compiled; tests may train it further."""
    model = make()
    model.fit(X, batch_size=64, epochs=1, verbose=0)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("lost", [np.nan, np.inf, 1e30])
def test_a_lost_chain_is_restarted_and_reported(lost, trained):
    """NaN, infinity, or a place of no density: E(1e30) overflows. Training goes on, and all that is kept is finite."""
    model, chains = trained, trained.loss.chains
    model.reset_metrics()
    states = chains.states.numpy()
    states[5] = lost
    states[9] = lost
    chains.states.assign(states)
    logs = model.train_on_batch(X[:64], return_dict=True)  # all 64 slots move in one step
    assert logs["num_nonfinite"] == 2 and logs["num_restarted"] == 2
    assert np.isfinite(logs["loss"]) and np.isfinite(chains.states.numpy()).all()
    assert chains.ages.numpy()[[5, 9]].tolist() == [1, 1] and (np.delete(chains.ages.numpy(), [5, 9]) > 1).all()
    model.reset_metrics()
    assert model.train_on_batch(X[:64], return_dict=True)["num_nonfinite"] == 0


def test_chains_that_leave_within_the_step_do_not_reach_the_loss():
    """A step of 1e30 overflows; the chains start anew, and a loss without negatives is NaN, of which `fit` warns."""
    model = make(ebm.losses.PersistentContrastiveDivergence(ebm.mcmc.Langevin(1e30), num_steps=2, capacity=64))
    before = [weight.numpy() for weight in model.network.weights]
    with pytest.raises(ValueError, match="the loss became nan"):
        model.fit(X, batch_size=64, verbose=0)
    assert np.isfinite(model.loss.chains.states.numpy()).all()
    for weight, value in zip(model.network.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_some_lost_negatives_leave_the_mean_to_the_others():
    """One of four chains goes to infinity: the loss is that of the other three, their weights 4/3."""

    def jump(target):
        class Jump(tfp.mcmc.TransitionKernel):
            is_calibrated = False

            def bootstrap_results(self, state):
                return target(state)

            def one_step(self, state, results, seed=None):
                state = tf.concat([state[:1] + np.inf, state[1:] + 1.0], 0)
                return state, target(state)

        return Jump()

    x = tf.constant([[1.0], [2.0], [3.0], [4.0]])
    loss = ebm.losses.MaximumLikelihood(jump, 1, ebm.mcmc.FromData(), global_move=None)
    output = loss(lambda x: tf.square(x[:, 0]), x, seed=0)
    truth = [1.0, 4 - 4 / 3 * 9, 9 - 4 / 3 * 16, 16 - 4 / 3 * 25]
    np.testing.assert_allclose(output.per_example, truth, rtol=1e-6)
    assert output.metrics["num_nonfinite"] == 1.0


def test_validation_moves_no_chain(trained):
    model = trained
    before = [weight.numpy() for weight in model.weights]
    first = model.evaluate(X, batch_size=64, verbose=0)
    assert model.evaluate(X, batch_size=64, verbose=0) == first
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


@pytest.mark.slow
def test_a_resumed_run_equals_one_that_was_not_cut(tmp_path):
    """Buffer, ages, step size, counter and optimizer come back from the file, bit for bit."""
    whole = make()
    whole.fit(X, batch_size=64, epochs=3, shuffle=False, verbose=0)
    cut = make()
    cut.fit(X, batch_size=64, epochs=1, shuffle=False, verbose=0)
    cut.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(resumed.loss, ebm.losses.PersistentContrastiveDivergence)
    np.testing.assert_array_equal(resumed.loss.chains.states, cut.loss.chains.states)
    resumed.fit(X, batch_size=64, epochs=2, shuffle=False, verbose=0)
    assert len(resumed.weights) == len(whole.weights)
    assert_same(resumed.weights, whole.weights)
    moved = np.abs(whole.loss.chains.states.numpy() - cut.loss.chains.states.numpy()).max()
    assert moved > 0.1  # the comparison would see a buffer that had stayed behind


@pytest.mark.parametrize(
    "loss",
    [
        lambda base: ebm.losses.ImprovedContrastiveDivergence(
            ebm.mcmc.HMC(0.1, 3), 2, ebm.mcmc.FromBase(base), form="softplus", kl_weight=0.0
        ),
        lambda base: ebm.losses.ContrastiveDivergence(ebm.mcmc.Langevin(0.1, noise_scale=0.01), 4, energy_penalty=0.1),
        lambda base: ebm.losses.PersistentContrastiveDivergence(
            None, 3, 77, 0.05, base, data_noise=0.1, jit_compile=True
        ),
    ],
)
def test_losses_come_back_from_their_configs(loss):
    loss = loss(tfd.MultivariateNormalDiag([0.0, 1.0], [2.0, 3.0]))
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(twin) is type(loss) and twin.kernel == loss.kernel and type(twin.chains) is type(loss.chains)
    a, b = loss.get_config(), twin.get_config()
    assert {k: v for k, v in a.items() if k != "dtype"} == {k: v for k, v in b.items() if k != "dtype"}


@pytest.mark.long
def test_every_step_is_compiled_once_and_also_by_xla():
    traces = []

    class Counting(keras.layers.Dense):
        def call(self, x):
            traces.append(x.shape)
            return super().call(tf.square(x))

    model = ebm.EnergyModel(keras.Sequential([keras.Input((2,)), Counting(1)]))
    model.adapt(X)
    model.compile("adam", ebm.losses.PersistentContrastiveDivergence(num_steps=3, capacity=64))
    model.fit(X, batch_size=64, epochs=1, verbose=0)
    once = len(traces)
    model.fit(X, batch_size=64, epochs=2, verbose=0)
    assert len(traces) == once
    compiled = make(ebm.losses.PersistentContrastiveDivergence(ebm.mcmc.Langevin(0.1), 3, 64))
    compiled.compile("adam", compiled.loss, jit_compile=True)
    assert np.isfinite(compiled.fit(X, batch_size=64, epochs=1, verbose=0).history["loss"]).all()


def test_other_kernels_of_tfp_serve(tmp_path):
    kernel = functools.partial(tfp.mcmc.RandomWalkMetropolis, new_state_fn=tfp.mcmc.random_walk_normal_fn(0.1))
    model = make(ebm.losses.ContrastiveDivergence(kernel, 2))
    model.fit(X, batch_size=64, verbose=0)
    with pytest.raises(TypeError):
        model.save(tmp_path / "model.keras")


@pytest.mark.slow
def test_a_buffer_smaller_than_the_batch_is_refused():
    with pytest.raises(ValueError, match="`capacity` must be at least the number of rows"):
        ebm.mcmc.ReplayBuffer(3).start(tf.zeros([4, 1]), tf.zeros([4, 1]), tf.constant([0, 0]))
    model = make()
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="`capacity` must be at least"):
        model.fit(X, batch_size=128, verbose=0)
    for bad in ({"capacity": 0}, {"capacity": 4, "restart_probability": 1.5}):
        with pytest.raises(ValueError, match=f"`{list(bad)[-1]}`"):
            ebm.mcmc.ReplayBuffer(**bad)


def test_energies_of_the_chains_use_layers_in_inference_mode():
    modes = []

    class Mode(keras.layers.Dense):
        def call(self, x, training=False):
            modes.append(training)
            return super().call(tf.square(x))

    model = ebm.EnergyModel(keras.Sequential([keras.Input((2,)), Mode(1)]))
    model.adapt(X)
    model.compile("adam", "contrastive_divergence")
    modes.clear()
    model.train_on_batch(X[:64])
    assert modes.count(True) == 1 and modes.count(False) >= 2
