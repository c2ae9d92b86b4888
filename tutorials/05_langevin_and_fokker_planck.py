# %% [markdown]
# # 5. Langevin dynamics and the Fokker-Planck equation
#
# A particle that a force pulls downhill and random collisions push about has a stationary distribution that we can
# choose. This tutorial follows the derivation of that distribution step by step, checks every step by computation, and
# finds the step that is wrong.
#
# **After this you can**
#
# - explain each term of the Langevin equation, and why its stationary distribution is $\exp(-2U)$ and not $\exp(-U)$,
# - solve the Fokker-Planck equation on a grid and compare it with particles of `ebm.mcmc.Langevin`,
# - choose the step size of Langevin dynamics, knowing the bias that it causes,
# - remove the bias with `ebm.mcmc.MALA`.
#
# It covers section 2.1.4 of the note *Basics of Energy Based Models*, equations 21 to 38, and equation 65.
#
# Prerequisites: [tutorial 3](03_metropolis_hastings.ipynb), Taylor expansion, partial derivatives. Reading time about
# 45 minutes. Next: [tutorial 6](06_maximum_likelihood.ipynb).

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, Ledger, size, style

style()

# %% [markdown]
# The example throughout is a particle on a line in a potential with two wells, the left one deeper.

# %%
TILT = 0.25


def potential(x):
    """U(x)."""
    return (x**2 - 1) ** 2 + TILT * x


def slope(x):
    """∇U(x)."""
    return 4 * x * (x**2 - 1) + TILT


def curvature(x):
    """div ∇U(x), on a line the second derivative."""
    return 12 * x**2 - 4


# %% [markdown]
# ## The Langevin equation
#
# Newton's second law for a particle in a liquid (eq. 21):
#
# $$m\,\mathbf a = \mathbf F(x) - \gamma\,\mathbf v + \eta(t).$$
#
# $\mathbf F$ is the force of the potential, $-\gamma\mathbf v$ the friction, and $\eta(t)$ the pushes of the molecules.
# The effect of $\eta(t)$ in a short time $dt$ is a normal random number of variance $dt$, independent of all others. If
# the mass is negligible the left side is zero (eq. 22), $0 = \mathbf F\,dt - \gamma\,d\mathbf x + \eta(t)\,dt$, and
# with $\mathbf F = -\nabla U$ and $\gamma = 1$ that is eq. 23 (the note drops $\gamma$ there without stating that it is
# one):
#
# $$d\mathbf x = -\nabla U(\mathbf x)\,dt + \eta(t)\,dt.$$
#
# May one neglect the mass? We give particles of several masses, and one without, the same pushes.

# %%
rng = np.random.default_rng(0)
dt, num_paths = 5e-4, 400
pushes = rng.normal(0.0, math.sqrt(dt), [size(8000, 3000), num_paths])  # η(t)dt


def with_mass(mass, x):
    """Positions and velocities by eq. 21 with γ = 1; the friction acts on the mean of the old and the new velocity."""
    v, xs, vs = np.zeros(num_paths), [], []
    for push in pushes:
        old, share = v, dt / (2 * mass)
        v = ((1 - share) * v + (push - slope(x) * dt) / mass) / (1 + share)
        x = x + 0.5 * (old + v) * dt
        xs.append(x)
        vs.append(v)
    return np.array(xs), np.array(vs)


def without_mass(x):
    """Positions by eq. 23."""
    xs = []
    for push in pushes:
        x = x - slope(x) * dt + push
        xs.append(x)
    return np.array(xs)


start = np.full(num_paths, 1.0)
light = without_mass(start)
masses = [0.4, 0.1, 0.025, 0.00625, 0.0015]
heavy = {mass: with_mass(mass, start) for mass in masses}
late = slice(len(pushes) // 4, None)
distance = [np.sqrt(np.mean((heavy[mass][0][late] - light[late]) ** 2)) for mass in masses]

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), width_ratios=[1.5, 1])
times = dt * np.arange(1, len(pushes) + 1)
for mass, color in zip(masses[:3], [BLUE, GREEN, ORANGE], strict=True):
    left.plot(times[::10], heavy[mass][0][::10, 3], color=color, linewidth=1.3, label=f"mass {mass:g}")
left.plot(times[::10], light[::10, 3], color=BLACK, linewidth=0.8, label="no mass (eq. 23)")
left.set(title="One particle, the same pushes", xlabel="time", ylabel="position")
left.legend(loc="lower left", fontsize=10, ncols=2)
right.loglog(masses, distance, "o", color=BLUE, label="measured")
right.loglog(masses, np.sqrt(np.array(masses) / 2), color=BLACK, label=r"$\sqrt{m/2}$")
right.set(title="Distance from the massless path", xlabel="mass $m$", ylabel="root mean square", ylim=(0.01, 1))
right.legend()
plt.show()

