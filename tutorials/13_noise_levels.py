# %% [markdown]
# # 13. Energies over noise levels
#
# Score matching ([tutorial 7](07_score_matching.ipynb)) needs no chains and no normaliser, but it cannot see the
# weights of separate modes, and it leaves $Z$ unknown. One energy of the data *at all noise levels* cures both: where
# the noise is as wide as the gap between modes, their weights are visible, and at the largest level the density is a
# known Gaussian.
#
# **After this you can**
#
# - explain why the score of separate modes does not contain their weights, and at which noise it does;
# - write the two identities of dual score matching, and check them;
# - train an energy over noise levels, and read $\log p$ from it without any estimate of $\log Z$;
# - draw samples down the noise levels, and use their $\log Z$ to check the model's own;
# - measure the bits per pixel of small images, remove their noise, and draw new ones with one energy.
#
# The note *Basics of Energy Based Models* treats denoising score matching at one noise level (eqs. 46-51). The second
# identity is from Guth, Kadkhodaie & Simoncelli ([arXiv:2506.05310](https://arxiv.org/abs/2506.05310)).
#
# Prerequisites: tutorial 7. Reading time about 25 minutes.

# %%
import math

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

import tfp_ebm as ebm
from tfp_ebm.lesson import BLUE, VERMILION, Ledger, size, style

style()
ledger = Ledger()

# %% [markdown]
# ## What a score does not contain
#
# Take two modes twelve standard deviations apart, $p = w\,N(-a, s^2I) + (1-w)\,N(a, s^2I)$. Near one mode the other one
# is negligible, so that $\log p$ is $\log w$ plus the log density of that mode, and the score $\nabla\log p$ loses the
# constant $\log w$. A wrong weight costs nothing there. With noise of variance $t$ the mixture has the variances
# $s^2 + t$; as soon as the modes overlap, the score depends on $w$.
#
# Below, the Fisher divergence $\frac12 E\,\|\nabla\log p_t - \nabla\log q_t\|^2$ between $w = .3$ and a model $q$ with
# $w = .7$, at each noise level, times $t$, which makes levels comparable.

# %%
WEIGHT, WIDTH = 0.3, 0.5
CENTRES = np.array([[-3.0, 0.0], [3.0, 0.0]])


def energy_of(weight):
    """E(y, σ) of the two modes plus noise of scale σ, with log Z = 0."""

    def energy(y, sigma):
        variance = (WIDTH**2 + sigma**2)[:, None]
        squares = tf.reduce_sum((y[:, None] - tf.constant(CENTRES, y.dtype)) ** 2, -1)
        log_weights = tf.constant(np.log([weight, 1 - weight]), y.dtype)
        return -tf.reduce_logsumexp(log_weights - 0.5 * squares / variance - tf.math.log(2 * math.pi * variance), -1)

    return energy


def rows(count, seed):
    """Draws of the two modes."""
    rng = np.random.default_rng(seed)
    mode = (rng.uniform(size=count) > WEIGHT).astype(int)
    return (CENTRES[mode] + WIDTH * rng.normal(size=(count, 2))).astype("float32")


def score(energy, y, sigma):
    """∇ log p of an energy at rows with one noise scale each."""
    with tf.GradientTape() as tape:
        tape.watch(y)
        value = energy(y, sigma)
    return -tape.gradient(value, y)


x = rows(size(40_000, 6_000), seed=0)
scales = np.geomspace(0.05, 20, 30)
visible = []
for scale in scales:
    clean = tf.constant(x[:4000])
    y = clean + scale * tf.random.stateless_normal(clean.shape, seed=[0, 1])
    sigma = tf.fill([len(y)], tf.constant(scale, tf.float32))
    gap = score(energy_of(WEIGHT), y, sigma) - score(energy_of(0.7), y, sigma)
    visible.append(0.5 * scale**2 * float(tf.reduce_mean(tf.reduce_sum(gap**2, -1))))

