"""Regression by autoregressive energies: exact densities, draws, quantiles; a bimodal toy; files; refusals."""

import keras
import numpy as np
import pytest

import tfp_ebm as ebm
from tfp_ebm.losses import NegativeLogLikelihood
from tfp_ebm.networks.targets import RegressionEnergy, TargetEnergy
from tfp_ebm.recipes import regression_candidates


def model_of(num_inputs, num_targets, seed=0):
    """A model with random weights everywhere, in units of its own."""
    rng = np.random.default_rng(seed)
    networks = [TargetEnergy(num_inputs, num_targets, units=(16, 16), num_components=3, seed=i) for i in range(2)]
    for network in networks:
        for weight in network.trainable_variables:
            weight.assign(weight + 0.05 * rng.normal(size=weight.shape))
    network = RegressionEnergy(networks, rng.normal(size=num_inputs), np.full(num_inputs, 1.5))
    model = ebm.EnergyModel(network, seed=1)
    model.standardization.loc.assign(rng.normal(size=num_targets))
    model.standardization.scale.assign(np.full(num_targets, 2.0))
    return model


@pytest.mark.slow
def test_every_conditional_density_is_normalised_and_agrees_with_its_draws():
    """∫ p(y|x) dy = 1 by the trapezoid rule; means and quantiles of 20 000 draws within 4 standard errors."""
    model = model_of(2, 1)
    x = np.array([[0.0, 0.0], [1.0, -2.0], [-1.5, 0.5]], "float32")
    p = model.given(x)
    assert p.batch_shape == (3,) and p.event_shape == (1,) and not np.any(p.log_normalizer)
    y = np.linspace(-60.0, 60.0, 24_001)[:, None].astype("float32")
    density = np.exp(np.float64(p.log_prob(np.repeat(y[:, None], 3, 1))))
    np.testing.assert_allclose(density.sum(0) * 0.005, 1.0, atol=2e-4)
    assert np.ptp(density[:, 0] - density[:, 1]) > 0.01, "x must matter"
    np.testing.assert_allclose((density * y).sum(0) * 0.005, p.mean()[:, 0], atol=5e-3)
    draws = p.sample(20_000, seed=3).numpy()[..., 0]
    spread = p.stddev()[:, 0].numpy()
    assert draws.shape == (20_000, 3) and np.all(np.abs(draws.mean(0) - p.mean()[:, 0]) < 4 * spread / 20_000**0.5)
    for q in (0.05, 0.5, 0.9):
        below = (draws < p.quantile(q)[:, 0].numpy()).mean(0)
        assert np.all(np.abs(below - q) < 4 * (q * (1 - q) / 20_000) ** 0.5)
    cells = np.linspace(0.05, 0.9, 5)[:, None, None]
    np.testing.assert_allclose(p.quantile(cells)[-1], p.quantile(0.9), rtol=1e-6)  # levels broadcast as in TFP
    at_mode = p.log_prob(p.mode()).numpy()
    assert np.all(at_mode >= np.log(density.max(0)) - 0.02)
    below = np.cumsum(density, 0) * 0.005
    for place in (11_500, 12_000, 12_700):  # shape [1, targets], one y for all x
        np.testing.assert_allclose(p.cdf(y[place][None]), below[place], atol=3e-3)
    low, high = p.interval(0.8)
    np.testing.assert_allclose(p.cdf(p.quantile(0.3)), 0.3, atol=1e-4)
    np.testing.assert_array_equal(low, p.quantile(0.1)), np.testing.assert_array_equal(high, p.quantile(0.9))
    held = ((draws > low[:, 0].numpy()) & (draws < high[:, 0].numpy())).mean(0)
    assert np.all(np.abs(held - 0.8) < 4 * (0.8 * 0.2 / 20_000) ** 0.5)
    np.testing.assert_array_equal(p.sample(4, seed=5), p.sample(4, seed=5))
    np.testing.assert_allclose(p.log_prob(y[:1]), p.log_prob(np.repeat(y[:1], 3, 0)))  # one y for all x
    shape = p.log_prob(p.sample((2, 5), seed=1)).shape
    assert shape == (2, 5, 3)

    one = model.given(x[1])
    np.testing.assert_allclose(one.energy(y[:50]), -p.log_prob(y[:50, None])[:, 1], rtol=1e-5)
    assert float(one.log_normalizer) == 0.0 and ebm.EnergyDistribution(one).sample(3, seed=0).shape == (3, 1)
    drawn = ebm.EnergyDistribution(one).draw(4000, seed=2).states[:, 0]
    assert abs(np.mean(drawn) - p.mean()[1, 0]) < 4 * spread[1] / 4000**0.5


