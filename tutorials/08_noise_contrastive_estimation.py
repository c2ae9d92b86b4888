# %% [markdown]
# # 8. Noise contrastive estimation
#
# Mix the data with noise whose density is known, and train a classifier to distinguish the two. The best possible
# classifier contains the density of the data, its normaliser included. The method needs no chains and no second
# derivatives, and $\log Z$ is learned like any other weight.
#
# **After this you can**
#
# - explain what a noise contrastive loss estimates, and why its optimum is normalised by itself;
# - train an energy together with its $\log Z$, and check that number against a grid and against annealed importance
#   sampling;
# - see from one metric, `overlap`, whether the noise is too easy, and how accurately $\log Z$ can be learned;
# - choose the noise, and how much of it.
#
# It covers section 3.3 of the note *Basics of Energy Based Models*, eqs. 58-64.
#
# Prerequisites: [tutorial 1](01_energies_as_distributions.ipynb), Bayes' rule, logistic regression. Reading time about
# 30 minutes. Next: [tutorial 9](09_side_by_side.ipynb).

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, Ledger, size, style

tfd = tfp.distributions
style()
ledger = Ledger()

# %% [markdown]
# ## The mixture and its labels
#
# Take a sample of the data with probability $P(y=1)$ and one of the noise with $P(y=0)$. The mixture of both is eq. 58,
#
# $$P_{data,n}(X) = P(y=0)\,P_n(X) + P(y=1)\,P_{data}(X).$$
#
# Given only $X$, Bayes' rule gives the probability that it came from the data (eq. 59),
#
# $$P_{data,n}(y=1|X) = \frac{P_{data}(X)}{\nu^{-1}P_n(X) + P_{data}(X)},\qquad
# P_{data,n}(y=0|X) = \frac{P_n(X)}{P_n(X) + \nu P_{data}(X)},\qquad \nu = \frac{P(y=1)}{P(y=0)}.$$
#
# **A difference of convention.** The note's $\nu$, which it uses without defining it, counts data per noise. Gutmann
# and Hyvärinen's $\nu$, and `noise_ratio` in this package, count noise per data: `noise_ratio` $= 1/\nu$. In this
# tutorial $\nu$ is the note's.
#
# We draw such a mixture with four samples of noise per sample of data, and compare the share of data among the points
# of each bin with eq. 59.

# %%
one = tf.constant(1.0, tf.float64)
data = tfd.MixtureSameFamily(tfd.Categorical(probs=[0.3 * one, 0.7 * one]), tfd.Normal([-2 * one, 2 * one], 0.5 * one))
noise = tfd.Normal(data.mean(), data.stddev())  # the Gaussian with the moments of the data

nu = 1 / 4
num = size(200_000, 20_000)
y = np.random.default_rng(0).uniform(size=num) < nu / (1 + nu)
x = np.where(y, data.sample(num, seed=(0, 1)), noise.sample(num, seed=(0, 2)))

edges = np.linspace(-4, 5, 46)
counts, counts_data = np.histogram(x, edges)[0], np.histogram(x[y], edges)[0]


def is_data(x, nu):
    """Eq. 59."""
    return tf.sigmoid(data.log_prob(x) - noise.log_prob(x) + np.log(nu)).numpy()


# within a bin both densities vary: the share to expect is the average of eq. 59 over the points of the bin
which = np.digitize(x, edges) - 1
inside = (which >= 0) & (which < len(counts))
expected = np.bincount(which[inside], is_data(x[inside], nu), len(counts)) / np.maximum(counts, 1)
share = counts_data / np.maximum(counts, 1)
deviation = np.sqrt(expected * (1 - expected) / np.maximum(counts, 1))

