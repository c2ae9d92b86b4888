"""Networks of (x, condition) trained by `fit(x, condition)`: every loss against the Gaussian x | c ~ N(cW + b, Σ).

The estimating equations are tested: the mean gradient of a loss at the true parameters is 0, and it is not when the
conditions belong to other rows. The slow test runs `fit` and compares the parameters that it finds.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.energy.moments import DataMoments

SIGMA, MALA = 0.5, ebm.mcmc.MALA(0.8)


@keras.saving.register_keras_serializable("tests")
class Regression(keras.Model):
    """The energy ½‖L'(x − cW − b)‖², with precision LL' of x, for vectors c; float64."""

    def __init__(self, **kwargs):
        super().__init__(**{"dtype": "float64", **kwargs})

    def build(self, x_shape, c_shape):
        size, count = x_shape[-1], c_shape[-1]
        self.slope = self.add_weight(shape=(count, size), initializer="zeros", name="slope")
        self.loc = self.add_weight(shape=(size,), initializer="zeros", name="loc")
        self.factor = self.add_weight(shape=(size, size), initializer="identity", name="factor")
        self.built = True

    def call(self, x, c):
        centred = x - tf.matmul(c, self.slope.value) - self.loc.value
        return 0.5 * tf.reduce_sum(tf.square(tf.matmul(centred, self.factor.value)), -1)


class Problem:
    """Rows (x, c), and the true slope, location and covariance."""

    def __init__(self, size, rows=4000):
        rng = np.random.default_rng(size)
        mix = np.eye(size) + 0.5 * np.tri(size, k=-1)
        self.slope, self.loc, self.covariance = rng.normal(size=(2, size)), rng.normal(size=size), mix @ mix.T
        self.c = rng.normal(size=(rows, 2)) @ [[1.0, 0.0], [0.5, 0.8]]
        self.x = self.c @ self.slope + self.loc + rng.normal(size=(rows, size)) @ mix.T

    def deviations(self, network, extra):
        """Errors of slope, location and covariance in standard errors of maximum likelihood."""
        covariance = self.covariance + extra * np.eye(len(self.loc))
        inverse = np.linalg.inv(network.factor.numpy() @ network.factor.numpy().T)
        design = np.c_[self.c, np.ones(len(self.c))]
        spread = np.diag(np.linalg.inv(design.T @ design))
        variances = np.diag(covariance)
        error = np.concatenate([network.slope.numpy() - self.slope, network.loc.numpy()[None] - self.loc])
        of_mean = error / np.sqrt(np.outer(spread, variances))
        of_covariance = (inverse - covariance) / np.sqrt((covariance**2 + np.outer(variances, variances)) / len(self.x))
        return max(np.abs(of_mean).max(), np.abs(of_covariance).max())


# loss, the variance that it adds to that of x, and the factor on the standard errors of maximum likelihood
LOSSES = {
    "exact": (ebm.losses.ScoreMatching, {}, 0.0, 1.0),
    "sliced": (ebm.losses.SlicedScoreMatching, {}, 0.0, 1.0),
    "denoising": (ebm.losses.DenoisingScoreMatching, {"sigma": SIGMA}, SIGMA**2, 1.0),
    "multiscale": (ebm.losses.MultiscaleDenoisingScoreMatching, {"sigmas": [SIGMA], "sigma0": SIGMA}, SIGMA**2, 1.0),
    "noise contrastive": (ebm.losses.NoiseContrastiveEstimation, {"noise_ratio": 4.0}, 0.0, 1.2),
    "contrastive divergence": (ebm.losses.ContrastiveDivergence, {"kernel": MALA, "num_steps": 5}, 0.0, 1.2),
    "persistent": (ebm.losses.PersistentContrastiveDivergence, {"num_steps": 5, "capacity": 4000}, 0.0, 1.2),
}


CASES = [(name, mistake) for name in LOSSES for mistake in ("", "conditions of other rows")]


@pytest.mark.parametrize(("name", "mistake"), [*CASES, ("persistent", "conditions of other chains")])
def test_the_gradient_vanishes_at_the_truth(name, mistake):
    """The mean gradient over 40 batches of 100 rows is within 4.5 standard errors (t, 39 degrees) of 0.

    Eight parameters and log Z at most: false alarm rate 6e-4 each. With other conditions some mean is beyond 8.
    """
    problem = Problem(2)
    kind, arguments, extra, _ = LOSSES[name]
    loss, network = kind(**arguments), Regression()
    model = ebm.EnergyModel(network, event_shape=(2,), condition_shape=(2,))
    model._fitted_base.assign(DataMoments.of([problem.x]))
    model.compile(loss=loss)
    covariance = problem.covariance + extra * np.eye(2)
    network.slope.assign(problem.slope)
    network.loc.assign(problem.loc)
    network.factor.assign(np.linalg.cholesky(np.linalg.inv(covariance)))
    if name == "noise contrastive":
        loss.log_normalizer.assign(np.log(2 * np.pi) + 0.5 * np.linalg.slogdet(covariance)[1])
        loss._begun.assign(1)
    if name == "persistent":  # chains that have the model's distribution
        chains = np.random.default_rng(5).permutation(4000)
        loss.chains.states.assign(problem.x[chains])
        loss.chains.conditions.assign(problem.c[np.roll(chains, 1) if "chains" in mistake else chains])
        loss.chains.ages.assign(np.ones(4000))
    weights = [weight.value for weight in model.trainable_variables]
    c = np.roll(problem.c, 1, 0) if "rows" in mistake else problem.c

    @tf.function
    def gradient(x, c, i):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(model.energy_function, x, c, seed=tf.stack([i, 1]), training=True).per_example)
        parts = tape.gradient(value, weights, unconnected_gradients="zero")
        return tf.concat([tf.reshape(part, [-1]) for part in parts], 0)

    order = np.random.default_rng(0).permutation(4000).reshape(40, 100)
    slopes = np.array([gradient(problem.x[rows], c[rows], tf.constant(i)) for i, rows in enumerate(order)])
    deviation = np.abs(slopes.mean(0)) / (slopes.std(0, ddof=1) / np.sqrt(40))
    assert deviation.max() > 8.0 if mistake else deviation.max() < 4.5, deviation


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.long), 3])
@pytest.mark.parametrize("name", LOSSES)
def test_fit_finds_the_conditional_mean_and_covariance(name, size):
    """Slope, location and covariance from 4000 rows within 4 standard errors of maximum likelihood, times at most 1.2.

    The factor covers the losses whose estimates have more variance. With the conditions of other rows the slope is
    more than 10 standard errors off.
    """
    kind, arguments, extra, factor = LOSSES[name]
    problem = Problem(size)
    is_contrastive = name == "noise contrastive"
    steps = 1500 if is_contrastive else 300
    for c in (problem.c, np.roll(problem.c, 1, 0))[: 2 if name == "exact" else 1]:
        network = Regression()
        model = ebm.EnergyModel(network, event_shape=(size,))  # the shape of c is that of `fit`
        schedule = keras.optimizers.schedules.CosineDecay(0.05 if is_contrastive else 0.1, steps)
        model.compile(keras.optimizers.Adam(schedule), kind(**arguments), steps_per_execution=20)
        batch = tf.data.Dataset.from_tensors((problem.x, c)).repeat()
        model.fit(batch, steps_per_epoch=steps, verbose=0, shuffle=False)
        deviation = problem.deviations(network, extra)
        assert deviation < 4.0 * factor if c is problem.c else deviation > 10.0