# %% [markdown]
# To leading order in a small mass the path differs from the massless one by $m\mathbf v$, and $\mathbf v$ is of the
# size $\sqrt{1/2m}$, so the distance should be $\sqrt{m/2}$. The figure shows that this is a limit: measured over
# $\sqrt{m/2}$, the distances are 1.43, 1.82, 1.63, 1.24 and 1.03, from the heaviest to the lightest. Only the lightest
# masses are near the line. The argument needs the time $m$ in which friction stops a particle to be much shorter than
# the time $1/\nabla^2U \approx 1/8$ in which it moves through the well; the two heaviest particles swing past the
# massless one.
#
# The $\tfrac12$ is the key to what follows. In physics each velocity has the mean energy $\tfrac12 m\,\mathbb E\,v^2 =
# \tfrac12 k_BT$. We measure the temperature of this liquid from the particles:

# %%
mass = 0.1
per_path = np.mean(mass * heavy[mass][1][late] ** 2, axis=0)
temperature, temperature_error = per_path.mean(), per_path.std(ddof=1) / math.sqrt(num_paths)
print(f"k_B T = m E v² = {temperature:.4f} ± {temperature_error:.4f}")

# %% [markdown]
# The pushes of variance $dt$ are those of temperature $\tfrac12$. By eq. 4 the positions should then have the Boltzmann
# distribution $\exp(-U/\tfrac12) = \exp(-2U)$. The rest of the derivation shows that they do.
#
# ## One step of the discretised equation
#
# A computer needs discrete time steps (eq. 24):
#
# $$\mathbf x_{k+1} = \mathbf x_k - \nabla U(\mathbf x_k)\,dt + d\eta,\qquad d\eta\sim\mathbb N(0, dt).$$
#
# So the next position is normal about the point that the force leads to (eq. 25), $\mathbf x\sim\mathbb N(\mathbf
# x\,|\,\mathbf x' - \nabla U(\mathbf x')dt,\ dt)$, and the distribution of many particles follows eq. 26:
#
# $$P_t(\mathbf x) = \int d\mathbf x'\,P(\mathbf x|\mathbf x')\,P_{t-dt}(\mathbf x'),$$
#
# The second line of eq. 26 defines *stationary*: a distribution that this integral does not change. On a grid the
# integral is a product of a matrix and a vector.

# %%
h = 0.01
grid = np.arange(-2.6 + h / 2, 2.6, h)  # centres of cells


def step_matrix(dt):
    """P(x|x') of eq. 25 as probabilities from cell to cell: each column sums to one."""
    kernel = np.exp(-((grid[:, None] - (grid - slope(grid) * dt)) ** 2) / (2 * dt))
    return kernel / kernel.sum(0)


def normal_law(mean, sd):
    """Probabilities of the cells under a normal law."""
    law = np.exp(-0.5 * ((grid - mean) / sd) ** 2)
    return law / law.sum()


def boltzmann(factor):
    """Probabilities of the cells under exp(−factor · U)."""
    law = np.exp(-factor * potential(grid))
    return law / law.sum()


dt = 0.02
matrix = step_matrix(dt)
stationary = np.linalg.matrix_power(matrix, 2**14)[:, 0]  # the same column for every start

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), sharex=True)
for x, color in [(-1.8, BLUE), (0.0, GREEN), (1.5, ORANGE)]:
    left.plot(grid, matrix[:, np.argmin(abs(grid - x))] / h, color=color, label=f"from {x:g}")
    left.axvline(x, ymax=0.8, color=color, linestyle=":", linewidth=1)
left.set(title="One step of eq. 24: the law of eq. 25", xlabel="$x$", ylabel="density")
left.set(xlim=(-2.3, 2.3), ylim=(0, 3.6))
left.legend(fontsize=10, loc="upper center", ncols=3)
law = normal_law(1.5, 0.1)
for steps, color in [(5, SKY), (50, BLUE), (500, PURPLE)]:
    right.plot(grid, np.linalg.matrix_power(matrix, steps) @ law / h, color=color, label=f"{steps} steps")
right.plot(grid, stationary / h, color=VERMILION, linewidth=3, label="stationary")
right.plot(grid, boltzmann(2) / h, color=BLACK, linestyle="--", linewidth=1.2, label="$\\exp(-2U)/Z$")
right.plot(grid, boltzmann(1) / h, color=BLACK, linestyle=":", linewidth=1.2, label="$\\exp(-U)/Z$")
right.set(title="Many steps: eq. 26", xlabel="$x$", ylabel="density", ylim=(0, None))
right.legend(fontsize=10)
plt.show()

# %% [markdown]
# The stationary distribution of the steps is close to $\exp(-2U)$, but not equal to it. The rest is the error of a
# finite $dt$. Here is the total variation between the two, which halves when $dt$ is halved:

# %%
steps_tried = [0.04, 0.02, 0.01, 0.005]


def stationary_error(dt):
    """Total variation between the stationary law of eq. 24 and exp(−2U)/Z."""
    return 0.5 * np.abs(np.linalg.matrix_power(step_matrix(dt), 2**14)[:, 0] - boltzmann(2)).sum()


def order(sizes, errors):
    """The power with which errors fall, at the smallest sizes, and thrice how much it still changed before."""
    powers = np.diff(np.log(errors)) / np.diff(np.log(sizes))
    return powers[-1], 3 * np.abs(np.diff(powers[-3:])).max()


