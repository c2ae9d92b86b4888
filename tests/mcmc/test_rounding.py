"""Chains at log densities of large magnitude: at a million, float32 loses no acceptance; far beyond, it warns."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.mcmc.running import trouble

STARTS = tf.constant(np.random.default_rng(0).normal(size=(1000, 2)), tf.float32)


class Shifted:
    """A standard normal density with a constant added to its logarithm."""

    def __init__(self, constant):
        self.constant = constant

    def __call__(self, x):
        return -0.5 * tf.reduce_sum(x**2, -1) - self.constant


KERNELS = {"random walk": ebm.mcmc.RandomWalk(1.0), "MALA": ebm.mcmc.MALA(0.8), "HMC": ebm.mcmc.HMC(0.5, 3)}


def run(kernel, constant):
    return ebm.mcmc.summarize(
        Shifted(constant), STARTS, kernel, num_results=50, num_burnin_steps=5, seed=1, jit_compile=False
    )


@pytest.mark.parametrize("name", KERNELS)
def test_acceptance_at_a_million(name):
    """float32 numbers are 1/16 apart there. The acceptance of 50 000 steps has a standard error of about .0022, so that
    a limit of .012 for the difference is one of four standard errors. With 10⁸, where numbers are 8 apart, the test
    fails: the control.
    """
    plain, large = run(KERNELS[name], 0.0), run(KERNELS[name], 1e6)
    assert abs(float(large.acceptance_rate) - float(plain.acceptance_rate)) < 0.012
    errors = np.asarray(large.sd) / np.sqrt(2.0 * np.asarray(large.ess))
    assert (np.abs(np.asarray(large.sd) - 1.0) < 4.0 * errors + 0.01).all()
    with pytest.warns(UserWarning, match="apart"):
        coarse = run(KERNELS[name], 1e8)
    assert abs(float(coarse.acceptance_rate) - float(plain.acceptance_rate)) > 0.012


def test_the_warning_depends_on_the_spacing_alone():
    with pytest.warns(UserWarning, match=r"about 1.7e\+07 in size, where float32 numbers are 2 apart"):
        trouble.warn_of_rounding(tf.constant([-1.7e7, -1.7e7, 5.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trouble.warn_of_rounding(tf.constant([-1e6, -2e6]))
        trouble.warn_of_rounding(tf.constant([-1e9, -1e9], tf.float64))
        trouble.warn_of_rounding(tf.constant([np.nan, -np.inf]))
        run(ebm.mcmc.Langevin(0.1), 1e8)  # nothing is accepted or rejected
