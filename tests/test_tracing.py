"""Graphs, and the models that they were made of, are deleted with the functions that were traced."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow.python.framework.func_graph import FuncGraph

import tfp_ebm as ebm
from tfp_ebm import tracing

tfb, tfd = tfp.bijectors, tfp.distributions
X = tf.constant(np.random.default_rng(0).normal(size=(8, 2)), tf.float32)
KERNEL = ebm.mcmc.HMC(0.5, num_leapfrog_steps=2)
NUM_RUNS = 2


def normal():
    return tfd.MultivariateNormalDiag(tf.zeros(2), tf.constant([1.0, 2.0]))


def model():
    inputs = keras.Input((2,))
    outputs = keras.layers.Dense(1)(keras.layers.Dense(4, "tanh")(inputs))
    return ebm.EnergyModel(keras.Model(inputs, outputs), base_measure=normal(), seed=0)


def graphs():
    gc.collect()
    return sum(type(found) is FuncGraph for found in gc.get_objects())


def remembered():
    return len(tfb.Bijector._cache.storage)


@pytest.fixture
def keeps_graphs(monkeypatch):
    """The mistake that the tests must find: TFP's bijectors are let keep the graphs."""
    yield lambda: monkeypatch.setattr(tracing, "_forget_inputs", lambda graph: None)
    storage = tfb.Bijector._cache.storage  # what was kept meanwhile
    for key in list(storage):
        key.cancel()
        storage.pop(key, None)


# --- one function -----------------------------------------------------------------------------------------------------


def in_a_loop(x):
    return tf.while_loop(lambda i, _: i < 2, lambda i, y: (i + 1, normal().log_prob(x)), [0, tf.zeros(len(X))])[1]


def through_attributes(x):
    bijector = tfb.Scale(tf.reduce_sum(x))  # a parameter in the graph, an input outside it
    return bijector.forward(X) + bijector.forward_log_det_jacobian(X, 1)


FUNCTIONS = {
    "log_prob": lambda x: normal().log_prob(x),
    "sample": lambda x: normal().sample(3, seed=tf.constant([1, 2])),
    "loop": in_a_loop,
    "attributes": through_attributes,
}


def is_deleted(function):
    traced = tracing.graph_function(function)
    traced(X)
    graph = weakref.ref(traced.get_concrete_function(X).graph)
    del traced
    gc.collect()
    return graph() is None


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_graph_is_deleted_with_the_function(name):
    before = remembered()
    assert is_deleted(FUNCTIONS[name])
    assert remembered() == before


@pytest.mark.parametrize("name", FUNCTIONS)
def test_control_without_forgetting_the_graph_stays(name, keeps_graphs):
    keeps_graphs()
    assert not is_deleted(FUNCTIONS[name])


def test_an_error_in_the_trace_leaves_nothing():
    def fails(x):
        raise KeyError(str(normal().log_prob(x)))

    before = remembered()
    with pytest.raises(KeyError):
        tracing.graph_function(fails)(X)
    gc.collect()
    assert remembered() == before


def test_tensors_outside_the_graph_are_remembered():
    bijector = tfb.Exp()
    y = bijector.forward(X)
    tracing.graph_function(bijector.forward)(X + 1.0)
    assert bijector.inverse(y) is X

    @tf.function(autograph=False)
    def outer(x):
        y = bijector.forward(x)
        inner = tracing.graph_function(lambda z: bijector.inverse(bijector.forward(z)))(x)
        assert bijector.inverse(y) is x
        return inner

    outer(X)


def test_names_and_signature_are_those_of_the_function():
    signature = [tf.TensorSpec((None, 2), tf.float32, name="x"), tf.TensorSpec((), tf.float32, name="shift")]
    traced = tracing.graph_function(lambda x, shift: x + shift, input_signature=signature)
    np.testing.assert_array_equal(traced(shift=tf.constant(1.0), x=X), X + 1.0)
    assert list(traced.get_concrete_function().structured_input_signature[0]) == signature


def test_many_functions_cause_no_warning_of_traces(caplog):
    for _ in range(8):
        tracing.graph_function(lambda x: 2.0 * x)(X)
    assert "retracing" not in caplog.text


# --- what users call --------------------------------------------------------------------------------------------------


def fitted(loss):
    trained = model()
    trained.compile(keras.optimizers.Adam(), loss)
    trained.fit(np.asarray(X), batch_size=4, verbose=0)
    return trained


def drawn(directory):
    ebm.mcmc.sequential_monte_carlo(
        lambda x: -tf.reduce_sum(tf.square(x - 1.0), -1), normal(), num_samples=64, seed=1, jit_compile=False
    )


def chains(directory):
    ebm.EnergyDistribution(model(), kernel=KERNEL, num_burnin_steps=2).sample(4, seed=1)


def exported(directory):
    model().export(directory / "exported", verbose=False, kernel=KERNEL)


def predicted(directory):
    one = model()
    one.predict(np.asarray(X), verbose=0)
    one.score(X)


# name: the call, and the graphs that TensorFlow itself keeps for each: of custom gradients
CALLS = {
    "draw": (drawn, 0),
    "chains": (chains, 0),
    "predict": (predicted, 1),
    "fit": (lambda directory: fitted(ebm.losses.NoiseContrastiveEstimation()), 1),
    "export": (exported, 1),
}


def growth(call, directory):
    """The graphs that a call leaves, after two."""
    for _ in range(2):  # some graphs are made once, and those of the last call may stay until the next
        call(directory)
    before = graphs()
    for _ in range(NUM_RUNS):
        call(directory)
    return (graphs() - before) / NUM_RUNS


def leaves_graphs(name, directory):
    call, kept = CALLS[name]
    before = remembered()
    return growth(call, directory) > kept or remembered() > before


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_calls_leave_no_graphs(name, tmp_path):
    assert not leaves_graphs(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_control_without_forgetting_calls_leave_graphs(name, tmp_path, keeps_graphs):
    keeps_graphs()
    assert leaves_graphs(name, tmp_path)


@pytest.mark.parametrize(
    "name", ["DenoisingScoreMatching", pytest.param("PersistentContrastiveDivergence", marks=pytest.mark.slow)]
)
def test_a_fitted_model_is_deleted(name):
    trained = fitted(getattr(ebm.losses, name)())
    parts = [weakref.ref(part) for part in (trained, trained.network, trained.optimizer)]
    del trained
    gc.collect()
    assert not any(part() is not None for part in parts)
