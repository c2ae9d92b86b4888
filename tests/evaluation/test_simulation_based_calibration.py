"""Ranks of simulation-based calibration: a loop, p-values of right posteriors, and faults that must be seen."""

import numpy as np
import pytest
import scipy.stats

from tfp_ebm.evaluation import simulation_based_calibration
from tfp_ebm.evaluation.simulation_based_calibration import bins_of_ranks


def problem(rows, num_draws, seed, shift=0.0, width=1.0):
    """θ ~ N(0, I₂), x ~ N(θ, I): draws of N(x/2 + shift, width²/2)."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(rows, 2))
    x = theta + rng.normal(size=(rows, 2))
    return theta, 0.5 * x + shift + width * 0.5**0.5 * rng.normal(size=(num_draws, rows, 2))


def test_ranks_agree_with_a_loop():
    theta, draws = problem(30, 7, 0)
    draws[0, 0, 0] = draws[1, 0, 0] = theta[0, 0]  # ties count half
    result = simulation_based_calibration(theta, draws)
    for row in range(30):
        for i in range(2):
            below = sum(value < theta[row, i] for value in draws[:, row, i])
            ties = sum(value == theta[row, i] for value in draws[:, row, i])
            assert result.ranks[row, i] == int(below + 0.5 * ties)
    assert result.num_draws == 7 and result.p_values.shape == (2,)
    assert result.p_value == min(1.0, 2 * result.p_values.min())


def test_p_values_of_right_posteriors_are_uniform_and_faults_are_seen():
    """600 p-values by Kolmogorov and Smirnov at .001; a shift of a fifth, a width of .8 or 1.25 of 400 rows."""
    values = np.concatenate(
        [simulation_based_calibration(*problem(200, 63, [seed, 5])).p_values for seed in range(300)]
    )
    assert scipy.stats.kstest(values, "uniform").pvalue > 0.001
    assert 0.005 < (values < 0.05).mean() * 0.5 < 0.05
    for fault in ({"shift": 0.2}, {"width": 0.75}, {"width": 1.33}):
        assert simulation_based_calibration(*problem(400, 63, 1, **fault)).p_value < 1e-3
    assert simulation_based_calibration(*problem(400, 63, 1)).p_value > 0.01


def test_bins_are_of_nearly_equal_size():
    for number, bins in ((99, 20), (100, 20), (10, 11), (63, 7)):
        sizes = np.bincount(bins_of_ranks(number, bins))
        assert len(sizes) == bins and np.ptp(sizes) <= 1 and sizes.sum() == number + 1


@pytest.mark.parametrize(
    ("theta", "draws", "options", "message"),
    [
        (np.zeros([5, 1, 1]), np.zeros([9, 5, 1]), {}, "`theta` must have shape"),
        (np.zeros([5, 1]), np.zeros([5, 1]), {}, "`draws` must have shape"),
        (np.zeros([5, 1]), np.zeros([9, 4, 1]), {}, "`draws` must have shape"),
        (np.zeros([5, 1]), np.full([9, 5, 1], np.nan), {}, "`draws` must be finite"),
        (np.zeros([5, 1]), np.zeros([9, 5, 1]), {"num_bins": 1}, "`num_bins`"),
    ],
)
def test_bad_input_is_named(theta, draws, options, message):
    with pytest.raises(ValueError, match=message):
        simulation_based_calibration(theta, draws, **options)
