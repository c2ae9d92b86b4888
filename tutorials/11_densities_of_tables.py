# %% [markdown]
# # 11. Densities of tables
#
# The normaliser of an energy is an integral over all columns at once, and that is what makes energies hard. If the
# energy is a sum of energies of one column each, given the columns before it, every integral is one-dimensional. Then
# $\log Z = 0$ is known, the likelihood is exact, and samples need no chain.
#
# **After this you can**
#
# - write a density as a product of conditional energies, and check that its normaliser is 1;
# - train such an energy by exact maximum likelihood, and stop where the likelihood of held-out rows is best;
# - draw exact samples, one column after the other;
# - fit a table in one line, and read the report of `fit_density`;
# - say what is given up: the columns get an order.
#
# The note *Basics of Energy Based Models* writes $p(x) = e^{-E(x)}/Z$ (eqs. 1-3) and the likelihood (eq. 6); this
# tutorial makes $Z$ known. The method is the autoregressive energy machine of Nash & Durkan
# ([arXiv:1904.05626](https://arxiv.org/abs/1904.05626)).
#
# Prerequisites: [tutorial 1](01_energies_as_distributions.ipynb), Keras's `fit`. Reading time about 20 minutes.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats
from sklearn.datasets import load_breast_cancer

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, GREEN, ORANGE, VERMILION, Ledger, size, style

style()
ledger = Ledger()

# %% [markdown]
# ## A product of conditional energies
#
# Every density is a product of conditionals, $p(x) = \prod_i p(x_i \mid x_1, \dots, x_{i-1})$. Write each of them as an
# energy on the line, in terms of a proposal $q$ that is easy to integrate against:
#
# $$p(x_i \mid x_{<i}) = \frac{q(x_i \mid x_{<i})\, e^{-e(x_i; x_{<i})}}{Z_i(x_{<i})},\qquad
# Z_i(x_{<i}) = \int q(x \mid x_{<i})\, e^{-e(x; x_{<i})}\,dx .$$
#
# The energy of the whole row is $E(x) = -\sum_i \log p(x_i \mid x_{<i})$, and $Z = \int e^{-E(x)}dx = 1$. One masked
# network of the row gives, for every column, the parameters of $q$ (a mixture of logistic distributions) and the
# coefficients of $e$ (a sum of fixed, bounded functions). The mask hides from column $i$ all columns but those before
# it.
#
# `networks.autoregressive` makes such a network. It is a Keras model like any other, and `losses.NegativeLogLikelihood`
# is its loss. We train it on the banana, $x_1 \sim N(0, 1)$ and
# $x_2 \mid x_1 \sim N(\tfrac12 x_1^2 - \tfrac12, 0.3^2)$.

# %%
target = ebm.targets.banana()
x = ebm.datasets.banana(size(20_000, 4_000), seed=0)
fresh = ebm.datasets.banana(10_000, seed=1)


def trained(order, epochs):
    """An autoregressive energy of the banana with the columns in the given order."""
    network = ebm.networks.autoregressive([2], units=[64, 64], order=order, num_components=2, seed=0)
    model = ebm.EnergyModel(network, seed=0)
    model.adapt(x)
    schedule = keras.optimizers.schedules.CosineDecay(4e-3, epochs * (len(x) * 9 // 10 // 250))
    model.compile(keras.optimizers.Adam(schedule), loss=ebm.losses.NegativeLogLikelihood(), jit_compile=True)
    history = model.fit(x, batch_size=250, epochs=epochs, validation_split=0.1, verbose=0)
    return model, history.history


epochs = size(25, 6)
model, history = trained([0, 1], epochs)
p = ebm.EnergyDistribution(model)
print(f"log Z is known: {float(p.log_normalizer)}")

# %% [markdown]
# The loss is the negative log-likelihood itself, in standard deviations of the data. So the validation loss is exact,
# and no energy gap, no acceptance rate and no noise has to be watched.

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.4))
ax.plot(np.arange(1, epochs + 1), history["loss"], color=BLUE, label="training rows")
ax.plot(np.arange(1, epochs + 1), history["val_loss"], color=VERMILION, label="held-out rows")
ax.set(xlabel="epoch", ylabel="−log p per row", title="Exact likelihood while training")
ax.legend()
plt.show()

# %% [markdown]
# ## Is the normaliser really 1?
#
# The network promises $\int e^{-E(x)}dx = 1$. A grid over the plane, which knows nothing of conditionals, agrees.

# %%
low, high = np.min(x, 0) - 2.0, np.max(x, 0) + 2.0
log_z = ebm.evaluation.grid_log_normalizer(model, low, high, num=600)
log_ratio = target.log_prob(fresh).numpy() - p.log_prob(fresh).numpy()
divergence, error = log_ratio.mean(), log_ratio.std() / np.sqrt(len(fresh))
print(f"log Z by a grid: {log_z.value:.5f}")
print(f"KL(truth‖model) = {divergence:.4f} ± {error:.4f} nats")

# %% [markdown]
# ## The conditionals
#
# Each conditional is a density on the line. Below, $p(x_2 \mid x_1)$ of the model at three values of $x_1$, computed
# from $E$ alone (the factor $p(x_1)$ is the same along each curve), beside the truth.

# %% figure="conditionals"
places = np.linspace(low[1], high[1], 600).astype("float32")
figure, ax = plt.subplots(figsize=(7.2, 3.6))
largest_gap = 0.0
for given, color in zip((-1.0, 0.0, 1.5), (BLUE, GREEN, ORANGE), strict=True):
    rows = np.stack([np.full_like(places, given), places], -1)
    curves = []
    for log_prob in (p.log_prob(rows).numpy(), target.log_prob(rows).numpy()):
        density = np.exp(log_prob - log_prob.max())
        curves.append(density / np.trapezoid(density, places))
    ax.plot(places, curves[0], color=color, label=f"$x_1$ = {given}")
    ax.plot(places, curves[1], color=BLACK, lw=1, ls=":")
    largest_gap = max(largest_gap, 0.5 * np.trapezoid(np.abs(curves[0] - curves[1]), places))