# %% figure="noise_levels_visible"
figure, ax = plt.subplots(figsize=(6.4, 3.4))
ax.loglog(scales, np.maximum(visible, 1e-12), color=VERMILION)
ax.set(xlabel="noise scale σ", ylabel="t × Fisher divergence", ylim=(1e-8, 1), title="Where a wrong weight is visible")
ax.axvspan(1.5, 6, color=BLUE, alpha=0.12, lw=0)
ax.text(3, 2e-8, "the modes\noverlap", ha="center", color=BLUE)
plt.show()
most = scales[np.argmax(visible)]
print(f"at σ = {scales[0]:.2f}: {visible[0]:.1e}; at its largest, σ = {most:.1f}: {max(visible):.3f}")

# %% [markdown]
# ## Two identities
#
# Let $y = x + \sqrt t\,z$ with $z \sim N(0, I)$, and $E(y, t) = -\log p_t(y)$ for the density $p_t$ of $y$. Then
#
# $$\nabla_y E(y, t) = \mathbb{E}\Big[\frac{y - x}{t} \,\Big|\, y\Big], \qquad
# \partial_t E(y, t) = \mathbb{E}\Big[\frac{d}{2t} - \frac{\|y - x\|^2}{2t^2} \,\Big|\, y\Big].$$
#
# The first one is denoising score matching (eq. 51). The second one follows in the same way, by the derivative of
# $N(y; x, tI)$ in $t$. Both right sides are averages over $x$ given $y$, so a least-squares fit to the numbers inside
# the averages finds them: per row,
#
# $$\frac td\Big\|\nabla_y E - \frac{y-x}{t}\Big\|^2 + \frac{t^2}{d/2}\Big(\partial_t E - \frac d{2t} +
# \frac{\|y-x\|^2}{2t^2}\Big)^2 .$$
#
# The first term leaves a constant free at every level. The second one fixes all these constants but one. The weights
# come with them: at a large level they are visible, and the second term carries them down.
#
# `losses.DualScoreMatching` has both terms as metrics. We evaluate them at the true energy with other weights.

# %%
loss = ebm.losses.DualScoreMatching(sigma_min=0.05, sigma_max=20.0)
weights = np.linspace(0.1, 0.9, 17)
terms = {"score_error": [], "level_error": []}
for weight in weights:
    metrics = loss(energy_of(weight), x, seed=1).metrics
    for name, values in terms.items():
        values.append(float(metrics[name]))
best = {name: weights[np.argmin(values)] for name, values in terms.items()}
print({name: f"lowest at w = {weight:.2f}, range {np.ptp(terms[name]):.4f}" for name, weight in best.items()})

# %% [markdown]
# Both have their minimum at .3, since the levels of overlap are among those drawn. A network, however, can satisfy the
# first term at the small levels with any weight, because nothing ties its levels together.
#
# ## Training
#
# `recipes.noise_levels` returns a compiled `EnergyModel` of $(y, \sigma)$ with $\sigma = \sqrt t$. Its network is a
# Gaussian mixture plus noise, plus a residual that vanishes at the largest level, so that $\log Z = 0$ there. We start
# at a single Gaussian, which knows nothing of the modes. For comparison, the same network without the second term,
# which is denoising score matching at all levels (as in diffusion models).

# %%
steps = size(1_600, 60)


