"""Faults found in public reports of people who sample: stuck chains, NaN gradients, resonance, bases in other units."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm import mcmc
from tfp_ebm.mcmc.kernels import acceptance
from tfp_ebm.mcmc.running import trouble

tfd = tfp.distributions


def normal(x):
    return -0.5 * tf.reduce_sum(x**2, -1)


def lennard_jones(x):
    """−E of a particle in two coordinates: beyond 60 units of energy there is no mass (e⁻⁶⁰)."""
    squares = tf.reduce_sum(x**2, -1)
    return -(4 / squares**6 - 4 / squares**3 + 0.05 * squares)


BASE = tfd.MultivariateNormalDiag([0.0, 0.0], [1.5, 1.5])


# --- chains that never moved -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def starts():
    return BASE.sample(200, seed=[0, 1])


@pytest.mark.slow
def test_stuck_chains_are_counted_and_named(starts):
    """By `sample`, `summarize` and `diagnose`; some 16 % of the base lies so deep in the core that HMC cannot start."""
    kernel = mcmc.HMC(0.05, 5)
    arguments = {"num_results": 10, "num_burnin_steps": 30, "seed": 0, "jit_compile": False}
    with pytest.warns(
        UserWarning, match=r"(\d+) of 200 chains never moved in 40 steps.*The lowest log density"
    ) as record:
        samples = mcmc.sample(lennard_jones, starts, kernel, **arguments)
    still = np.all(samples.states.numpy() == starts.numpy(), (0, 2)).sum()
    assert samples.num_stuck == still > 10 and str(record[0].message).startswith(f"{still} of")
    found = mcmc.diagnose(samples)
    assert found.num_stuck == still and f"{still} chains never moved." in found.trouble
    with pytest.warns(UserWarning, match=f"{still} of 200 chains never moved"):
        summary = mcmc.summarize(lennard_jones, starts, kernel, **arguments)
    assert summary.num_stuck == still
    with pytest.warns(UserWarning, match="chains never moved"):
        last = mcmc.sample(lennard_jones, starts, kernel, **{**arguments, "num_results": 1, "num_burnin_steps": 39})
    assert mcmc.diagnose(last).num_stuck == still  # one result per chain is compared with the start


def test_a_global_move_sets_them_free(starts):
    kernel = mcmc.Sequential([mcmc.IndependenceMetropolis(BASE), mcmc.HMC(0.05, 5)])
    samples = mcmc.sample(lennard_jones, starts, kernel, num_results=1, num_burnin_steps=60, seed=0, jit_compile=False)
    assert samples.num_stuck == 0 and np.all(lennard_jones(samples.states[0]) > -60)


@pytest.mark.parametrize("num_chains", [3, 150])
@pytest.mark.parametrize(
    "kernel",
    [
        mcmc.RandomWalk(0.5),
        mcmc.HMC(0.4, 3),
        mcmc.MALA(0.4),
        pytest.param(mcmc.NUTS(0.4, max_tree_depth=2), marks=pytest.mark.long),
    ],
    ids=repr,
)
def test_healthy_chains_are_not_warned_of(kernel, num_chains):
    """Warnings are errors. 3 or 150 chains from exact draws, in 1 step as in 30; only NUTS needs XLA."""
    start = tf.random.stateless_normal([num_chains, 2], [0, 1])
    by_xla = isinstance(kernel, mcmc.NUTS)
    for num_steps in (1, 30):
        samples = mcmc.sample(
            normal, start, kernel, num_results=1, num_burnin_steps=num_steps - 1, seed=1, jit_compile=by_xla
        )
        assert samples.num_bad_gradients in (0, None)


def test_the_rule_for_stuck_chains():
    """Simulated: chains whose acceptance rates scatter widely raise no alarm in 300 runs (more than one would be above
    the rate promised, 10⁻³, with probability .04); one chain that cannot move always does after 60 steps."""
    rng = np.random.default_rng(0)
    alarms, missed = 0, 0
    for _ in range(300):
        rates = rng.beta(4, 4, size=100)  # mean .5, standard deviation .17
        num_stuck = int((rng.uniform(size=(60, 100)) > rates).all(0).sum())
        alarms += trouble.is_implausible(num_stuck, 100, 60, rates.mean())
        missed += not trouble.is_implausible(num_stuck + 1, 100, 60, rates.mean())
    assert alarms <= 1 and missed == 0


def test_chains_on_a_grid_come_back():
    """A symmetric walk on the whole numbers is at its start in 1 of 9 chains after 50 steps, and never stuck."""

    def walk(x, seed):
        return x + tf.cast(2 * tf.random.stateless_uniform(tf.shape(x), seed, 0, 2, tf.int32) - 1, x.dtype)

    kernel = mcmc.MetropolisHastings(walk)
    samples = mcmc.sample(
        lambda x: -0.01 * tf.abs(x), tf.zeros([500]), kernel, num_results=1, num_burnin_steps=49, seed=0,
        jit_compile=False,
    )  # fmt: skip
    assert np.mean(samples.states[0] == 0) > 0.05 and samples.num_stuck == 0


def half_line(x):
    """exp(−x) for x > 0, density zero or NaN elsewhere."""
    return tf.where(x > 0, -x, tf.where(x < -1, np.float32(np.nan), np.float32(-np.inf)))


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_proposal_leaves_states_of_zero_density(jit_compile, monkeypatch):
    """Independence moves from N(0, 2²), of mean acceptance above .3, started at density zero and NaN. The draws follow
    Exp(1): mean 1 within 4 standard errors of 1/√2000. Control: TFP's own acceptance never leaves."""
    start = tf.constant(np.tile([-0.5, -3.0], 1000), tf.float32)

    def run():
        kernel = mcmc.IndependenceMetropolis(tfd.Normal(0.0, 2.0))
        with pytest.warns(UserWarning, match="2000 of 2000 chains start"):
            return mcmc.sample(
                lambda x: half_line(x), start, kernel, num_results=1, num_burnin_steps=40, seed=0,
                jit_compile=jit_compile,
            )  # fmt: skip

    samples = run()
    assert samples.num_stuck == 0 and abs(np.mean(samples.states) - 1) < 4 / np.sqrt(2000)
    monkeypatch.setattr("tfp_ebm.mcmc.kernels.metropolis.RescuingMetropolis", tfp.mcmc.MetropolisHastings)
    assert run().num_stuck == 2000