matrix_errors = [stationary_error(dt) for dt in steps_tried]
matrix_order = order(steps_tried, matrix_errors)
for dt, error in zip(steps_tried, matrix_errors, strict=True):
    print(f"dt = {dt:g}: total variation {error:.5f}")
print(f"it falls like dt to the power {matrix_order[0]:.3f}")

# %% [markdown]
# ## The change of variables
#
# For a differential equation we need $P_t - P_{t-dt}$ to first order in $dt$. In eq. 26 the unknown density is
# evaluated under the integral at $\mathbf x'$, so the note changes variables to the noise (eq. 27):
#
# $$\mathbf y = -\mathbf x + \mathbf x' - \nabla U(\mathbf x')dt,\qquad
# \mathbb N(\mathbf x\,|\,\mathbf x' - \nabla U(\mathbf x')dt, dt) = \mathbb N(\mathbf y\,|\,0, dt),$$
#
# and the integral becomes an expectation over normal numbers (eq. 28), with the Jacobian of the change in it:
#
# $$P_t(\mathbf x) = \int d\mathbf y\,\left|\frac{\partial\mathbf x'}{\partial\mathbf y}\right|\,
# \mathbb N(\mathbf y\,|\,0, dt)\,P_{t-dt}(\mathbf x'(\mathbf y)).$$
#
# Eq. 29 solves for $\mathbf x'$ by expanding $\nabla U$ about $\mathbf x$. Its last line is $\mathbf x' = \mathbf x +
# \mathbf y + \nabla U\,dt + \nabla\nabla U\,\mathbf y\,dt$ and smaller terms. By eqs. 30 and 31 $\mathbf y$ is a normal
# number of size $\sqrt{dt}$, so that $\mathbf y\,dt$ is of size $dt^{3/2}$ and can be dropped too. What remains is eq.
# 32:
#
# $$\mathbf x' = \mathbf x + \mathbf y + \nabla U(\mathbf x)dt + o(dt),\qquad
# \left|\frac{\partial\mathbf x'}{\partial\mathbf y}\right| = 1 + \operatorname{div}\nabla U(\mathbf x)dt + o(dt).$$
#
# **Erratum:** eqs. 29, 31 and 32 print $O(dt)$ for what is dropped. It must be $o(dt)$, smaller than $dt$: terms of the
# size of $dt$ are the ones that we keep. We compare with the exact $\mathbf x'$ and Jacobian, found by iteration.

# %%
nodes, weights = np.polynomial.hermite_e.hermegauss(20)  # means over z ~ N(0, 1)
weights = weights / weights.sum()
x = 0.7
changes = np.array([4.0**-k for k in range(3, 9)])  # dt
position_errors, jacobian_errors = [], []
for dt in changes:
    y = math.sqrt(dt) * nodes
    exact = x + y
    for _ in range(100):  # y = −x + x' − ∇U(x')dt, solved for x'
        exact = x + y + slope(exact) * dt
    kept = x + y + slope(x) * dt
    jacobian = 1 / (1 - curvature(exact) * dt)  # ∂y/∂x' = 1 − ∇∇U(x')dt
    rms = [np.sqrt(weights @ (exact - guess) ** 2) for guess in (kept, kept + curvature(x) * y * dt)]
    position_errors.append(rms)
    jacobian_errors.append([np.sqrt(weights @ (jacobian - guess) ** 2) for guess in (1 + curvature(x) * dt, 1.0)])
position_errors, jacobian_errors = np.array(position_errors), np.array(jacobian_errors)

# %% [markdown]
# The last step is eq. 33,
#
# $$P_t(\mathbf x) = \left(1 + \operatorname{div}\nabla U(\mathbf x)dt\right)\,
# \mathbb E_{\mathbb N(\mathbf y|0, dt)}\left[P_{t-dt}(\mathbf x + \mathbf y + \nabla U(\mathbf x)dt)\right] + o(dt).$$
#
# **Erratum:** its first line, $\int d\mathbf y\,\mathbb N(\mathbf y|0,dt)\,P_{t-dt}(\mathbf x + \mathbf y + \nabla U
# dt)$, lacks the Jacobian, which is back in the second line. We let a normal distribution make one step: exactly, by
# eq. 26, and by both lines of eq. 33. Then we compare $(P_t - P_{t-dt})/dt$ with the right side of eq. 34, which comes
# next.

# %%
xs = np.linspace(-1.5, 2.0, 71)
mean, variance = 0.5, 0.16


def before(x):
    """P of the time t − dt."""
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


gradient = -(xs - mean) / variance * before(xs)
laplacian = ((xs - mean) ** 2 / variance**2 - 1 / variance) * before(xs)
fokker_planck = gradient * slope(xs) + before(xs) * curvature(xs) + 0.5 * laplacian  # the right side of eq. 34


def by_eq_26(dt):
    """P_t(x), the integral over x' by the trapezoid rule."""
    s = np.linspace(-12.0, 12.0, 4001)
    x_before = xs[:, None] + math.sqrt(dt) * s
    density = np.exp(-((xs[:, None] - x_before + slope(x_before) * dt) ** 2) / (2 * dt)) / math.sqrt(2 * math.pi)
    return np.sum(density * before(x_before), 1) * (s[1] - s[0])


