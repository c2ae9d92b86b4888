"""Noise contrastive estimation against its closed forms (eqs. 58-64), an exact twin, and the note's two slips.

For quadratic energies u is linear in θ = (P, Pm, −log Z'), so that the loss is a logistic regression whose minimum, and
the minimum's standard errors, NumPy finds. In it the two places of ν are apart: `inside` the classifier, as log ν, and
`outside`, as the weight of the noise. The note has ν upside down, and its eq. 63 has no weight.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.energy.base import draw
from tfp_ebm.random import fold_in, normal, stateless_seed

tfd = tfp.distributions
RATIOS = [0.5, 1.0, 4.0, 10.0]
NCE = ebm.losses.NoiseContrastiveEstimation


def features(x):
    """φ with −E(x) − log Z = θ·φ(x), for E = ½xᵀPx − xᵀPm: −½x_i x_j for i <= j (twice off the diagonal), x, 1."""
    rows, columns = np.triu_indices(x.shape[1])
    squares = -0.5 * x[:, rows] * x[:, columns] * np.where(rows == columns, 1.0, 2.0)
    return np.concatenate([squares, x, np.ones((len(x), 1))], 1)


def natural(precision, mean):
    """θ of a normalised Gaussian."""
    d = len(mean)
    log_z = 0.5 * (d * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] + mean @ precision @ mean)
    return np.concatenate([precision[np.triu_indices(d)], precision @ mean, [-log_z]])


def logistic(u):
    return np.where(u > 0, 1.0, np.exp(np.minimum(u, 0.0))) / (1.0 + np.exp(-np.abs(u)))


def regression(x, noise, log_q, inside, outside, start):
    """The minimiser over θ of mean softplus(−u) + outside·mean softplus(u'), by Newton, and its standard errors."""
    phi = features(x), features(noise)
    offset = log_q(x) + np.log(inside), log_q(noise) + np.log(inside)
    theta, weights = np.array(start), (1.0, outside)
    for _ in range(50):
        wrong = logistic(offset[0] - phi[0] @ theta), logistic(phi[1] @ theta - offset[1])
        scores = [p * w[:, None] for p, w in zip(phi, wrong, strict=True)]
        curvature = sum(
            c * (p * (w * (1 - w))[:, None]).T @ p / len(p) for c, p, w in zip(weights, phi, wrong, strict=True)
        )
        gradient = weights[1] * scores[1].mean(0) - scores[0].mean(0)
        step = np.linalg.solve(curvature, gradient)
        theta -= step
        if np.abs(step).max() < 1e-12:
            break
    spread = sum(c**2 * np.cov(s.T) / len(s) for c, s in zip(weights, scores, strict=True))
    bread = np.linalg.inv(curvature)
    return theta, np.sqrt(np.diag(bread @ spread @ bread))


def problem(d, rows, seed=0):
    """Rows of a Gaussian, its θ, and noise that is wider and elsewhere."""
    factor, mean = np.array([[1.2, 0.0], [0.5, 0.8]])[:d, :d], np.array([0.3, -0.4])[:d]
    x = mean + np.random.default_rng([d, seed]).normal(size=(rows, d)) @ factor.T
    noise = tfd.MultivariateNormalTriL(mean + 0.5, 1.4 * factor)
    return x, natural(np.linalg.inv(factor @ factor.T), mean), noise


def noise_of(loss, noise, rows, seed):
    """What the loss draws."""
    return draw(noise, [int(np.ceil(loss.noise_ratio * rows))], fold_in(stateless_seed(seed), 0)).numpy()


def slope_at(loss, theta, x, seed):
    """The loss's gradient in θ."""
    theta = tf.constant(theta)
    loss.log_normalizer.assign(-theta[-1])
    with tf.GradientTape() as tape:
        tape.watch(theta)
        output = loss(lambda y: -tf.linalg.matvec(features_of(y), theta[:-1]), x, seed=seed)
        value = tf.reduce_mean(output.per_example)
    slope, slope_of_log_z = tape.gradient(value, [theta, loss.log_normalizer.value])
    return np.concatenate([slope[:-1], [-slope_of_log_z]])


def features_of(y):
    d = y.shape[1]
    rows, columns = np.triu_indices(d)
    twice = np.where(rows == columns, 1.0, 2.0)
    return tf.concat([-0.5 * tf.gather(y, rows, axis=1) * tf.gather(y, columns, axis=1) * twice, y], 1)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("d", [1, 2])
def test_its_minimiser_is_the_density(d, ratio):
    """P, Pm and log Z within 4 standard errors, and the loss has no slope there; the note's formulas are far off.

    Up to 6 numbers in 8 cases: a false alarm once in 450 seeds. With ν upside down, or the noise's weight dropped,
    p comes out times inside/outside: log Z wrong by 2 log ν or log ν, 15 errors and more.
    """
    x, truth, noise = problem(d, 10_000)
    loss = NCE(noise, ratio)
    loss.build((d,), "float64")
    drawn = noise_of(loss, noise, len(x), seed=3)

    def log_q(y):
        return noise.log_prob(y).numpy()

    theta, errors = regression(x, drawn, log_q, ratio, ratio, truth)
    assert np.all(np.abs(theta - truth) < 4 * errors) and errors[-1] < 0.05
    assert np.abs(slope_at(loss, theta, tf.constant(x), seed=3)).max() < 1e-10
    if ratio != 1.0:
        for inside, outside in [(1 / ratio, ratio), (ratio, 1.0)]:
            shifted = truth + np.log(inside / outside) * np.eye(len(truth))[-1]
            planted, planted_errors = regression(x, drawn, log_q, inside, outside, shifted)
            assert np.all(np.abs(planted - shifted) < 4 * planted_errors)
            assert abs(planted[-1] - truth[-1]) > 15 * planted_errors[-1]
            assert np.abs(slope_at(loss, planted, tf.constant(x), seed=3)).max() > 1e-3


@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0])
def test_asymptotic_variance_is_1_plus_1_over_ratio_that_of_maximum_likelihood(ratio):
    """Noise = data = N(0, 1), 1000 data sets of 300 rows: n·var = (1 + 1/ν)·(2, 1, ½) for (P, Pm, log Z).

    The mean of the three quotients has a relative standard error of .045·√(2/3) at most (P and log Z are correlated):
    4 of them are .15. No factor, or (1 + ν), is off by .2 and more. The minimiser is the regression's, as the test
    above has shown, and for the first data set is shown again.
    """
    n, sets = 300, 1000
    truth = np.array([1.0, 0.0, -0.5 * np.log(2 * np.pi)])
    loss = NCE(tfd.MultivariateNormalDiag([np.float64(0.0)], [np.float64(1.0)]), ratio)
    loss.build((1,), "float64")
    rng = np.random.default_rng(0)
    data, noise = rng.normal(size=(sets, n, 1)), rng.normal(size=(sets, int(n * ratio), 1))
    noise[0] = noise_of(loss, loss.noise, n, seed=5)

    def log_q(y):
        return -0.5 * y[:, 0] ** 2 + truth[-1]

    estimates = np.array([regression(x, y, log_q, ratio, ratio, truth)[0] for x, y in zip(data, noise, strict=True)])
    assert np.abs(slope_at(loss, estimates[0], tf.constant(data[0]), seed=5)).max() < 1e-10
    quotient = (n * estimates.var(0) / [2.0, 1.0, 0.5]).mean()
    assert abs(quotient / (1 + 1 / ratio) - 1) < 0.15
    assert abs(quotient - 1) > 0.15 and (ratio == 1.0 or abs(quotient / (1 + ratio) - 1) > 0.15)


