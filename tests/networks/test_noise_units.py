"""Units of the noise, for heavy tails and collinear columns: the map, its Jacobian, the loss, draws, and the flow."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.networks.noise_units import NoiseUnits


def rows_of(kind, number=4000, seed=0):
    """Rows of three columns: normal ones; two with heavy tails; or two that are almost equal."""
    rng = np.random.default_rng(seed)
    if kind == "normal":
        return rng.normal(size=(number, 3)) * [1.0, 2.0, 0.5] + [0.0, 1.0, 3.0]
    if kind == "heavy":
        columns = rng.standard_t(1.5, number) * 0.1 + 1.0, rng.normal(size=number), rng.standard_cauchy(number)
        return np.stack(columns, 1)
    z = rng.normal(size=(number, 3))
    return np.stack([z[:, 0], z[:, 0] + 0.03 * z[:, 1], z[:, 2]], 1)


def units_of(kind, dtype="float64"):
    units = NoiseUnits(3, dtype=dtype)
    units.adapt_to(rows_of(kind))
    return units


def test_normal_columns_keep_their_units():
    units, rows = units_of("normal", "float32"), rows_of("normal").astype("float32")
    np.testing.assert_array_equal(units.to_y(rows), rows)
    np.testing.assert_array_equal(units.to_z(rows), rows)
    assert np.all(units.log_slope(rows) == 0.0)
    units.adapt_to(rows_of("heavy"))  # and again after others
    units.adapt_to(rows_of("normal"))
    np.testing.assert_array_equal(units.to_y(rows), rows)


@pytest.mark.parametrize("kind", ["heavy", "collinear"])
def test_the_units_have_unit_scale_and_the_slope_of_autodiff(kind):
    units, rows = units_of(kind), rows_of(kind, 200, seed=1)
    y = units.to_y(rows_of(kind)).numpy()
    assert np.abs(np.std(y, 0) - 1.0).max() < 0.1 and np.abs(y).max() < 12.0
    if kind == "collinear":
        np.testing.assert_allclose(np.cov(y, rowvar=False), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(units.to_z(units.to_y(rows)), rows, rtol=1e-7, atol=1e-9)
    z = tf.constant(rows)
    with tf.GradientTape() as tape:
        tape.watch(z)
        y = units.to_y(z)
    exact = np.linalg.slogdet(tape.batch_jacobian(y, z).numpy())[1]
    np.testing.assert_allclose(units.log_slope(z), exact, rtol=1e-8)


def test_far_states_stay_finite():
    units = units_of("heavy", "float32")
    far = tf.constant([[1e30, 0.0, -1e30], [-3e20, 5.0, 2e25]])
    assert np.isfinite(units.to_y(far)).all() and np.isfinite(units.log_slope(far)).all()
    y = tf.constant([[200.0, 0.0, -200.0]])
    with tf.GradientTape() as tape:
        tape.watch(y)
        z = units.to_z(y)
    assert np.isfinite(z).all() and np.isfinite(tape.gradient(z, y)).all()


def model_of(kind, dtype="float64", **kwargs):
    arguments = {"units": [8], "sigma_max": 8.0, "num_components": 4, "adapts_units": True, "dtype": dtype} | kwargs
    model = ebm.EnergyModel(ebm.networks.noise_level_mlp([3], seed=0, **arguments))
    model.adapt(rows_of(kind))
    return model


@pytest.mark.parametrize("kind", ["heavy", "collinear"])
def test_the_loss_is_that_of_an_energy_of_y(kind):
    """The same numbers as for the rows and the energy in the units of the noise; not without log |dy/dz|."""
    model = model_of(kind)
    network, units = model.network, model.network.noise_units
    rng = np.random.default_rng(1)
    for variable in network.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    z = model.standardization.to_z(tf.constant(rows_of(kind, 64, seed=2)))
    loss = ebm.losses.DualScoreMatching(0.05, 8.0, average_targets=True)
    found = loss(model.energy_function, z, seed=3).per_example

    def of_y(y, sigma):
        return -network.unnormalized_log_prob(y, sigma)

    expected = ebm.losses.DualScoreMatching(0.05, 8.0, average_targets=True)(of_y, units.to_y(z), seed=3).per_example
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    if kind == "heavy":  # a constant log |dy/dz| has no gradient

        def without_slope(y, sigma):
            return model.energy_function(units.to_z(y), sigma)

        wrong = ebm.losses.DualScoreMatching(0.05, 8.0, average_targets=True)(without_slope, units.to_y(z), seed=3)
        assert np.abs(wrong.per_example / expected - 1.0).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["heavy", "collinear"])
def test_log_p_is_that_of_the_flow(kind):
    """The network starts at a mixture, whose density is exact at all levels, so the flow along them finds log p."""
    model, rows = model_of(kind), rows_of(kind, 40, seed=4)
    found = ebm.evaluation.probability_flow_log_likelihood(model, rows, sigma_min=0.1, num_steps=48)
    exact = -np.mean(model.given(0.1).energy(rows))
    assert abs(found.value - exact) < 0.02
    slope = model.network.noise_units.log_slope(model.standardization.to_z(tf.constant(rows)))
    assert abs(float(np.mean(slope))) > 1.0  # the test sees it if it is left out


@pytest.mark.slow
def test_a_table_with_heavy_tails_is_drawn_and_comes_back_from_its_file(tmp_path):
    """Quantiles of the draws are those of the mixture at which the network starts, in the units of the table."""
    model = model_of("heavy", "float32")
    model.network.mark_levels_as_matched()
    sharp = model.given(0.05)
    draws = ebm.EnergyDistribution(sharp).draw(2000, seed=0)
    assert abs(draws.log_normalizer.value) < 0.1
    shares = [0.1, 0.3, 0.5, 0.7, 0.9]
    start = model.network.reference(0.05).sample(20_000, seed=1)
    expected = np.quantile(model.standardization.to_x(model.network.to_state(start)), shares, axis=0)
    found = (draws.states.numpy()[None] < expected[:, None]).mean(1).T
    assert np.abs(found - shares).max() < 5 * np.sqrt(0.25 / 1000)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    rows = rows_of("heavy", 50, seed=5).astype("float32")
    np.testing.assert_array_equal(loaded.given(0.05).energy(rows), sharp.energy(rows))
    with pytest.raises(ValueError, match="`adapts_units` must be False with `is_bounded`"):
        ebm.networks.noise_level_mlp([3], adapts_units=True, is_bounded=True)
    with pytest.raises(TypeError, match="`adapts_units` must be True or False"):
        ebm.networks.noise_level_mlp([3], adapts_units=1)
