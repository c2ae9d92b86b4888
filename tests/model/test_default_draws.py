"""`EnergyDistribution.sample` without a kernel: right shares of modes for few and many draws, warnings, chains."""

import functools
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm import mcmc, targets
from tfp_ebm.mcmc import particle_sampler
from tfp_ebm.mcmc.running import compiled
from tfp_ebm.model import default_draws

tfb, tfd = tfp.bijectors, tfp.distributions

WIDE = tfd.MultivariateNormalDiag([0.0, 0.0], [4.0, 4.0])
TARGET = targets.two_gaussians()  # .7 at (2, 0), .3 at (-2, 0), standard deviation ½


def two_modes(x):
    return -TARGET.log_prob(x)


def make(energy=two_modes, **arguments):
    return ebm.EnergyDistribution(energy, **{"event_shape": [2], "base": WIDE, **arguments})


@pytest.fixture
def refused(monkeypatch):
    """Makes `draw` fail, so that what still samples runs chains."""

    def fail(*_, **__):
        raise AssertionError("draws by particles")

    monkeypatch.setattr(ebm.EnergyDistribution, "draw", fail)


def share(x):
    return np.mean(np.asarray(x)[..., 0] > 0)


@pytest.mark.slow
def test_few_draws_are_as_right_as_many():
    """60 runs of 5 draws: the share of .7 within 4 standard errors √(.21/300) = .026 of 300 independent draws, 1 false
    alarm in 16 000; the groups of 5 differ from each other. Control: chains that begin in the mode of .3 stay there."""
    p = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = np.stack([p.sample(5, seed=seed) for seed in range(60)])
    assert x.shape == (60, 5, 2) and abs(share(x) - 0.7) < 4 * 0.026
    per_run = (x[..., 0] > 0).sum(1)
    assert 0.5 < per_run.var() / (5 * 0.7 * 0.3) < 2.0  # binomial: the ratio is 1 ± .18
    left = tfd.MultivariateNormalDiag([-2.0, 0.0], [0.5, 0.5])
    trapped = make(base=left, kernel=mcmc.MALA(0.2), num_burnin_steps=50).sample(64, seed=0)
    assert share(trapped) < 0.1


@pytest.mark.slow
def test_seeds_and_batches():
    p = make()
    x = p.sample(6, seed=3)
    np.testing.assert_array_equal(x, p.sample(6, seed=tf.constant([0, 3])))
    np.testing.assert_array_equal(tf.reshape(x, [3, 2, 2]), p.sample([3, 2], seed=3))
    np.testing.assert_array_equal(x, p.sample(tf.constant(6), seed=3))
    np.testing.assert_array_equal(x, p.draw(6, seed=3).states)
    assert p.sample(seed=3).shape == (2,) and p.sample(1, seed=3).shape == (1, 2)
    assert not np.array_equal(x, p.sample(6, seed=4)) and not np.array_equal(p.sample(6), p.sample(6))


@pytest.mark.slow
def test_a_second_call_compiles_nothing(monkeypatch):
    """Nor does that of a copy, or of another number of draws up to 1024, by XLA. Control: another energy compiles."""
    monkeypatch.setattr(particle_sampler, "_XLA_MAX_EVENT_SIZE", 512)
    made = []

    class Counted(compiled.Compiled):
        def __init__(self, *given, **how):
            super().__init__(*given, **how)
            made.append(self)

    monkeypatch.setattr(compiled, "Compiled", Counted)
    p = make(lambda x: two_modes(x))
    p.sample(3, seed=0)
    number = len(made)
    counts = [one._call.experimental_get_tracing_count() for one in made]
    for q in (p, p.copy(name="q"), p.with_log_normalizer(0.0)):
        q.sample(3, seed=1)
        q.sample(100, seed=1)
    assert number > 0 and len(made) == number
    assert [one._call.experimental_get_tracing_count() for one in made] == counts
    make(lambda x: 2.0 * two_modes(x)).sample(3, seed=0)
    assert len(made) > number


