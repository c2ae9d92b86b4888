"""`evaluation` takes energies: one energy in all its forms gives one answer, and a log density is refused."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm import evaluation, mcmc

tfd = tfp.distributions
BASE = tfd.MultivariateNormalDiag([0.0, 0.0], [1.5, 1.5])
BOX = {"low": [-9.0, -9.0], "high": [9.0, 9.0], "num": 64}
X = np.random.default_rng(0).normal(size=(50, 2)).astype("float32")
REFERENCE = tfd.MultivariateNormalDiag([0.0, 0.0], [1.0, 1.0])
FUNCTIONS = {
    "annealed": lambda energy_fn: evaluation.annealed_importance_sampling(
        energy_fn, BASE, mcmc.HMC(0.5, 2), num_temperatures=4, num_chains=50, jit_compile=False
    ),
    "reverse": lambda energy_fn: evaluation.reverse_annealed_importance_sampling(
        energy_fn, X, BASE, mcmc.HMC(0.5, 2), num_temperatures=4, jit_compile=False
    ),
    "importance": lambda energy_fn: evaluation.importance_sampling(energy_fn, BASE, 200),
    "grid": lambda energy_fn: evaluation.grid_log_normalizer(energy_fn, **BOX),
    "grid_kl": lambda energy_fn: evaluation.grid_kl_divergence(energy_fn, REFERENCE, **BOX),
    "grid_tv": lambda energy_fn: evaluation.grid_total_variation(energy_fn, REFERENCE, **BOX),
    "kl": lambda energy_fn: evaluation.kl_divergence(energy_fn, REFERENCE, 0.0, 50),
    "fisher": lambda energy_fn: evaluation.fisher_divergence(energy_fn, REFERENCE, 50),
    "likelihood": lambda energy_fn: evaluation.log_likelihood(energy_fn, X, 0.0),
    "bits": lambda energy_fn: evaluation.bits_per_dimension(energy_fn, X, 0.0),
    "ksd": lambda energy_fn: evaluation.kernel_stein_discrepancy(energy_fn, X, num_bootstraps=5),
    "auroc": lambda energy_fn: evaluation.ood_auroc(energy_fn, X, 2 * X),
    "auroc by gradient": lambda energy_fn: evaluation.ood_auroc(energy_fn, X, 2 * X, kind="gradient"),
}


@pytest.fixture(scope="module")
def model():
    """A tilted model in standardized coordinates: not symmetric, so that a wrong sign shows."""
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[4], seed=0), base_measure=REFERENCE)
    model.adapt(1.5 * X + 0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_energy_in_all_forms(name, model):
    """Model, distribution, bound method and lambda agree; the chains of the first two run in z, so only nearly."""
    values = [FUNCTIONS[name](energy_fn)[0] for energy_fn in (model, ebm.EnergyDistribution(model))]
    assert values[0] == values[1]
    plain = [FUNCTIONS[name](energy_fn)[0] for energy_fn in (model.energy, lambda x: model.energy(x))]
    assert plain[0] == pytest.approx(plain[1], rel=1e-6, abs=1e-6)
    tolerance = 0.5 if name in ("annealed", "reverse") else 1e-4
    assert plain[0] == pytest.approx(values[0], abs=tolerance)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_log_densities_are_refused(name, model):
    for density in (model.unnormalized_log_prob, REFERENCE.log_prob):
        with pytest.raises(TypeError, match="`energy_fn` must be an energy"):
            FUNCTIONS[name](density)


@pytest.mark.parametrize("name", ["kl", "fisher", "grid_kl", "grid_tv"])
def test_a_distribution_counts_as_minus_its_log_density(name):
    """The reference against itself; the control is its log density in the place of the energy."""
    assert FUNCTIONS[name](REFERENCE).value == pytest.approx(0.0, abs=1e-4)
    if name in ("kl", "fisher"):
        assert abs(FUNCTIONS[name](lambda x: REFERENCE.log_prob(x)).value) > 1


def test_energy_and_reference_exchanged_are_refused(model):
    with pytest.raises(TypeError, match=r"`reference` must be a tfp.distributions.Distribution"):
        evaluation.kl_divergence(REFERENCE, model, 0.0)


@pytest.mark.slow
def test_a_plain_energy_is_found_again_and_not_traced_anew():
    traces = []

    class Energy:
        def __call__(self, x):
            traces.append(0)
            return 0.5 * tf.reduce_sum(x**2, -1, keepdims=True)  # a column will do

        def method(self, x):
            return self(x)

    energy = Energy()
    for energy_fn in (energy, energy.method):
        FUNCTIONS["annealed"](energy_fn)
        first = len(traces)
        estimate = FUNCTIONS["annealed"](energy_fn)
        assert len(traces) == first
        assert abs(estimate.value - np.log(2 * np.pi)) < 5 * estimate.standard_error