def trained(level_weight):
    """A model of the two modes; the weight of the second term is 1 in the recipe."""
    model = ebm.recipes.noise_levels(x, steps, sigma_min=0.05, units=[64, 64], num_components=1)
    if level_weight != 1.0:
        optimizer = keras.optimizers.Adam.from_config(model.optimizer.get_config())
        without = ebm.losses.DualScoreMatching(0.05, 10.0, level_weight, average_targets=True)
        model.compile(optimizer, without, steps_per_execution=size(50, 10))
    per_epoch = len(x) // 200
    model.fit(x, batch_size=200, epochs=max(1, steps // per_epoch), verbose=0)
    return model


models = {"dual": trained(1.0), "denoising": trained(0.0)}
low, high = [-8.0, -5.0], [8.0, 5.0]
log_z, shares = {}, {}
for name, model in models.items():
    sharp = model.given(0.05)
    log_z[name] = ebm.evaluation.grid_log_normalizer(sharp, low, high, num=500).value
    left = ebm.evaluation.grid_log_normalizer(sharp, low, [0.0, 5.0], num=500).value
    shares[name] = math.exp(left - log_z[name])
    print(f"{name:10s} share of the left mode {shares[name]:.3f}, log Z {log_z[name]:.3f}")
print(f"share of the rows in the left mode: {np.mean(x[:, 0] < 0):.3f}")

# %% [markdown]
# The modes have the same places and widths in both models. Only the one with the second term knows their weights and
# $\log Z$.

# %% figure="noise_levels"
axis = [np.linspace(low[i], high[i], 200) for i in range(2)]
nodes = np.stack(np.meshgrid(*axis), -1).reshape(-1, 2).astype("float32")
figure, axes = plt.subplots(2, 4, figsize=(11, 4.2), sharex=True, sharey=True)
for row, (name, model) in zip(axes, models.items(), strict=True):
    for ax, sigma in zip(row, (3.0, 1.0, 0.4, 0.05), strict=True):
        log_density = -model.given(sigma).energy(nodes).numpy().reshape(200, 200)
        ax.imshow(
            np.exp(0.5 * (log_density - log_density.max())), origin="lower", extent=[low[0], high[0], low[1], high[1]]
        )
        ax.set(title=f"σ = {sigma}", xticks=[], yticks=[])
    row[0].set_ylabel(name)
figure.suptitle("Square roots of the densities, from much noise to little")
plt.show()

# %% [markdown]
# ## log p
#
# `model.given(sigma)` is an ordinary `EnergyModel` of $y$, and its $\log Z$ is known to be 0 up to the error of
# training. So `EnergyDistribution.log_prob` works at once. The grid above confirmed it; in more than two coordinates
# there are two other checks. The *probability flow* computes $\log p$ from the scores of all levels alone, by an
# ordinary differential equation, and does not use the energy's constants. The *draws* of the next section estimate
# $\log Z$ by their weights.

# %%
fresh = rows(size(2_000, 200), seed=5)
dual = models["dual"]
sharp = dual.given(0.05)
p = ebm.EnergyDistribution(sharp)
own = ebm.evaluation.log_likelihood(sharp, fresh, float(p.log_normalizer))
flow = ebm.evaluation.probability_flow_log_likelihood(dual, fresh, sigma_min=0.05, num_steps=size(64, 16))
truth = -float(tf.reduce_mean(energy_of(WEIGHT)(tf.constant(fresh), tf.zeros([len(fresh)]))))
print(f"log p per row: own {own.value:.3f}, probability flow {flow.value:.3f}, truth {truth:.3f}")

# %% [markdown]
# ## Draws down the noise
#
# Particles start from the exact Gaussian at the largest level. At each smaller level they take a step along the score,
# get a weight, are resampled if the weights have become unequal, and are moved by Hamiltonian Monte Carlo. In contrast
# to powers $p^\beta$ of a density, the path over noise levels keeps the mass of every region: what is one broad mode at
# a large level splits into the right shares. `p.draw` does it for these models; `mcmc.anneal_noise_levels` takes any
# $\log p(y; \sigma)$.

# %%
draws = p.draw(1_024, seed=0)
drawn_share = float(np.mean(draws.states.numpy()[:, 0] < 0))
estimate = draws.log_normalizer
print(
    f"share of the left mode among draws {drawn_share:.3f}; log Z {estimate.value:.3f} ± {estimate.standard_error:.3f}"
)
print(f"trouble: {draws.trouble or 'none'}")

# %% [markdown]
# This $\log Z$ is an independent check of the model. No loss on data sees a region far from all data in which the
# energy is too low; particles that pass by fall into it, and $\log Z$ shows its mass.
#
# ## Digits: bits, draws, denoising
#
# In 64 dimensions a network of one output leaves such holes. `recipes.noise_level_images` therefore uses
# $E = \frac12\|u + v(y, t)\|^2 + c(t)$ with the whitened image $u$ and as many outputs $v$ of the network as there are
# pixels: it is low only where all of them are small. (With the several Gaussians at which it starts,
# $e^{-E}$ is a sum of such terms.) The data are scikit-learn's digits with 17 grey levels, to which
# uniform noise of one level is added, so that $-\log_2 p$ is an upper bound of the length of a lossless code.

# %%
images = ebm.datasets.digits(images=True)
order = np.random.default_rng(0).permutation(len(images))
train, test = images[order[180:]], images[order[:180]]
digit_steps = size(1_500, 40)
digits = ebm.recipes.noise_level_images(train, digit_steps, units=size([256, 256, 256], [16]))
first_bits = ebm.evaluation.bits_per_dimension(digits.given(0.05), test, 0.0, bin_width=1 / 17)
digits.fit(train, batch_size=256, epochs=max(1, digit_steps * 256 // len(train)), verbose=0)
bits = ebm.evaluation.bits_per_dimension(digits.given(0.05), test, 0.0, bin_width=1 / 17)
print(f"bits per pixel of held-out digits: before training {first_bits.value:.3f}, after it {bits.value:.3f}")
print(f"without any model: {math.log2(17):.3f}")

# %% [markdown]
# The score is also a denoiser: $\mathbb{E}[x \mid y] = y - t\,\nabla_y E(y, t)$ (Tweedie's formula). One model removes
# noise of any level; the noise scale counts in standard deviations of a pixel.

# %%
scale = float(digits.standardization.scale.numpy().ravel()[0])
noise = 1.0
noisy = test + noise * scale * np.random.default_rng(1).normal(size=test.shape).astype("float32")
slope = -digits.given(noise).score(noisy).numpy()
denoised = noisy - (noise * scale) ** 2 * slope
errors = {name: float(np.sqrt(np.mean((y - test) ** 2))) for name, y in (("noisy", noisy), ("denoised", denoised))}
drawn = ebm.EnergyDistribution(digits.given(0.05)).draw(
    size(256, 16), seed=0, num_levels=size(150, 6), num_last_moves=5
)
digits_log_z = drawn.log_normalizer
print({name: round(value, 3) for name, value in errors.items()})
print(f"log Z by draws {digits_log_z.value:.1f} ± {digits_log_z.standard_error:.1f} nats, in 64 dimensions")

# %% figure="noise_levels_digits"
figure, axes = plt.subplots(1, 4, figsize=(11, 2.9))
shown = {"noisy": noisy, "denoised": denoised, "held-out digits": test, "draws": drawn.states.numpy()}
for ax, (name, pictures) in zip(axes, shown.items(), strict=True):
    ebm.plotting.image_grid(pictures[: size(64, 16), ..., 0], ax, name, columns=8)
plt.show()

# %% [markdown]
# The draws are digits, but some resemble each other: 150 levels are few for 64 dimensions, so that many particles
# descend from the same few. `draw` reports this in `drawn.trouble`. By default it takes some 340 levels, and minutes.
#
# ## When to use it
#
# | | dual score matching | noise contrastive estimation | denoising at one level | maximum likelihood with chains |
# |---|---|---|---|---|
# | weights of separate modes | yes | if the noise covers them | no | if the chains mix |
# | $\log Z$ | known | learned | no | by annealing |
# | chains while training | no | no | no | yes |
#
# A step of training costs about 1.2 times that of denoising with the same network.
#
# It needs a network of $(y, \sigma)$, which must learn all levels; a smaller `sigma_min` gives sharper edges and costs
# accuracy elsewhere.
#
# ## The numbers beside the truth

# %%
ledger.at_most("wrong weight at σ = .05: t × Fisher divergence", visible[0], 1e-6)
ledger.at_least("wrong weight at its most visible level", max(visible), 0.01)
ledger.equal("level term: w of the lowest value", best["level_error"], WEIGHT, 0.051)
ledger.equal("dual: share of the left mode", shares["dual"], float(np.mean(x[:, 0] < 0)), size(0.03, 0.5))
ledger.equal("dual: log Z on a grid", log_z["dual"], 0.0, size(0.06, 3.0))
ledger.equal("dual: log Z by draws", estimate.value, log_z["dual"], 4 * estimate.standard_error + 0.02)
ledger.equal("dual: log p by the flow, against the truth", flow.value, truth, size(0.1, 5.0))
ledger.equal("dual: share of the left mode, draws", drawn_share, shares["dual"], size(0.07, 0.5))
ledger.at_most("digits: bits per pixel − before training", bits.value - first_bits.value, size(-0.3, 0.5))
ledger.at_most("digits: error after denoising / before", errors["denoised"] / errors["noisy"], size(0.6, 1.0))
ledger.close()
