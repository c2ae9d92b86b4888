"""What leaves the process: `.keras` files, the codec of distributions, and the SavedModel for TensorFlow alone."""

import contextlib
import io
import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from energies import NETWORKS, Quadratic

import tfp_ebm as ebm
from tfp_ebm import files, serialization
from tfp_ebm.files import written_atomically

tfd, tfb = tfp.distributions, tfp.bijectors
X = np.random.default_rng(0).normal([2.0, -1.0, 0.0], [1.0, 0.5, 3.0], size=(128, 3)).astype("float32")


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name, tmp_path):
    model = ebm.EnergyModel(NETWORKS[name](), event_shape=(3,), seed=(5, 6))
    model.adapt(X)
    model.compile(keras.optimizers.Adam(1e-2), ebm.losses.DenoisingScoreMatching(0.3), steps_per_execution=2)
    data = tf.data.Dataset.from_tensor_slices(X).batch(32)
    model.fit(data, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.energy(X), model.energy(X))
    np.testing.assert_array_equal(loaded.score(X), model.score(X))
    assert loaded.seed == (5, 6) and loaded.loss.sigma == 0.3 and loaded.steps_per_execution == 2
    np.testing.assert_array_equal(loaded.base.mean(), model.base.mean())
    for m in (model, loaded):
        m.fit(data, verbose=0, shuffle=False)
    np.testing.assert_array_equal(loaded.energy(X), model.energy(X))
    untrained = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert not untrained.compiled and len(untrained.weights) == len(model.weights)


DISTRIBUTIONS = {
    "normal": lambda: tfd.MultivariateNormalTriL([1.0, 2.0, 3.0], tf.linalg.diag([0.1, 1.0, 2.0])),
    "independent": lambda: tfd.Independent(tfd.StudentT(3.0, [0.0, 1.0, 2.0], 0.3), 1),
    "mixture": lambda: tfd.MixtureSameFamily(
        tfd.Categorical(probs=[0.3, 0.7]),
        tfd.MultivariateNormalDiag(tf.constant([[0.0, 0, 0], [1, 1, 1]]), [1.0, 1, 2]),
    ),
    "transformed": lambda: tfd.TransformedDistribution(
        tfd.MultivariateNormalDiag([0.0, 0.0, 0.0]), tfb.Chain([tfb.Shift([1.0, 2.0, 3.0]), tfb.Scale(0.1)])
    ),
    "fitted": lambda: ebm.fit_base(X),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_codec_and_base_measure(name, tmp_path):
    base = DISTRIBUTIONS[name]()
    twin = serialization.decode(json.loads(json.dumps(serialization.encode(base))))
    np.testing.assert_array_equal(twin.log_prob(X), base.log_prob(X))
    np.testing.assert_array_equal(twin.sample(3, seed=[0, 1]), base.sample(3, seed=[0, 1]))
    model = ebm.EnergyModel(NETWORKS["functional"](), base_measure=base)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.energy(X), model.energy(X))
    np.testing.assert_array_equal(loaded.base.log_prob(X), base.log_prob(X))


def test_image_base_survives():
    base = ebm.fit_base(np.random.default_rng(0).normal(size=(30, 2, 2, 1)))
    twin = serialization.decode(json.loads(json.dumps(serialization.encode(base))))
    x = base.sample(3, seed=[0, 0])
    np.testing.assert_array_equal(twin.log_prob(x), base.log_prob(x))


def test_codec_refuses_what_it_cannot_save(tmp_path):
    model = ebm.EnergyModel(Quadratic(), base_measure=ebm.targets.two_moons())
    with pytest.raises(TypeError, match=r"`base_measure`.*tfp\.distributions"):
        model.save(tmp_path / "model.keras")
    assert not (tmp_path / "model.keras").exists()
    with pytest.raises(TypeError, match="cannot be saved: function"):
        serialization.encode(
            tfd.TransformedDistribution(
                tfd.Normal(0.0, 1.0), tfb.Inline(forward_fn=lambda x: x, forward_min_event_ndims=0)
            )
        )


