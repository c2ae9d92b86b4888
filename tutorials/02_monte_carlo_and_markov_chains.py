# %% [markdown]
# # 2. Monte Carlo and Markov chains
#
# MCMC estimates averages over a distribution from samples (Monte Carlo), and makes the samples by a random walk (a
# Markov chain). This tutorial takes the two halves of the name one after the other, each with its theorem and its
# counter-examples.
#
# **After this you can**
#
# - estimate an integral from samples, with a correct error bar (eq. 11);
# - decide when a grid beats samples and when not, from a figure that you measured;
# - write a finite Markov chain as a matrix and find its stationary distribution (eqs. 12-14, Definitions 1 and 2);
# - check detailed balance, entry by entry (eq. 15, Theorem 2.1);
# - recognise chains that never converge: periodic ones, reducible ones, and those without a stationary distribution;
# - compute how many independent samples a correlated chain is worth.
#
# It covers §2.1 up to §2.1.1 of the note *Basics of Energy Based Models*.
#
# Prerequisites: [tutorial 1](01_energies_as_distributions.ipynb), means and variances, matrices. Reading time about 30
# minutes. Next: [tutorial 3](03_metropolis_hastings.ipynb).

# %%
import functools

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, Ledger, size, style

style()
rng = np.random.default_rng(0)

# %% [markdown]
# ## An average of samples
#
# Eq. 11 of the note replaces an integral by an average over samples from $P$:
#
# $$I = \int P(x) f(x)\,dx \;\approx\; \hat I = \frac1n\sum_{i=1}^n f(x_i), \qquad x_i \sim P . \tag{11}$$
#
# $\hat I$ is random, so run it many times and look at it. Let $P = N(0, 1)$ and $f(x) = e^x$. Then $I = \sqrt e$, and
# the variance is $D f = e^2 - e$.

# %%
n = 1_000
repeats = size(4_000, 1_000)  # `size(full, smoke)`: the full amount of work, or a small one for a test run
estimates = np.exp(rng.normal(size=(repeats, n))).mean(1)

truth, variance = np.exp(0.5), np.e**2 - np.e
spread = estimates.std(ddof=1)
# the standard error of a standard deviation, from the fourth moment
spread_error = np.sqrt((np.mean((estimates - estimates.mean()) ** 4) - spread**4) / repeats) / (2 * spread)

print(f"mean of the estimates {estimates.mean():.5f}, truth √e = {truth:.5f}")
print(f"their spread          {spread:.5f} ± {spread_error:.5f}")
print(f"√(D f / n)            {np.sqrt(variance / n):.5f}")
print(f"√(1/n) · D f          {np.sqrt(1 / n) * variance:.5f}")

# %% [markdown]
# The note lists three properties.
#
# **Property 1, unbiasedness.** The mean of the estimates is $I$. **Erratum:** the note adds that the estimate therefore
# "somehow converges to the true integral". Unbiasedness says nothing about convergence: $f(x_1)$ alone, without any
# average, is unbiased too. That $\hat I$ converges is the law of large numbers.
#
# **Property 2, approximation error.** $D\hat I = \frac1n D f$, and by the central limit theorem $\hat I$ is nearly
# normal. **Erratum:** the note then prints the standard error as $\sqrt{1/n}\cdot D f$. The root belongs over the
# complete fraction,
#
# $$\text{standard error} = \sqrt{\frac{D f}{n}} ,$$
#
# as the unit already shows: an error of $f$ is measured like $f$, not like its square. The measured spread agrees with
# the line "√(D f / n)" and not with the last one.

# %%
fig, ax = plt.subplots(figsize=(7, 3.6))
axis = np.linspace(1.2, 2.1, 400)
ax.hist(estimates, 50, density=True, color=BLUE, alpha=0.35, label=f"{repeats} estimates, n = {n}")
for error, color, style_, label in (
    (np.sqrt(variance / n), BLACK, "-", "normal, sd √(D f / n)"),
    (np.sqrt(1 / n) * variance, VERMILION, "--", "normal, sd √(1/n) · D f, as printed"),
):
    curve = np.exp(-0.5 * ((axis - truth) / error) ** 2) / (error * np.sqrt(2 * np.pi))
    ax.plot(axis, curve, style_, color=color, label=label)
