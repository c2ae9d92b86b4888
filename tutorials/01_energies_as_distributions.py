# %% [markdown]
# # 1. Energies as distributions
#
# An energy is a function that gives every point a number. Any such function, a formula or a neural network, defines a
# probability distribution, provided that its normaliser is finite. This lesson shows how.
#
# **After this you can**
#
# - turn an energy into a density, and compute its normaliser $Z$ in one and two dimensions (eqs. 1-3);
# - explain temperature, and why the most likely point is not where the samples are (eq. 4);
# - combine distributions by adding their energies (eq. 5);
# - use any Keras network as an energy, and see whether its $Z$ exists;
# - hand an energy to TensorFlow Probability: `tfp.mcmc`, joint distributions, posteriors.
#
# It covers §1 of the note *Basics of Energy Based Models* (eqs. 1-5) and previews eqs. 6-10.
#
# Prerequisites: calculus, NumPy, and a first idea of what a density is. Reading time about 25 minutes. Next: [tutorial
# 2](02_monte_carlo_and_markov_chains.ipynb); all tutorials are listed in [README.md](README.md).

# %%
import math
import warnings

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, GREEN, ORANGE, VERMILION, Ledger, size, style

tfd = tfp.distributions
style()

# %% [markdown]
# ## From an energy to a density
#
# Eq. 1 of the note defines the density of an energy $E$,
#
# $$P(x) = \frac{e^{-E(x)}}{Z}, \qquad Z = \int e^{-E(x)}\,dx . \tag{1, 2}$$
#
# The exponent makes it positive. $Z$, the normaliser, makes it integrate to one. Take a double well: two valleys, the
# left one deeper by about 1.4.


# %%
def double_well(x):
    """E(x) = x⁴ − 4x² + x/2 of points [n, 1]."""
    x = x[:, 0]
    return x**4 - 4 * x**2 + x / 2


log_z = ebm.evaluation.grid_log_normalizer(double_well, -4, 4, dtype=tf.float64)
print(f"log Z = {log_z.value:.12f}, certain to {log_z.standard_error:.0e}")

# %% [markdown]
# `grid_log_normalizer` sums over a fine grid, and reports how far it may be off. For this energy it can be checked
# without a grid. Expand all but $e^{-ax^4}$ into a power series and integrate term by term:
#
# $$\int e^{-ax^4 + bx^2 - cx}dx = \sum_{k,j \ge 0} \frac{b^k}{k!}\,\frac{c^{2j}}{(2j)!}\;
# \tfrac12\, a^{-(m+1)/4}\; \Gamma\!\left(\tfrac{m+1}{4}\right), \quad m = 2k + 2j .$$


# %%
def series_log_normalizer(a, b, c):
    """log ∫ exp(−ax⁴ + bx² − cx) dx, to rounding."""
    log_gamma = np.vectorize(math.lgamma)
    k, j = np.meshgrid(np.arange(200), np.arange(40))
    power = (2 * k + 2 * j + 1) / 4
    terms = k * np.log(b) - log_gamma(k + 1) + 2 * j * np.log(c) - log_gamma(2 * j + 1)
    return np.logaddexp.reduce((terms - power * np.log(a) + log_gamma(power) - np.log(2)).ravel())


exact_log_z = series_log_normalizer(1.0, 4.0, 0.5)
print(f"by the grid   {log_z.value:.12f}\nby the series {exact_log_z:.12f}")

# %%
grid = np.linspace(-3, 3, 1201)
density = np.exp(-double_well(grid[:, None]) - exact_log_z)

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
left.plot(grid, double_well(grid[:, None]), color=BLUE)
left.set(title="An energy", xlabel="x", ylabel="E(x)", ylim=(-6.5, 8))
right.fill_between(grid, density, color=VERMILION, alpha=0.25)
right.plot(grid, density, color=VERMILION)
right.set(title="Its density exp(−E)/Z", xlabel="x", ylabel="P(x)", ylim=(0, None))
plt.show()

# %% [markdown]
# Valleys became hills. The area under the right curve must be one (eq. 3). It is checked here on nodes that the grid
# above did not use, with $Z$ from the series. A constant added to $E$ moves $Z$ and nothing else: only *differences* of
# energy mean something.

# %%
area = np.trapezoid(density, grid)
shifted = ebm.evaluation.grid_log_normalizer(lambda x: double_well(x) + 5, -4, 4, dtype=tf.float64)
print(f"∫ P(x) dx = {area:.12f}")
print(f"log Z of E + 5, less log Z of E: {shifted.value - log_z.value:.12f}")