# %%
grid = np.linspace(-4, 5, 500)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
axes[0].hist([x[y], x[~y]], edges, stacked=True, color=[BLUE, ORANGE], label=["data, $y=1$", "noise, $y=0$"])
axes[0].set(title="Eq. 58: the mixture, ν = 1/4", xlabel="x", ylabel="draws per bin")
axes[0].legend()
axes[1].plot(grid, is_data(grid, nu), color=BLACK, label="eq. 59")
middles = 0.5 * (edges[1:] + edges[:-1])
axes[1].errorbar(middles, share, 2 * deviation, fmt="o", ms=4, color=BLUE, label="share of data in a bin, ± 2 s.e.")
axes[1].set(title="Eq. 59: is it data?", xlabel="x", ylabel="$P(y=1\\,|\\,x)$", ylim=(-0.03, 1.03))
axes[1].legend(loc="upper center")
plt.show()

# %% [markdown]
# ## The model as a classifier
#
# Put the model $P_\theta(X) = e^{-E_\theta(X)}/Z_\theta$ in the place of the data. Its mixture with the noise is eq.
# 60, $P_{\theta,n}(X) = P(y=0)P_n(X) + P(y=1)P_\theta(X)$, and its probability of the labels is eq. 61,
#
# $$P_{\theta,n}(y=1|X) = \frac{P_\theta(X)}{\nu^{-1}P_n(X) + P_\theta(X)} = \sigma(u(X)),\qquad
# u(X) = -E_\theta(X) - \log Z_\theta - \log P_n(X) + \log\nu.$$
#
# It is a logistic regression whose logit is an energy, a number, and a known function. Training minimises the mean
# Kullback-Leibler divergence between the two distributions of the label. Eq. 62 writes it out: up to a constant, the
# entropy of the true labels, it is the cross-entropy
#
# $$\mathcal{L}(\theta) = -P(y=0)\,\mathbb{E}_{P_n}\log P_{\theta,n}(y=0|X) - P(y=1)\,\mathbb{E}_{P_{data}}\log
# P_{\theta,n}(y=1|X) + \text{const}.$$
#
# (The note uses the same letter $\mathcal L$ in eq. 63 for the negative of this, up to weights.) In one dimension every
# line of eq. 62 is a sum over a grid. We take a wrong model, a single Gaussian, and check that the first line (a
# divergence) and the last (a cross-entropy) differ by exactly that entropy.

# %%
grid = np.linspace(-16, 16, 6401)
log_p, log_q = data.log_prob(grid).numpy(), noise.log_prob(grid).numpy()


def integral(values):
    """By the trapezoid rule on the grid; nothing is left at its ends."""
    return float(np.sum(values) * (grid[1] - grid[0]))


def softplus(u):
    """−log σ(−u)."""
    return np.logaddexp(0, u)


def cross_entropy(log_model, nu, weighted=True):
    """The last line of eq. 62; without its weights P(y), eq. 63 with its sign turned."""
    u = log_model - log_q + np.log(nu)
    of_noise, of_data = integral(np.exp(log_q) * softplus(u)), integral(np.exp(log_p) * softplus(-u))
    return (of_noise + nu * of_data) / (1 + nu) if weighted else of_noise + of_data


wrong = tfd.Normal(one, 2 * one).log_prob(grid).numpy()
u_true, u_model = log_p - log_q + np.log(nu), wrong - log_q + np.log(nu)
h = 1 / (1 + np.exp(-u_true))
kl_of_labels = h * (softplus(-u_model) - softplus(-u_true)) + (1 - h) * (softplus(u_model) - softplus(u_true))
mixture = (np.exp(log_q) + nu * np.exp(log_p)) / (1 + nu)  # eq. 58

first_line = integral(mixture * kl_of_labels)
last_line = cross_entropy(wrong, nu)
entropy_of_labels = cross_entropy(log_p, nu)
print(f"mean KL {first_line:.6f} + entropy {entropy_of_labels:.6f} = cross-entropy {last_line:.6f}")

# %% [markdown]
# `ebm.losses.NoiseContrastiveEstimation` is that cross-entropy per sample of the data, that is, divided by $P(y=1)$.
# Any loss of the package can be called on an energy function, so we evaluate it for the same model.