@pytest.mark.parametrize("ratio", [*RATIOS, 0.37])
def test_value_where_all_agree(ratio):
    """log(1 + ν) + ν log((1 + ν)/ν) in every row, overlap 1, and accuracy ½ where all are ties."""
    noise = tfd.MultivariateNormalDiag(np.zeros(2), np.ones(2))
    loss = NCE(noise, ratio)
    loss.build((2,), "float64")
    tie = loss(lambda x: -noise.log_prob(x), tf.zeros([7, 2], tf.float64), seed=0)
    assert tie.metrics["accuracy"] == 0.5
    loss.log_normalizer.assign(np.log(2 * np.pi))
    output = loss(lambda x: 0.5 * tf.reduce_sum(x**2, -1), normal([7, 2], tf.constant([0, 1]), tf.float64), seed=0)
    truth = np.log(1 + ratio) + ratio * np.log((1 + ratio) / ratio)
    np.testing.assert_allclose(output.per_example, truth, rtol=1e-12)
    np.testing.assert_allclose(output.metrics["overlap"], 1.0, rtol=1e-12)
    np.testing.assert_allclose(output.metrics["log_normalizer"], np.log(2 * np.pi))
    # the classifier is blind: the loss is that of the entropy of the labels, and less is possible only where q ≠ p
    share = 1 / (1 + ratio)
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    np.testing.assert_allclose(truth, (1 + ratio) * entropy)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5])
def test_naive_twin(ratio):
    """−log h of each row and −ν log(1 − h) of the noise, by eqs. 59-61 as they stand (with ν = P(y=0)/P(y=1))."""
    x = np.random.default_rng(0).normal(size=(5, 2))
    noise = tfd.MultivariateNormalDiag(np.ones(2), np.array([1.5, 2.0]))
    loss = NCE(noise, ratio)
    loss.build((2,), "float64")
    loss.log_normalizer.assign(0.7)
    drawn = noise_of(loss, noise, 5, seed=4)
    assert len(drawn) == np.ceil(5 * ratio)

    def p(y):
        return np.exp(-np.cosh(y[0]) - y[1] ** 2 - 0.7)

    def q(y):
        return np.exp(-0.5 * ((y[0] - 1) / 1.5) ** 2 - 0.5 * ((y[1] - 1) / 2) ** 2) / (2 * np.pi * 3)

    of_noise = np.mean([-np.log(ratio * q(y) / (p(y) + ratio * q(y))) for y in drawn])
    expected = [-np.log(p(y) / (p(y) + ratio * q(y))) + ratio * of_noise for y in x]
    actual = loss(lambda y: tf.cosh(y[:, 0]) + y[:, 1] ** 2, tf.constant(x), seed=4)
    np.testing.assert_allclose(actual.per_example, expected, rtol=1e-10)
    h = [np.mean([p(y) / (p(y) + ratio * q(y)) for y in rows]) for rows in (x, drawn)]
    np.testing.assert_allclose(actual.metrics["overlap"], 0.5 * (1 + 1 / ratio) * (1 - h[0] + ratio * h[1]))
    right = [np.mean([p(y) > q(y) for y in rows]) for rows in (x, drawn)]
    np.testing.assert_allclose(actual.metrics["accuracy"], 0.5 * (right[0] + 1 - right[1]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("energy", [-1e4, 1e4])
def test_extreme_energies_are_safe(dtype, energy):
    """softplus(∓u) ≈ |u| or 0, its gradient −1, 0 or between; the naive log(p/(p + νq)) is infinite there."""
    noise = tfd.MultivariateNormalDiag(np.zeros(2, dtype), np.ones(2, dtype))
    loss, x = NCE(noise, 2.0), tf.zeros([4, 2], dtype)
    offset = tf.constant(energy, dtype)
    with tf.GradientTape() as tape:
        tape.watch(offset)
        output = loss(lambda y: offset + 0.0 * y[:, 0], x, seed=0)
        value = tf.reduce_mean(output.per_example)
    # data pay E(x) where it is high, the noise ν|E| where it is low
    expected, slope = (1e4, 1.0) if energy > 0 else (2e4, -2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-3)
    np.testing.assert_allclose(tape.gradient(value, offset), slope, rtol=1e-6)
    with np.errstate(all="ignore"):
        assert not np.isfinite(np.log(np.exp(np.float64(-energy)) / (np.exp(np.float64(-energy)) + 0.3)))
    trained = loss(lambda y: offset + 0.0 * y[:, 0], x, seed=0, training=True)
    assert np.isfinite(trained.per_example).all()
    np.testing.assert_allclose(loss.log_normalizer, -energy, rtol=1e-3)  # Z begins where it takes the constant


def test_log_z_begins_where_it_balances_the_first_batch_and_only_there():
    noise = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))
    loss, x = NCE(noise, 3.0), normal([500, 1], tf.constant([0, 1]), tf.float64)

    def slope(training):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(lambda y: 40.0 + y[:, 0] ** 2, x, seed=1, training=training).per_example)
        return float(tape.gradient(value, loss.log_normalizer.value))

    assert slope(training=False) > 0.9 and float(loss.log_normalizer) == 0.0 and loss.known_log_normalizer is None
    assert abs(slope(training=True)) < 1e-9  # no slope in log Z is left
    assert -41 < float(loss.known_log_normalizer) < -38
    loss.log_normalizer.assign(5.0)
    assert slope(training=True) > 0.9 and float(loss.log_normalizer) == 5.0


