"""The kernels against NumPy twins and against TFP's own, in float64, for given noise."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_probability as tfp
from laws import quartic

from tfp_ebm import mcmc

SEED = tf.constant([3, 14], tf.int32)


def numpy_log_prob(x):
    return -(x**4 / 4 + 0.5 * np.cos(x)).sum(-1) - 0.3 * x[..., 0] * x[..., 1]


def numpy_gradient(x):
    return -(x**3) + 0.5 * np.sin(x) - 0.3 * x[..., ::-1]


def leapfrog(x, p, step_size, num_steps, mass=1.0):
    """Eqs. 17-20, one line each."""
    for _ in range(num_steps):
        p = p + step_size / 2 * numpy_gradient(x)
        x = x + step_size * p / mass
        p = p + step_size / 2 * numpy_gradient(x)
    return x, p


def hamiltonian(x, p, mass=1.0):
    return -numpy_log_prob(x) + (p**2 / (2 * mass)).sum(-1)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=[7, 2])


def one_step(kernel, x):
    """The Metropolis-Hastings results of one step from x."""
    kernel = kernel(quartic)
    state = tf.constant(x)
    return kernel.one_step(state, kernel.bootstrap_results(state), seed=SEED)


def test_gradient_of_the_twin(x):
    with tf.GradientTape() as tape:
        state = tf.constant(x)
        tape.watch(state)
        value = quartic(state)
    np.testing.assert_allclose(value, numpy_log_prob(x), rtol=1e-12)
    np.testing.assert_allclose(tape.gradient(value, state), numpy_gradient(x), rtol=1e-12)


@pytest.mark.parametrize("mass", [None, 2.5, [0.5, 3.0]])
def test_hmc_follows_equations_17_to_20(x, mass):
    step_size, num_steps = 0.2, 4
    _, results = one_step(mcmc.HMC(step_size, num_steps, mass), x)
    m = np.array(1.0 if mass is None else mass)
    # TFP draws q ~ N(0, 1) for p = √m·q ~ N(0, m)
    p = np.sqrt(m) * results.proposed_results.initial_momentum[0].numpy()
    twin_x, twin_p = leapfrog(x, p, step_size, num_steps, m)
    np.testing.assert_allclose(results.proposed_state, twin_x, rtol=1e-11)
    energy_change = hamiltonian(twin_x, twin_p, m) - hamiltonian(x, p, m)
    np.testing.assert_allclose(results.log_accept_ratio, -energy_change, rtol=1e-8, atol=1e-11)
    if mass is not None:  # control: the mass upside down is seen
        wrong_x, _ = leapfrog(x, p / m, step_size, num_steps, 1 / m)
        assert np.abs(wrong_x - results.proposed_state).max() > 1e-2


def test_momentum_is_standard_normal():
    # 2e5 numbers: the standard error of the variance is √(2/n) = .0032, so 4 SE raise a false alarm once in 16 000;
    # momentum N(0, 1/m) or N(0, m) instead of N(0, 1) in TFP's coordinates (m = 4) is 200 SE away.
    state = np.zeros([100_000, 2])
    _, results = one_step(mcmc.HMC(0.1, 1, mass=4.0), state)
    q = results.proposed_results.initial_momentum[0].numpy()
    assert abs(q.var() - 1) < 4 * np.sqrt(2 / q.size)


def test_hmc_is_reversible(x):
    _, results = one_step(mcmc.HMC(0.2, 4), x)
    end = results.proposed_state.numpy()
    momentum = results.proposed_results.final_momentum[0].numpy()
    back, momentum_back = leapfrog(end, -momentum, 0.2, 4)
    np.testing.assert_allclose(back, x, atol=1e-13)
    np.testing.assert_allclose(-momentum_back, results.proposed_results.initial_momentum[0], atol=1e-13)
    # control: without turning the momentum round the way does not lead back
    assert np.abs(leapfrog(end, momentum, 0.2, 4)[0] - x).max() > 1e-1


def test_energy_error_is_of_second_order(x):
    """log |ΔH| against log ε at fixed time has slope 2; Euler's method, as control, has slope 1."""
    step_sizes = 0.2 / 2.0 ** np.arange(4)
    leapfrog_errors, euler_errors = [], []
    for step_size in step_sizes:
        num_steps = round(0.8 / step_size)
        _, results = one_step(mcmc.HMC(step_size, num_steps), x)
        leapfrog_errors.append(np.abs(results.log_accept_ratio).mean())
        p = results.proposed_results.initial_momentum[0].numpy()
        y, q = x, p
        for _ in range(num_steps):
            y, q = y + step_size * q, q + step_size * numpy_gradient(y)
        euler_errors.append(np.abs(hamiltonian(y, q) - hamiltonian(x, p)).mean())
    slope = np.polyfit(np.log(step_sizes), np.log(leapfrog_errors), 1)[0]
    control = np.polyfit(np.log(step_sizes), np.log(euler_errors), 1)[0]
    assert abs(slope - 2) < 0.15
    assert abs(control - 2) > 0.5


