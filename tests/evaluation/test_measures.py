"""Likelihood, divergences, tests of samples, OOD scores: closed forms, naive twins, error bars, planted mistakes."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import diagonal_normal

import tfp_ebm as ebm
from tfp_ebm import evaluation, targets
from tfp_ebm.evaluation import Estimate

tfd = tfp.distributions
LOG_Z = math.log(2 * math.pi)


def energy(x):
    """Of N(0, I) without its constant."""
    return 0.5 * tf.reduce_sum(tf.square(x), -1)


def rows(n, d=2, seed=0, sd=1.0, loc=0.0):
    return loc + sd * np.random.default_rng(seed).normal(size=(n, d))


# --- means over points ------------------------------------------------------------------------------------------------


def test_held_out_likelihood_and_its_error():
    x = rows(1000)
    exact = evaluation.log_likelihood(energy, x, LOG_Z)
    terms = -0.5 * np.sum(x**2, -1) - LOG_Z
    assert exact.value == pytest.approx(terms.mean(), abs=1e-12)
    assert exact.standard_error == pytest.approx(terms.std(ddof=1) / math.sqrt(1000))
    # the error of log Z does not average out
    unsure = evaluation.log_likelihood(energy, x, Estimate(LOG_Z, 0.3))
    assert unsure.value == exact.value
    assert unsure.standard_error == pytest.approx(math.hypot(0.3, exact.standard_error))
    for log_z in (np.float64(LOG_Z), tf.constant(LOG_Z, tf.float64), np.array(LOG_Z)):
        assert evaluation.log_likelihood(energy, x, log_z).value == exact.value


def test_bits_per_dimension():
    """Uniform on [0, 1)³ rounded to 256 levels takes 8 bits a coordinate; twice as many levels, one bit more."""
    x = np.random.default_rng(0).uniform(size=(50, 3))
    flat = evaluation.bits_per_dimension(lambda x: tf.zeros(len(x)), x, 0.0, bin_width=1 / 256)
    assert flat.value == pytest.approx(8.0) and flat.standard_error == 0
    assert evaluation.bits_per_dimension(lambda x: tf.zeros(len(x)), x, 0.0, 1 / 512).value == pytest.approx(9.0)
    # a model twice as dense in each coordinate saves one bit in each; its error is in the same unit
    dense = evaluation.bits_per_dimension(
        lambda x: tf.fill([len(x)], np.float32(-3 * math.log(2))), x, Estimate(0.0, 0.3), 1 / 256
    )
    assert dense.value == pytest.approx(7.0, abs=1e-6)
    assert dense.standard_error == pytest.approx(0.1 / math.log(2))


# 12 two-sided tests at 4 standard errors: a false alarm in .08 % of new seeds. Power: the planted constant, .1, is over
# 8 standard errors.
@pytest.mark.parametrize(("sd", "loc"), [(1.0, 0.0), (1.3, 0.0), (1.0, 0.5), (0.8, -0.3)])
def test_kl_divergence_in_closed_form(sd, loc):
    """KL(N(loc, sd²I) ‖ N(0, I)) = ½ Σ (sd² + loc² − 1 − log sd²)."""
    truth = sd**2 + loc**2 - 1 - 2 * math.log(sd)
    estimate = evaluation.kl_divergence(energy, diagonal_normal(2, sd, loc), LOG_Z, num_samples=10_000, seed=3)
    assert abs(estimate.value - truth) <= 4 * estimate.standard_error + 1e-9
    assert estimate.standard_error < 0.012
    planted = evaluation.kl_divergence(energy, diagonal_normal(2, sd, loc), LOG_Z - 0.1, num_samples=10_000, seed=3)
    assert abs(planted.value - truth) > 8 * estimate.standard_error
    again = evaluation.kl_divergence(energy, diagonal_normal(2, sd, loc), LOG_Z, num_samples=10_000, seed=3)
    assert again == estimate


def test_kl_agrees_with_the_grid():
    p = targets.two_moons()
    by_draws = evaluation.kl_divergence(energy, p, LOG_Z, num_samples=20_000)
    by_grid = evaluation.grid_kl_divergence(energy, p, [-7.0, -7.0], [7.0, 7.0], 200)
    assert abs(by_draws.value - by_grid.value) < 4 * by_draws.standard_error < 0.05


@pytest.mark.parametrize(("sd", "loc"), [(1.3, 0.0), (1.0, 0.5), (0.8, -0.3)])
def test_fisher_divergence_in_closed_form(sd, loc):
    """½ E‖x − (x − loc)/sd²‖² = ½ Σ ((1 − 1/sd²)² sd² + loc²): the ½ of the note's eq. 40."""
    truth = (1 - 1 / sd**2) ** 2 * sd**2 + loc**2
    estimate = evaluation.fisher_divergence(energy, diagonal_normal(2, sd, loc), num_samples=10_000, seed=3)
    assert abs(estimate.value - truth) <= 4 * estimate.standard_error + 1e-9
    assert abs(2 * estimate.value - truth) > 0.1 * truth  # without the ½
    # the sign: an upside-down energy is far
    assert evaluation.fisher_divergence(lambda x: -energy(x), diagonal_normal(2)).value == pytest.approx(4.0, rel=0.1)