def test_sample_weights_weigh_the_data_alone():
    """Rows of weight 0 are as if they were not there: the minimiser in log Z is that of the others."""
    noise = tfd.MultivariateNormalDiag(np.zeros(1), np.ones(1))
    x = np.concatenate([np.full((50, 1), 0.3), np.full((150, 1), -5.0)])
    loss = NCE(noise, 2.0)
    output = loss(lambda y: tf.square(y[:, 0]), tf.constant(x), seed=0).per_example.numpy()
    few = loss(lambda y: tf.square(y[:, 0]), tf.constant(x[:50]), seed=0)
    of_noise = output[-1] - np.logaddexp(0.0, -(-25.0 + 12.5 + 0.5 * np.log(2 * np.pi) - np.log(2.0)))
    assert abs(of_noise - (few.per_example[0].numpy() - (output[0] - of_noise))) < 0.2  # other draws of the noise
    weighted = np.mean(output * np.repeat([4.0, 0.0], [50, 150]))
    np.testing.assert_allclose(weighted, output[0], rtol=1e-12)


class Density(tfd.Distribution):
    """The unit normal law, without draws."""

    def __init__(self):
        super().__init__(tf.float32, tfd.NOT_REPARAMETERIZED, validate_args=False, allow_nan_stats=True)

    def _event_shape(self):
        return tf.TensorShape([1])

    def _batch_shape(self):
        return tf.TensorShape([])

    def _log_prob(self, x):
        return -0.5 * (x[..., 0] ** 2 + np.log(2 * np.pi).astype("float32"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NCE(noise_ratio=0), ValueError, "`noise_ratio` must be a positive number, got 0"),
        (lambda: NCE(noise_ratio=-1.0), ValueError, "`noise_ratio` must be a positive number, got -1.0"),
        (lambda: NCE(noise_ratio="4"), TypeError, "`noise_ratio` must be a positive number, got '4'"),
        (lambda: NCE(noise_ratio=np.inf), ValueError, "`noise_ratio` must be a positive number, got inf"),
        (lambda: NCE(3.0), TypeError, "`noise` must be a tfp.distributions.Distribution"),
        (lambda: NCE("normal"), ValueError, "`noise` must be one of 'gaussian', 'gaussian_mixture', 'kernel_density'"),
        (lambda: NCE(tfd.Normal([0.0, 0.0], 1.0)), ValueError, "`noise` must be one distribution, got a batch"),
        (
            lambda: NCE(ebm.EnergyDistribution(lambda x: x[:, 0] ** 2, event_shape=[1])),
            ValueError,
            "`noise` must have a log_prob, got EnergyDistribution: log_prob needs log Z",
        ),
        (lambda: NCE(Density()), ValueError, "`noise` must have a sample that works in a graph, got Density: sample_n"),
        (
            lambda: NCE(ebm.EnergyDistribution(lambda x: x[:, 0] ** 2, event_shape=[1], log_normalizer=0.6)),
            ValueError,
            "`base` must be given",
        ),
        (lambda: NCE(num_components=0), ValueError, "`num_components` must be a whole number"),
        (lambda: NCE(bandwidth=0.0), ValueError, "`bandwidth` must be a positive number"),
    ],
)
def test_refuses_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_refuses_noise_that_does_not_fit():
    x = np.zeros((4, 2), "float32")

    def energy(y):
        return y[:, 0]

    with pytest.raises(ValueError, match=r"`noise` must have event shape \(2,\), got \(3,\)"):
        NCE(tfd.MultivariateNormalDiag(tf.zeros(3)))(energy, x, seed=0)
    with pytest.raises(TypeError, match=r"`noise`.*float32.*float64"):
        NCE(tfd.MultivariateNormalDiag(np.zeros(2)))(energy, x, seed=0)
    with pytest.raises(ValueError, match=r"`noise`.*`adapt\(x\)`.* base"):
        NCE()(energy, x, seed=0)
    with pytest.raises(ValueError, match=r"fitted by .* 'gaussian_mixture' is not yet"):
        NCE("gaussian_mixture")(energy, x, seed=0)
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[4]))
    with pytest.raises(ValueError, match="no base distribution yet"):
        NCE()(model.energy_function, x, seed=0)
    with pytest.raises(ValueError, match=r"`noise` must have event shape \(2,\), got \(3,\)"):
        model.compile(keras.optimizers.Adam(), NCE(tfd.MultivariateNormalDiag(tf.zeros(3))))
    loss = NCE("kernel_density")
    with pytest.raises(ValueError, match="`x` must be finite"):
        loss.adapt(x * np.nan)
    with pytest.raises(ValueError, match=r"`num_components`.* 8 .*4 rows"):
        NCE("gaussian_mixture").adapt(np.eye(4))
    loss.adapt(np.random.default_rng(0).normal(size=(10, 2)))
    loss(energy, x, seed=0)
    with pytest.raises(ValueError, match="`adapt` must come before the loss is used"):
        loss.adapt(x)