ax.set(xlim=(-2, 3), xlabel="$x_2$", ylabel="$p(x_2 | x_1)$", title="Conditionals of the model; dotted: the truth")
ax.legend()
plt.show()
print(f"largest total variation of the three: {largest_gap:.3f}")

# %% [markdown]
# ## Exact samples
#
# A sample is drawn one column after the other: $x_1$ from $p(x_1)$, then $x_2$ from $p(x_2 \mid x_1)$, each by
# inverting its distribution function. There is no burn-in, and samples are independent. `p.sample` does this by itself
# for every network whose $\log Z$ is known.

# %%
samples = p.sample(size(5_000, 1_000), seed=1).numpy()
tests = [stats.ks_2samp(samples[:, i], fresh[:, i]).pvalue for i in range(2)]
print(f"Kolmogorov-Smirnov tests against fresh data, column by column: p = {tests[0]:.2f}, {tests[1]:.2f}")

# %% [markdown]
# ## The price: an order
#
# The conditionals of $x_2$ given $x_1$ are simple for the banana; those of $x_1$ given $x_2$ have two modes where
# $x_2$ is large. The order of the columns matters, and for a table nobody knows the best one. The remedy is to train
# several orders and to mix the densities: a mixture of densities with $\log Z = 0$ has $\log Z = 0$ itself.
# `composition.stack` finds the weights that make held-out rows most likely.

# %%
backwards, _ = trained([1, 0], epochs)
held_out = ebm.datasets.banana(3_000, seed=2)
both = ebm.composition.stack([model, backwards], held_out)
divergences = {}
orders = {"order 1, 2": ebm.EnergyDistribution(model), "order 2, 1": ebm.EnergyDistribution(backwards)}
for name, candidate in {**orders, "stacked": both}.items():
    gap = target.log_prob(fresh).numpy() - candidate.log_prob(fresh).numpy()
    divergences[name] = (gap.mean(), gap.std() / np.sqrt(len(gap)))
    print(f"{name:12s} KL {gap.mean():.4f} ± {gap.std() / np.sqrt(len(gap)):.4f} nats")

# %% [markdown]
# ## A real table in one line
#
# `fit_density` does all this for a table: it splits the rows, chooses units without heavy tails and edges, fits a
# Gaussian, a Gaussian mixture, a kernel density and autoregressive energies in several orders, and stacks them. We hold
# out a fifth of the 569 rows of the breast cancer data, 30 columns of which many are nearly collinear, to judge the
# result.

# %%
table = load_breast_cancer().data
order = np.random.default_rng(0).permutation(len(table))
rows, judged = table[order[114:]], table[order[:114]]
density = ebm.fit_density(rows, minutes=size(0.5, 0.05), seed=0)
result = ebm.evaluation.log_likelihood(density, judged.astype("float32"), log_normalizer=0.0)
print(f"rows kept aside: {result.value:.1f} ± {result.standard_error:.1f} nats per row")

# %% [markdown]
# The report lists the mean log-likelihood of the rows that `fit_density` itself held out. The mixture of all candidates
# is at least as good on them as the best one, and hardly ever worse on new rows.

# %% figure="fit_density"
names = list(density.candidates)
values = np.array([density.candidates[name][0] for name in names])
errors = np.array([density.candidates[name][1] for name in names])
figure, ax = plt.subplots(figsize=(7.2, 0.36 * len(names) + 1.2))
colors = [VERMILION if name == "stack" else BLUE for name in names]
ax.barh(np.arange(len(names)), values - values.min(), xerr=errors, color=colors, height=0.65)
ax.set_yticks(np.arange(len(names)), [name.replace("_", " ") for name in names])
ax.invert_yaxis()
ax.set(xlabel=f"held-out log-likelihood above {values.min():.1f}, nats per row", title="Breast cancer, 30 columns")
plt.show()

# %% [markdown]
# Its samples are exact as well, and everything that works on an `EnergyModel` works on it: `save`, `export`, scores,
# chains with other targets, joint distributions of TensorFlow Probability.

# %%
drawn = ebm.EnergyDistribution(density).sample(2_000, seed=3).numpy()
shifts = np.abs(drawn.mean(0) - rows.mean(0)) / (rows.std(0) * np.sqrt(1 / len(rows) + 1 / len(drawn)))
print(f"means of the columns, samples against rows, in standard errors: median {np.median(shifts):.2f}")

# %% [markdown]
# ## The numbers beside the truth

# %%
gaussian = density.candidates["gaussian"][0]
ledger.equal("banana: log Z by a grid", log_z.value, 0.0, 1e-3)
ledger.at_most("banana: KL(truth‖model)", divergence, size(0.03, 0.3))
ledger.at_most("banana: total variation of conditionals", largest_gap, size(0.1, 0.4))
ledger.at_least("banana: smallest p-value of samples", min(tests), size(1e-4, 1e-12))
best = min(divergences["order 1, 2"][0], divergences["order 2, 1"][0])
ledger.at_most("banana: KL of the stack − of its best part", divergences["stacked"][0] - best, 0.005)
ledger.at_least("breast cancer: stack − Gaussian, nats", density.candidates["stack"][0] - gaussian, 3)
ledger.at_least("breast cancer: rows kept aside, nats", result.value, 25)
ledger.at_most("breast cancer: shift of the means, median", np.median(shifts), 3)
ledger.close()