# %%
noise_1d = tfd.Sample(noise, 1)  # events of shape [1]
loss = ebm.losses.NoiseContrastiveEstimation(noise_1d, noise_ratio=1 / nu)
loss.build((1,), "float64")
loss.log_normalizer.assign(np.log(2 * np.sqrt(2 * np.pi)))  # of N(1, 2²)
rows = data.sample([size(200_000, 20_000), 1], seed=(0, 3))
output = loss(lambda x: 0.5 * ((x[:, 0] - 1) / 2) ** 2, rows, seed=4)
by_package = float(tf.reduce_mean(output.per_example))
by_grid = cross_entropy(wrong, nu) / (nu / (1 + nu))
# two independent means, of softplus(−u) over the data and of softplus(u) over four times as many draws of noise
second = [np.exp(log_p) * softplus(-u_model) ** 2, np.exp(log_q) * softplus(u_model) ** 2]
mean = [np.exp(log_p) * softplus(-u_model), np.exp(log_q) * softplus(u_model)]
spread = [integral(s) - integral(m) ** 2 for s, m in zip(second, mean, strict=True)]
error_of_loss = np.sqrt((spread[0] + spread[1] / nu) / len(rows))
print(f"the package's loss {by_package:.4f} ± {error_of_loss:.4f}, eq. 62 / P(y=1) {by_grid:.4f}")

# %% [markdown]
# ## Only the truth classifies best
#
# The divergence is zero only if both distributions of the label agree, and then, as $P_n$ is the same on both sides,
# eq. 64:
#
# $$\frac{P_n}{P_n + \nu P_\theta} = \frac{P_n}{P_n + \nu P_{data}}\quad\Rightarrow\quad P_\theta(X) = P_{data}(X).$$
#
# **Erratum:** this needs $P_n(X) > 0$ wherever $P_{data}(X) > 0$, which the note does not state. Where $P_n = 0$ both
# sides are zero whatever $P_\theta$ is.
#
# The condition $\int P_\theta = 1$ was not used. The optimum is normalised by itself, and so $\log Z_\theta$ may be a
# free, trainable number, as the note remarks. (In maximum likelihood a free $\log Z$ would go to $-\infty$.)
#
# Both statements can be checked on the grid: the divergence of models that differ from the data by the weight of the
# left mode and by $\log Z$, with the noise from above, and with the same noise cut off at $x = 0$.


# %%
def label_divergence(log_model, log_noise, nu):
    """The first line of eq. 62, on the nodes where there is noise; elsewhere both classifiers are certain."""
    some = np.isfinite(log_noise)
    u_true, u_model = (log_density[some] - log_noise[some] + np.log(nu) for log_density in (log_p, log_model))
    h = 1 / (1 + np.exp(-u_true))
    kl = h * (softplus(-u_model) - softplus(-u_true)) + (1 - h) * (softplus(u_model) - softplus(u_true))
    return integral((np.exp(log_noise[some]) + nu * np.exp(log_p[some])) / (1 + nu) * kl)


left_mode, right_mode = (tfd.Normal(mean, 0.5 * one).log_prob(grid).numpy() for mean in (-2 * one, 2 * one))
candidates = [(left, offset) for left in np.linspace(0.1, 0.9, 17) for offset in np.linspace(-0.5, 0.5, 11)]
divergences = [
    label_divergence(np.logaddexp(np.log(left) + left_mode, np.log(1 - left) + right_mode) - offset, log_q, nu)
    for left, offset in candidates
]
first, second = np.argsort(divergences)[:2]
for name, k in (("least", first), ("second", second)):
    left, offset = candidates[k]
    print(
        f"{name:6s} divergence {divergences[k]:.2e}: left weight {left:.2f} (truth .30), log Z {offset:+.1f} (truth 0)"
    )