def by_eq_28(dt):
    """P_t(x), the integral over y by Gauss's rule, with the exact x'(y) and Jacobian."""
    y = math.sqrt(dt) * nodes
    x_before = xs[:, None] + y
    for _ in range(200):
        x_before = xs[:, None] + y + slope(x_before) * dt
    return (before(x_before) / (1 - curvature(x_before) * dt)) @ weights


difference_28 = np.abs(by_eq_28(changes[1]) - by_eq_26(changes[1])).max()
print(f"largest difference between eq. 26 and eq. 28: {difference_28:.1e}")

step_errors = []
for dt in changes:
    exact = by_eq_26(dt)
    first_line = before(xs[:, None] + math.sqrt(dt) * nodes + slope(xs)[:, None] * dt) @ weights
    second_line = (1 + curvature(xs) * dt) * first_line
    rate = (exact - before(xs)) / dt
    wrong = exact - first_line, exact - second_line, rate - fokker_planck
    step_errors.append([np.abs(difference).max() for difference in wrong])
first_line_errors, second_line_errors, rate_errors = np.array(step_errors).T

# %%
fig, axes = plt.subplots(1, 3, figsize=(11, 4.2), sharex=True, sharey=True)
for ax, title, errors, names in [
    (axes[0], "Position $x'$", position_errors.T, ["eq. 32", "eq. 29, one term more"]),
    (axes[1], "Jacobian $∂x'/∂y$", jacobian_errors.T, ["eq. 32", "1, of eq. 32's own $x'$"]),
    (axes[2], "$P_t$ by eq. 33", [second_line_errors, first_line_errors], ["second line", "first, no Jacobian"]),
]:
    for error, name, color, marker in zip(errors, names, [BLUE, ORANGE], "os", strict=True):
        ax.loglog(changes, error, marker, color=color, label=f"{name}: power {order(changes, error)[0]:.2f}")
    ax.loglog(changes, changes, color=BLACK, linewidth=1, label="$dt$")
    ax.set(title=title, xlabel="$dt$", ylim=(1e-9, 30))
    ax.legend(fontsize=10, loc="upper left")
axes[0].set_ylabel("error")
plt.show()
print(f"the rate differs from eq. 34 by an error that falls like dt to the power {order(changes, rate_errors)[0]:.3f}")

# %% [markdown]
# Both parts of eq. 32 are right to $o(dt)$: they fall like $dt^{3/2}$. The orange squares in the middle are a warning:
# if one drops $\nabla\nabla U\,\mathbf y\,dt$ *first*, as the first line of eq. 32 does, and differentiates then, the
# Jacobian comes out as 1, which is wrong by $O(dt)$. A small term can have a derivative that is not small. On the
# right, without the Jacobian $P_t$ is wrong by $O(dt)$, as much as it changes in the step, and with it by $O(dt^2)$.
#
# ## The Fokker-Planck equation
#
# Expand the expectation in eq. 33. The drift adds $\nabla P^T\nabla U\,dt$, the noise $\tfrac12\nabla^2P\,dt$
# (because $\mathbb E\,y_iy_j = \delta_{ij}dt$), and the Jacobian $P\operatorname{div}\nabla U\,dt$. Divide by $dt$
# and let it go to zero. That is eq. 34:
#
# $$\frac{\partial}{\partial t}P_t = \nabla P_t^T\,\nabla U + P_t\operatorname{div}\nabla U + \frac12\nabla^2P_t
# = \operatorname{div}\left(P_t\nabla U + \tfrac12\nabla P_t\right).$$
#
# The right-hand form shows that probability is conserved: it flows, with the current $-P\nabla U - \tfrac12\nabla P =
# -\tfrac12e^{-2U}\,\nabla(e^{2U}P)$. A good numerical scheme conserves it too. We cut the line into cells. What flows
# through a face leaves one cell and enters the next, so the total stays one up to rounding (finite volumes). Time steps
# follow the Crank-Nicolson rule, the mean of the rates before and after the step.

# %%


def rates(u, cells):
    """The matrix L of dP/dt = LP (eq. 34), from the current −½ exp(−2U) ∇(exp(2U) P) through each face."""
    width = cells[1] - cells[0]
    at_face = u((cells[1:] + cells[:-1]) / 2)
    rightward = np.exp(2 * (u(cells[:-1]) - at_face)) / (2 * width**2)
    leftward = np.exp(2 * (u(cells[1:]) - at_face)) / (2 * width**2)
    flow = np.diag(rightward, -1) + np.diag(leftward, 1)
    return flow - np.diag(flow.sum(0))


def crank_nicolson(rates, tau):
    """The matrix that takes P to the time tau later: (1 − ½τL)P' = (1 + ½τL)P."""
    one = np.eye(len(rates))
    return np.linalg.solve(one - 0.5 * tau * rates, one + 0.5 * tau * rates)


# %% [markdown]
# First a test where eq. 34 can be solved by hand. For $U = \tfrac12x^2$ a normal distribution stays normal, with mean
# $m_0e^{-t}$ and variance $\tfrac12 + (s_0^2 - \tfrac12)e^{-2t}$. Halving cells and time steps should make the error
# four times smaller.

