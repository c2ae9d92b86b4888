"""What is asked for beyond the memory of the machine is refused before any work, with the argument that needs less."""

import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm import memory
from tfp_ebm.energy import shapes
from tfp_ebm.mcmc.running import compiled

MEMINFO = "MemTotal: 4000 kB\nMemAvailable:    3000 kB\nSwapFree:  500 kB\n"


def proc(path, limit, meminfo=MEMINFO):
    """A directory like /proc of a process that takes 1000 kB."""
    (path / "self").mkdir()
    (path / "meminfo").write_text(meminfo)
    (path / "self" / "limits").write_text(f"Max stack size  8388608  unlimited\nMax address space  {limit}  bytes\n")
    (path / "self" / "status").write_text("VmPeak:\t 9000 kB\nVmSize:\t    1000 kB\n")
    return str(path)


@pytest.mark.parametrize(
    ("limit", "left"),
    [("unlimited", 3500), (1024 * 3000, 2000), (1024 * 9000, 3500), (1024 * 500, 0)],
    ids=["machine", "limit", "machine below the limit", "more than the limit"],
)
def test_memory_left(limit, left, tmp_path):
    assert memory.memory_left(proc(tmp_path, limit)) == 1024 * left


def test_memory_left_is_unknown_elsewhere(tmp_path):
    assert memory.memory_left(str(tmp_path / "none")) is None
    assert memory.memory_left(proc(tmp_path, "unlimited", "MemTotal: 4000 kB\n")) is None


def test_only_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "memory_left", lambda: 2**30)
    memory.check_memory(2**30)
    with (
        pytest.raises(tf.errors.ResourceExhaustedError, match=r"^out of memory: keep fewer. \(1.5 GB are"),
        memory.naming_memory("keep fewer"),
    ):
        memory.check_memory(3 * 2**29)
    monkeypatch.setattr(memory, "memory_left", lambda: None)
    memory.check_memory(2**80)
    # a GPU may hold more than the machine
    monkeypatch.setattr(memory, "memory_left", lambda: 2**30)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    memory.check_memory(2**80)


def test_samples_that_do_not_fit_are_refused_before_the_first_step(monkeypatch):
    num_bytes = 10 * 4 * 2 * 4  # results, chains, coordinates, bytes
    steps = []

    def target(x):
        tf.py_function(lambda: steps.append(1), [], [])
        return -0.5 * tf.reduce_sum(x**2, -1)

    def drawn():
        return ebm.mcmc.sample(
            target, tf.zeros([4, 2]), ebm.mcmc.RandomWalk(1.0), num_results=10, seed=0, jit_compile=False
        )

    monkeypatch.setattr(memory, "memory_left", lambda: num_bytes - 1)
    with pytest.raises(tf.errors.ResourceExhaustedError, match="start fewer chains, or keep fewer results"):
        drawn()
    assert len(steps) <= 2  # the log density at the start
    monkeypatch.setattr(memory, "memory_left", lambda: num_bytes)
    assert drawn().states.shape == (10, 4, 2) and len(steps) > 10


def test_rows_are_passed_in_blocks(monkeypatch):
    monkeypatch.setattr(shapes, "_BLOCK", 4)
    sizes = []

    def function(x, y):
        sizes.append(x.shape[0])
        return x + y

    x, y = tf.range(9.0), 10 * tf.range(9.0)
    assert shapes.by_blocks(function, x, y).numpy().tolist() == (x + y).numpy().tolist() and sizes == [4, 4, 1]
    shapes.by_blocks(function, x[:4], y[:4])
    tf.function(lambda: shapes.by_blocks(function, x, y))()  # a traced function is given all rows
    assert sizes[3:] == [4, 9]


def test_models_evaluate_many_rows_in_blocks(monkeypatch):
    """Each row with its own condition, and derivatives through the blocks."""
    network = ebm.networks.mlp([2], units=[8], condition_shape=[1], seed=0)
    model = ebm.EnergyModel(network)
    x = np.random.default_rng(0).normal(size=(3, 3, 2)).astype("float32")
    c = np.arange(9, dtype="float32").reshape(3, 3, 1)

    def results():
        with tf.GradientTape() as tape:
            states = tf.Variable(x)
            energy = model.energy(states, c)
        return energy, model.score(x, c), -tape.gradient(energy, states)

    at_once = results()
    monkeypatch.setattr(shapes, "_BLOCK", 4)
    for value, expected in zip(results(), at_once, strict=True):
        assert value.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(at_once[1], at_once[2], rtol=1e-5, atol=1e-6)


_SQUARE = np.eye(8, dtype="float32")


def _chain_of_products(x):
    for _ in range(5):
        x = x @ _SQUARE
    return x


def _gradient(x):
    """Five tanh, whose values the backward pass needs."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = x
        for _ in range(5):
            y = tf.tanh(y @ _SQUARE)
    return tape.gradient(y, x)


def _loop(x):
    return tf.while_loop(lambda *_: True, lambda i, y: (i + 1, y @ _SQUARE), (0, x), maximum_iterations=9)[1]


def _called(x):
    """A call of which one result is used."""
    return tf.function(lambda: (x @ np.ones([8, 80], np.float32), x + 1.0), autograph=False)()[1]


def _reshaped(x):
    """As a jet's slopes, whose rows are those of all directions until they are reshaped."""
    directions = tf.reshape(tf.eye(8)[:, None] + 0.0 * x, [-1, 8])
    return tf.reshape(directions @ _SQUARE, [8, -1, 8])