doubled = np.where(grid > 0, log_p + np.log(2), log_p)
on_the_left = np.where(grid < 0, log_q - np.log(noise.cdf(0.0 * one).numpy()), -np.inf)
for name, log_noise in (("noise everywhere", log_q), ("noise on the left only", on_the_left)):
    value = label_divergence(doubled, log_noise, nu)
    print(f"{name:22s}: divergence {value:.2e} of a model with twice the density on the right")

# %% [markdown]
# The least divergence is that of the true weight and the true $\log Z$, and it is zero. With noise on the left only, a
# model with twice the density on the right cannot be distinguished from the truth.
#
# ## Erratum: eq. 63 without its weights
#
# Eq. 63, which is to be maximised, prints $\mathbb{E}_{P_n}\log\frac{P_n}{P_n+\nu P_\theta} +
# \mathbb{E}_{P_{data}}\log\frac{P_\theta}{\nu^{-1}P_n+P_\theta}$: the weights $P(y=0)$ and $P(y=1)$ of eq. 62 are
# missing. Then the optimum has $\nu P_\theta = P_{data}$: the shape is right, and $\log Z$ is too large by $\log\nu$.
# The right formula is
#
# $$\mathcal{L}(\theta) = P(y=0)\,\mathbb{E}_{P_n}\log\frac{P_n}{P_n+\nu P_\theta} +
# P(y=1)\,\mathbb{E}_{P_{data}}\log\frac{P_\theta}{\nu^{-1}P_n+P_\theta}.$$
#
# Only at $\nu = 1$ do both agree, and Table 1's line for noise contrastive estimation, which has no $\nu$, is that case
# alone. We minimise both by BFGS, over the scale, location and $\log Z$ of a Gaussian model of Gaussian data, for
# several $\nu$.

# %%
gaussian = tfd.Normal(one, 0.5 * one)
weight_p, weight_q = (tf.constant(d.prob(grid).numpy() * (grid[1] - grid[0])) for d in (gaussian, noise))


def best(nu, weighted):
    """Scale, place and log Z of the Gaussian that minimises eq. 62, or what eq. 63 prints."""

    def objective(theta):
        log_model = -0.5 * tf.exp(theta[0]) * (grid - theta[1]) ** 2 - theta[2]
        u = log_model - log_q + np.log(nu)
        of_noise = tf.reduce_sum(weight_q * tf.nn.softplus(u))
        of_data = tf.reduce_sum(weight_p * tf.nn.softplus(-u))
        return (of_noise + nu * of_data) / (1 + nu) if weighted else of_noise + of_data

    value_and_gradient = tf.function(lambda theta: tfp.math.value_and_gradient(objective, theta), autograph=False)
    found = tfp.optimizer.bfgs_minimize(value_and_gradient, tf.zeros(3, tf.float64), tolerance=1e-9)
    scale, place, log_z = found.position.numpy()
    return np.exp(-0.5 * scale), place, log_z


true_log_z = 0.5 * np.log(2 * np.pi * 0.25)
optima = {(nu, weighted): best(nu, weighted) for nu in (1 / 4, 1.0, 4.0) for weighted in (True, False)}
print("           ν      sd    mean   log Z − truth   log ν")
for (nu_, weighted), (sd, place, log_z) in optima.items():
    name = "eq. 62" if weighted else "eq. 63"
    print(f"{name} {nu_:5.2f}  {sd:6.3f}  {place:6.3f}   {log_z - true_log_z:13.5f} {np.log(nu_):7.3f}")

# %%
offsets = np.linspace(-2.5, 2.5, 101)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
for ax, weighted, title in ((axes[0], True, "Eq. 62, with P(y)"), (axes[1], False, "Eq. 63 as printed, without P(y)")):
    for nu_, color, style_ in ((1 / 4, BLUE, "-"), (1.0, BLACK, "--"), (4.0, VERMILION, "-.")):
        values = np.array([cross_entropy(log_p - offset, nu_, weighted) for offset in offsets])
        values *= 1 if weighted else 0.5
        ax.plot(offsets, values - values.min(), color=color, ls=style_, label=f"ν = {nu_:g}")
        ax.plot(offsets[values.argmin()], 0, "o", color=color, ms=8)
    ax.set(title=title, xlabel="log Z − true log Z")
