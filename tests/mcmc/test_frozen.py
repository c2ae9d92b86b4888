"""Verdicts on draws in a graph: each code is set by its own fault alone, and the statistics equal those of NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from tfp_ebm.mcmc import frozen
from tfp_ebm.mcmc.draws import nested_r_hat
from tfp_ebm.mcmc.frozen import OnePass, draws_of_passes
from tfp_ebm.mcmc.weights import jackknife_of_log_mean

NUM, GROUPS = 256, 8


def drawn(num_samples, shift=0.0, spread=0.0, copies=1):
    """Draws of passes of 256 normal particles in eight groups.

    Args:
      num_samples: number of draws.
      shift: by which the mean of a group differs from that of the one before.
      spread: standard deviation of log Ẑ over groups.
      copies: of each ancestor.
    """

    def run(seed):
        groups = tf.range(NUM) // (NUM // GROUPS)
        x = tf.random.stateless_normal([NUM, 2], seed) + shift * tf.cast(groups, tf.float32)[:, None]
        log_z = 3.0 + spread * tf.random.stateless_normal([GROUPS], seed, dtype=tf.float64)
        return OnePass(x, groups, tf.range(NUM) // copies, log_z, tf.constant(1e-4, tf.float64))

    @tf.function(autograph=False)
    def graph(num, seed):
        return draws_of_passes(run, (NUM, 2), GROUPS, tf.float32, num, seed)

    return graph(tf.constant(num_samples), tf.constant([0, 1]))


def test_healthy_draws_have_no_trouble():
    few, many = drawn(5), drawn(1000)
    assert few.states.shape == (5, 2) and many.states.shape == (1000, 2)
    assert int(few.trouble) == int(many.trouble) == 0
    np.testing.assert_allclose(float(many.log_normalizer), 3.0, rtol=1e-12)
    # the variance .0001 of Ẑ/Z of one pass, of one and of four passes
    np.testing.assert_allclose([few.standard_error, many.standard_error], [0.01, 0.005], rtol=1e-6)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"shift": 0.5}, frozen.HIGH_R_HAT),
        ({"spread": 2.0}, frozen.GROUPS_DIFFER),
        ({"copies": 8}, frozen.FEW_ANCESTORS),
    ],
)
def test_each_fault_sets_its_code(fault, code):
    assert int(drawn(1000, **fault).trouble) == code


def test_the_codes_add_up():
    everything = drawn(1000, shift=0.5, spread=2.0, copies=8)
    assert int(everything.trouble) == frozen.HIGH_R_HAT + frozen.GROUPS_DIFFER + frozen.FEW_ANCESTORS


def test_statistics_equal_those_of_numpy():
    """Groups of different sizes, one of them empty, and a column that does not vary."""
    rng = np.random.default_rng(0)
    groups = rng.choice(8, 600, p=[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0]).astype(np.int32)
    x = np.stack([rng.normal(size=600) + 0.3 * groups, np.ones(600)], 1)
    found = frozen.nested_r_hat_of(tf.constant(x), tf.constant(groups), tf.constant(8))
    np.testing.assert_allclose(float(found), nested_r_hat(x, groups, 8), rtol=1e-12)
    log_weights = rng.normal(size=24)
    for values in (log_weights, np.append(log_weights, 9.0)):
        np.testing.assert_allclose(frozen.log_mean_and_error(values), jackknife_of_log_mean(values), rtol=1e-9)
    assert np.isinf(frozen.log_mean_and_error(tf.constant([0.0, -np.inf], tf.float64))[1])