ax.set(title="The estimate is random; its spread is √(D f / n)", xlabel="estimate of $\\sqrt{e}$", ylabel="density")
ax.set(xlim=(1.2, 2.1), ylim=(0, 9.5))
ax.legend(loc="upper right")
plt.show()

# %% [markdown]
# The less $f$ fluctuates, the smaller is the error. For a constant $f$ one sample is enough.
#
# ## Samples against grids
#
# **Property 3: the rate does not depend on the dimension.** The note lists how errors fall with the number $n$ of
# places where $f$ is evaluated: trapezoid rule $n^{-2/d}$, Simpson's rule $n^{-4/d}$, Monte Carlo $n^{-1/2}$. We
# measure all three. Let $P$ be uniform on the cube $[0, 1]^d$ and $f(x) = e^{-x_1 - \dots - x_d}$. Then $I = (1 -
# 1/e)^d$.


# %%
def one_axis(rule, intervals):
    """Weighted values of exp(−x) at the nodes of one axis."""
    nodes, weights = np.linspace(0, 1, intervals + 1), np.ones(intervals + 1)
    if rule == "trapezoid":
        weights[[0, -1]] = 0.5
    else:  # Simpson: 1 4 2 4 … 2 4 1, thirds
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        weights /= 3
    return weights * np.exp(-nodes) / intervals


def grid_integral(rule, intervals, dimension):
    """The sum over all (intervals + 1)^d nodes."""
    return functools.reduce(np.multiply.outer, [one_axis(rule, intervals)] * dimension).sum()


def grid_error(rule, intervals, dimension):
    """Relative error of that sum. f is a product, so the sum over the grid is a product of sums: any size is cheap."""
    return abs((one_axis(rule, intervals).sum() / (1 - np.exp(-1))) ** dimension - 1)


whole, product = grid_integral("Simpson", 6, 6), one_axis("Simpson", 6).sum() ** 6
print(f"7^6 = {7**6} nodes one by one: {whole:.15f}, by the product: {product:.15f}")

# %%
DIMENSIONS = (1, 2, 4, 8)
counts = np.array([10, 100, 1_000, 10_000])
trials = size(300, 100)
draws_error = {}
for dimension in DIMENSIONS:
    errors = []
    for count in counts:
        values = [np.exp(-rng.uniform(size=(count, dimension)).sum(1)).mean() for _ in range(trials)]
        errors.append(np.sqrt(np.mean((np.array(values) / (1 - np.exp(-1)) ** dimension - 1) ** 2)))
    draws_error[dimension] = np.array(errors)


def relative_sd(dimension):
    """sd of f over its mean; the error of n draws is this over √n."""
    return np.sqrt(((1 - np.exp(-2)) / 2 / (1 - np.exp(-1)) ** 2) ** dimension - 1)


# %% figure="monte_carlo"
fig, axes = plt.subplots(1, 4, figsize=(11, 3.7), sharey=True)
for ax, dimension in zip(axes, DIMENSIONS, strict=True):
    for rule, color, marker in (("trapezoid", BLUE, "s"), ("Simpson", GREEN, "^")):
        intervals = [m for m in 2 ** np.arange(1, 14) if (m + 1.0) ** dimension < 3e8]
        nodes = [(m + 1.0) ** dimension for m in intervals]
        errors = [grid_error(rule, m, dimension) for m in intervals]
        ax.loglog(nodes, errors, marker + "-", color=color, ms=5, label=rule)
    every = np.geomspace(5, 1e8, 2)
    ax.loglog(every, relative_sd(dimension) / np.sqrt(every), color=VERMILION, label="$n^{-1/2}$, theory")
    ax.loglog(counts, draws_error[dimension], "o", color=VERMILION, ms=6, label="samples, measured")
    ax.set(title=f"d = {dimension}", xlabel="evaluations n", xlim=(2, 3e8), ylim=(1e-9, 2))
    ax.set_xticks([1e2, 1e4, 1e6, 1e8])