# %% [markdown]
# ## Temperature
#
# In physics eq. 4 is the *Boltzmann distribution*: a system in contact with a bath of temperature $T$ is in state $i$
# with probability
#
# $$P_i = \frac{e^{-E_i/(k_B T)}}{Z} . \tag{4}$$
#
# How strong is the effect in reality? A hydrogen atom needs 10.2 eV to leave its lowest level for the next one, which
# has four times as many states.

# %%
BOLTZMANN = 8.617333262e-5  # eV per kelvin
for place, kelvin in (("a warm room", 300), ("the face of the Sun", 5772), ("a hot star", 20_000)):
    ratio = 4 * np.exp(-10.2 / (BOLTZMANN * kelvin))
    print(f"{place:20s} {kelvin:6d} K: one excited atom for each {1 / ratio:.2g} at rest")

# %% [markdown]
# Machine learning sets $k_B = 1$, and mostly $T = 1$. **Erratum:** the note prints $T_i$ in eq. 4, as if every state
# had a temperature of its own. There is one temperature, the bath's. With one for each state, "lower energy is more
# likely" would be false:

# %%
levels = np.array([1.0, 2.0])
for name, temperature in (("one T", np.array([1.0, 1.0])), ("a T for each state", np.array([1.0, 4.0]))):
    weights = np.exp(-levels / temperature)
    print(f"{name:19s} P = {np.round(weights / weights.sum(), 3)}")

# %% [markdown]
# A density has a temperature too: $P_T(x) \propto e^{-E(x)/T}$. A high temperature flattens it. A low one concentrates
# it in the deepest well, and as $T \to 0$ only the minimum is left. Here is the double well at three temperatures, with
# the share of the left well and the mean energy (the axis label "E-average of $P_T$") against $T$.

# %%
temperatures = np.geomspace(0.1, 10, 60)
left_share, mean_energy = [], []
wide = np.linspace(-6, 6, 4001)
for temperature in temperatures:
    weights = np.exp(-(double_well(wide[:, None]) + 5) / temperature)
    weights /= weights.sum()
    left_share.append(weights[wide < 0].sum())
    mean_energy.append(weights @ double_well(wide[:, None]))

fig, axes = plt.subplots(1, 3, figsize=(11, 3.4))
for temperature, color in ((4.0, ORANGE), (1.0, BLACK), (0.25, BLUE)):
    values = np.exp(-(double_well(grid[:, None]) + 5) / temperature)
    axes[0].plot(grid, values / np.trapezoid(values, grid), color=color, label=f"T = {temperature:g}")
axes[0].set(title="Density", xlabel="x", ylabel="$P_T(x)$", ylim=(0, None))
axes[0].legend()
axes[1].semilogx(temperatures, left_share, color=BLUE)
axes[1].set(title="Share of the deeper well", xlabel="T", ylabel="P(x < 0)", ylim=(0.45, 1.02))
axes[2].semilogx(temperatures, mean_energy, color=VERMILION)
axes[2].axhline(double_well(grid[:, None]).min(), color=BLACK, linestyle=":", label="lowest energy")
axes[2].set(title="Mean energy", xlabel="T", ylabel="E-average of $P_T$")
axes[2].legend()
plt.show()

# %% [markdown]
# All of this can be read off $Z$. With $\beta = 1/T$ the mean energy is $-\partial \log Z/\partial\beta$, because
# differentiating the integral brings down $-E$. At $T = 1$, by the exact series and a small step in $\beta$:


# %%
def log_z_at(beta):
    return series_log_normalizer(beta, 4 * beta, beta / 2)


step = 1e-3
slope = -(log_z_at(1 + step) - log_z_at(1 - step)) / (2 * step)
probabilities = density / density.sum()
energies = double_well(grid[:, None])
mean = probabilities @ energies
third_cumulant = probabilities @ (energies - mean) ** 3
print(f"mean energy under P     {mean:.6f}")
print(f"−∂ log Z/∂β             {slope:.6f}")

# %% [markdown]
# ## The lowest energy is not the typical energy
#
# The note says that "every system seeks minimum energy". That is half of the story. There is one point of lowest energy
# and a great many slightly above it, and in many dimensions the many win. Take $E(x) = \frac12\|x\|^2$, whose samples
# are standard normal. The density is highest at $E = 0$, yet the energies of the samples lie around $d/2$, with
# standard deviation $\sqrt{d/2}$.

