"""Every target: its density integrates to one, its sampler draws from it, its moments and gradients are right."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from laws import mixture

from tfp_ebm import targets

tfd = tfp.distributions
NAMES = [name for name in targets.__all__ if name not in ("Target", "gmm40", "many_well", "two_widths")]  # on the plane
SMOOTH = [name for name in NAMES if name != "checkerboard"]


def bent(loc=0.0, scale=1.0, bend=0.0, shift=0.0, width=1.0, flare=0.0):
    """A chart of the plane in which a bent Gaussian is round: (to the plane, from the plane, log-Jacobian)."""

    def to_plane(u):
        x = loc + scale * u[:, 0]
        return np.stack([x, bend * x**2 + shift + width * np.exp(flare * x) * u[:, 1]], -1)

    def from_plane(x):
        v = (x[:, 1] - bend * x[:, 0] ** 2 - shift) / (width * np.exp(flare * x[:, 0]))
        return np.stack([(x[:, 0] - loc) / scale, v], -1)

    return to_plane, from_plane, lambda u: np.log(scale * width) + flare * (loc + scale * u[:, 0])


def same(u):
    return u


FLAT = (same, same, lambda u: np.zeros(len(u)))
# name -> (chart, half width of the box that is integrated, cells a side); the ridges are too thin for a plain grid
GRIDS = {
    "two_gaussians": (FLAT, 7.0, 48),
    "eight_gaussians": (FLAT, 5.0, 48),
    "two_moons": (FLAT, 4.0, 24),
    "swiss_roll": (FLAT, 4.8, 24),
    "banana": (bent(bend=0.5, shift=-0.5, width=0.3), 10.0, 48),
    "rosenbrock": (bent(loc=1.0, scale=math.sqrt(10), bend=1.0, width=math.sqrt(0.1)), 10.0, 48),
    "funnel": (bent(scale=3.0, flare=0.5), 10.0, 48),
    "rings": (FLAT, 4.0, 64),
    "pinwheel": (FLAT, 6.0, 48),
    "checkerboard": (FLAT, 4.0, 32),
}


class Truth(NamedTuple):
    name: str
    p: targets.Target  # in float64
    cells: np.ndarray  # probability of each cell, by quadrature of the density
    edges: np.ndarray
    mass: float
    mean: np.ndarray
    covariance: np.ndarray


@pytest.fixture(scope="module", params=NAMES)
def truth(request):
    """Gauss-Legendre quadrature of the density, 8 × 8 nodes in every cell of a box well outside the data."""
    (to_plane, _, log_jacobian), half_width, num = GRIDS[request.param]
    p = getattr(targets, request.param)(dtype=tf.float64)
    edges = np.linspace(-half_width, half_width, num + 1)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    step = edges[1] - edges[0]
    axis = ((edges[:-1, None] + edges[1:, None]) / 2 + step / 2 * nodes).ravel()
    axis_weights = np.tile(weights * step / 2, num)
    u = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    x = to_plane(u)
    mass = np.exp(p.log_prob(x).numpy() + log_jacobian(u)) * np.outer(axis_weights, axis_weights).ravel()
    mean = mass @ x
    covariance = (mass[:, None] * (x - mean)).T @ (x - mean)
    cells = mass.reshape(num, 8, num, 8).sum((1, 3))
    return Truth(request.param, p, cells, edges, mass.sum(), mean, covariance)


def chi_square(truth, x, cells=None):
    """p-value of Pearson's test of the points x `[n, 2]` against the cells; those that expect < 10 are pooled."""
    u = GRIDS[truth.name][0][1](np.asarray(x, np.float64))
    counts = np.histogram2d(u[:, 0], u[:, 1], bins=[truth.edges, truth.edges])[0].ravel()
    expected = len(u) * (truth.cells if cells is None else cells).ravel()
    large = expected >= 10
    statistic = np.sum((counts[large] - expected[large]) ** 2 / expected[large])
    rest = len(u) - expected[large].sum()
    statistic += (len(u) - counts[large].sum() - rest) ** 2 / max(rest, 1.0)
    return scipy.stats.chi2.sf(statistic, large.sum())


def test_density_integrates_to_one(truth):
    assert truth.mass == pytest.approx(1, abs=1e-9)  # what float32 constants in a float64 density would miss


