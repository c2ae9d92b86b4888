"""The samplers of the command line: the default, its report and verdict, and the options of chains."""

import argparse
import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.cli import main
from tfp_ebm.cli import sample as sampling
from tfp_ebm.cli.table_report import table_report
from tfp_ebm.model import default_draws


@keras.saving.register_keras_serializable("test_samplers")
class Wells(keras.Layer):
    """−log of .3 N(−1, sd²) + .7 N(1, sd²) in standardised units, up to a constant."""

    def __init__(self, sd=0.2, **kwargs):
        super().__init__(**kwargs)
        self.sd = sd

    def call(self, z):
        parts = [tf.math.log(share) - 0.5 * ((z[..., 0] - loc) / self.sd) ** 2 for share, loc in ((0.3, -1), (0.7, 1))]
        return -tf.reduce_logsumexp(tf.stack(parts, -1), -1)


def wells(sd=0.2):
    model = ebm.EnergyModel(Wells(sd), event_shape=[1])
    model.adapt(np.float32([[-5.0], [5.0]]))
    return model


def options_of(**given):
    settings = dict.fromkeys(("sampler", "step_size", "num_chains", "burnin", "thin"))
    return argparse.Namespace(**{**settings, "num_samples": 2000, "seed": 0, "quiet": True, **given})


def drawn(model, **given):
    options = options_of(**given)
    sampling.check_sampling_options(options)
    return *sampling.draw(model, sampling.kernel_for(model, options), options), options


@pytest.mark.slow
def test_particles_are_the_default_and_report_log_z_and_shares():
    """log Z = log(.2 √2π), in x as in standardised units, within 5 of its standard errors, and shares of .3 and .7
    within 5 of theirs; each of these is small."""
    samples, report, options = drawn(wells())
    assert options.sampler == report["sampler"] == "smc" and options.burnin is None and samples.shape == (2000, 1)
    truth = np.log(0.2 * np.sqrt(2 * np.pi))
    assert abs(report["log_normalizer"] - truth) < 5 * report["log_normalizer_standard_error"] < 0.25
    first, second = report["clusters"]
    assert abs(first["share"] - 0.7) < 5 * first["standard_error"] < 0.2
    assert abs(first["center"][0] - 5.0) < 0.2 and abs(second["center"][0] + 5.0) < 0.2
    assert report["trouble"] == [] and report["num_nonfinite"] == 0
    json.dumps(report)
    few, _, _ = drawn(wells(), num_samples=3)
    assert few.shape == (3, 1)


@pytest.mark.long
def test_an_option_of_chains_gives_chains(monkeypatch):
    for given in ({"thin": 2}, {"burnin": 20}, {"num_chains": 30}, {"step_size": 0.1}):
        options = options_of(**given)
        sampling.kernel_for(wells(), options)
        assert options.sampler == "hmc" and options.burnin == given.get("burnin", 300)
    _, report, _ = drawn(wells(), sampler="mala", num_samples=60)
    assert report["sampler"] == "mala" and "max_rhat" in report
    with pytest.raises(ValueError, match="`--thin` is for chains"):
        drawn(wells(), sampler="smc", thin=2)
    monkeypatch.setattr(default_draws, "MAX_COORDINATES", 0)  # more coordinates than particles are the default for
    options = options_of()
    sampling.kernel_for(wells(), options)
    assert options.sampler == "hmc"


@pytest.mark.slow
def test_trouble_is_a_warning_and_a_failure(monkeypatch):
    sentence = "The draws are not to be trusted."
    rows = np.random.default_rng(0).normal(size=(200, 1))
    columns = [{"name": "0", "kind": "continuous", "treatment": "kept"}]
    report = table_report(rows[:100], rows[100:], columns, sampling={"trouble": [sentence]})
    assert report["status"] == "failed" and report["failures"] == [sentence]
    assert table_report(rows[:100], rows[100:], columns, sampling={"trouble": []})["status"] == "ok"
    draw_all = ebm.EnergyDistribution.draw

    def in_trouble(self, *given, **how):
        return dataclasses.replace(draw_all(self, *given, **how), trouble=(sentence,))

    monkeypatch.setattr(ebm.EnergyDistribution, "draw", in_trouble)
    with pytest.warns(UserWarning, match=f"the samples may not have the model's distribution. {sentence} .*--loss nll"):
        _, found, _ = drawn(wells(), num_samples=10)
    assert found["trouble"] == [sentence]


@pytest.mark.long
def test_a_run_by_particles(tmp_path, capsys):
    """The files of a run, its report, and `sample` with the same seed, which draws the same."""
    x = np.random.default_rng(0).normal(size=(400, 2)) @ [[1.0, 0.5], [0.0, 1.0]]
    np.save(tmp_path / "x.npy", x)
    run, again = tmp_path / "run", tmp_path / "again.npy"
    small = ["--quiet", "--steps", "20", "--units", "8", "--batch-size", "32", "--loss", "dsm", "-n", "30"]
    assert main(["fit", str(tmp_path / "x.npy"), "--out", str(run), *small[1:]]) in (0, 3)
    report = json.loads((run / "report.json").read_text())
    assert report["settings"]["sampler"] == report["draws"]["sampler"] == "smc"
    # the grid's log Z of the same model, with an error of its own
    errors = np.hypot(report["draws"]["log_normalizer_standard_error"], 0.01)
    assert abs(report["draws"]["log_normalizer"] - report["held_out"]["log_normalizer"]) < 5 * errors < 0.5
    assert "log Z" in capsys.readouterr().out
    assert main(["sample", str(run), "--seed", "0", "-n", "30", "--quiet", "--out", str(again)]) == 0
    np.testing.assert_array_equal(np.load(again), np.load(run / "samples.npy"))
    assert main(["sample", str(run), "-n", "1", "--sampler", "smc", "--burnin", "3"]) == 2
    assert "`--burnin` is for chains" in capsys.readouterr().err
