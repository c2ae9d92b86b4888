"""Exact, sliced and multi-scale denoising score matching against their closed forms (eqs. 39-57), float64.

E = ½(x−μ)ᵀP(x−μ) with a random correlated P; data with mean m and covariance S (1/n) in d = 1 to 6.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from energies import Quadratic
from laws import gaussian_data, quadratic

import tfp_ebm as ebm
from tfp_ebm.losses.denoising import scale_of_rows
from tfp_ebm.random import fold_in, normal

DIMENSIONS = [1, 2, 3, 4, 5, 6]


def moments(x):
    return x.mean(0), np.cov(x.T, bias=True).reshape(x.shape[1], x.shape[1])


def random_precision(d):
    factor = np.eye(d) + 0.4 * np.random.default_rng(10 + d).normal(size=(d, d))
    return factor @ factor.T


def exact_value(precision, mean, x):
    """½tr(P²S) + ½‖P(μ−m)‖² − tr P."""
    m, s = moments(x)
    return 0.5 * np.trace(precision @ precision @ s) + 0.5 * np.sum((precision @ (mean - m)) ** 2) - np.trace(precision)


EXACT = [
    {"method": "auto"},
    {"method": "reverse"},
    {"method": "reverse", "chunk_size": 2},
    {"method": "hutchinson"},
]


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("options", EXACT, ids=str)
def test_exact_value(options, d):
    """Exact to rounding; Hutchinson within 4 standard errors of its draws. Dropped ½, flipped sign and tr/d miss."""
    x, p, mu = gaussian_data(d, 4000), random_precision(d), np.full(d, 0.3)
    per_row = ebm.losses.ScoreMatching(**options)(quadratic(p, mu), tf.constant(x), seed=1).per_example.numpy()
    truth = exact_value(p, mu, x)
    # the trace's own draws: variance 2Σ_{i≠j}P²_ij per row for random signs, zero for the exact methods
    spread = np.sqrt(2 * (np.sum(p**2) - np.sum(np.diag(p) ** 2)) / len(x)) if options["method"] == "hutchinson" else 0
    tolerance = 4 * spread + 1e-10 * abs(truth)
    assert abs(per_row.mean() - truth) < tolerance
    squares = truth + np.trace(p)
    for planted in (2 * squares - np.trace(p), squares + np.trace(p)) + ((squares - np.trace(p) / d,) if d > 1 else ()):
        assert abs(planted - truth) > 2 * tolerance


@pytest.mark.parametrize("d", DIMENSIONS)
def test_exact_minimum_is_maximum_likelihood_of_the_same_sample(d):
    """At P = S⁻¹, μ = m the gradient vanishes and the value is −½ tr S⁻¹; with the trace divided by d it does not."""
    x = gaussian_data(d, 300)
    m, s = moments(x)
    network = Quadratic(dtype="float64")
    model = ebm.EnergyModel(network, event_shape=(d,))
    network.factor.assign(np.linalg.cholesky(np.linalg.inv(s)))
    network.mean.assign(m)
    values = [v.value for v in model.trainable_variables]

    def gradients(trace_weight):
        with tf.GradientTape() as tape:
            _, score, laplacian = ebm.derivatives.energy_score_laplacian(model.energy_function, tf.constant(x))
            per_row = 0.5 * tf.reduce_sum(score**2, -1) - trace_weight * laplacian
            loss = tf.reduce_mean(per_row)
        return loss, tape.gradient(loss, values)

    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(ebm.losses.ScoreMatching()(model.energy_function, tf.constant(x), seed=0).per_example)
    for gradient in tape.gradient(loss, values):
        np.testing.assert_allclose(gradient, 0.0, atol=1e-8)
    np.testing.assert_allclose(loss, -0.5 * np.trace(np.linalg.inv(s)), rtol=1e-10)
    if d > 1:
        assert max(np.abs(g).max() for g in gradients(1.0 / d)[1]) > 0.05


PROJECTIONS = ["gaussian", "rademacher", "sphere"]


@pytest.mark.parametrize("variance_reduced", [True, False])
@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("d", DIMENSIONS)
def test_sliced_equals_exact_in_expectation(projection, variance_reduced, d):
    """20 000 rows × 4 directions: the mean within 4 standard errors of its rows (36 cases: a false alarm once in 400
    seeds). Directions of length 1, not √d, would give 1/d of every term with v: planted, and seen for d > 1."""
    x, p, mu = gaussian_data(d, 20_000), random_precision(d), np.full(d, 0.3)
    loss = ebm.losses.SlicedScoreMatching(4, projection, variance_reduced)
    energy = quadratic(p, mu)
    per_row = loss(energy, tf.constant(x), seed=2).per_example.numpy()
    exact = ebm.losses.ScoreMatching("reverse")(energy, tf.constant(x), seed=0).per_example.numpy()
    difference = per_row - exact
    error = difference.std() / np.sqrt(len(x)) + 1e-12
    assert abs(difference.mean()) < 4 * error
    if projection == "sphere" and d > 1:
        _, score, bend = ebm.derivatives.energy_score_curvature(
            energy, tf.constant(x), loss.directions(tf.constant(x), tf.constant([0, 2])) / np.sqrt(d)
        )
        planted = 0.5 * np.sum(np.square(score), -1) - np.mean(bend, 0)
        assert abs((planted - exact).mean()) > 20 * (planted - exact).std() / np.sqrt(len(x))


@pytest.mark.parametrize("d", DIMENSIONS)
def test_sliced_with_signs_is_exact_for_every_draw_if_the_hessian_is_diagonal(d):
    x, p = tf.constant(gaussian_data(d, 50)), np.diag(np.arange(1.0, d + 1))
    energy = quadratic(p, np.zeros(d))
    exact = ebm.losses.ScoreMatching("reverse")(energy, x, seed=0).per_example
    for seed in range(3):
        sliced = ebm.losses.SlicedScoreMatching(projection="rademacher")(energy, x, seed=seed).per_example
        np.testing.assert_allclose(sliced, exact, rtol=1e-10, atol=1e-10)
    if d > 1:
        gaussian = ebm.losses.SlicedScoreMatching(projection="gaussian")(energy, x, seed=0).per_example
        assert np.abs(gaussian - exact).max() > 0.1


def test_sliced_squares_the_projection_as_a_whole():
    """E = Σxᵢ, d = 5, random signs: ½(Σv)² is .5, 4.5 or 12.5; the note's ½Σvᵢ² would be 2.5 always."""
    loss = ebm.losses.SlicedScoreMatching(1, "rademacher", variance_reduced=False)
    values = loss(lambda x: tf.reduce_sum(x, -1), tf.zeros([200, 5], tf.float64), seed=0).per_example.numpy()
    assert set(np.round(values, 9)) == {0.5, 4.5, 12.5}