# %%
# `size(full, smoke)` is the full amount of work, or a small one where a test only asks whether the lesson runs
num_draws = size(20_000, 5_000)
fig, ax = plt.subplots(figsize=(7, 3.4))
for dimension, color in ((1, BLUE), (10, VERMILION), (100, GREEN)):
    draws = tf.random.stateless_normal([num_draws, dimension], [0, dimension])
    energy_of_draws = 0.5 * tf.reduce_sum(draws**2, -1).numpy()
    ax.hist(energy_of_draws, np.linspace(0, 100, 201), density=True, histtype="step", lw=1.8, color=color)
    ax.plot(
        [], [], color=color, label=f"d = {dimension}: mean {energy_of_draws.mean():.1f}, sd {energy_of_draws.std():.1f}"
    )
ax.set(title="Energies of draws; the minimum is 0", xlabel="E(x)", ylabel="density of E", yscale="log", ylim=(1e-4, 5))
ax.legend()
plt.show()

# %% [markdown]
# So a sample is not a minimum, and a sampler is not an optimiser. (In the code, `size(full, smoke)` is the amount of
# work: `full` here, and `smoke` when the tests run a tutorial quickly. You can ignore it.)
#
# ## Any positive function will do
#
# Eq. 5 of the note: any positive $F$ is a density once it is divided by its sum or integral,
#
# $$P_i = \frac{F_i}{Z} . \tag{5}$$
#
# The energy of $F$ is $E = -\log F$. The advantage of the exponent is that $E$ is unconstrained: it may be negative,
# have any scale, and be any network. It also turns products into sums. Where experts $P_1$ and $P_2$ must *both* agree,
# multiply the densities: the energies add. For Gaussians the precisions add.


# %%
def gaussian(mean, sd):
    return lambda x: 0.5 * ((x[:, 0] - mean) / sd) ** 2


def both(*energies):
    """The energy of a product of densities: both say yes."""
    return lambda x: sum(energy(x) for energy in energies)


def either(*energies):
    """The energy of a sum of (unnormalised) densities: one says yes."""
    return lambda x: -tf.reduce_logsumexp(tf.stack([-energy(x) for energy in energies]), 0)


weights = np.exp(-both(gaussian(-1, 1.0), gaussian(2, 0.5))(wide[:, None]))
weights /= weights.sum()
product_mean = weights @ wide
product_variance = weights @ (wide - product_mean) ** 2
print(f"product of N(−1, 1) and N(2, 1/4): mean {product_mean:.6f}, precision {1 / product_variance:.6f}")
print(f"by hand: mean (−1·1 + 2·4)/5 = {7 / 5}, precision 1 + 4 = 5")

# %% [markdown]
# In the plane such combinations describe shapes. A ring, a diagonal band, both, either:


# %%
def ring(x, radius=2.0, width=0.25):
    return (tf.norm(x, axis=-1) - radius) ** 2 / (2 * width**2)


def band(x, width=0.4):
    return (x[:, 0] - x[:, 1]) ** 2 / (4 * width**2) + tf.reduce_sum(x**2, -1) / (2 * 2.0**2)


def on_plane(energy, half_width=3.6, num=181):
    """Density on a grid of the plane, and the grid: for pictures and for means."""
    axis = np.linspace(-half_width, half_width, num)
    nodes = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    log_z = ebm.evaluation.grid_log_normalizer(energy, [-8, -8], [8, 8], num=400, dtype=tf.float64)
    return axis, nodes, np.exp(-np.asarray(energy(tf.constant(nodes))) - log_z.value)


# %% figure="energies_as_distributions"
experts = {"ring": ring, "band": band, "both: energies add": both(ring, band), "either": either(ring, band)}
fig, axes = plt.subplots(1, 4, figsize=(11, 3.1), sharey=True)
for ax, (name, energy) in zip(axes, experts.items(), strict=True):
    axis, _, values = on_plane(energy)
    ax.imshow(values.reshape(len(axis), -1), origin="lower", extent=(-3.6, 3.6, -3.6, 3.6))
    ax.set(title=name, xlabel="$x_1$", aspect="equal")
axes[0].set_ylabel("$x_2$")
fig.suptitle("Densities from two energies")
plt.show()

# %% [markdown]
# The normaliser of the ring has a closed form, which tests the two-dimensional quadrature. In polar coordinates $Z =
# 2\pi\int_0^\infty r\, e^{-(r-R)^2/2s^2}dr = 2\pi\left[s^2 e^{-R^2/2s^2} + R\,s\sqrt{2\pi}\;\Phi(R/s)\right]$.


