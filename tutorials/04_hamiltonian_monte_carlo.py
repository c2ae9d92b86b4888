# %% [markdown]
# # 4. Hamiltonian Monte Carlo
#
# Hamiltonian Monte Carlo (HMC) gives a point a random momentum and lets it move like a particle in the potential $E$.
# It moves far in one step and is still accepted with high probability. This tutorial builds the method from its
# physics, and measures each property that makes it exact.
#
# **After this you can**
#
# - read a density as a potential, and sample it with `ebm.mcmc.HMC`,
# - check the three properties of the leapfrog step: small energy error, reversibility, preserved volume,
# - choose step size, trajectory length and mass, and let `ebm.mcmc.Adaptive` do the first,
# - judge chains by ESS and R-hat, and know what these two cannot detect.
#
# It covers section 2.1.3 of the note *Basics of Energy Based Models*: equations 16 to 20, Figures 2 and 3.
#
# Prerequisites: [tutorial 3](03_metropolis_hastings.ipynb). Reading time about 40 minutes. Next: [tutorial
# 5](05_langevin_and_fokker_planck.ipynb).

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, Ledger, size, style

style()

# %% [markdown]
# ## A random variable and a particle
#
# Figure 2 of the note compares two things that seem to have nothing in common. A random variable is mostly found where
# its density $P(q)$ is high. A particle is mostly found where its potential $U(q)$ is low. With $U(q) = -\log P(q)$
# these are the same places. **Erratum:** the note writes in words that $U$ is minus the density; its formula, minus the
# *logarithm* of the density, is the right one.
#
# Our density has two modes, and we leave it unnormalised on purpose: $\hat P(q) = \exp(-q^2/2s^2)\cosh(aq/s^2 + b)$. It
# is a mixture of normal distributions at $\pm a$ with the weights .3 and .7, and its normaliser is known.

# %%
A, S, B = 1.1, 0.6, 0.5 * math.log(0.7 / 0.3)


def log_p_hat(q):
    """log P̂(q) = −q²/2s² + log cosh(aq/s² + b), up to log 2; log cosh z = z + softplus(−2z) − log 2."""
    z = A * q / S**2 + B
    return -(q**2) / (2 * S**2) + z + tf.math.softplus(-2 * z)


def gradient(q):
    """∇ log P̂(q) in NumPy."""
    return (-q + A * np.tanh(A * q / S**2 + B)) / S**2


LOG_Z2 = 0.5 * math.log(2 * math.pi * S**2) + A**2 / (2 * S**2) + math.log(2 * math.cosh(B))

# %% [markdown]
# The particle below moves by `ebm.mcmc.HMC`, whose parts we examine one by one afterwards, and its place is recorded
# 400 times. The samples of the random variable are drawn from the mixture directly.

# %%
rng = np.random.default_rng(0)
draws = rng.normal(np.where(rng.random(400) < 0.3, -A, A), S)
particle = (
    ebm.mcmc.sample(
        log_p_hat,
        tf.zeros([1], tf.float64),
        ebm.mcmc.HMC(step_size=0.3, num_leapfrog_steps=6),
        num_results=400,
        num_burnin_steps=50,
        num_steps_between_results=4,
        seed=1,
    )
    .states[:, 0]
    .numpy()
)

line = np.linspace(-3.2, 3.2, 400)
p = np.exp(log_p_hat(line).numpy() - LOG_Z2)
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), sharex=True)
left.plot(line, p, color=BLACK)
left.plot(draws, rng.random(400) * np.exp(log_p_hat(draws).numpy() - LOG_Z2), ".", color=BLUE, markersize=4)
left.set(title="A random variable, likely where $P$ is high", xlabel="$q$", ylabel="density $P(q)$", ylim=(0, 0.6))
right.plot(line, -np.log(p), color=BLACK)
right.plot(particle, LOG_Z2 - log_p_hat(particle).numpy(), "o", color=VERMILION, markersize=6, alpha=0.15)
right.set(
    title="A particle, likely where $U$ is low", xlabel="$q$", ylabel="potential $U(q) = -\\log P(q)$", ylim=(0, 7)
)
plt.show()
truth = 0.3 * 0.5 * math.erfc(-A / S / math.sqrt(2)) + 0.7 * 0.5 * math.erfc(A / S / math.sqrt(2))
print(
    f"share left of 0: draws {np.mean(draws < 0):.3f}, particle {np.mean(particle < 0):.3f}, truth {truth:.3f}, ± .023"
)

# %% [markdown]
# ## The Hamiltonian and its distribution
#
# The total energy of the particle is its Hamiltonian (eq. 16), kinetic and potential energy:
#
# $$H(p, q) = K(p) + U(q),\qquad K(p) = \sum_i\frac{p_i^2}{2m_i}.$$
#
# At temperature one the Boltzmann distribution of position and momentum together is $\exp(-H)/Z$, and since the
# exponential of a sum is a product it factorises (eq. 17):
#
# $$P(q, p) = \frac{e^{-H(p, q)}}Z = \underbrace{\tfrac1{Z_2}\hat P(q)}_{P(q)}\;
# \underbrace{\prod_i\mathbb N(p_i\,|\,0, m_i)}_{P(p)}.$$
#
# So position and momentum are independent: a sample of $(q, p)$ without its $p$ is a sample of $P(q)$. Eq. 18 writes
# the same for a network, $\hat H(X, p) = \sum_ip_i^2/2m_i - \log\hat P_\theta(X)$ with $-\log\hat P_\theta(X) =
# E_\theta(X)$: the energy of a model *is* the potential. The hats mean that no $Z$ is needed.
#
# **Erratum:** in eq. 17 the letter $Z_1$ stands for two things, the normaliser of $\hat P$ in the exponent, which is
# $Z_2$ later, and the normaliser of the momenta. With the second meaning $Z = Z_1Z_2$. We can check that, because
# `ebm.evaluation.grid_log_normalizer` integrates in the plane of $(q, p)$:

