# %% [markdown]
# # 7. Score matching
#
# How an energy is fitted by its gradient in $x$, without samples from the model and without $Z$: exactly, by denoising,
# and along random directions.
#
# **After this you can**
#
# - explain what the Fisher divergence measures, and turn it into a loss that needs no score of the data;
# - recognise when that integration by parts fails;
# - choose between exact, denoising and sliced score matching by what they cost and what they learn;
# - choose the noise scale of denoising, knowing both sides of the trade;
# - recognise what scores cannot determine, the weights of separated modes, and correct them.
#
# It covers §3 to §3.2 of the note *Basics of Energy Based Models*: eqs. 39-57 and Figures 4-7.
#
# Prerequisites: [tutorial 1](01_energies_as_distributions.ipynb), integration by parts, the Hessian matrix; tutorial 5
# for one cure. Reading time about 50 minutes; the five parts (exact, cost, denoising, sliced, weights of modes) can be
# read separately. Next: [tutorial 8](08_noise_contrastive_estimation.ipynb).

# %%
import functools
import time

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, Ledger, size, style

style()
tfd = tfp.distributions

# %% [markdown]
# ## A divergence without the normaliser
#
# Maximising the likelihood is minimising $\mathbb{KL}(P_{data}\|P_\theta)$ (eq. 39). Score matching minimises the
# *Fisher divergence* instead (eq. 40):
#
# $$\mathbb{F}(P_{data}\|P_\theta) = \tfrac12\,\mathbb{E}_{P_{data}} \|\nabla_X\log P_{data}(X) - \nabla_X\log
# P_\theta(X)\|^2 .$$
#
# The model's score is $\nabla_X \log P_\theta = -\nabla_X E_\theta$, free of $Z_\theta$. If $P_{data} > 0$ on a
# connected set that holds all of the model's mass, the divergence is zero only for $\log P_\theta = \log P_{data} + C$
# with one constant $C$, and as both integrate to one, $C = 0$ (eq. 41): the same conclusion as for KL.
#
# **Erratum:** the note states eq. 41 without the condition. The divergence compares scores only where there is data. If
# the support of $P_{data}$ has several separate pieces, each piece has a constant of its own, and $\mathbb F = 0$
# leaves the weights of the pieces undetermined. The last part of this tutorial, "Blind to the weights of modes", shows
# the practical form of this: modes that are *nearly* separate.
#
# We compute both divergences on a grid in one dimension: the data is a mixture of two Gaussians, the model that mixture
# shifted by $t$ and with an arbitrary constant added to its energy.

# %%
grid = np.linspace(-8.0, 8.0, 4001)


def mixture_log_prob(x, share=0.3, gap=2.0, scale=0.7):
    """log of share·N(−gap, scale²) + (1 − share)·N(gap, scale²), in NumPy."""
    left = np.log(share) - (x + gap) ** 2 / (2 * scale**2)
    right = np.log(1 - share) - (x - gap) ** 2 / (2 * scale**2)
    return np.logaddexp(left, right) - np.log(scale * np.sqrt(2 * np.pi))


def derivative(values):
    return np.gradient(values, grid, edge_order=2)


def integral(values):
    return np.trapezoid(values, grid)


log_p = mixture_log_prob(grid)
p = np.exp(log_p)
shifts = np.linspace(-1.5, 1.5, 61)
fisher, kl = [], []
for shift in shifts:
    energy = 5.0 - mixture_log_prob(grid - shift)  # the constant 5 stands for an unknown log Z
    log_q = -energy - np.log(integral(np.exp(-energy)))
    fisher.append(0.5 * integral(p * (derivative(log_p) + derivative(energy)) ** 2))
    kl.append(integral(p * (log_p - log_q)))

figure, axis = plt.subplots(figsize=(7, 3.6))
axis.plot(shifts, fisher, color=BLUE, label="Fisher divergence, eq. 40 (no Z needed)")
axis.plot(shifts, kl, color=VERMILION, linestyle="--", label="KL divergence, eq. 39 (needs Z)")
axis.set(title="Two divergences, one minimum", xlabel="shift t of the model", ylabel="divergence")
axis.legend()
plt.show()

# %% [markdown]
# ## Integration by parts
#
# The data's score is unknown. Expand the square, in one dimension (eq. 42):
#
# $$\mathbb{F} = \tfrac12\!\int\! P_{data}\Big(\tfrac{\partial}{\partial x}\log P_{data}\Big)^2 -
# \int\! P_{data}\,\tfrac{\partial}{\partial x}\log P_{data}\,\tfrac{\partial}{\partial x}\log P_\theta +
# \tfrac12\!\int\! P_{data}\Big(\tfrac{\partial}{\partial x}\log P_\theta\Big)^2 .$$
#
# (The note's eq. 42 considers the integral without the ½ of eq. 40, that is $2\mathbb F$; its eq. 44 has the ½ again.)
# **Erratum:** the second line of eq. 42 lacks a pair of brackets. It prints $P_{data}$ in front of the first term only,
# so that the two other terms are not weighted by it. Their integral does not exist, since scores grow outwards. The
# third line is right again.
#
# The first term is a constant. In the second, $P_{data}\,\partial\log P_{data} = \partial P_{data}$, and integration by
# parts (eq. 43) moves the derivative onto the model:
#
# $$\int \tfrac{\partial P_{data}}{\partial x}\tfrac{\partial}{\partial x}\log P_\theta =
# \Big[P_{data}\,\tfrac{\partial}{\partial x}\log P_\theta\Big]_{-\infty}^{+\infty} -
# \int P_{data}\,\tfrac{\partial^2}{\partial x^2}\log P_\theta ,$$
#
# where the boundary term must vanish. **Erratum:** the note gives $P_{data}(x) \to 0$ as the reason. That is not
# enough: the product $P_{data}\,\partial\log P_\theta$ must go to zero, also where the model's score grows. What is
# left needs only samples of the data (eq. 44); in any dimension
#
# $$\mathbb{F} = \mathbb{E}_{P_{data}}\Big[\tfrac12\|\nabla_X\log P_\theta\|^2 + \mathrm{tr}\,H_{\log P_\theta}\Big] +
# const ,$$
#
# with the trace of the Hessian matrix (eq. 45). **Erratum:** in the second line of eq. 44 the sum runs over $j$, but
# its terms carry the index $i$. We check each line on the grid, for a shifted model:

