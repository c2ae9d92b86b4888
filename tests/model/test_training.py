"""`fit` and its surroundings: sources of data, callbacks and options of Keras, seeds, resumption."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from laws import assert_same

import tfp_ebm as ebm

X = np.random.default_rng(0).normal([2.0, -1.0], [1.0, 0.5], size=(256, 2)).astype("float32")


def make(loss="denoising_score_matching", optimizer=None, network=None, adapt=True, **kwargs):
    model = ebm.EnergyModel(network or ebm.networks.mlp([2], units=[8], seed=0))
    if adapt:
        model.adapt(X)
    model.compile(optimizer=optimizer or keras.optimizers.Adam(1e-2), loss=loss, **kwargs)
    return model


def step_of(model):
    """The step counter, a weight of the model."""
    (counter,) = [weight for weight in model.weights if weight.name == "step"]
    return counter


def weights(model):
    return [weight.numpy() for weight in model.weights]


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return (X[32 * i : 32 * i + 32],)


SOURCES = {
    "array": lambda: X,
    "tensor": lambda: tf.constant(X),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices(X).batch(32),
    "dataset of tuples": lambda: tf.data.Dataset.from_tensor_slices((X,)).batch(32),
    "PyDataset": Batches,
    "generator of bare batches": lambda: (X[i : i + 32] for i in range(0, 256, 32)),
    "generator": lambda: ((X[i : i + 32],) for i in range(0, 256, 32)),
}


@pytest.mark.slow
def test_every_source_of_data_trains_alike():
    """The same batches give the same bits, whatever carries them, with the base fitted to the first rows."""
    reference = None
    for name, source in SOURCES.items():
        model = make(adapt=False)
        # Keras warns of a generator that ends before it was stopped
        steps = 8 if "generator" in name else None
        history = model.fit(source(), epochs=1, verbose=0, shuffle=False, steps_per_epoch=steps)
        assert int(step_of(model).numpy()) == 8, name
        np.testing.assert_allclose(model.base.mean(), X.mean(0), rtol=1e-5, err_msg=name)
        if reference is None:
            reference, loss = weights(model), history.history["loss"]
        assert_same(weights(model), reference)
        assert history.history["loss"] == loss


@pytest.mark.slow
def test_options_of_compile_take_the_same_steps():
    """Other compilations differ in rounding only: 8 Adam steps stay within 1e-4 of those of the default."""

    def trained(**option):
        model = make(**option)
        model.fit(X, epochs=1, verbose=0, shuffle=False)
        return weights(model)

    reference = trained()
    moved = max(np.abs(a - b).max() for a, b in zip(reference, weights(make()), strict=True))
    assert moved > 0.02
    for option in ({"steps_per_execution": 4}, {"jit_compile": True}, {"run_eagerly": True}):
        for a, b in zip(trained(**option), reference, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=str(option))


def test_fit_traces_its_step_once():
    traces = []

    class Counting(ebm.losses.DenoisingScoreMatching):
        def call(self, *args, **kwargs):
            traces.append(1)
            return super().call(*args, **kwargs)

    model = make(Counting())
    for _ in range(3):
        model.fit(X, epochs=2, verbose=0, batch_size=64)
    assert len(traces) == 1
    model.evaluate(X, verbose=0, batch_size=64)
    model.evaluate(X, verbose=0, batch_size=64)
    assert len(traces) == 2


@pytest.mark.slow
def test_no_host_operation_in_a_step():
    """A step that left the graph (py_function, numpy_function) could not run on a GPU, nor be compiled by XLA."""
    model = make()
    model.fit(X[:32], verbose=0)
    step = tf.function(lambda x: model.train_step((x,)))
    graph = step.get_concrete_function(tf.TensorSpec([32, 2])).graph
    names = {op.type for op in graph.get_operations()}
    for function in graph._functions.values() if hasattr(graph, "_functions") else []:
        names |= {node.op for node in function.cached_definition.node_def}
    assert names and not {"PyFunc", "EagerPyFunc", "PyFuncStateless"} & names


def test_autograph_reads_what_a_loss_calls():
    """In a `tf.function` of the user's own; a method that is only a docstring would make it warn."""
    for method in (ebm.losses.ScoreMatching.build, ebm.mcmc.FromData.keep):
        tf.autograph.to_graph(method)

    def only_a_docstring(x):
        """Nothing else."""

    with pytest.raises(IndentationError):
        tf.autograph.to_graph(only_a_docstring)


@pytest.mark.slow
def test_a_run_cut_and_resumed_equals_one_that_was_not(tmp_path):
    """Through a `.keras` file, optimizer, step counter and all. With another counter the bits differ (control)."""
    data = tf.data.Dataset.from_tensor_slices(X).batch(32)
    whole, cut = make(), make()
    whole.fit(data, epochs=4, verbose=0, shuffle=False)
    cut.fit(data, epochs=2, verbose=0, shuffle=False)
    cut.save(tmp_path / "cut.keras")
    resumed, control = (keras.saving.load_model(tmp_path / "cut.keras") for _ in range(2))
    resumed.fit(data, epochs=2, verbose=0, shuffle=False)
    assert_same(weights(resumed), weights(whole))
    assert_same([v.numpy() for v in resumed.optimizer.variables], [v.numpy() for v in whole.optimizer.variables])
    step_of(control).assign(0)
    control.fit(data, epochs=2, verbose=0, shuffle=False)
    assert not np.array_equal(control.energy(X), whole.energy(X))