@pytest.mark.parametrize("step_size", [0.3, [0.2, 0.5]])
def test_mala_is_hmc_of_one_leapfrog_step(x, step_size):
    """Both kernels against the leapfrog twin driven by the very noise that each of them drew."""
    epsilon = np.asarray(step_size)
    _, results = one_step(mcmc.MALA(step_size), x)
    noise = (results.proposed_state.numpy() - x - 0.5 * epsilon**2 * numpy_gradient(x)) / epsilon
    twin_x, twin_p = leapfrog(x, noise, epsilon, 1)
    np.testing.assert_allclose(results.proposed_state, twin_x, rtol=1e-12)
    energy_change = hamiltonian(twin_x, twin_p) - hamiltonian(x, noise)
    np.testing.assert_allclose(results.log_accept_ratio, -energy_change, rtol=1e-9, atol=1e-12)

    _, results = one_step(mcmc.HMC(step_size, 1), x)
    twin_x, twin_p = leapfrog(x, results.proposed_results.initial_momentum[0].numpy(), epsilon, 1)
    np.testing.assert_allclose(results.proposed_state, twin_x, rtol=1e-12)
    # control: TFP's convention, where MALA's step size is ε²
    wrong_x, _ = leapfrog(x, noise, epsilon**2, 1)
    assert np.abs(wrong_x - one_step(mcmc.MALA(step_size), x)[1].proposed_state).max() > 1e-2