# %%
model_score = derivative(mixture_log_prob(grid - 0.8))
data_score = derivative(log_p)
constant = 0.5 * integral(p * data_score**2)
cross = integral(p * data_score * model_score)
by_definition = 0.5 * integral(p * (data_score - model_score) ** 2)
expanded = constant - cross + 0.5 * integral(p * model_score**2)
by_parts = constant + integral(p * (0.5 * model_score**2 + derivative(model_score)))
print(f"eq. 40: {by_definition:.5f}   eq. 42 with its ½: {expanded:.5f}   eq. 44 and its constant: {by_parts:.5f}")
without_half = 2 * constant - 2 * cross + integral(p * model_score**2)
print(f"eq. 42 without the ½ of eq. 40: {without_half:.5f}, twice as much")
as_printed = p * data_score**2 - 2 * data_score * model_score + model_score**2  # P_data on the first term only
for edge in (4, 6, 8):
    inside = np.abs(grid) <= edge
    print(f"the second line of eq. 42 as printed, over ±{edge}: {np.trapezoid(as_printed[inside], grid[inside]):.1f}")

# %% [markdown]
# The first line confirms the derivation. The last three lines, eq. 42's second line as printed, fall without bound as
# the box grows: far from the data the two unweighted terms behave like $-x^2/s^4$, with $s$ the width of a mode.
#
# ### When the boundary term stays
#
# Data on a half line, $P_{data} = e^{-x}$ for $x \ge 0$, and the model $E = \lambda x$. Maximum likelihood gives
# $\lambda = 1$. Eq. 44 gives $J = \tfrac12\lambda^2$ (there is no curvature), least at $\lambda = 0$. The reason is the
# boundary term: $P_{data}(0)\cdot\lambda$ is not zero. Adding it back gives $\tfrac12\lambda^2 - \lambda$, with its
# minimum at 1.

# %%
draws = np.random.default_rng(0).exponential(size=(10_000, 1))
for rate in (0.0, 0.5, 1.0, 1.5):
    per_row = ebm.losses.ScoreMatching()(lambda x, rate=rate: tf.reduce_sum(rate * x, -1), draws, seed=0).per_example
    value = float(tf.reduce_mean(per_row))
    print(f"λ = {rate}: J by eq. 44 {value:.3f}, with the boundary term {value - rate:+.3f}")
boundary_values = [0.5 * rate**2 - rate for rate in np.linspace(0, 2, 201)]
boundary_minimiser = np.linspace(0, 2, 201)[np.argmin(boundary_values)]

# %% [markdown]
# Discrete data fail as well, such as pixels stored as integers (the note's remark on digital images): they have no
# density, and so no score. The energy $-k\cos 2\pi x$ has a sharp peak of density on each integer; there its score is 0
# and its curvature $4\pi^2k$, so $J$ falls without bound as $k$ grows. `datasets.digits()` therefore dequantises by
# default.

# %%
whole = np.random.default_rng(0).integers(0, 17, size=(1000, 1)).astype("float64")
spread = whole + np.random.default_rng(1).uniform(size=whole.shape)
for k in (1.0, 10.0, 100.0):

    def comb(x, k=k):
        return -k * tf.reduce_sum(tf.cos(2 * np.pi * x), -1)

    values = [float(tf.reduce_mean(ebm.losses.ScoreMatching()(comb, x, seed=0).per_example)) for x in (whole, spread)]
    print(f"k = {k:5.0f}: J on whole numbers {values[0]:10.1f}, on dequantised ones {values[1]:10.1f}")

# %% [markdown]
# ## Exact score matching
#
# `losses.ScoreMatching` is eq. 44. For $E = \tfrac12(x-\mu)^TP(x-\mu)$ and data of mean $m$ and covariance $S$ it is
# $\tfrac12\mathrm{tr}(P^2S) + \tfrac12\|P(\mu-m)\|^2 - \mathrm{tr}\,P$, which is least at $\mu = m$, $P = S^{-1}$, the
# maximum-likelihood solution for the same data, where it is $-\tfrac12\mathrm{tr}\,S^{-1}$. So a quadratic energy
# trained by it must find the inverse covariance.


# %%
class Quadratic(keras.layers.Layer):
    """E(x) = ½(x − μ)ᵀP(x − μ), P = LLᵀ."""

    def __init__(self, d):
        super().__init__(dtype="float64")
        self.factor = self.add_weight(shape=(d, d), initializer=keras.initializers.Identity(), dtype="float64")
        self.mean = self.add_weight(shape=(d,), initializer="zeros", dtype="float64")

    def call(self, x):
        return 0.5 * tf.reduce_sum(tf.square(tf.matmul(x - self.mean, self.factor)), -1)

    @property
    def precision(self):
        return (self.factor.numpy() @ self.factor.numpy().T).round(12)


def fitted_quadratic(loss, x):
    num_steps = size(1500, 600)
    model = ebm.EnergyModel(Quadratic(x.shape[1]), event_shape=x.shape[1:])
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.05, num_steps)), loss)
    batches = tf.data.Dataset.from_tensors(x).repeat(num_steps)
    model.fit(batches, verbose=0, shuffle=False)
    return model.network


covariance = np.array([[1.0, 0.6], [0.6, 0.8]])
rng = np.random.default_rng(0)
sample = rng.multivariate_normal([0.5, -1.0], covariance, size=2000)
m, s = sample.mean(0), np.cov(sample.T, bias=True)
exact_fit = fitted_quadratic(ebm.losses.ScoreMatching(), sample)
exact_error = np.abs(exact_fit.precision @ s - np.eye(2)).max()
print("P learned:\n", exact_fit.precision.round(4), "\ninverse covariance of the sample:\n", np.linalg.inv(s).round(4))
least = float(tf.reduce_mean(ebm.losses.ScoreMatching()(exact_fit, sample, seed=0).per_example))
print(f"J there: {least:.5f}, −½ tr S⁻¹: {-0.5 * np.trace(np.linalg.inv(s)):.5f}")

# %% [markdown]
# And a network on two moons, whose density is known, by the preset for tables: a dense network with the Gaussian fitted
# to the data as base measure, which fixes the tails.

