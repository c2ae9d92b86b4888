"""Targets with separated modes, in any number of coordinates: density, sampler, moments, shares and log Z agree."""

import pickle

import numpy as np
import pytest
import scipy.integrate
import tensorflow as tf

from tfp_ebm import targets

F64 = tf.float64
MAKE = {
    "gmm40": lambda dtype: targets.gmm40(dtype),
    "two_widths": lambda dtype: targets.two_widths(3, 8.0, 0.5, dtype),
    "many_well": lambda dtype: targets.many_well(6, dtype),
    "funnel": lambda dtype: targets.funnel(4, dtype),
}
NUM = 20_000


@pytest.fixture(scope="module", params=MAKE)
def known(request):
    p = MAKE[request.param](F64)
    return p, p.sample(NUM, seed=1).numpy()


def check_moments(p, x):
    """Mean and covariance within 4.5 standard errors: false alarm rate about 10⁻⁴ for the 27 numbers of a target."""
    mean, covariance = p.mean().numpy(), p.covariance().numpy()
    assert (np.abs(x.mean(0) - mean) < 4.5 * np.sqrt(np.diag(covariance) / NUM)).all()
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    if p.label != "funnel":  # its second moments have no useful error at this number of draws
        assert (np.abs(products.mean(0) - covariance) < 4.5 * products.std(0) / np.sqrt(NUM) + 1e-12).all()


def test_sampler_and_moments_agree(known):
    p, x = known
    assert x.shape[1:] == tuple(p.event_shape) and x.dtype == np.float64
    check_moments(p, x)
    with pytest.raises(AssertionError):
        check_moments(p, x + 0.1 * x.std(0))


def test_log_prob_is_that_of_the_sampler(known):
    # E q(x)/p(x) = 1 for a normalised q, here the target moved a little; the weights are bounded for a small shift
    p, x = known
    shift = np.zeros(x.shape[1])
    shift[1] = 0.02
    ratio = np.exp(p.log_prob(x + shift) - p.log_prob(x))
    good = ratio < 20  # the neck of the funnel
    assert good.mean() > 0.99
    assert p.label == "funnel" or abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(NUM)


def test_shares_are_those_of_the_sampler(known):
    p, x = known
    if p.label == "funnel":
        with pytest.raises(NotImplementedError, match="modes"):
            p.modes(x)
        return
    modes = p.modes(x).numpy()
    found = np.bincount(modes.ravel(), minlength=len(p.shares)) / modes.size
    error = np.sqrt(p.shares * (1 - p.shares) / modes.size)
    assert abs(p.shares.sum() - 1) < 1e-12
    if p.label == "gmm40":  # overlapping modes exchange some of their draws
        assert 0.5 * np.abs(found - p.shares).sum() < 0.05
    else:
        assert (np.abs(found - p.shares) < 4.5 * error).all()


def test_targets_pickle_and_repeat(known):
    p, x = known
    q = pickle.loads(pickle.dumps(p))
    assert np.array_equal(q.log_prob(x[:10]), p.log_prob(x[:10])) and q.log_normalizer == p.log_normalizer
    assert np.array_equal(q.sample(5, seed=3), p.sample(5, seed=3))


def test_many_well_is_a_product_of_known_integrals():
    def double_well(x):
        return np.exp(-(x**4) + 6 * x**2 + 0.5 * x)

    mass = scipy.integrate.quad(double_well, -5, 5, points=[-1.7, 0, 1.7], epsabs=0, epsrel=1e-12, limit=200)[0]
    right = scipy.integrate.quad(double_well, 0, 5, points=[1.7], epsabs=0, epsrel=1e-12, limit=200)[0]
    p = targets.many_well(32, F64)
    assert abs(p.log_normalizer - 16 * (np.log(mass) + 0.5 * np.log(2 * np.pi))) < 1e-9
    assert abs(p.log_normalizer - 164.6957) < 5e-5 and abs(p.shares[1] - right / mass) < 1e-9
    x = np.random.default_rng(0).normal(size=(5, 32))
    energy = (x[:, ::2] ** 4 - 6 * x[:, ::2] ** 2 - 0.5 * x[:, ::2] + 0.5 * x[:, 1::2] ** 2).sum(1)
    assert np.allclose(p.unnormalized_log_prob(x), -energy, rtol=1e-12)
    assert np.allclose(p.log_prob(x), -energy - p.log_normalizer, rtol=1e-12)


def test_funnel_of_two_coordinates_and_of_more_have_the_same_density():
    x = np.random.default_rng(0).normal(size=(7, 3))
    pair, three = targets.funnel(2, F64), targets.funnel(3, F64)
    third = -0.5 * x[:, 2] ** 2 * np.exp(-x[:, 0]) - 0.5 * x[:, 0] - 0.5 * np.log(2 * np.pi)
    assert np.allclose(three.log_prob(x), pair.log_prob(x[:, :2]) + third, rtol=1e-12)


def test_bad_arguments_are_named():
    for make in (targets.many_well, targets.two_widths):
        with pytest.raises(ValueError, match="`num_coordinates`"):
            make(0)
    with pytest.raises(ValueError, match="`num_coordinates` must be even"):
        targets.many_well(5)
    with pytest.raises(ValueError, match="`num_coordinates`"):
        targets.funnel(num_coordinates=1)
    with pytest.raises(ValueError, match="`ratio`"):
        targets.two_widths(2, ratio=0.0)
    with pytest.raises(ValueError, match="must have shape"):
        targets.many_well(4).log_prob(tf.zeros([3, 2]))
