"""The command line from files of many kinds through to samples, which come back with the moments of the data."""

import json

import numpy as np
import pytest

from tfp_ebm import datasets
from tfp_ebm.cli import main


def sigma_of(run):
    """The noise that a run was trained with, in standard deviations of the data."""
    return json.loads((run / "report.json").read_text())["settings"]["sigma"]


def mixed_table(n=5000):
    """Five correlated columns of very different units, far from zero, one skewed and one of two separate modes."""
    rng = np.random.default_rng(7)
    factor = [
        [1, 0, 0, 0, 0],
        [0.8, 0.6, 0, 0, 0],
        [-0.3, 0.5, 0.81, 0, 0],
        [0, 0.2, -0.4, 0.89, 0],
        [0.1, 0, 0.3, 0.2, 1],
    ]
    x = rng.normal(size=(n, 5)) @ np.transpose(factor)
    x[:, 2] = np.exp(0.6 * x[:, 2])
    x[:, 3] = 0.4 * x[:, 3] + np.where(rng.random(n) < 0.35, -1.5, 1.5)
    return x / x.std(0) * [1e-3, 1e3, 1.0, 50.0, 0.02] + [0.05, -2e4, 10.0, 3000.0, -0.7]


def deviations(x, samples, sigma):
    """Largest errors of mean (in sd), sd (relative) and correlation, against x blurred by σ of its sd."""
    x, samples = np.asarray(x, np.float64), np.asarray(samples, np.float64)
    mean = np.abs(samples.mean(0) - x.mean(0)) / x.std(0)
    sd = np.abs(samples.std(0) / (x.std(0) * np.sqrt(1 + sigma**2)) - 1)
    blurred = (np.corrcoef(x.T) + sigma**2 * np.eye(x.shape[1])) / (1 + sigma**2)
    return mean.max(), sd.max(), np.abs(np.corrcoef(samples.T) - blurred).max()


@pytest.mark.long
def test_a_csv_of_mixed_scales_comes_back_in_its_samples(tmp_path):
    """4000 chains: standard error .016 sd for means, .016 for correlations near 0, 1-3 % for sds. The tolerances .1,
    .06 and 10 % are 3.7 standard errors and more, so exact samples would fail for one seed in 500. The controls below,
    columns exchanged or made independent, miss one of them by far."""
    x = mixed_table()
    np.savetxt(tmp_path / "x.csv", x, delimiter=";", header="a;b;skewed;bimodal;e", comments="", fmt="%.9g")
    options = ["--quiet", "--steps", "2000", "--units", "64", "64", "-n", "4000", "--kernel", "mala"]
    assert main(["fit", str(tmp_path / "x.csv"), "--out", str(tmp_path / "run"), *options]) == 0
    samples = np.load(tmp_path / "run" / "samples.npy")
    sigma = sigma_of(tmp_path / "run")
    mean, sd, correlation = deviations(x, samples, sigma)
    assert mean < 0.1 and sd < 0.1 and correlation < 0.06
    # the two modes are there, with the weights that the mean knows of, and a valley between
    z = (samples[:, 3] - x[:, 3].mean()) / x[:, 3].std()
    valley = np.quantile((x[:, 3] - x[:, 3].mean()) / x[:, 3].std(), 0.35)
    assert np.mean(np.abs(z - valley) < 0.2) < 0.05
    assert deviations(x, samples[:, [1, 0, 2, 3, 4]], sigma)[0] > 1
    independent = np.column_stack([np.roll(column, 7 * i) for i, column in enumerate(samples.T)])
    assert deviations(x, independent, sigma)[2] > 0.5


@pytest.mark.long
def test_digits_come_back_in_their_samples(tmp_path):
    """Constant columns and a singular covariance. Pooled over 200 × 64 numbers the standard errors are
    below .01."""
    options = ["--quiet", "--dequantize", "--steps", "400", "-n", "200", "--burnin", "200", "--kernel", "mala"]
    assert main(["fit", "digits", "--out", str(tmp_path / "run"), *options]) in (0, 3)  # 3: R-hat is above its limit
    samples = np.load(tmp_path / "run" / "samples.npy").astype(np.float64)
    x = datasets.load("digits", dequantize=True, seed=0).astype(np.float64)
    sigma = sigma_of(tmp_path / "run")
    blurred = np.sqrt(x.var() + sigma**2 * x.var(0).mean())
    assert samples.shape == (200, 64)
    assert abs(samples.mean() - x.mean()) < 0.1 * x.std()
    assert abs(samples.std() / blurred - 1) < 0.1
    assert abs(np.random.default_rng(0).uniform(size=samples.shape).std() / blurred - 1) > 0.1  # the control
