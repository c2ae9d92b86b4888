# %% [markdown]
# # 3. Metropolis-Hastings
#
# The Metropolis-Hastings rule turns any way of proposing moves into a sampler of any energy.
#
# **After this you can**
#
# - write Metropolis-Hastings in ten lines, and run the compiled one on thousands of chains;
# - decide when a chain has converged, and by which quantity to judge it;
# - use symmetric and asymmetric proposals, and see what happens when the correction is left out;
# - state which places a proposal must be able to reach;
# - choose its scale, from the acceptance rate and the effective sample size;
# - sample separated modes.
#
# It covers §2.1.2 of the note *Basics of Energy Based Models* and its Figure 1, and applies eqs. 14 and 15.
#
# Prerequisites: [tutorial 2](02_monte_carlo_and_markov_chains.ipynb). Reading time about 30 minutes. Next: [tutorial
# 4](04_hamiltonian_monte_carlo.ipynb).

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, GREEN, VERMILION, Ledger, size, style

tfd = tfp.distributions
style()

# %% [markdown]
# ## The algorithm
#
# The target is known up to its normaliser, $P(x) = \hat P(x)/Z$ with $\hat P = e^{-E}$. There is a proposal
# distribution $q(x^*|x)$ that we can sample. (The note prints $P(x) = P(x)/Z$ without the hat, calls $q$ the "Markov
# chain", which is the result of the algorithm and not the proposal, and drops the $\min(1, \cdot)$ of α where $q$ is
# symmetric.) Then
#
# 1. draw $x_0 \sim P_0$;
# 2. for $i = 1, \dots, m$: draw a candidate $x^* \sim q(x^*|x_{i-1})$, compute
#
# $$\alpha = \min\left(1,\; \frac{\hat P(x^*)\,q(x_{i-1}|x^*)}{\hat P(x_{i-1})\,q(x^*|x_{i-1})}\right),$$
#
# and set $x_i = x^*$ with probability $\alpha$, else $x_i = x_{i-1}$.
#
# When a candidate is rejected, the old place counts once more. Here is the algorithm in NumPy for a symmetric proposal,
# $q(x|x^*) = q(x^*|x)$, which cancels in α:


# %%
def metropolis(log_p, x, scale, num_steps, rng):
    """A random walk of all chains x [chains, d] at once; returns [num_steps, chains, d]."""
    path, log_p_x = [], log_p(x)
    for _ in range(num_steps):
        candidate = x + scale * rng.normal(size=x.shape)
        log_p_candidate = log_p(candidate)
        accepted = np.log(rng.uniform(size=len(x))) < log_p_candidate - log_p_x
        x = np.where(accepted[:, None], candidate, x)
        log_p_x = np.where(accepted, log_p_candidate, log_p_x)
        path.append(x)
    return np.array(path)


# %% [markdown]
# The package has the same walk, compiled: `ebm.mcmc.RandomWalk(scale)`. Both on $E(x) = x^2/2$, whose variance is 1:

# %%
num_chains = size(2_000, 500)  # `size(full, smoke)`: the full amount of work, or a small one for a test run
by_hand = metropolis(lambda x: -0.5 * x[:, 0] ** 2, np.zeros((num_chains, 1)), 2.4, 200, np.random.default_rng(0))


def normal(x):
    return -0.5 * tf.reduce_sum(x**2, -1)


walk = ebm.mcmc.RandomWalk(scale=2.4)
compiled = ebm.mcmc.sample(normal, tf.zeros([num_chains, 1]), walk, num_results=1, num_burnin_steps=199, seed=0)
variance_error = np.sqrt(2 / num_chains)
print(f"variance of x_200: by hand {by_hand[-1].var():.3f}, compiled {compiled.states[-1].numpy().var():.3f}", end=" ")
print(f"(both ± {variance_error:.3f})")

