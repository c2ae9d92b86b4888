"""Every private part of Keras, TensorFlow and TFP that the package uses, each with a small check of what it does.

An upgrade of one of these libraries that breaks the package should fail here first, with a message that names what
changed and which file of ours depends on it. `test_every_private_name_is_listed` keeps the list complete.
"""

import ast
import functools
import json
import pathlib
import re
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import normal

import tfp_ebm
from tfp_ebm.derivatives import explanation, faults
from tfp_ebm.derivatives.rules import operators

PACKAGE = pathlib.Path(tfp_ebm.__file__).parent
SEED = tf.constant([3, 14], tf.int32)
VERSIONS = f"keras {keras.__version__}, tensorflow {tf.__version__}, tensorflow-probability {tfp.__version__}"
LISTED = {}  # private name: files of the package that may use it


def private_part(what, *files, names=()):
    """Marks the check of one private part: a failure of any kind names `what` and the `files` that use it."""
    for name in names:
        LISTED.setdefault(name, set()).update(files)

    def mark(check):
        @functools.wraps(check)
        def run(*args, **kwargs):
            try:
                check(*args, **kwargs)
            except Exception as error:
                where = ", ".join(f"tfp_ebm/{name}" for name in files)
                message = f"{what} is no longer as {where} needs it ({VERSIONS}): {type(error).__name__}: {error}"
                raise AssertionError(message) from error

        return run

    return mark


@pytest.fixture
def network():
    inputs = keras.Input((2,))
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Dense(3, "tanh")(inputs)))


# --- the list itself --------------------------------------------------------------------------------------------------


def private_names():
    """{name: files} of private attributes that no file of the package defines, and of private modules."""
    used, defined = {}, {"_fields", "_replace", "_asdict"}  # of named tuples, documented
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.keyword):
                defined.add(node.arg)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                defined.add(node.attr)
            names = []
            if isinstance(node, ast.Attribute):
                names = [node.attr] if re.match("_[a-z]|__internal__$|src$", node.attr) else []
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module] if re.match(r"keras\.src|tensorflow(_probability)?\.python", node.module) else []
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
                literal = node.args[1]
                is_name = isinstance(literal, ast.Constant) and re.match("_[a-z]", literal.value)
                names = [literal.value] if is_name else []
            for name in names:
                used.setdefault(name, set()).add(str(path.relative_to(PACKAGE)))
    return {name: files for name, files in used.items() if name not in defined}


def test_every_private_name_is_listed():
    """What is used is checked below, in the files named there; what is listed is used."""
    used = private_names()
    unlisted = {name: files - LISTED.get(name, set()) for name, files in used.items()}
    assert {name: files for name, files in unlisted.items() if files} == {}
    overridden = {"_impl", "_get_help_string"}  # defined in the package too, so that the search does not see them
    assert set(LISTED) - set(used) == overridden
    assert {"_tracker", "_run_through_graph", "src", "_velocities"} <= set(used)  # control: the search finds some


def test_a_failure_says_what_broke_and_where():
    @private_part("Layer._nothing", "model/trainer.py")
    def check():
        keras.layers.Dense(1)._nothing()

    with pytest.raises(AssertionError, match=r"Layer\._nothing is no longer as tfp_ebm/model/trainer\.py needs it"):
        check()


# --- Keras: layers ----------------------------------------------------------------------------------------------------


@private_part("keras.Layer._tracker", "model/trainer.py", names=["_tracker"])
def test_a_locked_layer_is_unlocked_and_untracked():
    class Layer(keras.layers.Layer):
        pass

    layer = Layer()
    layer.dense = keras.layers.Dense(3)
    layer.dense.build((None, 2))
    layer._tracker.lock()
    with pytest.raises(ValueError):
        layer.extra = keras.layers.Dense(1)
    layer._tracker.unlock()
    layer.extra = keras.layers.Dense(1)
    layer.extra.build((None, 2))
    assert len(layer.weights) == 4
    layer._tracker.untrack(layer.extra)
    assert len(layer.weights) == 2