@pytest.mark.parametrize("noise_scale", [None, 0.1])
def test_langevin_correction_is_the_ratio_of_proposal_densities(x, noise_scale):
    step_size = 0.3
    tau = step_size if noise_scale is None else noise_scale
    kernel = mcmc.UncalibratedLangevin(quartic, step_size, noise_scale)
    y, results = kernel.one_step(tf.constant(x), kernel.bootstrap_results(tf.constant(x)), seed=SEED)
    y = y.numpy()

    def log_q(end, start):
        return -((end - start - 0.5 * step_size**2 * numpy_gradient(start)) ** 2).sum(-1) / (2 * tau**2)

    np.testing.assert_allclose(results.log_acceptance_correction, log_q(x, y) - log_q(y, x), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(results.target_log_prob, numpy_log_prob(y), rtol=1e-12)
    np.testing.assert_allclose(results.grads_target_log_prob[0], numpy_gradient(y), rtol=1e-12)
    assert np.abs(results.log_acceptance_correction).min() > 1e-6


def test_langevin_agrees_with_tfp(x, monkeypatch):
    """The same proposal and acceptance correction as TFP's kernel at step size ε², given the same noise."""
    noise = tf.constant(np.random.default_rng(1).normal(size=x.shape))
    monkeypatch.setattr("tfp_ebm.random.normal", lambda *args, **kwargs: noise)
    monkeypatch.setattr(
        "tensorflow_probability.python.mcmc.langevin.samplers.normal", lambda *args, **kwargs: noise, raising=True
    )
    ours = mcmc.UncalibratedLangevin(quartic, 0.3)
    state = tf.constant(x)
    y, results = ours.one_step(state, ours.bootstrap_results(state), seed=SEED)
    with_square = tfp.mcmc.UncalibratedLangevin(quartic, step_size=np.float64(0.3**2))
    y_tfp, results_tfp = with_square.one_step(state, with_square.bootstrap_results(state), seed=SEED)
    np.testing.assert_allclose(y, y_tfp, rtol=1e-13)
    np.testing.assert_allclose(
        results.log_acceptance_correction, results_tfp.log_acceptance_correction, rtol=1e-9, atol=1e-12
    )
    without_square = tfp.mcmc.UncalibratedLangevin(quartic, step_size=np.float64(0.3))
    y_wrong, _ = without_square.one_step(state, without_square.bootstrap_results(state), seed=SEED)
    assert np.abs(y - y_wrong).max() > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip": 0.4},
        {"noise_first": True},
        {"clamp": (-0.5, 0.8)},
        {"clamp": ([-0.5, -9.0], [0.8, 0.1])},
        {"gradient_clip": 0.4, "noise_first": True, "clamp": (-0.5, 0.8), "noise_scale": 0.1},
        {"noise_first": True, "clamp": (-0.5, 0.8), "clamp_noised": True},
    ],
    ids=str,
)
def test_options_of_langevin(x, options, monkeypatch):
    """Two steps against a NumPy twin of the same noise; without its options the twin is elsewhere."""
    noise = np.random.default_rng(1).normal(size=x.shape)
    monkeypatch.setattr("tfp_ebm.random.normal", lambda *args, **kwargs: tf.constant(noise))
    step_size = 0.5

    def twin(
        x, noise_scale=step_size, gradient_clip=np.inf, noise_first=False, clamp=(-np.inf, np.inf), clamp_noised=False
    ):
        for _ in range(2):
            noised = x + noise_scale * noise
            noised = np.clip(noised, *clamp) if clamp_noised else noised
            gradient = numpy_gradient(noised if noise_first else x)
            x = np.clip(noised + step_size**2 / 2 * np.clip(gradient, -gradient_clip, gradient_clip), *clamp)
        return x

    recipe = mcmc.Langevin(step_size, **options)
    kernel = recipe(quartic)
    y, results = tf.constant(x), kernel.bootstrap_results(tf.constant(x))
    for _ in range(2):
        y, results = kernel.one_step(y, results, seed=SEED)
    np.testing.assert_allclose(y, twin(x, **options), rtol=1e-12)
    assert np.abs(y - twin(x)).max() > 1e-2
    told = recipe.log_prob_after(results)
    assert told is None if "noise_first" in options else np.allclose(told, numpy_log_prob(y.numpy()), rtol=1e-12)
    samples = mcmc.sample(quartic, x, recipe, num_results=2, seed=0, jit_compile=False)
    np.testing.assert_allclose(samples.unnormalized_log_prob, numpy_log_prob(samples.states.numpy()), rtol=1e-12)


def test_options_of_langevin_keep_a_nan():
    kernel = mcmc.Langevin(0.1, gradient_clip=1.0, clamp=(0.0, 1.0))(lambda x: tf.reduce_sum(tf.sqrt(x - 0.5), -1))
    x = tf.constant([[0.1, 0.9]])
    assert np.isnan(kernel.one_step(x, kernel.bootstrap_results(x), seed=SEED)[0][0, 0])