# %%
MASS = 2.0


def hamiltonian(state):
    """Ĥ of rows (q, p)."""
    q, momentum = state[..., 0], state[..., 1]
    return momentum**2 / (2 * MASS) - log_p_hat(q)


log_z = ebm.evaluation.grid_log_normalizer(hamiltonian, [-6, -10], [6, 10], dtype=tf.float64)
log_z1 = 0.5 * math.log(2 * math.pi * MASS)
print(f"log Z by the grid: {log_z.value:.6f}; log Z1 + log Z2 = {log_z1 + LOG_Z2:.6f}")

# %% [markdown]
# ## Hamilton's equations
#
# In an isolated system $H$ stays constant, and position and momentum follow Hamilton's equations (eq. 19):
#
# $$\frac{\partial X_k}{\partial t} = \frac{\partial H}{\partial p_k} = \frac{p_k}{m_k},\qquad
# \frac{\partial p_k}{\partial t} = -\frac{\partial H}{\partial X_k} = \left(\nabla_X\log\hat P_\theta(X)\right)_k.$$
#
# **Erratum:** the note prints $p_i/m_i$ in the first. Each coordinate moves by *its own* momentum and mass, so the
# index is $k$. (The left sides are total derivatives $dX_k/dt$, $dp_k/dt$; the note prints ∂.) Automatic
# differentiation confirms the index, for two coordinates with the masses 1 and 4:

# %%
masses = np.array([1.0, 4.0])
momenta = tf.constant([0.8, -2.0], tf.float64)
with tf.GradientTape() as tape:
    tape.watch(momenta)
    kinetic = tf.reduce_sum(momenta**2 / (2 * masses))
velocity = tape.gradient(kinetic, momenta).numpy()
print("∂H/∂p_k  =", velocity)
print("p_k/m_k  =", momenta.numpy() / masses)
print("p_i/m_i with the other index =", (momenta.numpy() / masses)[::-1])

# %% [markdown]
# With the right index the energy is conserved, with the other one it is not. We follow both in the potential $U =
# \tfrac12X_1^2 + 2X_2^2$, in steps so small that their error is negligible (the step itself comes next).

# %%


def leapfrog(q, p, gradient, step_size, num_steps, velocity=lambda p: p):
    """Leapfrog steps (eq. 20); all positions and momenta on the way."""
    qs, ps = [q], [p]
    for _ in range(num_steps):
        p = p + 0.5 * step_size * gradient(q)
        q = q + step_size * velocity(p)
        p = p + 0.5 * step_size * gradient(q)
        qs.append(q)
        ps.append(p)
    return np.array(qs), np.array(ps)


def energy_of(qs, ps):
    return 0.5 * qs[:, 0] ** 2 + 2 * qs[:, 1] ** 2 + np.sum(ps**2 / (2 * masses), 1)


q, step = np.array([1.0, 0.5]), 0.01
paths = {
    "right": leapfrog(q, momenta.numpy(), lambda q: -q * [1, 4], step, 1500, lambda p: p / masses),
    "wrong": leapfrog(q, momenta.numpy(), lambda q: -q * [1, 4], step, 1500, lambda p: (p / masses)[::-1]),
}
energies = {name: energy_of(*path) for name, path in paths.items()}
for name, values in energies.items():
    print(f"{name} index: H starts at {values[0]:.4f} and stays between {values.min():.4f} and {values.max():.4g}")

# %% [markdown]
# The note describes two interactions. *Internal* ones, Hamilton's equations, keep $H$ constant. *External* ones, with a
# heat bath, change it. The note is not sure whether the bath acts on the momentum; it does: it draws a new
# $p\sim\mathbb N(0, M)$. Without the bath the particle would always stay on one line of constant $H$. In the left panel
# the white paths follow lines of constant $H$, clockwise, and the dotted lines are the new momenta.

# %%
q, bath = np.array(-1.0), np.random.default_rng(5)
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.4))
plane = np.stack(np.meshgrid(np.linspace(-3, 3, 200), np.linspace(-4.4, 4.4, 200)), -1)
levels = hamiltonian(plane).numpy()
left.contourf(plane[..., 0], plane[..., 1], np.exp(levels.min() - levels), 12, cmap="viridis")
clock, before = 0.0, None
for k in range(6):
    momentum = bath.normal(0.0, math.sqrt(MASS))
    qs, ps = leapfrog(q, momentum, gradient, 0.02, 110, lambda p: p / MASS)
    height = ps**2 / (2 * MASS) - log_p_hat(qs).numpy()
    names = {"inner": "Hamilton's equations", "outer": "heat bath"} if k == 1 else {}
    left.plot(qs, ps, color="white", linewidth=2)
    right.plot(clock + 0.02 * np.arange(111), height, color=BLUE, label=names.get("inner"))
    if before is not None:
        left.plot([q, q], [before[0], momentum], color=ORANGE, linestyle=":", linewidth=2)
        right.plot([clock, clock], [before[1], height[0]], color=ORANGE, linestyle=":", label=names.get("outer"))
    q, before, clock = qs[-1], (ps[-1], height[-1]), clock + 0.02 * 110
