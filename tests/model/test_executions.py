"""Several training steps in one call: the same bits as one by one, and callbacks that see what they must see."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from laws import assert_same

import tfp_ebm as ebm
from tfp_ebm.model import executions

X = np.random.default_rng(0).normal([2.0, -1.0], [1.0, 0.5], size=(256, 2)).astype("float32")


@pytest.fixture
def fast(monkeypatch):
    """Calls of up to as many steps as there are: 1, 4, 16, …"""
    monkeypatch.setattr(executions, "_SECONDS", 1e9)


def make(loss="denoising_score_matching", **kwargs):
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0))
    model.adapt(X)
    model.compile(keras.optimizers.Adam(1e-2), loss, **kwargs)
    return model


def state(model):
    return [variable.numpy() for variable in (*model.weights, *model.optimizer.variables)]


def step(model):
    return int(model.optimizer.iterations.numpy())


class Epochs(keras.callbacks.Callback):
    """Notes the step at the end of each epoch; asks for no batch."""

    def on_train_begin(self, logs=None):
        self.steps, self.losses = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.steps.append(step(self.model))
        self.losses.append(logs["loss"])


class Batches(keras.callbacks.Callback):
    """Notes the step at the beginning and the end of each batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.before = step(self.model)

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append((batch, self.before, step(self.model), float(logs["loss"])))


def count_calls(monkeypatch):
    """The numbers of steps of the calls."""
    numbers, record = [], executions.Pace.record

    def noting(self, num_steps, logs):
        numbers.append(num_steps)
        record(self, num_steps, logs)

    monkeypatch.setattr(executions.Pace, "record", noting)
    return numbers


LOSSES = {
    "denoising": lambda: ebm.losses.DenoisingScoreMatching(0.3),
    "persistent chains": lambda: ebm.losses.PersistentContrastiveDivergence(num_steps=2, capacity=64),
}


@pytest.mark.parametrize("loss", ["denoising", pytest.param("persistent chains", marks=pytest.mark.long)])
def test_the_bits_do_not_depend_on_the_number_of_steps_of_a_call(loss, monkeypatch):
    """The clock decides this number, so a slow machine would otherwise give other weights than a fast one."""
    numbers, results, losses = count_calls(monkeypatch), [], []
    for seconds in (0.0, 0.004, 1e9):
        monkeypatch.setattr(executions, "_SECONDS", seconds)
        model = make(LOSSES[loss]())
        losses.append(model.fit(X, batch_size=20, epochs=3, verbose=0).history)
        assert step(model) == 39
        results.append(state(model))
        if seconds == 0.0:
            assert numbers == [1] * 39
    assert max(numbers) >= 8
    for result, history in zip(results[1:], losses[1:], strict=True):
        assert_same(result, results[0])
        assert history == losses[0]


@pytest.mark.slow
def test_resumed_runs_are_equal_whatever_the_calls(fast, tmp_path):
    whole, cut = make(), make()
    whole.fit(X, epochs=4, verbose=0)
    cut.fit(X, epochs=1, verbose=0, callbacks=[Batches()])  # one step a call
    cut.save(tmp_path / "cut.keras")
    resumed = keras.saving.load_model(tmp_path / "cut.keras")
    resumed.fit(X, epochs=4, initial_epoch=1, verbose=0)
    assert_same(state(resumed), state(whole))


class Numbered(keras.utils.PyDataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return (X[32 * i : 32 * i + 32],)


def endless():
    while True:
        yield (X[:32],)


SOURCES = {
    "array": (lambda: X, {}, 8),
    "dataset of unknown length": (
        lambda: tf.data.Dataset.from_tensor_slices(X).batch(32).filter(lambda x: tf.constant(True)),
        {},
        8,
    ),
    "endless dataset": (
        lambda: tf.data.Dataset.from_tensor_slices(X).batch(32).repeat(),
        {"steps_per_epoch": 5},
        5,
    ),
    "PyDataset": (Numbered, {}, 8),
    "generator": (endless, {"steps_per_epoch": 5}, 5),
}


@pytest.mark.parametrize("source", SOURCES)
def test_no_call_runs_past_an_epoch(source, fast, monkeypatch):
    """At the end of each epoch the model has made the epoch's steps, and no batch is lost between epochs."""
    make_source, options, steps = SOURCES[source]
    numbers, results = count_calls(monkeypatch), []
    for callbacks in ([Epochs()], [Epochs(), Batches()]):
        model = make()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Keras's, of data of unknown length
            model.fit(make_source(), epochs=3, verbose=0, callbacks=callbacks, shuffle=False, **options)
        assert callbacks[0].steps == [steps * (i + 1) for i in range(3)]
        results.append([*state(model), np.array(callbacks[0].losses)])
    assert max(numbers) >= 4
    assert_same(results[0], results[1])


def test_a_call_that_runs_past_the_epoch_is_seen(fast, monkeypatch):
    """The control of the test above: without its end, a call takes the first batches of the next epoch."""
    monkeypatch.setattr(executions.Pace, "num_steps", lambda *_: 4)
    epochs = Epochs()
    model = make()
    data = tf.data.Dataset.from_tensor_slices(X).batch(32).repeat()
    model.fit(data, epochs=2, steps_per_epoch=5, verbose=0, callbacks=[epochs], shuffle=False)
    assert epochs.steps != [5, 10]


def test_data_that_end_early_warn_as_keras_does(fast):
    model = make()
    data = tf.data.Dataset.from_tensor_slices(X).batch(32)
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(data, epochs=1, steps_per_epoch=20, verbose=0, shuffle=False)
    assert step(model) == 8


def test_a_callback_of_batches_sees_each_of_them(fast):
    batches = Batches()
    model = make()
    model.fit(X, batch_size=64, epochs=2, verbose=0, callbacks=[batches])
    assert [seen[:3] for seen in batches.seen] == [(i % 4, i, i + 1) for i in range(8)]
    assert len({loss for *_, loss in batches.seen}) == 8


BY_EPOCH = {
    "early stopping": lambda path: keras.callbacks.EarlyStopping("loss"),
    "checkpoint": lambda path: keras.callbacks.ModelCheckpoint(path / "a.keras"),
    "backup": lambda path: keras.callbacks.BackupAndRestore(path / "backup"),
    "stop at nan": lambda path: keras.callbacks.TerminateOnNaN(),
    "function at epochs": lambda path: keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None),
    "snapshots": lambda path: ebm.callbacks.SampleSnapshots(path, num_samples=4),
}
BY_BATCH = {
    "checkpoint": lambda path: keras.callbacks.ModelCheckpoint(path / "a.keras", save_freq=3),
    "backup": lambda path: keras.callbacks.BackupAndRestore(path / "backup", save_freq=3),
    "function at batches": lambda path: keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None),
    "guard": lambda path: ebm.callbacks.DivergenceGuard(),
    "own": lambda path: Batches(),
    "own, by an old name": lambda path: type("Own", (keras.callbacks.Callback,), {"on_batch_end": lambda *_: None})(),
    "derived": lambda path: type(
        "Own", (keras.callbacks.ModelCheckpoint,), {"on_train_batch_end": lambda *_, **__: None}
    )(path / "a.keras"),
}