def test_sampler_draws_from_the_density(truth):
    # 200 000 draws, 114 to 864 cells with ten or more. False alarms: 1e-6 a target. Power: the same draws, 3 % wider,
    # are found out in every target: the noncentrality is above 1400, where 500 would miss one in a million at most.
    x = getattr(targets, truth.name)().sample(200_000, seed=1).numpy()
    assert x.dtype == np.float32 and x.shape == (200_000, 2)
    assert chi_square(truth, x) > 1e-6
    assert chi_square(truth, 1.03 * x) < 1e-6


def test_float64_sampler_draws_from_the_density(truth):
    assert chi_square(truth, truth.p.sample(50_000, seed=2).numpy()) > 1e-6  # false alarms as above


def test_moments_are_those_of_the_density(truth):
    scale = np.sqrt(np.diag(truth.covariance))
    np.testing.assert_allclose(truth.p.mean() / scale, truth.mean / scale, atol=1e-8)
    np.testing.assert_allclose(
        truth.p.covariance() / np.outer(scale, scale), truth.covariance / np.outer(scale, scale), atol=1e-8
    )
    np.testing.assert_allclose(truth.p.stddev(), scale, rtol=1e-8)


@pytest.mark.parametrize("truth", ["two_gaussians"], indirect=True)
def test_a_wrong_weight_is_found_out(truth):
    # moves .01 of the mass from the right mode to the left one: noncentrality 200 000 (.01²/.3 + .01²/.7) = 95 over all
    # cells, so the two modes themselves are the cells here: 95 on 1 degree of freedom is p = 1e-22
    x = truth.p.sample(200_000, seed=3).numpy()
    wrong = x.copy()
    wrong[np.flatnonzero(x[:, 0] > 0)[:2000], 0] *= -1
    halves = [scipy.stats.norm.cdf(0, -2, 0.5) * 0.3 + scipy.stats.norm.cdf(0, 2, 0.5) * 0.7]
    for points, good in ((x, True), (wrong, False)):
        z = (np.mean(points[:, 0] < 0) - halves[0]) / math.sqrt(halves[0] * (1 - halves[0]) / len(x))
        assert (abs(z) < 4.9) == good  # 4.9 standard errors: false alarm 1e-6


@pytest.mark.parametrize("truth", ["pinwheel"], indirect=True)
def test_the_classic_pinwheel_is_not_this_density(truth):
    # there the angle depends on r, not on the radius: not area-preserving, and the test of the sampler sees it
    rng = np.random.default_rng(0)
    r, t = rng.normal([1, 0], [0.3, 0.1], [200_000, 2]).T
    arm = rng.integers(5, size=len(r)) * 2 * math.pi / 5
    for radius, good in ((np.hypot(r, t), True), (r, False)):
        turn = np.exp(1j * (arm + np.exp(radius) / 4)) * (r + 1j * t)
        assert (chi_square(truth, 2 * np.stack([turn.real, turn.imag], -1)) > 1e-6) == good


def points(p, num=200):
    """Draws, and points far from the data."""
    return np.concatenate([p.sample(num, seed=5).numpy(), np.random.default_rng(0).normal(0, 4, [20, 2])])


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("two_gaussians", lambda: mixture([0.3, 0.7], [[-2.0, 0.0], [2.0, 0.0]], 0.5)),
        (
            "eight_gaussians",
            lambda: mixture(
                [1 / 8] * 8,
                [[2 * math.cos(k * math.pi / 4), 2 * math.sin(k * math.pi / 4)] for k in range(8)],
                0.2,
            ),
        ),
    ],
)
def test_mixtures_equal_tfp(name, twin):
    p, q = getattr(targets, name)(dtype=tf.float64), twin()
    np.testing.assert_allclose(p.log_prob(points(p)), q.log_prob(points(p)), rtol=1e-12)
    np.testing.assert_allclose(p.mean(), q.mean(), atol=1e-12)
    np.testing.assert_allclose(p.covariance(), q.covariance(), atol=1e-12)


