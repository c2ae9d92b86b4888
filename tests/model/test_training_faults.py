"""Faults that users of other libraries reported from their trainings: each must be right here, or refused by name.

Each group plants the mistake that it guards against, and sees its own check fail.
"""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfp_ebm as ebm
from tfp_ebm.energy import data as energy_data
from tfp_ebm.model import layer_losses, monitoring, trainer

X = np.random.default_rng(0).normal([2.0, -1.0], [1.0, 0.5], size=(192, 2)).astype("float32")
LOSSES = {
    "score matching": ebm.losses.ScoreMatching,
    "score matching, reverse": lambda: ebm.losses.ScoreMatching(method="reverse"),
    "sliced": ebm.losses.SlicedScoreMatching,
    "denoising": ebm.losses.DenoisingScoreMatching,
    "noise contrastive": ebm.losses.NoiseContrastiveEstimation,
    "contrastive divergence": ebm.losses.ContrastiveDivergence,
    "persistent": lambda: ebm.losses.PersistentContrastiveDivergence(num_steps=2, capacity=256),
}


def make(network=None, loss="denoising_score_matching", optimizer=None, **kwargs):
    model = ebm.EnergyModel(network or ebm.networks.mlp([2], units=[8], seed=0))
    model.adapt(X)
    model.compile(optimizer or keras.optimizers.SGD(0.01), loss, **kwargs)
    return model


def dense(*layers):
    return keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1)])


# ------------------------------------------------------------------------------------ losses that layers add (1)


class AddsLoss(keras.layers.Layer):
    """Adds ½·mean of squares by `add_loss`, in the given modes."""

    def __init__(self, only_in_training=False):
        super().__init__()
        self.only_in_training = only_in_training

    def call(self, x, training=False):
        if training or not self.only_in_training:
            self.add_loss(0.5 * keras.ops.mean(keras.ops.square(x)))
        return x