axes[0].set_ylabel("relative error")
axes[3].legend(fontsize=10, loc="lower left", handlelength=1.5)
fig.suptitle("The error of a grid falls more slowly in higher dimension; that of samples keeps its rate")
plt.show()

# %% [markdown]
# From $d = 4$ on the error of the trapezoid rule falls no faster than that of samples, and from $d = 8$ on Simpson's
# does not either. (This compares *rates*. At $d = 8$ Simpson's rule still has the smaller error in the picture, and the
# error of a given number of samples has grown with $d$, for a reason that follows.) The slopes, measured between two
# fine grids, and for the samples by a straight line through the four measured errors:


# %%
def slope(rule, intervals, dimension):
    """Of log error against log n, between a grid and one twice as fine."""
    coarse, fine = grid_error(rule, intervals, dimension), grid_error(rule, 2 * intervals, dimension)
    return np.log(fine / coarse) / (dimension * np.log((2 * intervals + 1) / (intervals + 1)))


line = np.log(counts) - np.log(counts).mean()
slope_error = 1 / np.sqrt(2 * trials) / np.sqrt(np.sum(line**2))
draws_slope = {d: np.sum(line * np.log(error)) / np.sum(line**2) for d, error in draws_error.items()}
print("  d   trapezoid  −2/d     Simpson  −4/d    draws  −1/2")
for d in DIMENSIONS:
    print(f"{d:3d} {slope('trapezoid', 256, d):10.3f} {-2 / d:6.3f}", end=" ")
    print(f"{slope('Simpson', 32, d):10.3f} {-4 / d:6.3f} {draws_slope[d]:8.3f} {-0.5:6.3f}")

# %% [markdown]
# Two things are missing from the list.
#
# **A grid can be far better than its rate.** $n^{-2/d}$ is the trapezoid rule's rate for functions that do not vanish
# at the edge of the box. A smooth density that has decayed to zero there is integrated with an error that falls faster
# than any power. That is why `ebm.evaluation.grid_log_normalizer` uses that rule. Here is $\log Z$ of $E(x) = x^2/2$ on
# $[-9, 9]$:

# %%
exact_log_z = 0.5 * np.log(2 * np.pi)
for num in (18, 20, 22, 24, 26):
    value = ebm.evaluation.grid_log_normalizer(lambda x: 0.5 * x[:, 0] ** 2, -9, 9, num=num, dtype=tf.float64).value
    print(f"{num} cells: error {abs(value - exact_log_z):.0e}")

# %% [markdown]
# **Erratum: the rate does not depend on the dimension, but the constant may.** The note concludes that the error itself
# does not depend on the dimension. But $D f$ is a property of $f$, and $f$ changes with $d$. For $x \sim N(0, I_d)$
# take the mean of the squared coordinates, and take $e^{x_1 + \dots + x_d}$, which behaves like the weights of
# importance sampling. The first is harmless. The second has the relative variance $e^d - 1$:

# %%
print("  d   draws needed for 1 %: mean of squares   exp of the sum")
for d in (1, 2, 4, 8, 16, 32):
    print(f"{d:3d} {2 / d * 1e4:35.0f} {np.expm1(d) * 1e4:18.2g}")

# %% [markdown]
# That is why $\log Z$ of a high-dimensional energy is not computed as a plain average.
# `ebm.evaluation.annealed_importance_sampling` replaces one hopeless average by many easy ones.
#
# ## Markov chains
#
# How does one sample from $P(x) = e^{-E(x)}/Z$? By a random walk. **Definition 1** of the note: a Markov chain
# generates its variables one after the other, each from the one before it, so that their joint distribution is
#
# $$P(x_1, \dots, x_n) = P_0(x_1)\,P_1(x_2|x_1)\cdots P_{n-1}(x_n|x_{n-1}) . \tag{12}$$
#
# $P_0$ is the *base* distribution, where chains start. **Erratum:** the note prints the last factor as
# $P_n(x_n|x_{n-1})$. After $P_1(x_2|x_1)$ the factor of $x_n$ has the index $n - 1$. To show that it matters, we let
# the three transition distributions $P_1, P_2, P_3$ differ, walk over three places, and compare the frequency of each
# path with both products.

