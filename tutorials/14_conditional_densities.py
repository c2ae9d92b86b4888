# %% [markdown]
# # 14. Conditional densities and regression
#
# A regression predicts one number. A conditional density $p(y \mid x)$ says how probable *every* number is. It knows
# how sure a prediction is, and it can have two answers. An energy that also takes $x$ gives such a density, and this
# tutorial uses it in four ways: for regression, for data with a condition, for digits with labels, and for the
# parameters of a simulator.
#
# **After this you can**
#
# - write a conditional energy, and explain why its normaliser depends on the condition;
# - fit $p(y \mid x)$ in one line, and read means, quantiles and intervals from it;
# - judge intervals on rows kept aside;
# - train any energy of $(x, c)$ by `fit(x, c)`, and use `model.given(c)`;
# - turn a classifier into a density, and draw digits of a given class;
# - infer the parameters of a simulator, and check the posteriors by rank histograms.
#
# The note *Basics of Energy Based Models* treats densities of $x$ alone (eqs. 1-3); here each of its symbols gets a
# condition. Prerequisites: tutorials [8](08_noise_contrastive_estimation.ipynb) and
# [11](11_densities_of_tables.ipynb). Reading time about 25 minutes.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, GREEN, ORANGE, VERMILION, Ledger, size, style

style()
ledger = Ledger()

# %% [markdown]
# ## An energy with a condition
#
# Let the energy take a second argument. For every value of it we get a density (eqs. 1-3):
#
# $$p(y \mid x) = \frac{e^{-E(y;\,x)}}{Z(x)},\qquad Z(x) = \int e^{-E(y;\,x)}\,dy .$$
#
# The normaliser is now a function of $x$. This is the difficulty: maximum likelihood (eq. 6) needs $Z(x)$ at each row.
# If $y$ is one number, the integral is one-dimensional and can be computed. That is how tutorial 11 makes
# $\log Z = 0$, and `recipes.regression` does the same with $x$ as a further input.
#
# Our first data have two answers. Given $x$, the target is near $1 + x$ with probability .6 and near $-(1 + x)$
# with probability .4, and its noise grows with $|x|$.

# %%


def width(x):
    """Standard deviation of each branch."""
    return 0.1 + 0.1 * np.abs(x)