# %%
widths, solver_errors = [0.2, 0.1, 0.05, 0.025], []
for width in widths:
    cells = np.arange(-5 + width / 2, 5, width)
    law = np.exp(-((cells - 1.0) ** 2) / (2 * 0.3**2))
    law /= law.sum() * width
    step = crank_nicolson(rates(lambda x: 0.5 * x**2, cells), tau=width)
    law = np.linalg.matrix_power(step, round(1 / width)) @ law
    variance_then = 0.5 + (0.3**2 - 0.5) * math.exp(-2)
    truth = np.exp(-((cells - math.exp(-1)) ** 2) / (2 * variance_then)) / math.sqrt(2 * math.pi * variance_then)
    solver_errors.append(np.abs(law - truth).sum() * width)
    print(f"cells and steps of {width:g}: ∫ |P − truth| dx = {solver_errors[-1]:.1e} at time 1")
solver_order = order(widths, solver_errors)

# %% [markdown]
# Now the two wells, compared with particles. `ebm.mcmc.Langevin` makes the step $x' = x +
# \tfrac12\varepsilon^2\nabla\log p(x) + \tau Z$. With $\log p = -U$, $\varepsilon = \sqrt{2\,dt}$ and $\tau =
# \sqrt{dt}$ that is eq. 24 to the letter. All particles start in a small cloud at 1.3, in the shallow well.

# %%


def minus_potential(x):
    return -potential(x)


dt, stride = 0.002, 25  # a picture every 25 steps, 0.05 of time
num_particles, num_pictures = size(20_000, 5_000), size(320, 80)
cloud = tf.random.stateless_normal([num_particles], [0, 1], 1.3, 0.15)
particles = ebm.mcmc.sample(
    minus_potential,
    cloud,
    ebm.mcmc.Langevin(step_size=math.sqrt(2 * dt), noise_scale=math.sqrt(dt)),
    num_results=num_pictures,
    num_burnin_steps=stride - 1,  # so that the first picture is of time 0.05 too
    num_steps_between_results=stride - 1,
    seed=1,
).states.numpy()
particles = np.concatenate([cloud[None], particles])
clock = stride * dt * np.arange(num_pictures + 1)

flow = rates(potential, grid)
tenth = crank_nicolson(flow, tau=stride * dt / 10)  # ten steps from picture to picture
between = np.linalg.matrix_power(tenth, 10)
laws = [normal_law(1.3, 0.15)]
for _ in range(num_pictures):
    laws.append(between @ laws[-1])
laws = np.array(laws)

# %% figure="fokker_planck"
shown = [np.argmin(abs(clock - t)) for t in size([0.05, 0.2, 0.5, 2, 6, 16], [0.05, 0.1, 0.2, 0.5, 2, 4])]
fig, axes = plt.subplots(2, 3, figsize=(10.5, 5.6), sharex=True)
edges = np.linspace(-2.6, 2.6, 66)
for ax, k in zip(axes.flat, shown, strict=True):
    ax.hist(particles[k], edges, density=True, histtype="stepfilled", color=SKY, label="particles (eq. 24)")
    ax.plot(grid, laws[k] / h, color=BLACK, linewidth=1.6, label="eq. 34")
    ax.plot(grid, boltzmann(2) / h, color=VERMILION, linestyle="--", linewidth=1.4, label="exp(−2U)/Z")
    ax.set(title=f"time {clock[k]:g}", xlim=(-2, 2.2), ylim=(0, None))
    if k in (shown[0], shown[3]):
        ax.set_ylabel("density")
for ax in axes[1]:
    ax.set_xlabel("$x$")
axes[0, 0].legend(fontsize=10, loc="upper left")
plt.show()

# %% [markdown]
# Curve and histogram agree at every time: first the cloud moves to the bottom of its well, then particles cross the
# barrier, until both wells hold their share. Do they agree as well as so many particles can? If they do, Pearson's
# $\chi^2$ per degree of freedom is 1 up to chance. The part due to the finite $dt$ is known from eq. 26.

# %%


def chi_square(counted, expected):
    """Pearson's χ² per degree of freedom of bins, those that expect fewer than ten joined, and its deviation."""
    full = expected >= 10
    expected = np.append(expected[full], expected[~full].sum())
    counted = np.append(counted[full], counted[~full].sum())
    freedom = len(expected) - 1
    return np.sum((counted - expected) ** 2 / np.maximum(expected, 1e-9)) / freedom, math.sqrt(2 / freedom)


bins, agreement = np.linspace(-2.6, 2.6, 41), []
many_steps = np.linalg.matrix_power(step_matrix(dt), stride)  # eq. 26 from picture to picture
for k in shown:
    expected = num_particles * laws[k].reshape(40, 13).sum(1)
    value, deviation = chi_square(np.histogram(particles[k], bins)[0], expected)
    of_steps = np.linalg.matrix_power(many_steps, k) @ laws[0]
    shift, _ = chi_square(num_particles * of_steps.reshape(40, 13).sum(1), expected)
    agreement.append((value, deviation, shift))
    print(f"time {clock[k]:5g}: χ² per degree {value:.2f} ± {deviation:.2f}; of it the finite dt makes {shift:.2f}")