# %% [markdown]
# ## Figure 1: two modes, seen from far away
#
# The example of the note: a target of two Gaussians, and a base distribution $P_0$ far above them. Our target is
# `ebm.targets.two_gaussians()`, $0.3\,N((-2, 0), 0.5^2 I) + 0.7\,N((2, 0), 0.5^2 I)$. Its exact density is known, so
# that we can check the result. The walk itself only uses $\log \hat P$.

# %%
target = ebm.targets.two_gaussians()
base = tfd.MultivariateNormalDiag([0.0, 8.0], [0.6, 0.6])

num_chains, num_steps = size(1_000, 300), size(6_000, 3_000)
start = base.sample(num_chains, seed=[0, 1])
walk = ebm.mcmc.RandomWalk(scale=2.0)
chains = ebm.mcmc.sample(target.log_prob, start, walk, num_results=num_steps, seed=1)
states = np.concatenate([start[None], chains.states], 0)  # [steps + 1, chains, 2], the start included

# %% figure="metropolis_hastings"
axis_1, axis_2 = np.linspace(-4.5, 4.5, 181), np.linspace(-2.5, 12.5, 301)
nodes = np.stack(np.meshgrid(axis_1, axis_2), -1).astype("float32")

fig, (left, right) = plt.subplots(1, 2, figsize=(8.6, 6.6), sharex=True, sharey=True)
left.contourf(axis_1, axis_2, target.prob(nodes), 12)
left.contour(axis_1, axis_2, base.prob(nodes), [0.02, 0.1, 0.2, 0.3, 0.4], colors="white", linewidths=1.5)
left.text(1.8, 8.7, "base $P_0$", color="white")
left.text(-1.3, 1.6, "target P", color="white")
left.set(title="Target and base", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
right.plot(*states[-1].T, ".", color=BLUE, ms=3, alpha=0.6, label=f"{num_chains} chains, last state")
right.plot(*states[:201, 3].T, ".-", color=VERMILION, lw=1.3, ms=7, label="one chain, first 200 steps")
right.plot(*states[0, 3], "o", color=BLACK, ms=9, label="its start")
right.set(title="Samples of the Markov chain", xlabel="$x_1$", aspect="equal")
right.legend(loc="upper right", fontsize=11)
plt.show()

# %% [markdown]
# ## When has a chain converged?
#
# "Starting from some $n < m$ we will obtain samples from $P$." Which $n$? Over a thousand chains we can see how their
# distribution changes. The height $x_2$ has settled after some twenty steps. The share of chains in the left mode has
# not: at first nearly half of the chains fall into each mode, and only crossings between the modes bring the share to
# 0.3.

# %%
height = states[..., 1].mean(1)
left_share = (states[..., 0] < 0).mean(1)

fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4))
steps = np.arange(num_steps + 1)
for ax, values, truth, title in (
    (axes[0], height, 0.0, "Mean height $x_2$"),
    (axes[1], left_share, 0.3, "Share of the left mode"),
):
    ax.plot(steps[1:], values[1:], color=BLUE, label="over all chains")
    ax.axhline(truth, color=BLACK, linestyle=":", label="truth")
    ax.set(title=title, xlabel="step", xscale="log")
    ax.legend()
axes[1].set_ylim(0.2, 0.6)
plt.show()

# %% [markdown]
# So a chain must be judged by its *slowest* quantity. R-hat, which compares chains with each other, helps to find it:
# `ebm.mcmc.diagnose` computes it for each coordinate, and it should be near 1. (Tutorial 4 has more on R-hat.) We drop
# the first half:

# %%
kept = chains.states[num_steps // 2 :]
judged = ebm.mcmc.diagnose(kept)
share = ebm.mcmc.diagnose(tf.cast(kept[..., 0] < 0, tf.float32), event_ndims=0)
early = ebm.mcmc.diagnose(chains.states[20:80])
print(f"R-hat of steps 20 to 80: {early.rhat.round(3)}, of the second half: {judged.rhat.round(3)}")
print(f"mean                    {judged.mean.round(4)} ± {judged.mcse.round(4)}, truth {target.mean().numpy()}")
print(f"share of the left mode  {share.mean:.4f} ± {share.mcse:.4f}, truth 0.3")
print(f"acceptance rate         {np.mean(chains.is_accepted):.3f}")

# %% [markdown]
# $Z$ was never used. Add 100 to $\log\hat P$, that is, multiply $\hat P$ by $e^{100}$, and every decision stays the
# same:

# %%
precise = ebm.targets.two_gaussians(tf.float64)
first = tf.cast(start[:100], tf.float64)
runs = [
    ebm.mcmc.sample(log_p, first, walk, num_results=200, seed=2).states
    for log_p in (precise.log_prob, lambda x: precise.log_prob(x) + 100)
]
same_share = np.mean(runs[0].numpy() == runs[1].numpy())
print(f"share of states that are equal: {same_share}")

# %% [markdown]
# ## Why accept what is worse?
#
# "If we only took steps with improvements, then sooner or later we would have stabilized in the distribution mode." We
# test this with three rules, everything else equal: accept always, accept improvements only, accept with probability α.


# %%
def walk_by_rule(rule, num_steps=400, num_chains=1_000, scale=1.5, seed=0):
    rng = np.random.default_rng(seed)
    x = np.array([0.0, 8.0]) + 0.6 * rng.normal(size=(num_chains, 2))
    log_p = log_density(x)
    for _ in range(num_steps):
        candidate = x + scale * rng.normal(size=x.shape)
        log_p_candidate = log_density(candidate)
        accepted = rule(log_p_candidate - log_p, rng)
        x, log_p = np.where(accepted[:, None], candidate, x), np.where(accepted, log_p_candidate, log_p)
    return x


def log_density(x):
    """log P of the two Gaussians, in NumPy."""
    squares = ((x[:, None] - np.array([[-2.0, 0.0], [2.0, 0.0]])) ** 2).sum(-1) / (2 * 0.5**2)
    return np.logaddexp(np.log(0.3) - squares[:, 0], np.log(0.7) - squares[:, 1])


rules = {
    "always": lambda gain, rng: np.full(len(gain), True),
    "improvements only": lambda gain, rng: gain > 0,
    "with probability α": lambda gain, rng: np.log(rng.uniform(size=len(gain))) < gain,
}
ends = {name: walk_by_rule(rule) for name, rule in rules.items()}

fig, axes = plt.subplots(1, 3, figsize=(11, 3.9))
variances = {}
for ax, (name, x) in zip(axes, ends.items(), strict=True):
    variances[name] = x[:, 1].var()
    ax.plot(*x.T, ".", color=BLUE, ms=4, alpha=0.6)
    ax.set(title=f"accept {name}", xlabel="$x_1$", aspect="equal")
    limit = 100 if name == "always" else 4
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
axes[0].set_ylabel("$x_2$")
plt.show()
for name, variance in variances.items():
    print(f"accept {name:20s} variance of x₂ after 400 steps: {variance:.5f} (truth 0.25)")

# %% [markdown]
# Without rejection the walkers spread without bound (the left panel's axes go to ±100, the others' to ±4): the variance
# grows by $1.5^2$ in each step. If only improvements are accepted, all walkers end on the two peaks. Accepting with
# probability α gives a sampler.
#
# ## Asymmetric proposals
#
# Why does α have this form? The flow from $x$ to $x^* \ne x$ is
#
# $$P(x)\,q(x^*|x)\,\alpha(x, x^*) = \min\big(P(x)\,q(x^*|x),\; P(x^*)\,q(x|x^*)\big),$$
#
# and the right side does not change when $x$ and $x^*$ are exchanged. That is detailed balance, eq. 15, for *any* $q$.
# As a matrix: take a random target on 30 places and a random, thoroughly asymmetric proposal.

# %%
rng = np.random.default_rng(3)
probabilities = rng.dirichlet(np.ones(30))
proposal = rng.dirichlet(np.ones(30), size=30)  # proposal[i, j] = q(j|i)


def hastings_matrix(ratio):
    """T[i, j] of the chain that accepts with min(1, ratio[i, j])."""
    matrix = proposal * np.minimum(1, ratio)
    np.fill_diagonal(matrix, 0)
    return matrix + np.diag(1 - matrix.sum(1))


p_ratio = probabilities / probabilities[:, None]  # P(j)/P(i)
right_matrix = hastings_matrix(p_ratio * proposal.T / proposal)
wrong_matrix = hastings_matrix(p_ratio)  # the factor of q left out
for name, matrix in (("with q", right_matrix), ("without q", wrong_matrix)):
    flow = probabilities[:, None] * matrix
    limit = np.linalg.matrix_power(matrix, 1_000)[0]
    distance = 0.5 * abs(limit - probabilities).sum()
    print(f"{name:10s} |F − Fᵀ| ≤ {abs(flow - flow.T).max():.0e}, limit is {distance:.1e} away from P")

# %% [markdown]
# A practical case: a quantity is positive, so its proposals should be positive too. Stretch it, $x^* = x\,e^{0.8 Z}$.
# Then $q(x^*|x)$ is log-normal, and $q(x|x^*)/q(x^*|x) = x^*/x$. The target is a Gamma distribution, $E(x) = x - 2\log
# x$, whose mean is 3.
#
# If the factor is left out, theory predicts the result: the proposal by itself is in balance with $1/x$, so the chain
# samples $P(x)/x$. That is another Gamma distribution, of mean 2, and nothing in the trace of the chain would reveal
# the mistake.


# %%
def gamma_log_prob(x):
    return 2 * tf.math.log(x) - x


def stretch(x, seed):
    return x * tf.exp(0.8 * tf.random.stateless_normal(tf.shape(x), seed))


def log_ratio(x, x_new):
    """log q(x|x*) − log q(x*|x)."""
    return tf.math.log(x_new / x)


num_walkers = size(20_000, 5_000)
kernels = {
    "with q(x|x*)/q(x*|x)": ebm.mcmc.MetropolisHastings(stretch, log_ratio),
    "ratio left out": ebm.mcmc.MetropolisHastings(stretch),
}
positive = {
    name: ebm.mcmc.sample(gamma_log_prob, tf.ones([num_walkers]), kernel, num_results=1, num_burnin_steps=200, seed=4)
    .states[-1]
    .numpy()
    for name, kernel in kernels.items()
}

fig, ax = plt.subplots(figsize=(7.5, 3.7))
axis = np.linspace(0, 12, 400)
for (name, x), color in zip(positive.items(), (BLUE, VERMILION), strict=True):
    ax.hist(x, np.linspace(0, 12, 61), density=True, color=color, alpha=0.35, label=f"{name}: mean {x.mean():.2f}")
ax.plot(axis, axis**2 * np.exp(-axis) / 2, color=BLUE, label="target, Gamma(3)")
ax.plot(axis, axis * np.exp(-axis), "--", color=VERMILION, label="target/x, Gamma(2)")
ax.set(title="A stretching proposal needs its correction", xlabel="x", ylabel="density")
ax.legend()
plt.show()

# %% [markdown]
# `None` in place of the ratio means "q is symmetric"; use it only when that is true. Langevin proposals, which drift
# downhill, are asymmetric too: with their ratio they are MALA (tutorial 5).
#
# ## What a proposal must reach
#
# The note asks whether the support of $q$ must match that of $P$. It need not. Three rules hold, shown here on two
# islands, the uniform distribution on $[-2, -1] \cup [1, 2]$, with all chains starting on the left one:
#
# - proposals *outside* the support of $P$ do no harm: they have $P(x^*) = 0$ and are rejected;
# - proposals may be *narrower* than the support, if chains can get everywhere in several steps. If not, the chain is
#   reducible (tutorial 2);
# - each move must be possible in the reverse direction: where $q(x|x^*) = 0$, α is zero.


# %%
def islands(x):
    return tf.where((tf.abs(x) >= 1) & (tf.abs(x) <= 2), 0.0, -np.inf)


def window(low, high):
    return lambda x, seed: x + tf.random.stateless_uniform(tf.shape(x), seed, low, high)


def no_way_back(x, x_new):
    """q only goes to the right: q(x|x*) = 0."""
    return tf.fill(tf.shape(x), -np.inf)


proposals = {
    "wide: normal, sd 3": ebm.mcmc.RandomWalk(3.0),
    "window ±2.5": ebm.mcmc.MetropolisHastings(window(-2.5, 2.5)),
    "window ±0.5": ebm.mcmc.MetropolisHastings(window(-0.5, 0.5)),
    "to the right only": ebm.mcmc.MetropolisHastings(window(0.0, 2.5), no_way_back),
}
shore = tf.random.stateless_uniform([size(5_000, 2_000)], [0, 1], -2.0, -1.0)
fig, axes = plt.subplots(1, 4, figsize=(11, 2.9), sharey=True)
on_right = {}
for ax, (name, kernel) in zip(axes, proposals.items(), strict=True):
    run = ebm.mcmc.sample(islands, shore, kernel, num_results=1, num_burnin_steps=500, seed=5)
    x = run.states[-1].numpy()
    on_right[name] = np.mean(x > 0)
    ax.hist(x, np.linspace(-2.4, 2.4, 49), density=True, color=BLUE, alpha=0.5)
    ax.plot([-2, -2, -1, -1, 1, 1, 2, 2], [0, 0.5, 0.5, 0, 0, 0.5, 0.5, 0], color=BLACK, label="target")
    ax.set(title=name, xlabel="x")
    print(f"{name:20s} share on the right {on_right[name]:.3f}, chains that moved {np.mean(x != shore):.3f}")
axes[0].set_ylabel("density")
axes[3].legend()
plt.show()

# %% [markdown]
# ## Acceptance and effective sample size
#
# How large should the steps be? Small ones are nearly always accepted, but hardly move. Large ones are nearly always
# rejected. The figure of merit is the effective sample size per step (tutorial 2).
#
# On $N(0, 1)$ everything is known. The acceptance rate of a walk of scale $s$ is $\frac2\pi\arctan\frac2s$. The chain
# on a fine grid is a matrix $T$, from which the ESS follows without simulation: for $f(x) = x$,
#
# $$\frac{\text{ESS}}{n} = \frac{\operatorname{var} f}{2\,\langle f, (I - T)^{-1} f\rangle_P - \operatorname{var} f} .$$


# %%
def exact_walk(scale, half_width=7.0, num=401):
    """Acceptance rate and ESS per step of a random walk on N(0, 1), by the matrix of a grid."""
    x, spacing = np.linspace(-half_width, half_width, num, retstep=True)
    law = np.exp(-0.5 * x**2)
    law /= law.sum()
    steps = spacing * np.exp(-0.5 * ((x - x[:, None]) / scale) ** 2) / (scale * np.sqrt(2 * np.pi))
    moves = steps * np.minimum(1, law / law[:, None])
    acceptance = law @ moves.sum(1)
    transition = moves + np.diag(1 - moves.sum(1))
    solved = np.linalg.solve(np.eye(num) - transition + law, x)  # + law: only the constant is not determined
    variance = law @ x**2
    return acceptance, variance / (2 * law @ (x * solved) - variance)


scales = np.geomspace(0.3, 20, 10)
exact = np.array([exact_walk(scale) for scale in scales])


def measured_walk(dimension, scale, seed):
    """The same two numbers from chains that start at exact draws; ESS averaged over the coordinates."""
    start = tf.random.stateless_normal([200, dimension], [seed, 7])
    run = ebm.mcmc.sample(normal, start, ebm.mcmc.RandomWalk(scale), num_results=size(2_000, 400), seed=seed)
    judged = ebm.mcmc.diagnose(run)
    return judged.acceptance_rate, judged.ess.mean() / (run.states.shape[0] * run.states.shape[1])


in_1 = np.array([measured_walk(1, scale, k) for k, scale in enumerate(scales)])
scales_10 = np.geomspace(0.2, 1.8, 10)
in_10 = np.array([measured_walk(10, scale, k) for k, scale in enumerate(scales_10)])

fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8))
fine = np.geomspace(0.1, 30, 100)
left.semilogx(fine, 2 / np.pi * np.arctan(2 / fine), color=BLUE, label="d = 1, exact")
left.semilogx(scales, in_1[:, 0], "o", color=BLUE, label="measured")
normal_cdf = np.vectorize(lambda z: 0.5 * (1 + math.erf(z / math.sqrt(2))))
left.semilogx(fine, 2 * normal_cdf(-fine * np.sqrt(10) / 2), color=VERMILION, label=r"d = 10, $2\Phi(-s\sqrt{d}/2)$")
left.semilogx(scales_10, in_10[:, 0], "s", color=VERMILION, label="measured")
left.set(title="Acceptance falls with the scale", xlabel="scale of the walk", ylabel="acceptance rate")
left.legend(fontsize=11)
curve = np.array([exact_walk(scale) for scale in np.geomspace(0.3, 25, 20)])
right.plot(curve[:, 0], curve[:, 1], color=BLUE, label="d = 1, exact")
right.plot(in_1[:, 0], in_1[:, 1], "o", color=BLUE, label="d = 1, measured")
right.plot(in_10[:, 0], 10 * in_10[:, 1], "s", color=VERMILION, label="d = 10, measured, × 10")
right.axvline(0.44, color=BLUE, lw=1, ls=":")
right.axvline(0.234, color=VERMILION, lw=1, ls=":")
right.set(title="Best in between", xlabel="acceptance rate", ylabel="ESS per step", ylim=(0, 0.42))
right.legend(fontsize=11)
plt.show()