def two_answers(count, seed):
    """Rows x and y of the bimodal toy, [count, 1] each."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (count, 1))
    sign = np.where(rng.random((count, 1)) < 0.6, 1, -1)
    return x, sign * (1 + x) + width(x) * rng.normal(size=(count, 1))


def log_normal(y, mean, sd):
    """log N(y; mean, sd²)."""
    return -0.5 * ((y - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def log_truth(y, x):
    """log p(y | x) of the toy."""
    parts = [np.log(w) + log_normal(y, sign * (1 + x), width(x)) for w, sign in ((0.6, 1), (0.4, -1))]
    return np.logaddexp(*parts)


x, y = two_answers(size(6_000, 500), seed=0)
model = ebm.recipes.regression(x, y, num_networks=1, seed=0)
x_new, y_new = two_answers(size(5_000, 500), seed=1)

# %% [markdown]
# That is the whole fit. `model` is an `EnergyModel` of $y$ with the condition $x$: `model.energy(y, x)` is
# $-\log p(y \mid x)$.
#
# For comparison we take a Gaussian. Not a fitted one: the *best* Gaussian that exists, with the true mean and the true
# variance of $y$ at each $x$. No regression by least squares, and no network with a Gaussian at its end, can be better.

# %%


def log_gaussian(y, x):
    """log of the best Gaussian for each x."""
    return log_normal(y, 0.2 * (1 + x), np.sqrt(width(x) ** 2 + 0.96 * (1 + x) ** 2))


def log_model(y, x):
    """log p(y | x) of the model."""
    return -model.energy(y.astype("float32"), x.astype("float32")).numpy()[:, None]


log_probs = {name: f(y_new, x_new) for name, f in (("model", log_model), ("truth", log_truth), ("gauss", log_gaussian))}
toy_kl = {name: float(np.mean(log_probs["truth"] - log_probs[name])) for name in ("model", "gauss")}
toy_error = float(np.std(log_probs["truth"] - log_probs["model"]) / np.sqrt(len(y_new)))
print(f"KL from the truth, nats a row: model {toy_kl['model']:.4f} ± {toy_error:.4f}, Gaussian {toy_kl['gauss']:.3f}")

# %% figure="conditional_densities"
x_axis, y_axis = np.linspace(-1, 1, 121), np.linspace(-2.6, 2.6, 241)
columns, lines = (a.reshape(-1, 1) for a in np.meshgrid(x_axis, y_axis))
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharex=True, sharey=True)
panels = {"The truth": log_truth, "The model": log_model, "The best Gaussian": log_gaussian}
for ax, (name, log_density) in zip(axes, panels.items(), strict=True):
    density = np.exp(log_density(lines, columns)).reshape(len(y_axis), len(x_axis))
    image = ax.pcolormesh(x_axis, y_axis, np.sqrt(density), vmin=0, vmax=1.3, rasterized=True)
    ax.set(title=name, xlabel="$x$")
axes[0].set_ylabel("$y$")
figure.colorbar(image, ax=axes, label=r"$\sqrt{p(y\,|\,x)}$", pad=0.01)
plt.show()

# %% [markdown]
# ## Means, modes, quantiles, intervals
#
# `model.given(x)` with a batch of inputs is a TFP distribution with one density for each input. Besides `log_prob` and
# `sample` it has `mean`, `stddev`, `mode`, `quantile`, `cdf` and `interval`, all by integrals of the exact density.

# %%
places = np.array([[-0.6], [0.0], [0.6]])
p = model.given(places)
low, high = (end.numpy()[:, 0] for end in p.interval(0.9))
summary = {"mean": p.mean(), "mode": p.mode(), "median": p.quantile(0.5)}
for name, value in summary.items():
    print(f"{name:7s} at x = −0.6, 0, 0.6: {np.round(value.numpy()[:, 0], 2)}")
print(f"90 % interval: from {np.round(low, 2)} to {np.round(high, 2)}")

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.3), sharey=True)
for i, (ax, place) in enumerate(zip(axes, places, strict=True)):
    line, given = y_axis[:, None], np.full((len(y_axis), 1), place)
    ax.fill_between(y_axis, np.exp(log_model(line, given))[:, 0], color=BLUE, alpha=0.35, lw=0, label="model")
    ax.plot(y_axis, np.exp(log_truth(line, given)), color=BLACK, lw=1, ls=":", label="truth")
    ax.plot(y_axis, np.exp(log_gaussian(line, given)), color=VERMILION, label="best Gaussian")
    ax.axvline(p.mean()[i, 0], color=ORANGE, lw=2, label="mean")
    ax.plot([low[i], high[i]], [-0.06, -0.06], color=GREEN, lw=5, solid_capstyle="butt", label="90 % interval")
    ax.set(title=f"$x$ = {place[0]:g}", xlabel="$y$", ylim=(-0.12, 2.3))
axes[0].set_ylabel("$p(y\\,|\\,x)$")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=11)
plt.show()

# %% [markdown]
# The mean lies in the gap, where no target ever is. So does most of the Gaussian. For two answers a mean is no
# prediction; the mode and the draws are.
#
# ## A real table
#
# The breast cancer data have, for 569 nuclei of cells, a mean radius and the standard error of the area. The error is
# positive, skewed, and spreads with the radius. We tell the recipe that it is positive by `bounds`, so that no density
# is wasted below zero. A third of the rows is kept aside.
#
# Two rivals: a straight line with a Gaussian around it, and what an experienced statistician would do, a straight line
# for the *logarithms* of both.

# %%
table = load_breast_cancer(as_frame=True).data[["mean radius", "area error"]].to_numpy()
order = np.random.default_rng(0).permutation(len(table))
rows, kept = table[order[190:]], table[order[:190]]
radius, error = rows[:, :1], rows[:, 1:]
nuclei = ebm.recipes.regression(radius, error, bounds=(0, np.inf), num_networks=size(None, 1), seed=0)


def straight_line(u, v):
    """The line of least squares, as intercept, slope, and standard deviation around it."""
    slope, intercept = np.polyfit(u, v, 1)
    return intercept, slope, np.std(v - intercept - slope * u)


plain = straight_line(rows[:, 0], rows[:, 1])
logarithmic = straight_line(*np.log(rows).T)
of_kept = nuclei.given(kept[:, :1])
scores_of_rows = {
    "model": of_kept.log_prob(kept[:, 1:]).numpy(),
    "line": log_normal(kept[:, 1], plain[0] + plain[1] * kept[:, 0], plain[2]),
    "line of logarithms": log_normal(
        np.log(kept[:, 1]), logarithmic[0] + logarithmic[1] * np.log(kept[:, 0]), logarithmic[2]
    )
    - np.log(kept[:, 1]),  # the Jacobian of the logarithm
}
LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
NORMAL = np.array([-1.645, -0.674, 0, 0.674, 1.645])  # the same levels of N(0, 1)


def fans(inputs):
    """Quantiles of the three at inputs [n], each [levels, n]."""
    of_model = np.stack([nuclei.given(inputs[:, None]).quantile(float(q)).numpy()[:, 0] for q in LEVELS])
    of_line = plain[0] + plain[1] * inputs + NORMAL[:, None] * plain[2]
    of_logs = np.exp(logarithmic[0] + logarithmic[1] * np.log(inputs) + NORMAL[:, None] * logarithmic[2])
    return {"model": of_model, "line": of_line, "line of logarithms": of_logs}


coverage = {}
for name, quantiles in fans(kept[:, 0]).items():
    inside = (kept[:, 1] > quantiles[0]) & (kept[:, 1] < quantiles[-1])
    coverage[name] = float(np.mean(inside))
    mean, deviation = scores_of_rows[name].mean(), scores_of_rows[name].std() / np.sqrt(len(kept))
    print(f"{name:18s} log p of rows kept aside {mean:6.3f} ± {deviation:.3f}, in 90 % intervals {coverage[name]:.3f}")
gain = scores_of_rows["model"] - scores_of_rows["line of logarithms"]
print(f"model − line of logarithms: {gain.mean():.3f} ± {gain.std() / np.sqrt(len(gain)):.3f} nats a row")

# %% figure="regression"
inputs = np.linspace(8, 25, 200)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.8), sharex=True, sharey=True)
for ax, (name, quantiles) in zip(axes, fans(inputs).items(), strict=True):
    ax.fill_between(inputs, quantiles[0], quantiles[4], color=BLUE, alpha=0.18, lw=0, label="90 %")
    ax.fill_between(inputs, quantiles[1], quantiles[3], color=BLUE, alpha=0.35, lw=0, label="50 %")
    ax.plot(inputs, quantiles[2], color=BLUE, label="median")
    ax.plot(*kept.T, ".", color=VERMILION, ms=4, label="rows kept aside")
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.set(title=name, xlabel="mean radius", xlim=(8, 25), ylim=(-70, 330))
axes[0].set_ylabel("area error")
axes[0].legend(loc="upper left", fontsize=10)
plt.show()

# %% [markdown]
# The line alone is wrong in two ways. Its interval is too wide for small nuclei, where it reaches below zero, and too
# narrow for large ones. The model finds shape and width by itself.
#
# ## Any energy of x and c
#
# In several dimensions $Z(c)$ cannot be integrated. But every loss of this package that trains a density of $x$ also
# trains a network of $(x, c)$: the call is `fit(x, c)`, with the condition in Keras's second position. Here is noise
# contrastive estimation (eqs. 58-64). Data and noise of one row have the same condition, so the classifier learns
# $\log p(x \mid c)$. It is right only if the energy is normalised for each $c$, so one learned $\log Z$ serves all.
#
# The data: rings in the plane whose radius is the condition. We leave out radii between 1.1 and 1.4, to see what the
# model makes of conditions that it never saw.

# %%
THICKNESS = 0.15


def rings(radii, seed):
    """One point on a noisy ring for each radius, [n, 2]."""
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * np.pi, len(radii)), radii + THICKNESS * rng.normal(size=len(radii))
    return (radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)).astype("float32")


def log_ring(x, radius):
    """log p(x | c): a Gaussian in the distance, spread over the circle."""
    distance = np.linalg.norm(x, axis=-1)
    return log_normal(distance, radius, THICKNESS) - np.log(2 * np.pi * np.maximum(distance, 1e-6))


radii = np.random.default_rng(2).uniform(0.5, 2.0, size(25_000, 4_000)).astype("float32")
radii = radii[(radii < 1.1) | (radii > 1.4)][: size(20_000, 3_000)]
points = rings(radii, seed=3)

steps = size(2_000, 40)
network = ebm.networks.mlp([2], units=size([128, 128], [32]), condition_shape=(), seed=0)
ring_model = ebm.EnergyModel(network, base_measure=ebm.fit_base(points, width=1.5))
ring_model.adapt(points)
schedule = keras.optimizers.schedules.CosineDecay(5e-3, steps)
ring_model.compile(keras.optimizers.Adam(schedule), ebm.losses.NoiseContrastiveEstimation(noise_ratio=4.0))
ring_model.fit(points, radii, batch_size=250, epochs=max(1, steps * 250 // len(points)), verbose=0)

# %% [markdown]
# `ring_model.given(1.0)` is an ordinary `EnergyModel` of $x$: everything in this package takes it. With a batch of
# conditions, `given` returns a distribution of batch shape `[batch]`. We compare each density with the truth on a grid.

# %%
SHOWN = np.array([0.6, 0.9, 1.25, 1.6, 1.9], "float32")
LEARNED_LOG_Z = float(ring_model.log_normalizer)
half, cells = 2.6, size(200, 100)  # even: no node at the centre, where the density of a radius has a pole
axis = (np.arange(cells) + 0.5) * 2 * half / cells - half
nodes = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype("float32")
area = (2 * half / cells) ** 2
ring_kl, ring_log_z, ring_density = {}, {}, {}
for radius in SHOWN:
    log_q = -ring_model.given(radius).energy(nodes).numpy().astype("float64")
    log_p = log_ring(nodes, radius)
    log_z = np.log(np.sum(np.exp(log_q)) * area)
    ring_log_z[radius] = log_z - LEARNED_LOG_Z
    ring_density[radius] = np.exp(log_q - log_z).reshape(cells, cells)
    ring_kl[radius] = float(np.sum(np.exp(log_p) * (log_p - log_q + log_z)) * area)
    print(f"radius {radius:.2f}: KL {ring_kl[radius]:.4f}, log Z(c) − learned log Z {ring_log_z[radius]:+.3f}")

# %%
figure, axes = plt.subplots(1, 5, figsize=(11, 2.6), sharex=True, sharey=True)
for ax, radius in zip(axes, SHOWN, strict=True):
    ax.pcolormesh(axis, axis, np.sqrt(ring_density[radius]), vmin=0, rasterized=True)
    seen = " (never seen)" if 1.1 < radius < 1.4 else ""
    ax.set(title=f"$c$ = {radius:.2g}{seen}", aspect="equal", xticks=[-2, 0, 2], yticks=[-2, 0, 2])
    ax.title.set_fontsize(11)
figure.suptitle("Densities p(x | c) of one network")
plt.show()

# %% [markdown]
# Conditions may have any shape and dtype: vectors (`condition_shape=[3]`), images, labels (`num_labels=10`), or a
# dictionary of them.
#
# ## A classifier is a density too
#
# A label is a condition with few values, and here we can do more. Take the logits $f(x)$ of any classifier, and define
#
# $$E(x, y) = -f(x)_y, \qquad E(x) = -\log\sum_y e^{f(x)_y}.$$
#
# Then $p(y \mid x) = e^{-E(x, y)} / \sum_{y'} e^{-E(x, y')}$ is the softmax of the classifier, unchanged. But now there
# is also a density $p(x) = e^{-E(x)}/Z$, which the softmax alone does not use (Grathwohl et al.,
# [arXiv:1912.03263](https://arxiv.org/abs/1912.03263)). The loss is the cross-entropy of the labels plus a loss of the
# density, here maximum likelihood by persistent chains (eqs. 6-10, [tutorial 6](06_maximum_likelihood.ipynb)).
#
# `networks.JointEnergy` wraps the classifier, and `recipes.small_images` compiles the model. We train on 1257 of
# scikit-learn's digits of 8 × 8 pixels.

# %%
images, labels = ebm.datasets.digits(images=True), load_digits().target
order = np.random.default_rng(4).permutation(len(images))
train, test = order[:1257], order[1257:]
trunk = ebm.networks.convnet(
    [8, 8, 1], filters=size([64], [4]), kernel_size=4, strides=[2], units=size([256], [8]), seed=0
)
classifier = keras.Model(trunk.inputs, keras.layers.Dense(10)(trunk.layers[-2].output))
digit_steps = size(700, 20)
digits = ebm.recipes.small_images(
    ebm.networks.JointEnergy(classifier), num_steps=digit_steps, kernel_steps=size(10, 2), capacity=size(1024, 64)
)
digits.compile(digits.optimizer, digits.loss, jit_compile=size(True, False), steps_per_execution=10)
digits.fit(images[train], labels[train], batch_size=64, epochs=max(1, digit_steps * 64 // len(train)), verbose=0)
probabilities = digits.class_probabilities(images[test]).numpy()
accuracy = float(np.mean(probabilities.argmax(1) == labels[test]))
calibration_error = ebm.evaluation.expected_calibration_error(probabilities, labels[test])
print(f"held-out digits: accuracy {accuracy:.3f}, calibration error {calibration_error:.4f}")

# %% [markdown]
# ### Digits of a given class
#
# By Bayes' rule $p(x \mid y) \propto p(x)\,p(y \mid x)$. The persistent chains of the training are draws of $p(x)$;
# `recipes.class_samples` chooses among them with probabilities proportional to $p(y \mid x)$, and moves them on by
# further steps on $E(x, y)$. A logistic regression, which never saw our model, judges the draws.
#
# The same chains *repair* images. A damaged digit is improbable; a few steps on $E(x)$ move it to where the density is
# higher. Below we add noise of .3, a third of the range of the pixels, and take ten steps.

# %%
wanted = np.tile(np.arange(10), size(20, 2))
draws = ebm.recipes.class_samples(digits, wanted, num_steps=size(60, 2), seed=0).numpy()
judge = LogisticRegression(max_iter=size(2000, 50), C=0.1).fit(images[train].reshape(-1, 64), labels[train])
judged = {
    "draws": float(np.mean(judge.predict(draws.reshape(-1, 64)) == wanted)),
    "held-out digits": float(np.mean(judge.predict(images[test].reshape(-1, 64)) == labels[test])),
}
print({name: round(share, 3) for name, share in judged.items()})

noisy = images[test] + 0.3 * np.random.default_rng(5).normal(size=images[test].shape)
noisy = np.clip(noisy, 0.001, 0.999).astype("float32")
repaired = ebm.recipes.refine(digits, noisy, num_steps=size(10, 2), seed=0).numpy()
pixel_error = {
    name: float(np.sqrt(np.mean((x - images[test]) ** 2))) for name, x in (("noisy", noisy), ("repaired", repaired))
}
accuracy_of = {
    name: float(np.mean(digits.class_probabilities(x).numpy().argmax(1) == labels[test]))
    for name, x in (("noisy", noisy), ("repaired", repaired))
}
print("error of a pixel:", {name: round(value, 3) for name, value in pixel_error.items()})
print("accuracy:", {name: round(value, 3) for name, value in accuracy_of.items()})

# %% figure="class_draws"
figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
figure.get_layout_engine().set(wspace=0.08)
ebm.plotting.image_grid(draws[: size(60, 20), ..., 0], axes[0], "Draws, one class in each column", columns=10)
three = np.concatenate([images[test][:20], noisy[:20], repaired[:20]])[..., 0]
ebm.plotting.image_grid(three, axes[1], "Digits; with noise; after ten steps (two rows each)", columns=10)
plt.show()

# %% [markdown]
# ## Simulation-based inference
#
# Science often has a simulator: parameters $\theta$ in, data $x$ out, with randomness. We observe $x$ and want
# $p(\theta \mid x)$. The likelihood may be unknown, but we can run the simulator as often as we like: draw
# $\theta$ from the prior, simulate $x$, and the pairs are rows of a table. The posterior is then just another
# regression, of $\theta$ on $x$. (This is neural posterior estimation.)
#
# Our simulator is a damped oscillation, measured at four whole seconds with noise: $x_t = e^{-\gamma t}\cos(\omega t)
# + 0.1\,\varepsilon_t$. It has a trap. At whole $t$, $\cos(\omega t) = \cos((2\pi - \omega)t)$, so that a slow and a
# fast oscillation give the same data. The posterior must have two modes of equal weight. Since the noise is Gaussian
# here, we can compute the exact posterior on a grid, and compare.

# %%
TIMES, NOISE = np.arange(1, 5), 0.1
LOW, HIGH = np.array([0.0, 0.0]), np.array([2 * np.pi, 0.8])


def oscillation(theta, times):
    """The curve without noise, at parameters (ω, γ) [n, 2] and times [m]."""
    return np.exp(-theta[:, 1:] * times) * np.cos(theta[:, :1] * times)


def simulate(count, seed):
    """Parameters of the uniform prior, and what the simulator makes of them."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(LOW, HIGH, (count, 2))
    return theta, oscillation(theta, TIMES) + NOISE * rng.normal(size=(count, len(TIMES)))


