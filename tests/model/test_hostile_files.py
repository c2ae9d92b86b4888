"""Files that were changed on purpose: no code of theirs runs, and no class but those of Keras, TFP and this package."""

import contextlib
import io
import json
import pathlib
import pickle
import warnings
import zipfile

import fuzzed_files
import fuzzing
import keras
import numpy as np
import pytest
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm import serialization
from tfp_ebm.cli import main, runs

tfd = tfp.distributions


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model with a base measure, noise and chains: all that goes through our codec."""
    base = tfd.MultivariateNormalDiag([0.0, 0.0], [2.0, 2.0])
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[4], seed=0), base_measure=base)
    kernel = ebm.mcmc.Sequential([ebm.mcmc.IndependenceMetropolis(base), ebm.mcmc.MALA(0.1)])
    model.compile("adam", ebm.losses.MaximumLikelihood(kernel, 2, ebm.mcmc.FromBase(base)))
    model.train_on_batch(np.ones([4, 2], "float32"))
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    model.save(path)
    return path


def changed(path, out, change, **files):
    """A copy of a `.keras` file with another configuration, and with further files."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    parts["config.json"] = json.dumps(change(config) or config).encode()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in {**parts, **files}.items():
            archive.writestr(name, content)
    return out


def everywhere(config, visit):
    """Calls `visit` for each dict in a configuration."""
    if isinstance(config, dict):
        visit(config)
    for part in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        everywhere(part, visit)


FOREIGN = (
    *("os.system", "builtins.eval", "distributions.os", "distributions.__builtins__", "distributions.__loader__"),
    *("distributions.quadrature_scheme_lognormal_quantiles", "distributions.Normal.__init__", "bijectors.Normal", ""),
    *(
        "distributions.",
        ".Normal",
        "mcmc.HamiltonianMonteCarlo",
        "distributions.tf.io.read_file",
        "normal",
        None,
        3,
        [],
    ),
)


@pytest.mark.parametrize("path", FOREIGN)
def test_the_codec_creates_no_other_class(path):
    with pytest.raises(ValueError, match=r"names .*: not created"):
        serialization.decode({"class": path, "parameters": {"loc": 0.0, "scale": 1.0}})


@pytest.mark.parametrize(
    "damaged",
    [
        {"class": "distributions.Normal"},
        {"class": "distributions.Normal", "parameters": {"mean": 0.0}},
        {"class": "distributions.Normal", "parameters": 3},
        {"array": "AAAA", "dtype": "object", "shape": [1]},
        {"array": "AAAA", "dtype": "float32", "shape": [10**12]},
        {"array": 3, "dtype": "float32", "shape": [1]},
        {"mapping": 3},
        {"dtype": "x"},
        {},
    ],
)
def test_a_damaged_distribution_is_a_value_error(damaged):
    with pytest.raises(ValueError):
        serialization.decode(damaged)


@pytest.mark.slow
def test_a_file_that_names_foreign_classes_is_refused(saved, tmp_path):
    """In each place that our codec reads: base measure, base of the chains, base of the kernel."""
    places = []

    def rename(number, config):
        found = []
        everywhere(config, lambda part: found.append(part) if "parameters" in part and "class" in part else None)
        places.append(len(found))
        found[number]["class"] = "os.system"

    for number in range(3):
        path = changed(saved, tmp_path / f"{number}.keras", lambda config, number=number: rename(number, config))
        with pytest.raises((ValueError, TypeError), match=r"os\.system.*not created"):
            keras.saving.load_model(path)
    assert places == [3, 3, 3]
    assert keras.saving.load_model(changed(saved, tmp_path / "same.keras", lambda config: None)).built  # the control


MODULES = (
    {"module": "os", "class_name": "system", "registered_name": None, "config": {"command": "true"}},
    {"module": "builtins", "class_name": "eval", "registered_name": "eval", "config": {"source": "1"}},
    {"module": "tfp_ebm.files", "class_name": "written_atomically", "registered_name": None, "config": {"path": "x"}},
    {"module": "subprocess", "class_name": "Popen", "registered_name": None, "config": {"args": "true"}},
    {"module": "builtins", "class_name": "function", "registered_name": "function", "config": "eval"},
)


