"""Simulation-based inference of a linear Gaussian simulator, whose posterior is known; bounded priors; refusals."""

import keras
import numpy as np
import pytest
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.recipes.simulation_based_inference import support_of

tfd = tfp.distributions

MIXING = np.array([[1.0, 0.4], [-0.3, 0.8], [0.5, -0.6]])
NOISE, DEVIATIONS = 0.8, np.array([0.7, 1.5])
PRIOR = tfd.MultivariateNormalDiag(np.zeros(2, "float32"), DEVIATIONS.astype("float32"))
OBSERVED = np.array([0.9, -0.7, 0.4])
PRECISION = np.diag(DEVIATIONS**-2.0) + MIXING.T @ MIXING / NOISE**2
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ MIXING.T @ OBSERVED / NOISE**2
NUM_DRAWS, NUM_DRAWS_OF_RATIO = 400, 100


def simulations(number, seed=0):
    rng = np.random.default_rng(seed)
    theta = DEVIATIONS * rng.normal(size=(number, 2))
    return theta, theta @ MIXING.T + NOISE * rng.normal(size=(number, 3))


def distance(draws):
    """The largest deviation of means and covariances of draws from the truth, in standard errors of exact draws."""
    draws, number = np.asarray(draws, float), min(len(draws), NUM_DRAWS)
    mean = np.abs(draws.mean(0) - MEAN) / np.sqrt(np.diag(COVARIANCE) / number)
    variances = np.diag(COVARIANCE)
    error = np.sqrt((np.outer(variances, variances) + COVARIANCE**2) / number)
    return max(mean.max(), (np.abs(np.cov(draws.T) - COVARIANCE) / error).max())


@pytest.fixture(scope="module")
def posterior():
    return ebm.recipes.neural_posterior_estimation(*simulations(3000), PRIOR, num_networks=1, seed=1)


@pytest.fixture(scope="module")
def ratio():
    return ebm.recipes.neural_ratio_estimation(*simulations(3000), PRIOR, num_steps=800, units=(64,), seed=1)


@pytest.mark.slow
def test_the_posterior_of_a_linear_gaussian_simulator(posterior, tmp_path):
    """Mean and covariance within 4 standard errors of 400 draws; log p exact to .05 nat; ranks are uniform.

    The Gaussian candidate is the truth here; the network alone is at most .05 nats behind it on the rows held out.
    """
    one = ebm.EnergyDistribution(posterior.given(OBSERVED))
    draws = one.sample(NUM_DRAWS, seed=2)
    assert distance(draws) < 4.0
    truth = tfd.MultivariateNormalTriL(MEAN, np.linalg.cholesky(COVARIANCE))
    exact = truth.sample(2000, seed=3)
    assert abs(np.mean(truth.log_prob(exact) - np.float64(one.log_prob(np.float32(exact))))) < 0.05
    assert posterior.candidates["networks"][0] > posterior.candidates["gaussian"][0] - 0.05
    theta, x = simulations(300, seed=9)
    p = posterior.given(x)
    assert p.batch_shape == (300,) and p.event_shape == (2,)
    draws = p.sample(99, seed=4)
    assert ebm.evaluation.simulation_based_calibration(theta, draws).p_value > 0.001
    shuffled = np.roll(draws, 1, 1)  # those of other observations are seen
    assert ebm.evaluation.simulation_based_calibration(theta, shuffled).p_value < 1e-6
    posterior.save(tmp_path / "posterior.keras")
    loaded = keras.saving.load_model(tmp_path / "posterior.keras")
    np.testing.assert_array_equal(loaded.given(x).sample(3, seed=0), p.sample(3, seed=0))


@pytest.mark.long
def test_the_ratio_of_a_linear_gaussian_simulator(ratio, tmp_path):
    """Mean and covariance within 4 standard errors of 100 draws, log Z near 0; without the prior they are off."""
    p = ebm.EnergyDistribution(ratio.given(OBSERVED))
    drawn = p.draw(NUM_DRAWS_OF_RATIO, seed=2)
    assert distance(drawn.states) < 4.0 and not drawn.trouble
    assert abs(drawn.log_normalizer.value) < 0.15
    # planted: the likelihood alone, by resampling wide draws
    wide = tfd.MultivariateNormalDiag(np.zeros(2, "float32"), np.full(2, 3.0, "float32"))
    theta = wide.sample(20_000, seed=3)
    log_ratio = -ratio.energy(theta, OBSERVED) - PRIOR.log_prob(theta)
    weights = np.exp(np.float64(log_ratio - wide.log_prob(theta)))
    chosen = np.random.default_rng(0).choice(20_000, 2000, p=weights / weights.sum())
    assert distance(theta.numpy()[chosen]) > 6.0
    ratio.save(tmp_path / "ratio.keras")
    loaded = keras.saving.load_model(tmp_path / "ratio.keras")
    theta, x = (part.astype("float32") for part in simulations(5))
    np.testing.assert_array_equal(loaded.energy(theta, x), ratio.energy(theta, x))