@pytest.mark.slow
def test_two_targets_and_what_each_sees():
    """p(y₁ | x) is the integral of p(y | x) over y₂; the first output of the network sees no target."""
    model = model_of(3, 2, seed=4)
    network = model.network.networks[0]
    rows = np.random.default_rng(0).normal(size=(2, 5)).astype("float32")
    outputs = [np.array(network.conditionals(rows + change)[1]) for change in (0, *np.eye(5, dtype="float32"))]
    seen = [[np.abs(changed[:, i] - outputs[0][:, i]).max() > 1e-6 for changed in outputs[1:]] for i in range(2)]
    assert seen == [[True, True, True, False, False], [True, True, True, True, False]]
    x = np.array([[0.3, -0.2, 0.5]], "float32")
    p = model.given(x)
    grid = np.linspace(-40.0, 40.0, 1601).astype("float32")
    pairs = np.stack([np.full_like(grid, 0.7), grid], -1)[:, None]
    marginal = np.exp(np.float64(p.log_prob(pairs))).sum() * 0.05
    z = (0.7 - float(model.standardization.loc[0])) / 2.0
    inputs = model.network.inputs_of(x)
    rows = np.concatenate([inputs, [[z, 0.0]]], 1).astype("float32")
    first = [float(net.log_conditionals(rows, 128)[0, 0]) for net in model.network.networks]
    # the mixture weighs its parts equally, so that the marginal is the mean of theirs
    np.testing.assert_allclose(marginal, np.mean(np.exp(first)) / 2.0, rtol=2e-3)
    with pytest.raises(NotImplementedError, match="`cdf` is that of one target"):
        p.cdf([0.0, 0.0])
    assert p.sample(7, seed=0).shape == (7, 1, 2) and p.mean().shape == p.mode().shape == p.quantile(0.5).shape == (
        1,
        2,
    )


@pytest.mark.long
def test_files(tmp_path):
    model = model_of(1, 1)
    model.compile(loss=NegativeLogLikelihood())
    y, x = np.random.default_rng(1).normal(size=(2, 9, 1)).astype("float32")
    assert model.evaluate(y, x, verbose=0) == pytest.approx(
        float(np.mean(model.energy(y, x))) - np.log(2.0), abs=1e-4
    )  # the loss is in standardised units
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "regression.keras")
    loaded = keras.saving.load_model(tmp_path / "regression.keras")
    np.testing.assert_array_equal(loaded.energy(y, x), model.energy(y, x))
    np.testing.assert_array_equal(loaded.given(x).quantile(0.3), model.given(x).quantile(0.3))
    model.given(x[0]).save(tmp_path / "one.keras")
    one = keras.saving.load_model(tmp_path / "one.keras")
    np.testing.assert_array_equal(one.energy(y), model.given(x[0]).energy(y))


