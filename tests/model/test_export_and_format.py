"""What `export` prints and takes, log Z as an `Estimate`, and the version of the `.keras` format."""

import inspect
import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from energies import Quadratic

import tfp_ebm as ebm

DATA = pathlib.Path(__file__).parents[1] / "data"


def model():
    return ebm.EnergyModel(Quadratic(), event_shape=(3,))


def test_export_has_the_argument_order_of_keras(tmp_path):
    ours = inspect.signature(ebm.EnergyModel.export).parameters
    theirs = inspect.signature(keras.Model.export).parameters
    positional = [name for name, parameter in ours.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)] == ["self", "filepath", "format", "verbose"]
    assert ours["format"].default == theirs["format"].default == "tf_saved_model"
    assert {name for name, p in ours.items() if p.kind is p.KEYWORD_ONLY} == {"kernel", "jit_compile", "condition"}
    with pytest.raises(
        TypeError, match="`kernel` and `jit_compile` are for format 'tf_saved_model', got format 'onnx'"
    ):
        model().export(tmp_path / "other", "onnx", kernel=ebm.mcmc.MALA(1.0))


@pytest.mark.long
def test_export_prints_one_line_with_the_final_directory(tmp_path, capsys):
    model().export(tmp_path / "loud", kernel=ebm.mcmc.MALA(1.0))
    out = capsys.readouterr().out
    assert out == (
        f"Saved model at {tmp_path / 'loud'}, with the endpoints serve, energy, score, unnormalized_log_prob, sample.\n"
    )
    model().export(tmp_path / "silent", kernel=ebm.mcmc.MALA(1.0), verbose=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["noise_contrastive_0.1.keras", "persistent_0.1.keras"])
def test_a_file_of_an_older_format_is_refused(name):
    with pytest.raises(ValueError, match=r"saved in format version 1, but this tfp_ebm reads version 2.*network\.save"):
        keras.saving.load_model(DATA / name)


def test_the_format_version_is_in_the_file(tmp_path):
    """Load what was saved; the control is the same file with another version, or none, written into it."""
    saved = model()
    saved.save(tmp_path / "m.keras")
    x = np.ones([2, 3], "float32")
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "m.keras").energy(x), saved.energy(x))
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    assert config["config"]["format_version"] == 2
    for version, named in ((3, 3), (None, 1)):
        if version is None:
            del config["config"]["format_version"]
        else:
            config["config"]["format_version"] = version
        with zipfile.ZipFile(tmp_path / "other.keras", "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, json.dumps(config) if name == "config.json" else content)
        with pytest.raises(ValueError, match=f"format version {named}"):
            keras.saving.load_model(tmp_path / "other.keras")


def test_log_z_may_be_an_estimate():
    def energy(x):
        return 0.5 * tf.reduce_sum(x**2, -1)

    log_z = float(np.log(2 * np.pi))
    estimate = ebm.evaluation.Estimate(log_z, 0.1)
    p = ebm.EnergyDistribution(energy, event_shape=[2])
    given = [
        p.with_log_normalizer(estimate),
        p.with_log_normalizer(log_z),
        ebm.EnergyDistribution(energy, event_shape=[2], log_normalizer=estimate),
    ]
    for q in given:
        assert float(q.log_normalizer) == np.float32(log_z)
        assert float(q.log_prob([0.0, 0.0])) == pytest.approx(-log_z)
    normal = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [1.0, 1.0])
    by_estimate, by_number = (ebm.evaluation.kl_divergence(energy, normal, value, 100) for value in (estimate, log_z))
    assert by_estimate.value == by_number.value == pytest.approx(0.0, abs=1e-5)
    assert by_estimate.standard_error == pytest.approx(0.1, rel=1e-4) and by_number.standard_error < 1e-6
    with pytest.raises(ValueError, match="`log_normalizer` must be finite"):
        p.with_log_normalizer(ebm.evaluation.Estimate(np.nan, 0.0))
    discrepancy = ebm.evaluation.Discrepancy(0.1, 0.1, 0.5, 1.0)
    for wrong in (discrepancy, "1.8", None):
        with pytest.raises(TypeError, match="`log_normalizer` must be"):
            ebm.evaluation.kl_divergence(energy, normal, wrong, 100)
    with pytest.raises(TypeError, match="`log_normalizer` must be an Estimate or a number"):
        p.with_log_normalizer(discrepancy)


def test_a_log_density_is_no_energy_of_a_distribution():
    normal = tfp.distributions.MultivariateNormalDiag([0.0, 0.0], [1.0, 1.0])
    with pytest.raises(TypeError, match="`energy` must be an energy, got the method `log_prob`"):
        ebm.EnergyDistribution(normal.log_prob, event_shape=[2])
