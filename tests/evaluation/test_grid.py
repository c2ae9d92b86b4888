"""Quadrature in closed form, and an error estimate that knows coarse grids and mass outside the box."""

import math
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from laws import diagonal_normal, quadratic

import tfp_ebm as ebm
from tfp_ebm import targets
from tfp_ebm.evaluation import grid_kl_divergence, grid_log_normalizer, grid_total_variation

tfd = tfp.distributions


@pytest.mark.parametrize(
    ("precision", "mean"),
    [([[4.0]], [0.3]), ([[2.0, 0.5], [0.5, 1.0]], [0.2, -0.1]), ([[30.0, 5.0], [5.0, 1.0]], [0, 1])],
)
def test_log_z_of_a_gaussian(precision, mean):
    """½(d log 2π − log det P), in float64."""
    d = len(mean)
    truth = 0.5 * (d * math.log(2 * math.pi) - np.linalg.slogdet(precision)[1])
    estimate = grid_log_normalizer(quadratic(precision, mean), [-20.0] * d, [20.0] * d, num=400, dtype=tf.float64)
    assert estimate.value == pytest.approx(truth, abs=1e-8)
    assert abs(estimate.value - truth) <= estimate.standard_error + 1e-12


@pytest.mark.parametrize("num", [16, 17, 20, 24, 32, 48])
@pytest.mark.parametrize("loc", [0.0, 0.37])
def test_the_error_covers_a_coarse_grid(num, loc):
    """A Gaussian of width .5 on cells from 1 to 1/3: the error is real, and the estimate knows it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimate = grid_log_normalizer(diagonal_normal(1, 0.5, loc), -8.0, 8.0, num)
    assert abs(estimate.value) <= estimate.standard_error + 1e-9
    assert estimate.standard_error < 1.0


def test_a_grid_too_coarse_or_too_narrow_warns():
    with pytest.warns(UserWarning, match="is too small"):
        grid_log_normalizer(diagonal_normal(2, 0.3), -8.0, 8.0, 20)
    with pytest.warns(UserWarning, match="of the mass may lie outside"):
        narrow = grid_log_normalizer(diagonal_normal(2), -2.0, 2.0, 200)
    # erf(√2)² of the mass is inside
    assert narrow.value == pytest.approx(2 * math.log(math.erf(math.sqrt(2))), abs=1e-3)
    assert abs(narrow.value) <= narrow.standard_error
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert grid_log_normalizer(diagonal_normal(2), -5.0, 5.0, 200).standard_error < 1e-3


@pytest.mark.parametrize("make", [targets.rings, targets.checkerboard, targets.eight_gaussians])
def test_targets_integrate_to_one(make):
    estimate = grid_log_normalizer(make(tf.float64), [-4.0, -4.0], [4.0, 4.0], num=500)
    assert abs(estimate.value) <= max(estimate.standard_error, 1e-6)
    # the checkerboard's edges cost a cell's width: seen, though the board is symmetric about its nodes
    assert estimate.standard_error < (0.05 if make is targets.checkerboard else 1e-3)


def test_models_in_their_own_units():
    x = 3.0 * np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32) + 20.0
    base = ebm.fit_base(x)
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0), base_measure=base)
    model.adapt(x)
    box = ([0.0, 0.0], [40.0, 40.0])
    in_x = grid_log_normalizer(model, *box, num=200)
    plain = grid_log_normalizer(lambda x: model.energy(x), *box, num=200)
    through = grid_log_normalizer(ebm.EnergyDistribution(model), *box, num=200)
    assert in_x.value == pytest.approx(plain.value, abs=1e-6) == pytest.approx(through.value, abs=1e-6)
    # a network takes z itself: log Z is the same in both units
    z = grid_log_normalizer(lambda z: model.energy_function(z), [-6.5, -6.5], [6.5, 6.5], num=200)
    assert z.value == pytest.approx(in_x.value, abs=1e-3)


def test_the_error_knows_the_rounding_of_energies():
    """Energies of 10⁴ in float32 are rounded by 10⁻³."""
    estimate = grid_log_normalizer(lambda x: 1e4 + 0.5 * tf.reduce_sum(x**2, -1), [-8.1], [8.3], 100)
    error = abs(estimate.value - (0.5 * math.log(2 * math.pi) - 1e4))
    assert 1e-8 < error <= estimate.standard_error < 2e-3


def shifted(distance, sd=1.0):
    """An energy of N((distance, 0), sd²I) plus a constant."""
    q = tfd.MultivariateNormalDiag(np.array([distance, 0.0]), np.full(2, sd))
    return lambda x: 3.0 - q.log_prob(x)


@pytest.mark.parametrize("log_normalizer", [None, -3.0])
def test_kl_and_total_variation_in_closed_form(log_normalizer):
    """KL = a²/2 and TV = erf(a/√8) for a shift by a; KL = log s² + 1/s² − 1 for a scale s, in two dimensions."""
    p, box = diagonal_normal(2), ([-9.0, -9.0], [9.0, 9.0], 300, log_normalizer)
    for a in (0.0, 0.3, 1.0):
        kl, tv = grid_kl_divergence(shifted(a), p, *box), grid_total_variation(shifted(a), p, *box)
        assert kl.value == pytest.approx(a**2 / 2, abs=1e-6)
        assert tv.value == pytest.approx(math.erf(a / math.sqrt(8)), abs=1e-3)
        assert abs(tv.value - math.erf(a / math.sqrt(8))) <= tv.standard_error + 1e-9
    wide = grid_kl_divergence(shifted(0.0, 1.3), p, *box)
    assert wide.value == pytest.approx(2 * math.log(1.3) + 1 / 1.3**2 - 1, abs=1e-4)


def test_mass_far_outside_the_data_is_seen():
    """Half of the model's mass lies where there is no data: KL = log 2, TV = ½; a box around the data hides it."""
    p = diagonal_normal(2, 0.5)
    hidden = tfd.MixtureSameFamily(
        tfd.Categorical(probs=np.array([0.5, 0.5])),
        tfd.MultivariateNormalDiag(np.array([[0.0, 0.0], [8.0, 8.0]]), np.full([2, 2], 0.5)),
    )
    wide = ([-4.0, -4.0], [12.0, 12.0], 300)
    assert grid_kl_divergence(hidden, p, *wide).value == pytest.approx(math.log(2), abs=1e-4)
    assert grid_total_variation(hidden, p, *wide).value == pytest.approx(0.5, abs=1e-4)
    assert grid_kl_divergence(hidden, p, [-4.0, -4.0], [4.0, 4.0], 300).value < 1e-3