left.set(title="$(q, p)$ on the density $\\exp(-H)$", xlabel="position $q$", ylabel="momentum $p$")
right.set(title="The energy on the way", xlabel="time", ylabel="$\\hat H$")
right.legend(loc="upper right")
plt.show()

# %% [markdown]
# ## The leapfrog step
#
# Hamilton's equations can seldom be solved by hand. The leapfrog step (eq. 20) moves the momentum by half a step, the
# position by a full step, and the momentum by another half step:
#
# $$p_k^{(t + \epsilon/2)} = p_k^{(t)} + \tfrac\epsilon2\left(\nabla_X\log\hat P_\theta(X^{(t)})\right)_k,\quad
# X_k^{(t + \epsilon)} = X_k^{(t)} + \epsilon\,\frac{p_k^{(t + \epsilon/2)}}{m_k},\quad
# p_k^{(t + \epsilon)} = p_k^{(t + \epsilon/2)}
# + \tfrac\epsilon2\left(\nabla_X\log\hat P_\theta(X^{(t + \epsilon)})\right)_k.$$
#
# That is the function `leapfrog` above. Why not simply Euler's step, which moves both at once? Because of the three
# properties that the note names or needs. We measure them side by side.

# %%


def euler(q, p, gradient, step_size, num_steps):
    """Euler's steps: position and momentum both from where they were."""
    qs, ps = [q], [p]
    for _ in range(num_steps):
        q, p = q + step_size * p, p + step_size * gradient(q)
        qs.append(q)
        ps.append(p)
    return np.array(qs), np.array(ps)


def energy(q, p):
    """Ĥ with unit mass."""
    return 0.5 * p**2 - log_p_hat(q).numpy()


rng = np.random.default_rng(2)
q0 = rng.normal(np.where(rng.random(2000) < 0.3, -A, A), S)
p0 = rng.normal(size=2000)
counts, duration = np.array([10, 20, 40, 80, 160]), 2.0
energy_errors = {}
for name, method in [("Euler", euler), ("leapfrog", leapfrog)]:
    ends = [method(q0, p0, gradient, duration / n, n) for n in counts]
    changes = [energy(qs[-1], ps[-1]) - energy(q0, p0) for qs, ps in ends]
    energy_errors[name] = np.array([np.sqrt(np.mean(change**2)) for change in changes])


def order(sizes, errors):
    """The power with which errors fall, at the smallest sizes, and thrice how much it still changed before."""
    powers = np.diff(np.log(errors)) / np.diff(np.log(sizes))
    return powers[-1], 3 * np.abs(np.diff(powers[-3:])).max()


# reversible: turn the momentum round, go back, and be where one was
reversal_errors, determinants = {}, {}
for name, method in [("Euler", euler), ("leapfrog", leapfrog)]:
    qs, ps = method(q0, p0, gradient, 0.2, 10)
    back, _ = method(qs[-1], -ps[-1], gradient, 0.2, 10)
    reversal_errors[name] = np.abs(back[-1] - q0).max()
    # volume: the determinant of ∂(q, p)/∂(q₀, p₀), by complex numbers: f(x + ih) = f(x) + ih f'(x) for tiny h
    tiny = 1e-20
    of_q = [end[-1].imag / tiny for end in method(q0 + 1j * tiny, p0, gradient, 0.2, 10)]
    of_p = [end[-1].imag / tiny for end in method(q0, p0 + 1j * tiny, gradient, 0.2, 10)]
    determinants[name] = of_q[0] * of_p[1] - of_q[1] * of_p[0]
    print(
        f"{name:8s}: there and back misses by {reversal_errors[name]:.1e}, "
        f"volume changes by factors from {determinants[name].min():.6f} to {determinants[name].max():.6f}"
    )

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2))
exact = leapfrog(1.0, 1.3, gradient, 0.005, 2400)
left.plot(*exact, color=BLACK, linewidth=1, label="exact")
left.plot(*euler(1.0, 1.3, gradient, 0.1, 60), "s", color=VERMILION, markersize=4, label="Euler, $\\epsilon = .1$")
left.plot(*leapfrog(1.0, 1.3, gradient, 0.25, 48), "o", color=BLUE, markersize=5, label="leapfrog, $\\epsilon = .25$")
left.set(title="One path in the plane of $(q, p)$", xlabel="$q$", ylabel="$p$", xlim=(-2.5, 2.5), ylim=(-2.2, 3.2))
left.legend(fontsize=10, loc="upper left")
for (name, errors), color, marker in zip(energy_errors.items(), [VERMILION, BLUE], "so", strict=True):
    power = order(duration / counts, errors)[0]
    right.loglog(duration / counts, errors, marker + "-", color=color, label=f"{name}: power {power:.2f}")