@pytest.mark.long
def test_a_warning_says_what_is_wrong_and_its_cure_works(monkeypatch):
    """Modes of widths 1 and .1 in 5 coordinates, which no path from a Gaussian reaches in their shares of .3 and .7. A
    mixture fitted to data gives them: within .09, 4 standard errors of 400 effective draws. The search for modes, which
    would add them to the Gaussian, is off, and so is the base made of draws."""
    monkeypatch.setattr(particle_sampler, "find_regions", lambda *args: [])
    monkeypatch.setattr(particle_sampler, "is_uneven", lambda *args: False)
    quick = functools.partial(mcmc.sequential_monte_carlo, jit_compile=False)
    monkeypatch.setattr(mcmc, "sequential_monte_carlo", quick)
    target = targets.two_widths(5, 10.0, 0.1)
    gaussian = tfd.MultivariateNormalTriL(target.mean(), tf.linalg.cholesky(target.covariance()))
    p = ebm.EnergyDistribution(lambda x: -target.log_prob(x), event_shape=[5], base=gaussian)
    with pytest.warns(UserWarning, match=r"may not have .*kind='gaussian_mixture', broad_share=0.1.*base=") as caught:
        p.sample(500, seed=1)
    assert {warning.filename for warning in caught} == {__file__}
    data = target.sample(5000, seed=1).numpy()
    cured = p.copy(base=ebm.fit_base(data, kind="gaussian_mixture", broad_share=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = cured.sample(1000, seed=0)
    assert abs(share(x) - 0.7) < 0.09


def quadratic(x):
    return 0.5 * tf.reduce_sum(x**2, -1)


UNIT = tfd.MultivariateNormalDiag([0.0, 0.0], [1.0, 1.0])
UNNORMALISED = ebm.EnergyDistribution(quadratic, event_shape=[2], base=WIDE, kernel=mcmc.MALA(0.5), num_burnin_steps=1)
CHAINS = {
    "kernel": lambda: make(kernel=mcmc.MALA(0.2), num_burnin_steps=2).sample(3, seed=0),
    "bijector": lambda: make(bijector=tfb.Identity(), num_burnin_steps=2).sample(3, seed=0),
    "tf.function": lambda: tf.function(lambda: make(num_burnin_steps=2).sample(3, seed=0))(),
    "number known at run time": lambda: tf.function(lambda n: make(num_burnin_steps=2).sample(n, seed=0))(
        tf.constant(3)
    ),
    "an energy as base": lambda: make(base=UNNORMALISED, num_burnin_steps=2).sample(3, seed=0),
    "many coordinates": lambda: ebm.EnergyDistribution(
        quadratic, event_shape=[51], num_burnin_steps=2,
        base=tfd.MultivariateNormalDiag(tf.zeros(51)),
    ).sample(3, seed=0),
    "auto-batched joint": lambda: tfd.JointDistributionSequentialAutoBatched(
        [make(quadratic, base=UNIT, num_burnin_steps=2), lambda x: tfd.Normal(x[0], 1.0)]
    ).sample(3, seed=0)[0],
    "structure of a joint": lambda: tf.zeros(
        [3, *tfd.JointDistributionSequential([make(num_burnin_steps=2), tfd.Normal(0.0, 1.0)]).event_shape_tensor()[0]]
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAINS)
def test_chains_run_elsewhere(name, refused):
    assert CHAINS[name]().shape[0] == 3
    with pytest.raises(AssertionError, match="draws by particles"):
        make().sample(3, seed=0)


@pytest.mark.slow
def test_an_eager_joint_draws_by_particles(monkeypatch):
    """300 draws: share of .7 within 4 · .026. Control: a search for the joint's structure that is always found."""
    joint = tfd.JointDistributionSequential([make(num_burnin_steps=2), lambda x: tfd.Normal(x[..., 0], 0.01)])
    x, y = joint.sample(300, seed=[0, 1])
    assert abs(share(x) - 0.7) < 4 * 0.026 and np.abs(x[:, 0] - y).max() < 0.06
    monkeypatch.setattr(default_draws, "is_for_structure", lambda: True)
    left = tfd.MultivariateNormalDiag([-2.0, 0.0], [0.5, 0.5])
    monkeypatch.setattr(ebm.EnergyDistribution, "draw", lambda *_, **__: pytest.fail("draws by particles"))
    assert share(make(base=left, num_burnin_steps=2).sample(20, seed=0)) < 0.3


def test_what_has_density_zero_at_all_draws_of_the_base_is_refused():
    with pytest.raises(ValueError, match="`target_log_prob_fn` must be finite where `base` has its mass"):
        make(lambda x: x[..., 0] * 0.0 + np.inf).sample(3, seed=0)