# %% [markdown]
# The best acceptance is near 0.44 in one dimension and falls to 0.234 in many (dotted; Roberts, Gelman & Gilks 1997).
# The optimum is flat, so the second digit does not matter. The dimension does: the best ESS per step falls like
# $0.331/d$, because a random walk must shorten its steps as $d$ grows. `Adaptive` finds the scale during the burn-in,
# and `summarize` keeps statistics instead of samples:

# %%
dimensions = np.array(size([1, 2, 4, 8, 16, 32], [1, 32]))
num_results = size(6_000, 3_000)
efficiency = []
for dimension in dimensions:
    kernel = ebm.mcmc.Adaptive(ebm.mcmc.RandomWalk(1.0), target_accept_prob=0.44 if dimension == 1 else 0.234)
    start = tf.random.stateless_normal([200, dimension], [int(dimension), 8])
    run = ebm.mcmc.summarize(normal, start, kernel, num_results=num_results, num_burnin_steps=600, seed=6)
    efficiency.append(np.mean(run.ess) / (200 * num_results))
    print(f"d = {dimension:2d}: scale {run.step_size:.3f}, 2.38/√d = {2.38 / np.sqrt(dimension):.3f}", end=", ")
    print(f"acceptance {run.acceptance_rate:.3f}, ESS per step × d = {efficiency[-1] * dimension:.3f}")

