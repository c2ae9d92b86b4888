"""Autoregressive energies: closed forms, normalisation, masks, gradients, samples, files."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from scipy import stats

import tfp_ebm as ebm
from tfp_ebm.losses import NegativeLogLikelihood
from tfp_ebm.networks import autoregressive, masked
from tfp_ebm.networks.lattice import invert_trapezoid, lattice
from tfp_ebm.networks.normalized import DistributionEnergy, MixtureEnergy, WarpedEnergy, in_blocks

tfd = tfp.distributions
SEED = tf.constant([0, 5])


def random_network(size=3, dtype="float64", **options):
    """A network far from its start: random proposals and energies."""
    network = autoregressive([size], units=[12, 12], dtype=dtype, seed=3, **options)
    rng = np.random.default_rng(4)
    network.trunk.last.kernel.assign(0.1 * rng.normal(size=network.trunk.last.kernel.shape))
    network.trunk.last.bias.assign(0.3 * rng.normal(size=network.trunk.last.bias.shape))
    network.trunk.skip.kernel.assign(0.1 * rng.normal(size=network.trunk.skip.kernel.shape))
    return network


def log_conditionals(network, x, num_nodes=None):
    """log p(xᵢ | …) of each coordinate, in the coordinates' own order."""
    order = np.array(network.order)
    values = network.log_conditionals(tf.gather(x, order, axis=1), num_nodes or network.num_nodes[1])
    return tf.gather(values, np.argsort(order), axis=1)


def gaussian_mixture(size, number, dtype=np.float64):
    rng = np.random.default_rng(7)
    factor = rng.normal(size=(number, size, size))
    covariance = factor @ factor.transpose(0, 2, 1) + 0.2 * np.eye(size)
    return tfd.MixtureSameFamily(
        tfd.Categorical(probs=rng.dirichlet(np.ones(number)).astype(dtype)),
        tfd.MultivariateNormalTriL(rng.normal(size=(number, size)).astype(dtype), np.linalg.cholesky(covariance)),
    )


@pytest.mark.parametrize(("size", "number", "order"), [(1, 2, [0]), (3, 1, [2, 0, 1]), (10, 4, None)])
def test_a_mixture_as_proposal_is_the_mixture_at_the_start(size, number, order):
    """The conditionals in closed form, in float64: the energy is −log of the mixture to rounding."""
    mixture = gaussian_mixture(size, number)
    network = autoregressive([size], units=[8], order=order, proposal=mixture, dtype="float64")
    x = mixture.sample(50, seed=SEED)
    np.testing.assert_allclose(-network(x), mixture.log_prob(x), rtol=1e-10, atol=1e-9)
    # planted: the order of the coordinates left out of account
    if order is not None and size > 1:
        network.order = tuple(range(size))
        assert np.abs(-network(x) - mixture.log_prob(x)).max() > 0.1


def conditional_density(network, x, i, places):
    """p(xᵢ = place | x_<i) for one row x, by the network itself."""
    rows = np.repeat(x[None], len(places), 0)
    rows[:, i] = places
    return np.exp(log_conditionals(network, tf.constant(rows)).numpy()[:, i])


@pytest.mark.parametrize("number", [1, 3])
def test_every_conditional_integrates_to_one(number):
    """The trapezoid rule on ±2000 in a sinh lattice of 801 places, an independent quadrature."""
    network = random_network(num_components=number)
    x = np.random.default_rng(1).normal(size=3)
    v = np.linspace(-np.arcsinh(2000.0), np.arcsinh(2000.0), 801)
    for i in range(3):
        density = conditional_density(network, x, i, np.sinh(v))
        assert abs(np.trapezoid(density * np.cosh(v), v) - 1.0) < 1e-5
    # planted: a lattice too coarse is seen
    network.num_nodes = (32, 6)
    errors = [abs(np.trapezoid(conditional_density(network, x, i, np.sinh(v)) * np.cosh(v), v) - 1.0) for i in range(3)]
    assert max(errors) > 1e-2