# %% [markdown]
# Two of the six values are high, 2.02 at time .05 and 1.84 at time 16, the latter by 2.9 standard deviations. Over 100
# other seeds the mean $\chi^2$ at time 16, against the distribution of the *steps*, is 1.03 ± .03: this seed is a rare
# one, and shows no error of the sampler. At time .05 the small, narrow cloud has few bins, and a quarter of the excess
# is the finite $dt$.
#
# How fast does the distribution converge? Slowest is the exchange between the wells. Its rate $\lambda$ is the smallest
# positive eigenvalue of $-L$. Any other difference from the stationary distribution decays faster, and the distance
# falls like $e^{-\lambda t}$.

# %%
root = np.sqrt(boltzmann(2))
gap = -np.linalg.eigvalsh(flow * root / root[:, None])[-2]  # L made symmetric
to_end = 0.5 * np.abs(laws - boltzmann(2)).sum(1)

fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8))
left.semilogy(clock, to_end, color=BLUE, label="total variation from exp(−2U)/Z")
tail = to_end[-1] * np.exp(-gap * (clock - clock[-1]))
left.semilogy(clock, tail, color=BLACK, linestyle="--", label=rf"$\propto e^{{-\lambda t}}$, $\lambda$ = {gap:.3f}")
left.set(title="The way to the stationary law", xlabel="time", ylabel="distance")
left.legend()
right.plot(clock, particles.mean(1), color=SKY, linewidth=5, label="particles")
right.plot(clock, laws @ grid, color=BLACK, label="eq. 34")
right.axhline(boltzmann(2) @ grid, color=VERMILION, linestyle="--", label="exp(−2U)/Z")
right.set(title="Mean position", xlabel="time", ylabel="$x$")
right.legend()
plt.show()

# %% [markdown]
# ## The stationary distribution
#
# If nothing changes any more the left side of eq. 34 is zero (eq. 35). In one dimension that is eq. 36,
#
# $$0 = \frac{\partial P}{\partial x}\frac{\partial U}{\partial x} + P\frac{\partial^2U}{\partial x^2}
# + \frac12\frac{\partial^2P}{\partial x^2}.$$
#
# Insert $P = \exp(-cU)/Z$. The right side becomes $(1 - \tfrac c2)(\operatorname{div}\nabla U - c\,\|\nabla U\|^2)P$,
# which is zero for $c = 2$ and for no other $c$. That holds in any dimension and for any $U$, so we take a random
# network of two inputs. The derivatives are those of `ebm.derivatives.energy_score_laplacian`, which gives $E$,
# $-\nabla E$ and $\nabla^2E$ of any function $E$.

# %%
network = ebm.networks.mlp([2], units=[32, 32], dtype="float64", seed=3)
points = 2 * np.random.default_rng(1).normal(size=[500, 2])


def eq_35(c):
    """The right side of eq. 35 for P = exp(−cU), and the largest of its terms."""
    _, minus_slope, divergence = ebm.derivatives.energy_score_laplacian(network, points)
    law, minus_gradient, laplacian = ebm.derivatives.energy_score_laplacian(
        lambda x: tf.exp(-c * network(x)[:, 0]), points
    )
    terms = tf.stack([tf.reduce_sum(minus_gradient * minus_slope, -1), law * divergence, 0.5 * laplacian])
    return tf.reduce_sum(terms, 0).numpy(), float(tf.reduce_max(abs(terms)))


factors = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
remainders = [np.abs(remainder).max() / largest for remainder, largest in map(eq_35, factors)]
for c, remainder in zip(factors, remainders, strict=True):
    print(f"P = exp(−{c:g} U): right side of eq. 35 / its largest term = {remainder:.1e}")

# %% [markdown]
# ## The slip of equations 37 and 38
#
# The note concludes: with $dt = \epsilon^2$, the step (eq. 37)
#
# $$\mathbf x_{k+1} = \mathbf x_k - \nabla U(\mathbf x_k)\epsilon^2 + \mu\epsilon,\qquad\mu\sim\mathbb N(0, 1)$$
#
# leads to $\exp(-2U)/Z$. True. Then it puts $U = -\log P$ and finds (eq. 38)
# $\frac1Z\exp(2\log P) = \frac1Z\exp(2)P = P$.
#
# **Erratum:** $\exp(2\log P)$ is $P^2$. It is not $\exp(2)P$, which would be $\exp(2 + \log P)$, and $Z$ is
# $\int P^2d\mathbf x$, not $\exp(2)$. So eq. 37 with $U = -\log P$ samples $P^2/Z$: narrower modes, and the small
# ones too small. The right step has half the drift. It is eq. 65 of the note's end,
#
# $$X^{k+1} = X^k - \frac{\epsilon^2}2\nabla_XE_\theta(X^k) + \epsilon Z^k,$$
#
# eq. 37 with $U = \tfrac12E$. Here are both steps on a mixture of two normal distributions with weights .3 and .7:

# %%