# %%
fig, ax = plt.subplots(figsize=(6.5, 3.6))
ax.loglog(dimensions, efficiency, "o", color=BLUE, ms=8, label="measured, scale adapted")
ax.loglog(dimensions, 0.331 / dimensions, color=BLACK, label="0.331 / d")
ax.set(title="What dimension costs a random walk", xlabel="dimension d", ylabel="ESS per step")
ax.set_xticks(dimensions, [str(d) for d in dimensions])
ax.minorticks_off()
ax.legend()
plt.show()

# %% [markdown]
# Hamiltonian Monte Carlo (tutorial 4) and Langevin dynamics (tutorial 5) do better by using the gradient of the energy.
#
# ## Separated modes
#
# Steps that suit one mode may never find the other. Take the same two Gaussians and steps of 0.3. Chains started in
# both modes stay where they are, and their shares are those of the starts, whatever $P$ is. Two cures keep detailed
# balance:
#
# - a *global move* now and then: `IndependenceMetropolis(base)` proposes from a fixed, wide distribution, wherever the
#   chain is. Its $q(x^*|x) = b(x^*)$ is asymmetric, and corrected. `Sequential` applies one kernel after the other;
# - *tempering*: `ReplicaExchange` runs copies at higher temperatures, which cross with ease, and swaps neighbours.