axes[0].set_ylabel("loss − its minimum")
axes[0].legend(loc="upper center")
plt.show()

# %% [markdown]
# ## Energy and log Z learned together
#
# Now a network. `ebm.recipes.low_dimensional` is a dense network on standardised data. Its base measure is a Gaussian
# that is fitted to the data and widened a little; with `noise=None` that base is also the noise. (The note takes the
# standard normal distribution as noise, which corresponds to this for standardised data.) The target is the pinwheel,
# whose density is known.

# %%
target = ebm.targets.pinwheel()
x = ebm.datasets.pinwheel(size(50_000, 10_000), seed=0)
steps = size(3000, 400)
epochs = steps * 250 // len(x)
loss = ebm.losses.NoiseContrastiveEstimation(noise_ratio=4.0)
model = ebm.recipes.low_dimensional(x, loss, num_steps=steps, steps_per_execution=20)
history = model.fit(x, batch_size=250, epochs=epochs, verbose=0).history
p = ebm.EnergyDistribution(model)  # knows log Z: p.log_prob works
print({name: round(values[-1], 4) for name, values in history.items()})

# %% [markdown]
# We compare the learned $\log Z$ with two other estimates of this package: quadrature on a box much wider than the
# data, and annealed importance sampling, which works in any dimension.

# %%
box = {"low": [-8, -8], "high": [8, 8], "num": 200}
by_grid_2d = ebm.evaluation.grid_log_normalizer(p, **box)
by_ais = ebm.evaluation.annealed_importance_sampling(
    p, num_temperatures=size(300, 40), num_chains=size(500, 200), seed=1
)
learned = float(p.log_normalizer)
kl = ebm.evaluation.grid_kl_divergence(p, target, **box)  # normalised by the grid
kl_of_noise = ebm.evaluation.grid_kl_divergence(model.base, target, log_normalizer=0.0, **box)
print(
    f"log Z: learned {learned:.4f}, grid {by_grid_2d.value:.4f}, AIS {by_ais.value:.4f} ± {by_ais.standard_error:.4f}"
)
print(f"KL(data‖model) {kl.value:.4f} nats, KL(data‖noise) {kl_of_noise.value:.4f}")

# %% figure="noise_contrastive_estimation"
axis = np.linspace(-4, 4, 161, dtype="float32")
plane = np.stack(np.meshgrid(axis, axis), -1)
figure, axes = plt.subplots(1, 3, figsize=(11.2, 3.6), width_ratios=[1, 1, 1.15])
for ax, density, title in ((axes[0], target.prob(plane), "Data"), (axes[1], p.prob(plane), "Learned, normalised")):
    ax.pcolormesh(axis, axis, density, vmin=0, vmax=float(tf.reduce_max(target.prob(plane))), rasterized=True)
    ax.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
axes[2].plot(1 + np.arange(epochs), history["log_normalizer"], color=BLUE, label="learned log Z, by epoch")
axes[2].axhline(by_grid_2d.value, color=BLACK, ls="--", lw=1.2, label="log ∫exp(−E) of the last, by grid")
axes[2].set(title="log Z is a weight", xlabel="epoch", ylabel="log Z", ylim=(learned - 0.1, learned + 0.1))
axes[2].legend(fontsize=10)
plt.show()

# %% [markdown]
# ## The choice of the noise
#
# How accurately can $\log Z$ be estimated from $n$ examples? Write $h = P_{\theta,n}(y=1|X)$. Examples carry
# information where $h$ is neither 0 nor 1, and the metric `overlap` is their share, $\omega = (1 +
# \nu)\,\mathbb{E}_{data}[1 - h]$: one if noise and data agree, near zero if the classifier has nothing left to learn.
# For a known energy the theory of Gutmann and Hyvärinen (2012) gives
#
# $$n\,\operatorname{Var}(\widehat{\log Z}) = (1 + \nu)\,(1/\omega - 1).$$
#
# So `overlap` predicts the error of $\log Z$. We check that: in its first training step the loss starts $\log Z$ at the
# optimum for that batch, so a new loss on a new batch is one such estimate. The energy is the pinwheel's true one, the
# noise a round Gaussian of growing width.