@pytest.mark.parametrize("foreign", MODULES, ids=lambda foreign: foreign["module"] + "." + foreign["class_name"])
@pytest.mark.parametrize("place", ["network", "kernel", "chains"])
def test_a_file_that_names_foreign_modules_is_refused(saved, tmp_path, foreign, place):
    """In the places where our classes call Keras's `deserialize_keras_object`."""

    def replace(config):
        everywhere(config, lambda part: part.update({place: foreign}) if place in part else None)

    path = changed(saved, tmp_path / "model.keras", replace)
    with pytest.raises((ValueError, TypeError, AttributeError, ImportError)):
        keras.saving.load_model(path)


def test_a_lambda_layer_is_refused_by_all_classes_around_it(tmp_path):
    """Its function, which would leave a mark, does not run: within a model, a condition, a mixture, a joint energy."""
    mark = tmp_path / "ran"

    def energy(x, mark=str(mark)):
        import pathlib

        pathlib.Path(mark).touch()
        return x[:, 0]

    network = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(energy, output_shape=())])
    classifier = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x, output_shape=(2,))])
    models = {
        "model": ebm.EnergyModel(network),
        "joint energy": ebm.EnergyModel(ebm.networks.JointEnergy(classifier)),
        "class of it": ebm.EnergyModel(ebm.networks.JointEnergy(classifier)).given(1),
    }
    for name, model in models.items():
        model.energy(np.zeros([1, 2], "float32"))
        model.save(tmp_path / "model.keras")
        mark.unlink(missing_ok=True)
        with pytest.raises((ValueError, TypeError), match=r"(?i)lambda"):
            keras.saving.load_model(tmp_path / "model.keras")
        assert not mark.exists(), name
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=False)  # the control: it is the safe mode
    assert loaded.built


def test_a_run_with_code_is_refused_in_one_line(tmp_path, capsys):
    network = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x[:, 0], output_shape=())])
    run = tmp_path / "run"
    run.mkdir()
    for name in runs.RUN_FILES:
        (run / name).touch()
    (run / "report.json").write_text('{"format_version": 3}')
    ebm.EnergyModel(network).save(run / "model.keras")
    assert main(["sample", str(run), "-n", "2"]) == 2
    error = capsys.readouterr().err
    assert not fuzzing.fault_of(error) and "code" in error and str(run) in error


def test_names_that_lead_out_of_the_archive(saved, tmp_path):
    """Keras unpacks archives: files named ../../x or /tmp/x must not appear anywhere."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    names = ("../../escaped", "../escaped", f"{tmp_path}/escaped", "assets/../../../escaped", "assets/escaped")
    path = changed(saved, folder / "model.keras", lambda config: None, **dict.fromkeys(names, b"x"))
    before = fuzzing.names_in(tmp_path)
    # Keras warns that it skips them; Keras 3.12 fails while it writes the warning
    failures = [AttributeError] if keras.__version__.startswith("3.12.") else []
    with warnings.catch_warnings(), contextlib.suppress(*failures):
        warnings.simplefilter("ignore")
        keras.saving.load_model(path)
    assert fuzzing.names_in(tmp_path) == before
    assert not (pathlib.Path.cwd() / "escaped").exists() and not pathlib.Path("/tmp/escaped").exists()


def test_parquet_does_not_unpickle_extension_types(tmp_path):
    """pyarrow before 14.0.1 did (CVE-2023-47248)."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    mark = tmp_path / "unpickled"
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(fuzzed_files.Mark(str(mark))),
    }
    field = pyarrow.field("a", pyarrow.float64(), metadata=metadata)
    table = pyarrow.table([pyarrow.array([1.0, 2.0, 4.0])], schema=pyarrow.schema([field]))
    file = io.BytesIO()
    parquet.write_table(table, file)
    (tmp_path / "x.parquet").write_bytes(file.getvalue())
    try:
        assert ebm.datasets.load_table(tmp_path / "x.parquet").shape == (3, 1)
    except ValueError as error:
        assert "x.parquet" in str(error)
    assert not mark.exists()
    pickle.loads(pickle.dumps(fuzzed_files.Mark(str(mark))))
    assert mark.exists()  # the control: the mark works


@pytest.mark.slow
def test_an_export_holds_no_python(saved, tmp_path):
    """A SavedModel loads without this package's classes, and its functions are graphs without Python calls."""
    model = keras.saving.load_model(saved)
    model.export(tmp_path / "served", kernel=ebm.mcmc.MALA(0.1), verbose=False)
    content = (tmp_path / "served" / "saved_model.pb").read_bytes()
    assert not [name for name in (b"PyFunc", b"EagerPyFunc", b"PyFuncStateless") if name in content]