@pytest.mark.slow
def test_the_density_of_two_columns_integrates_to_one():
    """∫∫ exp(−E) by a rule of 401² places in both coordinates at once."""
    network = random_network(2, num_components=2, order=[1, 0])
    v = np.linspace(-np.arcsinh(500.0), np.arcsinh(500.0), 401)
    x = np.stack(np.meshgrid(np.sinh(v), np.sinh(v), indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(-network(tf.constant(x)).numpy()).reshape(401, 401) * np.cosh(v) * np.cosh(v)[:, None]
    assert abs(np.trapezoid(np.trapezoid(density, v), v) - 1.0) < 1e-4


def influence(network, size):
    """Which conditional log p(xᵢ | …) depends on which x_j, `[i, j]`."""
    x = tf.constant(np.random.default_rng(2).normal(size=(4, size)))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        total = log_conditionals(network, x)
    return np.abs(tape.batch_jacobian(total, x, experimental_use_pfor=False)).max(0) > 1e-12


@pytest.mark.parametrize("num_frequencies", [0, 3])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_each_coordinate_sees_those_before_it_alone(order, num_frequencies, monkeypatch):
    network = random_network(4, order=order, num_frequencies=num_frequencies)
    places = np.argsort(order)
    allowed = places[None, :] <= places[:, None]
    np.testing.assert_array_equal(influence(network, 4), allowed)
    # planted: the mask off by one
    monkeypatch.setattr(masked, "sees", lambda places, degrees: places[:, None] <= degrees[None, :] + 1)
    assert (influence(random_network(4, order=order, num_frequencies=num_frequencies), 4) & ~allowed).any()


def spikes(num_rows):
    """Rows near ten points with deviations of .02, which tempt a network to hide mass between the nodes."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(10, 2))
    return (points[rng.integers(10, size=num_rows)] + 0.02 * rng.normal(size=(num_rows, 2))).astype("float32")


def quadrature_error_after_training(num_nodes):
    """Mean log p by the training's lattice, its shifts averaged, less that by 4096 nodes."""
    x = spikes(512)
    network = autoregressive([2], units=[32], num_nodes=num_nodes, seed=0)
    model = ebm.EnergyModel(network)
    model.compile(keras.optimizers.Adam(2e-2), NegativeLogLikelihood(), steps_per_execution=8, jit_compile=True)
    model.fit(x, batch_size=128, epochs=60, verbose=0)
    trained = np.mean([-network.training_energy(x, tf.constant([0, i])) for i in range(20)])
    return trained - float(tf.reduce_mean(-network(x, num_nodes=4096)))


@pytest.mark.long
def test_training_hides_no_mass_between_the_nodes(monkeypatch):
    """The gradient of the energies reaches the proposals, and yet the normaliser stays exact, also on spikes.

    Planted: a lattice of few nodes that is not shifted, which makes "log p" of the training too good.
    """
    assert abs(quadrature_error_after_training((64, 128))) < 5e-3
    fixed = lattice
    module = importlib.import_module("tfp_ebm.networks.autoregressive")
    monkeypatch.setattr(module, "lattice", lambda family, number, _: fixed(family, number, tf.constant(0.5)))
    assert quadrature_error_after_training((8, 128)) > 0.1


@pytest.mark.parametrize("family", ["logistic", "normal"])
def test_the_lattice_is_exact_on_smooth_functions_and_unbiased_on_all(family):
    variable = {"logistic": stats.logistic, "normal": stats.norm}[family]
    grid = lattice(family, 48, tf.constant(0.5, tf.float64))
    weights = np.exp(grid.log_weights)
    for power in (0, 2, 4):
        np.testing.assert_allclose(np.sum(weights * grid.nodes.numpy() ** power), variable.moment(power), rtol=1e-5)
    # a step, by a coarse lattice: the mean over all shifts is the probability
    shifts = tf.constant((np.arange(2000) + 0.5) / 2000)
    coarse = lattice(family, 8, shifts)
    means = np.sum(np.exp(coarse.log_weights) * (coarse.nodes.numpy() > 0.7), -1)
    np.testing.assert_allclose(means.mean(), variable.sf(0.7), rtol=1e-3)
    assert abs(means[1000] - variable.sf(0.7)) > 0.02  # planted: one fixed shift


def test_the_energy_is_bounded_far_out():
    network = random_network(2)
    x = tf.constant([[1e3, -1e3], [0.0, 0.0]], tf.float64)
    network.trunk.last.kernel.assign(np.zeros(network.trunk.last.kernel.shape))
    network.trunk.skip.kernel.assign(np.zeros(network.trunk.skip.kernel.shape))
    bias = np.zeros((2, network.trunk.num_outputs))
    network.trunk.last.bias.assign(bias.ravel())
    before = log_conditionals(network, x)
    bias[:, : network.num_functions] = 1e3
    network.trunk.last.bias.assign(bias.ravel())
    after = log_conditionals(network, x)
    assert np.isfinite(after).all() and 1.0 < np.abs(after - before).max() <= 20.0


def smallest_p_value(network, samples):
    """Kolmogorov-Smirnov tests of u = F(xᵢ | x_<i), which is uniform for exact samples; F by 201 places."""
    v = np.linspace(-np.arcsinh(300.0), np.arcsinh(300.0), 201)
    grid, values = np.sinh(v), []
    for i in range(samples.shape[1]):
        rows = np.repeat(samples[:, None], len(v), 1)
        rows[:, :, i] = grid
        blocks = np.split(rows.reshape(-1, samples.shape[1]), 20)
        logs = [log_conditionals(network, tf.constant(block)).numpy()[:, i] for block in blocks]
        density = np.exp(np.concatenate(logs)).reshape(len(samples), -1) * np.cosh(v)
        below = np.cumsum(density, 1) - 0.5 * density
        u = [np.interp(x[i], grid, f / f[-1]) for x, f in zip(samples, below, strict=True)]
        values.append(stats.kstest(u, "uniform").pvalue)
    return min(values)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_components": 3, "num_frequencies": 2}, {"order": [1, 0]}])
def test_samples_have_the_density(options):
    """100 samples: below .001 by chance once in 500; samples moved by .5 deviations fail."""
    network = random_network(2, **options)
    samples = network.draw(100, SEED).numpy()
    assert smallest_p_value(network, samples) > 1e-3
    assert smallest_p_value(network, samples + 0.5 * samples.std(0)) < 1e-3
    np.testing.assert_array_equal(samples, network.draw(100, SEED))
    assert np.abs(samples - network.draw(100, SEED + 1)).min() > 0


def test_a_gaussian_mixture_is_sampled_by_its_conditionals():
    """Mean and covariance of 5000 samples within 5 standard errors (false alarm below 1e-5 for each number)."""
    mixture = gaussian_mixture(3, 3)
    network = autoregressive([3], units=[8], order=[1, 2, 0], proposal=mixture, dtype="float64")
    x = network.draw(5_000, SEED).numpy()
    error = x.std(0) / np.sqrt(len(x))
    assert (np.abs(x.mean(0) - mixture.mean()) < 5 * error).all()
    products = (x - x.mean(0))[:, :, None] * (x - x.mean(0))[:, None, :]
    truth = mixture.covariance().numpy()
    assert (np.abs(products.mean(0) - truth) < 5 * products.std(0) / np.sqrt(len(x))).all()
    u = stats.kstest(mixture.log_prob(x), np.asarray(mixture.log_prob(mixture.sample(5_000, seed=SEED)))).pvalue
    assert u > 1e-4


def test_quantiles_of_a_linear_density():
    """Density x on [0, 1]: the quantile of v is √v, exactly."""
    nodes = tf.constant([[0.0, 0.25, 0.5, 0.75, 1.0]], tf.float64)
    v = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    drawn = invert_trapezoid(tf.repeat(nodes, 5, 0), tf.repeat(nodes, 5, 0), tf.constant(v))
    np.testing.assert_allclose(drawn, np.sqrt(v), atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores_files_and_xla(dtype, tmp_path):
    network = random_network(3, dtype)
    model = ebm.EnergyModel(network)
    model.standardization.loc.assign([1.0, 2.0, 3.0])
    model.standardization.scale.assign([2.0, 0.5, 1.0])
    assert model.event_shape == (3,) and float(model.log_normalizer) == 0.0
    x = np.random.default_rng(5).normal(size=(6, 3)).astype(dtype)
    p = ebm.EnergyDistribution(model)
    np.testing.assert_array_equal(p.log_prob(x), -model.energy(x))
    step = 1e-5 if dtype == "float64" else 1e-2
    slope = [
        (model.energy(x + step * unit) - model.energy(x - step * unit)) / (2 * step) for unit in np.eye(3, dtype=dtype)
    ]
    np.testing.assert_allclose(
        model.score(x), -np.stack(slope, -1), rtol=1e-3, atol=1e-6 if dtype == "float64" else 0.02
    )
    compiled = tf.function(model.energy_function, jit_compile=True)
    z = model.standardization.to_z(tf.constant(x))
    np.testing.assert_allclose(compiled(z), model.energy_function(z), rtol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.energy(x), model.energy(x))
    samples = p.sample(4, seed=1)
    np.testing.assert_array_equal(ebm.EnergyDistribution(loaded).sample(4, seed=1), samples)
    np.testing.assert_array_equal(p.sample([2, 2], seed=1), tf.reshape(samples, [2, 2, 3]))


def test_events_of_any_rank():
    network = random_network(4, "float32")
    image = autoregressive([2, 2, 1], units=[12, 12], seed=3)
    image.set_weights(network.get_weights())
    x = np.random.default_rng(6).normal(size=(5, 4)).astype("float32")
    np.testing.assert_array_equal(image(x.reshape(5, 2, 2, 1)), network(x))
    assert image.draw(3, SEED).shape == (3, 2, 2, 1)


@pytest.mark.parametrize("number", [1, 5, 7, 12])
def test_blocks_change_nothing(number):
    x = tf.constant(np.random.default_rng(8).normal(size=(number, 2)))
    dynamic = tf.function(lambda x: in_blocks(tf.exp, x, 5), input_signature=[tf.TensorSpec((None, 2), tf.float64)])
    for values in (in_blocks(tf.exp, x, 5), dynamic(x)):
        np.testing.assert_allclose(values, np.exp(x), rtol=1e-15)


def test_mixtures_of_normalised_energies():
    parts = [DistributionEnergy(tfd.MultivariateNormalDiag([m, 0.0], [s, 1.0])) for m, s in ((-3.0, 1.0), (3.0, 0.5))]
    mixture = MixtureEnergy(parts, [0.3, 0.7])
    truth = tfd.MixtureSameFamily(
        tfd.Categorical(probs=[0.3, 0.7]),
        tfd.MultivariateNormalDiag([[-3.0, 0.0], [3.0, 0.0]], [[1.0, 1.0], [0.5, 1.0]]),
    )
    x = mixture.draw(20_000, SEED)
    np.testing.assert_allclose(-mixture(x[:100]), truth.log_prob(x[:100]), rtol=1e-5)
    share = np.mean(x[:, 0] > 0)
    assert abs(share - 0.7) < 4 * np.sqrt(0.21 / 20_000)
    first = np.mean(x[:1000, 0] > 0)  # the parts come in random order
    assert abs(first - 0.7) < 4 * np.sqrt(0.21 / 1000)


def test_warped_coordinates_carry_their_jacobian():
    """x = sinh(y), y normal: against the density of the transformed distribution; 1e30 is finite."""
    inner = DistributionEnergy(tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2)))
    network = WarpedEnergy(inner, [True, False], dtype="float64")
    x = np.random.default_rng(9).normal(size=(5, 2)) * 3
    truth = stats.norm.logpdf(np.arcsinh(x[:, 0])) - 0.5 * np.log1p(x[:, 0] ** 2) + stats.norm.logpdf(x[:, 1])
    np.testing.assert_allclose(-network(x), truth, rtol=1e-10)
    assert np.isfinite(network(np.array([[1e30, 0.0], [-1e30, 0.0]]))).all()
    samples = network.draw(5000, SEED).numpy()
    assert stats.kstest(np.arcsinh(samples[:, 0]), "norm").pvalue > 1e-4


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"order": [0, 0]}, ValueError, "`order`"),
        ({"units": [8, 9]}, ValueError, "`units`"),
        ({"dropout": 2.0}, ValueError, "`dropout`"),
        ({"num_components": 0}, ValueError, "`num_components`"),
        ({"proposal": tfd.Normal(0.0, 1.0)}, TypeError, "`proposal`"),
        ({"proposal": tfd.MultivariateNormalDiag(np.zeros(3))}, ValueError, "`proposal`"),
    ],
)
def test_refusals(options, error, name):
    with pytest.raises(error, match=name):
        autoregressive([2], **options)