def bimodal(rows, seed):
    """Rows of y = ±(1 + x) + noise that widens with |x|, the upper branch in 60 %, and their log density."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.0, 1.0, (rows, 1))
    sign, sd = np.where(rng.random((rows, 1)) < 0.6, 1.0, -1.0), 0.1 + 0.1 * np.abs(x)
    y = sign * (1.0 + x) + sd * rng.normal(size=(rows, 1))
    parts = [np.log(p) - 0.5 * ((y - s * (1 + x)) / sd) ** 2 for s, p in ((1, 0.6), (-1, 0.4))]
    return x, y, (np.logaddexp(*parts) - np.log(sd) - 0.5 * np.log(2 * np.pi))[:, 0]


@pytest.mark.long
def test_a_bimodal_target_is_learned_to_a_fiftieth_of_a_nat():
    """KL ≤ .02 nats on 20 000 new rows, of which the standard error is .001; of shuffled inputs more than .2."""
    x, y, _ = bimodal(5000, 0)
    new_x, new_y, truth = bimodal(20_000, 1)
    for inputs, is_right in ((x, True), (np.roll(x, 1, 0), False)):
        model = ebm.recipes.regression(inputs, y, num_networks=1)
        gap = truth + model.energy(new_y.astype("float32"), new_x.astype("float32")).numpy()
        assert gap.mean() < 0.02 if is_right else gap.mean() > 0.2


@pytest.mark.slow
def test_bounded_targets_and_noise_that_widens():
    """y = exp(x/2 + sd(x) z) > 0 with sd from .2 to .6: KL ≤ .04 nats, 90 % intervals hold 87 to 93 % everywhere."""
    rng = np.random.default_rng(2)

    def made(rows):
        x = rng.uniform(-1.0, 1.0, (rows, 1))
        sd = 0.4 + 0.2 * x
        log_y = 0.5 * x + sd * rng.normal(size=(rows, 1))
        log_prob = -0.5 * ((log_y - 0.5 * x) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi) - log_y
        return x, np.exp(log_y), log_prob[:, 0]

    x, y, _ = made(2000)
    model = ebm.recipes.regression(x, y, bounds=(0.0, np.inf), num_networks=1)
    x, y, truth = made(10_000)
    gap = truth + model.energy(y.astype("float32"), x.astype("float32")).numpy()
    assert gap.mean() < 0.04
    p = model.given(x)
    low, high = p.interval(0.9)
    inside = ((y > low) & (y < high)).numpy()[:, 0]
    for part in (x[:, 0] < 0, x[:, 0] >= 0):
        assert abs(inside[part].mean() - 0.9) < 0.03  # 7 standard errors
    assert np.all(np.float64(p.log_prob(np.full([10_000, 1], -0.01, "float32"))) == -np.inf) and low.numpy().min() > 0


@pytest.mark.slow
def test_networks_have_orders_of_their_own(monkeypatch):
    """Two targets, y₂ = ±y₁ + noise: draws have both signs, and the density is that of the draws in either order.

    Networks alone: of these targets, which are a Gaussian mixture, a stack may keep none.
    """
    monkeypatch.setattr(regression_candidates, "stacked_parts", lambda of_all: (np.array([of_all.shape[1] - 1]), [1.0]))
    rng = np.random.default_rng(4)
    x = rng.normal(size=(400, 1))
    first = x + 0.5 * rng.normal(size=(400, 1))
    y = np.concatenate([first, 3.0 + np.sign(rng.random((400, 1)) - 0.5) * first], 1)
    y[:, 1:] += 0.3 * rng.normal(size=(400, 1))
    model = ebm.recipes.regression(x, y, num_networks=2)
    assert model.network.orders == ((0, 1), (1, 0)) and model.network.probs.tolist() == [0.5, 0.5]
    parts = [
        RegressionEnergy([network], model.network.x_loc, model.network.x_scale, [order])
        for network, order in zip(model.network.networks, model.network.orders, strict=True)
    ]
    z, at = model.standardization.to_z(y.astype("float32")), x.astype("float32")
    of_parts = [np.exp(-np.float64(part(z, at))) for part in parts]
    np.testing.assert_allclose(np.exp(-np.float64(model.network(z, at))), np.mean(of_parts, 0), rtol=1e-4)
    drawn = [np.float64(part.draw_given(at, np.array([0, 1]))) for part in parts]
    for one in drawn:  # the two networks agree on what is first
        np.testing.assert_allclose(one.mean(0), np.float64(z).mean(0), atol=0.25)
        assert abs(np.corrcoef(one[:, 0], at[:, 0])[0, 1] - np.corrcoef(z[:, 0], at[:, 0])[0, 1]) < 0.1


BAD = {
    "rows": ((np.zeros((30, 1)), np.arange(29.0)), {}, "`y` must have as many rows"),
    "constant": ((np.arange(30.0), np.ones(30)), {}, "`y` must not be constant"),
    "few": ((np.arange(9.0), np.arange(9.0)), {}, "`x` must have at least 20 rows"),
    "nan": ((np.full(30, np.nan), np.arange(30.0)), {}, "`x` must be finite"),
    "images": ((np.zeros((30, 2, 2)), np.arange(30.0)), {}, "`x` must have shape"),
    "share": ((np.arange(30.0), np.arange(30.0)), {"validation": 1.0}, "`validation` must be a share"),
    "bounds": ((np.arange(30.0), np.arange(30.0)), {"bounds": (1.0, np.inf)}, "`y` must lie within its bounds"),
    "a bound": ((np.arange(30.0), np.arange(30.0)), {"bounds": 1.0}, r"`bounds` must be \(low, high\)"),
    "networks": ((np.arange(30.0), np.arange(30.0)), {"num_networks": 0}, "`num_networks`"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    arguments, settings, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        ebm.recipes.regression(*arguments, **settings)


def test_a_condition_of_another_size_is_refused():
    with pytest.raises(ValueError, match="`condition` must be 2 finite numbers"):
        model_of(2, 1).given([1.0, 2.0, 3.0])