FLATTEN = (
    *("model/trainer.py", "model/layer_losses.py", "losses/base.py", "energy/rows.py", "derivatives/faults.py"),
    *("derivatives/engine.py", "derivatives/failures.py", "derivatives/operations.py"),
)


@private_part("keras.Layer._flatten_layers", *FLATTEN, names=["_flatten_layers"])
def test_flatten_layers_gives_the_layer_and_all_within(network):
    inner = keras.layers.TimeDistributed(keras.layers.Dense(2, name="wrapped"))
    outer = keras.Sequential([network, keras.layers.Reshape((1, 1)), inner])
    names = [layer.name for layer in outer._flatten_layers()]
    assert names[0] == outer.name
    assert {layer.name for layer in network.layers} | {"wrapped", network.name} <= set(names)


@private_part("the attribute `seed_generator` of layers that draw noise", "derivatives/engine.py")
def test_layers_that_draw_noise_have_a_seed_generator():
    noisy = [keras.layers.Dropout(0.5), keras.layers.GaussianNoise(0.5), keras.layers.AlphaDropout(0.5)]
    assert all(hasattr(layer, "seed_generator") for layer in noisy)
    assert not hasattr(keras.layers.Dense(1), "seed_generator")


@private_part("the names of Keras's layers and operations", "derivatives/faults.py", "derivatives/explanation.py")
def test_layers_are_known_by_module_and_name():
    kinds = {fault.kind for fault in faults._FAULTS} | set(explanation._FLAT_LAYERS)
    resize = [kind for kind in kinds if not hasattr(keras.layers, kind)]
    assert all(getattr(keras.layers, kind).__module__.startswith("keras.") for kind in kinds - set(resize))
    operations = {*resize, *explanation._FLAT_OPERATIONS}
    modules = keras.src.ops.numpy, keras.src.ops.nn, keras.src.ops.math, keras.src.ops.image
    missing = {name for name in operations if not any(hasattr(module, name) for module in modules)}
    assert missing == set(), missing


# --- Keras: graphs of networks ----------------------------------------------------------------------------------------

GRAPH = "derivatives/forward_laplacian.py"


@private_part("keras.src.models.Functional", GRAPH, "derivatives/rules/operators.py", names=["src"])
def test_functional_models_are_of_one_class(network):
    functional = keras.src.models.Functional
    assert isinstance(network, functional) and type(network).call is functional.call
    assert not isinstance(keras.Sequential([keras.layers.Dense(1)]), functional)


@private_part("keras.Sequential._functional", GRAPH, names=["_functional"])
def test_a_sequential_model_holds_a_functional_one():
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert isinstance(network._functional, keras.src.models.Functional)
    assert type(network).call is keras.Sequential.call


@private_part("keras.Model._run_through_graph", GRAPH, "derivatives/explanation.py", names=["_run_through_graph"])
def test_a_graph_runs_with_other_operations(network):
    """Node by node, with what `operation_fn` returns in place of each operation, and `operations` lists them."""
    called = []

    def operation_fn(operation):
        return lambda *args, **kwargs: called.append(operation) or operation(*args, **kwargs)

    x = tf.ones([5, 2])
    np.testing.assert_allclose(network._run_through_graph([x], operation_fn=operation_fn), network(x), rtol=1e-6)
    layers = [layer for layer in network.operations if not isinstance(layer, keras.layers.InputLayer)]
    assert called == layers and len(layers) == 2
    inputs = keras.Input((2,))
    model = keras.Model(inputs, 2.0 * inputs + keras.ops.exp(inputs))  # operators are nodes too
    del called[:]
    model._run_through_graph([x], operation_fn=operation_fn)
    assert sorted(type(operation).__name__ for operation in called) == ["Add", "Exp", "Multiply"]