@pytest.mark.long
def test_shuffled_parameters_are_seen_both_ways():
    """What is trained on pairs that do not belong together is the prior, more than 6 standard errors off."""
    theta, x = simulations(500)
    theta = np.roll(theta, 1, 0)
    model = ebm.recipes.neural_posterior_estimation(theta, x, PRIOR, num_networks=1, minutes=0.03)
    assert distance(ebm.EnergyDistribution(model.given(OBSERVED)).sample(NUM_DRAWS_OF_RATIO, seed=0)) > 6.0
    model = ebm.recipes.neural_ratio_estimation(theta, x, PRIOR, num_steps=100, units=(32,))
    assert distance(ebm.EnergyDistribution(model.given(OBSERVED)).sample(NUM_DRAWS_OF_RATIO, seed=0)) > 6.0


@pytest.mark.slow
def test_a_bounded_prior_is_respected():
    """θ uniform on (0, 2), x = θ + N(0, 1): a posterior cut at both ends, exact to .05 nat, with nothing outside."""
    rng = np.random.default_rng(0)
    theta = rng.uniform(0.0, 2.0, (2500, 1))
    prior = tfd.Independent(tfd.Uniform([0.0], [2.0]), 1)
    model = ebm.recipes.neural_posterior_estimation(theta, theta + rng.normal(size=theta.shape), prior, num_networks=1)
    for x in (0.2, 1.5):
        grid = (np.arange(2000) + 0.5) / 1000.0
        truth = np.exp(-0.5 * (x - grid) ** 2)
        truth /= truth.mean() * 2.0
        p = model.given([[x]])
        log_prob = np.float64(p.log_prob(np.float32(grid)[:, None, None])[:, 0])
        assert np.exp(log_prob).mean() * 2.0 == pytest.approx(1.0, abs=0.01)
        assert np.mean(2.0 * truth * (np.log(truth) - log_prob)) < 0.05
        assert np.all(np.float64(p.log_prob([[[-0.01]], [[2.01]]])) == -np.inf)
        draws = p.sample(2000, seed=1).numpy()
        assert np.all((draws > 0.0) & (draws < 2.0)) and np.isfinite(prior.log_prob(draws[:, 0])).all()


def test_supports_of_priors():
    box = tfd.Independent(tfd.Uniform([-1.0, 2.0], [1.0, 5.0]), 1)
    assert [part.tolist() for part in support_of(box, 2)] == [[-1.0, 2.0], [1.0, 5.0]]
    assert [part.tolist() for part in support_of(PRIOR, 2)] == [[-np.inf] * 2, [np.inf] * 2]
    gamma = tfd.Independent(tfd.Gamma(np.array([2.0, 3.0]), 1.0), 1)
    assert [part.tolist() for part in support_of(gamma, 2)] == [[0.0, 0.0], [np.inf, np.inf]]
    with pytest.raises(ValueError, match="`prior` must have a box as support"):
        support_of(tfd.Dirichlet([1.0, 1.0, 1.0]), 3)


THETA, X = simulations(40)
NPE, NRE = ebm.recipes.neural_posterior_estimation, ebm.recipes.neural_ratio_estimation
BAD = {
    "rows": (NPE, (THETA, X[1:]), {}, "`theta` must have as many rows as x"),
    "rows of a ratio": (NRE, (THETA, X[1:], PRIOR), {}, "`theta` must have as many rows as x"),
    "outside": (NPE, (THETA, X, (0.0, 1.0)), {}, "`theta` must lie within its bounds"),
    "no density": (NRE, (THETA, X, (0.0, 1.0)), {}, "`prior` must have a density"),
    "no prior": (NRE, (THETA, X, None), {}, "`prior` must be a tfd.Distribution"),
    "infinite": (NRE, (THETA, X, (0.0, np.inf)), {}, "`prior` must be a tfd.Distribution"),
    "other size": (NPE, (THETA, X, tfd.MultivariateNormalDiag([0.0])), {}, "`prior` must have event shape"),
    "a box upside down": (NPE, (THETA, X, (1.0, 0.0)), {}, "`prior` must have low < high"),
    "a number": (NPE, (THETA, X, 3.0), {}, r"`prior` must be \(low, high\)"),
    "constant": (NPE, (np.zeros([40, 1]), X), {}, "`theta` must not be constant"),
    "share": (NRE, (THETA, X, PRIOR), {"validation": 0.0}, "`validation`"),
    "images": (NPE, (THETA, np.zeros([40, 2, 2])), {}, "`x` must have shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    recipe, arguments, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        recipe(*arguments, **options)