# %%
moons = ebm.targets.two_moons()
x_moons = ebm.datasets.two_moons(50_000, seed=0)
num_steps = size(2000, 300)
axis_nodes = np.linspace(-3.2, 3.2, 161, dtype="float32")
plane = np.stack(np.meshgrid(axis_nodes, axis_nodes), -1)


def density_of(energy):
    weights = np.exp(-np.asarray(energy(plane), np.float64))
    return weights / (weights.sum() * (axis_nodes[1] - axis_nodes[0]) ** 2)


def trained(x, loss, **options):
    model = ebm.recipes.low_dimensional(x, loss=loss, num_steps=num_steps, steps_per_execution=50, **options)
    batches = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x), seed=0).repeat().batch(256)
    model.fit(batches, steps_per_epoch=num_steps, verbose=0, shuffle=False)
    return model


def show_density(axis, energy, title):
    axis.pcolormesh(axis_nodes, axis_nodes, density_of(energy), cmap="viridis", rasterized=True)
    axis.set(title=title, xlabel="$x_1$", aspect="equal")


moons_model = trained(x_moons, ebm.losses.ScoreMatching())
moons_kl = ebm.evaluation.grid_kl_divergence(moons_model, moons, -8, 8, num=400).value
figure, axes = plt.subplots(1, 2, figsize=(8.4, 4), sharey=True)
show_density(axes[0], lambda x: -moons.log_prob(x), "true density")
show_density(axes[1], moons_model.energy, f"learned by eq. 44, KL {moons_kl:.3f}")
axes[0].set_ylabel("$x_2$")
plt.show()

# %% [markdown]
# ## What the trace costs
#
# Eq. 44 needs second derivatives of a network. The note draws what automatic differentiation does for them: a forward
# pass (Figure 4), a backward pass for the gradient (Figure 5), and then, *for each component of the gradient*, another
# backward pass, of whose result only one number is needed (Figure 6, where $\partial^2f/\partial x_1$ stands for
# $\partial^2f/\partial x_1^2$). Sliced score matching, below, needs one such pass for a single number, $v\cdot\nabla f$
# (Figure 7; **erratum:** its caption names denoising score matching, but the figure is of sliced score matching). We
# measure each on a network of $n = 64$ inputs before we draw them.


# %%
def milliseconds(functions, rounds=5):
    """The least processor time of each function, called in turn; other programs disturb it less than a clock."""
    times = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.process_time()
            np.asarray(tf.nest.flatten(function())[0])
            times[name].append(1000 * (time.process_time() - start))
    return {name: min(values[1:]) for name, values in times.items()}  # the first call compiles


n, batch = 64, 512
network = ebm.networks.mlp([n], units=[256, 256], seed=0)
x = tf.random.stateless_normal([batch, n], seed=[0, 0])
v = tf.sign(tf.random.stateless_normal([batch, n], seed=[0, 1]))
forward_pass = tf.function(network)
score = tf.function(lambda x: ebm.derivatives.score(network, x))
trace_by_loop = tf.function(lambda x: ebm.derivatives.laplacian(network, x, method="reverse"))
trace_forward = tf.function(lambda x: ebm.derivatives.laplacian(network, x, method="forward"))
slice_backward = tf.function(lambda x, v: tf.reduce_sum(v * ebm.derivatives.hvp(network, x, v), -1))
cost = milliseconds(
    {
        "forward": lambda: forward_pass(x),
        "backward": lambda: score(x),
        "loop": lambda: trace_by_loop(x),
        "sliced": lambda: slice_backward(x, v),
        "engine": lambda: trace_forward(x),
    },
    rounds=size(20, 4),
)
print({name: f"{value:.2f} ms" for name, value in cost.items()})

# %%
LIGHT = "#BBBBBB"


def heights(count):
    return (1.0, 0.0, -1.0) if count == 3 else (0.0,)


def column(axis, at, labels, colors=(BLACK,) * 3):
    """Nodes of the graph, one above the other."""
    for y, label, color in zip(heights(len(labels)), labels, colors, strict=False):
        axis.scatter([at], [y], s=780, facecolor="white", edgecolor=color, zorder=3, linewidth=1.5)
        axis.text(at, y, label, ha="center", va="center", zorder=4, fontsize=11, color=color)


def connect(axis, start, end, color, sources=3, targets=3, only=None, width=1.1):
    """Arrows from every node of one column to every node of another, or from one node `only`."""
    for i, a in enumerate(heights(sources)):
        for b in heights(targets):
            if only in (None, i):
                ends = [(start + s * (end - start), a + s * (b - a)) for s in (0.22, 0.78)]
                arrow = dict(arrowstyle="-|>", color=color, linewidth=width, shrinkA=0, shrinkB=0)
                axis.annotate("", xy=ends[1], xytext=ends[0], arrowprops=arrow, zorder=2)


def forward(axis, color, width=1.1):
    column(axis, 0, ["$x_1$", "$x_2$", "$x_3$"])
    column(axis, 1, ["$h_1$", "$h_2$", "$h_3$"])
    column(axis, 2, ["$f$"])
    connect(axis, 0, 1, color, width=width)
    connect(axis, 1, 2, color, targets=1, width=width)


def backward(axis, color):
    column(axis, 3, [r"$\bar h_1$", r"$\bar h_2$", r"$\bar h_3$"])
    column(axis, 4, [r"$\partial_1$", r"$\partial_2$", r"$\partial_3$"])
    connect(axis, 2, 3, color, sources=1)
    connect(axis, 3, 4, color)


# %% figure="score_matching_graphs"
figure, axes = plt.subplots(5, 1, figsize=(9.0, 11.0))
forward(axes[0], BLUE)
forward(axes[1], LIGHT)
backward(axes[1], VERMILION)
for axis in axes[2:4]:
    forward(axis, LIGHT)
    backward(axis, LIGHT)