def test_thick_curves_equal_adaptive_quadrature():
    moons = [
        lambda t: (1.5 * (math.cos(t) - 0.5), 1.5 * (math.sin(t) - 0.25)),
        lambda t: (1.5 * (1 - math.cos(t) - 0.5), 1.5 * (0.5 - math.sin(t) - 0.25)),
    ]
    roll = [lambda t: (t * math.cos(t) / 5, t * math.sin(t) / 5)]
    for p, pieces, low, high, scale in (
        (targets.two_moons(tf.float64), moons, 0.0, math.pi, 0.15),
        (targets.swiss_roll(tf.float64), roll, 1.5 * math.pi, 4.5 * math.pi, 0.2),
    ):
        for x in np.concatenate([p.sample(8, seed=0).numpy(), [[0.3, -0.2], [1.1, 1.9]]]):

            def integrand(t, pieces=pieces, x=x, scale=scale):
                squares = [(x[0] - c(t)[0]) ** 2 + (x[1] - c(t)[1]) ** 2 for c in pieces]
                return sum(math.exp(-s / (2 * scale**2)) for s in squares) / (2 * math.pi * scale**2 * len(pieces))

            density = scipy.integrate.quad(integrand, low, high, epsrel=1e-11, epsabs=0, limit=500)[0] / (high - low)
            assert float(p.log_prob(x)) == pytest.approx(math.log(density), abs=1e-9)