# %%
def ring_integral(power, radius=2.0, width=0.25):
    """∫₀^∞ rᵖ exp(−(r − R)²/2s²) dr for p = 1, 2."""
    edge = width**2 * math.exp(-0.5 * (radius / width) ** 2)
    bulk = width * math.sqrt(2 * math.pi) * 0.5 * (1 + math.erf(radius / width / math.sqrt(2)))
    return edge + radius * bulk if power == 1 else radius * edge + (radius**2 + width**2) * bulk


ring_log_z = ebm.evaluation.grid_log_normalizer(ring, [-5, -5], [5, 5], dtype=tf.float64)
exact_ring_log_z = math.log(2 * math.pi * ring_integral(1))
print(f"by the grid {ring_log_z.value:.10f} ± {ring_log_z.standard_error:.0e}, exact {exact_ring_log_z:.10f}")

# %% [markdown]
# ## Any network is an energy
#
# A network that returns one number per example is an energy: it needs no encoder, no inverse and no special layer. Wrap
# it in `ebm.EnergyModel`. Here are three untrained ones: a dense network, one with Fourier features, and one built by
# hand.

# %%
keras.utils.set_random_seed(5)
inputs = keras.Input((2,))
hidden = keras.layers.Dense(64, "tanh")(2.0 * inputs)
hidden = hidden + keras.layers.Dense(64, "tanh")(2.0 * hidden)  # a skip connection
by_hand = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(2.0 * hidden))


def louder(network, gain):
    """The network times a number: untrained ones say little."""
    return keras.Sequential([network, keras.layers.Rescaling(gain)])


networks = {
    "dense, silu": louder(ebm.networks.mlp([2], units=[128, 128], seed=2), 16.0),
    "Fourier features": louder(ebm.networks.mlp([2], units=[128, 128], fourier_features=32, seed=1), 30.0),
    "by hand": by_hand,
}
x = tf.constant([[0.0, 0.0], [1.0, -1.0]])
for name, network in networks.items():
    print(f"{name:17s} E(x) = {ebm.EnergyModel(network).energy(x).numpy()}")

# %% [markdown]
# Is each of them a distribution? Only if $Z$ is finite, and nothing guarantees that for a bare network. Widen the box
# and see what happens to the integral:

# %%
bare = ebm.EnergyModel(networks["dense, silu"])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for half_width in (5, 10, 20, 40):
        value = ebm.evaluation.grid_log_normalizer(bare, -half_width, half_width).value
        print(f"box of ±{half_width:2d}: log Z = {value:.2f}")
print("It warned each time, first with:", caught[0].message)

# %% [markdown]
# It grows without bound. So give the energy a *base measure*: $E(x) = \text{network}(x) - \log b(x)$ with a density
# $b$. The network then describes how the density differs from $b$, and far from the origin $b$ dominates. For data,
# `base_measure=ebm.fit_base(x)` is the natural choice; here it is a wide Gaussian.

# %%
base = tfd.MultivariateNormalDiag([0.0, 0.0], [1.8, 1.8])
models = {name: ebm.EnergyModel(network, base_measure=base) for name, network in networks.items()}
for half_width in (10, 20, 40):
    value = ebm.evaluation.grid_log_normalizer(models["dense, silu"], -half_width, half_width).value
    print(f"box of ±{half_width:2d}: log Z = {value:.5f}")

# %%
axis = np.linspace(-5, 5, 161)
nodes = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype("float32")
fig, axes = plt.subplots(1, 3, figsize=(10, 4.1), sharey=True)
for ax, (name, model) in zip(axes, models.items(), strict=True):
    log_normalizer = ebm.evaluation.grid_log_normalizer(model, -10, 10).value
    values = np.exp(model.unnormalized_log_prob(nodes) - log_normalizer).reshape(len(axis), -1)
    ax.imshow(values, origin="lower", extent=(-5, 5, -5, 5))
    ax.set(title=name, xlabel="$x_1$", aspect="equal")
axes[0].set_ylabel("$x_2$")
fig.suptitle("Densities of three untrained networks on a Gaussian base")
plt.show()

# %% [markdown]
# With a base there is a second way to compute $Z$, without a grid: $Z = \mathbb E_b\, e^{-\text{network}(x)}$, an
# average over samples from $b$.