class Nested(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = keras.layers.Dense(4, "tanh"), AddsLoss(), keras.layers.Dense(1)

    def call(self, x, training=False):
        return self.out(self.second(self.first(x), training=training))


PENALIZED = {
    "activity regularizer": lambda: dense(keras.layers.Dense(8, "tanh", activity_regularizer=keras.regularizers.L2(1))),
    "ActivityRegularization": lambda: dense(keras.layers.Dense(4, "tanh"), keras.layers.ActivityRegularization(l2=0.3)),
    "add_loss": lambda: dense(keras.layers.Dense(4, "tanh"), AddsLoss()),
    "in a nested model": lambda: dense(dense(keras.layers.Dense(4, "tanh"), AddsLoss())),
    "in a subclassed model": Nested,
}


def penalty_of(model):
    """What Keras itself counts, from an eager call on the data."""
    model.network(model.standardization.to_z(tf.constant(X)))
    return float(tf.add_n(model.network.losses))


@pytest.mark.parametrize("loss", LOSSES)
def test_an_activity_regularizer_counts_once_in_every_loss(loss):
    """The difference that it makes to `evaluate` is exactly what Keras counts for one call on the data."""
    with_penalty = make(PENALIZED["activity regularizer"](), LOSSES[loss]())
    without = make(dense(keras.layers.Dense(8, "tanh")), LOSSES[loss]())
    without.network.set_weights(with_penalty.network.get_weights())
    expected = penalty_of(with_penalty)
    values = [m.evaluate(X, batch_size=192, verbose=0, return_dict=True)["loss"] for m in (with_penalty, without)]
    assert expected > 0.1
    assert values[0] - values[1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", PENALIZED)
def test_losses_of_layers_count_wherever_they_are(name):
    model = make(PENALIZED[name](), "score_matching")
    plain = model.evaluate(X, batch_size=192, verbose=0) - penalty_of(model)
    z = model.standardization.to_z(tf.constant(X))
    bare = model.loss(model.energy_function, z, seed=0).per_example
    assert plain == pytest.approx(float(tf.reduce_mean(bare)), abs=1e-5)


def test_losses_of_layers_are_trained_on_and_read_from_no_other_graph():
    # with Adam, since releases of Keras differ in whether they divide the penalty by the number of rows
    model = make(PENALIZED["activity regularizer"](), "score_matching", keras.optimizers.Adam(0.05))
    model.loss_weight = None
    before = penalty_of(model)
    for _ in range(3):
        model.fit(X, verbose=0)
        model.energy(X)
        model.score(X)
        model.evaluate(X, verbose=0)
        model.predict(X, verbose=0)
    assert penalty_of(model) < 0.5 * before
    model.fit(X, verbose=0, validation_data=X)


def test_losses_added_in_training_only_do_not_count_in_evaluation():
    model = make(dense(keras.layers.Dense(4, "tanh"), AddsLoss(only_in_training=True)), "score_matching")
    assert not layer_losses.adds_losses(model.energy_function, False)
    assert layer_losses.adds_losses(model.energy_function, True)
    frozen = keras.optimizers.SGD(0.0)
    plain = model.evaluate(X, verbose=0, batch_size=192)
    model.compile(frozen, "score_matching")
    trained = model.fit(X, verbose=0, batch_size=192).history["loss"][0]
    model.network(model.standardization.to_z(tf.constant(X)), training=True)
    assert trained - plain == pytest.approx(float(tf.add_n(model.network.losses)), rel=1e-4)


def test_a_loss_may_add_losses_itself():
    class Adds(ebm.losses.DenoisingScoreMatching):
        def call(self, *args, **kwargs):
            self.add_loss(tf.constant(3.0))
            return super().call(*args, **kwargs)

    model, plain = make(loss=Adds()), make()
    for _ in range(2):
        assert model.evaluate(X, verbose=0) == pytest.approx(plain.evaluate(X, verbose=0) + 3.0)


@pytest.mark.slow
def test_a_network_of_a_condition_counts_them_too():
    """Denoising at one scale runs the network once: its penalty is that of the noised data, and not zero."""

    def evaluated(regularizer):
        keras.utils.set_random_seed(0)
        x, sigma = keras.Input((2,)), keras.Input((1,))
        hidden = keras.layers.Dense(8, "tanh", activity_regularizer=regularizer)
        network = keras.Model([x, sigma], keras.layers.Dense(1)(hidden(keras.layers.Concatenate()([x, sigma]))))
        model = make(network, ebm.losses.NoiseConditionalDenoisingScoreMatching([0.5]))
        model.fit(X, verbose=0)
        model.network.set_weights([np.ones(w.shape) for w in model.network.get_weights()])
        return model.evaluate(X, batch_size=192, verbose=0)

    layer = keras.layers.Dense(1, kernel_initializer="ones", activity_regularizer=keras.regularizers.L2(1.0))
    layer(np.ones([192, 1], "float32"))
    num_counted = float(layer.losses[0])  # older releases of Keras sum a penalty over the rows, newer ones average
    assert num_counted == pytest.approx(1.0) or num_counted == pytest.approx(192.0)
    difference = evaluated(keras.regularizers.L2(1.0)) - evaluated(None)
    assert 4.0 < difference / num_counted < 8.0  # 8·E tanh²(z₁ + z₂ + σ(ε₁ + ε₂ + 1) + 1)


def test_planted_losses_of_layers_left_out(monkeypatch):
    """Control: without the extra call the penalty is 0, as it was."""
    monkeypatch.setattr(trainer, "losses_of_call", lambda *args: [])
    with pytest.raises(AssertionError):
        test_an_activity_regularizer_counts_once_in_every_loss("score matching")


# -------------------------------------------------------------------------------------------- loss scaling (2)


def half(**kwargs):
    return ebm.networks.mlp([2], units=[8], dtype="mixed_float16", seed=0, **kwargs)


class Overflowing(keras.layers.Layer):
    """Multiplies the gradient that passes by a number, in half precision."""

    def __init__(self, factor):
        super().__init__(dtype="mixed_float16")
        self.factor = factor

    def call(self, x):
        @tf.custom_gradient
        def scaled(x):
            return tf.identity(x), lambda upstream: upstream * tf.cast(self.factor, upstream.dtype)

        return scaled(x)


@pytest.mark.slow
@pytest.mark.parametrize("growth", [2000, 1])
def test_the_guard_leaves_an_overflow_to_the_loss_scale(growth):
    """A scale that is far too large at first, or grows at every step, overflows: that is no divergence."""
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(1e-3), initial_scale=2.0**30, dynamic_growth_steps=growth
    )
    model = make(half(), "noise_contrastive_estimation", optimizer)
    guard = ebm.callbacks.DivergenceGuard()
    history = model.fit(X, batch_size=16, epochs=8, verbose=0, callbacks=[guard])
    assert guard.events == []
    assert float(optimizer.learning_rate.numpy()) == pytest.approx(1e-3)
    assert int(optimizer.iterations.numpy()) > 20
    assert float(optimizer.dynamic_scale.numpy()) < 2.0**30
    assert np.isfinite(history.history["loss"]).all() and np.isfinite(history.history["gradient_norm"]).all()


def test_planted_guard_that_owns_the_overflow(monkeypatch):
    original = monitoring.finite_update

    def blind(*args):
        with monkeypatch.context() as context:
            context.setattr(monitoring, "is_scaler", lambda optimizer: False)
            return original(*args)

    monkeypatch.setattr(monitoring, "finite_update", blind)
    with pytest.warns(UserWarning, match="gradient_norm is"), pytest.raises(AssertionError):
        test_the_guard_leaves_an_overflow_to_the_loss_scale(2000)


@pytest.mark.slow
def test_a_rollback_does_not_restore_the_scale():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-3), initial_scale=2.0**28)
    model = make(half(), "noise_contrastive_estimation", optimizer)
    guard = ebm.callbacks.DivergenceGuard(max_gradient_norm=1e-9, max_rollbacks=1000)
    with pytest.warns(UserWarning, match=r"gradient_norm|changed no weight"):
        model.fit(X, batch_size=16, epochs=4, verbose=0, callbacks=[guard])
    assert float(optimizer.dynamic_scale.numpy()) < 2.0**28