theta, measured = simulate(size(6_000, 500), seed=0)
posterior = ebm.recipes.neural_posterior_estimation(theta, measured, prior=(LOW, HIGH), num_networks=1, seed=0)

# %% [markdown]
# One training serves every observation: `posterior.given(x)` is exact to evaluate and to draw from, without chains.

# %%
ticks = [np.linspace(LOW[i], HIGH[i], n + 1) for i, n in enumerate(size((120, 60), (60, 30)))]
middles = [0.5 * (tick[1:] + tick[:-1]) for tick in ticks]
plane = np.stack(np.meshgrid(*middles), -1).reshape(-1, 2)
cell = float((ticks[0][1] - ticks[0][0]) * (ticks[1][1] - ticks[1][0]))
observed_theta = np.array([[1.1, 0.15], [1.9, 0.4], [2.6, 0.1], [4.4, 0.25]])
rng = np.random.default_rng(7)
observed = oscillation(observed_theta, TIMES) + NOISE * rng.normal(size=(len(observed_theta), len(TIMES)))


def exact_posterior(x):
    """Log posterior at the nodes: the Gaussian likelihood, normalised on the grid."""
    log_p = -0.5 * np.sum((x - oscillation(plane, TIMES)) ** 2, -1) / NOISE**2
    return log_p - np.log(np.sum(np.exp(log_p - log_p.max())) * cell) - log_p.max()