# %%
model = models["by hand"]
by_grid = ebm.evaluation.grid_log_normalizer(model, -12, 12)
by_draws = ebm.evaluation.importance_sampling(ebm.EnergyDistribution(model), num_samples=size(100_000, 20_000), seed=4)
print(f"log Z by the grid  {by_grid.value:.5f} ± {by_grid.standard_error:.0e}")
print(f"log Z by averaging {by_draws.value:.5f} ± {by_draws.standard_error:.0e}")
print(f"nodes of a grid of 64 along each of 28 × 28 pixels: a number of {len(str(64 ** (28 * 28)))} digits")

# %% [markdown]
# ## What the normaliser costs
#
# Both ways have limits. A grid of 64 nodes on each side has $64^d$ of them, and the last line above shows that number
# for an image. Averages fare better; tutorial 2 measures how much. Most of the time $Z$ is not needed at all:
#
# - *ratios* $P(x)/P(y) = e^{E(y) - E(x)}$ do not contain it. Samplers use only ratios (tutorials 2 to 5);
# - the *score* $\nabla_x \log P(x) = -\nabla_x E(x)$ does not contain it. Score matching uses only the score (tutorial
#   7);
# - *training by likelihood* needs only the gradient of $\log Z$, which is an average.
#
# The last point summarises eqs. 6-10 of the note, the subject of tutorial 6. The log-likelihood of data (eqs. 6, 7) is
# $\mathbb L(\theta) = -\mathbb E_{data} E_\theta(x) - \log Z_\theta$. Its gradient (eqs. 8, 9) is a difference of two
# averages, the first of which is taken over the training set (eq. 10):
#
# $$\frac{\partial \mathbb L}{\partial\theta} = -\mathbb E_{data}\frac{\partial E_\theta}{\partial\theta}(x) +
# \mathbb E_{P_\theta}\frac{\partial E_\theta}{\partial\theta}(x) . \tag{9}$$
#
# Let θ be the coefficient of the double well $E_\theta(x) = x^4 - \theta x^2 + x/2$, and the data 200 samples near 1.
# Then $\partial E/\partial\theta = -x^2$. Both sides of eq. 9 at θ = 4:

# %%
data = 1 + 0.3 * np.random.default_rng(0).normal(size=200)


def log_likelihood(theta):
    log_normalizer = series_log_normalizer(1.0, theta, 0.5)
    return np.mean(-(data**4) + theta * data**2 - data / 2) - log_normalizer


by_difference = (log_likelihood(4 + step) - log_likelihood(4 - step)) / (2 * step)
by_averages = np.mean(data**2) - probabilities @ grid**2
print(f"∂L/∂θ by a small step {by_difference:.6f}, by two averages {by_averages:.6f}: raise θ if positive")

# %% [markdown]
# ## An energy is a target for TensorFlow Probability
#
# `ebm.EnergyDistribution` is a `tfd.Distribution`. It always has `unnormalized_log_prob`. `log_prob` works once $\log
# Z$ is known; before that it raises an error that explains what is missing.

# %%
start = tfd.MultivariateNormalDiag([0.0, 0.0], [2.0, 2.0])
p = ebm.EnergyDistribution(ring, event_shape=[2], base=start)
print(f"−E is {p.unnormalized_log_prob([2.25, 0.0]):.4f}")
try:
    p.log_prob([2.25, 0.0])
except NotImplementedError as error:
    print(error)
p = p.with_log_normalizer(ring_log_z)
print(f"now log_prob is {p.log_prob([2.25, 0.0]):.4f}")

# %% [markdown]
# `sample` runs one Markov chain for each sample, starting from `base`, and returns where the chains end. A Markov chain
# moves a point step by step so that its distribution approaches the target; tutorials 2 to 5 explain how. The kernel
# below, Hamiltonian Monte Carlo (HMC), is the subject of tutorial 4. The same target works with any kernel of
# `tfp.mcmc`, directly or through `ebm.mcmc.sample`, which compiles the chain.

# %%
draws = p.sample(size(4_000, 1_000), seed=1).numpy()
chains = ebm.mcmc.sample(
    p.unnormalized_log_prob,
    start.sample(100, seed=[0, 5]),
    lambda target: tfp.mcmc.HamiltonianMonteCarlo(target, step_size=0.15, num_leapfrog_steps=3),
    num_results=size(200, 50),
    num_burnin_steps=100,
    seed=2,
)
radii = np.linalg.norm(draws, axis=-1)
exact_radius = ring_integral(2) / ring_integral(1)
print(f"mean radius of the draws   {radii.mean():.4f} ± {radii.std() / np.sqrt(len(radii)):.4f}")
print(f"of chains of TFP's own HMC {np.linalg.norm(chains.states, axis=-1).mean():.4f}")
print(f"exact                      {exact_radius:.4f}")