@pytest.mark.parametrize("guarded", [False, True])
def test_a_gradient_that_is_not_finite_at_any_scale_is_a_fault(guarded):
    network = keras.Sequential(
        [
            keras.Input((2,)),
            Overflowing(np.inf),
            keras.layers.Dense(4, "tanh"),
            Overflowing(np.nan),
            keras.layers.Dense(1),
        ]
    )
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3), initial_scale=8.0)
    model = make(network, "noise_contrastive_estimation", optimizer)
    before = model.network.get_weights()
    callbacks = [ebm.callbacks.DivergenceGuard(max_rollbacks=0)] if guarded else []
    if guarded:
        with pytest.warns(UserWarning):  # of its loss too
            model.fit(X, batch_size=16, epochs=2, verbose=0, callbacks=callbacks)
    else:
        with pytest.raises(ValueError, match=r"the gradient is not finite in .*kernel"):
            model.fit(X, batch_size=16, epochs=2, verbose=0)
    for a, b in zip(before, model.network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_epoch_in_which_every_step_overflowed_is_reported():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3), initial_scale=2.0**100)
    model = make(half(), "noise_contrastive_estimation", optimizer)
    with pytest.warns(UserWarning, match="epoch 1 changed no weight: the gradient of the scaled loss overflowed"):
        model.fit(X, batch_size=96, verbose=0)


def test_a_fixed_loss_scale_of_the_user_is_kept():
    model = make(half(), "noise_contrastive_estimation", keras.optimizers.SGD(1e-3, loss_scale_factor=128.0))
    assert model.optimizer.loss_scale_factor == 128.0
    plain = make(half(), "noise_contrastive_estimation", keras.optimizers.SGD(1e-3), auto_scale_loss=False)
    norms = []
    for m in (model, plain):  # the norm is reported without the scale
        fitted = m.fit(X, batch_size=192, verbose=0, callbacks=[ebm.callbacks.DivergenceGuard()])
        norms.append(fitted.history["gradient_norm"][0])
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


# ---------------------------------------------------------------------- gradients that are not finite (3)