# %%
num_rows, repeats, ratio = 2000, size(50, 10), 1.0


@tf.function
def exact_energy(x):
    """−log p: normalised, so that its log Z is 0."""
    return -target.log_prob(x)


fresh = target.sample([repeats, num_rows], seed=(5, 5))
scales = [1.5, 2.5, 4.0, 7.0, 12.0]
overlaps, errors = [], []
for scale in scales:
    wide = tfd.MultivariateNormalDiag(tf.zeros(2), [scale, scale])
    estimates, seen = [], []
    for i in range(repeats):
        loss = ebm.losses.NoiseContrastiveEstimation(wide, noise_ratio=ratio)
        output = loss(exact_energy, fresh[i], seed=i, training=True)
        estimates.append(float(loss.log_normalizer))
        seen.append(float(output.metrics["overlap"]))
    overlaps.append(np.mean(seen))
    errors.append(np.sqrt(num_rows * np.mean(np.square(estimates))))
predicted = np.sqrt((1 + 1 / ratio) * (1 / np.array(overlaps) - 1))
error_of_error = 1 / np.sqrt(2 * repeats)  # of a standard deviation from so many estimates, relative

# %% [markdown]
# And against the dimension: data from $N(0, I)$, noise that is only 1.5 times wider in every coordinate. Noise that is
# good in two dimensions is too easy in fifty. That is why this method is for few dimensions, or for noise that is a
# good model already.

# %%
dimensions = [1, 2, 5, 10, 20, 50, 100]
by_dimension = []
for d in dimensions:
    loss = ebm.losses.NoiseContrastiveEstimation(tfd.MultivariateNormalDiag(tf.zeros(d), 1.5 * tf.ones(d)))
    standard = tfd.MultivariateNormalDiag(tf.zeros(d))
    output = loss(lambda x, q=standard: -q.log_prob(x), standard.sample(20_000, seed=(d, 0)), seed=d, training=True)
    by_dimension.append(float(output.metrics["overlap"]))

figure, axes = plt.subplots(1, 3, figsize=(11.2, 3.6))
axes[0].loglog(scales, overlaps, "o-", color=BLUE)
axes[0].set(title="Noise N(0, s²I), pinwheel", xlabel="s", ylabel="overlap ω", yticks=[0.05, 0.1, 0.2, 0.5])
axes[0].set_yticklabels([0.05, 0.1, 0.2, 0.5])
axes[1].loglog(scales, predicted, color=BLACK, label="√((1 + ν)(1/ω − 1))")
axes[1].errorbar(scales, errors, 2 * error_of_error * np.array(errors), fmt="o", color=VERMILION, label="measured")
axes[1].set(title="Error of log Z, × √n", xlabel="s", ylabel="√n · s.e.(log Z)", yticks=[1, 2, 5, 10])
axes[1].set_yticklabels([1, 2, 5, 10])
for ax in axes[:2]:
    ax.set_xticks(scales, [f"{scale:g}" for scale in scales])
    ax.minorticks_off()
axes[1].legend()
axes[2].semilogy(dimensions, by_dimension, "o-", color=BLUE)
axes[2].set(title="Noise 1.5 times too wide", xlabel="dimension d", ylabel="overlap ω")
plt.show()

# %% [markdown]
# How does the noise affect training? We train the same network for the same short time with four kinds of noise: one
# that is far too wide, one that is too narrow to cover the data, the fitted Gaussian, and a mixture that
# `loss.adapt(x)` fits by expectation maximisation (a tenth of which is a wide Gaussian, to cover the surroundings).
# `fit` warns of noise that is too easy, or that leaves data out; we print its warnings.


