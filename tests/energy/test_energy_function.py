"""What an `EnergyModel` computes: energies, scores, units and base, against closed forms and finite differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from energies import NETWORKS, Quadratic, Subclassed, functional

import tfp_ebm as ebm
from tfp_ebm.energy.moments import DataMoments

tfd = tfp.distributions


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_any_leading_dimensions(name):
    network = NETWORKS[name]()
    model = ebm.EnergyModel(network, event_shape=(3,))
    x = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    flat = np.reshape(network(x.reshape(10, 3)), -1)
    for energy in (model, model.energy):
        np.testing.assert_allclose(energy(x), flat.reshape(2, 5), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(energy(x[0]), flat[:5], rtol=1e-5, atol=1e-6)
    assert model.energy(x[0, 0]).shape == ()
    assert model.score(x).shape == x.shape and model.score(x[0, 0]).shape == (3,)
    np.testing.assert_array_equal(model.unnormalized_log_prob(x), -model.energy(x))
    np.testing.assert_allclose(model.predict(x.reshape(10, 3), verbose=0), flat, rtol=1e-5, atol=1e-6)


def test_event_shape_is_learned_from_the_first_batch():
    for call in (lambda m, x: m(x), lambda m, x: m.energy(x), lambda m, x: m.score(x), lambda m, x: m.adapt(x)):
        model = ebm.EnergyModel(Subclassed())
        with pytest.raises(ValueError, match="does not know its event shape"):
            _ = model.event_shape
        call(model, np.random.default_rng(0).normal(size=(4, 3)).astype("float32"))
        assert model.event_shape == (3,) and model.built


def test_many_models_are_no_reason_to_warn(caplog):
    with caplog.at_level("WARNING", "tensorflow"):
        for _ in range(7):
            ebm.EnergyModel(ebm.networks.mlp([2], units=[3], seed=0)).energy(np.zeros([1, 2]))
    assert not caplog.records


def test_score_is_minus_the_gradient():
    """Central differences in float64; the planted mistake, the gradient itself, is 2 ‖s‖ away."""
    model = ebm.EnergyModel(functional("float64"))
    model.adapt(np.random.default_rng(1).normal([1.0, -2.0, 0.0], [3.0, 0.1, 1.0], size=(50, 3)))
    x, h = np.random.default_rng(0).normal(size=(4, 3)), 1e-5
    steps = h * np.eye(3)
    slope = np.stack([(model.energy(x + step) - model.energy(x - step)) / (2 * h) for step in steps], -1)
    np.testing.assert_allclose(model.score(x), -slope, rtol=1e-6, atol=1e-8)
    assert np.abs(model.score(x) - slope).max() > 1e-2


def test_units_carry_the_jacobian():
    """E(x) = ½Σ((x−m)/s)² + Σ log s for the unit quadratic: exp(−E) then integrates to (2π)^(d/2) in x as in z."""
    x = np.random.default_rng(0).normal([5.0, -1.0], [1e3, 1e-3], size=(1000, 2))
    model = ebm.EnergyModel(Quadratic(dtype="float64"), event_shape=(2,))
    model.adapt(x)
    mean, sd = x.mean(0), x.std(0)
    np.testing.assert_allclose(model.energy(x), 0.5 * np.sum(((x - mean) / sd) ** 2, -1) + np.log(sd).sum(), rtol=1e-9)
    normal = tfd.MultivariateNormalDiag(mean, sd)
    np.testing.assert_allclose(normal.log_prob(x), model.unnormalized_log_prob(x) - np.log(2 * np.pi), rtol=1e-9)
    np.testing.assert_allclose(model.score(x), -(x - mean) / sd**2, rtol=1e-9)


def test_base_measure_tilts_in_x():
    """E(x) = network(z) − log base(x) exactly, whatever the units."""
    base = tfd.MultivariateNormalDiag(np.array([1.0, 2.0]), np.array([0.5, 3.0]))
    network = Quadratic(dtype="float64")
    model = ebm.EnergyModel(network, base_measure=base)
    x = np.random.default_rng(0).normal(size=(6, 2))
    for adapted in (False, True):
        if adapted:
            model.adapt(np.random.default_rng(1).normal(3.0, 2.0, size=(100, 2)))
        z = model.standardization.to_z(tf.constant(x))
        np.testing.assert_allclose(
            model.energy(x), network(z) + model.standardization.log_scale_sum() * 0 - base.log_prob(x), rtol=1e-12
        )
        np.testing.assert_allclose(
            model.energy_function(z) + model.standardization.log_scale_sum(), model.energy(x), rtol=1e-12
        )
        assert len(model.energy_function.terms) == 2
    assert model.base is base


def test_adapt_reads_every_kind_of_data_alike():
    x = np.random.default_rng(0).normal([1e6, 0.0, -3.0], [1.0, 1e-3, 50.0], size=(700, 3))

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 7

        def __getitem__(self, i):
            return (x[100 * i : 100 * i + 100],)

    sources = {
        "array": x,
        "list": x.tolist(),
        "tensor": tf.constant(x),
        "dataset": tf.data.Dataset.from_tensor_slices(x).batch(64),
        "dataset of tuples": tf.data.Dataset.from_tensor_slices((x, x[:, 0])).batch(100),
        "PyDataset": Batches(),
        "generator": (x[i : i + 50] for i in range(0, 700, 50)),
    }
    for name, source in sources.items():
        model = ebm.EnergyModel(Quadratic(dtype="float64"))
        model.adapt(source)
        np.testing.assert_allclose(model.standardization.loc, x.mean(0), rtol=1e-12, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(model.standardization.scale, x.std(0), rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(model.base.covariance(), np.cov(x.T, bias=True), rtol=1e-6, atol=1e-6, err_msg=name)


def test_adapt_names_constant_coordinates_once_and_keeps_their_scale():
    x = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    x[:, [1, 3]] = 7.1
    model = ebm.EnergyModel(Quadratic(), event_shape=(4,))
    with pytest.warns(UserWarning) as record:
        model.adapt(x)
    assert [str(w.message) for w in record] == ["2 of 4 coordinates are constant and keep scale 1: 1, 3."]
    np.testing.assert_array_equal(model.standardization.scale.numpy()[[1, 3]], 1.0)
    np.testing.assert_allclose(np.diag(model.base.covariance())[[1, 3]], 1.0, rtol=1e-6)
    assert np.isfinite(model.energy(x)).all()


def test_adapt_shrinks_a_singular_covariance_and_says_so():
    x = np.random.default_rng(0).normal(size=(100, 2)).astype("float32")
    model = ebm.EnergyModel(Quadratic(), event_shape=(3,))
    with pytest.warns(UserWarning, match=r"singular.*shrunk by 1\.0e-04"):
        model.adapt(np.concatenate([x, x[:, :1]], 1))
    assert np.isfinite(model.base.log_prob(model.base.sample(5, seed=[0, 0]))).all()


def test_images_and_many_coordinates_have_a_base():
    images = np.random.default_rng(0).uniform(size=(40, 8, 8, 1)).astype("float32")
    base = ebm.fit_base(images[:, :2, :2])
    assert base.event_shape == (2, 2, 1) and base.sample(3, seed=[0, 0]).shape == (3, 2, 2, 1)
    wide = ebm.fit_base(np.random.default_rng(0).normal(2.0, 3.0, size=(900, 600)))
    assert isinstance(wide, tfd.MultivariateNormalDiag)
    # 600 standard deviations of 900 rows: each has standard error 3/√1800 = .07; 5 of them is false once in 3000 such
    # tests
    np.testing.assert_allclose(wide.stddev(), 3.0, atol=0.36)


@pytest.mark.parametrize("dimension", [2, 600])
def test_a_base_may_be_wider_than_the_data(dimension):
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(900, dimension))
    narrow, wide = ebm.fit_base(x), ebm.fit_base(x, width=2.0)
    np.testing.assert_array_equal(wide.mean(), narrow.mean())
    np.testing.assert_allclose(wide.covariance(), 4 * narrow.covariance(), rtol=1e-6)
    for bad, error in ((0.0, ValueError), ("wide", TypeError), (np.inf, ValueError)):
        with pytest.raises(error, match="`width` must be a positive number, got"):
            ebm.fit_base(x, width=bad)


@pytest.mark.parametrize("split", [1, 37, 99])
def test_moments_merge_like_numpy(split):
    x = np.random.default_rng(0).normal(1e5, 1e-2, size=(100, 3))
    moments = DataMoments.of([x[:split], x[split:]])
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.comoment / 100, np.cov(x.T, bias=True), rtol=1e-6, atol=1e-12)


def test_dtype_follows_the_network():
    model = ebm.EnergyModel(functional("float64"))
    x = np.random.default_rng(0).normal(size=(4, 3))
    assert model.energy(x).dtype == tf.float64 and model(x).dtype == tf.float64
    assert np.abs(model.energy(x) - model.energy(x.astype("float32").astype("float64"))).max() > 0
    with pytest.raises(TypeError, match=r"`x`.*float64.*float32"):
        model.energy(tf.constant(x, tf.float32))
    with pytest.raises(TypeError, match=r"`base_measure`.*float64.*float32"):
        ebm.EnergyModel(functional("float64"), base_measure=tfd.MultivariateNormalDiag([0.0, 0.0, 0.0], [1.0] * 3))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_energies_and_inputs_in_float32(policy):
    network = ebm.networks.mlp([2], units=[16], dtype=policy, seed=0)
    twin = ebm.networks.mlp([2], units=[16], seed=0)
    model, reference = ebm.EnergyModel(network), ebm.EnergyModel(twin)
    # At 1e5 ± 1 half precision sees nothing (float16 overflows), so only inputs standardised in float32 come through.
    x = np.random.default_rng(0).normal(1e5, 1.0, size=(200, 2)).astype("float32")
    model.adapt(x), reference.adapt(x)
    assert model.energy(x).dtype == tf.float32 and model.dtype == "float32"
    np.testing.assert_allclose(model.energy(x), reference.energy(x), atol=0.05)
    assert np.std(model.energy(x)) > 0.1


BAD_NETWORKS = {
    "vector output": (lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), ValueError, r"\(None, 2\)"),
    "matrix output": (
        lambda: keras.Sequential([keras.Input((3, 3)), keras.layers.Dense(1)]),
        ValueError,
        "one energy per row",
    ),
    "function": (lambda: lambda x: x, TypeError, "`network` must be a Keras model or layer, got function"),
}


@pytest.mark.parametrize("name", BAD_NETWORKS)
def test_bad_networks(name):
    make, error, message = BAD_NETWORKS[name]
    with pytest.raises(error, match=message):
        ebm.EnergyModel(make())


def test_dtype_is_the_networks():
    with pytest.raises(TypeError, match=r"`dtype`.*float64"):
        ebm.EnergyModel(functional(), dtype="float64")


BAD_DATA = {
    "nan": (np.array([[0.0, np.nan], [1.0, 2.0]]), ValueError, r"`x` must be finite: 1 of its 4 .* index \(0, 1\)"),
    "inf": (np.array([[0.0, 1.0], [-np.inf, np.inf]]), ValueError, r"2 of its 4 .* index \(1, 0\) \(-inf\)"),
    "rank": (np.zeros(4), ValueError, r"`x` must have shape \[rows, 2\], got \(4,\)"),
    "event": (np.zeros((4, 3)), ValueError, r"`x` must have shape \[rows, 2\], got \(4, 3\)"),
    "empty": (np.zeros((0, 2)), ValueError, "`x` must not be empty"),
    "strings": (np.array([["a", "b"]]), TypeError, "`x` must hold real numbers"),
    "objects": (np.array([[None, 1.0]]), TypeError, "`x` must hold real numbers"),
    "ragged": ([[1.0], [1.0, 2.0]], ValueError, "rectangular"),
    "constant": (np.ones((9, 2)), ValueError, "`x` must vary, but all its 2 coordinates are constant"),
    "beyond float32": (
        np.array([[1e9, 1.0], [1e9 + 1, 2.0]]),
        ValueError,
        "float32 cannot resolve `x` in coordinates 0",
    ),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_refused_and_nothing_changes(name):
    x, error, message = BAD_DATA[name]
    model = ebm.EnergyModel(Quadratic(), event_shape=(2,))
    model.adapt(np.random.default_rng(0).normal(size=(10, 2)))
    before = [weight.numpy().copy() for weight in model.weights]
    with pytest.raises(error, match=message):
        model.adapt(x)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_base_is_an_honest_error_before_there_is_one():
    with pytest.raises(ValueError, match="no base distribution yet: call `adapt"):
        _ = ebm.EnergyModel(Quadratic(), event_shape=(2,)).base


@pytest.mark.parametrize("seed", [None, 1.5, "a", [1, 2, 3], (1.0, 2.0)])
def test_bad_seeds(seed):
    with pytest.raises((TypeError, ValueError), match="`seed` must be an int or two ints"):
        ebm.EnergyModel(Quadratic(), seed=seed)
