"""Draws on another device of the same kind are the same."""

import subprocess
import sys

import pytest

CODE = """
import numpy as np
import tensorflow as tf

import tfp_ebm as ebm

processor = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
start = np.random.default_rng(0).normal(size=(200, 2)).astype("float32")
draws = []
for name in ("CPU:0", "CPU:1"):
    with tf.device(name):
        samples = ebm.mcmc.sample(
            lambda x: -tf.reduce_sum(x**2, -1), tf.constant(start), ebm.mcmc.MALA(0.3), num_results=5, seed=1,
            jit_compile=False,
        )
        assert samples.states.device.endswith(name), samples.states.device
        draws.append(samples.states.numpy())
moved = (draws[0][-1] != start).all(1).mean() > 0.5
print("same" if np.array_equal(*draws) else "other", "moved" if moved else "still")
"""


@pytest.mark.slow
def test_the_second_processor_draws_the_same():
    """200 chains run as two halves with noise of their own; the halves were once made on the first processor alone."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["same", "moved"], done.stdout + done.stderr[-2000:]