# %%
wide = tfd.MultivariateNormalDiag([0.0, 0.0], [3.0, 2.0])
local = ebm.mcmc.RandomWalk(0.3)
samplers = {
    "local steps": local,
    "with global moves": ebm.mcmc.Sequential([local, ebm.mcmc.IndependenceMetropolis(wide)]),
    "tempered": ebm.mcmc.ReplicaExchange(local, inverse_temperatures=[1.0, 0.4, 0.15, 0.05]),
}
scattered = wide.sample(100, seed=[0, 9])
scattered = tf.gather(scattered, tf.argsort(scattered[:, 0]))  # chains numbered from left to right
results = {}
for name, kernel in samplers.items():
    run = ebm.mcmc.sample(
        target.log_prob, scattered, kernel, num_results=size(4_000, 1_000), num_burnin_steps=500, seed=7
    )
    side = ebm.mcmc.diagnose(tf.cast(run.states[..., 0] < 0, tf.float32), event_ndims=0)
    results[name] = run, side
    print(f"{name:18s} R-hat {side.rhat:6.3f}, share of the left mode {side.mean:.3f} ± {side.mcse:.3f}, truth 0.3")

# %%
fig, axes = plt.subplots(3, 1, figsize=(9, 5.4), sharex=True)
for ax, (name, (run, _)) in zip(axes, results.items(), strict=True):
    for k, color in ((10, BLUE), (50, VERMILION), (90, GREEN)):
        ax.plot(run.states[:1000, k, 0], color=color, lw=0.8)
    ax.set(title=f"{name}: three of the chains", ylabel="$x_1$", ylim=(-4, 4))
