"""Boxes, simplices and positive numbers: chains that follow their target up to its border."""

import functools

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from laws import smallest_p_value

from tfp_ebm import mcmc

tfb = tfp.bijectors
NUM_CHAINS = 40_000
COOLER = 1.25
ALPHA = np.array([0.8, 1.5, 2.0])
graph = functools.partial(mcmc.sample, jit_compile=False)

BOX = tfb.Sigmoid(np.float64(-1.0), np.float64(3.0))


def box():
    """Two Beta variables stretched over [−1, 3], one with most of its mass at the borders."""
    a, b = np.array([0.7, 2.0]), np.array([0.7, 3.0])

    def log_prob(x):
        return tf.reduce_sum((a - 1) * tf.math.log(x + 1) + (b - 1) * tf.math.log(3 - x), -1)

    laws = [scipy.stats.beta(*shape, loc=-1, scale=4) for shape in zip(a, b, strict=True)]
    return log_prob, np.stack([law.rvs(2 * NUM_CHAINS, random_state=k) for k, law in enumerate(laws)], -1), laws


def positive():
    """Gamma variables, one of them with a pole at zero."""
    a, rate = np.array([0.8, 3.0]), np.array([1.0, 2.0])

    def log_prob(x):
        return tf.reduce_sum((a - 1) * tf.math.log(x) - rate * x, -1)

    laws = [scipy.stats.gamma(shape, scale=1 / r) for shape, r in zip(a, rate, strict=True)]
    return log_prob, np.stack([law.rvs(2 * NUM_CHAINS, random_state=k) for k, law in enumerate(laws)], -1), laws


def simplex():
    """A Dirichlet variable, whose coordinates are Beta."""

    def log_prob(x):
        return tf.reduce_sum((ALPHA - 1) * tf.math.log(x), -1)

    draws = scipy.stats.dirichlet(ALPHA).rvs(2 * NUM_CHAINS, random_state=0)
    return log_prob, draws, [scipy.stats.beta(a, ALPHA.sum() - a) for a in ALPHA]


SUPPORTS = {
    "box": (box, BOX, mcmc.HMC(0.7, 3)),
    "softplus": (positive, tfb.Softplus(), mcmc.MALA(1.0)),
    "exp": (positive, tfb.Exp(), mcmc.HMC(0.5, 3)),
    # TFP's other simplex, SoftmaxCentered, cannot be made under NumPy 2.4, which dropped an argument that it uses
    "simplex": (simplex, tfb.IteratedSigmoidCentered(), mcmc.HMC(0.6, 3)),
}


class NoJacobian(tfb.Bijector):
    """A bijector that forgets its volume."""

    def __init__(self, bijector):
        super().__init__(forward_min_event_ndims=0, parameters=None, name="no_jacobian")
        self._inner = bijector

    def _forward(self, x):
        return self._inner.forward(x)

    def _inverse(self, y):
        return self._inner.inverse(y)

    def _forward_log_det_jacobian(self, x):
        return tf.zeros_like(x)


def marginals(laws):
    """The distribution functions of the coordinates, by unit vectors."""
    return {tuple(axis): law.cdf for axis, law in zip(np.eye(len(laws)), laws, strict=True)}


# Exact draws must stay exact: p > 1e-3, so the four raise a false alarm once in 250 seeds. The controls, chains of the
# same kernel on p^1.25, must reach p < 2e-5: the weakest, Beta(.7, .7), becomes Beta(.625, .625), a KS distance of .016
# once mixed, and √40 000 · .016 = 3.2 is p = 2e-9; the other coordinates are further off.
@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTS)
def test_exact_draws_stay_exact(name):
    make_target, bijector, kernel = SUPPORTS[name]
    log_prob, start, laws = make_target()
    inverse_temperature = np.repeat([1.0, COOLER], NUM_CHAINS)

    def target(x):
        return inverse_temperature * log_prob(x)

    kernel = mcmc.Transformed(kernel, bijector)
    samples = graph(target, start, kernel, num_results=1, num_burnin_steps=9, seed=17)
    end = samples.states[0].numpy()
    assert smallest_p_value(end[:NUM_CHAINS], marginals(laws)) > 1e-3
    assert smallest_p_value(end[NUM_CHAINS:], marginals(laws)) < 2e-5
    assert 0.2 < np.mean(samples.is_accepted) < 0.99 and samples.num_nonfinite == 0
    np.testing.assert_allclose(samples.unnormalized_log_prob[0], target(samples.states[0]), rtol=1e-6, atol=1e-6)


def test_without_the_jacobian_the_law_is_another():
    """The control of the formula: the same chain that leaves log |det ∂f/∂z| out fails the same test."""
    log_prob, start, laws = positive()
    kernel = mcmc.Transformed(mcmc.MALA(1.0), NoJacobian(tfb.Softplus()))
    samples = graph(log_prob, start, kernel, num_results=1, num_burnin_steps=9, seed=17)
    assert smallest_p_value(samples.states[0].numpy(), marginals(laws)) < 1e-10


@pytest.mark.slow
def test_adaptation_in_the_driver():
    """The step size adapts in z, to .75 within .05 (10 000 moves: SE .005); a second run is not traced."""
    log_prob, _, _ = box()
    traces = []

    def target(x):
        traces.append(x)
        return log_prob(x)

    def run():
        kernel = mcmc.Transformed(mcmc.Adaptive(mcmc.HMC(0.01, 2)), tfb.Sigmoid(np.float64(-1.0), np.float64(3.0)))
        return graph(target, np.ones([200, 2]), kernel, num_results=50, num_burnin_steps=200, seed=0)

    samples = run()
    num_traces = len(traces)
    again = run()
    assert len(traces) == num_traces
    np.testing.assert_array_equal(samples.states, again.states)
    assert samples.step_size.shape == [] and samples.step_size > 0.1
    assert abs(np.mean(samples.is_accepted) - 0.75) < 0.05