column(axes[2], 5, [r"$\dot h_1$", r"$\dot h_2$", r"$\dot h_3$"])
column(axes[2], 6, [r"$\partial_{11}$", r"$\partial_{12}$", r"$\partial_{13}$"], (GREEN, LIGHT, LIGHT))
connect(axes[2], 4, 5, GREEN, only=0)
connect(axes[2], 5, 6, GREEN)
axes[2].text(6.45, 0.8, "wanted; then again\nfrom $\\partial_2$ to $\\partial_n$", color=GREEN, va="center")
axes[2].text(6.45, -0.5, "computed,\nthrown away", color="#777777", va="center")
axes[0].text(2.5, 0, "$f = \\log P_θ$, up to its constant", va="center")
axes[1].text(4.45, 0, "$\\partial_i = \\partial f/\\partial x_i$", va="center")
column(axes[3], 5, [r"$v\!\cdot\!\nabla$"])
column(axes[3], 6, [r"$\dot h_1$", r"$\dot h_2$", r"$\dot h_3$"])
column(axes[3], 7, ["$Hv_1$", "$Hv_2$", "$Hv_3$"])
connect(axes[3], 4, 5, GREEN, targets=1)
connect(axes[3], 5, 6, GREEN, sources=1)
connect(axes[3], 6, 7, GREEN)
axes[3].text(7.45, 0, "$v^THv$", color=GREEN, va="center")
forward(axes[4], PURPLE, width=3.5)
backward(axes[4], VERMILION)
axes[4].text(4.45, 0, "weighs the bends:\n$\\nabla f$ and tr $H$ at once", va="center")
titles = (
    f"Figure 4: forward pass.  {cost['forward']:.1f} ms",
    f"Figure 5: backward pass, the score.  {cost['backward']:.1f} ms with the forward pass",
    f"Figure 6: the trace by reverse mode, a backward pass for each of {n} components.  {cost['loop']:.0f} ms",
    f"Figure 7: sliced, one backward pass of one number.  {cost['sliced']:.1f} ms",
    f"This package: all {n} directions carried forward together, one backward pass.  {cost['engine']:.0f} ms",
)
for axis, title in zip(axes, titles, strict=True):
    axis.set_title(title, loc="left")
    axis.set(xlim=(-0.4, 8.2), ylim=(-1.45, 1.45))
    axis.axis("off")
plt.show()

# %% [markdown]
# **Erratum:** §3 states that the trace alone "requires O(n) operations". It is a sum of $n$ numbers, but each of them
# must be computed, and the trace costs about $n$ times as much as a gradient, whichever way. In reverse mode these are
# $n$ backward passes, one after the other. `method="forward"` needs *one* pass, which carries all $n$ directions
# through the layers together: about the same arithmetic, but in a few large matrix products, and no result is
# discarded, so it is faster. (The note counts a gradient as $O(n)$ operations; in these units the trace takes $O(n^2)$,
# as its §3.2 states itself.) Sliced and denoising score matching cost a few gradients, whatever $n$ is; what remains is
# that the gradient itself grows with the width of the input layer.
#
# Measured on complete training gradients, loss and parameter gradient, against the dimension:

# %%
losses = {
    "exact, reverse loop": ebm.losses.ScoreMatching(method="reverse"),
    "exact, forward engine": ebm.losses.ScoreMatching(method="forward"),
    "sliced": ebm.losses.SlicedScoreMatching(),
    "denoising": ebm.losses.DenoisingScoreMatching(0.1),
}
dimensions = size([4, 16, 64, 256], [4, 64])
times = {name: [] for name in losses}


def training_gradient(loss, network, x):
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(loss(network, x, seed=0, training=True).per_example)
    return tape.gradient(value, [weight.value for weight in network.trainable_weights])


for d in dimensions:
    network = ebm.networks.mlp([d], units=[256, 256], seed=0)
    x = tf.random.stateless_normal([128, d], seed=[0, 0])
    compiled = {
        name: functools.partial(tf.function(functools.partial(training_gradient, loss, network)), x)
        for name, loss in losses.items()
    }
    for name, value in milliseconds(compiled).items():
        times[name].append(value)

figure, axis = plt.subplots(figsize=(7.5, 4.2))
for (name, values), color, marker in zip(times.items(), (VERMILION, BLUE, GREEN, ORANGE), "osD^", strict=True):
    axis.loglog(dimensions, values, color=color, marker=marker, label=name)
axis.set(
    title="A training gradient, batch of 128, network $d$-256-256-1",
    xlabel="dimension $d$",
    ylabel="ms of processor time",
)
axis.set_xticks(dimensions, [str(d) for d in dimensions])
axis.set_xticks([], minor=True)
axis.legend()
plt.show()

# %% [markdown]
# ## Denoising score matching
#
# Eq. 44 has two difficulties: second derivatives, and data without a density. Add noise to the data, $X^* = X + \sigma
# z$ with $z \sim N(0, I)$ (eq. 51). It has a smooth density $Q(X^*)$, so aim at that (eq. 46):
#
# $$\mathbb{F}(Q\|P_\theta) = \tfrac12\,\mathbb{E}_{Q}\|\nabla\log Q(X^*) - \nabla\log P_\theta(X^*)\|^2 .$$
#
# $\nabla\log Q$ is unknown, but in the cross term it may be replaced: $\nabla Q(X^*) = \int P_{data}(X)\,Q(X^*|X)\,
# \nabla\log Q(X^*|X)\,dX$ (eq. 47). So the divergence is, up to a constant (eq. 48),
#
# $$\tfrac12\,\mathbb{E}_{Q(X, X^*)}\|\nabla\log Q(X^*|X) - \nabla\log P_\theta(X^*)\|^2 \qquad\text{(eq. 49)},$$
#
# and $\nabla\log Q(X^*|X) = (X - X^*)/\sigma^2 = -z/\sigma$ (eq. 50). In practice (eq. 52)
#
# $$\frac1{2N}\sum_i \Big\|\frac{z_i}{\sigma} + \nabla\log P_\theta(x_i + \sigma z_i)\Big\|^2 ,$$
#
# which is `losses.DenoisingScoreMatching(sigma)`. (Eqs. 46-51 write $\sigma^2$ for the covariance $\sigma^2I$, and eq.
# 51 prints $z \sim \mathbb N(\epsilon|0, I)$ for $\mathbb N(z|0, I)$.) It is a regression: the target $-z/\sigma$ of an
# example has a large variance, and its mean at a given $x^*$ is the score of $Q$. The picture shows that; the numbers
# below check eq. 48, that for *any* model eq. 49 exceeds eq. 46 by the same constant $\tfrac12(d/\sigma^2 -
# \mathbb{E}_Q\|\nabla\log Q\|^2)$.