@pytest.mark.parametrize(("method", "name"), [("save", "model.keras"), ("save_weights", "model.weights.h5")])
def test_an_interrupted_save_loses_nothing(method, name, tmp_path, monkeypatch):
    path = tmp_path / name
    model = ebm.EnergyModel(Quadratic(), event_shape=(3,))
    getattr(model, method)(path)
    before = path.read_bytes()

    def interrupted(self, filepath, **kwargs):
        in_memory = isinstance(filepath, io.BytesIO)  # HDF5 ends the process where it cannot write to a disk
        assert in_memory == (method == "save_weights" and filepath is not path)
        with contextlib.nullcontext(filepath) if in_memory else open(filepath, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.Model, method, interrupted)
    with pytest.raises(KeyboardInterrupt):
        getattr(model, method)(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with pytest.raises(KeyboardInterrupt):  # control: Keras alone writes over the file
        getattr(keras.Model, method)(model, path)
    assert path.read_bytes() == b"half"


def test_weights_in_shards_are_keras_own(tmp_path):
    model = ebm.EnergyModel(Quadratic(), event_shape=(3,))
    model.save_weights(tmp_path / "a.weights.json", max_shard_size=1)
    model.load_weights(tmp_path / "a.weights.json")
    with pytest.raises(ValueError, match=r"\.weights\.h5"):
        model.save_weights(tmp_path / "a.npz")


@pytest.mark.parametrize("at_once", [True, False])
def test_atomic_directories(at_once, tmp_path, monkeypatch):
    """At once where the system can: nothing is renamed away before, so that a kill leaves the old or the new one."""
    target = tmp_path / "run"
    if at_once:
        places = [tmp_path / name for name in "ab"]
        for place in places:
            place.mkdir()
        if not files._exchange(*places):
            pytest.skip("this system cannot exchange directories")
        for place in places:
            place.rmdir()
        monkeypatch.setattr(pathlib.Path, "rename", None)
    else:
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    for content in ("first", "second"):
        with written_atomically(target) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(content)
            assert content == "first" or (target / "file").read_text() == "first"
    assert (target / "file").read_text() == "second" and list(tmp_path.iterdir()) == [target]
    with pytest.raises(RuntimeError), written_atomically(target) as temporary:
        temporary.mkdir()
        raise RuntimeError
    assert (target / "file").read_text() == "second" and list(tmp_path.iterdir()) == [target]


LOADER = """
import sys, numpy as np, tensorflow as tf

def check(model, data):
    x = tf.constant(data["x"])
    for name in ("energy", "score", "unnormalized_log_prob"):
        np.testing.assert_array_equal(getattr(model, name)(x), data[name], err_msg=name)
    np.testing.assert_array_equal(model.serve(x), data["energy"])
    np.testing.assert_array_equal(model.signatures["serving_default"](x=x)["output_0"], data["energy"])
    assert model.energy(x[:1]).shape == [1] and model.energy(tf.concat([x, x, x], 0)).shape == [3 * len(x)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        energy = model.energy(x)
    np.testing.assert_allclose(-tape.gradient(energy, x), data["score"], rtol=1e-5, atol=1e-5)
    seed = tf.constant([0, 3])
    samples = model.sample(x, seed, tf.constant(25))
    np.testing.assert_array_equal(samples, model.sample(x, seed=seed, num_steps=25))
    np.testing.assert_allclose(model.sample(x, seed, 0), x, rtol=1e-5, atol=1e-5)  # to standardised units and back
    np.testing.assert_array_equal(samples, data["samples"])
    slow = model.sample(x, seed, 1, step_size=tf.constant(1e-4))
    moved = np.abs(slow - x).max()
    assert 0 < moved < .02 < np.abs(model.sample(x, seed, 1) - x).max(), moved

for kernel in sys.argv[2:]:
    check(tf.saved_model.load(f"{sys.argv[1]}/{kernel}"), np.load(f"{sys.argv[1]}/{kernel}.npz"))
assert "tfp_ebm" not in sys.modules and "tensorflow_probability" not in sys.modules
print("whole")
"""


@pytest.mark.slow
def test_exported_models_run_with_tensorflow_alone(tmp_path):
    """Energies and scores bit-equal in a process that imports nothing but TensorFlow, at any batch size."""
    kernels = {"hmc": ebm.mcmc.HMC(0.3, 3), "adaptive_default": None}
    model = ebm.EnergyModel(NETWORKS["functional"](), base_measure=DISTRIBUTIONS["fitted"]())
    model.adapt(X)
    for name, kernel in kernels.items():
        model.export(tmp_path / name, kernel=kernel, verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / name))
        samples = loaded.sample(X, tf.constant([0, 3]), tf.constant(25))
        expected = {f: getattr(model, f)(X) for f in ("energy", "score", "unnormalized_log_prob")}
        np.savez(tmp_path / f"{name}.npz", x=X, samples=samples, **expected)
    command = [sys.executable, "-c", LOADER, str(tmp_path), *kernels]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout.strip() == "whole", result.stderr[-2000:]