class Norm(keras.layers.Layer):
    """‖Wx‖, whose derivative at 0 is not finite."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 8), initializer="glorot_uniform", name="kernel")

    def call(self, x):
        return keras.ops.norm(x @ self.kernel, axis=-1)


class Root(Norm):
    def call(self, x):
        return keras.ops.sum(keras.ops.sqrt(keras.ops.abs(x @ self.kernel)), -1)


class Log(Norm):
    def call(self, x):
        y = keras.ops.sum(keras.ops.square(x @ self.kernel), -1)
        return keras.ops.where(y > 0, y * keras.ops.log(y), 0.0)


def with_zero_row(row):
    x = X.copy()
    x[row] = 0.0
    return x


def not_adapted(layer, loss="noise_contrastive_estimation", **kwargs):
    model = ebm.EnergyModel(layer, event_shape=(2,), base_measure=ebm.fit_base(X))
    model.compile(keras.optimizers.Adam(1e-3), loss, **kwargs)
    return model


@pytest.mark.parametrize(
    ("layer", "rows", "options"),
    [
        *((Norm, (0, 191), options) for options in ({}, {"jit_compile": True}, {"steps_per_execution": 3})),
        (Root, (191,), {}),
        (Log, (191,), {}),
    ],
)
def test_a_gradient_that_is_not_finite_reaches_no_weight(layer, rows, options):
    """One bad row, in the first batch of a new model or the very last of a later `fit`; the loss is always finite."""
    model = not_adapted(layer(), **options)
    for row in rows:
        with pytest.raises(ValueError, match=r"gradient is not finite in .*kernel.* though the loss is.*small number"):
            model.fit(with_zero_row(row), batch_size=64, shuffle=False, verbose=0)
        assert all(np.isfinite(weight.numpy()).all() for weight in [*model.weights, *model.optimizer.variables]), row


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["score_matching", "sliced_score_matching"])
def test_a_loss_that_is_not_finite_by_a_derivative_in_x_is_said_to_be(loss):
    """The score of a norm at 0 is NaN, and so is the loss at the first step: no learning rate helps."""
    model = not_adapted(Norm(), loss)
    with pytest.raises(ValueError, match=rf"{type(model.loss).__name__} differentiates the network in x") as error:
        model.fit(with_zero_row(0), batch_size=64, shuffle=False, verbose=0)
    assert "small number under the root" in str(error.value)
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights)
    plain = make(loss="noise_contrastive_estimation")  # the control: it differentiates nothing in x
    with pytest.raises(ValueError, match="the loss became nan") as error:
        plain.fit(tf.data.Dataset.from_tensor_slices(X * np.nan).batch(64), verbose=0, shuffle=False)
    assert "differentiates" not in str(error.value)


@pytest.mark.slow
def test_the_guard_rolls_such_a_step_back_and_terminate_on_nan_does_not_hide_it():
    model = not_adapted(Norm())
    guard = ebm.callbacks.DivergenceGuard()
    with pytest.warns(UserWarning, match="gradient_norm is nan"):
        model.fit(with_zero_row(70), batch_size=64, shuffle=False, verbose=0, callbacks=[guard])
    assert len(guard.events) == 1
    for callbacks in ([keras.callbacks.TerminateOnNaN()], [keras.callbacks.History()]):
        with pytest.raises(ValueError, match="gradient is not finite"):
            not_adapted(Norm()).fit(with_zero_row(191), batch_size=64, shuffle=False, verbose=0, callbacks=callbacks)


def test_train_on_batch_says_so_too():
    model = not_adapted(Norm())
    with pytest.raises(ValueError, match="gradient is not finite"):
        model.train_on_batch(with_zero_row(0))
    assert np.isfinite(model.network.get_weights()[0]).all()
    model.train_on_batch(X)
    model.fit(X, verbose=0)  # what went wrong before is forgotten


def test_a_loss_of_state_is_named_when_it_is_the_cause():
    class Bad(ebm.losses.Loss):
        def build(self, event_shape, dtype="float32"):
            self.offset = self.add_weight(shape=(), initializer="zeros", dtype=dtype, name="offset")
            self.built = True

        def call(self, energy_fn, x, condition, *, seed, training):
            return ebm.losses.LossOutput(energy_fn(x) + tf.sqrt(self.offset.value))

    with pytest.raises(ValueError, match=r"the gradient is not finite in [^ ]*offset within"):
        make(loss=Bad()).fit(X, verbose=0)


def test_planted_finiteness_asked_of_the_loss_alone(monkeypatch):
    """Control: with the gradient not checked, weights become NaN."""

    def of_loss_alone(optimizer, loss, gradients, trackers):
        finite = tf.math.is_finite(loss)
        return [tf.where(finite, gradient, tf.zeros_like(gradient)) for gradient in gradients]

    monkeypatch.setattr(monitoring, "finite_update", of_loss_alone)
    model = not_adapted(Norm())
    model.fit(with_zero_row(191), batch_size=64, shuffle=False, verbose=0)
    assert not np.isfinite(model.network.get_weights()[0]).all()


# ----------------------------------------------------------------------------- what the user configured (5)


def decayed(configure, **kwargs):
    """Weights (kernel, bias) after one SGD step of rate 1 and decay .1 without any gradient; all begin at 1."""
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="out")])
    network.set_weights([np.ones((2, 1)), np.ones(1)])
    optimizer = keras.optimizers.SGD(1.0, weight_decay=0.1, **kwargs)
    configure(optimizer, network)
    model = make(network, "noise_contrastive_estimation", optimizer)
    model.fit(X, batch_size=192, sample_weight=np.zeros(192), verbose=0)
    return [float(np.ravel(weight)[0]) for weight in network.get_weights()], float(model.loss.log_normalizer)


@pytest.mark.long
def test_variables_that_the_user_excluded_from_weight_decay_stay_excluded(monkeypatch):
    by_name = decayed(lambda o, network: o.exclude_from_weight_decay(var_names=["bias"]))
    by_variable = decayed(lambda o, network: o.exclude_from_weight_decay(var_list=[network.layers[0].bias]))
    by_both = decayed(lambda o, n: o.exclude_from_weight_decay(var_list=[n.layers[0].kernel], var_names=["bias"]))
    plain = decayed(lambda o, network: None)
    assert by_name[0] == by_variable[0] == pytest.approx([0.9, 1.0])
    assert by_both[0] == [1.0, 1.0] and plain[0] == pytest.approx([0.9, 0.9])
    assert by_name[1] == by_variable[1] == by_both[1] == plain[1]  # log Z is spared in all

    def replaced(self):
        self.optimizer.exclude_from_weight_decay(self.loss.trainable_variables)
        self.optimizer.build(self.trainable_variables)

    monkeypatch.setattr(trainer.EnergyTrainer, "_build_optimizer", lambda self: self.optimizer.built or replaced(self))
    assert decayed(lambda o, n: o.exclude_from_weight_decay(var_names=["bias"]))[0] == pytest.approx([0.9, 0.9])


@pytest.mark.slow
def test_other_settings_of_an_optimizer_are_left_alone():
    optimizer = keras.optimizers.AdamW(
        1e-3, weight_decay=0.1, clipnorm=0.5, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=3
    )
    before = optimizer.get_config()
    make(loss="noise_contrastive_estimation", optimizer=optimizer).fit(X, verbose=0)
    assert optimizer.get_config() == before
    callbacks = [keras.callbacks.TerminateOnNaN()]
    make().fit(X, verbose=0, callbacks=callbacks)
    assert len(callbacks) == 1
    model = make()
    given = keras.callbacks.CallbackList([], model=model, add_history=True)
    model.fit(X, verbose=0, callbacks=given)
    with pytest.raises(ValueError, match="the loss became nan"):  # in a CallbackList too
        model.fit(tf.data.Dataset.from_tensor_slices(X * np.nan).batch(64), verbose=0, shuffle=False, callbacks=given)


# -------------------------------------------------------------- batches of no rows, of one row, replicas (6, 7)


EMPTY = {
    name: LOSSES[name]
    for name in ("score matching", "sliced", "denoising", "noise contrastive", "contrastive divergence", "persistent")
}


@pytest.mark.slow
@pytest.mark.parametrize("loss", EMPTY)
def test_batches_of_no_row_and_of_one_row(loss):
    """A filtered batch may be empty: it has no effect on the weights or the metrics.

    One model is trained on both kinds of data, so that its step is compiled once.
    """

    def data(parts):
        return tf.data.Dataset.from_generator(lambda: iter(parts), output_signature=tf.TensorSpec([None, 2])).apply(
            tf.data.experimental.assert_cardinality(len(parts))
        )

    model = make(loss=EMPTY[loss]())
    for rows in (0, 1):
        batches = [X[:64], X[64 : 64 + rows], X[96:160]]
        history = model.fit(data(batches), epochs=2, verbose=0, shuffle=False).history
        assert all(np.isfinite(values).all() for values in history.values()), (rows, history)
        assert all(np.isfinite(weight.numpy()).all() for weight in model.weights), rows
        values = model.evaluate(data(batches), verbose=0, return_dict=True)
        assert all(np.isfinite(list(values.values()))), (rows, values)
        if rows == 0:
            model._step.assign(0)
            alone = model.evaluate(data(batches[:1]), verbose=0, return_dict=True)
            assert model.evaluate(data(batches[:2]), verbose=0, return_dict=True) == pytest.approx(alone)


def test_planted_mean_of_no_rows(monkeypatch):
    monkeypatch.setattr(
        monitoring.Trackers,
        "update",
        lambda self, metrics, weight: [
            self.means[name].update_state(value, sample_weight=weight) for name, value in metrics.items()
        ],
    )
    with pytest.raises(AssertionError):
        test_batches_of_no_row_and_of_one_row("noise contrastive")


def test_improved_contrastive_divergence_on_one_row():
    loss = ebm.losses.ImprovedContrastiveDivergence(ebm.mcmc.MALA(0.1), 1, ebm.mcmc.FromData())
    output = loss(lambda x: 0.5 * tf.reduce_sum(x**2, -1), X[:1], seed=0, training=True)
    assert np.isfinite(output.per_example).all()


@pytest.fixture(scope="module")
def on_two_replicas():
    """What `replicas.py` found, in a process of its own: devices cannot be split once TensorFlow runs."""
    script = pathlib.Path(__file__).parent / "replicas.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_uneven_replicas_train_and_evaluate_without_nan(on_two_replicas):
    """193 rows in batches of 64: the last is one row for one replica and none for the other."""
    for name in ("noise contrastive", "persistent"):
        assert on_two_replicas[name]["finite"], name
    # log Z begins at the balance of the batch, and not at its mean with a replica that has no row
    first, alone = on_two_replicas["log normalizers"]
    assert abs(first) > 0.8 * abs(alone) > 0.1


@pytest.mark.slow
def test_the_gradient_of_uneven_replicas_is_that_of_all_rows(on_two_replicas):
    """A loss linear in the weights: one step of SGD on three rows, two on one replica, moves by the mean over three.

    The mean of the replicas' means would be off by a tenth of a standard deviation and more.
    """
    moved, mean, mean_of_means = on_two_replicas["linear"]
    np.testing.assert_allclose(moved, mean, rtol=1e-5)
    assert np.abs(np.subtract(mean, mean_of_means)).max() > 0.05


@pytest.mark.slow
def test_chains_under_replicas_have_a_part_of_the_buffer_and_equal_steps(on_two_replicas):
    """In each of three passes over 193 rows, 32 + 32 + 32 + 1 chains of the first part move, and 3·32 of the other."""
    found = on_two_replicas["persistent"]
    before, first, second = found["step_sizes"]
    assert first == second != before and found["differing"] == []
    assert found["ages"] == [3 * 97, 3 * 96] and found["unused"] == [False, False]


@pytest.mark.slow
def test_replicas_without_noise_are_as_one_device(on_two_replicas):
    assert on_two_replicas["same as alone"] < 1e-5


# ------------------------------------------------------------------------------------ sources without an end (9)


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, i):
        return (X[:32],)


def dataset():
    return tf.data.Dataset.from_tensor_slices(X)


ENDLESS = {
    "repeat": lambda: dataset().repeat().batch(64),
    "repeat, filtered": lambda: dataset().repeat().filter(lambda x: x[0] > -100.0).batch(64),
    "batches, repeated and shuffled": lambda: dataset().batch(64).repeat().shuffle(8).map(lambda x: x + 1.0),
    "PyDataset": Endless,
    "counter": lambda: energy_data.shuffled_batches(X, 32, 0),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_full_passes_over_sources_without_end_are_refused(name):
    model = make()
    x = ENDLESS[name]()
    with pytest.raises(ValueError, match="`x` must end, got a"):
        model.adapt(x)
    with pytest.raises(ValueError, match="`x` must end, got a"):
        ebm.losses.NoiseContrastiveEstimation().adapt(x)
    for call, argument in (
        (lambda: model.fit(x, verbose=0, shuffle=False), "steps_per_epoch"),
        (lambda: model.evaluate(x, verbose=0), "steps"),
        (lambda: model.predict(x, verbose=0), "steps"),
        (lambda: model.fit(X, validation_data=x, verbose=0), "validation_steps"),
    ):
        with pytest.raises(ValueError, match=f"`{argument}` must be given"):
            call()
    model.fit(x, steps_per_epoch=2, verbose=0, shuffle=False)
    model.fit(X, validation_data=x, validation_steps=1, verbose=0)
    assert np.isfinite(model.evaluate(x, steps=2, verbose=0))
    assert np.isfinite(model.predict(x, steps=2, verbose=0)).all()


def test_an_iterator_that_does_not_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(energy_data, "_MAX_ROWS", 1000)

    def batches():
        while True:
            yield X

    for source in (
        batches(),
        tf.data.Dataset.from_generator(batches, output_signature=tf.TensorSpec([None, 2])),
    ):
        model = make()
        with pytest.warns(UserWarning, match="`x` .* was read up to 1152 rows"):
            model.adapt(source)
        np.testing.assert_allclose(model.base.mean(), X.mean(0), rtol=1e-4)


def test_sources_that_end_are_read_completely(monkeypatch):
    """Also where their length is not known: nothing is cut off from what is built of finite data."""
    monkeypatch.setattr(energy_data, "_MAX_ROWS", 100)
    for source in (
        dataset().batch(64),
        dataset().filter(lambda x: x[0] > -100.0).batch(64),
        dataset().repeat().take(192).batch(64),
        tf.data.Dataset.zip(dataset().filter(lambda x: x[0] > -100.0), dataset().repeat())
        .map(lambda a, b: a)
        .batch(64),
        X,
    ):
        model = make()
        model.adapt(source)
        np.testing.assert_allclose(model.base.mean(), X.mean(0), rtol=1e-4)


# ----------------------------------------------------------------------------------- what a batch is made of (10)

IMAGES = {"image": X, "label": np.zeros(192)}
KINDS = {
    "dict": (
        lambda: tf.data.Dataset.from_tensor_slices(IMAGES).batch(32),
        TypeError,
        r"got a dict of 'image', 'label'",
    ),
    "dict in a tuple": (lambda: tf.data.Dataset.from_tensor_slices((IMAGES,)).batch(32), TypeError, r"\['image'\]"),
    "strings": (
        lambda: tf.data.Dataset.from_tensor_slices([["a", "b"]] * 8).batch(4),
        TypeError,
        "real numbers, got a tensor of dtype string",
    ),
    "sparse": (
        lambda: tf.data.Dataset.from_tensor_slices(tf.sparse.from_dense(X)).batch(32),
        TypeError,
        "got a sparse tensor: make it dense by tf.sparse.to_dense",
    ),
    "ragged": (
        lambda: tf.data.Dataset.from_tensor_slices(tf.ragged.constant([[1.0], [1.0, 2.0]] * 8)).batch(4),
        TypeError,
        "got a ragged tensor",
    ),
    "complex": (lambda: tf.data.Dataset.from_tensor_slices(X.astype("complex64")).batch(32), TypeError, "complex64"),
    "four parts": (lambda: tf.data.Dataset.from_tensor_slices((X, X, X, X)).batch(32), ValueError, "got 4 parts"),
    "nested": (lambda: tf.data.Dataset.from_tensor_slices(((X, X),)).batch(32), TypeError, "got a tuple of 2"),
    "datasets": (lambda: dataset().window(4), TypeError, "one array of numbers, got a"),
    "dict itself": (lambda: IMAGES, TypeError, "got a dict of 'image', 'label'"),
    "sparse tensor itself": (lambda: tf.sparse.from_dense(X), TypeError, "got a sparse tensor"),
    "ragged tensor itself": (lambda: tf.ragged.constant([[1.0], [1.0, 2.0]]), TypeError, "got a ragged tensor"),
    "generator of dicts": (lambda: (IMAGES for _ in range(4)), TypeError, "got a dict"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_array_of_numbers_is_refused_by_name(name):
    source, error, message = KINDS[name]
    model = make()
    for call in (
        lambda x: model.adapt(x),
        lambda x: model.fit(x, verbose=0, shuffle=False, steps_per_epoch=2 if "generator" in name else None),
        lambda x: model.evaluate(x, verbose=0, steps=1 if "generator" in name else None),
        *([] if "generator" in name or name == "four parts" else [lambda x: model.predict(x, verbose=0)]),
    ):
        with pytest.raises(error, match=rf"(?s)`x` must.*{message}"):
            call(source())
    fresh = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0))
    fresh.compile("adam", "denoising_score_matching")
    with pytest.raises(error, match=rf"(?s)`x` must.*{message}"):
        fresh.fit(source(), verbose=0, shuffle=False, steps_per_epoch=2 if "generator" in name else None)
    if not isinstance(source(), dict) and "generator" not in name:
        with pytest.raises(error, match=rf"(?s)`validation_data` must.*{message}"):
            model.fit(X, validation_data=source(), verbose=0)


def test_planted_check_of_arrays_alone(monkeypatch):
    monkeypatch.setattr(energy_data, "check_kind", lambda name, x: None)
    monkeypatch.setattr(trainer, "check_kind", lambda name, x: None)
    with pytest.raises((TypeError, AssertionError), match=r"non-tensor|match"):
        test_what_is_no_array_of_numbers_is_refused_by_name("dict")


def test_predictions_of_single_batches_are_checked():
    model = make()
    with pytest.raises(TypeError, match="`x` must be one array of numbers, got a dict of 'image', 'label'"):
        model.predict_on_batch(IMAGES)
    np.testing.assert_allclose(model.predict_on_batch(X), model.energy(X), rtol=1e-5)
    np.testing.assert_allclose(model.predict(X, verbose=0), model.energy(X), rtol=1e-5)
    np.testing.assert_allclose(model.predict(dataset().batch(64), verbose=0), model.energy(X), rtol=1e-5)


def test_whole_numbers_and_booleans_are_numbers():
    x = np.arange(128).reshape(64, 2)
    for dtype in ("uint8", "int64", "float64", "bool"):
        model = make()
        data = tf.data.Dataset.from_tensor_slices((x % 7).astype(dtype)).batch(32)
        assert np.isfinite(model.fit(data, verbose=0, shuffle=False).history["loss"]).all()


# ------------------------------------------------------------------------- attributes read at tracing (11)


def trained(model):
    model._step.assign(0)
    model.fit(X, verbose=0, shuffle=False)
    return model.network.get_weights()


@pytest.mark.slow
def test_the_seed_can_be_set_and_takes_effect_at_once():
    model, other = make(), make()
    trained(model)
    model.network.set_weights(other.network.get_weights())
    model.seed = (0, 99)
    other.seed = 99
    assert model.seed == other.seed == (0, 99)
    assert model.evaluate(X, verbose=0) == other.evaluate(X, verbose=0)
    for a, b in zip(trained(model), trained(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(trained(make())[0], trained(model)[0])
    for bad in (None, "a", 1.5, [1, 2, 3]):
        with pytest.raises((TypeError, ValueError), match="`seed` must be an int or two ints"):
            model.seed = bad
    assert model.seed == (0, 99)


@pytest.mark.parametrize(
    ("loss", "name", "value"),
    [
        (ebm.losses.NoiseContrastiveEstimation, "noise_ratio", 4.0),
        (ebm.losses.DenoisingScoreMatching, "sigma", 0.5),
        (ebm.losses.SlicedScoreMatching, "num_projections", 3),
        (ebm.losses.ScoreMatching, "method", "reverse"),
        (ebm.losses.PersistentContrastiveDivergence, "num_steps", 3),
        (ebm.losses.PersistentContrastiveDivergence, "capacity", 3),
        (ebm.losses.ContrastiveDivergence, "energy_penalty", 3.0),
    ],
)
def test_settings_of_a_loss_are_fixed_once_it_is_built(loss, name, value):
    model = make(loss=loss())
    with pytest.raises(
        AttributeError, match=f"`{name}` of {loss.__name__} is fixed once the loss is built: create a new"
    ):
        setattr(model.loss, name, value)
    unused = loss()
    if name != "capacity":
        setattr(unused, name, value)  # not read yet
        assert getattr(unused, name) == value


@pytest.mark.slow
def test_layers_frozen_after_training_stay_and_thawed_ones_are_refused():
    network = ebm.networks.mlp([2], units=[8], seed=0)
    model = make(network, optimizer=keras.optimizers.SGD(0.1))
    model.fit(X, verbose=0)
    layer = network.get_layer("hidden_0")
    layer.trainable = False
    before, others = layer.kernel.numpy(), network.get_layer("energy").kernel.numpy()
    model.fit(X, verbose=0)
    np.testing.assert_array_equal(layer.kernel, before)
    assert not np.array_equal(network.get_layer("energy").kernel, others)
    layer.trainable = True
    model.fit(X, verbose=0)
    assert not np.array_equal(layer.kernel, before)
    layer.trainable = False
    model.compile(keras.optimizers.SGD(0.1), "denoising_score_matching")
    model.fit(X, verbose=0)
    layer.trainable = True
    with pytest.raises(
        ValueError, match=r"`trainable` was set after `compile`.*hidden_0/kernel.*compile the model again"
    ):
        model.fit(X, verbose=0)


def test_a_loss_set_on_the_model_is_refused():
    model = make()
    model.fit(X, verbose=0)
    model._tracker.unlock()
    model.loss = ebm.losses.ScoreMatching()
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="`loss` was set on the model: pass it to `compile`"):
            call(X, verbose=0)


def test_planted_seed_that_is_read_once(monkeypatch):
    monkeypatch.setattr(trainer.EnergyTrainer, "_retrace", lambda self: None)
    with pytest.raises(AssertionError):
        test_the_seed_can_be_set_and_takes_effect_at_once()


# --------------------------------------------------------------------------------- two libraries of one name (14)


def test_objects_of_tf_keras_are_named_as_such():
    legacy = tf_keras.Sequential([tf_keras.layers.Dense(1)])
    for network in (legacy, tf_keras.layers.Dense(1), tf_keras.Sequential):
        with pytest.raises(TypeError, match=r"`network` must be an object of Keras 3.*tf_keras, which is Keras 2"):
            ebm.EnergyModel(network)
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0))
    with pytest.raises(TypeError, match=r"`optimizer` must be an object of Keras 3.*Adam of the package tf_keras"):
        model.compile(tf_keras.optimizers.Adam(), "denoising_score_matching")
    with pytest.raises(TypeError, match=r"`loss` must be an object of Keras 3.*tf_keras"):
        model.compile("adam", tf_keras.losses.MeanSquaredError())
    with pytest.raises(TypeError, match=r"`callbacks` must be an object of Keras 3.*TerminateOnNaN of the package"):
        make().fit(X, verbose=0, callbacks=[tf_keras.callbacks.TerminateOnNaN()])
    early = tf_keras.callbacks.EarlyStopping("loss")
    for call, argument in (
        (lambda: make().evaluate(X, verbose=0, callbacks=[early]), "callbacks"),
        (lambda: ebm.EnergyDistribution(legacy, event_shape=[2]), "energy"),
        (lambda: ebm.derivatives.laplacian(legacy, X), "energy_fn"),
        (lambda: ebm.derivatives.refuse_faulty_layers(legacy, "It"), "network"),
        (lambda: ebm.networks.SpectralNormalization(tf_keras.layers.Dense(1)), "layer"),
    ):
        with pytest.raises(TypeError, match=f"`{argument}` must be an object of Keras 3.*tf_keras, which is Keras 2"):
            call()
    with pytest.raises(TypeError, match="must be a Keras model or layer, got function"):
        ebm.EnergyModel(lambda x: x)