@private_part("the classes in keras.src.ops", "derivatives/rules/operators.py")
def test_every_operator_with_a_rule_exists():
    """A name that Keras does not know is left out there without a word, and its networks take the slow way."""
    source = (PACKAGE / "derivatives" / "rules" / "operators.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    calls = [node for node in calls if ast.unparse(node.func) in ("_classes", "_register_arithmetic")]
    names = {
        leaf.value
        for node in calls
        for leaf in ast.walk(node)
        if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str)
    }
    assert len(names) > 30
    assert [name for name in sorted(names) if not operators._classes(name)] == []


# --- Keras: training --------------------------------------------------------------------------------------------------


class OwnStep(keras.Model):
    """A model whose loss is an attribute of its own, as the package's is."""

    def __init__(self):
        super().__init__()
        self.dense, self.num_traces = keras.layers.Dense(1), 0

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        self.num_traces += 1
        with tf.GradientTape() as tape:
            loss = self.loss(self(x))
        gradients = tape.gradient(loss, [weight.value for weight in self.trainable_variables])
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(x)[0])
        return self.get_metrics_result()


@pytest.fixture
def own_step():
    model = OwnStep()
    model.compile(keras.optimizers.SGD(0.0), loss=None)
    model.loss = tf.reduce_mean
    return model


@private_part("keras.Model._assert_compile_called", "model/trainer.py", names=["_assert_compile_called"])
def test_a_model_that_is_not_compiled_is_refused(network):
    with pytest.raises(ValueError, match="compile"):
        network._assert_compile_called("fit")
    network.compile("sgd", "mse")
    network._assert_compile_called("fit")


@private_part(
    "keras.Model._loss_tracker and `loss` set after compile(loss=None)",
    *("model/trainer.py", "model/monitoring.py"),
    names=["_loss_tracker"],
)
def test_the_loss_tracker_reports_and_counts(own_step):
    history = own_step.fit(np.ones([6, 2], "float32"), batch_size=4, verbose=0).history
    assert history["loss"] == [pytest.approx(float(own_step(tf.ones([1, 2]))[0, 0]))]
    assert float(own_step._loss_tracker.count.value) == 6  # rows
    assert own_step.metrics[0] is own_step._loss_tracker
    own_step.reset_metrics()
    assert float(own_step._loss_tracker.count.value) == 0


@private_part("keras.Model.train_function", "model/trainer.py", "callbacks.py")
def test_without_its_train_function_a_step_is_compiled_again(own_step):
    x = np.ones([4, 2], "float32")
    own_step.fit(x, verbose=0)
    once = own_step.num_traces
    own_step.fit(x, verbose=0)
    assert own_step.num_traces == once
    own_step.train_function = None
    own_step.fit(x, verbose=0)
    assert own_step.num_traces > once


@private_part("keras.Model.make_train_function", "model/trainer.py")
def test_fit_makes_its_function_before_callbacks_load_a_backup(own_step):
    order = []
    make = own_step.make_train_function
    own_step.make_train_function = lambda *args, **kwargs: order.append("made") or make(*args, **kwargs)
    begin = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: order.append("begin"))
    own_step.fit(np.ones([4, 2], "float32"), verbose=0, callbacks=[begin])
    assert order[:2] == ["made", "begin"]