# %%
base = np.array([0.6, 0.3, 0.1])
transitions = {i: rng.dirichlet(np.ones(3), size=3) for i in (1, 2, 3)}  # rows: from; columns: to


def step(states, transition):
    """Moves each walker by one draw of its row."""
    return (rng.uniform(size=(len(states), 1)) > transition[states].cumsum(1)).sum(1)


walkers = size(200_000, 50_000)
x1 = rng.choice(3, walkers, p=base)
x2 = step(x1, transitions[1])
x3 = step(x2, transitions[2])
frequencies = np.zeros((3, 3, 3))
np.add.at(frequencies, (x1, x2, x3), 1 / walkers)


def chi_square(expected):
    """Σ (seen − expected)²/expected over the 27 paths; about 26 ± 7 if the expectation is true."""
    return walkers * np.sum((frequencies - expected) ** 2 / expected)


first_two = base[:, None] * transitions[1]
right = chi_square(first_two[:, :, None] * transitions[2])
printed = chi_square(first_two[:, :, None] * transitions[3])
print(f"χ² with 26 degrees of freedom: P_(n−1) {right:.1f}, P_n as printed {printed:.0f}")

# %% [markdown]
# **Definition 2**: a chain is *homogeneous* if its transition distribution is the same at every step,
#
# $$P_i(x_i|x_{i-1}) = P(x_i|x_{i-1}) \quad \forall i . \tag{13}$$
#
# (Eq. 13 numbers a transition by the place where it ends, eq. 12 by the place where it starts. Once all steps share one
# transition, the numbering does not matter.) From here on chains are homogeneous, and a finite one is a matrix:
# $T_{ij} = P(j|i)$, rows sum to one.
#
# ## A chain and its stationary distribution
#
# Take 53 places on a line and the double well of tutorial 1 at temperature 2, $P_i \propto e^{-E(x_i)/2}$. The rule of
# the walk, which tutorial 3 explains, is: propose one of the three nearest places to the left or to the right, and go
# there with probability $\min(1, P_j/P_i)$, else stay.

# %%
places = np.linspace(-2.6, 2.6, 53)
energy = (places**4 - 4 * places**2 + places / 2) / 2
target = np.exp(-energy)
target /= target.sum()


def metropolis_matrix(probabilities, reach=3):
    """T[i, j] of the walk above."""
    i, j = np.indices((len(probabilities),) * 2)
    proposed = (0 < abs(i - j)) & (abs(i - j) <= reach)
    matrix = np.where(proposed, np.minimum(1, probabilities[j] / probabilities[i]) / (2 * reach), 0)
    return matrix + np.diag(1 - matrix.sum(1))


matrix = metropolis_matrix(target)

# %% [markdown]
# Eq. 14 follows the distribution of the walker from step to step: the next one is $P_n(x') = \sum_x
# P(x'|x)\,P_{n-1}(x)$, a row vector times the matrix. (The note writes $P_1(\cdot|\cdot)$ for a transition in eq. 12
# and $P_1(\cdot)$ for the distribution of $x_2$ here.) All walkers start at the right end.

# %%
NUM_STEPS = 600
laws = [np.eye(len(places))[-1]]
for _ in range(NUM_STEPS):
    laws.append(laws[-1] @ matrix)
laws = np.array(laws)

distance = 0.5 * np.abs(laws - target).sum(1)  # total variation
eigenvalues = np.sort(np.abs(np.linalg.eigvals(matrix)))[::-1]
print(f"largest eigenvalues: {eigenvalues[0]:.6f}, {eigenvalues[1]:.6f}, {eigenvalues[2]:.6f}")
print("total variation from P after 0, 10, 100, 600 steps:", distance[[0, 10, 100, 600]].round(4))