right.set(title="Error of $H$ after time 2", xlabel="step size $\\epsilon$", ylabel="root mean square of $\\Delta H$")
right.set_xticks(duration / counts, [f"{eps:g}" for eps in duration / counts])
right.minorticks_off()
right.legend()
plt.show()

# %% [markdown]
# Euler's path spirals outwards. The leapfrog's path stays near its line, with an energy error of $O(\epsilon^2)$. Run
# backwards it returns to its start up to rounding, and its determinant is 1.
#
# ## The three steps of the sampler
#
# 1. Draw a momentum $p\sim\mathbb N(0, M)$: the heat bath.
# 2. Follow the leapfrog for $L$ steps to $(X', p')$: Hamilton's equations.
# 3. Accept with probability $\alpha = \min(1, \exp[-\hat H(X', p') + \hat H(X, p)])$, else stay: the correction for the
#    error of step 2.
#
# Strictly, the proposal of step 2 is $(X', -p')$: with the sign of the momentum turned round, the same map leads back,
# as in the check above, so the proposal is its own inverse. The sign does not change $\hat H$, and step 1 discards the
# momentum. Since the leapfrog is reversible in this sense and preserves volume, $\alpha$ is the Metropolis-Hastings
# rule for it, and detailed balance (eq. 15) holds. Volume and stationarity have another consequence that is easy to
# check: if $(q, p)$ follows $\exp(-H)$, then $\mathbb E\exp(-\Delta H) = \int e^{-H(q', p')}dq\,dp/Z = 1$ exactly, at
# any step size. For Euler's step, which changes volume, this fails.

# %%
factors = {}
for name, method in [("Euler", euler), ("leapfrog", leapfrog)]:
    rng = np.random.default_rng(3)
    n = size(200_000, 20_000)
    q0 = rng.normal(np.where(rng.random(n) < 0.3, -A, A), S)
    p0 = rng.normal(size=n)
    qs, ps = method(q0, p0, gradient, 0.45, 4)
    factors[name] = np.exp(energy(q0, p0) - energy(qs[-1], ps[-1]))
    mean, error = factors[name].mean(), factors[name].std() / math.sqrt(n)
    print(f"{name:8s}: E exp(−ΔH) = {mean:.4f} ± {error:.4f}")

# %% [markdown]
# `ebm.mcmc.HMC` is these three steps (it uses `tfp.mcmc`). Does it accept as often as our own leapfrog predicts? Both
# start from exact samples.

# %%
expected = np.minimum(1.0, factors["leapfrog"])
kernel = ebm.mcmc.HMC(step_size=0.45, num_leapfrog_steps=4)
one_step = ebm.mcmc.sample(log_p_hat, tf.constant(q0), kernel, num_results=1, seed=4)
accepted = one_step.is_accepted[0].numpy().astype(float)
acceptance_error = math.sqrt((expected.var() + accepted.var()) / len(accepted))
print(f"acceptance: own leapfrog {expected.mean():.4f}, ebm.mcmc.HMC {accepted.mean():.4f}, ± {acceptance_error:.4f}")

# %% [markdown]
# What if step 3 is left out? On $\mathbb N(0, 1)$ the leapfrog keeps $\tfrac12p^2 + \tfrac12(1 - \epsilon^2/4)q^2$
# instead of $H$, so that the chain has the stationary variance $1/(1 - \epsilon^2/4)$, whatever the length of the
# trajectory. With step 3 it is 1.

# %%


def log_normal(q):
    return -0.5 * q**2


eps, rng = 1.0, np.random.default_rng(6)
n, q = size(100_000, 20_000), np.random.default_rng(7).normal(size=size(100_000, 20_000))
for _ in range(30):
    q = leapfrog(q, rng.normal(size=n), lambda q: -q, eps, 2)[0][-1]
without_step_3 = np.mean(q**2), np.std(q**2) / math.sqrt(n)
start = tf.random.stateless_normal([n], [0, 8], dtype=tf.float64)
with_step_3 = (
    ebm.mcmc.sample(
        log_normal, start, ebm.mcmc.HMC(eps, num_leapfrog_steps=2), num_results=1, num_burnin_steps=30, seed=9
    )
    .states[0]
    .numpy()
)
with_step_3 = np.mean(with_step_3**2), np.std(with_step_3**2) / math.sqrt(n)
print(f"without step 3: variance {without_step_3[0]:.4f} ± {without_step_3[1]:.4f}, theory {1 / (1 - eps**2 / 4):.4f}")
print(f"with step 3:    variance {with_step_3[0]:.4f} ± {with_step_3[1]:.4f}, theory 1")

# %% [markdown]
# ## The length of a trajectory
#
# On $\mathbb N(0, 1)$ a trajectory of length $t = L\epsilon$ is a rotation: $q' = q\cos t + p\sin t$. The chain is
# autoregressive with correlation $\rho = \cos t$, and $N$ samples of it are worth $N(1 - \rho)/(1 + \rho)$ independent
# ones: the effective sample size, ESS. That is an exact value to test `ebm.mcmc.diagnose` with. The result is in the
# left panel of the figure at the end of the next section. (The kernel is compiled once: the step size is an argument.)