@private_part("keras.Model._initial_epoch", "callbacks.py")
def test_fit_begins_at_the_initial_epoch(own_step):
    class Begin(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model._initial_epoch = 2

    x = np.zeros([4, 2], "float32")
    assert own_step.fit(x, epochs=3, verbose=0, callbacks=[Begin()]).epoch == [2]
    own_step._initial_epoch = None
    assert own_step.fit(x, epochs=1, verbose=0).epoch == [0]


@private_part(
    "keras.callbacks.BackupAndRestore._weights_path and ._training_metadata_path",
    "model/saving.py",
    names=["_weights_path", "_training_metadata_path"],
)
def test_the_backup_of_keras_is_weights_and_a_number_of_epochs(network, tmp_path):
    backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    network.compile("sgd", "mse")
    network.fit(np.zeros([4, 2], "float32"), np.zeros([4, 1]), epochs=3, verbose=0, callbacks=[backup])
    assert json.loads(pathlib.Path(backup._training_metadata_path).read_text())["epoch"] == 3
    network.load_weights(backup._weights_path)


@private_part("keras.Optimizer._learning_rate", "callbacks.py", names=["_learning_rate"])
def test_the_private_learning_rate_is_the_schedule():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    optimizer = keras.optimizers.SGD(schedule)
    assert optimizer._learning_rate is schedule
    other = keras.optimizers.schedules.CosineDecay(0.2, 100)
    optimizer.learning_rate = other
    assert optimizer._learning_rate is other
    fixed = keras.optimizers.SGD(0.1)
    fixed._learning_rate.assign(0.05)
    assert float(fixed.learning_rate) == pytest.approx(0.05)


@private_part("keras.optimizers.LossScaleOptimizer.inner_optimizer", "model/trainer.py", "callbacks.py")
def test_loss_scaling_keeps_the_optimizer_inside():
    inner = keras.optimizers.SGD(0.1)
    assert keras.optimizers.LossScaleOptimizer(inner).inner_optimizer is inner


VELOCITIES = ["_velocities", "_get_variable_index"]


@private_part("keras.optimizers.Adam._velocities", "recipes/short_run.py", names=VELOCITIES)
def test_adam_keeps_the_mean_square_by_index():
    first, second = keras.Variable([0.0]), keras.Variable([0.0, 0.0])
    optimizer = keras.optimizers.Adam(beta_2=0.9)
    optimizer.apply([tf.constant([1.0]), tf.constant([2.0, 3.0])], [first, second])
    velocity = optimizer._velocities[optimizer._get_variable_index(second)]
    np.testing.assert_allclose(velocity, [0.1 * 4.0, 0.1 * 9.0], rtol=1e-5)
    assert int(optimizer.iterations) == 1


# --- TensorFlow and Python --------------------------------------------------------------------------------------------


@private_part("`numpy` of eager and symbolic tensors", "serialization.py")
def test_only_eager_tensors_have_values():
    seen = []

    @tf.function
    def trace(x):
        seen.extend([isinstance(x, tf.Tensor), hasattr(x, "numpy")])
        return x

    trace(tf.ones([2]))
    assert seen == [True, False]
    assert isinstance(tf.ones([2]), tf.Tensor) and hasattr(tf.ones([2]), "numpy")
    assert not isinstance(tf.Variable(1.0), tf.Tensor)  # two variables of one value are not the same


@private_part("argparse's _get_help_string", "cli/options.py", names=["_get_help_string"])
def test_the_formatter_adds_the_default():
    import argparse

    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    action = parser.add_argument("--steps", default=5, help="number of steps")
    formatted = argparse.ArgumentDefaultsHelpFormatter("prog")._get_help_string(action)
    assert formatted == "number of steps (default: %(default)s)"


# --- TFP: distributions -----------------------------------------------------------------------------------------------


@private_part("tfd.Distribution._no_dependency", "model/given_conditions.py", names=["_no_dependency"])
def test_parameters_of_a_distribution_are_stored_as_they_are():
    p = tfp.distributions.Normal(0.0, 1.0)
    p.kept, p.tracked = p._no_dependency({"x": 1}), {"x": 1}
    assert type(p.kept) is dict and type(p.tracked) is not dict


@private_part("tfb.Bijector._cache", "tracing.py", names=["_cache"])
def test_bijectors_share_one_cache_of_calls():
    bijector, x = tfp.bijectors.Exp(), tf.constant(2.0)
    y = bijector.forward(x)
    bijector.forward_log_det_jacobian(x)
    storage = tfp.bijectors.Bijector._cache.storage
    found = {key() is x: (key, call) for key, call in storage.items() if key() is x or key() is y}
    assert set(found) == {True, False}
    (_, of_x), (key, of_y) = found[True], found[False]
    assert of_y.dependencies == (x,)
    assert of_x.attributes is of_y.attributes and of_x.attributes
    key.cancel()
    storage.pop(key)
    del y
    assert found[True][0]() is x


@private_part("tfd.Distribution._sample_n", "model/distribution.py")
def test_samples_get_the_seed_as_it_was_given():
    """TFP hands it on as it is: an int stays an int, and None stays None."""
    seeds = []

    class Distribution(tfp.distributions.Distribution):
        def __init__(self):
            parameters = dict(locals())
            reparameterization = tfp.distributions.NOT_REPARAMETERIZED
            super().__init__(tf.float32, reparameterization, True, True, parameters, name="D")

        def _event_shape(self):
            return tf.TensorShape([])

        def _batch_shape(self):
            return tf.TensorShape([])

        def _sample_n(self, n, seed=None):
            seeds.append(seed)
            return tf.zeros([n])

        @classmethod
        def _parameter_properties(cls, dtype, num_classes=None):
            return {}

    p = Distribution()
    assert p.sample([2, 3], seed=7).shape == (2, 3) and p.sample(2).shape == (2,)
    p.sample(seed=SEED)
    assert seeds[:2] == [7, None] and seeds[2] is SEED


# --- TFP: kernels and the fields of their results ---------------------------------------------------------------------

START = np.array([[0.5, -1.0], [2.0, 0.1]])


def step(kernel, x=START):
    x = tf.constant(x)
    return kernel.one_step(x, kernel.bootstrap_results(x), seed=SEED)


@private_part("HamiltonianMonteCarlo._impl", "mcmc/kernels/hamiltonian.py", names=["_impl"])
def test_hamiltonian_monte_carlo_runs_its_inner_kernel():
    kernel = tfp.mcmc.HamiltonianMonteCarlo(normal, np.float64(0.1), 2)
    assert isinstance(kernel._impl.inner_kernel, tfp.mcmc.UncalibratedHamiltonianMonteCarlo)
    expected = step(tfp.mcmc.RandomWalkMetropolis(normal))[0]
    kernel._impl = tfp.mcmc.RandomWalkMetropolis(normal)
    np.testing.assert_array_equal(step(kernel)[0], expected)


UNCALIBRATED = {
    "log_acceptance_correction", "target_log_prob", "grads_target_log_prob", "initial_momentum", "final_momentum",
    "step_size", "num_leapfrog_steps", "seed",
}  # fmt: skip


@private_part("the results of UncalibratedHamiltonianMonteCarlo", "mcmc/kernels/hamiltonian.py")
def test_results_of_a_trajectory():
    """The fields that our trajectory fills in, what they mean, and no others."""
    kernel = tfp.mcmc.UncalibratedHamiltonianMonteCarlo(normal, np.float64(0.1), 1)
    end, results = step(kernel)
    assert set(results._fields) == UNCALIBRATED
    (q,), (p,) = results.initial_momentum, results.final_momentum
    np.testing.assert_allclose(end, START + 0.1 * (q - 0.05 * START), rtol=1e-12)
    np.testing.assert_allclose(results.target_log_prob, normal(end), rtol=1e-12)
    np.testing.assert_allclose(results.grads_target_log_prob[0], -end, rtol=1e-12)
    np.testing.assert_allclose(results.log_acceptance_correction, 0.5 * tf.reduce_sum(q**2 - p**2, -1), rtol=1e-10)
    assert not tf.is_tensor(results.step_size)  # unless an adapting kernel stores it
    stored = tfp.mcmc.UncalibratedHamiltonianMonteCarlo(normal, np.float64(0.1), 1, store_parameters_in_results=True)
    assert tf.is_tensor(step(stored)[1].step_size)


@private_part("the results of MetropolisHastings", "mcmc/results.py", "mcmc/kernels/sequential.py")
def test_results_of_metropolis_hastings():
    end, results = step(tfp.mcmc.HamiltonianMonteCarlo(normal, np.float64(0.9), 2))
    assert {"accepted_results", "is_accepted", "log_accept_ratio", "proposed_results", "proposed_state"} <= set(
        results._fields
    )
    assert results.is_accepted.shape == results.log_accept_ratio.shape == (2,)
    np.testing.assert_allclose(results.accepted_results.target_log_prob, normal(end), rtol=1e-12)
    np.testing.assert_allclose(results.accepted_results.grads_target_log_prob[0], -end, rtol=1e-12)


@private_part("the results of NoUTurnSampler", "mcmc/results.py", "mcmc/kernels/adaptive.py")
def test_results_of_nuts():
    """It reads its step size from its results."""
    kernel = tfp.mcmc.NoUTurnSampler(normal, np.float64(0.3), max_tree_depth=2)
    x = tf.constant(START)
    results = kernel.bootstrap_results(x)
    assert tf.is_tensor(results.step_size)
    small = results._replace(step_size=tf.constant(1e-9, tf.float64))
    end, results = kernel.one_step(x, small, seed=SEED)
    np.testing.assert_allclose(end, x, atol=1e-7)
    assert results.is_accepted.shape == results.log_accept_ratio.shape == (2,)
    np.testing.assert_allclose(results.target_log_prob, normal(end), rtol=1e-12)


@private_part("the results of TransformedTransitionKernel", "mcmc/results.py", "mcmc/kernels/transformed.py")
def test_results_of_a_transformed_kernel():
    inner = tfp.mcmc.HamiltonianMonteCarlo(normal, np.float64(0.1), 1)
    end, results = step(tfp.mcmc.TransformedTransitionKernel(inner, tfp.bijectors.Scale(np.float64(2.0))))
    assert set(results._fields) == {"transformed_state", "inner_results"}
    np.testing.assert_allclose(2.0 * results.transformed_state, end, rtol=1e-12)
    assert results.inner_results.is_accepted.shape == (2,)


@private_part("the results of DualAveragingStepSizeAdaptation", "mcmc/results.py", "mcmc/kernels/adaptive.py")
def test_results_of_an_adapted_kernel():
    kernel = tfp.mcmc.DualAveragingStepSizeAdaptation(
        tfp.mcmc.HamiltonianMonteCarlo(normal, np.float64(0.1), 1), num_adaptation_steps=3
    )
    _, results = step(kernel)
    assert {"inner_results", "new_step_size"} <= set(results._fields)
    assert results.inner_results.is_accepted.shape == (2,) and float(results.new_step_size) != 0.1


@private_part("the results of ReplicaExchangeMC", "mcmc/kernels/replica_exchange.py")
def test_results_of_replica_exchange():
    kernel = tfp.mcmc.ReplicaExchangeMC(
        normal, np.array([1.0, 0.5]), lambda target: tfp.mcmc.HamiltonianMonteCarlo(target, np.float64(0.1), 1)
    )
    end, results = step(kernel)
    swapped = results.post_swap_replica_results.accepted_results
    assert swapped.target_log_prob.shape == (2, 2)
    np.testing.assert_allclose(swapped.target_log_prob[0], normal(end), rtol=1e-12)


@private_part("sys._getframe", "caller.py", names=["_getframe"])
def test_the_frames_of_callers_can_be_read():
    assert sys._getframe(0).f_code.co_name == "test_the_frames_of_callers_can_be_read"


@private_part("keras.Layer._inbound_nodes", "derivatives/failures.py", names=["_inbound_nodes"])
def test_a_layer_of_a_graph_knows_its_inputs(network):
    layer = network.layers[-1]
    assert layer._inbound_nodes[0].input_tensors[0].shape[-1] == layer.kernel.shape[0]


@private_part("keras.Layer._remat_mode", "derivatives/faults.py", names=["_remat_mode"])
def test_a_rematerialised_layer_shows_it():
    with keras.RematScope(mode="full"):
        inside = keras.layers.Dense(1)
    assert getattr(inside, "_remat_mode", None) is not None and keras.layers.Dense(1)._remat_mode is None


@private_part("tf.Graph._get_function", "derivatives/operations.py", names=["_get_function", "_is_function"])
def test_functions_of_a_graph_are_found_by_name():
    inner = tf.function(lambda x: x + 1.0)
    graph = tf.function(lambda x: inner(x)).get_concrete_function(tf.TensorSpec([])).graph
    (name,) = [op.get_attr("f").name for op in graph.get_operations() if op.type.endswith("PartitionedCall")]
    assert graph._is_function(name) and graph._get_function(name) is not None


@private_part("tf.data.Dataset._inputs", "energy/data.py", names=["_inputs"])
def test_a_dataset_names_its_inputs():
    dataset = tf.data.Dataset.range(3)
    assert dataset.batch(2)._inputs() == [dataset]


@private_part(
    "keras's losses of layers",
    *("model/layer_losses.py", "model/trainer.py"),
    names=["_get_own_losses", "_get_regularization_losses", "_clear_losses"],
)
def test_losses_that_layers_add_are_kept_and_cleared():
    layer = keras.layers.Dense(1, activity_regularizer=keras.regularizers.L2(1.0), kernel_regularizer="l2")
    model = keras.Sequential([keras.Input((2,)), layer])
    model(tf.ones([3, 2]))
    assert len(layer._get_own_losses()) == 1 and len(model._get_regularization_losses()) == 1
    model._clear_losses()
    assert layer._get_own_losses() == []


@private_part(
    "keras.Optimizer's exclusions from weight decay",
    "model/trainer.py",
    names=["_exclude_from_weight_decay_pattern", "_trainable_variables"],
)
def test_exclusions_from_weight_decay_are_kept():
    optimizer, variable = keras.optimizers.SGD(weight_decay=0.1), keras.Variable(1.0, name="scale")
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build([variable])
    assert optimizer._trainable_variables == [variable]
    pattern = optimizer._exclude_from_weight_decay_pattern
    assert pattern.search("dense/bias") and not pattern.search("dense/kernel")


@private_part("tfd.JointDistribution._get_single_sample_distributions", "model/default_draws.py")
def test_joints_find_their_structure_in_a_method_of_this_name():
    assert callable(tfp.distributions.JointDistribution._get_single_sample_distributions)


@private_part("what `compile(metrics=...)` keeps", "model/trainer.py", names=["_compile_metrics"])
def test_compiled_metrics_are_built_from_symbols_and_updated(network):
    network.compile(loss="mse", metrics=["mae"])
    compiled = network._compile_metrics
    assert not compiled.built
    compiled.build(keras.KerasTensor((None, 1)), keras.KerasTensor((None, 1)))
    compiled.update_state(tf.ones([4, 1]), tf.zeros([4, 1]), None)
    assert float(network.get_metrics_result()["mae"]) == 1.0


@private_part("how a graph finds a function by its name", "memory.py", names=["_get_function"])
def test_a_graph_finds_the_functions_that_it_calls():
    doubled = tf.function(lambda x: 2.0 * x, autograph=False)
    graph = tf.function(lambda: doubled(tf.ones([3])), autograph=False).get_concrete_function().graph
    (name,) = (node.node_def.attr["f"].func.name for node in graph.get_operations() if "Partitioned" in node.type)
    assert [operation.type for operation in graph._get_function(name).graph.get_operations()][-2:] == [
        "Mul",
        "Identity",
    ]
