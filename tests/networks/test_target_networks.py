"""Energies of targets given inputs: starts at a linear regression, conditionals of mixtures, weights of networks."""

import keras
import numpy as np
import pytest

import tfp_ebm as ebm
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks.targets import RegressionEnergy, TargetEnergy

NUM_INPUTS, NUM_TARGETS = 2, 2
RNG = np.random.default_rng(0)
FACTORS = np.tril(0.4 * RNG.normal(size=(3, 4, 4))) + np.eye(4)
MIXTURE = MixtureParameters(np.array([0.5, 0.3, 0.2]), RNG.normal(size=(3, 4)), FACTORS)
ROWS = RNG.normal(size=(50, 4))


def first_of(mixture):
    """One component as a mixture."""
    return MixtureParameters(np.ones(1), mixture.loc[:1], mixture.scale_tril[:1])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_conditionals_of_a_mixture_are_exact(order):
    """log p(y | x) = log p(x, y) − log p(x), in any order of the targets; log p(x, y) itself is another number."""
    network = TargetEnergy(NUM_INPUTS, NUM_TARGETS, (4,), 3, num_functions=1, fixed_proposal=True, dtype="float64")
    columns = [0, 1, *(2 + i for i in order)]
    network.start_at(MIXTURE, columns)
    joint = MIXTURE.log_prob(ROWS)
    expected = joint - MIXTURE.of_first(NUM_INPUTS).log_prob(ROWS[:, :NUM_INPUTS])
    np.testing.assert_allclose(-network(ROWS[:, columns]), expected, atol=1e-8)
    assert np.abs(joint - expected).max() > 1.0
    again = TargetEnergy.from_config(network.get_config())
    again.set_weights(network.get_weights())
    np.testing.assert_array_equal(again(ROWS), network(ROWS))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_free_proposals_start_at_a_linear_regression(order):
    """Means of yᵢ given x and y_<i are those of the Gaussian, to 1e-6; log p is .02 nats behind its at most."""
    one, columns = first_of(MIXTURE), [0, 1, *(2 + i for i in order)]
    network = TargetEnergy(NUM_INPUTS, NUM_TARGETS, (4,), dtype="float64")
    network.start_at(one, columns)
    rows = one.loc + RNG.normal(size=(500, 4)) @ one.scale_tril[0].T
    proposal, _ = network.conditionals(rows[:, columns])
    mean = np.sum(np.exp(proposal.log_probs) * proposal.loc, -1)
    covariance = (one.scale_tril[0] @ one.scale_tril[0].T)[columns][:, columns]
    for target, place in enumerate((2, 3)):
        slopes = np.linalg.solve(covariance[:place, :place], covariance[:place, place])
        centred = (rows - one.loc)[:, columns]
        expected = one.loc[0, columns[place]] + centred[:, :place] @ slopes
        np.testing.assert_allclose(mean[:, target], expected, atol=1e-6)
    gap = one.log_prob(rows) - one.of_first(NUM_INPUTS).log_prob(rows[:, :NUM_INPUTS]) + network(rows[:, columns])
    assert -0.01 < np.mean(gap) < 0.02  # the standard error is .003
    network.trunk.skip.kernel.assign(-np.array(network.trunk.skip.kernel))  # planted: slopes of the wrong sign
    wrong = one.log_prob(rows) - one.of_first(NUM_INPUTS).log_prob(rows[:, :NUM_INPUTS]) + network(rows[:, columns])
    assert np.mean(wrong) > 1.0


def test_networks_are_weighted(tmp_path):
    """log Σ wₖ pₖ(y | x), shares of the draws within 4.5 standard errors, moments of the mixture, and files."""
    networks = []
    for shift, number in ((0.0, 1), (50.0, 2)):
        loc = np.tile([0.0, 0.0, shift], (number, 1))
        networks.append(TargetEnergy(2, 1, (4,), number, num_functions=1, fixed_proposal=True))
        networks[-1].start_at(MixtureParameters(np.full(number, 1.0 / number), loc, np.array([np.eye(3)] * number)))
    model = ebm.EnergyModel(RegressionEnergy(networks, probs=[0.3, 0.7]))
    x, y = np.zeros((2, 2), "float32"), np.array([[0.0], [50.0]], "float32")
    np.testing.assert_allclose(-model.energy(y, x), np.log([0.3, 0.7]) - 0.5 * np.log(2 * np.pi), atol=1e-5)
    p = model.given(x)
    np.testing.assert_allclose(p.mean(), 35.0, rtol=1e-4)
    drawn = p.sample(2000, seed=0).numpy()
    assert abs(np.mean(drawn > 25.0) - 0.7) < 4.5 * np.sqrt(0.21 / 4000)
    model.save(tmp_path / "weighted.keras")
    loaded = keras.saving.load_model(tmp_path / "weighted.keras")
    np.testing.assert_array_equal(loaded.energy(y, x), model.energy(y, x))
    with pytest.raises(ValueError, match="`probs` must be 2 weights"):
        RegressionEnergy(networks, probs=[0.3, 0.3])