def test_models_and_distributions_and_networks():
    x = rows(300, seed=1, sd=2.0, loc=5.0).astype(np.float32)
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0), base_measure=ebm.fit_base(x))
    model.adapt(x)
    by_model = evaluation.log_likelihood(model, x, 1.0)
    assert by_model == evaluation.log_likelihood(ebm.EnergyDistribution(model), x, 1.0)
    assert by_model.value == pytest.approx(-1.0 - np.mean(model.energy(x)), abs=1e-5)
    assert by_model == evaluation.log_likelihood(model, x.astype(np.float64), 1.0)
    network = evaluation.log_likelihood(model.network, x, 0.0)  # takes z itself, and knows no base
    assert network.value == pytest.approx(-np.mean(model.network(x)), abs=1e-5)
    p = tfd.MultivariateNormalTriL(tf.constant([5.0, 5.0]), 2 * tf.eye(2))
    score = -(np.asarray(p.sample(100, seed=[0, 0])) - 5.0) / 4
    terms = 0.5 * np.sum((model.score(p.sample(100, seed=[0, 0])).numpy() - score) ** 2, -1)
    assert evaluation.fisher_divergence(model, p, 100, seed=0).value == pytest.approx(terms.mean(), rel=1e-4)


def test_draws_of_a_chain_are_labelled():
    chains = ebm.EnergyDistribution(
        energy, [2], ebm.mcmc.RandomWalk(0.5), diagonal_normal(2), num_burnin_steps=1, log_normalizer=LOG_Z
    )
    estimate = evaluation.kl_divergence(energy, chains, LOG_Z, num_samples=10)
    assert estimate.is_approximate and abs(estimate.value) < 1e-9
    assert not evaluation.kl_divergence(energy, diagonal_normal(2), LOG_Z, num_samples=10).is_approximate


def test_a_model_without_mass_where_the_data_is_warns():
    x = np.array([[1.0], [-1.0], [2.0]])
    with pytest.warns(UserWarning, match="not finite at 1 of 3"):
        lost = evaluation.log_likelihood(lambda x: tf.where(x[:, 0] > 0, x[:, 0], np.inf), x, 0.0)
    assert lost.value == -np.inf and math.isnan(lost.standard_error)
    with pytest.warns(UserWarning, match="its error is unknown"):
        evaluation.log_likelihood(energy, x[:1], 0.0)


# --- samples ----------------------------------------------------------------------------------------------------------


def test_mmd_is_its_naive_twin():
    x, y, h = rows(7), rows(9, seed=1), 0.8

    def k(a, b):
        return math.exp(-np.sum((a - b) ** 2) / (2 * h**2))

    within = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (7 * 6)
    other = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (9 * 8)
    across = sum(k(a, b) for a in x for b in y) / 63
    assert evaluation.mmd(x, y, h).value == pytest.approx(within + other - 2 * across, abs=1e-12)
    # far from zero no digit is lost
    assert evaluation.mmd(x + 1e6, y + 1e6, h).value == pytest.approx(within + other - 2 * across, abs=1e-6)


def stein_twin(x, h, step=1e-4):
    """Σ_{i≠j} u/(n(n − 1)) for the score −x, the kernel's derivatives by central differences."""

    def k(a, b):
        return (1 + np.sum((a - b) ** 2) / h**2) ** -0.5

    total, n = 0.0, len(x)
    for i in range(n):
        for j in set(range(n)) - {i}:
            a, b = x[i], x[j]
            total += k(a, b) * (a @ b)
            for e in step * np.eye(x.shape[1]):
                along = np.argmax(e)
                total -= a[along] * (k(a, b + e) - k(a, b - e)) / (2 * step)
                total -= b[along] * (k(a + e, b) - k(a - e, b)) / (2 * step)
                mixed = k(a + e, b + e) - k(a + e, b - e) - k(a - e, b + e) + k(a - e, b - e)
                total += mixed / (4 * step**2)
    return total / (n * (n - 1))