def test_a_target_beyond_the_grid_warns():
    with pytest.warns(UserWarning, match="of the reference's mass"):
        grid_total_variation(shifted(0.0), diagonal_normal(2, 3.0), [-4.0, -4.0], [4.0, 4.0], 100)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((diagonal_normal(3), -1.0, 1.0), r"shape \[1\] or \[2\]"),
        ((lambda x: x[:, 0], [-1.0] * 3, [1.0] * 3), r"shape \[1\] or \[2\]"),
        ((diagonal_normal(2), [1.0, -1.0], [0.0, 1.0]), "`low` must be below `high`"),
        ((diagonal_normal(2), [-1.0, -np.inf], [1.0, 1.0]), "`low` must be below `high`"),
        ((diagonal_normal(2), [-1.0] * 3, [1.0, 1.0]), "`low` and `high`"),
        ((diagonal_normal(2), -1.0, 1.0, 4), "`num`"),
        ((lambda x: tf.math.log(x[:, 0]), [-1.0, -1.0], [1.0, 1.0], 20), "NaN"),
        ((lambda x: tf.fill([len(x)], np.inf), [-1.0, -1.0], [1.0, 1.0], 20), "finite"),
        ((lambda x: x, [-1.0, -1.0], [1.0, 1.0], 20), "one number per row"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        grid_log_normalizer(*arguments)


def test_what_is_no_energy_or_reference():
    with pytest.raises(TypeError, match="`energy_fn`"):
        grid_log_normalizer(3, -1.0, 1.0)
    with pytest.raises(TypeError, match="`reference`"):
        grid_kl_divergence(diagonal_normal(2), lambda x: x, -1.0, 1.0)


@pytest.mark.parametrize("measure", [grid_kl_divergence, grid_total_variation])
def test_a_reference_of_another_shape_than_the_grid_is_refused(measure):
    """A callable energy takes any x, and a target of three coordinates would be seen along its diagonal."""
    energy = lambda x: 0.5 * tf.reduce_sum(x**2, -1)  # noqa: E731
    gaussian = lambda size: tfd.MultivariateNormalDiag(tf.zeros(size), tf.ones(size))  # noqa: E731
    with pytest.raises(ValueError, match=r"events of shape \[1\] or \[2\], got \[3\]"):
        measure(energy, gaussian(3), -9, 9)
    with pytest.raises(ValueError, match=r"must have the reference's event shape \(2,\), got \(1,\)"):
        measure(gaussian(1), gaussian(2), -9, 9)
    with pytest.raises(ValueError, match="`reference` must be over vectors or arrays"):
        measure(energy, tfd.Normal(0.0, 1.0), -9, 9)
    with pytest.raises(ValueError, match="`reference` must have an exact log_prob, got one whose log Z is not known"):
        measure(energy, ebm.EnergyDistribution(ebm.EnergyModel(ebm.networks.mlp([2], [4]))), -9, 9)
    assert measure(energy, gaussian(2), -9, 9).value == pytest.approx(0.0, abs=1e-6)


def test_where_a_narrow_target_underflows_a_model_without_density_costs_nothing():
    narrow = tfd.MultivariateNormalDiag([0.0], [0.1])
    energy = lambda x: tf.where(tf.abs(x[:, 0]) < 5.0, 50.0 * x[:, 0] ** 2, np.inf)  # noqa: E731
    assert grid_kl_divergence(energy, narrow, -6, 6).value == pytest.approx(0.0, abs=1e-6)
    wide = tfd.MultivariateNormalDiag([0.0], [2.0])
    assert grid_kl_divergence(energy, wide, -6, 6, log_normalizer=0.0).value == np.inf