def test_rosenbrock_is_the_formula_of_the_note_up_to_a_constant():
    p = targets.rosenbrock(tf.float64)
    x = points(p)
    difference = p.log_prob(x).numpy() + ((1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2) / 20
    np.testing.assert_allclose(difference, -math.log(2 * math.pi), rtol=1e-9)  # sd product √10·√.1 = 1


def test_checkerboard_is_uniform_on_every_other_square():
    p = targets.checkerboard()
    for i in range(-1, 5):
        for j in range(-1, 5):
            inside = 0 <= i < 4 and 0 <= j < 4 and (i + j) % 2 == 0
            assert float(p.prob([i - 1.5, j - 1.5])) == pytest.approx(1 / 8 if inside else 0, rel=1e-6)
    assert np.isfinite(p.log_prob(p.sample(300_000, seed=0))).all()
    assert np.isneginf(p.log_prob([2.0, 1.5]))  # half-open
    assert not p.is_differentiable and all(getattr(targets, name)().is_differentiable for name in SMOOTH)
    np.testing.assert_allclose(p.experimental_default_event_space_bijector()([[-99.0, 0.0]]), [[-2, 0]], atol=1e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_equal_finite_differences(name):
    p = getattr(targets, name)(dtype=tf.float64)
    x = tf.constant(points(p, 50))
    _, gradient = tfp.math.value_and_gradient(p.log_prob, x)
    step = 1e-5
    for k in range(2):
        shift = step * np.eye(2)[k]
        differences = (p.log_prob(x + shift) - p.log_prob(x - shift)) / (2 * step)
        # error of the difference: step²/6 times the third derivative, plus rounding of log p (1e-16 |log p| / step)
        bound = 1e-5 * (1 + np.abs(gradient[:, k]) + np.abs(p.log_prob(x)) * 1e-5)
        assert (np.abs(differences - gradient[:, k]) <= bound).all()
        assert not (np.abs(1.01 * differences - gradient[:, k]) <= bound).all()


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_are_finite_at_the_origin_and_far_out(name, dtype):
    p = getattr(targets, name)(dtype=dtype)
    x = tf.constant([[0.0, 0.0], [6.0, -6.0], [-9.0, 3.0]], dtype)
    value, gradient = tfp.math.value_and_gradient(p.log_prob, x)
    assert np.isfinite(value).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", NAMES)
def test_nan_stays_nan(name):
    assert np.isnan(getattr(targets, name)().log_prob([[math.nan, 0.0], [0.0, math.nan]])).all()


@pytest.mark.slow
def test_graph_and_xla_agree_with_eager():
    ps = {name: getattr(targets, name)() for name in NAMES}
    x = {name: p.sample(16, seed=0) for name, p in ps.items()}

    def everything(x):
        return {name: p.log_prob(x[name]) for name, p in ps.items()}, {
            name: p.sample(16, seed=0) for name, p in ps.items()
        }

    eager = everything(x)
    for jit_compile in (False, True):
        log_probs, samples = tf.function(everything, jit_compile=jit_compile)(x)
        for name in NAMES:
            np.testing.assert_allclose(log_probs[name], eager[0][name], rtol=1e-4, atol=1e-4)
            assert np.isfinite(ps[name].log_prob(samples[name])).all()
            np.testing.assert_allclose(samples[name], x[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_seeds(name):
    p = getattr(targets, name)()
    x = p.sample(4, seed=3)
    assert np.array_equal(x, p.sample(4, seed=3))
    assert np.array_equal(x, p.sample([2, 2], seed=tf.constant([0, 3])).numpy().reshape(4, 2))
    assert np.array_equal(x, p.experimental_sample_and_log_prob(4, seed=3)[0])
    assert not np.array_equal(x, p.sample(4, seed=4))
    assert not np.array_equal(p.sample(4), p.sample(4))  # no seed: TFP's fresh draw
    # what this is for: TFP's own treat the same int as two different seeds
    assert not np.array_equal(tfd.Normal(0.0, 1.0).sample(4, seed=3), tfd.Normal(0.0, 1.0).sample(4, seed=3))
    with pytest.raises(TypeError, match="`seed` must be an int"):
        p.sample(4, seed=1.5)


@pytest.mark.parametrize("name", NAMES)
def test_tfd_contract(name):
    p = getattr(targets, name)()
    assert p.dtype == tf.float32 and p.event_shape == [2] and p.batch_shape == [] and p.label == name
    assert p.event_shape_tensor().numpy().tolist() == [2] and p.batch_shape_tensor().numpy().tolist() == []
    x = p.sample([3, 4], seed=0)
    log_prob = p.log_prob(x)
    assert x.shape == [3, 4, 2] and log_prob.shape == [3, 4]
    np.testing.assert_allclose(log_prob[1, 2], p.log_prob(x[1, 2]), rtol=1e-5)
    assert p.log_prob(tf.zeros([0, 2])).shape == [0] and p.sample(0, seed=0).shape == [0, 2]
    np.testing.assert_allclose(p.unnormalized_log_prob(x), log_prob)
    q = p.copy(dtype=tf.float64, name="copy")
    assert q.dtype == tf.float64 and q.name == "copy" and q.sample(seed=0).dtype == tf.float64
    bijector = p.experimental_default_event_space_bijector()
    np.testing.assert_allclose(bijector.inverse(bijector(x)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["two_moons", "checkerboard"])
def test_composes_with_tfp(name):
    p = getattr(targets, name)()

    def likelihood(x):
        return tfd.Independent(tfd.Normal(x, 1.0), 1)

    joint = tfd.JointDistributionSequential([p, likelihood])  # calls the variable x: the target's label is no name
    draw = joint.sample(5, seed=tf.constant([0, 1]))
    np.testing.assert_allclose(
        joint.log_prob(draw), p.log_prob(draw[0]) + likelihood(draw[0]).log_prob(draw[1]), rtol=1e-5
    )
    x = p.sample(3, seed=0)
    np.testing.assert_allclose(tfd.Sample(p, 3).log_prob(x), tf.reduce_sum(p.log_prob(x)), rtol=1e-5)


def test_unknown_moments_say_so():
    disc = targets.Target(
        lambda x: -tf.reduce_sum(x**2, -1), lambda n, seed, dtype: tf.zeros([n, 2], dtype), label="disc"
    )
    for moment in (disc.mean, disc.covariance, disc.variance):
        with pytest.raises(NotImplementedError, match="of disc is not known"):
            moment()


def test_bad_arguments_are_named():
    for dtype in ("float16", tf.int32, "no such", None):
        with pytest.raises(TypeError, match=r"`dtype` must be tf\.float32 or tf\.float64, got"):
            targets.two_moons(dtype)
    p = targets.two_moons()
    with pytest.raises(ValueError, match=r"`value` must have shape \[\.\.\., 2\], got \(5, 1\)"):
        p.log_prob(tf.zeros([5, 1]))
    with pytest.raises(ValueError, match=r"`value` must have shape"):
        p.log_prob(0.0)
    with pytest.raises(TypeError, match=r"`value`.*float32.*float64"):
        p.log_prob(tf.zeros([5, 2], tf.float64))


@pytest.mark.parametrize("name", SMOOTH)
def test_far_out_the_density_is_a_number(name):
    """As noise of noise contrastive estimation has it, which is far wider than the data."""
    far = np.array([[200.0, 0.0], [0.0, -300.0], [1e3, 1e3]], "float32")
    log_prob = getattr(targets, name)().log_prob(far).numpy()
    assert not np.isnan(log_prob).any() and (log_prob < -1.0).all()