# --- NaN gradients ---------------------------------------------------------------------------------------------------


def torn_branch(x, edge=1.0):
    """The standard normal, but its gradient is NaN where x₀ > edge, as that of a masked tf.where is."""
    first = x[..., 0]
    return normal(x) + tf.where(first > edge, 0.0, 1e-6 * (edge - first) ** 1.5)


KERNELS = {
    "hmc": mcmc.HMC(0.5, 3),
    "mala": mcmc.MALA(0.8),
    "adaptive": mcmc.Adaptive(mcmc.HMC(0.5, (1, 5))),
    "sequential": mcmc.Sequential([mcmc.RandomWalk(0.1), mcmc.MALA(0.8)]),
    "transformed": mcmc.Transformed(mcmc.MALA(0.8), tfp.bijectors.Scale(1.0)),
    "replica_exchange": mcmc.ReplicaExchange(mcmc.HMC(0.5, 3), [1.0, 0.5]),
}


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", KERNELS)
def test_nan_gradients_are_reported(name, jit_compile):
    """The chains start where the gradient is fine and would meet the fault in a few steps. Halved runs (200) count too.
    Control: the same compiled chains are silent (warnings are errors) when the fault is moved 100 deviations away."""
    num_chains = 200 if name in ("hmc", "mala") else 20
    start = tf.fill([num_chains, 2], -0.5)
    edge = tf.Variable(1.0)

    def target(x):
        return torn_branch(x, edge)

    arguments = {"num_results": 4, "num_burnin_steps": 26, "seed": 0, "jit_compile": jit_compile}
    with pytest.warns(UserWarning, match=rf"In (\d+) of {num_chains} chains the gradient of the target was NaN"):
        samples = mcmc.sample(target, start, KERNELS[name], **arguments)
    found = mcmc.diagnose(samples)
    assert num_chains // 2 < found.num_bad_gradients <= num_chains
    assert any("NaN or infinite gradient" in sentence for sentence in found.trouble)
    edge.assign(100.0)
    assert mcmc.sample(target, start, KERNELS[name], **arguments).num_bad_gradients == 0


def test_nan_gradients_are_reported_by_summarize_and_by_langevin():
    start = tf.fill([10, 2], -0.5)
    with pytest.warns(UserWarning, match="chains the gradient of the target was NaN"):
        mcmc.summarize(torn_branch, start, mcmc.MALA(0.8), num_results=30, seed=0, jit_compile=False)
    with (
        pytest.warns(UserWarning, match="became NaN"),
        pytest.warns(UserWarning, match="chains the gradient of the target was NaN"),
    ):
        mcmc.sample(torn_branch, start, mcmc.Langevin(0.8), num_results=30, seed=0, jit_compile=False)


def test_an_overflow_far_below_the_density_is_no_fault():
    """r⁻¹³ overflows where log p is −10¹⁹: such a proposal is rejected whatever its gradient."""
    gradient = [tf.constant([[np.nan], [np.nan], [np.inf], [1.0]])]
    log_prob = tf.constant([-1e19, -999.0, -1.0, 0.0])
    bad = acceptance.is_bad_gradient(log_prob, gradient, tf.zeros([4]))
    np.testing.assert_array_equal(bad, [False, True, True, False])