def test_backup_and_restore_resumes_bit_equal(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    data = tf.data.Dataset.from_tensor_slices(X).batch(32)
    whole, first, second = make(), make(), make()
    whole.fit(data, epochs=4, verbose=0, shuffle=False)

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    with pytest.raises(KeyboardInterrupt):
        first.fit(data, epochs=4, verbose=0, shuffle=False, callbacks=[backup(), Interrupt()])
    second.fit(data, epochs=4, verbose=0, shuffle=False, callbacks=[backup()])
    assert_same(weights(second), weights(whole))


def test_checkpoints_and_early_stopping(tmp_path):
    model = make(optimizer=keras.optimizers.SGD(1e-6))
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True)
    stopping = keras.callbacks.EarlyStopping(patience=1, min_delta=1e3, restore_best_weights=True)
    csv = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = model.fit(
        X,
        epochs=10,
        verbose=0,
        validation_split=0.25,
        callbacks=[checkpoint, stopping, csv, keras.callbacks.TerminateOnNaN()],
    )
    assert len(history.history["val_loss"]) == 2
    loaded = keras.saving.load_model(tmp_path / "best.keras")
    assert loaded.evaluate(X, verbose=0) == pytest.approx(model.evaluate(X, verbose=0), rel=1e-3)


def test_evaluation_changes_no_weight_and_repeats():
    model = make()
    before = weights(model)
    values = [model.evaluate(X, verbose=0, batch_size=100) for _ in range(2)]
    assert values[0] == values[1]
    assert_same(weights(model), before)
    # Its noise differs from batch to batch: two batches of the same rows do not have twice the same loss.
    twice = np.concatenate([X[:128], X[:128]])
    assert model.evaluate(twice, verbose=0, batch_size=128) != model.evaluate(X[:128], verbose=0, batch_size=128)
    validated, plain = make(), make()
    validated.fit(X[:128], epochs=2, verbose=0, validation_data=X[128:], shuffle=False)
    plain.fit(X[:128], epochs=2, verbose=0, shuffle=False)
    assert_same(weights(validated), weights(plain))


@pytest.mark.slow
def test_seed_decides_the_noise():
    def trained(seed):
        model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0), seed=seed)
        model.compile(keras.optimizers.Adam(1e-2), "denoising_score_matching")
        model.fit(X, verbose=0, shuffle=False)
        return model.energy(X).numpy()

    reference = trained(3)
    np.testing.assert_array_equal(reference, trained(3))
    np.testing.assert_array_equal(reference, trained((0, 3)))
    assert not np.array_equal(reference, trained(4))


def test_train_on_batch_is_a_step_of_fit():
    one, other = make(), make()
    one.fit(X[:32], verbose=0, shuffle=False)
    logs = other.train_on_batch(X[:32], return_dict=True)
    assert set(logs) == {"loss"}
    assert_same(weights(one), weights(other))
    assert other.test_on_batch(X[:32]) > 0


def test_sample_weights_weigh_rows():
    """Σ w·loss / batch, as Keras reduces: weights of 0 and 2 give twice the share of the rows that are left."""
    per_rows = []

    class Recording(ebm.losses.DenoisingScoreMatching):
        def call(self, *args, **kwargs):
            output = super().call(*args, **kwargs)
            per_rows.append(output.per_example.numpy())
            return output

    recording = make(Recording(), run_eagerly=True)  # an evaluation has the same noise each time
    assert recording.evaluate(X[:32], verbose=0) == pytest.approx(per_rows[0].mean(), rel=1e-5)
    model, per_row = make(), per_rows[0]
    w = np.where(np.arange(32) % 2 == 0, 2.0, 0.0).astype("float32")
    assert model.evaluate(X[:32], verbose=0) == pytest.approx(per_row.mean(), rel=1e-5)
    assert model.evaluate(X[:32], sample_weight=w, verbose=0) == pytest.approx((w * per_row).mean(), rel=1e-5)
    model.fit(X[:32], sample_weight=np.zeros(32), verbose=0)
    assert_same(weights(model)[1:], weights(make())[1:])  # all but the step counter
    model.fit(X[:32], sample_weight=w, verbose=0)
    assert not np.array_equal(model.energy(X), make().energy(X))