posterior_kl, slow_shares = [], []
for x_seen in observed:
    log_exact = exact_posterior(x_seen)
    log_learned = -posterior.given(x_seen).energy(plane.astype("float32")).numpy()
    mass = np.exp(log_exact) * cell
    posterior_kl.append(float(np.sum(mass * (log_exact - log_learned))))
    slow_shares.append(float(np.sum(np.exp(log_learned)[plane[:, 0] < np.pi]) * cell))
print("KL(exact‖learned) of four observations:", np.round(posterior_kl, 3))
print("mass of the slow oscillation (exact: .5):", np.round(slow_shares, 3))

# %% [markdown]
# ### Rank histograms
#
# In practice there is no exact posterior. *Simulation-based calibration* needs none: simulate new pairs
# $(\theta^*, x)$, draw from $p(\theta \mid x)$, and take the rank of $\theta^*$ among the draws. If the posteriors
# are right, all ranks are equally probable. Posteriors that are too narrow have ranks at the ends, and too wide ones
# have them in the middle.

# %%
theta_new, measured_new = simulate(size(400, 60), seed=1)
drawn = posterior.given(measured_new).sample(99, seed=2).numpy()
calibration = ebm.evaluation.simulation_based_calibration(theta_new, drawn)
centre = np.median(drawn, 0)
narrow = ebm.evaluation.simulation_based_calibration(theta_new, centre + 0.6 * (drawn - centre))
print(f"p-values of uniform ranks: ω {calibration.p_values[0]:.3f}, γ {calibration.p_values[1]:.3f}")
print(f"the same draws, squeezed to 60 % of their spread: {narrow.p_value:.1e}")