@pytest.mark.long
def test_the_gradient_at_stuck_states_is_named():
    """For kernels that do not record it, such as NUTS: every state has the fault."""

    def distances(x):
        return -tf.reduce_sum(tf.norm(x[..., None, :] - x[..., None, :], axis=-1), -1) + normal(x)

    start = tf.ones([10, 2])
    with pytest.warns(UserWarning, match=r"10 of 10 chains never moved.*gradient is NaN or infinite there"):
        mcmc.sample(distances, start, mcmc.NUTS(0.3, max_tree_depth=3), num_results=20, seed=0, jit_compile=True)


# --- trajectories of varying length ----------------------------------------------------------------------------------

SD = np.array([1.0, 2.8])


def wide(x):
    return -0.5 * tf.reduce_sum((x / SD.astype("float32")) ** 2, -1)


# ten leapfrog steps turn the first coordinate by π: cos ωt = 1 − ε²/2 with ωt = π/10
RESONANT = float(np.sqrt(2 * (1 - np.cos(np.pi / 10))))


def spread(kernel, jit_compile=True):
    """RMS over chains of x₀² averaged over a chain, less its mean 1, in standard errors of independent draws."""
    start = tf.constant(SD, tf.float32) * tf.random.stateless_normal([64, 2], [0, 1])
    samples = mcmc.sample(wide, start, kernel, num_results=400, seed=2, jit_compile=jit_compile)
    means = np.mean(samples.states.numpy()[..., 0] ** 2, 0)
    return np.sqrt(np.mean((means - 1) ** 2)) / np.sqrt(2 / 400), samples


@pytest.mark.long
def test_varying_trajectories_do_not_resonate():
    """A chain at the resonance keeps its x₀² (spread near √400 = 20); drawn lengths mix it: below 3, where 64 chains of
    400 independent draws have 1 ± .09. `trouble` sees the first, though R-hat of the draws does not (below 1.02)."""
    fixed, samples = spread(mcmc.HMC(RESONANT, 10))
    found = mcmc.diagnose(samples)
    assert fixed > 8 and found.rhat[0] < 1.02 and found.ess[0] > 64 * 400
    assert found.max_rhat > 1.5 and "have not mixed" in found.trouble[0]
    varied, samples = spread(mcmc.HMC(RESONANT, (1, 20)))
    assert varied < 3 and mcmc.diagnose(samples).trouble == ()


def test_the_default_kernel_varies_its_trajectories():
    local = mcmc.default_kernel().kernel
    assert local.num_leapfrog_steps == (1, 20) and local.evaluations_per_step == 10


def test_varying_trajectories_leave_the_target_exact(monkeypatch):
    """4000 chains of 40 steps of ε = 1.2 from exact draws of N(0, 1): the mean of x² within 4 standard errors √(2/n).
    Control: accepting everything gives the variance 1/(1 − ε²/4) = 1.56, 25 of them."""
    start = tf.random.stateless_normal([4000, 1], [0, 1], dtype=tf.float64)

    def z_score(target):
        arguments = {"num_results": 1, "num_burnin_steps": 39, "seed": 3, "jit_compile": False}
        x = mcmc.sample(target, start, mcmc.HMC(1.2, (1, 6)), **arguments).states.numpy()
        return abs(np.mean(x**2) - 1) / np.sqrt(2 / 4000)

    assert z_score(normal) < 4
    one_step = acceptance.CheckedMetropolis.one_step

    def accepting(self, state, results, seed=None):
        _, results = one_step(self, state, results, seed=seed)
        proposed = results.proposed_results
        accepted = results.accepted_results._replace(
            target_log_prob=proposed.target_log_prob, grads_target_log_prob=proposed.grads_target_log_prob
        )
        return results.proposed_state, results._replace(accepted_results=accepted)

    monkeypatch.setattr(acceptance.CheckedMetropolis, "one_step", accepting)
    assert z_score(lambda x: normal(x)) > 15  # a target that was not compiled before


