"""`fit_density(sample_weight=)`: rows count as often as their weights say, in all candidates and in the stack."""

import math

import numpy as np
import pytest

import tfp_ebm as ebm
from tfp_ebm.composition import stacked_parts, stacking_weights
from tfp_ebm.energy.data import shuffled_batches
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.recipes import density_candidates, density_folds, density_residual, density_small, density_training
from tfp_ebm.recipes.density_rows import effective_weights, resampled
from tfp_ebm.recipes.density_units import Units, filled, frequencies

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(200, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
COUNTS = RNG.integers(1, 4, size=200)
COPIES = np.repeat(np.arange(200), COUNTS)
SHIFT = np.array([1.0, -0.5])


def tilted(number, seed):
    """Rows of N(0, 1) with the weights that make them rows of N(SHIFT, 1)."""
    x = np.random.default_rng(seed).normal(size=(number, 2))
    return x, np.exp(x @ SHIFT)


def gaps_of(loc, weights):
    """Distances of a mean from SHIFT in standard errors of the weighted mean, from the closed form.

    E w² (x − μ)²/(E w)² = e^{s²}(1 + s²) for each coordinate with its own shift s, times e^{s²} of the other.
    """
    errors = np.sqrt(np.exp(SHIFT @ SHIFT) * (1.0 + SHIFT**2) / len(weights))
    return np.abs(loc - SHIFT) / errors


def test_counts_are_repeated_rows_in_all_closed_forms():
    rows = Z.copy()
    rows[RNG.random(rows.shape) < 0.2] = np.nan
    counts = COUNTS.astype(float)
    mine, theirs = Units.of(rows, weights=counts), Units.of(rows[COPIES])
    np.testing.assert_allclose(mine.loc, theirs.loc, rtol=1e-9)
    np.testing.assert_allclose(mine.scale, theirs.scale, rtol=1e-9)
    values = RNG.integers(3, size=200).astype(float)
    np.testing.assert_allclose(frequencies(values, np.arange(3.0), counts), frequencies(values[COPIES], np.arange(3.0)))
    log_probs = RNG.normal(size=(200, 3))
    np.testing.assert_allclose(
        stacking_weights(log_probs, row_weights=counts), stacking_weights(log_probs[COPIES]), rtol=1e-9
    )
    assert np.abs(stacking_weights(log_probs) - stacking_weights(log_probs[COPIES])).max() > 1e-3  # planted
    kept, probs = stacked_parts(log_probs, counts)
    assert len(kept) == len(probs) and probs.sum() == pytest.approx(1.0)


def test_counts_are_repeated_rows_in_cross_validation_and_baselines():
    """Gaussians, their scale mixtures and kernel densities; each copy has the log density of its row."""
    fold, counts = density_folds.folds_of(Z, 5, 0), COUNTS.astype(float)
    mine, _ = density_folds.cross_validated(Z, fold, seed=0, with_kernels=True, with_mixtures=False, weights=counts)
    theirs, _ = density_folds.cross_validated(Z[COPIES], fold[COPIES], seed=0, with_kernels=True, with_mixtures=False)
    for name, one in mine.items():
        np.testing.assert_allclose(one.log_probs[COPIES], theirs[name].log_probs, rtol=1e-6, atol=1e-6)
        assert one.score == pytest.approx(theirs[name].score)
        np.testing.assert_allclose(one.fit(Z, counts).log_prob(Z), theirs[name].fit(Z[COPIES]).log_prob(Z), rtol=1e-6)

    def table(rows, weights):
        y = rows.astype(np.float32)
        held_out = np.arange(len(y)) < 100
        own = (None, None) if weights is None else (weights[~held_out], weights[held_out])
        spread = (rows[~held_out], rows[held_out])
        return density_candidates.Table(y[~held_out], y[held_out], {}, False, 0, spread, weights=own)

    order = np.argsort(COUNTS == 1, kind="stable")[::-1]  # the rows held out have no copies
    rows, weights = Z[order], counts[order]
    assert (weights[:60] == 1.0).all()
    weights[:100] = 1.0
    found, _ = density_candidates.baselines(table(rows, weights))
    naive, _ = density_candidates.baselines(table(rows[np.repeat(np.arange(200), weights.astype(int))], None))
    for name in ("gaussian", "kernel_density"):
        for part in ("network", "of_all_rows"):
            one, two = (np.asarray(getattr(of[name], part)(Z.astype("float32"))) for of in (found, naive))
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)