# %% figure="simulation_based_inference"
figure, axes = plt.subplots(2, 2, figsize=(11, 6.2))
chosen = 0
shape = (len(middles[1]), len(middles[0]))
exact_density = np.exp(exact_posterior(observed[chosen])).reshape(shape)
some = posterior.given(observed[chosen : chosen + 1]).sample(300, seed=3).numpy()[:, 0]
axes[0, 0].pcolormesh(*middles, np.sqrt(exact_density), rasterized=True)
axes[0, 0].plot(*some.T, ".", color="white", ms=3, alpha=0.7)
axes[0, 0].plot(*observed_theta[chosen], "*", color=VERMILION, ms=16, mec="white")
axes[0, 0].set(title="Exact posterior, and 300 draws of the learned one", xlabel="frequency ω", ylabel="damping γ")
time = np.linspace(0, 5, 300)
for draw in some[:40]:
    color = BLUE if draw[0] < np.pi else ORANGE
    axes[0, 1].plot(time, oscillation(draw[None], time)[0], color=color, lw=0.7, alpha=0.4)
axes[0, 1].errorbar(TIMES, observed[chosen], 2 * NOISE, fmt="o", color=BLACK, ms=6, zorder=3, label="observed")
axes[0, 1].plot([], [], color=BLUE, label="slow draws")
axes[0, 1].plot([], [], color=ORANGE, label="fast draws")
axes[0, 1].set(title="Their oscillations", xlabel="time, s", ylabel="$x_t$", ylim=(-1.15, 1.75))
axes[0, 1].legend(loc="upper right", fontsize=10, ncols=3)
ebm.plotting.rank_histograms(calibration.ranks, 99, ["Ranks of ω", "Ranks of γ"], axes[1], num_bins=10)
plt.show()