def test_the_number_of_leapfrog_steps_is_drawn_for_all_chains_from_the_seed():
    """1 to 4 equally often: 2000 steps, χ² with 3 degrees of freedom below 16.3 (p = .001). A free particle (constant
    density) moves by L·ε·p, so L can be read off; graph mode and XLA draw the same."""
    kernel = mcmc.HMC(1.0, (1, 4))(lambda x: 0.0 * tf.reduce_sum(x, -1))
    x = tf.zeros([3, 2], tf.float64)
    results = kernel.bootstrap_results(x)

    def length(step):
        moved, after = kernel.one_step(x, results, seed=tf.stack([7, step]))
        return moved / after.proposed_results.initial_momentum[0]

    lengths = tf.function(lambda: tf.map_fn(length, tf.range(2000), tf.float64))().numpy()
    assert np.ptp(lengths, axis=(1, 2)).max() < 1e-9  # one number for all chains
    counts = np.bincount(np.rint(lengths[:, 0, 0]).astype(int), minlength=5)[1:]
    assert len(counts) == 4 and np.sum((counts - 500) ** 2 / 500) < 16.3
    compiled = tf.function(lambda: tf.map_fn(length, tf.range(20), tf.float64), jit_compile=True)().numpy()
    np.testing.assert_allclose(compiled, lengths[:20], rtol=1e-9)


def test_pairs_of_leapfrog_numbers_survive_keras_and_bad_ones_are_refused():
    kernel = mcmc.HMC(0.1, [2, 5])
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(kernel))
    assert copy == kernel and hash(copy) == hash(kernel) and kernel.num_leapfrog_steps == (2, 5)
    for bad, error in (((3, 2), ValueError), ((0, 2), ValueError), ((1, 2, 3), ValueError), ((1.5, 2), ValueError)):
        with pytest.raises(error, match="num_leapfrog_steps"):
            mcmc.HMC(0.1, bad)


# --- bases in the coordinates of the chain ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def far():
    """p(x) = base(x) = N(1000, 50²), in a model that was adapted to it."""
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros", use_bias=False)])
    model = ebm.EnergyModel(network, base_measure=tfd.MultivariateNormalDiag([1000.0], [50.0]))
    model.adapt(np.random.default_rng(0).normal(1000, 50, size=(5000, 1)))
    return model


GLOBAL = {
    "independence": lambda base: mcmc.IndependenceMetropolis(base),
    "sequential": lambda base: mcmc.Sequential([mcmc.IndependenceMetropolis(base), mcmc.MALA(0.5)]),
    "tempered_transition": lambda base: mcmc.TemperedTransition(mcmc.MALA(0.5), base, 3),
    "nested": lambda base: mcmc.Sequential(
        [mcmc.Sequential([mcmc.IndependenceMetropolis(base)]), mcmc.RandomWalk(0.1)]
    ),
    "replica_exchange": lambda base: mcmc.ReplicaExchange(mcmc.IndependenceMetropolis(base), [1.0, 0.5]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GLOBAL)
def test_bases_over_x_propose_where_the_chain_is(far, name, monkeypatch):
    """Proposals from the target itself are all accepted, but those of p^½; mean and sd within 4 standard errors of 200
    chains. Control: without the translation nothing is accepted, and it is warned of."""
    p = ebm.EnergyDistribution(far, kernel=GLOBAL[name](far.base))
    x = p.sample_chains(1, 200, seed=0, num_burnin_steps=12, jit_compile=False)
    states = x.states.numpy().ravel()
    assert abs(states.mean() - 1000) < 4 * 50 / np.sqrt(200) and abs(states.std() / 50 - 1) < 4 / np.sqrt(400)
    assert np.mean(x.is_accepted) > 0.95
    if name == "independence":
        monkeypatch.setattr(mcmc.IndependenceMetropolis, "in_coordinates", lambda self, standardization: self)
        with pytest.warns(UserWarning, match="200 of 200 chains never moved"):
            p.sample_chains(1, 200, seed=0, num_burnin_steps=12, jit_compile=False)


def test_bases_inside_losses_and_importance_sampling_are_over_x(far):
    kernel = mcmc.Sequential([mcmc.IndependenceMetropolis(far.base), mcmc.RandomWalk(0.1)])
    loss = ebm.losses.MaximumLikelihood(kernel, 3, mcmc.FromBase())
    output = loss(far.energy_function, tf.zeros([50, 1]), seed=0)
    moved, _, _ = loss.negatives(far.energy_function, tf.zeros([50, 1]), tf.constant([0, 1]), False)
    assert np.isfinite(output.per_example).all() and np.abs(moved).max() < 6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimate = ebm.evaluation.annealed_importance_sampling(far, kernel=kernel, num_temperatures=4, num_chains=16)
    assert abs(estimate.value) < 1e-3  # the base is the target, and Z = 1


def test_the_translation_follows_the_weights_and_keeps_equality(far):
    kernel = mcmc.IndependenceMetropolis(far.base)
    translated = kernel.in_coordinates(far.standardization)
    assert translated == kernel.in_coordinates(far.standardization) != kernel
    assert "standardization" not in translated.get_config()
    inside = mcmc.Transformed(mcmc.IndependenceMetropolis(far.base), tfp.bijectors.Scale(1.0))
    assert inside.in_coordinates(far.standardization) == inside  # a base over the transformed space
