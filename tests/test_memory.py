"""What is asked for beyond the memory of the machine is refused before any work, with the argument that needs less."""

import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm import failures
from tfp_ebm.energy import shapes

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
    assert failures.memory_left(proc(tmp_path, limit)) == 1024 * left


def test_memory_left_is_unknown_elsewhere(tmp_path):
    assert failures.memory_left(str(tmp_path / "none")) is None
    assert failures.memory_left(proc(tmp_path, "unlimited", "MemTotal: 4000 kB\n")) is None


def test_only_what_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(failures, "memory_left", lambda: 2**30)
    failures.check_memory(2**30, "keep fewer")
    with pytest.raises(tf.errors.ResourceExhaustedError, match=r"^out of memory: keep fewer. \(1.5 GB are"):
        failures.check_memory(3 * 2**29, "keep fewer")
    monkeypatch.setattr(failures, "memory_left", lambda: None)
    failures.check_memory(2**80, "keep fewer")
    # a GPU may hold more than the machine
    monkeypatch.setattr(failures, "memory_left", lambda: 2**30)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    failures.check_memory(2**80, "keep fewer")


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

    monkeypatch.setattr(failures, "memory_left", lambda: num_bytes - 1)
    with pytest.raises(tf.errors.ResourceExhaustedError, match="start fewer chains, or keep fewer results"):
        drawn()
    assert len(steps) <= 2  # the log density at the start
    monkeypatch.setattr(failures, "memory_left", lambda: num_bytes)
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


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/limits").exists(), reason="needs the limits of Linux")
def test_a_real_limit():
    program = """
import tensorflow as tf, tfp_ebm as ebm
from tfp_ebm.failures import memory_left
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
