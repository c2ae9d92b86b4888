"""The tilt of a base measure passes the forward method, with the same derivatives as nested tapes."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import rng

import tfp_ebm as ebm
from tfp_ebm.derivatives import energy_score_laplacian
from tfp_ebm.derivatives.forward_laplacian import NoForwardRule

tfd = tfp.distributions


GAUSSIANS = {
    "full": lambda: ebm.fit_base(rng().normal(size=(50, 4)) @ rng().normal(size=(4, 4)), dtype=tf.float64),
    "diagonal": lambda: tfd.MultivariateNormalDiag(rng().normal(size=4), rng().uniform(0.5, 2.0, size=4)),
    "image": lambda: ebm.fit_base(rng().normal(size=(50, 2, 2, 1)), dtype=tf.float64),
}


def model_of(base):
    shape = tuple(base.event_shape)
    network = ebm.networks.mlp(shape, units=[6], dtype="float64", seed=0)
    model = ebm.EnergyModel(network, base_measure=base)
    model.adapt(rng().normal(2.0, 3.0, size=(100, *shape)))
    return model, tf.constant(rng().normal(size=(5, *shape)))


@pytest.mark.parametrize("name", GAUSSIANS)
def test_forward_equals_reverse(name):
    model, z = model_of(GAUSSIANS[name]())
    forward = energy_score_laplacian(model.energy_function, z, method="forward")
    reverse = energy_score_laplacian(model.energy_function, z, method="reverse")
    for a, b in zip(forward, reverse, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    # without the tilt's bends the Laplacian is another
    bare = energy_score_laplacian(model.network, z, method="forward")
    assert np.abs(bare[2] - forward[2]).min() > 1e-2


def test_other_base_measures_take_the_reverse_road():
    model, z = model_of(tfd.Independent(tfd.StudentT(np.full(4, 5.0), 0.0, 1.0), 1))
    with pytest.raises(NoForwardRule, match="Independent, that is not a multivariate normal"):
        energy_score_laplacian(model.energy_function, z, method="forward")
    auto = energy_score_laplacian(model.energy_function, z)
    reverse = energy_score_laplacian(model.energy_function, z, method="reverse")
    np.testing.assert_allclose(auto[2], reverse[2], rtol=1e-10)