@pytest.mark.parametrize(("projection", "variance"), [
    ("gaussian", lambda a: 2 * np.sum(a**2)),
    ("rademacher", lambda a: 2 * (np.sum(a**2) - np.sum(np.diag(a) ** 2))),
    ("sphere", lambda a: 2 * len(a) / (len(a) + 2) * (np.sum(a**2) - np.trace(a) ** 2 / len(a))),
])  # fmt: skip
@pytest.mark.parametrize("d", [2, 4, 6])
def test_variance_of_the_trace_estimate(projection, variance, d):
    """2‖A‖²_F for Gaussian v, off-diagonal part only for signs, the sphere's own: 40 000 draws estimate a variance to
    about 1-2 %, so 8 % is over 4 standard errors; ½ or 2 times it is far outside."""
    a = random_precision(d)
    x = tf.zeros([40_000, d], tf.float64)
    loss = ebm.losses.SlicedScoreMatching(1, projection)
    estimates = -loss(quadratic(a, np.zeros(d)), x, seed=4).per_example.numpy()
    assert estimates.mean() == pytest.approx(np.trace(a), abs=4 * estimates.std() / 200)
    assert estimates.var() == pytest.approx(variance(a), rel=0.08)


def test_more_projections_reduce_the_variance():
    a, x = random_precision(4), tf.zeros([20_000, 4], tf.float64)
    one, eight = (
        ebm.losses.SlicedScoreMatching(k, "gaussian")(quadratic(a, np.zeros(4)), x, seed=4).per_example.numpy().var()
        for k in (1, 8)
    )
    assert one / eight == pytest.approx(8, rel=0.1)


SIGMAS, SIGMA0 = (0.3, 0.6, 1.2), 0.8


