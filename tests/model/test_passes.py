"""The order of rows in `fit`: every row once a pass, a new order each pass, decided by the model's seed and step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.model import passes

X = np.random.default_rng(0).normal(size=(70, 2)).astype("float32")


def make(seed=0):
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[4], seed=0), seed=seed)
    model.compile(keras.optimizers.Adam(1e-2), "denoising_score_matching")
    return model


def weights(model):
    return [weight.numpy() for weight in model.weights]


def same(a, b):
    return all(np.array_equal(u, v) for u, v in zip(weights(a), weights(b), strict=True))


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.long
def test_arrays_are_shuffled_alike_in_runs_that_are_resumed_or_repeated(tmp_path):
    whole, again, other = make(), make(), make(seed=1)
    for number, model in enumerate((whole, again, other)):
        tf.random.set_seed(number)
        model.fit(X, epochs=4, verbose=0)
    assert same(whole, again) and not same(whole, other)
    cut, resumed = make(), make()
    with pytest.raises(KeyboardInterrupt):
        cut.fit(X, epochs=4, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "a"), Interrupt()])
    resumed.fit(X, epochs=4, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "a")])
    assert same(resumed, whole)
    halves = make()
    halves.fit(X, epochs=2, verbose=0)
    halves.save(tmp_path / "half.keras")
    halves = keras.saving.load_model(tmp_path / "half.keras")
    halves.fit(X, epochs=2, verbose=0)
    assert same(halves, whole)


@pytest.mark.slow
def test_control_keras_own_shuffling_differs(monkeypatch):
    monkeypatch.setattr("tfp_ebm.model.trainer.in_order_of_seed", lambda model, call: call)
    one, two = make(), make()
    for number, model in enumerate((one, two)):
        tf.random.set_seed(number)  # processes that set none have different ones
        model.fit(X, epochs=2, verbose=0)
    assert not same(one, two)


def batches_of(model, **call):
    call = passes.in_order_of_seed(model, call)
    return call, [tuple(part.numpy() for part in tf.nest.flatten(batch)) for batch in call["x"]]


def test_each_pass_has_every_row_once_with_its_weight():
    model = make()
    model.build((None, 2))
    rows, weights = np.arange(140.0).reshape(70, 2), np.arange(70)
    call = {"x": rows, "y": np.zeros((70, 0), "float32"), "sample_weight": weights}
    call, first = batches_of(model, **call)
    assert [len(batch[0]) for batch in first] == [32, 32, 6] and call["x"].cardinality() == 3
    x, y, w = (np.concatenate(parts) for parts in zip(*first, strict=True))
    assert sorted(w) == list(range(70)) and y.shape == (70, 0) and x.dtype == "float32"
    np.testing.assert_array_equal(x[:, 0], 2 * w)
    model._step.assign(5)  # the first step of a pass may count before it reads its rows
    again = np.concatenate([batch[0] for batch in call["x"].map(lambda x, y, w: (x,)).as_numpy_iterator()])
    np.testing.assert_array_equal(again, x)
    call["callbacks"][0].step[...] = 3
    later = np.concatenate([batch[0].numpy() for batch in call["x"]])
    assert not np.array_equal(later, x) and sorted(later[:, 0]) == sorted(x[:, 0])


def test_splits_and_sizes_of_batches_are_those_of_keras():
    model = make()
    model.build((None, 2))
    call, batches = batches_of(model, x=X, validation_split=0.25, batch_size=20)
    assert sum(len(batch[0]) for batch in batches) == 52
    held_out = list(call["validation_data"].as_numpy_iterator())
    assert len(held_out) == 1
    np.testing.assert_array_equal(held_out[0], X[52:])
    assert len(batches_of(model, x=X, steps_per_epoch=5)[1][0][0]) == 14
    assert len(batches_of(model, x=tf.constant(X))[1]) == 3
    for untouched in ({"x": X, "shuffle": "batch"}, {"x": tf.data.Dataset.range(3)}):
        assert passes.in_order_of_seed(model, untouched) is untouched
    for split in (1.5, -0.5, 0.999):
        with pytest.raises(ValueError, match="`validation_split` must"):
            model.fit(X, validation_split=split, verbose=0)


def test_arrays_that_are_not_shuffled_are_batches_in_their_order():
    model = make()
    model.build((None, 2))
    weights, other = np.arange(70.0), X[:50] + 1
    call = {"x": X, "y": np.zeros((70, 0), "float32"), "sample_weight": weights, "shuffle": False}
    call, batches = batches_of(model, **call, validation_data=(other,), validation_batch_size=40)
    for found, rows in zip(zip(*batches, strict=True), (X, np.zeros((70, 0)), weights), strict=True):
        np.testing.assert_array_equal(np.concatenate(found), rows)
    assert [len(batch) for batch in call["validation_data"]] == [40, 10]
    np.testing.assert_array_equal(next(iter(call["validation_data"])), other[:40])
    for given, sizes in (({}, [32, 32, 6]), ({"steps": 2}, [35, 35]), ({"batch_size": 64}, [64, 6])):
        batches = passes.in_their_order(model, {"x": X, **given})["x"]
        assert [len(batch) for batch in batches] == sizes and batches.cardinality() == len(sizes)
    assert model.evaluate(X, verbose=0) == model.evaluate(tf.data.Dataset.from_tensor_slices(X).batch(32), verbose=0)
    with pytest.raises(ValueError, match="`batch_size` must be"):
        model.evaluate(X, batch_size=-1, verbose=0)


def test_no_pass_over_arrays_is_tuned_by_tensorflow():
    """Its thread sleeps 10, 20, 40, … ms, and who ends a pass waits for it: up to as long again as the pass took."""
    model = make()
    model.build((None, 2))
    of_fit = [
        ("x", {"x": X}),
        ("x", {"x": X, "shuffle": False}),
        ("validation_data", {"x": X, "validation_split": 0.5}),
        ("validation_data", {"x": X, "validation_data": X}),
        ("validation_data", {"x": tf.data.Dataset.range(3), "validation_data": (X,)}),
    ]
    made = [passes.in_order_of_seed(model, call)[name] for name, call in of_fit]
    made.append(passes.in_their_order(model, {"x": X})["x"])
    assert [dataset.options().autotune.enabled for dataset in made] == [False] * 6


def test_one_iterator_through_all_epochs_has_the_order_of_an_iterator_for_each():
    """Under a strategy one iterator reads all epochs, since TensorFlow waits at the end of each."""
    model = make()
    model.build((None, 2))
    rows, steps = tf.constant(X[:9]), 3
    one = passes.Beginning(of_first=True)
    one.set_model(model)
    model._step.assign(7)
    one.on_epoch_begin(0)
    batches = passes._shuffled(rows, 9, 4, model.seed, one)
    iterator = iter(batches)
    for epoch in range(3):
        each = passes.Beginning()
        each.set_model(model)
        model._step.assign(7 + steps * epoch)
        for beginning in (one, each):
            beginning.on_epoch_begin(epoch)
        expected = list(passes._shuffled(rows, 9, 4, model.seed, each).as_numpy_iterator())
        assert [len(batch) for batch in expected] == [4, 4, 1]
        for batch in expected:
            np.testing.assert_array_equal(next(iterator), batch)


@pytest.mark.slow
def test_orders_are_uniform():
    """Where row 0 goes in 200 passes of 5 rows: χ² with 4 degrees of freedom, above 18.5 in one run of a thousand."""
    model = make()
    model.build((None, 2))
    call = passes.in_order_of_seed(model, {"x": np.arange(10.0).reshape(5, 2), "batch_size": 5})
    places = []
    for step in range(200):
        call["callbacks"][0].step[...] = step
        places.append(int(np.argmin(next(iter(call["x"])).numpy()[:, 0])))
    counts = np.bincount(places, minlength=5)
    assert np.square(counts - 40).sum() / 40 < 18.5