def test_clipped_langevin_can_be_calibrated(x):
    """The correction is the ratio of the proposal densities whose drift is clipped; not those of the whole drift."""
    kernel = mcmc.UncalibratedLangevin(quartic, 0.3, gradient_clip=0.4)
    y, results = kernel.one_step(tf.constant(x), kernel.bootstrap_results(tf.constant(x)), seed=SEED)
    y = y.numpy()

    def log_ratio(clip):
        def log_q(end, start):
            drift = 0.5 * 0.3**2 * np.clip(numpy_gradient(start), -clip, clip)
            return -((end - start - drift) ** 2).sum(-1) / (2 * 0.3**2)

        return log_q(x, y) - log_q(y, x)

    np.testing.assert_allclose(results.log_acceptance_correction, log_ratio(0.4), rtol=1e-9, atol=1e-12)
    assert np.abs(results.log_acceptance_correction - log_ratio(np.inf)).max() > 1e-2
    with pytest.raises(ValueError, match="`compute_acceptance`"):
        mcmc.UncalibratedLangevin(quartic, 0.3, clamp=(0.0, 1.0))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_steps_of_the_random_walk_are_normal(jit_compile):
    """On a constant density every step is accepted: the Kolmogorov-Smirnov test of each part, false alarm rate 1e-3."""
    scales = np.array([0.5, 3.0])
    state = tf.constant(np.tile([1.0, -2.0], [2000, 1]))

    @tf.function(autograph=False, jit_compile=jit_compile)
    def step(seed):
        kernel = mcmc.RandomWalk(scales)(lambda x: 0.0 * tf.reduce_sum(x, -1))
        return kernel.one_step(state, kernel.bootstrap_results(state), seed=seed)[0]

    steps = (step(SEED) - state).numpy()
    pvalues = [scipy.stats.kstest(steps[:, i] / scales[i], "norm").pvalue for i in range(2)]
    assert min(pvalues) > 1e-3 and abs(np.corrcoef(steps.T)[0, 1]) < 4 / np.sqrt(2000)
    assert scipy.stats.kstest(steps[:, 0] / (1.3 * scales[0]), "norm").pvalue < 1e-3  # a control
    assert not np.array_equal(steps, (step(SEED + 1) - state).numpy())


@pytest.mark.slow
@pytest.mark.parametrize("calibrated", [True, False])
def test_kernels_of_tfp_by_partial(calibrated):
    """TFP's MALA and Langevin at step size ε² have the law of ours at ε.

    5000 chains, 5 steps: the share accepted by a z-test (|z| < 4, SE .004), the states by KS at p > 1e-3. Control:
    TFP's at ε, which for ε = .6 moves by .77, fails.
    """
    kernel, theirs = (
        (mcmc.MALA, tfp.mcmc.MetropolisAdjustedLangevinAlgorithm)
        if calibrated
        else (mcmc.Langevin, tfp.mcmc.UncalibratedLangevin)
    )
    start = tf.ones([5000, 2], tf.float64)

    def run(kernel, seed):
        samples = mcmc.sample(quartic, start, kernel, num_results=5, seed=seed, jit_compile=False)
        return samples.states[0, :, 0].numpy(), np.mean(samples.is_accepted, 0)

    ours, accepted = run(kernel(0.6), 0)
    squared, accepted_squared = run(functools.partial(theirs, step_size=np.float64(0.36)), 1)
    assert scipy.stats.ks_2samp(ours, squared).pvalue > 1e-3
    error = np.sqrt((accepted.var() + accepted_squared.var()) / 5000)
    assert abs(accepted.mean() - accepted_squared.mean()) <= 4 * error
    assert scipy.stats.ks_2samp(ours, run(functools.partial(theirs, step_size=np.float64(0.6)), 1)[0]).pvalue < 2e-5


def test_langevin_takes_states_of_several_parts():
    """As TFP's kernels do: each part has its own noise, and the correction sums over the parts."""

    def joint(a, b):
        return -0.5 * tf.reduce_sum(a**2, -1) - 0.25 * b**4

    parts = [tf.ones([5, 3], tf.float64), tf.ones([5], tf.float64)]
    kernel = tfp.mcmc.MetropolisHastings(mcmc.UncalibratedLangevin(joint, 0.4))
    moved, results = kernel.one_step(parts, kernel.bootstrap_results(parts), seed=SEED)
    assert [part.shape.as_list() for part in moved] == [[5, 3], [5]]
    a, b = (part.numpy() for part in results.proposed_state)

    def log_q(a1, b1, a0, b0):
        return (-((a1 - a0 + 0.08 * a0) ** 2).sum(-1) - (b1 - b0 + 0.08 * b0**3) ** 2) / (2 * 0.4**2)

    ones = np.ones([5, 3]), np.ones(5)
    target = joint(a, b) - joint(*ones)
    expected = target + log_q(*ones, a, b) - log_q(a, b, *ones)
    np.testing.assert_allclose(results.log_accept_ratio, expected, rtol=1e-10)


