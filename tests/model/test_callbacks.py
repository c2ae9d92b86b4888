"""Divergence is seen, rolled back and reported; snapshots are drawn on the way."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from laws import assert_same

import tfp_ebm as ebm
from tfp_ebm.random import fold_in, normal, stateless_seed

X = np.random.default_rng(0).normal([2.0, -1.0], [1.0, 0.5], size=(512, 2)).astype("float32")


def make(learning_rate=1e-3, loss=None, **kwargs):
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[16], seed=0), base_measure=ebm.fit_base(X))
    model.adapt(X)
    loss = loss or ebm.losses.ContrastiveDivergence(ebm.mcmc.Langevin(0.1))
    model.compile(keras.optimizers.Adam(learning_rate), loss, **kwargs)
    return model


def state(model):
    return [np.array(variable.numpy()) for variable in [*model.weights, *model.optimizer.variables]]


@pytest.mark.parametrize("rate", [100.0, keras.optimizers.schedules.CosineDecay(100.0, 10_000)])
def test_a_learning_rate_of_100_is_caught_rolled_back_and_given_up(rate):
    """Everything stays finite; the energy's spread shows it. What was good is restored at the end, bit for bit."""
    model = make(rate)
    before = [weight.numpy() for weight in model.weights]
    guard = ebm.callbacks.DivergenceGuard(max_rollbacks=2)
    with pytest.warns(UserWarning, match="Training diverged by step .* energy_spread is") as caught:
        history = model.fit(X, batch_size=64, epochs=20, callbacks=[guard], verbose=0)
    assert len(guard.events) == len(caught) == 3
    assert len(history.history["loss"]) < 20
    assert all("energy_spread" in event["reason"] for event in guard.events)
    rates = [event["learning_rate"] for event in guard.events]
    np.testing.assert_allclose(rates, [50.0, 25.0, 12.5], rtol=1e-3)
    assert "stops after 2 rollbacks" in str(caught[-1].message)
    assert_same([weight.numpy() for weight in model.weights], before)


@pytest.mark.slow
def test_a_lowered_rate_goes_on():
    """At 100 it diverges; one rollback with a factor of 1e-5 ends at 1e-3, which trains."""
    model = make(100.0)
    guard = ebm.callbacks.DivergenceGuard(factor=1e-5)
    with pytest.warns(UserWarning, match="back to step 0, with a learning rate of 0.001"):
        history = model.fit(X, batch_size=64, epochs=5, callbacks=[guard], verbose=0)
    assert len(guard.events) == 1 and len(history.history["loss"]) == 5
    assert history.history["energy_spread"][-1] < 10
    assert float(model.optimizer.learning_rate.numpy()) == pytest.approx(1e-3)