def test_which_callbacks_act_on_batches(tmp_path):
    assert not [name for name, make_one in BY_EPOCH.items() if executions.acts_on_batches(make_one(tmp_path))]
    assert not [name for name, make_one in BY_BATCH.items() if not executions.acts_on_batches(make_one(tmp_path))]


def test_a_list_of_callbacks_of_the_users_own_gets_each_batch(fast):
    batches, model = Batches(), make()
    callbacks = keras.callbacks.CallbackList([batches], add_history=True, model=model, epochs=1, steps=8, verbose=0)
    model.fit(X, epochs=1, verbose=0, callbacks=callbacks)
    assert [seen[:3] for seen in batches.seen] == [(i, i, i + 1) for i in range(8)]


def test_a_call_ends_at_a_step_that_is_not_finite(fast):
    """The error names the batch, and no step follows it: the counter is that batch's, the weights those before it."""

    class Failing(ebm.losses.DenoisingScoreMatching):
        def call(self, energy_fn, x, condition, *, seed, training):
            output = super().call(energy_fn, x, condition, seed=seed, training=training)
            bad = tf.reduce_max(tf.abs(x)) > 100.0
            return output._replace(per_example=tf.where(bad, np.float32(np.nan), 1.0) * output.per_example)

    x = X.copy()
    x[5 * 16] = 1e4  # in batch 5, which the call of batches 1 to 4 and then that of 5 to 15 begins before
    for callbacks, where in (([], 5), ([Batches()], 5)):
        model = make(Failing(0.3))
        with pytest.raises(ValueError, match=f"within batch {where} of the epoch"):
            model.fit(x, batch_size=16, epochs=1, verbose=0, shuffle=False, callbacks=callbacks)
        assert int(model._step.numpy()) == 6
    quiet = make(Failing(0.3))
    quiet.fit(x, batch_size=16, epochs=3, verbose=0, shuffle=False, callbacks=[keras.callbacks.TerminateOnNaN()])
    assert int(quiet._step.numpy()) == 6


@pytest.mark.slow
def test_the_choice_is_saved(tmp_path):
    for given in ("auto", 1, 3):
        model = make(steps_per_execution=given)
        model.fit(X[:64], verbose=0)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert loaded.get_compile_config()["steps_per_execution"] == given
        assert loaded.steps_per_execution == (1 if given == "auto" else given)


@pytest.mark.parametrize("given", [0, -1, 1.5, "all", True, None])
def test_a_wrong_number_is_refused(given):
    with pytest.raises((TypeError, ValueError), match="`steps_per_execution`"):
        make(steps_per_execution=given)


def test_one_trace_serves_all_numbers_of_steps(fast):
    traces = []

    class Counting(ebm.losses.DenoisingScoreMatching):
        def call(self, *args, **kwargs):
            traces.append(1)
            return super().call(*args, **kwargs)

    model = make(Counting())
    for callbacks in ([], [Batches()], []):
        model.fit(X, epochs=2, verbose=0, callbacks=callbacks)
    assert len(traces) == 1


@pytest.mark.slow
def test_single_batches_train_too(fast):
    """`train_on_batch`, before and after `fit`, and steps that Keras runs eagerly."""
    model = make()
    model.train_on_batch(X[:32])
    model.fit(X, epochs=1, verbose=0)
    model.train_on_batch(X[:32])
    assert step(model) == 10
    eager = make(run_eagerly=True)
    eager.fit(X[:64], epochs=1, verbose=0)
    assert step(eager) == 2


def test_many_models_in_one_process_are_no_repeated_tracing(monkeypatch):
    """TensorFlow would take the steps of several models, which share their code, for one function traced again."""
    words = []
    monkeypatch.setattr(tf.get_logger(), "warning", lambda message, *args: words.append(message % args))
    for _ in range(6):
        make().fit(X, batch_size=128, verbose=0)
    assert not [line for line in words if "_train_function" in line]
