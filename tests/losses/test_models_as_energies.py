"""A loss called with a model, which takes x, gives what it gives for a plain energy with the same values."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from energies import Quadratic

import tfp_ebm as ebm

X = np.random.default_rng(0).normal([5.0, -3.0], [2.0, 0.5], size=(32, 2)).astype("float32")
BASE = tfp.distributions.MultivariateNormalDiag([5.0, -3.0], [2.0, 0.5])
LOSSES = {
    "noise contrastive": lambda: ebm.losses.NoiseContrastiveEstimation(BASE),
    "from the base": lambda: ebm.losses.MaximumLikelihood(ebm.mcmc.RandomWalk(0.1), 2, ebm.mcmc.FromBase(BASE)),
    "denoising": lambda: ebm.losses.DenoisingScoreMatching(0.3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_model_is_an_energy_of_x(name):
    model = ebm.EnergyModel(Quadratic(), event_shape=(2,))
    model.adapt(X)
    twin = lambda x: model.energy_function(model.standardization.to_z(x)) + model.standardization.log_scale_sum()  # noqa: E731
    of_model, of_twin = (LOSSES[name]()(energy, tf.constant(X), seed=1).per_example for energy in (model, twin))
    np.testing.assert_allclose(of_model, of_twin, rtol=1e-3, atol=1e-3)
    # planted: the model taken for a function of z, as the trainer's energy function is
    planted = LOSSES[name]()(model.energy_function, tf.constant(X), seed=1).per_example
    assert np.abs(planted - of_twin).max() > 0.1