@pytest.mark.slow
def test_under_xla():
    kernel = mcmc.Transformed(mcmc.MALA(1.0), tfb.Sigmoid(0.0, 1.0))
    samples = mcmc.sample(
        lambda x: tf.reduce_sum(x, -1), tf.fill([50, 2], 0.5), kernel, num_results=3, seed=0, jit_compile=True
    )
    assert np.all((samples.states > 0) & (samples.states < 1)) and 0.5 < np.mean(samples.is_accepted) <= 1
    np.testing.assert_allclose(samples.unnormalized_log_prob, tf.reduce_sum(samples.states, -1), rtol=1e-5)


@pytest.mark.slow
def test_tempered_inside():
    log_prob, _, _ = positive()
    kernel = mcmc.Transformed(mcmc.ReplicaExchange(mcmc.MALA(0.8), [1.0, 0.5]), tfb.Softplus())
    samples = graph(log_prob, np.ones([50, 2]), kernel, num_results=5, seed=0)
    assert np.all(samples.states > 0)
    np.testing.assert_allclose(samples.unnormalized_log_prob, log_prob(samples.states), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("bijector", "good", "bad"),
    [
        (BOX, [0.0, 1.0], [0.0, 3.5]),
        (BOX, [0.0, 2.9], [0.0, 3.0]),  # the border is infinitely far away
        (BOX, [0.0, 1.0], [0.0, np.nan]),
        (tfb.Softplus(), [1e-6, 1.0], [0.5, -1.0]),
        (tfb.Exp(), [1e-6, 1e6], [0.0, 1.0]),
        (tfb.IteratedSigmoidCentered(), [0.2, 0.8], [0.3, 0.8]),  # which does not sum to one
        (tfb.IteratedSigmoidCentered(), [0.2, 0.8], [0.0, 1.0]),
    ],
)
def test_a_start_outside_is_refused(bijector, good, bad):
    kernel = mcmc.Transformed(mcmc.RandomWalk(0.1), bijector)
    run = functools.partial(graph, lambda x: tf.reduce_sum(x, -1), kernel=kernel, num_results=1, seed=0)
    assert np.all(np.isfinite(run(initial_state=np.array([good, good])).states))
    with pytest.raises(ValueError, match=r"`initial_state`.* of its 4 .*\(1, "):
        run(initial_state=np.array([good, bad]))


def test_a_start_outside_becomes_nan_where_values_are_not_known():
    kernel = mcmc.Transformed(mcmc.RandomWalk(0.1), BOX)
    start = np.array([[0.0, 1.0], [0.0, 3.5]])
    samples = tf.function(lambda x: graph(lambda x: tf.reduce_sum(x, -1), x, kernel, num_results=2, seed=0))(start)
    assert samples.num_nonfinite == 1 and np.isnan(samples.states[:, 1, 1]).all()


def test_a_bijector_of_another_dtype_is_refused():
    kernel = mcmc.Transformed(mcmc.RandomWalk(0.1), tfb.Sigmoid(-1.0, 3.0))
    with pytest.raises(TypeError, match=r"`bijector`.*float64.*double.*float"):
        graph(lambda x: tf.reduce_sum(x, -1), np.ones([3, 2]), kernel, num_results=1, seed=0)


def test_parameters_belong_to_z():
    """A simplex of three corners has two coordinates z."""
    kernel = mcmc.Transformed(mcmc.RandomWalk([0.1, 0.2]), tfb.IteratedSigmoidCentered())
    run = functools.partial(graph, simplex()[0], np.full([4, 3], 1 / 3), num_results=1, seed=0)
    assert run(kernel).states.shape == [1, 4, 3]
    with pytest.raises(ValueError, match=r"`scale`.*\(2,\).*\(3,\)"):
        run(mcmc.Transformed(mcmc.RandomWalk([0.1, 0.2, 0.3]), tfb.IteratedSigmoidCentered()))


@pytest.mark.parametrize("bijector", [BOX, tfb.Softplus(), tfb.IteratedSigmoidCentered()], ids=lambda b: b.name)
def test_kernels_are_values(bijector):
    kernel = mcmc.Transformed(mcmc.Adaptive(mcmc.MALA(0.1), 10), bijector)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(kernel))
    assert restored == kernel and hash(restored) == hash(kernel) and restored.bijector is not bijector
    x = tf.constant([0.2, 0.8], tf.float64)
    np.testing.assert_array_equal(restored.bijector.forward(x), bijector.forward(x))
    assert kernel == mcmc.Transformed(kernel.kernel, bijector) and hash(kernel) == hash(kernel)
    assert kernel != mcmc.Transformed(kernel.kernel, tfb.Exp())
    assert kernel.without_step_size == kernel.without_step_size.without_step_size != kernel
    assert kernel.unadapted == mcmc.Transformed(mcmc.MALA(0.1), bijector)


def test_bad_arguments():
    with pytest.raises(TypeError, match="`kernel`"):
        mcmc.Transformed(lambda target: None, BOX)
    with pytest.raises(TypeError, match="`bijector`"):
        mcmc.Transformed(mcmc.MALA(0.1), tf.exp)
    with pytest.raises(ValueError, match=r"`kernel`.*adapt those instead"):
        mcmc.Adaptive(mcmc.Transformed(mcmc.MALA(0.1), BOX))
