"""Energies of linear combinations of the coordinates: closed forms, training, draws, and completed cells."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_ebm as ebm
from tfp_ebm.energy.gaussian_mixture import MixtureParameters
from tfp_ebm.networks import linear
from tfp_ebm.networks.completion import complete
from tfp_ebm.networks.gaussian_mixture import GaussianMixtureEnergy
from tfp_ebm.networks.linear import LinearEnergy, has_linear
from tfp_ebm.networks.normalized import AffineEnergy, DistributionEnergy, MixtureEnergy
from tfp_ebm.recipes import density, density_candidates, density_training

MATRIX = np.array([[0.5, -2.0], [1.5, 0.3]])


def normal_of(loc, matrix=MATRIX):
    """The energy of x where W x is normal with unit variances, and the distribution of x."""
    inner = DistributionEnergy(tfp.distributions.MultivariateNormalDiag(np.array(loc)))
    inverse = np.linalg.inv(matrix)
    return LinearEnergy(inner, matrix, dtype="float64"), stats.multivariate_normal(inverse @ loc, inverse @ inverse.T)


def test_the_density_is_that_of_the_combinations(monkeypatch, tmp_path):
    """Log p to 1e-12, also compiled and loaded; gradients of W; 5000 draws, KS at a false alarm rate of 1e-3.

    Planted: a volume that is left out.
    """
    energy, exact = normal_of([1.0, 2.0])
    x = np.random.default_rng(0).normal(size=(50, 2))
    for run in (energy, tf.function(lambda x: energy(x), jit_compile=True)):
        np.testing.assert_allclose(-run(tf.constant(x)), exact.logpdf(x), rtol=0.0, atol=1e-12)
    with tf.GradientTape() as tape:
        volume = tf.reduce_mean(energy(tf.zeros([1, 2], tf.float64)))
    np.testing.assert_allclose(tape.gradient(volume, energy.matrix.value), -np.linalg.inv(MATRIX).T, atol=1e-12)
    draws = energy.draw(5000, tf.constant([0, 1])).numpy()
    for i in range(2):
        marginal = stats.norm(exact.mean[i], np.sqrt(exact.cov[i, i]))
        assert stats.kstest(draws[:, i], marginal.cdf).pvalue > 1e-3
        assert stats.kstest(draws[:, i] + 0.2, marginal.cdf).pvalue < 1e-3
    model = ebm.EnergyModel(LinearEnergy(ebm.networks.autoregressive([2], units=[4]), MATRIX))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.energy(x.astype("float32")), model.energy(x.astype("float32")))
    monkeypatch.setattr(linear, "_log_volume", lambda matrix: tf.zeros([], matrix.dtype))
    assert np.abs(-energy(tf.constant(x)) - exact.logpdf(x)).min() > 1.0


def test_a_matrix_before_it_is_its_own():
    """`put_before`: the energy of x is that of A x plus −log |det A|."""
    energy, _ = normal_of([0.0, 0.0])
    x, before = np.random.default_rng(1).normal(size=(9, 2)), np.array([[2.0, 1.0], [0.0, 3.0]])
    old = energy(tf.constant(x @ before.T)).numpy() - np.log(6.0)
    energy.put_before(before, x)
    np.testing.assert_allclose(energy(tf.constant(x)), old, atol=1e-12)


@pytest.mark.parametrize("matrix", [np.ones((2, 2)), np.eye(3), [1.0, 2.0]])
def test_refusals(matrix):
    inner = DistributionEnergy(tfp.distributions.MultivariateNormalDiag([0.0, 0.0]))
    with pytest.raises(ValueError, match=r"`matrix` must be invertible, of shape \(2, 2\)"):
        LinearEnergy(inner, matrix)
    with pytest.raises(ValueError, match="`network` must be an energy of vectors without missing cells"):
        LinearEnergy(ebm.networks.autoregressive([2], units=[4], allows_missing=True))


def test_cells_are_completed_by_resampling(monkeypatch):
    """A part .7 of linear combinations and one .3 of a wide normal: x₂ | x₁ has the exact mixture's distribution.

    4000 draws from 20000 particles; KS at a false alarm rate of about 1e-3, and log p of what is given to .05, five
    standard errors. Planted: weights left out, so that all draws are of the wide part.
    """
    energy, _ = normal_of([1.0, 2.0])
    wide = GaussianMixtureEnergy.of(MixtureParameters(np.ones(1), np.zeros((1, 2)), 2.0 * np.eye(2)[None]))
    network = MixtureEnergy([energy, wide], [0.7, 0.3], dtype="float64")
    given = 0.3
    grid = np.linspace(-9.0, 9.0, 4001)
    states = np.stack([np.full_like(grid, given), grid], 1)
    pdf = np.exp(-network(tf.constant(states)).numpy())
    below = np.cumsum(pdf) * (grid[1] - grid[0])

    def completed():
        found = complete(network, np.array([[given, np.nan]]), 4000, 20_000, tf.constant([3, 4]))
        np.testing.assert_array_equal(found.states[0, :, 0], given)
        p = stats.kstest(found.states[0, :, 1], lambda x: np.interp(x, grid, below / below[-1])).pvalue
        return p, found.log_prob[0]

    p, log_prob = completed()
    assert p > 1e-3 and abs(log_prob - np.log(below[-1])) < 0.05
    monkeypatch.setattr(MixtureEnergy, "call", lambda self, x, training=False: tf.zeros_like(x[:, 0]))
    assert completed()[0] < 1e-6
    with pytest.raises(TypeError, match="no energy of linear combinations"):
        complete(MixtureEnergy([energy], [1.0], dtype="float64"), np.array([[0.3, np.nan]]), 1, 1, tf.constant([0, 0]))
    with pytest.raises(ValueError, match="linear combinations"):
        ebm.composition.cdf(ebm.EnergyModel(network), np.array([[0.3, 1.0]]), 1)


def rotated(rows, seed):
    """Three independent columns, each −1 or 1 with noise of .15, rotated."""
    rng = np.random.default_rng(seed)
    signs = rng.integers(2, size=(rows, 3)) * 2.0 - 1.0
    rotation = np.linalg.qr(np.random.default_rng(7).normal(size=(3, 3)))[0]
    y = signs + 0.15 * rng.normal(size=(rows, 3))
    parts = np.logaddexp(stats.norm.logpdf(y, 1.0, 0.15), stats.norm.logpdf(y, -1.0, 0.15)) - np.log(2.0)
    return y @ rotation.T, parts.sum(1)


@pytest.mark.slow
def test_rotated_columns_are_found(monkeypatch):
    """KL of 5000 new rows below .06 nat after 400 steps, standard error .01; in the given columns .02 more.

    The energy of the rows is the one that its training was judged by.
    """
    monkeypatch.setattr(density_candidates, "_MIN_NETWORKS", 1)
    monkeypatch.setattr(density_candidates, "_MAX_NETWORKS", 2)
    settings = density_training.settings_for_rows(3500, 3)._replace(num_steps=400, width=32)
    monkeypatch.setattr(density_candidates, "settings_for_rows", lambda *_: settings)
    x, _ = rotated(4000, 0)
    new, exact = rotated(5000, 1)
    train, held_out = (part.astype(np.float32) for part in (x[:3500], x[3500:]))
    table = density_candidates.Table(train, held_out, {}, False, 0, (train, held_out))
    trained = {one.name: one for one in density_candidates.train_networks(table, None, 60.0, np.inf, 0)}
    assert list(trained) == ["autoregressive_1", "autoregressive_linear_1"]
    free, line = (float((exact + one.network(new.astype(np.float32)).numpy()).mean()) for one in trained.values())
    assert line < 0.06 and free > line + 0.02
    one = trained["autoregressive_linear_1"]
    np.testing.assert_allclose(
        one.network(held_out).numpy().mean(), min(one.training.held_out_losses), rtol=0.0, atol=0.01
    )
    assert density_training.settle_nodes(one.network, held_out) < 1e-3


def test_turns_go_to_kinds_that_do_well():
    """Each kind has a turn; one that is .05 behind has no other. Mixtures have at most two turns, unless they lead.

    Of the other two kinds, one that is .025 behind has a turn when the first has three networks more.
    """

    def kinds(losses):
        turns, found = density_candidates._Turns(list(losses), 3, seed=0), []
        for _ in range(8):
            _, kind, order = turns.next()
            assert sorted(order) == [0, 1, 2]
            found.append(kind)
            turns.judge(kind, losses[kind])
        return found

    free, mixture, line = "free", "mixture", "linear"
    assert kinds({free: 0.0, mixture: 0.01}) == [free, mixture, free, free, mixture, free, free, free]
    assert kinds({free: 1.0, mixture: 1.0, line: 0.0})[2:] == [line] * 6
    assert kinds({free: 1.0, mixture: 0.0, line: 1.0})[3:] == [mixture] * 5
    assert kinds({free: 0.0, mixture: 1.0, line: 0.0})[3:] == [free, line, free, line, free]
    assert kinds({free: 0.0, mixture: 1.0, line: 0.025})[3:] == [free, free, free, line, free]


def test_a_stack_keeps_a_part_that_completes_cells():
    """A stack of linear parts alone would not fill missing cells: the best other part has a weight of .001."""
    energy, _ = normal_of([0.0, 0.0])
    wide = DistributionEnergy(tfp.distributions.MultivariateNormalDiag(np.zeros(2), 9.0 * np.ones(2)))
    contest = density._Contest(0)
    contest.add("a", [ebm.EnergyModel(energy)], np.zeros(100))
    contest.add("b", [ebm.EnergyModel(wide)], np.full(100, -9.0))
    network = contest.stack().network
    assert [has_linear(part) for part in network.parts] == [True, False]
    np.testing.assert_allclose(network.probs, [0.999, 0.001], atol=1e-7)


def test_cells_of_a_mapped_stack_are_completed():
    """A stack with a linear part in units of its own: log p of x₀ = 1 given none to 1e-6, in the units outside."""
    energy, _ = normal_of([0.0, 0.0])
    gaussian = GaussianMixtureEnergy([2], 1, dtype="float64")
    gaussian.assign(MixtureParameters(np.ones(1), np.zeros((1, 2)), np.eye(2)[None]))
    stack = AffineEnergy(MixtureEnergy([energy, gaussian], [1e-9, 1.0 - 1e-9], dtype="float64"), [0, 0], [2.0, 1.0])
    completed = complete(stack, np.array([[1.0, np.nan]]), 200, 256, np.array([0, 1]))
    assert completed.states.shape == (1, 200, 2) and (completed.states[..., 0] == 1.0).all()
    assert abs(completed.log_prob[0] - stats.norm.logpdf(1.0, scale=0.5)) < 1e-6
    with pytest.raises(TypeError):  # a linear part alone has no conditionals
        complete(AffineEnergy(energy, [0, 0], [2.0, 1.0]), np.array([[1.0, np.nan]]), 1, 1, np.array([0, 1]))