def test_gaussians_of_weighted_rows_have_the_weighted_moments():
    """Mean within four standard errors of that of the weighted density, covariance within .32 of 1.

    Of the latter, the largest standard error is sqrt(7 e^{s²}/rows) = .078.

    Planted: the same without weights is more than four standard errors away.
    """
    x, weights = tilted(4000, 1)
    fold = density_folds.folds_of(x, 5, 0)
    for own, is_right in ((effective_weights(weights), True), (None, False)):
        chosen = density_folds._judge(
            density_folds._gaussians, x, fold, 0, density_folds._scores_of_scaled, weights=own
        )
        fitted = chosen.fit(x, own)
        assert (gaps_of(fitted.loc[0], weights).max() < 4.0) == is_right
        assert np.abs(fitted.covariance[0] - np.eye(2)).max() < 0.32


def test_batches_hold_rows_in_proportion_to_weights():
    """In each pass a row comes as often as its share of the rows, rounded up or down; over passes, in proportion."""
    weights = np.array([1.0, 2.0, 2.0, 0.5, 4.5])
    share = weights / weights.sum() * 5.0
    batches = iter(shuffled_batches(np.arange(5.0)[:, None], 5, 3, weights=weights))
    counts = np.stack([np.bincount(next(batches).numpy()[:, 0].astype(int), minlength=5) for _ in range(400)])
    assert ((counts >= np.floor(share)) & (counts <= np.ceil(share))).all()
    assert np.abs(counts.mean(0) - share).max() < 4.0 * 0.5 / np.sqrt(400)
    drawn = np.bincount(resampled(np.array([1.0, 2.0]), 3, np.random.default_rng(0)))
    assert drawn.tolist() == [1, 2]


@pytest.mark.long
def test_networks_learn_the_weighted_density():
    """The mean of 20 000 draws within four standard errors of the weighted rows' mean, and .1 for the training.

    Planted: without weights it is near 0, at a distance of 1.
    """
    rows, weights = tilted(2000, 2)
    rows = rows[:, :1].astype(np.float32)
    weights = np.exp(rows[:, 0]).astype(float)
    network = ebm.networks.autoregressive([1], units=[16], num_nodes=(32, 64), seed=0)
    settings = density_training.settings_for_rows(2000, 1)._replace(num_steps=800)
    trainer = density_training.Trainer(network, settings, 0)
    expected, means = float(weights @ rows[:, 0] / weights.sum()), []
    for own in (effective_weights(weights), None):
        training = trainer.train(rows, rows, math.inf, 0, row_weights=(own, own))
        network.set_weights(training.weights)
        means.append(float(network.draw(20_000, np.array([0, 1], "int32")).numpy().mean()))
        energies = np.asarray(network(rows), np.float64)
        assert min(training.held_out_losses) == pytest.approx(np.average(energies, weights=own), abs=1e-4)
    assert abs(means[0] - expected) < 0.1 + 4.0 / np.sqrt(20_000) and abs(means[1] - expected) > 0.8