@pytest.mark.parametrize("d", DIMENSIONS)
def test_multiscale_minimiser(d):
    """P⁻¹ = σ₀²(I + κΣ), κ the mean of σᵢ⁻²: the loss's gradient in P and μ vanishes there within 4 of its own standard
    errors (from 50 batches), and at the plausible wrong target, regression on (x* − x)/σᵢ², it does not."""
    x = gaussian_data(d, 6000)
    m, s = moments(x)
    kappa = np.mean(np.array(SIGMAS) ** -2.0)
    loss = ebm.losses.MultiscaleDenoisingScoreMatching(SIGMAS, SIGMA0)

    @tf.function
    def gradient(precision, seed):
        with tf.GradientTape() as tape:
            tape.watch(precision)
            value = tf.reduce_mean(loss(quadratic(precision, m), tf.constant(x), seed=seed).per_example)
        slope = tape.gradient(value, precision)
        return (slope + tf.transpose(slope)) / 2

    def t_values(precision):
        draws = np.array([gradient(tf.constant(precision), tf.constant([7, i])) for i in range(50)])
        return np.abs(draws.mean(0)) / (draws.std(0) / np.sqrt(50))

    right = np.linalg.inv(SIGMA0**2 * (np.eye(d) + kappa * s))
    # the data's own sample noise enters through the cross term of x and ε, which the 50 draws average too
    assert t_values(right).max() < 5
    wrong = kappa * np.linalg.inv(np.eye(d) + kappa * s)  # what a target divided by σᵢ² would be least at
    assert t_values(wrong).max() > 30


def test_multiscale_is_denoising_where_all_scales_agree():
    x = tf.constant(gaussian_data(3, 50))
    energy = quadratic(random_precision(3), np.zeros(3))
    multi = ebm.losses.MultiscaleDenoisingScoreMatching([0.5, 0.5], 0.5)(energy, x, seed=3).per_example
    step = 0.5 * normal(x.shape, fold_in(tf.constant([0, 3]), 1), tf.float64)
    residual = -tf.linalg.matvec(tf.constant(random_precision(3)), x + step) + step / 0.25
    np.testing.assert_allclose(multi, 0.5 * np.sum(np.square(residual), -1) / 0.25, rtol=1e-10)


def test_every_batch_holds_all_scales_in_equal_shares():

    shares = scale_of_rows(SIGMAS, tf.zeros([300, 2]), tf.constant([0, 1])).numpy()
    assert shares.shape == (300, 1)
    np.testing.assert_array_equal(np.unique(shares, return_counts=True)[1], 100)
    firsts = {float(scale_of_rows(SIGMAS, tf.zeros([1, 2]), tf.constant([0, i]))[0, 0]) for i in range(30)}
    assert len(firsts) == 3


LOSSES = {
    "exact": ebm.losses.ScoreMatching(),
    "exact, chunked": ebm.losses.ScoreMatching(chunk_size=1),
    "hutchinson": ebm.losses.ScoreMatching("hutchinson"),
    "sliced": ebm.losses.SlicedScoreMatching(2),
    "sliced, plain": ebm.losses.SlicedScoreMatching(2, "sphere", False),
    "multi-scale": ebm.losses.MultiscaleDenoisingScoreMatching(SIGMAS, SIGMA0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long if n == "hutchinson" else ()) for n in LOSSES])