# %%
def round_noise(scale):
    """N(0, scale² I) on the plane."""
    return tfd.MultivariateNormalDiag(tf.zeros(2), [scale, scale])


noises = {
    "far too wide, N(0, 60²)": round_noise(60.0),
    "too narrow, N(0, 0.5²)": round_noise(0.5),
    "fitted Gaussian": "gaussian",
    "fitted mixture": "gaussian_mixture",
}
short = size(1000, 160)
trained = {}
for name, kind in noises.items():
    loss = ebm.losses.NoiseContrastiveEstimation(kind, noise_ratio=4.0)
    loss.adapt(x)  # leaves a given distribution as it is
    candidate = ebm.recipes.low_dimensional(x, loss, num_steps=short)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = candidate.fit(x, batch_size=250, epochs=max(1, short * 250 // len(x)), verbose=0).history
    candidate = ebm.EnergyDistribution(candidate)
    with warnings.catch_warnings():  # where training failed, the grid says that mass is elsewhere: so does the KL
        warnings.simplefilter("ignore")
        error = ebm.evaluation.grid_kl_divergence(candidate, target, **box)
        log_mass = ebm.evaluation.grid_log_normalizer(candidate, **box).value - float(candidate.log_normalizer)
    trained[name] = candidate, error.value, log_mass, found["overlap"][-1]
    print(f"{name:24s} overlap {found['overlap'][-1]:.4f}, KL {error.value:.4f}, log of the mass {log_mass:+.3f}")
    for warning in heard:
        print("    fit warns:", str(warning.message))

# %%
peak = float(tf.reduce_max(target.prob(plane)))
figure, axes = plt.subplots(1, 4, figsize=(11.2, 3.3), sharey=True)
for ax, (name, (candidate, error, _, overlap)) in zip(axes, trained.items(), strict=True):
    ax.pcolormesh(axis, axis, candidate.prob(plane), vmin=0, vmax=peak, rasterized=True)
    ax.set(title=f"{name}\nω = {overlap:.2g}, KL = {error:.2g}", xlabel="$x_1$", aspect="equal")
    ax.title.set_fontsize(11)
axes[0].set_ylabel("$x_2$")
plt.show()

# %% [markdown]
# ## How much noise
#
# Suppose that the noise is as good as possible, $P_n = P_{data}$. Then for the parameters of the energy, and for $\log
# Z$, noise contrastive estimation from $n$ examples has the variance of maximum likelihood times $1 + \nu$, that is $1
# +$ 1/`noise_ratio`: twice that of maximum likelihood with one sample of noise per example, and hardly more than it
# with sixteen. We estimate the precision $a$ of $E(x) = \frac12 a x^2$ with free $\log Z$ from many sets of 500
# examples from $N(0, 1)$. Each fit is a logistic regression on $(-\frac12x^2, -1)$ with two weights, solved by Newton's
# method.

# %%
num_sets, num_rows = size(1000, 500), 500
rng = np.random.default_rng(7)


def precision_estimates(x, noise):
    """The weight of −½x² in the logistic regression that is noise contrastive estimation; one for each row of x."""
    both = np.concatenate([x, noise], 1)
    is_x = np.arange(both.shape[1]) < x.shape[1]
    features = np.stack([-0.5 * both**2, -np.ones_like(both)])
    known = -0.5 * both**2 - 0.5 * np.log(2 * np.pi) + np.log(noise.shape[1] / x.shape[1])  # log ν⁻¹P_n
    theta = np.tile([1.0, 0.5 * np.log(2 * np.pi)], (len(x), 1))
    for _ in range(7):
        h = 1 / (1 + np.exp(known - np.einsum("irn,ri->rn", features, theta)))
        slope = np.einsum("irn,rn->ri", features, is_x - h)
        curvature = np.einsum("irn,rn,jrn->rij", features, h * (1 - h), features)
        theta += np.linalg.solve(curvature, slope[..., None])[..., 0]
    return theta[:, 0]


ratios = [0.25, 1.0, 4.0, 16.0]
chunks = [rng.normal(size=(50, num_rows)) for _ in range(num_sets // 50)]
likelihood = np.concatenate([1 / np.mean(x_**2, 1) for x_ in chunks])
excess = []
for ratio in ratios:
    found = [precision_estimates(x_, rng.normal(size=(50, int(ratio * num_rows)))) for x_ in chunks]
    excess.append(np.var(np.concatenate(found)) / np.var(likelihood))
error_of_ratio = np.sqrt(4 / num_sets)  # relative, of a quotient of two variances

curve = np.logspace(-1, 1.5, 100)
figure, ax = plt.subplots(figsize=(6, 3.8))
ax.semilogx(curve, 1 + 1 / curve, color=BLACK, label="1 + 1/noise_ratio")
ax.axhline(1, color=GREEN, ls="--", lw=1.2, label="maximum likelihood")
ax.errorbar(ratios, excess, 2 * error_of_ratio * np.array(excess), fmt="o", color=PURPLE, label="measured, ± 2 s.e.")
ax.set(title="What a limited amount of noise costs", xlabel="noise_ratio, noise per data", ylim=(0, 8))
ax.set_ylabel("variance / that of max. likelihood")
ax.legend()
plt.show()

# %% [markdown]
# In short: choose noise that is near the data and a little wider, take a few times as much of it as data, and watch
# `overlap`. Without an argument `noise` the loss uses the model's base. For at most three coordinates
# `low_dimensional(x)` and the command line choose the fitted mixture instead; given a loss object, as above,
# `low_dimensional` leaves its noise as it is.
#
# ## The numbers beside the truth

# %%
ledger.at_most(
    "labels against eq. 59: largest of 45 deviations, in s.e.", np.max(np.abs(share - expected) / deviation), 4
)
ledger.equal("eq. 62: cross-entropy − mean KL = entropy", last_line - first_line, entropy_of_labels, 1e-9)
ledger.equal("the package's loss against eq. 62 / P(y=1)", by_package, by_grid, 4 * error_of_loss)
ledger.equal("eq. 62, ν = 1/4: log Z − truth", optima[1 / 4, True][2] - true_log_z, 0, 1e-5)
ledger.equal("eq. 63 as printed, ν = 1/4: log Z − truth", optima[1 / 4, False][2] - true_log_z, np.log(1 / 4), 1e-5)
ledger.equal("eq. 63 as printed, ν = 4: log Z − truth", optima[4.0, False][2] - true_log_z, np.log(4), 1e-5)
ledger.equal("eq. 63 as printed, ν = 1/4: sd all the same", optima[1 / 4, False][0], 0.5, 1e-5)
ledger.equal("Table 1's line (ν = 1): log Z − truth", optima[1.0, False][2] - true_log_z, 0, 1e-5)
ledger.equal("log Z by AIS against the grid", by_ais.value, by_grid_2d.value, 4 * by_ais.standard_error)
mass = np.exp(by_grid_2d.value - learned)
ledger.equal("integral of exp(−E − learned log Z)", mass, 1, size(0.05, 0.1))
ledger.at_most("KL(data‖model) / KL(data‖noise)", kl.value / kl_of_noise.value, size(0.05, 0.3))
worst = np.max(np.abs(np.array(errors) / predicted - 1)) / error_of_error
ledger.at_most("error of log Z against (1 + ν)(1/ω − 1): worst of 5, in s.e.", worst, 4)
ledger.at_most("overlap in 100 dimensions / in 1", by_dimension[-1] / by_dimension[0], 0.01)
ledger.at_most(
    "KL, fitted Gaussian / far too wide", trained["fitted Gaussian"][1] / trained["far too wide, N(0, 60²)"][1], 1
)
for ratio, value in zip(ratios, excess, strict=True):
    ledger.equal(f"variance / ML's, noise_ratio {ratio:g}", value, 1 + 1 / ratio, 4 * error_of_ratio * (1 + 1 / ratio))
ledger.close()