def test_what_has_no_weights_of_its_own_draws_rows_in_proportion():
    """Regressions that fill cells: the weighted half of the rows has y = x, the other y = −x. Planted: no weights."""
    x = RNG.normal(size=400)
    y = np.where(np.arange(400) < 200, x, -x) + 0.05 * RNG.normal(size=400)
    rows, gap = np.stack([x, y], 1), np.stack([np.array([-1.0, 1.0] * 100), np.full(200, np.nan)], 1)
    weights = np.where(np.arange(400) < 200, 1.0, 1e-3)
    slopes = [(filled(rows, gap, seed=0, weights=own)[1].prod(1)).mean() for own in (weights, None)]
    assert slopes[0] == pytest.approx(1.0, abs=0.2) and abs(slopes[1]) < 0.3
    gain = density_residual._gain(np.array([0.0, 1.0]), np.zeros(9), np.array([1.0, 3.0]))
    assert gain.value == pytest.approx(0.75)


@pytest.mark.long
def test_a_correction_is_of_the_weighted_rows():
    """A standard normal is corrected to N(SHIFT, 1): it gains |SHIFT|²/2 = .625 nat a row, within .1.

    Planted: without weights there is nothing to gain.
    """
    normal = GaussianMixtureEnergy.of(MixtureParameters(np.ones(1), np.zeros((1, 2)), np.eye(2)[None]))
    x, weights = tilted(6000, 4)
    own = (weights[:5000], weights[5000:])
    corrected = density_residual.fit_residual(normal, x[:5000], x[5000:], 0, own)
    new = (np.random.default_rng(5).normal(size=(5000, 2)) + SHIFT).astype("float32")
    gain = np.asarray(normal(new) - corrected(new), float).mean()
    assert gain == pytest.approx(0.5 * SHIFT @ SHIFT, abs=0.1)
    assert density_residual.fit_residual(normal, x[:5000], x[5000:], 0) is None


@pytest.mark.long
def test_a_weighted_fit_is_of_the_weighted_density(monkeypatch):
    """The mean of 20 000 draws within four standard errors, .15 at most, of SHIFT; without weights it is not.

    Rows of weight zero, wherever they are, change no bit; nor does the unit of the weights, a power of two.
    """
    monkeypatch.setattr(density_small, "MIN_ROWS_OF_NETWORKS", 10_000)
    x, weights = tilted(600, 3)
    model = ebm.fit_density(x, sample_weight=weights, verbose=0)
    samples = ebm.EnergyDistribution(model).sample(20_000, seed=0).numpy()
    assert gaps_of(samples.mean(0), weights).max() < 4.0
    plain = ebm.fit_density(x, verbose=0)
    samples = ebm.EnergyDistribution(plain).sample(20_000, seed=0).numpy()
    assert gaps_of(samples.mean(0), weights).max() > 4.0
    more = np.concatenate([x[:100], [[1e9, 0.0], [np.pi, -1e9]], x[100:]])
    of_more = 4.0 * np.concatenate([weights[:100], [0.0, 0.0], weights[100:]])
    again = ebm.fit_density(more, sample_weight=of_more, verbose=0)
    assert again.candidates == model.candidates
    np.testing.assert_array_equal(again.energy(x.astype("float32")), model.energy(x.astype("float32")))


@pytest.mark.parametrize(
    ("weights", "error", "match"),
    [
        (np.zeros(20), ValueError, "positive"),
        (-np.ones(20), ValueError, "not negative"),
        (np.full(20, np.nan), ValueError, "finite"),
        (np.ones(19), ValueError, "one number per row"),
        (["a"] * 20, TypeError, "real numbers"),
    ],
)
def test_refused_weights(weights, error, match):
    with pytest.raises(error, match=f"`sample_weight`.*{match}"):
        ebm.fit_density(Z[:20], sample_weight=weights)


def test_checks_are_of_the_rows_with_weight():
    x = np.column_stack([Z[:20], np.arange(20) == 3])
    with pytest.raises(ValueError, match="columns 2 are constant"):
        ebm.fit_density(x, sample_weight=np.arange(20) != 3)
    with pytest.raises(ValueError, match="at least 10 rows"):
        ebm.fit_density(Z[:20], sample_weight=np.arange(20) < 5)