def test_every_loss_fits_saves_and_compiles(name, tmp_path):
    x = gaussian_data(2, 256).astype("float32")
    data = tf.data.Dataset.from_tensor_slices(x).batch(64)

    def trained(**options):
        model = ebm.EnergyModel(ebm.networks.mlp([2], units=[8], seed=0), base_measure=ebm.fit_base(x))
        model.adapt(x)
        loss = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(LOSSES[name]))
        model.compile(keras.optimizers.Adam(1e-2), loss, **options)
        model.fit(data, epochs=2, verbose=0, shuffle=False)
        return model

    model, xla = trained(), trained(jit_compile=True)
    np.testing.assert_allclose(xla.energy(x), model.energy(x), atol=5e-3)
    assert xla.evaluate(x, verbose=0) == pytest.approx(model.evaluate(x, verbose=0), rel=1e-2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.loss.get_config() | {"name": None} == model.loss.get_config() | {"name": None}
    assert loaded.evaluate(x, verbose=0) == model.evaluate(x, verbose=0)


def test_images():
    x = np.random.default_rng(0).normal(size=(16, 6, 5, 2)).astype("float32")
    model = ebm.EnergyModel(ebm.networks.convnet([6, 5, 2], filters=[4, 4], units=[8], seed=0))
    exact = ebm.losses.ScoreMatching()(model.energy_function, x, seed=0).per_example
    chunked = ebm.losses.ScoreMatching("reverse", chunk_size=7)(model.energy_function, x, seed=0).per_example
    np.testing.assert_allclose(exact, chunked, rtol=1e-3, atol=1e-3)
    sliced = ebm.losses.SlicedScoreMatching(500)(model.energy_function, x, seed=0).per_example
    assert np.abs(np.mean(sliced - exact)) < 0.2 * np.abs(np.mean(exact)) + 0.05


DIGITS = {
    "dense": lambda: keras.Sequential([keras.layers.Flatten(), ebm.networks.mlp([64], units=[64, 64], seed=0)]),
    "convolutional": lambda: ebm.networks.convnet([8, 8, 1], filters=[8, 8], units=[16], seed=0),
}


def digits_losses(name, optimizer):
    """Losses after each of two epochs on rows held out; 64 standardised coordinates, exact traces."""
    x = ebm.datasets.digits(images=True)
    model = ebm.EnergyModel(DIGITS[name](), event_shape=(8, 8, 1))
    model.adapt(x)
    model.compile(optimizer, "score_matching")
    start = model.evaluate(x[768:1024], batch_size=64, verbose=0)
    history = model.fit(x[:768], batch_size=64, epochs=2, validation_data=x[768:1024], verbose=0)
    return [start, *history.history["val_loss"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", DIGITS)
def test_exact_score_matching_learns_digits_through_fit(name):
    losses = digits_losses(name, keras.optimizers.Adam(3e-3))
    assert losses[0] > losses[1] > losses[2] and losses[0] - losses[2] > 3


@pytest.mark.slow
def test_the_loss_on_digits_can_rise():
    """Negative control: steps uphill are seen by the same figures."""
    losses = digits_losses("dense", keras.optimizers.SGD(-1e-3))
    assert losses[0] < losses[1] < losses[2]


@pytest.mark.parametrize("loss", [ebm.losses.ScoreMatching, ebm.losses.SlicedScoreMatching])
def test_piecewise_linear_networks_are_warned_of_once(loss):
    def network(activation):
        return ebm.networks.mlp([2], units=[4], activation=activation, seed=0)

    model = ebm.EnergyModel(network("relu"))
    with pytest.warns(UserWarning, match=rf"{loss.__name__} learns from the curvature.*relu") as record:
        model.compile("adam", loss())
        model.compile("adam", loss())
        model.fit(np.random.default_rng(0).normal(size=(20, 2)), verbose=0)
    assert len([w for w in record if "curvature" in str(w.message)]) == 1
    ebm.EnergyModel(network("silu")).compile("adam", loss())  # warnings are errors here


BAD = {
    "method": (lambda: ebm.losses.ScoreMatching("fast"), ValueError, "`method` must be one of 'auto', 'forward'"),
    "chunk": (
        lambda: ebm.losses.ScoreMatching(chunk_size=0),
        ValueError,
        "`chunk_size` must be a whole number of at least 1",
    ),
    "count": (lambda: ebm.losses.SlicedScoreMatching(0), ValueError, "`num_projections` must be"),
    "projection": (
        lambda: ebm.losses.SlicedScoreMatching(projection="cube"),
        ValueError,
        "'gaussian', 'rademacher', 'sphere'",
    ),
    "flag": (lambda: ebm.losses.SlicedScoreMatching(variance_reduced=1), TypeError, "`variance_reduced` must be"),
    "no sigmas": (lambda: ebm.losses.MultiscaleDenoisingScoreMatching([], 1.0), ValueError, "`sigmas` must be a list"),
    "negative": (
        lambda: ebm.losses.MultiscaleDenoisingScoreMatching([0.1, -1.0], 1.0),
        ValueError,
        r"`sigmas\[1\]` must be",
    ),
    "unsorted": (
        lambda: ebm.losses.MultiscaleDenoisingScoreMatching([1.0, 3.0, 2.0], 1.0),
        ValueError,
        "`sigmas` must be sorted",
    ),
    "sigma0": (lambda: ebm.losses.MultiscaleDenoisingScoreMatching([1.0], 0.0), ValueError, "`sigma0` must be"),
    "alias": (lambda: ebm.losses.get("multiscale_denoising_score_matching"), ValueError, "needs sigmas, sigma0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    make, error, message = BAD[name]
    with pytest.raises(error, match=message):
        make()