# %%
fig, (left, right_) = plt.subplots(1, 2, figsize=(10, 3.8))
image = left.pcolormesh(places, np.arange(NUM_STEPS + 1), np.sqrt(laws), vmax=np.sqrt(0.12), rasterized=True)
left.set(title="Law of the walker, step by step", xlabel="x", ylabel="step n", yscale="symlog", ylim=(0, NUM_STEPS))
left.set_yticks([0, 1, 10, 100, 600], ["0", "1", "10", "100", "600"])
fig.colorbar(image, ax=left, label="√probability")
steps = np.arange(NUM_STEPS + 1)
right_.semilogy(steps, distance, color=BLUE, label="from the stationary law")
right_.semilogy(steps[1:], 0.5 * np.abs(np.diff(laws, axis=0)).sum(1), color=ORANGE, label="from one step to the next")
decay = distance[300] * eigenvalues[1] ** (steps - 300.0)
right_.semilogy(steps, decay, ":", color=BLACK, label=r"slope $|\lambda_2|^n$")
right_.set(title="Distance, total variation", xlabel="step n", ylabel="total variation", ylim=(1e-4, 2))
right_.legend()
plt.show()

# %% [markdown]
# First the right well fills, within some twenty steps. Then walkers cross the barrier, at a rate given by the second
# eigenvalue: the distance falls like $|\lambda_2|^n$.
#
# Compare eq. 14 with this picture. It writes $P_{n-1}$ for the distributions of $x_n$, $x_{n+1}$ and $x_{n+2}$ alike.
# That is not a misprint of indices: it means that the distribution has stopped changing, $P_n = P_{n-1}$. But the
# orange curve shows when that holds: in the limit. After any finite number of steps the distribution still changes a
# little (here by a factor $|\lambda_2|$ less each time). So a chain gives a sample from approximately $P$, and it is up
# to you to check how good the approximation is.
#
# The same with walkers in place of a matrix. `ebm.mcmc.MetropolisHastings` is the package's version of the walk; its
# histogram after $n$ steps must be $P_n$.


# %%
def log_target(i):
    """log P of places by their number, −∞ beyond the ends."""
    inside = (i >= 0) & (i < len(places))
    index = tf.cast(tf.clip_by_value(i, 0, len(places) - 1), tf.int32)
    return tf.where(inside, tf.gather(tf.constant(-energy, tf.float32), index), -np.inf)


def propose(i, seed):
    jump = tf.random.stateless_uniform(tf.shape(i), seed, -3, 3, tf.int32)  # −3 … 2
    return i + tf.cast(tf.where(jump >= 0, jump + 1, jump), tf.float32)


num_chains = size(20_000, 4_000)
start = tf.fill([num_chains], float(len(places) - 1))
kernel = ebm.mcmc.MetropolisHastings(propose)
walk = ebm.mcmc.sample(log_target, start, kernel, num_results=100, seed=1).states.numpy().astype(int)

SHOWN = (1, 10, 100)
fig, axes = plt.subplots(1, 3, figsize=(10, 3.2))
chi_squares = {}
for ax, number in zip(axes, SHOWN, strict=True):
    seen, law = np.bincount(walk[number - 1], minlength=len(places)), laws[number]
    common = law * num_chains >= 5  # where a normal law of the counts can be trusted
    chi_squares[number] = (np.sum((seen - num_chains * law)[common] ** 2 / (num_chains * law)[common]), common.sum())
    ax.bar(places, seen / num_chains, width=0.1, color=BLUE, alpha=0.4, label="walkers")
    ax.plot(places, law, color=BLACK, label="$P_0 T^n$")
    ax.set(title=f"n = {number}", xlabel="x")
axes[0].set_ylabel("probability")
axes[0].legend()
plt.show()
for number, (value, bins) in chi_squares.items():
    print(f"n = {number:3d}: χ² = {value:.1f} over {bins} places")

# %% [markdown]
# ## Detailed balance
#
# How do we know that the distribution of the walk stops changing at *our* $P$? **Theorem 2.1**: if
#
# $$P(x)\,P(x'|x) = P(x')\,P(x|x') \quad \text{for all } x, x', \tag{15}$$
#
# then $P$ is stationary. Sum both sides over $x$: on the left is the next distribution at $x'$, on the right $P(x')$
# times one.
#
# Eq. 15 is about *flows*: as many walkers go from $x$ to $x'$ as come back. Put the flows $F_{ij} = P_i T_{ij}$ into a
# matrix, and detailed balance is $F = F^\top$, entry by entry. (The white square in the middle of the left panel is the
# top of the barrier: all places around it are likelier, every proposal is accepted, and no walker stays.) Beside it we
# show a chain that is stationary *without* detailed balance: a ring whose walkers go clockwise with probability 0.6,
# counter-clockwise with 0.2. The uniform distribution does not change, but there is a current.