axes[-1].set_xlabel("step")
plt.show()

# %% [markdown]
# The first row shows chains that look converged one by one, while together they have the wrong shares. R-hat detects
# it, since the chains disagree.
#
# ## The same on a network
#
# None of this depends on where $\log\hat P$ comes from. Here it is a Keras network on a Gaussian base (tutorial 1), and
# the truth is computed on a grid.

# %%
model = ebm.EnergyModel(
    ebm.networks.mlp([2], units=[128, 128], fourier_features=32, seed=1),
    base_measure=tfd.MultivariateNormalDiag([0.0, 0.0], [1.8, 1.8]),
)
p = ebm.EnergyDistribution(model, kernel=ebm.mcmc.RandomWalk(1.5), num_burnin_steps=200)
draws = p.sample(size(10_000, 2_000), seed=8).numpy()

axis = np.linspace(-10, 10, 401)
nodes = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype("float32")
weights = np.exp(p.unnormalized_log_prob(nodes).numpy().astype(float))
weights /= weights.sum()
network_truth = weights @ nodes
network_error = draws.std(0) / np.sqrt(len(draws))
print(f"mean by draws {draws.mean(0).round(3)} ± {network_error.round(3)}, by a grid {network_truth.round(3)}")

# %% [markdown]
# ## The numbers beside the truth
#
# Statistical rows are held to four standard errors. KS is the largest distance between two distribution functions,
# times $\sqrt n$; if the samples follow the given distribution it exceeds 2.3 once in twenty thousand times
# (Kolmogorov). The formula $0.331/d$ holds for large $d$, up to terms of relative size $1/d$.


# %%
def ks(x, distribution_function):
    """√n times the largest gap between the draws' distribution function and the given one."""
    x = np.sort(x)
    steps = np.arange(len(x) + 1) / len(x)
    given = distribution_function(x)
    return np.sqrt(len(x)) * max(abs(steps[1:] - given).max(), abs(steps[:-1] - given).max())


def gamma_3(x):
    return 1 - np.exp(-x) * (1 + x + x**2 / 2)