# %%
sigma = 0.5
wide = np.sqrt(0.7**2 + sigma**2)  # the mixture's widths after the noise
q = np.exp(mixture_log_prob(grid, scale=wide))
q_score = derivative(mixture_log_prob(grid, scale=wide))
rng = np.random.default_rng(0)
rows = 200_000
clean = np.where(rng.uniform(size=rows) < 0.3, -2.0, 2.0) + 0.7 * rng.normal(size=rows)
z = rng.normal(size=rows)
noised, targets = clean + sigma * z, -z / sigma
edges = np.linspace(-4, 4, 33)
which = np.digitize(noised, edges)
means = [targets[which == i].mean() for i in range(1, len(edges))]
figure, axis = plt.subplots(figsize=(7.5, 4.2))
axis.scatter(noised[:1500], targets[:1500], s=8, color=SKY, alpha=0.7, linewidths=0, label="rows: $(x^*, −z/σ)$")
axis.plot(grid, q_score, color=BLACK, label="score of Q")
axis.plot((edges[:-1] + edges[1:]) / 2, means, "o", color=VERMILION, markersize=5, label="mean of the rows in a bin")
axis.set(title="Denoising is a regression", xlabel="$x^*$", ylabel="target", xlim=(-4, 4), ylim=(-6.5, 6.5))
axis.legend(loc="upper right", fontsize=10, markerscale=1.5)
plt.show()

# %% [markdown]
# For two models, eq. 46 by quadrature, and eq. 49 by the package's loss on these samples:

# %%
constant_48 = 0.5 * (1 / sigma**2 - integral(q * q_score**2))
excesses = {}
for name, shift, scale in (("near", 0.3, 0.9), ("far", -1.0, 1.4)):

    def energy(x, shift=shift, scale=scale):
        left, right = (tf.square(x[:, 0] - shift + gap) / (2 * scale**2) for gap in (2.0, -2.0))
        return -tf.reduce_logsumexp(tf.stack([np.log(0.3) - left, np.log(0.7) - right]), 0)

    per_row = ebm.losses.DenoisingScoreMatching(sigma)(energy, clean[:, None], seed=0).per_example.numpy()
    fisher_to_q = 0.5 * integral(q * (q_score - derivative(mixture_log_prob(grid - shift, scale=scale))) ** 2)
    excesses[name] = per_row.mean() - fisher_to_q, per_row.std() / np.sqrt(rows)
    print(f"{name}: eq. 46 {fisher_to_q:.4f}, eq. 49 {per_row.mean():.4f}, difference {excesses[name][0]:.4f}")
print(f"the constant: {constant_48:.4f}")

# %% [markdown]
# ### Which noise scale?
#
# What is learned is $Q$, the blurred data: for a Gaussian of covariance $\Sigma$ the learned precision is $P =
# (\Sigma + \sigma^2 I)^{-1}$. On the data from above, the gradient of the loss vanishes there, and not at $S^{-1}$. Its
# noise is averaged over 50 seeds; $z$ is the mean in units of its standard error.

# %%
largest_z = {}
for name, blur in (("(S + σ²I)⁻¹", 0.5**2), ("S⁻¹", 0.0)):
    energy = Quadratic(2)
    energy.factor.assign(np.linalg.cholesky(np.linalg.inv(s + blur * np.eye(2))))
    energy.mean.assign(m)
    energy(sample[:1])  # builds the layer
    gradients = []
    for seed in range(50):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(ebm.losses.DenoisingScoreMatching(0.5)(energy, sample, seed=seed).per_example)
        gradients.append(tape.gradient(value, energy.factor.value).numpy())
    largest_z[name] = np.abs(np.mean(gradients, 0) / (np.std(gradients, 0, ddof=1) / np.sqrt(50))).max()
    print(f"gradient at P = {name}: largest |z| = {largest_z[name]:.1f}")

# %% [markdown]
# So $\sigma$ should be small. But then the targets $-z/\sigma$ have a large variance, as the note remarks at the end of
# §3.1. For $E = \tfrac12\lambda x^2$ and data from $N(0, 1)$ both sides have closed forms, at the optimum $\lambda^* =
# 1/(1 + \sigma^2)$:
#
# - bias: $\lambda^* - 1 = -\sigma^2/(1 + \sigma^2)$;
# - variance of the gradient of one example: exactly $1/\sigma^2$, so that of $\hat\lambda$ from $n$ examples is
#   $1/(n\sigma^2(1+\sigma^2)^2)$, the curvature of the loss being $1 + \sigma^2$.
#
# We measure both through the package's loss. To obtain a gradient for each example, each has a $\lambda$ of its own.

# %%
sigmas = np.array([0.03, 0.06, 0.125, 0.25, 0.5, 1.0])
num_rows, per_fit = size(200_000, 50_000), 256
x = tf.constant(np.random.default_rng(1).normal(size=(num_rows, 1)))
gradient_variance, bias_measured, bias_error = [], [], []
for sigma in sigmas:
    optimum = 1 / (1 + sigma**2)
    precisions = tf.fill([num_rows], tf.constant(optimum, tf.float64))
    loss = ebm.losses.DenoisingScoreMatching(float(sigma))
    gradients = []
    for rows in (x, -x):  # the same noise for a row and its mirror image: most of it cancels in their mean
        with tf.GradientTape() as tape:
            tape.watch(precisions)
            total = tf.reduce_sum(loss(lambda x: 0.5 * precisions * x[:, 0] ** 2, rows, seed=2).per_example)  # noqa: B023
        gradients.append(tape.gradient(total, precisions).numpy())
    gradient_variance.append(np.mean(gradients[0] ** 2))
    paired = (gradients[0] + gradients[1]) / 2
    # one Newton step from λ* solves this quadratic problem: the minimiser of the loss on these rows
    bias_measured.append(optimum - paired.mean() * optimum - 1.0)
    bias_error.append(paired.std() / np.sqrt(num_rows) * optimum)
gradient_variance, bias_measured, bias_error = map(np.array, (gradient_variance, bias_measured, bias_error))
clear = np.abs(bias_measured) > 4 * bias_error  # what can be told from its own noise is drawn

figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
fine = np.geomspace(0.025, 1.2, 200)
axes[0].loglog(fine, 1 / fine**2, color=BLACK, linestyle="--", label="$1/σ^2$")
axes[0].loglog(sigmas, gradient_variance, "o", color=VERMILION, label="measured")
axes[0].set(title="Variance of a row's gradient", xlabel="σ", ylabel="variance")
axes[0].legend()
squared_bias, variance = (fine**2 / (1 + fine**2)) ** 2, 1 / (per_fit * fine**2 * (1 + fine**2) ** 2)
axes[1].loglog(fine, squared_bias, color=BLUE, label="squared bias")
axes[1].loglog(fine, variance, color=VERMILION, label=f"variance from {per_fit} rows")
axes[1].loglog(fine, squared_bias + variance, color=BLACK, label="both")
axes[1].loglog(sigmas[clear], bias_measured[clear] ** 2, "o", color=BLUE)
axes[1].loglog(sigmas, gradient_variance / (1 + sigmas**2) ** 2 / per_fit, "o", color=VERMILION)
axes[1].set(title="Error of $\\hat λ$, dots measured", xlabel="σ", ylabel="mean squared error", ylim=(3e-7, 10))
axes[1].legend(fontsize=10)
plt.show()

# %% [markdown]
# The same with a network on two moons: with a small $\sigma$ the score is learned noisily, with a large one the moons
# are blurred. `recipes.noise_scale(x)` proposes a $\sigma$ from the number of rows and coordinates. (Noise scales are
# in standard deviations of the data.)

# %%
moons_kls = {}
figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.9), sharey=True)
for axis, sigma in zip(axes, (0.01, ebm.recipes.noise_scale(x_moons), 0.5), strict=True):
    model = trained(x_moons, ebm.losses.DenoisingScoreMatching(sigma))
    moons_kls[sigma] = ebm.evaluation.grid_kl_divergence(model, moons, -8, 8, num=400).value
    show_density(axis, model.energy, f"σ = {sigma:.2g}, KL {moons_kls[sigma]:.3f}")
axes[0].set_ylabel("$x_2$")
plt.show()

# %% [markdown]
# ## Sliced score matching
#
# Denoising learns $Q$. Sliced score matching learns $P_{data}$ itself: two vectors are equal if their projections on
# all directions are equal. With random directions $v$ (eq. 53)
#
# $$\mathbb{F}_s = \mathbb{E}_{P_{data}}\mathbb{E}_{v}\;\tfrac12\big(v^T\nabla\log P_{data} - v^T\nabla\log
# P_\theta\big)^2 .$$
#
# Integration by parts along $v$ (eq. 54) leaves
#
# $$\mathbb{F}_s = \mathbb{E}_{P_{data}}\mathbb{E}_v\big[\tfrac12(v^T\nabla\log P_\theta)^2 + v^T\nabla^2\log
# P_\theta\,v\big] + const \qquad\text{(eq. 56)},$$
#
# and $v^T\nabla^2\log P_\theta\,v$ is the gradient of one number, $v\cdot\nabla\log P_\theta$, times $v$ (eq. 55).
# If $\mathbb{E}[vv^T] = I$, the first term may be taken at its expectation, $\tfrac12\|\nabla\log P_\theta\|^2$ (eq.
# 57).
#
# **Errata:**
#
# - eqs. 53 and 54 print $[\tfrac12(\ldots)]^2$, with the ½ inside the square: half of the right value;
# - eq. 54 lacks transposes and a gradient: it should have $d(v^TP_{data})$ as $v^T\nabla P_{data}\,dX$ and
#   $v^T\nabla\log P_\theta$ for $v\nabla\log P_\theta$, and its third line lacks the weight $P_{data}$;
# - eqs. 56 and 57 lack "+ const", which eq. 44 has, and their left side is $\mathbb F_s$, not $\mathbb F$;
# - eq. 56 expands $\tfrac12(v^Ts)^2$ as $\tfrac12\sum_k (s_kv_k)^2$: the cross terms are missing. The expectation is
#   the same, the value for a given $v$ is not;
# - eq. 57 drops the expectations over data and $v$;
# - the text says that the difference has to be calculated for *all* projections, "in other way we will obtain bad
#   estimator". One random direction per example gives an unbiased estimate; it is the package's default;
# - the text says unit vectors. For those $\mathbb{E}[vv^T] = I/n$, and the divergence is smaller by the factor $n$; the
#   package's "sphere" directions have length $\sqrt n$.
#
# The first, on the scores of two Gaussians in five dimensions, together with the last:

# %%
d, num_directions = 5, size(200_000, 50_000)
directions = {
    "rademacher": np.sign(np.random.default_rng(0).normal(size=(num_directions, d))),
    "gaussian": np.random.default_rng(1).normal(size=(num_directions, d)),
}
directions["sphere"] = directions["gaussian"] * np.sqrt(d / np.sum(directions["gaussian"] ** 2, 1, keepdims=True))
directions["unit vectors"] = directions["sphere"] / np.sqrt(d)
difference = np.array([1.0, -0.5, 0.2, 0.0, 2.0])  # of the two scores at one point
squared_distance = 0.5 * difference @ difference
projected = 0.5 * (directions["gaussian"] @ difference) ** 2
print(f"½‖difference of scores‖² = {squared_distance:.4f}")
for name, v in directions.items():
    right, printed = np.mean(0.5 * (v @ difference) ** 2), np.mean((0.5 * (v @ difference)) ** 2)
    print(f"{name:13s} ½(v·difference)²: {right:.4f}   eq. 53 as printed: {printed:.4f}")

# %% [markdown]
# The expansion in eq. 56: for $E = \sum_i x_i$ in five dimensions the score is $(-1, \ldots, -1)$ and there is no
# curvature. With random signs $\tfrac12(v^Ts)^2$ is .5, 4.5 or 12.5; eq. 56 as printed gives 2.5 for every $v$. The
# package has the right values, and with `variance_reduced=True`, its default, eq. 57's 2.5.

# %%
zeros = tf.zeros([2000, 5])
plain = ebm.losses.SlicedScoreMatching(variance_reduced=False)
per_draw = plain(lambda x: tf.reduce_sum(x, -1), zeros, seed=0).per_example.numpy()
reduced = ebm.losses.SlicedScoreMatching()(lambda x: tf.reduce_sum(x, -1), zeros, seed=0).per_example.numpy()
values, counts = np.unique(per_draw, return_counts=True)
print("draws of eq. 56:", dict(zip(values.tolist(), counts.tolist(), strict=True)), "mean", per_draw.mean())
print("with the first term at its expectation:", np.unique(reduced))