# %%
lengths, leaps = np.array([0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.57, 1.8, 2.0]), 20
start = tf.random.stateless_normal([200], [0, 10], dtype=tf.float64)
num_results = size(1000, 400)
shares, share_errors = [], []
for length in lengths:
    chains = ebm.mcmc.sample(
        log_normal, start, ebm.mcmc.HMC(length / leaps, num_leapfrog_steps=leaps), num_results=num_results, seed=11
    )
    groups = chains.states.numpy().reshape(num_results, 10, 20)  # ten groups of twenty chains tell the error
    found = [float(ebm.mcmc.diagnose(groups[:, k], event_ndims=0).ess) / (20 * num_results) for k in range(10)]
    shares.append(np.mean(found))
    share_errors.append(np.std(found, ddof=1) / math.sqrt(10))
shares, share_errors = np.array(shares), np.array(share_errors)
true_shares = (1 - np.cos(lengths)) / (1 + np.cos(lengths))

# %% [markdown]
# ## The mass matrix
#
# With coordinates of different scales no single length is right: $\epsilon$ must suit the narrowest, and the widest
# then takes many steps. The cure is a mass for each coordinate, the inverse of its variance: a coordinate with a small
# mass moves far. That is exactly equivalent to rescaling the coordinates:

# %%
scales = np.geomspace(0.1, 10.0, 10)


def scaled_target(scales):
    """log density of independent normal coordinates with those standard deviations."""
    return lambda x: -0.5 * tf.reduce_sum((x / scales) ** 2, -1)


round_target, wide_target = scaled_target(np.ones(10)), scaled_target(scales)
start = tf.random.stateless_normal([20, 10], [0, 12], dtype=tf.float64)
with_mass = ebm.mcmc.sample(
    wide_target, start * scales, ebm.mcmc.HMC(0.3, 5, mass=1 / scales**2), num_results=100, seed=13
)
rescaled = ebm.mcmc.sample(round_target, start, ebm.mcmc.HMC(0.3, 5), num_results=100, seed=13)
mass_difference = float(tf.reduce_max(abs(with_mass.states / scales - rescaled.states)))
print(f"HMC with masses beside HMC in rescaled coordinates: largest difference {mass_difference:.1e}")

# %% [markdown]
# How much is it worth? Four targets of ten coordinates, whose scales go from 1 to $\kappa$. With unit masses and the
# step size that the narrowest coordinate allows, we compute the ESS per gradient of the worst coordinate. With the
# right masses the step size is the same, and every target is equivalent to the round one.

# %%
kappas, eps, leaps = np.array([1.0, 3.0, 10.0, 30.0]), 0.5, 3
scales = np.geomspace(np.ones(4), kappas, 10).T[:, None]  # [targets, 1, coordinates]
four_targets = scaled_target(scales)
start = tf.random.stateless_normal([4, 25, 10], [0, 14], dtype=tf.float64)
num_results = size(2000, 700)
unit = ebm.mcmc.sample(four_targets, start * scales, ebm.mcmc.HMC(eps, leaps), num_results=num_results, seed=14)
right_mass = ebm.mcmc.sample(round_target, start[0], ebm.mcmc.HMC(eps, leaps), num_results=num_results, seed=14)
worst = [ebm.mcmc.diagnose(unit.states.numpy()[:, k]).ess_bulk.min() for k in range(4)]
worth_unit = np.array(worst) / (num_results * 25 * leaps)
worth_right = ebm.mcmc.diagnose(right_mass).ess_per_gradient.min()

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8))
fine = np.linspace(0.05, 2.05, 200)
left.plot(fine, (1 - np.cos(fine)) / (1 + np.cos(fine)), color=BLACK, label="$(1 - \\cos t)/(1 + \\cos t)$")
left.errorbar(lengths, shares, 4 * share_errors, fmt="o", color=BLUE, label="measured")
left.axhline(1, color=VERMILION, linestyle=":", label="independent draws")
left.set(title="N(0, 1): what a draw is worth", xlabel="length $t = L\\epsilon$", ylabel="ESS per draw")
left.legend()
right.loglog(kappas, worth_unit, "s-", color=VERMILION, label="unit masses")
right.loglog(kappas, np.full(4, worth_right), "o-", color=BLUE, label="masses 1/variance")
right.set(title="The worst of ten coordinates", xlabel="widest scale / narrowest", ylabel="ESS per gradient")
right.set_xticks(kappas, [f"{kappa:g}" for kappa in kappas])
right.minorticks_off()
right.legend()
plt.show()

# %% [markdown]
# Left (the section before): short trajectories are a random walk. At $t = \pi/2$ the samples are independent. Beyond it
# the mean is estimated even better, since each sample tends to lie on the other side of the one before. (At $t = \pi$
# the chain would jump between $q$ and $-q$, and explore nothing.) Right: with unit masses the efficiency of the worst
# coordinate falls as the square of the scale; with the right masses it does not fall.
#
# ## The Rosenbrock valley
#
# Figure 3 of the note compares Metropolis-Hastings and HMC on Rosenbrock's function, a narrow bent valley. As a
# density it is `ebm.targets.rosenbrock`: $x\sim\mathbb N(1, 10)$ and $y\,|\,x\sim\mathbb N(x^2, 0.1)$, so all moments
# are known. All chains start far up the left arm, at $(-6, 36)$.