def test_exported_sampler_keeps_the_target(tmp_path):
    """4000 exact draws of the Gaussian stay exact: means within 4 standard errors, variances within 4 of theirs."""
    model = ebm.EnergyModel(Quadratic(), event_shape=(3,))
    model.adapt(X)
    model.export(tmp_path / "exported", kernel=ebm.mcmc.MALA(1.0), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    mean, sd = X.mean(0), X.std(0)
    start = tf.constant(np.random.default_rng(1).normal(mean, sd, size=(4000, 3)).astype("float32"))
    x = loaded.sample(start, tf.constant([1, 2]), tf.constant(10)).numpy()
    assert np.mean(np.any(x != start, -1)) > 0.9
    assert np.all(np.abs(x.mean(0) - mean) < 4 * sd / np.sqrt(4000))
    assert np.all(np.abs(x.var(0) / sd**2 - 1) < 4 * np.sqrt(2 / 4000))
    assert not np.array_equal(x, loaded.sample(start, tf.constant([1, 3]), tf.constant(10)))


@pytest.mark.slow
def test_export_replaces_nothing_but_a_saved_model(tmp_path):
    model = ebm.EnergyModel(Quadratic(), event_shape=(3,))
    kernel = ebm.mcmc.MALA(1.0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("data")
    (tmp_path / "file").write_text("data")
    with pytest.raises(ValueError, match=r"SavedModel.*precious\.txt"):
        model.export(tmp_path / "mine", kernel=kernel, verbose=False)
    with pytest.raises(ValueError, match="is a file"):
        model.export(tmp_path / "file", kernel=kernel, verbose=False)
    assert (tmp_path / "mine" / "precious.txt").read_text() == (tmp_path / "file").read_text() == "data"
    for _ in range(2):  # a SavedModel may be replaced
        model.export(tmp_path / "model", kernel=kernel, verbose=False)
    assert (tmp_path / "model" / "saved_model.pb").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine", "model"]
    with pytest.raises(TypeError, match="no argument 'input_signature'"):
        model.export(tmp_path / "other", input_signature=[])
    with pytest.raises(TypeError, match="`kernel` must map a target"):
        model.export(tmp_path / "other", kernel="hmc")
    with pytest.raises(ValueError, match="does not know its event shape"):
        ebm.EnergyModel(Quadratic()).export(tmp_path / "other")


@pytest.mark.parametrize("name", ["m.h5", "m.weights.h5", "m.hdf5"])
def test_formats_that_cannot_be_loaded_are_not_saved(name, tmp_path):
    with pytest.raises(ValueError, match=r"`filepath` must end in \.keras"):
        ebm.EnergyModel(Quadratic(), event_shape=(3,)).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_export_with_a_kernel_of_tfp_and_by_xla(tmp_path):
    model = ebm.EnergyModel(Quadratic(), event_shape=(3,))

    def kernel(target):
        return tfp.mcmc.RandomWalkMetropolis(target)

    model.export(tmp_path / "exported", kernel=kernel, jit_compile=True, verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    assert np.any(loaded.sample(X, tf.constant([0, 0]), tf.constant(5)) != X)


@pytest.mark.long
def test_export_of_kernels_made_of_kernels(tmp_path):
    """The adaptive part is settled and each step size an argument; a kernel without one exports without it."""
    model = ebm.EnergyModel(Quadratic(), event_shape=(3,))
    model.adapt(X)
    base = tfp.distributions.MultivariateNormalDiag(tf.zeros([3]), tf.fill([3], 1.5))
    kernel = ebm.mcmc.Sequential([ebm.mcmc.Adaptive(ebm.mcmc.MALA(1e-3)), ebm.mcmc.RandomWalk(1e-3)])
    model.export(tmp_path / "local", kernel=kernel, verbose=False)
    model.export(tmp_path / "global", kernel=ebm.mcmc.IndependenceMetropolis(base), verbose=False)
    local, jumps = (tf.saved_model.load(str(tmp_path / name)) for name in ("local", "global"))
    seed, once = tf.constant([0, 3]), tf.constant(1)
    short = np.abs(local.sample(X, seed, once, step_size=(tf.constant(1e-3), tf.constant(1e-3))) - X).max()
    assert 0 < short < 0.05 < np.abs(local.sample(X, seed, once) - X).max()
    assert np.abs(jumps.sample(X, seed, once) - X).max() > 0.5