# %% [markdown]
# What remains random is $v^TAv$, with $A$ the Hessian. Its variance is $2\sum_{i\ne j}A_{ij}^2$ for random signs,
# $2\|A\|_F^2$ for Gaussian directions, $\frac{2d}{d+2}(\|A\|_F^2 - \mathrm{tr}^2A/d)$ for the sphere. With random signs
# the trace of a diagonal Hessian has no noise at all.

# %%
matrix = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 3.0]])
squares, diagonal, trace = np.sum(matrix**2), np.sum(np.diag(matrix) ** 2), np.trace(matrix)
theory = {
    "rademacher": 2 * (squares - diagonal),
    "gaussian": 2 * squares,
    "sphere": 2 * 3 / 5 * (squares - trace**2 / 3),
}
points = tf.zeros([size(200_000, 50_000), 3], tf.float64)  # the score is zero there: what is left is the trace term


def bowl(x):
    return 0.5 * tf.einsum("ni,ij,nj->n", x, matrix, x)


v = directions["gaussian"][:4, :3]
_, _, bends = ebm.derivatives.directional_derivatives(bowl, points[:4], tf.constant(v))
bend_error = np.abs(bends.numpy() - np.einsum("ni,ij,nj->n", v, matrix, v)).max()
print(f"eq. 55, by the engine and as a double sum: largest difference {bend_error:.1e}")
slices, slice_errors = {}, {}
for projection, variance in theory.items():
    loss = ebm.losses.SlicedScoreMatching(projection=projection)
    draws = -loss(bowl, points, seed=1).per_example.numpy()
    squared = (draws - trace) ** 2
    slices[projection] = squared.mean()
    slice_errors[projection] = squared.std() / np.sqrt(len(squared))
    print(
        f"{projection:11s} mean {draws.mean():.3f} (trace {trace:.3f}), variance {squared.mean():.3f} ({variance:.3f})"
    )

# %% [markdown]
# ## Blind to the weights of modes
#
# A score is a slope. Between two separated modes there is hardly any data, so the scores hardly determine how high one
# mode is above the other. Give the data weights .2 and .8 and the model the same two modes with weights .8 and .2, and
# move them apart: the Fisher divergence vanishes while the KL divergence stays at $.6\log 4$.

# %%
gaps = np.linspace(0.25, 4.0, 31)
fishers, kls = [], []
for gap in gaps:
    log_p, log_q = (mixture_log_prob(grid, share=share, gap=gap) for share in (0.2, 0.8))
    fishers.append(0.5 * integral(np.exp(log_p) * (derivative(log_p) - derivative(log_q)) ** 2))
    kls.append(integral(np.exp(log_p) * (log_p - log_q)))
figure, axis = plt.subplots(figsize=(7.5, 3.8))
axis.semilogy(gaps / 0.7, kls, color=VERMILION, linestyle="--", label="KL divergence")
axis.semilogy(gaps / 0.7, fishers, color=BLUE, label="Fisher divergence")
axis.axhline(0.6 * np.log(4), color=BLACK, linewidth=1, linestyle=":", label=".6 log 4")
axis.set(
    title="Right modes, wrong weights: .8 / .2 for .2 / .8", xlabel="half distance of the modes, in standard deviations"
)
axis.set_ylabel("divergence")
axis.legend()
plt.show()

# %% [markdown]
# Does a network learn wrong weights, then? We take two modes twelve standard deviations apart, with weights .2 and .8.
# After exact score matching its scores are right where the data is, and its weights depend on how the network happens
# to interpolate between the modes. KL and the share of the left mode reveal that; the Fisher divergence, measured with
# the true score, does not.

# %%
two_modes = tfd.MixtureSameFamily(
    tfd.Categorical(probs=[0.2, 0.8]), tfd.MultivariateNormalDiag([[-3.0, 0.0], [3.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]])
)
x = two_modes.sample(50_000, seed=tf.constant([0, 1])).numpy()
axis_nodes = np.linspace(-5.0, 5.0, 201, dtype="float32")  # a wider window than for the moons
plane = np.stack(np.meshgrid(axis_nodes, axis_nodes), -1)


def judged(model):
    """Share of the left mode, KL and Fisher divergence."""
    density = density_of(model.energy)
    share = density[:, axis_nodes < 0].sum() / density.sum()
    kl = ebm.evaluation.grid_kl_divergence(model, two_modes, -10, 10, num=400).value
    return share, kl, ebm.evaluation.fisher_divergence(model, two_modes, num_samples=size(50_000, 10_000)).value


matched = trained(x, ebm.losses.ScoreMatching())
report, densities = {"score matching": judged(matched)}, {"score matching": density_of(matched.energy)}
print("share of the left mode {:.3f}, KL {:.3f}, Fisher {:.4f}".format(*report["score matching"]))

# %% [markdown]
# ### Cure 1: noise at many scales
#
# At a large $\sigma$ the modes overlap, and their weights can be learned. `NoiseConditionalDenoisingScoreMatching`
# trains a network of $(x, \sigma)$ at all scales at once, and `mcmc.annealed_langevin` goes through the scales from
# large to small: chains choose their mode while it still overlaps with the other, so that the *samples* have the right
# shares. The energy at the smallest scale alone, `family.given(sigma)`, still has wrong weights.
#
# (The network sees $x/\sqrt{1 + \sigma^2}$, which has the same width at every scale.)

# %%
noise_scales = np.geomspace(2.0, 0.1, 10)
keras.utils.set_random_seed(0)
inputs = keras.Input([2]), keras.Input([1])
scaled = inputs[0] / keras.ops.sqrt(1 + inputs[1] ** 2)
features = keras.layers.Concatenate()([scaled, keras.ops.log(inputs[1])])
hidden = keras.layers.Dense(128, "silu")(keras.layers.Dense(128, "silu")(features))
family = ebm.EnergyModel(keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(hidden)), seed=0)
family.adapt(x)
schedule = keras.optimizers.schedules.CosineDecay(5e-3, num_steps)
loss = ebm.losses.NoiseConditionalDenoisingScoreMatching(noise_scales)
family.compile(keras.optimizers.Adam(schedule), loss, steps_per_execution=50)
batches = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x), seed=0).repeat().batch(256)
family.fit(batches, steps_per_epoch=num_steps, verbose=0, shuffle=False)
starts = np.random.default_rng(0).normal(size=(size(4000, 2000), 2)).astype("float32")
starts = family.standardization.to_x(np.sqrt(1 + noise_scales[0] ** 2) * starts)
levels = ebm.mcmc.annealed_langevin(family, starts, noise_scales, num_steps=size(100, 50), seed=0).states.numpy()
annealed = levels[-1]
annealed_share = np.mean(annealed[:, 0] < 0)
print("share left of 0, from the largest scale to the smallest:", np.mean(levels[:, :, 0] < 0, 1).round(3))
print(f"the energy at the smallest scale alone: share {judged(family.given(noise_scales[-1]))[0]:.3f}")