# %% [markdown]
# A distribution can be a *prior*. Somewhere on the ring is a point $x$, and an instrument measured it at $y = (2.4,
# 1.2)$ with noise of standard deviation 0.6. A joint distribution of TFP expresses this, and its density at the
# observed $y$ is the posterior of $x$, up to a constant that is not needed. The posterior mean is printed with its
# Monte Carlo standard error (`mcse`), which `ebm.mcmc.diagnose` estimates from the chains (tutorial 2).

# %%
joint = tfd.JointDistributionNamed({"x": p, "y": lambda x: tfd.MultivariateNormalDiag(x, [0.6, 0.6])})
observed = tf.constant([2.4, 1.2])


def posterior(x):
    return joint.unnormalized_log_prob(x=x, y=observed)


found = ebm.mcmc.sample(
    posterior,
    tf.random.stateless_normal([200, 2], [0, 6]) + observed,
    ebm.mcmc.Adaptive(ebm.mcmc.HMC(0.1, num_leapfrog_steps=3)),
    num_results=size(200, 50),
    num_burnin_steps=150,
    seed=3,
)
judged = ebm.mcmc.diagnose(found)

axis, nodes, prior_density = on_plane(ring)
weights = prior_density * np.exp(-np.sum((nodes - observed.numpy()) ** 2, -1) / (2 * 0.6**2))
weights /= weights.sum()
posterior_mean = weights @ nodes
print(
    f"posterior mean by chains {judged.mean.round(3)} ± {judged.mcse.round(3)}, by the grid {posterior_mean.round(3)}"
)

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharex=True, sharey=True)
for ax, values in zip(axes, (prior_density, weights), strict=True):
    ax.contourf(axis, axis, values.reshape(len(axis), -1), 12)
axes[0].plot(*draws[:800].T, ".", color="white", ms=2.5, label="draws")
axes[1].plot(*found.states[-1, :200].numpy().T, ".", color="white", ms=2.5, label="draws")
axes[1].plot(*observed.numpy(), "x", color=VERMILION, ms=11, mew=3, label="seen at y")
for ax, title in zip(axes, ("The ring, a prior", "Posterior of x given y"), strict=True):
    ax.set(title=title, xlabel="$x_1$", aspect="equal")
    ax.legend(loc="upper left", labelcolor="white")
axes[0].set_ylabel("$x_2$")
plt.show()

# %% [markdown]
# ## The numbers beside the truth
#
# Each tutorial ends in such a table: a measured number, the truth, and the tolerance. Deterministic rows are held to
# the error of the quadrature or of the finite step, statistical rows to four standard errors.

# %%
ledger = Ledger()
ledger.equal("log Z of the double well: grid, series", log_z.value, exact_log_z, 1e-12 + 4 * log_z.standard_error)
ledger.equal("its density integrates to one (eq. 3)", area, 1.0, 1e-5)
ledger.equal("a constant in E moves log Z by as much", shifted.value - log_z.value, -5.0, 1e-12)
ledger.equal("mean energy is −∂ log Z/∂β", mean, slope, 1e-5 + step**2 * abs(third_cumulant))
ledger.equal(
    "log Z of the ring: grid, closed form", ring_log_z.value, exact_ring_log_z, 1e-12 + 4 * ring_log_z.standard_error
)
ledger.equal("mean energy of draws, d = 100", energy_of_draws.mean(), 50.0, 4 * np.sqrt(50 / num_draws))
ledger.equal("energies add: mean of the product", product_mean, 1.4, 1e-6)
ledger.equal("energies add: precision of the product", 1 / product_variance, 5.0, 1e-6)
ledger.equal("log Z of a network: draws, grid", by_draws.value, by_grid.value, 4 * by_draws.standard_error)
ledger.equal("eq. 9: averages, small step", by_averages, by_difference, 1e-5)
ledger.equal("mean radius of draws", radii.mean(), exact_radius, 4 * radii.std() / np.sqrt(len(radii)))
for k in range(2):
    ledger.equal(f"posterior mean, coordinate {k + 1}", judged.mean[k], posterior_mean[k], 4 * judged.mcse[k])
ledger.close()