# %% [markdown]
# In the lower panels the bars of a right posterior stay in the grey band, in 99 of 100 cases. `recipes` also has
# `neural_ratio_estimation`, which learns $p(\theta \mid x)/p(\theta)$ and draws by sequential Monte Carlo.
#
# ## Which one when
#
# | you have | use | you get |
# |---|---|---|
# | targets in few dimensions | `recipes.regression(x, y)` | exact $\log p(y \mid x)$, quantiles, draws |
# | points with a condition | `networks.mlp(condition_shape=...)`, `fit(x, c)` | $E(x; c)$; $\log Z$ by NCE |
# | labels, and a classifier | `networks.JointEnergy` | the classifier, $p(x)$, draws of each class |
# | a simulator | `recipes.neural_posterior_estimation` | $p(\theta \mid x)$ with exact draws, for every $x$ |
#
# ## The numbers beside the truth

# %%
ledger.at_most("toy: KL(truth‖model), nats a row", toy_kl["model"], size(0.05, 2.0))
ledger.at_least("toy: KL(truth‖best Gaussian)", toy_kl["gauss"], 0.3)
ledger.equal("toy: mean at x = .6", float(p.mean()[2, 0]), 0.32, size(0.1, 0.8))
ledger.at_least(
    "nuclei: log p of rows kept aside, model − line",
    *(float(np.mean(scores_of_rows["model"] - scores_of_rows["line"])), size(0.3, -5.0)),
)
ledger.equal("nuclei: share in the 90 % intervals", coverage["model"], 0.9, size(4 * np.sqrt(0.09 / 190), 0.5))
ledger.at_most("rings: largest KL of the radii seen", max(v for c, v in ring_kl.items() if c != 1.25), size(0.1, 5.0))
ledger.at_most("rings: KL of a radius never seen", ring_kl[SHOWN[2]], size(0.2, 5.0))
ledger.at_most("rings: largest error of log Z(c)", max(abs(v) for v in ring_log_z.values()), size(0.1, 3.0))
ledger.at_least("digits: accuracy of the joint energy", accuracy, size(0.95, 0.05))
ledger.at_least("digits: share of draws that are of their class", judged["draws"], size(0.9, 0.0))
ledger.at_most(
    "digits: error after the repair / before", pixel_error["repaired"] / pixel_error["noisy"], size(1.0, 1.2)
)
ledger.at_most("posteriors: mean KL(exact‖learned)", float(np.mean(posterior_kl)), size(0.3, 5.0))
ledger.equal("posteriors: mass of the slow oscillation", float(np.mean(slow_shares)), 0.5, size(0.1, 0.4))
ledger.at_least("posteriors: p-value of uniform ranks", calibration.p_value, size(1e-3, 1e-12))
ledger.at_most("the same, squeezed", narrow.p_value, size(1e-3, 1.0))
ledger.close()