def test_stein_discrepancy_is_its_naive_twin():
    x = rows(6, d=3)
    assert evaluation.kernel_stein_discrepancy(energy, x, 0.8).value == pytest.approx(stein_twin(x, 0.8), abs=1e-6)


# Under the hypothesis p-values are uniform (but for their steps of 1/100): of 60, fewer than 9 lie below .05 with
# probability .997, and their mean is ½ ± .037.
@pytest.mark.parametrize("kind", ["mmd", "stein"])
def test_p_values_and_errors(kind):
    def run(seed, sd):
        x = rows(60, seed=seed, sd=sd)
        if kind == "mmd":
            return evaluation.mmd(x, rows(60, seed=seed + 1000), num_permutations=99, seed=seed)
        return evaluation.kernel_stein_discrepancy(energy, x, num_bootstraps=99, seed=seed)

    same, other = ([run(seed, sd) for seed in range(60)] for sd in (1.0, 2.0))
    p_values = np.array([result.p_value for result in same])
    assert np.sum(p_values <= 0.05) < 9
    assert abs(p_values.mean() - 0.5) < 4 * 0.037 + 0.02
    # power: twice the width is seen nearly always
    assert np.sum([result.p_value <= 0.05 for result in other]) > 50
    # errors: where the laws are equal, and where they are not
    for results in (same, other):
        values, errors = np.array([(result.value, result.standard_error) for result in results]).T
        assert 0.7 < np.sqrt(np.mean(errors**2)) / np.std(values) < 1.5
    values = np.array([result.value for result in same])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(60)


def test_mmd_by_blocks(monkeypatch):
    x, y = rows(50), rows(40, seed=1)
    whole = evaluation.mmd(x, y), evaluation.kernel_stein_discrepancy(energy, x)
    monkeypatch.setattr("tfp_ebm.evaluation.discrepancies._BLOCK_NUMBERS", 200)
    parts = evaluation.mmd(x, y), evaluation.kernel_stein_discrepancy(energy, x)
    np.testing.assert_allclose(whole, parts, rtol=1e-10)


# --- order ------------------------------------------------------------------------------------------------------------


def test_auroc_by_counting_pairs():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 6, size=(40, 1)) * 1.0, rng.integers(1, 8, size=(30, 1)) * 1.0
    pairs = np.mean([(a < b) + 0.5 * (a == b) for a in inside[:, 0] for b in outside[:, 0]])  # low energy: in
    estimate = evaluation.ood_auroc(lambda x: x[:, 0], inside, outside)
    assert estimate.value == pytest.approx(pairs, abs=1e-12)
    flipped = evaluation.ood_auroc(lambda x: -x[:, 0], inside, outside)
    assert flipped.value == pytest.approx(1 - pairs, abs=1e-12)


def test_auroc_error_is_calibrated():
    """N(0, 1) against N(1, 1) by E = x: AUROC = Φ(1/√2) = .760; of 200 seeds 2 standard errors cover about 190."""
    truth = 0.5 * (1 + math.erf(0.5))
    estimates = [
        evaluation.ood_auroc(lambda x: x[:, 0], rows(50, 1, seed), rows(50, 1, seed + 500, loc=1.0))
        for seed in range(200)
    ]
    assert 180 <= sum(abs(e.value - truth) < 2 * e.standard_error for e in estimates) <= 199
    apart = evaluation.ood_auroc(lambda x: x[:, 0], rows(50, 1), rows(50, 1, loc=99.0))
    assert apart.value == 1.0 and 0 < apart.standard_error < 0.02