def log_mixture(x):
    """log P of .3 N(−1.1, .6²) + .7 N(1.1, .6²)."""
    parts = tf.stack([math.log(0.3) - (x + 1.1) ** 2 / 0.72, math.log(0.7) - (x - 1.1) ** 2 / 0.72])
    return tf.reduce_logsumexp(parts, 0) - math.log(0.6 * math.sqrt(2 * math.pi))


eps, num_chains = 0.1, size(20_000, 4_000)
start = tf.random.stateless_normal([num_chains], [0, 2])
kernels = {
    "eq. 37": ebm.mcmc.Langevin(step_size=eps * math.sqrt(2), noise_scale=eps),  # −ε²∇U + εμ
    "eq. 65": ebm.mcmc.Langevin(step_size=eps),  # −½ε²∇E + εZ
}
drawn = {
    name: ebm.mcmc.sample(log_mixture, start, kernel, num_results=1, num_burnin_steps=size(4000, 2000), seed=2)
    .states[0]
    .numpy()
    for name, kernel in kernels.items()
}

line = np.linspace(-4, 4, 2001)
p = np.exp(log_mixture(tf.constant(line)).numpy())
z_of_square = np.sum(p**2) * (line[1] - line[0])
print(f"∫ P² dx = {z_of_square:.4f}; the note's Z = e² = {math.exp(2):.4f}")
for x in (-1.1, 0.0, 1.1):
    log_p = float(log_mixture(tf.constant(x)))
    there = math.exp(log_p)
    print(f"x = {x:4}: P = {there:.4f}, exp(2 log P) = {math.exp(2 * log_p):.4f} = P², e² P = {math.e**2 * there:.4f}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(10.5, 3.8), sharey=True)
for ax, (name, states) in zip(axes, drawn.items(), strict=True):
    ax.hist(states, np.linspace(-3.5, 3.5, 71), density=True, histtype="stepfilled", color=SKY, label="particles")
    ax.plot(line, p, color=BLACK, label="$P$")
    ax.plot(line, p**2 / z_of_square, color=VERMILION, linestyle="--", label="$P^2/Z$")
    ax.set(title=f"{name} with $U = E = -\\log P$", xlabel="$x$", xlim=(-3.5, 3.5))
axes[0].set_ylabel("density")
axes[0].legend(loc="upper left")
plt.show()

# %% [markdown]
# In terms of temperature: eq. 37 is Langevin dynamics at $T = \tau^2/\varepsilon^2 = \tfrac12$, the temperature that we
# measured from the particles at the start. It samples $P^{1/T} = P^2$. On $\mathbb N(0, 1)$ both stationary variances
# are known exactly, because the step is linear: $1/(2 - \epsilon^2)$ for eq. 37 and $1/(1 - \epsilon^2/4)$ for eq. 65.

# %%


def log_normal(x):
    return -0.5 * x**2


def second_moment(kernel, num_results, seed):
    """E x² on N(0, 1) over long chains, and its standard error."""
    start = tf.random.stateless_normal([500], [seed, 3])
    states = ebm.mcmc.sample(
        log_normal, start, kernel, num_results=num_results, num_burnin_steps=num_results // 4, seed=seed
    ).states
    per_chain = np.mean(states.numpy().astype(np.float64) ** 2, 0)
    return per_chain.mean(), per_chain.std(ddof=1) / math.sqrt(len(per_chain))


eps, num_results = 0.5, size(4000, 1000)
as_printed = second_moment(ebm.mcmc.Langevin(step_size=eps * math.sqrt(2), noise_scale=eps), num_results, seed=4)
corrected = second_moment(ebm.mcmc.Langevin(step_size=eps), num_results, seed=4)
print(f"eq. 37: variance {as_printed[0]:.4f} ± {as_printed[1]:.4f}, by theory {1 / (2 - eps**2):.4f}")
print(f"eq. 65: variance {corrected[0]:.4f} ± {corrected[1]:.4f}, by theory {1 / (1 - eps**2 / 4):.4f}")

# %% [markdown]
# ## Bias against the step size
#
# Even eq. 65 is not exact. On $\mathbb N(0, 1)$ its variance is $1/(1 - \epsilon^2/4)$: too large by about
# $\epsilon^2/4$, and without bound as $\epsilon$ approaches 2. More steps do not help, since the chain converges to the
# wrong distribution. A smaller $\epsilon$ helps, and needs more steps to cover the same distance.
#
# ## MALA, the cure
#
# Take the Langevin step as a *proposal* and accept it with the probability of Metropolis and Hastings (section 2.1.2).
# Then detailed balance (eq. 15) holds at every $\epsilon$. This is `ebm.mcmc.MALA`, the Metropolis-adjusted Langevin
# algorithm. The cost of a large $\epsilon$ is rejected steps, and those can be counted, while a bias cannot be
# observed.

# %%
step_sizes = [0.3, 0.6, 0.9, 1.2, 1.5, 1.7]
unadjusted = np.array([second_moment(ebm.mcmc.Langevin(eps), num_results, seed=5) for eps in step_sizes])
adjusted = np.array([second_moment(ebm.mcmc.MALA(eps), num_results, seed=6) for eps in step_sizes])

# %% [markdown]
# How large should $\epsilon$ be? The figure of merit is the ESS per gradient, which `ebm.mcmc.diagnose` computes. In
# one dimension many values work. In many dimensions, here fifty, the best $\epsilon$ accepts a little over half of its
# proposals: the theoretical optimum is .574 (Roberts & Rosenthal 1998), the default target of
# `ebm.mcmc.Adaptive(ebm.mcmc.MALA(...))`.

# %%


def log_normal_vector(x):
    return -0.5 * tf.reduce_sum(x**2, -1)


start = tf.random.stateless_normal([20, 50], [0, 7])
judged = []
for eps in [0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3]:
    chains = ebm.mcmc.sample(
        log_normal_vector,
        start,
        ebm.mcmc.MALA(eps),
        num_results=size(1000, 300),
        num_burnin_steps=100,
        seed=8,
        jit_compile=True,
    )
    found = ebm.mcmc.diagnose(chains)
    judged.append((found.acceptance_rate, found.ess_per_gradient.mean()))
acceptance, efficiency = np.array(judged).T

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4))
fine = np.linspace(0.2, 1.75, 200)
left.plot(fine, 1 / (1 - fine**2 / 4), color=VERMILION, label="$1/(1 - \\epsilon^2/4)$")
left.errorbar(step_sizes, unadjusted[:, 0], 4 * unadjusted[:, 1], fmt="s", color=VERMILION, label="Langevin, eq. 65")
left.axhline(1.0, color=BLACK, linewidth=1, label="truth")
left.errorbar(step_sizes, adjusted[:, 0], 4 * adjusted[:, 1], fmt="o", color=BLUE, label="MALA")
left.set(title="Variance on N(0, 1)", xlabel="step size $\\epsilon$", ylabel="variance", ylim=(0.8, 4.2))
left.legend()
right.plot(acceptance, efficiency, "o-", color=BLUE)
right.axvline(0.574, color=BLACK, linestyle="--", linewidth=1.2, label=".574")
right.set(title="MALA in 50 dimensions", xlabel="acceptance rate", ylabel="effective draws per gradient")
right.set(xlim=(0, 1), ylim=(0, None))
right.legend(loc="lower left", bbox_to_anchor=(0.6, 0.05))
plt.show()