@pytest.mark.slow
def test_optimizers_schedules_clipping_averages_and_decay():
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, 8)
    for optimizer in (
        keras.optimizers.Adam(schedule, clipnorm=1.0),
        keras.optimizers.SGD(1e-4, clipvalue=0.5, momentum=0.9),
        keras.optimizers.AdamW(1e-3, weight_decay=1e-2),
        "adam",
    ):
        model = make(optimizer=optimizer)
        history = model.fit(X, epochs=1, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
    averaged = make(optimizer=keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5))
    averaged.fit(X, epochs=1, verbose=0, shuffle=False)
    plain = make()
    plain.fit(X, epochs=1, verbose=0, shuffle=False)
    assert not np.array_equal(averaged.energy(X), plain.energy(X))


def test_frozen_layers_stay():
    network = ebm.networks.mlp([2], units=[8], seed=0)
    network.get_layer("hidden_0").trainable = False
    model = make(network=network)
    before = network.get_layer("hidden_0").kernel.numpy()
    energies = model.energy(X).numpy()
    model.fit(X, verbose=0)
    np.testing.assert_array_equal(network.get_layer("hidden_0").kernel, before)
    assert not np.array_equal(model.energy(X), energies)


def test_regularizers_count():
    def evaluated(regularizer):
        network = keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones", kernel_regularizer=regularizer)]
        )
        return make(network=network).evaluate(X, verbose=0)

    assert evaluated(keras.regularizers.L2(0.5)) == pytest.approx(evaluated(None) + 0.5 * 2, rel=1e-6)


def test_mixed_float16_scales_the_loss():
    model = make(network=ebm.networks.mlp([2], units=[8], dtype="mixed_float16", seed=0))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    history = model.fit(X, epochs=3, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert not np.array_equal(
        model.energy(X), make(network=ebm.networks.mlp([2], units=[8], dtype="mixed_float16", seed=0)).energy(X)
    )


def test_dropout_trains_with_and_evaluates_without():
    network = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(64, "tanh"), keras.layers.Dropout(0.9, seed=0), keras.layers.Dense(1)]
    )
    model = make(network=network)
    assert model.evaluate(X, verbose=0) == model.evaluate(X, verbose=0)
    z = model.standardization.to_z(tf.constant(X))
    training = model.energy_function.in_mode(True)
    assert not np.array_equal(training(z), training(z))
    np.testing.assert_array_equal(model.energy_function(z), model.energy_function(z))


@keras.saving.register_keras_serializable("tests")
class WithState(ebm.losses.Loss):
    """A loss with a trainable number, a counter and a metric, as a learned log Z or a replay buffer is."""

    metric_names = ("offset",)

    def build(self, event_shape, dtype="float32"):
        self.offset = self.add_weight(shape=(), initializer="zeros", dtype=dtype, name="offset")
        self.calls = self.add_weight(shape=event_shape, initializer="zeros", trainable=False, name="calls")
        self.built = True

    def call(self, energy_fn, x, condition, *, seed, training):
        if training:
            self.calls.assign_add(tf.ones_like(self.calls.value))
        per_example = tf.square(energy_fn(x) - 1.0) + tf.square(self.offset.value - 3.0)
        return ebm.losses.LossOutput(per_example, {"offset": self.offset.value})


def test_state_of_a_loss_is_trained_saved_and_spared_by_weight_decay(tmp_path):
    model = make(WithState(), optimizer=keras.optimizers.AdamW(1e-2, weight_decay=0.5))
    history = model.fit(X, epochs=2, verbose=0, validation_split=0.5, shuffle=False)
    assert set(history.history) == {"loss", "offset", "val_loss", "val_offset"}
    np.testing.assert_array_equal(model.loss.calls, 8.0)
    # Adam's first steps have length 1e-2 each; decay of .5 × 1e-2 per step would show from the second on.
    np.testing.assert_allclose(model.loss.offset, 8e-2, rtol=1e-3)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(weights(loaded), weights(model))
    for m in (model, loaded):
        m.fit(X[:64], verbose=0, shuffle=False)
    assert_same(weights(loaded), weights(model))
    model.save_weights(tmp_path / "model.weights.h5")
    other = make(WithState())
    other.load_weights(tmp_path / "model.weights.h5", skip_mismatch=False)
    assert_same(weights(other), weights(model))


@pytest.mark.slow
def test_recompiling_leaks_nothing():
    model = make(WithState())
    model.fit(X, verbose=0)
    count = len(model.weights)
    for loss in (WithState(), "denoising_score_matching", WithState()):
        model.compile(keras.optimizers.Adam(1e-2), loss)
        model.fit(X, verbose=0)
        assert len(model.weights) == count - (0 if isinstance(loss, WithState) else 2)
        assert [layer for layer in model.layers if isinstance(layer, ebm.losses.Loss)] == [model.loss]
        assert len(model.losses) == 0
        assert [m.name for m in model.metrics] == (["loss", "offset"] if isinstance(loss, WithState) else ["loss"])


@pytest.mark.parametrize("weight", [0, 1])
def test_recompiling_keeps_the_network(weight):
    model = make()
    model.fit(X, verbose=0)
    energies = model.energy(X).numpy()
    model.compile("adam", ["denoising_score_matching", WithState()][weight])
    np.testing.assert_array_equal(model.energy(X), energies)