# in units of one [rows, 8] array
@pytest.mark.parametrize(
    ("function", "units"),
    [
        (lambda x: x + 0.0, 1),
        (lambda x: tf.tanh(tf.exp(x) + 1.0), 1),
        (lambda x: tf.exp(x) + tf.tanh(x), 2),
        (_chain_of_products, 2),
        (lambda x: (x @ _SQUARE) @ np.ones([8, 24], np.float32), 4),
        (lambda x: (_chain_of_products(x), x + 1.0)[1], 1),
        (_loop, 1),
        (_called, 1),
        (_gradient, 6),
        (_reshaped, 16),
    ],
    ids=["one", "in place", "two", "products", "a wider one", "unused", "loop", "called", "gradient", "reshaped"],
)
@pytest.mark.parametrize("is_known", [True, False])
def test_memory_of_a_function(function, units, is_known):
    spec = tf.TensorSpec([1000 if is_known else None, 8])
    graph = tf.function(function, autograph=False).get_concrete_function(spec).graph
    assert memory.peak_bytes(graph, 1000) / (1000 * 8 * 4) == pytest.approx(units, rel=0.01)


def test_of_a_program_of_xla_only_products_count():
    def function(x):
        return tf.tanh((tf.exp(x) + tf.sin(x)) @ np.ones([8, 16], np.float32))

    spec = tf.TensorSpec([1000, 8])
    graph = tf.function(function, autograph=False).get_concrete_function(spec).graph
    inside = tf.function(tf.function(function, jit_compile=True), autograph=False).get_concrete_function(spec).graph
    assert memory.peak_bytes(graph, is_xla=True) == memory.peak_bytes(inside) == 1000 * 16 * 4
    assert memory.peak_bytes(graph) == 1000 * (8 + 16) * 4


def _trained(batch_size, loss="denoising_score_matching", size=2):
    model = ebm.EnergyModel(ebm.networks.mlp([size], units=[64, 64], seed=0))
    model.compile("adam", loss)
    model.fit(np.random.default_rng(0).normal(size=(2000, size)), batch_size=batch_size, verbose=0)
    return model


def test_batches_that_do_not_fit_are_refused_before_the_first_step(monkeypatch):
    sizes = []

    def check(num_bytes):
        sizes.append(num_bytes)

    monkeypatch.setattr(memory, "check_memory", check)
    for batch_size in (50, 100, 2000):
        _trained(batch_size)
    small, double, large = sizes
    assert 1.9 < double / small < 2.1 and 15 < large / double < 21
    assert 4 * 2000 * 64 * 4 < large < 16 * 2000 * 64 * 4  # of two layers, values before and after, gradients
    for loss in ("denoising_score_matching", "score_matching"):
        _trained(100, loss, 16)
    assert sizes[-1] > 3 * sizes[-2]  # slopes along 16 axes
    monkeypatch.undo()
    monkeypatch.setattr(memory, "memory_left", lambda: double)
    _trained(100)
    with pytest.raises(tf.errors.ResourceExhaustedError, match="out of memory: pass a smaller `batch_size`"):
        _trained(2000)


def test_chains_that_do_not_fit_are_refused(monkeypatch):
    model = _trained(100)
    monkeypatch.setattr(compiled, "_LARGE", 0)

    def summarized(num_chains):
        start = tf.zeros([num_chains, 2])
        return ebm.mcmc.summarize(
            model.unnormalized_log_prob, start, ebm.mcmc.MALA(0.1), num_results=4, seed=0, jit_compile=False
        )

    monkeypatch.setattr(memory, "memory_left", lambda: 10 * 1000 * 64 * 4)
    assert summarized(1000).num_results == 4
    with pytest.raises(tf.errors.ResourceExhaustedError, match="out of memory: start fewer chains"):
        summarized(20_000)


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/limits").exists(), reason="needs the limits of Linux")
def test_a_real_limit():
    program = """
import tensorflow as tf, tfp_ebm as ebm
from tfp_ebm.memory import memory_left
before = memory_left()
taken = tf.zeros([2**28, 2]) + 1.0  # 2 GB
assert before - memory_left() > 2**30, (before, memory_left())
try:
    start, kernel = tf.zeros([100_000, 2]), ebm.mcmc.MALA(0.1)
    ebm.mcmc.sample(lambda x: -tf.reduce_sum(x**2, -1), start, kernel, num_results=10_000, seed=0)
except tf.errors.ResourceExhaustedError as error:
    print(error.message)
"""
    limit = 12 * 2**30
    run = subprocess.run(
        [sys.executable, "-c", program],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.stdout.startswith("out of memory: start fewer chains, or keep fewer results. (7.5 GB are needed"), (
        run.stderr
    )