# %%
flow = target[:, None] * matrix
ring = 0.2 * np.eye(12) + 0.6 * np.roll(np.eye(12), 1, 1) + 0.2 * np.roll(np.eye(12), -1, 1)
ring_flow = np.full((12, 1), 1 / 12) * ring

fig, axes = plt.subplots(1, 3, figsize=(11, 3.5))
picture = axes[0].imshow(np.where(flow > 0, flow, np.nan), norm="log", origin="lower")
axes[0].set_title("Flows F of the walk")
fig.colorbar(picture, ax=axes[0], fraction=0.046, pad=0.04)
for ax, values, title in (
    (axes[1], flow - flow.T, "$F - F^T$ of the walk"),
    (axes[2], ring_flow - ring_flow.T, "$F - F^T$ of the ring"),
):
    picture = ax.imshow(values, cmap="PuOr", vmin=-0.04, vmax=0.04, origin="lower")
    ax.set_title(title)
    fig.colorbar(picture, ax=ax, fraction=0.046, pad=0.04)
for ax in axes:
    ax.set(xlabel="to", ylabel="from")
plt.show()

for name, law, chain in (("walk", target, matrix), ("ring", np.full(12, 1 / 12), ring)):
    flows = law[:, None] * chain
    print(f"{name}: |F − Fᵀ| ≤ {abs(flows - flows.T).max():.0e}, |P T − P| ≤ {abs(law @ chain - law).max():.0e}")

# %% [markdown]
# So detailed balance is sufficient for stationarity, but not necessary. It is popular because it is *local*: it can be
# arranged for each pair of places separately, without knowing $Z$. Tutorial 3 uses nothing else.
#
# ## Chains that never converge
#
# **Erratum:** after Theorem 2.1 the note says that once the equation is checked "the Markov chain will converge".
# Detailed balance makes $P$ stationary; it does not make the chain *converge* to it. For that two more properties are
# needed, which the note names before: the chain is *irreducible* (it can get everywhere) and *aperiodic* (it does not
# return in a fixed rhythm). Here are three chains of four places, all in detailed balance with the uniform
# distribution, started at place 0:
#
# - **good**: stay or step around the square;
# - **periodic**: always step around the square. After an even number of steps a walker is never at an odd place;
# - **reducible**: two islands. Walkers of one never see the other, and the limit depends on where they started.

# %%
around = 0.5 * (np.roll(np.eye(4), 1, 1) + np.roll(np.eye(4), -1, 1))
chains = {
    "good": 0.5 * np.eye(4) + 0.5 * around,
    "periodic": around,
    "reducible": np.kron(np.eye(2), np.full((2, 2), 0.5)),
}
looks = {"good": (BLUE, "o", 0.0), "periodic": (VERMILION, "s", 0.07), "reducible": (GREEN, "^", -0.07)}
fig, axes = plt.subplots(1, 3, figsize=(11, 3.7))
limits = {}
for name, chain in chains.items():
    color, marker, nudge = looks[name]
    laws_4 = [np.eye(4)[0]]
    for _ in range(30):
        laws_4.append(laws_4[-1] @ chain)
    laws_4 = np.array(laws_4)
    far = 0.5 * np.abs(laws_4 - 0.25).sum(1)
    limits[name] = far[-1]
    axes[0].plot(laws_4[:13, 0], marker=marker, ms=6, color=color, label=name)
    axes[1].semilogy(far, marker=marker, ms=5, markevery=(1 if nudge > 0 else 0, 2), color=color)
    values = np.linalg.eigvals(chain)
    axes[2].plot(values.real, values.imag + nudge, marker, ms=9, color=color, fillstyle="none", mew=2)