def test_kernels_are_tfp_kernels():
    built = {
        mcmc.RandomWalk(1.0): tfp.mcmc.RandomWalkMetropolis,
        mcmc.HMC(0.1, 2): tfp.mcmc.HamiltonianMonteCarlo,
        mcmc.MALA(0.1): tfp.mcmc.MetropolisHastings,
        mcmc.NUTS(0.1): tfp.mcmc.NoUTurnSampler,
        mcmc.Langevin(0.1): mcmc.UncalibratedLangevin,
        mcmc.Adaptive(mcmc.HMC(0.1, 2), 5): tfp.mcmc.DualAveragingStepSizeAdaptation,
    }
    for kernel, tfp_class in built.items():
        assert isinstance(kernel, mcmc.Kernel)
        assert isinstance(kernel(quartic), tfp_class)
        assert kernel(quartic).is_calibrated == (type(kernel) is not mcmc.Langevin)


EXAMPLES = [
    mcmc.RandomWalk(0.5),
    mcmc.RandomWalk([0.5, 1.0]),
    mcmc.HMC(0.1, 3),
    mcmc.HMC([0.1, 0.2], 3, mass=[[1.0, 2.0], [3.0, 4.0]]),
    mcmc.MALA(0.2),
    mcmc.Langevin(0.2, noise_scale=0.01),
    mcmc.Langevin(0.2, gradient_clip=0.03, noise_first=True, clamp=([0.0, -1.0], 1.0), clamp_noised=True),
    mcmc.NUTS(0.3, max_tree_depth=5),
    mcmc.Adaptive(mcmc.HMC(0.1, 3, mass=[1.0, 2.0]), 10, 0.7),
]


@pytest.mark.parametrize("kernel", EXAMPLES, ids=repr)
def test_kernels_are_values(kernel):
    config = keras.saving.serialize_keras_object(kernel)
    restored = keras.saving.deserialize_keras_object(config)
    assert restored == kernel and hash(restored) == hash(kernel) and restored is not kernel
    with pytest.raises(dataclasses.FrozenInstanceError):
        kernel.step_size = 3.0
    assert kernel.without_step_size == kernel.without_step_size.without_step_size
    assert kernel.without_step_size.initial_step_size.shape == kernel.initial_step_size.shape


def test_step_size_is_not_part_of_the_structure():
    assert mcmc.HMC(0.1, 3).without_step_size == mcmc.HMC(0.7, 3).without_step_size
    assert mcmc.HMC(0.1, 3).without_step_size != mcmc.HMC(0.1, 4).without_step_size
    assert mcmc.HMC(0.1, 3).without_step_size != mcmc.HMC([0.1, 0.1], 3).without_step_size
    assert mcmc.HMC(0.1, 3, mass=2.0).without_step_size != mcmc.HMC(0.1, 3).without_step_size
    assert mcmc.RandomWalk(0.1).without_step_size == mcmc.RandomWalk(0.3).without_step_size


def test_arrays_become_tuples():
    kernel = mcmc.HMC(np.float32(0.5), np.int64(3), mass=np.array([[1, 2]], np.int32))
    assert kernel == mcmc.HMC(0.5, 3, ((1.0, 2.0),))
    assert mcmc.HMC(tf.constant(0.5), 3) == mcmc.HMC(0.5, 3)