def gamma_2(x):
    return 1 - np.exp(-x) * (1 + x)


corrected, uncorrected = positive.values()
ledger = Ledger()
ledger.equal("walk by hand: variance", by_hand[-1].var(), 1.0, 4 * variance_error)
ledger.equal("compiled walk: variance", compiled.states[-1].numpy().var(), 1.0, 4 * variance_error)
for k in range(2):
    ledger.equal(f"Figure 1: mean of x{k + 1}", judged.mean[k], target.mean()[k], 4 * judged.mcse[k])
ledger.equal("Figure 1: share of the left mode", share.mean, 0.3, 4 * share.mcse)
largest_rhat = size(1.05, 1.1)  # of n steps that forget in τ it is about √(1 + τ/n): short runs end above 1
ledger.at_most("Figure 1: R-hat", judged.rhat.max(), largest_rhat)
ledger.equal("Z is not needed: states that are equal", same_share, 1.0, 1e-3)
for name, truth in (("always", 0.6**2 + 400 * 1.5**2), ("with probability α", 0.25)):
    ledger.equal(f"accept {name}: variance", variances[name], truth, 4 * truth * np.sqrt(2 / 1_000))
ledger.at_most("accept improvements only: variance, truth / 10", variances["improvements only"], 0.25 / 10)
flow = probabilities[:, None] * right_matrix
ledger.at_most("random q: largest |F − Fᵀ|", abs(flow - flow.T).max(), 1e-16)
ledger.at_most("stretch, corrected: KS to Gamma(3)", ks(corrected, gamma_3), 2.3)
ledger.at_least("stretch, ratio left out: KS to Gamma(3)", ks(uncorrected, gamma_3), 2.3)
ledger.at_most("stretch, ratio left out: KS to Gamma(2)", ks(uncorrected, gamma_2), 2.3)
half = 4 * 0.5 / np.sqrt(len(shore))
ledger.equal("islands, wide proposal: right share", on_right["wide: normal, sd 3"], 0.5, half)
ledger.equal("islands, window ±2.5: right share", on_right["window ±2.5"], 0.5, half)
ledger.equal("islands, window ±0.5: right share", on_right["window ±0.5"], 0.0, 0.0)
ledger.equal("islands, to the right only: right share", on_right["to the right only"], 0.0, 0.0)
ledger.equal("acceptance at d = 1: matrix, arctan", exact[6, 0], 2 / np.pi * np.arctan(2 / scales[6]), 1e-3)
num_draws = 200 * size(2_000, 400)
for k in (2, 5, 7):
    name = f"d = 1, scale {scales[k]:.2f}"
    tau = 1 / exact[k, 1]
    ledger.equal(f"{name}: acceptance", in_1[k, 0], exact[k, 0], 4 * 0.5 * np.sqrt(tau / num_draws))
    # the estimate sums over some five correlation times; its variance is Sokal's (1997)
    error = np.sqrt(2 * (10 * tau + 1) / num_draws)
    ledger.equal(f"{name}: ESS per step", in_1[k, 1], exact[k, 1], 4 * error * exact[k, 1])
# by the scatter of the means of 200 chains in 32 coordinates; the second term is the error of the law, the third
# that of means over a finite time
error = 4 * np.sqrt(2 / (199 * 32)) + 1 / 32 + 32 / 0.331 / (2 * num_results)
ledger.equal("d = 32: ESS per step × d", 32 * efficiency[-1], 0.331, error * 0.331)
for name in ("with global moves", "tempered"):
    side = results[name][1]
    ledger.equal(f"{name}: share of the left mode", side.mean, 0.3, 4 * side.mcse)
    ledger.at_most(f"{name}: R-hat", side.rhat, largest_rhat)
ledger.at_least("local steps: R-hat", results["local steps"][1].rhat, 1.05)
for k in range(2):
    ledger.equal(f"network: mean of x{k + 1}", draws[:, k].mean(), network_truth[k], 4 * network_error[k])
ledger.close()