# %%
valley = ebm.targets.rosenbrock(tf.float64)
far, above = tf.constant([-6.0, 36.0], tf.float64), tf.constant([1.0, 21.0], tf.float64)
walk = ebm.mcmc.RandomWalk(scale=0.4)
glide = ebm.mcmc.HMC(step_size=0.03, num_leapfrog_steps=2500)

num_chains, num_steps = 100, size(160, 40)
starts = tf.stack([far] * num_chains + [above] * num_chains)  # the second hundred comes later
both = ebm.mcmc.sample(valley.log_prob, starts, glide, num_results=num_steps, seed=15)
by_glide = both.states.numpy()[:, :num_chains]
every = 100
by_walk = ebm.mcmc.sample(
    valley.log_prob,
    starts[:num_chains],
    walk,
    num_results=num_steps * glide.num_leapfrog_steps // every,  # as many evaluations of the target
    num_burnin_steps=every - 1,
    num_steps_between_results=every - 1,
    seed=16,
).states.numpy()

# %% figure="rosenbrock"
fig, axes = plt.subplots(1, 3, figsize=(11, 4), width_ratios=[1, 1, 1.25])
xs, ys = np.meshgrid(np.linspace(-9, 9, 300), np.linspace(-8, 90, 300))
height = valley.log_prob(np.stack([xs, ys], -1)).numpy()
per_step = glide.num_leapfrog_steps // every
for ax, states, first, color, name in [
    (axes[0], by_walk[:, 0], 4 * per_step, VERMILION, "Metropolis-Hastings"),
    (axes[1], by_glide[:, 0], 4, BLUE, "Hamiltonian Monte Carlo"),
]:
    ax.contourf(xs, ys, np.maximum(height, height.max() - 10), 12, cmap="Greys")
    ax.plot(*states[:: max(1, len(states) // 400)].T, ".", color=SKY, markersize=4, label="all")
    ax.plot(*states[:first].T, "o", color=color, markersize=7, label="first 10 000 evaluations")
    ax.plot(*far.numpy(), "*", color=ORANGE, markersize=15, markeredgecolor=BLACK, label="start")
    ax.set(title=name, xlabel="$x$", ylabel="$y$", xlim=(-9, 9), ylim=(-8, 90))
    ax.legend(loc="upper center", fontsize=10)
walk_means, glide_means = by_walk[..., 0].mean(1), by_glide[..., 0].mean(1)
noise = math.sqrt(10 / num_chains)
ax = axes[2]
ax.axhspan(1 - 2 * noise, 1 + 2 * noise, color="0.88", label="truth ± 2 standard errors")
ax.semilogx(every * np.arange(1, len(walk_means) + 1), walk_means, color=VERMILION, label="Metropolis-Hastings")
ax.semilogx(
    glide.num_leapfrog_steps * np.arange(1, num_steps + 1), glide_means, "o-", color=BLUE, markersize=3, label="HMC"
)
ax.set(title="Mean of $x$ over 100 chains", xlabel="evaluations of the target", ylabel="$x$", ylim=(-7, 4.5))
ax.legend(fontsize=10, loc="upper left")
plt.show()

# %% [markdown]
# **Erratum:** the note's Figure 3 counts "only one step" until HMC is warm. Here the first step crosses the valley, and
# after two or three the mean of a hundred chains cannot be distinguished from the truth. Metropolis-Hastings walks at
# random along a valley .3 wide, and needs about a hundred thousand. But counting steps flatters HMC: one of its steps
# costs as many gradients as it has leapfrog steps, here 2500. The axis on the right counts evaluations for both, and
# HMC still converges far earlier. It is also more accurate: here is the error of the mean that a single chain would
# report, with the same number of evaluations for both.

# %%
errors_of_means = {}
for name, states in [("Metropolis-Hastings", by_walk), ("HMC", by_glide)]:
    errors_of_means[name] = np.sqrt(np.mean((states.mean(0) - [1, 11]) ** 2, 0))
    print(f"{name:19s}: error of the mean of x {errors_of_means[name][0]:.2f}, of y {errors_of_means[name][1]:.2f}")
found = ebm.mcmc.diagnose(by_glide[4:])
print(
    f"HMC, all chains: mean of x {found.mean[0]:.3f} ± {found.mcse[0]:.3f} (truth 1), "
    f"of y {found.mean[1]:.3f} ± {found.mcse[1]:.3f} (truth 11), R-hat {found.rhat.max():.3f}"
)

# %% [markdown]
# HMC is not always that fast. The second hundred chains start high *above* the valley, at $(1, 21)$. A particle there
# falls in, and in the long time of this trajectory it moves far up the arms, where the valley is too narrow for the
# step size: $H$ is not conserved, and the step is rejected. Shorter trajectories are accepted. They turn potential
# energy into kinetic energy, which the next momentum from the heat bath replaces: half of the energy or more is lost at
# each step, and the chain is warm after eight steps, not after one.

# %%
short_glide = ebm.mcmc.HMC(step_size=0.025, num_leapfrog_steps=400)
falling = ebm.mcmc.sample(valley.log_prob, starts[num_chains:], short_glide, num_results=20, seed=18)
top = float(valley.log_prob(tf.constant([1.0, 1.0], tf.float64)))
excess = top - np.concatenate([[float(valley.log_prob(above))], np.median(falling.unnormalized_log_prob, 1)])
accepted_above = [float(np.mean(chains.is_accepted[:10, -num_chains:])) for chains in (both, falling)]
for number, share in zip([2500, 400], accepted_above, strict=True):
    print(f"{number} leapfrog steps: {share:.2f} of the first ten trajectories are accepted")
print("median of U − min U before and after the shorter steps:", *(f"{value:.0f}" for value in excess[:11]))

# %% [markdown]
# ## Adaptation
#
# A step size that is too small wastes gradients; with one that is too large proposals are rejected. `ebm.mcmc.Adaptive`
# tunes it during the burn-in by dual averaging, until three quarters of the proposals are accepted, and then freezes it
# (while it changes, the chain has no stationary distribution). Here is a target of twenty dimensions, and the adapted
# step from a start far too small and one far too large.

# %%
many = scaled_target(np.geomspace(1, 3, 20))
start = tf.random.stateless_normal([50, 20], [0, 19], dtype=tf.float64) * np.geomspace(1, 3, 20)
tried = []
for eps in np.linspace(0.2, 1.55, 10):
    chains = ebm.mcmc.sample(
        many, start, ebm.mcmc.HMC(eps, 3), num_results=size(600, 200), num_burnin_steps=20, seed=20, jit_compile=True
    )
    found = ebm.mcmc.diagnose(chains)
    tried.append((eps, found.acceptance_rate, found.ess_per_gradient.min()))
tried = np.array(tried)

adapted = {}
for first in (0.02, 3.0):
    for seed in range(21, 25):
        chains = ebm.mcmc.sample(
            many,
            start,
            ebm.mcmc.Adaptive(ebm.mcmc.HMC(first, num_leapfrog_steps=3)),
            num_results=200,
            num_burnin_steps=500,
            seed=seed,
            jit_compile=True,
        )
        adapted.setdefault(first, []).append((float(chains.step_size), float(np.mean(chains.is_accepted))))
adapted = {first: np.array(values) for first, values in adapted.items()}
for first, values in adapted.items():
    print(f"from {first:4}: step sizes {np.round(values[:, 0], 3)}, acceptance {np.round(values[:, 1], 3)}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), sharex=True)
left.plot(tried[:, 0], tried[:, 1], "o-", color=BLUE, label="fixed step size")
right.plot(tried[:, 0], tried[:, 2], "o-", color=BLUE, label="fixed step size")
for first, color, marker in [(0.02, ORANGE, "^"), (3.0, GREEN, "v")]:
    left.plot(*adapted[first].T, marker, color=color, markersize=9, label=f"adapted from {first:g}")
    right.axvline(adapted[first][:, 0].mean(), color=color, linestyle="--", label=f"adapted from {first:g}")
left.axhline(0.75, color=BLACK, linewidth=1)
left.set(title="Acceptance", xlabel="step size $\\epsilon$", ylabel="acceptance rate", ylim=(0, 1.05))
right.set(title="Efficiency", xlabel="step size $\\epsilon$", ylabel="ESS per gradient", ylim=(0, None))
left.legend()
plt.show()

# %% [markdown]
# ## Can the chains be trusted?
#
# ESS measures how many independent samples the chains are worth. R-hat measures whether the chains agree: it is near 1
# if all halves of all chains cover the same distribution, and above 1.05 or so if not. Neither knows the truth. Take
# two modes that HMC cannot cross, at −3 and 3, with weights .3 and .7. If the chains start on both sides, R-hat is
# large. If all start on the left, they agree with each other, and are all wrong.

# %%


def two_modes(x):
    """log density of .3 N((−3, 0), .5²I) + .7 N((3, 0), .5²I), up to a constant."""
    left = math.log(0.3) - 2 * tf.reduce_sum((x - [-3.0, 0.0]) ** 2, -1)
    right = math.log(0.7) - 2 * tf.reduce_sum((x - [3.0, 0.0]) ** 2, -1)
    return tf.reduce_logsumexp(tf.stack([left, right]), 0)


left_starts = tf.constant([[-3.0, 0.0]] * 4, tf.float64)
both_starts = tf.constant([[-3.0, 0.0], [3.0, 0.0]] * 2, tf.float64)
local = ebm.mcmc.HMC(step_size=0.25, num_leapfrog_steps=3)
base = tfp.distributions.MultivariateNormalDiag(tf.zeros(2, tf.float64), tf.constant([3.5, 1.0], tf.float64))
with_jumps = ebm.mcmc.Sequential([local, ebm.mcmc.IndependenceMetropolis(base)])
runs = {
    "HMC from both sides": (local, both_starts),
    "HMC, all from the left": (local, left_starts),
    "with global moves": (with_jumps, left_starts),
}
traces, verdicts = {}, {}
for name, (kernel, starts) in runs.items():
    chains = ebm.mcmc.sample(two_modes, starts, kernel, num_results=size(2000, 800), num_burnin_steps=50, seed=26)
    traces[name], verdicts[name] = chains.states.numpy()[..., 0], ebm.mcmc.diagnose(chains)
    found = verdicts[name]
    print(f"{name:22s}: mean of x {found.mean[0]:6.3f} ± {found.mcse[0]:.3f} (truth 1.2), R-hat {found.rhat[0]:.2f}")

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True)
for ax, (name, trace) in zip(axes, traces.items(), strict=True):
    for chain, color in zip(trace.T, [BLUE, VERMILION, GREEN, PURPLE], strict=True):
        ax.plot(chain[:400], color=color, linewidth=0.8)
    ax.set(title=f"{name}\nR-hat {verdicts[name].rhat[0]:.2f}", xlabel="step")
axes[0].set_ylabel("$x_1$ of four chains")
plt.show()

# %% [markdown]
# The cure is a global move that keeps detailed balance: `ebm.mcmc.IndependenceMetropolis` proposes from a wide base,
# and an occasional accepted proposal is enough. `ebm.mcmc.Sequential` combines it with HMC.
#
# ## A network as the potential
#
# Nothing above depends on what the energy is. By eq. 18 any network will do; here is a random one, with a normal base
# measure so that $Z$ is finite. `ebm.EnergyDistribution` samples it by HMC with an adapted step. The truth is the mean
# by a grid.

# %%
tilt = tfp.distributions.MultivariateNormalDiag(tf.zeros(2), 1.5 * tf.ones(2))
model = ebm.EnergyModel(ebm.networks.mlp([2], units=[32, 32], seed=7), base_measure=tilt)
for weight in model.network.weights:
    weight.assign(2 * weight)  # a rougher network than one would start to train
chains = ebm.EnergyDistribution(model).sample_chains(num_results=size(1000, 300), num_chains=50, seed=27)
network_found = ebm.mcmc.diagnose(chains)

axis = np.linspace(-9, 9, 301, dtype=np.float32)
nodes = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
energies = model.energy(nodes).numpy().astype(np.float64)
probabilities = np.exp(energies.min() - energies)
probabilities /= probabilities.sum()
grid_mean = probabilities @ nodes
print(
    f"mean by HMC {network_found.mean.round(3)} ± {network_found.mcse.round(3)}, "
    f"by the grid {grid_mean.round(3)}, without the network 0"
)

# %% [markdown]
# ## The numbers beside the truth

# %%
ledger = Ledger()
ledger.equal("log Z of eq. 17: log Z₁ + log Z₂", log_z.value, log_z1 + LOG_Z2, max(4 * log_z.standard_error, 1e-9))
ledger.equal("∂H/∂p₂ of eq. 19: p₂/m₂", velocity[1], -2.0 / 4, 1e-12)
ledger.equal(
    "order of the leapfrog's energy error",
    order(duration / counts, energy_errors["leapfrog"])[0],
    2,
    order(duration / counts, energy_errors["leapfrog"])[1],
)
ledger.at_most("leapfrog, there and back", reversal_errors["leapfrog"], 1e-11)
ledger.equal("leapfrog, volume", determinants["leapfrog"][np.abs(determinants["leapfrog"] - 1).argmax()], 1, 1e-9)
mean, error = factors["leapfrog"].mean(), factors["leapfrog"].std() / math.sqrt(n)
ledger.equal("E exp(−ΔH)", mean, 1, 4 * error)
ledger.equal("acceptance of ebm.mcmc.HMC", accepted.mean(), expected.mean(), 4 * acceptance_error)
ledger.equal("variance without step 3, ε = 1", without_step_3[0], 4 / 3, 4 * without_step_3[1])
ledger.equal("variance with step 3, ε = 1", with_step_3[0], 1, 4 * with_step_3[1])
ledger.equal("ESS per draw at length 1", shares[4], true_shares[4], 4 * share_errors[4])
ledger.at_most("masses beside rescaled coordinates", mass_difference, 1e-9)
ledger.at_least("Rosenbrock, mean of x after one step of HMC", glide_means[0], -6 + math.sqrt(10))
ledger.at_most("the same after 2500 steps of Metropolis-Hastings", walk_means[per_step - 1], -6 + math.sqrt(10))
third = by_glide[2, :, 0]
ledger.equal("the same after three steps of HMC", third.mean(), 1, 4 * third.std(ddof=1) / math.sqrt(num_chains))
ledger.at_most(
    "error of the mean of x, HMC / MH", errors_of_means["HMC"][0] / errors_of_means["Metropolis-Hastings"][0], 1
)
rosenbrock = ebm.mcmc.diagnose(by_glide[4:])
ledger.equal("Rosenbrock, mean of x by HMC", rosenbrock.mean[0], 1, 4 * rosenbrock.mcse[0])
ledger.equal("Rosenbrock, mean of y by HMC", rosenbrock.mean[1], 11, 4 * rosenbrock.mcse[1])
every_adapted = np.concatenate(list(adapted.values()))[:, 1]
ledger.equal("acceptance after adaptation", every_adapted.mean(), 0.75, 4 * every_adapted.std(ddof=1))
ledger.at_least("R-hat of HMC from both sides", verdicts["HMC from both sides"].rhat[0], 1.05)
ledger.at_most("R-hat of HMC from one side, all wrong", verdicts["HMC, all from the left"].rhat[0], 1.05)
jumping = verdicts["with global moves"]
ledger.equal("two modes, mean with global moves", jumping.mean[0], 1.2, 4 * jumping.mcse[0])
ledger.equal(
    "a network's mean of x₁: HMC beside the grid", network_found.mean[0], grid_mean[0], 4 * network_found.mcse[0]
)
ledger.close()