@pytest.mark.slow
def test_a_state_that_is_good_is_kept_on_the_way():
    """Diverges at step 24, planted; back to step 20, the last one kept, and not to the start."""
    model = make()
    snapshots = {}

    class Plant(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            step = int(model.optimizer.iterations.numpy())
            if step == 20 and step not in snapshots:
                snapshots[step] = state(model)
            if step == 24 and "planted" not in snapshots:
                snapshots["planted"] = True
                kernel = model.network.weights[-1]
                kernel.assign(1e6 * kernel)
                model.reset_metrics()

    guard = ebm.callbacks.DivergenceGuard(keep_every=10)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if guard.events and "after" not in snapshots:
                snapshots["after"] = state(model)

    with pytest.warns(UserWarning, match="back to step 20"):
        model.fit(X, batch_size=64, epochs=5, callbacks=[Plant(), guard, Stop()], verbose=0)
    assert guard.events[0]["step"] == 25
    lowered = [i for i, v in enumerate(model.optimizer.variables) if v.name == "learning_rate"]
    first = len(model.weights)
    for i, (a, b) in enumerate(zip(snapshots["after"], snapshots[20], strict=True)):
        if i - first in lowered:
            assert a == pytest.approx(0.5 * b)
        else:
            np.testing.assert_array_equal(a, b)


def test_a_loss_that_is_not_finite_is_rolled_back_instead_of_raised():
    x = X.copy()
    data = tf.data.Dataset.from_tensor_slices(np.concatenate([x, x])).batch(64)
    poisoned = data.enumerate().map(lambda i, x: tf.where(i == 12, tf.fill(tf.shape(x), np.nan), x))
    model = make(loss="denoising_score_matching")
    guard = ebm.callbacks.DivergenceGuard()
    with pytest.warns(UserWarning, match="loss is nan"):
        model.fit(poisoned, callbacks=[guard], shuffle=False, verbose=0)
    assert len(guard.events) == 1 and np.isfinite(np.concatenate([w.numpy().ravel() for w in model.weights])).all()
    with pytest.raises(ValueError, match="the loss became nan"):
        make(loss="denoising_score_matching").fit(poisoned, shuffle=False, verbose=0)


@pytest.mark.slow
def test_a_healthy_run_is_left_alone():
    """The guard changes no bit of a run that does not diverge, and reports the gradient's norm."""
    plain, guarded = make(), make()
    guard = ebm.callbacks.DivergenceGuard(keep_every=3)
    plain.fit(X, batch_size=64, epochs=2, shuffle=False, verbose=0)
    history = guarded.fit(X, batch_size=64, epochs=2, shuffle=False, verbose=0, callbacks=[guard])
    assert guard.events == []
    assert_same(state(plain), state(guarded))
    assert all(0 < norm < 1e3 for norm in history.history["gradient_norm"])
    assert "gradient_norm" not in guarded.evaluate(X, return_dict=True, verbose=0)


def test_the_reported_norm_is_that_of_the_gradient():
    """For DSM of a linear energy E = a·z: ∂/∂a of ½‖−a + ε/σ‖² by rows, averaged; with one batch, known exactly."""
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model = ebm.EnergyModel(network)
    model.compile(keras.optimizers.SGD(0.0), ebm.losses.DenoisingScoreMatching(0.5))
    model.report_gradient_norm()
    logs = model.train_on_batch(X, return_dict=True)
    seed = stateless_seed(fold_in(fold_in(tf.constant(model.seed, tf.int32), 0), tf.constant(0, tf.int64)))
    residual = -network.weights[0].numpy()[:, 0] + normal(X.shape, seed).numpy() / 0.5
    assert logs["gradient_norm"] == pytest.approx(np.linalg.norm(residual.mean(0)), rel=1e-4)


def test_a_guarded_model_with_a_schedule_is_saved(tmp_path):
    model = make(keras.optimizers.schedules.CosineDecay(1e-3, 100))
    model.fit(X, batch_size=64, callbacks=[ebm.callbacks.DivergenceGuard()], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert float(loaded.optimizer.learning_rate) == pytest.approx(float(model.optimizer.learning_rate))


@pytest.mark.slow
def test_snapshots_are_drawn_as_the_model_is(tmp_path):
    model = make()
    snapshots = ebm.callbacks.SampleSnapshots(
        tmp_path / "samples", num_samples=20, every=2, kernel=ebm.mcmc.MALA(0.5), num_burnin_steps=5
    )
    model.fit(X, batch_size=64, epochs=4, callbacks=[snapshots], verbose=0)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["samples_0002.npy", "samples_0004.npy"]
    first, second = (np.load(tmp_path / "samples" / f"samples_000{i}.npy") for i in (2, 4))
    assert first.shape == (20, 2) and not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"max_energy_spread": -1.0}, "max_energy_spread"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm"),
        ({"factor": 1.0}, "factor"),
        ({"max_rollbacks": -1}, "max_rollbacks"),
        ({"keep_every": 0}, "keep_every"),
    ],
)
def test_bad_arguments(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ebm.callbacks.DivergenceGuard(**arguments)
    with pytest.raises(TypeError, match="needs an EnergyModel"):
        ebm.callbacks.DivergenceGuard().set_model(keras.Sequential())
    with pytest.raises(ValueError, match="`num_samples`"):
        ebm.callbacks.SampleSnapshots("x", num_samples=0)
    with pytest.raises(TypeError, match="`directory` must be a path, got 3"):
        ebm.callbacks.SampleSnapshots(3)