axes[0].axhline(0.25, color=BLACK, lw=1, ls=":")
axes[0].set(title="Probability of place 0", xlabel="step n", ylabel="$P_n(0)$", ylim=(-0.03, 1.05))
axes[0].legend()
axes[1].set(title="Distance from the uniform law", xlabel="step n", ylabel="total variation", ylim=(1e-10, 3))
circle = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
axes[2].plot(circle.real, circle.imag, color=BLACK, lw=1)
axes[2].set(title="Eigenvalues, unit circle", xlabel="real part", ylabel="imaginary part", aspect="equal")
plt.show()

# %% [markdown]
# The eigenvalues distinguish them. One of them is always 1. A second one at 1 makes a chain reducible, one at −1 or
# elsewhere on the circle makes it periodic; only if all others lie inside the circle does the distribution converge, at
# the rate of the largest. (Markers at the same place are drawn slightly apart.)
#
# Energies with separated modes give chains that are *nearly* reducible: $\lambda_2$ is so near 1 that convergence takes
# longer than anyone waits. Lower the temperature of the double well and see how many steps halve the distance:

# %%
for temperature in (2.0, 1.0, 0.5, 0.25):
    cold = np.exp(-(energy - energy.min()) * 2 / temperature)
    root = np.sqrt(cold)
    second = np.linalg.eigvalsh(root[:, None] * metropolis_matrix(cold) / root)[-2]  # detailed balance: symmetric
    print(
        f"T = {temperature:4g}: λ₂ = {second:.9f}, the distance halves every {np.log(0.5) / np.log(second):.3g} steps"
    )

# %% [markdown]
# **Erratum:** the note calls a chain irreducible if $P(x|x') > 0$ for all pairs. That is more than needed: our walk
# only reaches its neighbours in one step, yet gets everywhere in several, which is what irreducible means.
#
# **Erratum:** the note says that such a chain "has a stationary state". On finitely many places this is true. On a line
# or in a space it is not: let $x' = x + Z$, $Z \sim N(0, 1)$. Every place can be reached from every other in one step,
# and there is no rhythm. Still there is no stationary distribution. The walkers spread without bound:

# %%
free = np.zeros(size(20_000, 5_000))
for number in range(1, 1_001):
    free += rng.normal(size=len(free))
    if number in (1, 10, 100, 1_000):
        print(f"variance of x_n, n = {number:5d}: {free.var():8.2f}")
free_variance, free_error = free.var() / 1_000, np.sqrt(2 / len(free))

# %% [markdown]
# What is missing is a stationary distribution. Detailed balance with a $P$ that has a finite $Z$ provides it, by
# construction, and *then* irreducible and aperiodic suffice.
#
# ## What a correlated sample is worth
#
# Successive samples of a chain resemble each other, so an average over $n$ of them is worth fewer independent samples.
# Take a chain whose correlation at lag $k$ is $\rho^k$, namely $x' = \rho x + \sqrt{1 - \rho^2}\,Z$. It is stationary
# at $N(0, 1)$. Its effective sample size is
#
# $$\text{ESS} = n\,\frac{1 - \rho}{1 + \rho}, \qquad
# \text{standard error of the mean} = \frac{\text{sd}}{\sqrt{\text{ESS}}} .$$
#
# The rate $n^{-1/2}$ survives, with a larger constant. Measured over many chains at once:

# %%
num_chains, length = size(1_000, 300), 4_096
checkpoints = 2 ** np.arange(4, 13)
fig, ax = plt.subplots(figsize=(7, 4))
kept = {}
for rho, color, marker in ((0.0, BLUE, "o"), (0.9, ORANGE, "s"), (0.99, PURPLE, "^")):
    x, xs = rng.normal(size=num_chains), np.empty((length, num_chains), np.float32)
    for t in range(length):
        xs[t] = x
        x = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=num_chains)
    kept[rho] = xs
    errors = [np.sqrt(np.mean(xs[:k].mean(0) ** 2)) for k in checkpoints]
    ax.loglog(checkpoints, errors, marker, color=color, label=f"ρ = {rho:g}, measured")
    ax.loglog(checkpoints, np.sqrt((1 + rho) / (1 - rho) / checkpoints), color=color, lw=1.2)