@pytest.mark.parametrize(
    ("make", "error", "name"),
    [
        (lambda: mcmc.HMC(0.0, 3), ValueError, "step_size"),
        (lambda: mcmc.HMC(-0.1, 3), ValueError, "step_size"),
        (lambda: mcmc.HMC(float("nan"), 3), ValueError, "step_size"),
        (lambda: mcmc.HMC("0.1", 3), TypeError, "step_size"),
        (lambda: mcmc.HMC([0.1, -0.1], 3), ValueError, "step_size"),
        (lambda: mcmc.HMC(["a", "b"], 3), TypeError, "step_size"),
        (lambda: mcmc.HMC(0.1, 0), ValueError, "num_leapfrog_steps"),
        (lambda: mcmc.HMC(0.1, 2.5), ValueError, "num_leapfrog_steps"),
        (lambda: mcmc.HMC(0.1, 3, mass=0.0), ValueError, "mass"),
        (lambda: mcmc.HMC(0.1, 3, mass=[1.0, np.inf]), ValueError, "mass"),
        (lambda: mcmc.HMC(0.1, 3, mass=[]), ValueError, "mass"),
        (lambda: mcmc.MALA(None), TypeError, "step_size"),
        (lambda: mcmc.RandomWalk(0), ValueError, "scale"),
        (lambda: mcmc.Langevin(0.1, noise_scale=-1.0), ValueError, "noise_scale"),
        (lambda: mcmc.Langevin(0.1, gradient_clip=0.0), ValueError, "gradient_clip"),
        (lambda: mcmc.Langevin(0.1, noise_first=1), TypeError, "noise_first"),
        (lambda: mcmc.Langevin(0.1, clamp=1.0), ValueError, "clamp"),
        (lambda: mcmc.Langevin(0.1, clamp_noised=1), TypeError, "clamp_noised"),
        (lambda: mcmc.Langevin(0.1, noise_first=True, clamp_noised=True), ValueError, "clamp_noised"),
        (lambda: mcmc.Langevin(0.1, clamp=(0.0, 1.0), clamp_noised=True), ValueError, "clamp_noised"),
        (lambda: mcmc.Langevin(0.1, clamp=(1.0, 0.0)), ValueError, "clamp"),
        (lambda: mcmc.Langevin(0.1, clamp=(0.0, np.inf)), ValueError, "clamp"),
        (lambda: mcmc.Langevin(0.1, clamp=("a", "b")), TypeError, "clamp"),
        (lambda: mcmc.NUTS(0.1, max_tree_depth=0), ValueError, "max_tree_depth"),
    ],
)
def test_bad_arguments(make, error, name):
    with pytest.raises(error, match=f"`{name}`"):
        make()


def test_langevin_refuses_a_target_without_gradient():
    kernel = mcmc.Langevin(0.1)(lambda x: tf.zeros(x.shape[:-1], x.dtype))
    with pytest.raises(ValueError, match="not differentiable"):
        kernel.bootstrap_results(tf.zeros([3, 2]))


def test_a_target_that_remembers_its_values_has_a_gradient():
    """TFP's bijectors hand out the value of a tensor seen before, through which no gradient flows."""
    target = tfp.distributions.MultivariateNormalTriL(scale_tril=[[1.0, 0.0], [0.5, 1.0]])
    x = tf.ones([3, 2])
    target.log_prob(x)
    kernel = mcmc.MALA(0.1)(target.log_prob)
    results = kernel.bootstrap_results(x)
    moved, _ = kernel.one_step(x, results, seed=SEED)
    assert moved.shape == [3, 2]
    samples = mcmc.sample(target.log_prob, x, mcmc.MALA(0.1), num_results=1, seed=0, jit_compile=False)
    np.testing.assert_allclose(samples.unnormalized_log_prob[0], target.log_prob(samples.states[0] + 0.0), rtol=1e-5)


@pytest.mark.parametrize("kernel", [mcmc.Langevin(0.1), mcmc.MALA(0.1), mcmc.HMC(0.1, 2)])
def test_targets_of_any_number_of_rows_run_in_graph_mode(kernel):
    """As an `EnergyModel`'s do: gradients of such a function do not know how many rows they have."""
    target = tf.function(quartic, input_signature=[tf.TensorSpec((None, 2), tf.float64)])
    x = tf.constant(np.random.default_rng(0).normal(size=(5, 2)))
    states = [mcmc.sample(f, x, kernel, num_results=3, seed=0, jit_compile=False).states for f in (target, quartic)]
    np.testing.assert_allclose(*states, rtol=1e-12)