# %% [markdown]
# ### Cure 2: noise contrastive estimation on top
#
# NCE (tutorial 8) compares densities, not slopes. Some steps of it, starting from the score-matched network, keep the
# shapes and correct the weights; it learns $\log Z$ as well.

# %%
matched.compile(
    keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, num_steps)),
    ebm.losses.NoiseContrastiveEstimation(noise_ratio=4.0),
    steps_per_execution=50,
)
matched.fit(batches, steps_per_epoch=num_steps, verbose=0, shuffle=False)
report["NCE on top"], densities["NCE on top"] = judged(matched), density_of(matched.energy)
print("share of the left mode {:.3f}, KL {:.3f}, Fisher {:.4f}".format(*report["NCE on top"]))

# %%
figure, axes = plt.subplots(2, 2, figsize=(10, 5.6), sharex=True, sharey=True)
show_density(axes[0, 0], lambda x: -two_modes.log_prob(x), "true density: left .20")
for axis, (name, density) in zip((axes[0, 1], axes[1, 1]), densities.items(), strict=True):
    axis.pcolormesh(axis_nodes, axis_nodes, density, cmap="viridis", rasterized=True)
    axis.set(title=f"{name}: left {report[name][0]:.2f}, KL {report[name][1]:.3f}", aspect="equal", xlabel="$x_1$")
ebm.plotting.scatter(annealed[:1500], axes[1, 0], f"annealed samples: left {annealed_share:.2f}", VERMILION)
for axis in axes.flat:
    axis.set(xlim=(-5, 5), ylim=(-2.2, 2.2), ylabel="$x_2$")
    axis.label_outer()
plt.show()

# %% [markdown]
# ## The numbers beside the truth

# %%
ledger = Ledger()
ledger.equal("eq. 42 with its ½, against eq. 40", expanded, by_definition, 1e-9)
ledger.equal("eq. 44 and its constant, against eq. 40", by_parts, by_definition, 1e-4)
ledger.equal("exponential data: minimiser with the boundary term", boundary_minimiser, 1.0, 0.005)
ledger.at_most("exact score matching: |P S − I|", exact_error, 1e-3)
ledger.equal("its least value", least, -0.5 * np.trace(np.linalg.inv(s)), 1e-4)
ledger.at_most("two moons, exact score matching: KL", moons_kl, size(0.05, 0.5))
for name, (excess, error) in excesses.items():
    ledger.equal(f"eq. 49 less eq. 46, {name} model", excess, constant_48, 4 * error)
# Student's t of 49 degrees exceeds 4.5 as rarely as a Gaussian 4
ledger.at_most("denoising: |z| of the gradient at (S + σ²I)⁻¹", largest_z["(S + σ²I)⁻¹"], 4.5)
ledger.at_least("denoising: |z| of the gradient at S⁻¹", largest_z["S⁻¹"], 10)
for sigma, variance in zip(sigmas[:4], gradient_variance, strict=False):
    # the gradient is a product of two Gaussians over σ: its square has variance 8/σ⁴
    error = np.sqrt(8 / num_rows)
    ledger.equal(f"denoising at σ = {sigma:g}: σ² × variance of the gradient", sigma**2 * variance, 1.0, 4 * error)
for sigma, bias, error in zip(sigmas[-3:], bias_measured[-3:], bias_error[-3:], strict=True):
    ledger.equal(f"denoising at σ = {sigma:g}: bias", bias, -(sigma**2) / (1 + sigma**2), 4 * error)
error = projected.std() / np.sqrt(num_directions)
sharp, proposed, blunt = moons_kls.values()
ledger.at_least("two moons: KL of σ = 0.01 less that of noise_scale", sharp - proposed, 0.0)
ledger.at_least("two moons: KL of σ = 0.5 less that of noise_scale", blunt - proposed, 0.0)
ledger.equal("eq. 53 with the ½ outside the square, Gaussian v", projected.mean(), squared_distance, 4 * error)
ledger.equal("eq. 53 as printed, over the right value", printed / right, 0.5, 1e-9)
ledger.at_most("eq. 56 per draw: distance from .5, 4.5, 12.5", np.abs(values - [0.5, 4.5, 12.5]).max(), 1e-6)
ledger.equal("mean of those draws", per_draw.mean(), 2.5, 4 * per_draw.std() / np.sqrt(len(per_draw)))
ledger.at_most("eq. 55 against the double sum", bend_error, 1e-12)
for projection, variance in theory.items():
    ledger.equal(f"variance of slices, {projection}", slices[projection], variance, 4 * slice_errors[projection])
slowest = times["exact, reverse loop"][-1]
ledger.at_least("reverse loop / sliced, time", slowest / times["sliced"][-1], size(10, 3))
ledger.at_least("reverse loop / forward engine, time", slowest / times["exact, forward engine"][-1], 1.5)
ledger.equal("wrong weights, far apart: KL", kls[-1], 0.6 * np.log(4), 1e-3)
ledger.at_most("wrong weights, far apart: Fisher divergence", fishers[-1], 1e-4)
before, after = report["score matching"], report["NCE on top"]
ledger.at_least("score matching: error of the left share", abs(before[0] - 0.2), size(0.1, 0.05))
ledger.at_least("score matching: KL", before[1], size(0.3, 0.02))
ledger.at_most("score matching: Fisher divergence", before[2], size(0.05, 0.5))
ledger.equal("annealed samples: left share", annealed_share, 0.2, size(0.05, 0.15))
ledger.equal("NCE on top: left share", after[0], 0.2, size(0.02, 0.05))
ledger.at_most("NCE on top: KL", after[1], size(0.02, 0.1))
ledger.close()