ax.set(title="Error of a chain's mean", xlabel="steps n", ylabel="root mean square error", ylim=(0.008, 5))
ax.plot([], [], color=BLACK, lw=1.2, label="sd / √ESS")
ax.legend(ncol=2)
plt.show()

# %% [markdown]
# (At the left the chains of ρ = 0.99 are too short for the formula: their error cannot exceed the standard deviation of
# the distribution, 1.)
#
# The ρ of a real chain is unknown. `ebm.mcmc.diagnose` estimates the ESS from the samples, and with it the standard
# error of the mean, `mcse`. It also prints R-hat, which compares chains with each other; tutorials 3 and 4 explain it.

# %%
judged = ebm.mcmc.diagnose(kept[0.9], event_ndims=0)
exact_ess = num_chains * length * 0.1 / 1.9
print(f"ESS of {num_chains} chains of {length} draws, ρ = 0.9: {judged.ess:.0f}, by the formula {exact_ess:.0f}")
print(f"mean {judged.mean:.5f} ± {judged.mcse:.5f}, truth 0;  R-hat {judged.rhat:.4f}")

# each chain alone: do nine in ten error bars of 1.645 standard errors hold the truth?
alone = [ebm.mcmc.diagnose(kept[0.9][:, k], event_ndims=0) for k in range(size(300, 150))]
coverage = np.mean([abs(one.mean) < 1.645 * one.mcse for one in alone])
print(f"share of {len(alone)} single chains whose 90 % interval holds the truth: {coverage:.3f}")

# %% [markdown]
# ## The numbers beside the truth
#
# Rows about slopes of grids are held to $2k/m$, the difference between the $m$ intervals of the theory and the $m + 1$
# nodes that $n$ counts ($k$ is the order). Statistical rows are held to four standard errors, and χ² to four standard
# deviations above its mean.

# %%
ledger = Ledger()
ledger.equal("unbiased: mean of the estimates", estimates.mean(), truth, 4 * spread / np.sqrt(repeats))
ledger.equal("standard error is √(D f / n)", spread, np.sqrt(variance / n), 4 * spread_error)
for d in DIMENSIONS:
    ledger.equal(f"trapezoid, d = {d}: slope × d", d * slope("trapezoid", 256, d), -2.0, 2 * 2 / 256)
    ledger.equal(f"Simpson, d = {d}: slope × d", d * slope("Simpson", 32, d), -4.0, 2 * 4 / 32)
    ledger.equal(f"draws, d = {d}: slope", draws_slope[d], -0.5, 4 * slope_error)
ledger.at_most("χ² of eq. 12 with P_(n−1)", right, 26 + 4 * np.sqrt(2 * 26))
ledger.at_least("χ² of eq. 12 with P_n", printed, 26 + 4 * np.sqrt(2 * 26))
for number, (value, bins) in chi_squares.items():
    ledger.at_most(f"χ² of walkers after {number} steps", value, bins + 4 * np.sqrt(2 * bins))
ledger.at_most("eq. 15: largest |F − Fᵀ|", abs(flow - flow.T).max(), 1e-16)
ledger.at_most("P is stationary: largest |P T − P|", abs(target @ matrix - target).max(), 1e-15)
rate = (distance[600] / distance[300]) ** (1 / 300)
ledger.equal("decay per step is λ₂", rate, eigenvalues[1], 1e-4)
ledger.at_most("good chain: distance after 30 steps", limits["good"], 0.5**30)
ledger.equal("periodic chain: distance for ever", limits["periodic"], 0.5, 1e-12)
ledger.equal("reducible chain: distance for ever", limits["reducible"], 0.5, 1e-12)
ledger.equal("free walk: variance / n", free_variance, 1.0, 4 * free_error)
lags = 80  # over so many the estimate sums; its relative variance is 2(2·lags + 1)/draws (Sokal 1997)
ess_error = np.sqrt(2 * (2 * lags + 1) / (num_chains * length))
ledger.equal("ESS / (n (1−ρ)/(1+ρ))", judged.ess / exact_ess, 1.0, 4 * ess_error)
ledger.equal("coverage of 90 % intervals", coverage, 0.9, 4 * np.sqrt(0.09 / len(alone)))
ledger.close()