def test_the_three_statistics():
    x = np.array([[3.0, 4.0], [0.0, 1.0]])
    np.testing.assert_allclose(evaluation.ood_statistic(energy, x), [-12.5, -0.5])
    np.testing.assert_allclose(evaluation.ood_statistic(energy, x, "gradient"), [-5.0, -1.0])
    logits = np.array([[1.0, 2.0, 0.0], [5.0, 5.0, -1e4]])
    by_class = evaluation.ood_statistic(lambda x: tf.constant(logits), x, "class_probability")
    np.testing.assert_allclose(by_class, [math.e**2 / (math.e + math.e**2 + 1), 0.5])
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    assert evaluation.ood_statistic(network, x, "class_probability").shape == (2,)
    auroc = evaluation.ood_auroc(network, rows(20), rows(20, sd=9.0), kind="class_probability")
    assert 0 <= auroc.value <= 1


# --- bad input --------------------------------------------------------------------------------------------------------

EMPTY, NAN = np.zeros([0, 2]), np.full([3, 2], np.nan)


@pytest.mark.parametrize("bad", [EMPTY, NAN, np.zeros(3), [["a", "b"]]], ids=["empty", "nan", "rank", "text"])
@pytest.mark.parametrize(
    "call",
    [
        lambda x: evaluation.log_likelihood(energy, x, 0.0),
        lambda x: evaluation.bits_per_dimension(energy, x, 0.0),
        lambda x: evaluation.mmd(x, rows(3)),
        lambda x: evaluation.mmd(rows(3), x),
        lambda x: evaluation.kernel_stein_discrepancy(energy, x),
        lambda x: evaluation.ood_statistic(energy, x),
        lambda x: evaluation.ood_auroc(energy, rows(3), x),
        lambda x: evaluation.ood_auroc(energy, x, rows(3)),
    ],
)
def test_bad_rows(call, bad):
    with pytest.raises((ValueError, TypeError), match=r"`(x|y|x_in|x_out)` must"):
        call(bad)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: evaluation.mmd(np.ones([5, 2]), np.ones([4, 2])), ValueError, "all 9 rows are equal"),
        (lambda: evaluation.mmd(np.ones([5, 2]), np.ones([4, 2]), 1.0), ValueError, "all 9 rows are equal"),
        (lambda: evaluation.kernel_stein_discrepancy(energy, np.ones([4, 2])), ValueError, "all 4 rows are equal"),
        (lambda: evaluation.mmd(rows(3), rows(3, d=3)), ValueError, "same event shape"),
        (lambda: evaluation.mmd(rows(1), rows(3)), ValueError, "`x` must have at least 2 rows, got 1"),
        (lambda: evaluation.mmd(rows(3), rows(3, seed=1), 0.0), ValueError, "`bandwidth`"),
        (lambda: evaluation.mmd(rows(3), rows(3, seed=1), seed=None), TypeError, "`seed`"),
        (
            lambda: evaluation.kernel_stein_discrepancy(lambda x: tf.round(x[:, 0]), rows(3)),
            ValueError,
            "differentiable",
        ),
        (lambda: evaluation.kernel_stein_discrepancy(3, rows(3)), TypeError, "`energy_fn`"),
        (lambda: evaluation.log_likelihood(energy, rows(3), np.nan), ValueError, "`log_normalizer`"),
        (lambda: evaluation.log_likelihood(energy, rows(3), [1.0, 2.0]), TypeError, "`log_normalizer`"),
        (lambda: evaluation.log_likelihood(energy, rows(3), None), TypeError, "`log_normalizer`"),
        (lambda: evaluation.log_likelihood(lambda x: x, rows(3), 0.0), ValueError, "one number per row"),
        (lambda: evaluation.bits_per_dimension(energy, rows(3), 0.0, 0.0), ValueError, "`bin_width`"),
        (lambda: evaluation.kl_divergence(energy, energy, 0.0), TypeError, "`reference`"),
        (lambda: evaluation.kl_divergence(energy, diagonal_normal(2), 0.0, num_samples=0), ValueError, "`num_samples`"),
        (lambda: evaluation.fisher_divergence(energy, targets.checkerboard()), ValueError, "checkerboard"),
        (lambda: evaluation.ood_auroc(energy, rows(3), rows(3, d=3)), ValueError, "same event shape"),
        (lambda: evaluation.ood_auroc(energy, rows(3), rows(1)), ValueError, "`x_out` must have at least 2 rows"),
        (lambda: evaluation.ood_auroc(lambda x: tf.math.log(x[:, 0]), rows(9), rows(9)), ValueError, "NaN"),
        (lambda: evaluation.ood_statistic(energy, rows(3), "entropy"), ValueError, "`kind`"),
        (lambda: evaluation.ood_statistic(energy, rows(3), "class_probability"), ValueError, "logits"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()