# %% [markdown]
# MALA is also Hamiltonian Monte Carlo (tutorial 4) with a single leapfrog step: one step of size $\epsilon$ moves the
# position by $\tfrac12\epsilon^2\nabla\log p + \epsilon p$, with the momentum $p$ as the noise. So both kernels, given
# the same seed, generate the same chain:

# %%
both = [
    ebm.mcmc.sample(log_mixture, tf.zeros([100], tf.float64), kernel, num_results=100, seed=9)
    for kernel in (ebm.mcmc.MALA(0.7), ebm.mcmc.HMC(0.7, num_leapfrog_steps=1))
]
largest_difference = float(tf.reduce_max(abs(both[0].states - both[1].states)))
print(f"largest difference between 100 chains of 100 steps: {largest_difference:.1e}")

# %% [markdown]
# ## The numbers beside the truth

# %%
ledger = Ledger()
ledger.equal("temperature of eq. 21: m E v²", temperature, 0.5, 4 * temperature_error)
ledger.equal("order of the stationary error of eq. 24", matrix_order[0], 1, matrix_order[1])
for name, errors, power in [
    ("order of what eq. 32 drops from x'", position_errors[:, 0], 1.5),
    ("order of what eq. 32 drops from the Jacobian", jacobian_errors[:, 0], 1.5),
    ("order of eq. 33's first line, no Jacobian", first_line_errors, 1),
    ("order of eq. 33's second line", second_line_errors, 2),
]:
    ledger.equal(name, order(changes, errors)[0], power, order(changes, errors)[1])
ledger.at_most("eq. 28 beside eq. 26", difference_28, 1e-10)
ledger.equal("order of Crank-Nicolson for eq. 34", solver_order[0], 2, solver_order[1])
ledger.at_most("probability that eq. 34 loses", abs(laws.sum(1) - 1).max(), 1e-10)
for k, (value, deviation, shift) in zip(shown, agreement, strict=True):
    ledger.equal(f"χ² per degree, particles at time {clock[k]:g}", value, 1 + shift, 4 * deviation)
ledger.at_most("exp(−2U) in eq. 35", remainders[factors.index(2.0)], 1e-12)
ledger.at_least("exp(−U) in eq. 35", remainders[factors.index(1.0)], 0.01)
ledger.equal("variance by eq. 37, ε = .5: 1/(2 − ε²)", as_printed[0], 1 / 1.75, 4 * as_printed[1])
ledger.equal("variance by eq. 65, ε = .5: 1/(1 − ε²/4)", corrected[0], 1 / (1 - 0.25 / 4), 4 * corrected[1])
ledger.equal("variance by MALA, ε = 1.5", adjusted[4, 0], 1, 4 * adjusted[4, 1])
ledger.at_most("MALA beside HMC of one leapfrog step", largest_difference, 1e-9)
ledger.close()
