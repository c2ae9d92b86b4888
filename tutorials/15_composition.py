# %% [markdown]
# # 15. Composition, completion, memory
#
# Energies add. If one energy knows where the digits are and another one where the ink is thick, their sum knows both,
# without any further training. Du & Mordatch ([arXiv:1903.08689](https://arxiv.org/abs/1903.08689)) made this the case
# for energies, together with three more uses: filling in what is missing, repairing what is damaged, and learning one
# thing after another. This tutorial repeats their experiments in small, with the truth beside them; the repair of
# damaged images is in [tutorial 14](14_conditional_densities.ipynb), beside the digits.
#
# **After this you can**
#
# - combine trained densities by *and*, *or*, *not*, and temper them;
# - say which of these have a known $\log Z$, and when a product has none at all;
# - save and export compositions like any other model;
# - draw the missing coordinates of a point, or the missing half of an image;
# - train classes one after the other without forgetting the first ones.
#
# In the note *Basics of Energy Based Models* any positive function is a density up to its normaliser (eqs. 1-3, 5), and
# temperature is a power of it (eq. 4). Prerequisites: tutorials [1](01_energies_as_distributions.ipynb),
# [6](06_maximum_likelihood.ipynb) and [11](11_densities_of_tables.ipynb). Reading time about 25 minutes.

# %%
import pathlib
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, Ledger, size, style

tfd = tfp.distributions
style()
ledger = Ledger()
workspace = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## Two concepts
#
# Our concepts are shapes in the plane: "on the ring" and "on the wave". Each is learned from points of its own, by an
# autoregressive energy and exact likelihood (tutorial 11). So $\log Z = 0$ for both. The formulas of the true densities
# serve only as a check.

# %%


def log_normal(x, mean, sd):
    """log N(x; mean, sd²)."""
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def ring_rows(count, seed):
    """Points on a noisy ring of radius 2."""
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * np.pi, count), 2 + 0.25 * rng.normal(size=count)
    return (radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)).astype("float32")


def wave_rows(count, seed):
    """Points on a noisy wave."""
    rng = np.random.default_rng(seed)
    first = 1.5 * rng.normal(size=count)
    return np.stack([first, 1.2 * np.sin(1.5 * first) + 0.3 * rng.normal(size=count)], -1).astype("float32")


def log_ring(x):
    """log density of the ring."""
    distance = np.maximum(np.linalg.norm(x, axis=-1), 1e-6)
    return log_normal(distance, 2, 0.25) - np.log(2 * np.pi * distance)


def log_wave(x):
    """log density of the wave."""
    return log_normal(x[:, 0], 0, 1.5) + log_normal(x[:, 1], 1.2 * np.sin(1.5 * x[:, 0]), 0.3)


def learned(rows, steps):
    """An autoregressive energy of the rows."""
    network = ebm.networks.autoregressive([2], units=size([64, 64], [16]), num_components=size(6, 2), seed=0)
    model = ebm.EnergyModel(network)
    model.adapt(rows)
    schedule = keras.optimizers.schedules.CosineDecay(4e-3, steps)
    model.compile(
        keras.optimizers.Adam(schedule), loss=ebm.losses.NegativeLogLikelihood(), jit_compile=size(True, False)
    )
    model.fit(rows, batch_size=250, epochs=max(1, steps * 250 // len(rows)), verbose=0)
    return model


count, steps = size(20_000, 2_500), size(1_600, 10)
ring_model, wave_model = learned(ring_rows(count, 0), steps), learned(wave_rows(count, 1), steps)
ring, wave = ebm.EnergyDistribution(ring_model), ebm.EnergyDistribution(wave_model)

# %% [markdown]
# ## And: a product
#
# The product of two densities, $p(x)\,q(x)$, is large only where both are. Its energy is the sum of the energies
# (eq. 5):
#
# $$\text{ring and wave:}\qquad E(x) = E_{ring}(x) + E_{wave}(x).$$
#
# Its $Z$ is not 1, and not known. But draws need no $Z$: `draw` starts at a Gaussian that covers both factors, anneals
# it towards the product (sequential Monte Carlo), and estimates $\log Z$ on the way. We compare with the product of the
# two *true* densities, normalised on a grid.

# %%
both = ring * wave
drawn = both.draw(size(1_000, 200), seed=0)
print(f"log Z by draws {drawn.log_normalizer.value:.3f} ± {drawn.log_normalizer.standard_error:.3f}")
print(f"trouble: {drawn.trouble or 'none'}")

HALF, CELLS = 4.2, size(281, 101)
axis = (np.arange(CELLS) + 0.5) * 2 * HALF / CELLS - HALF
nodes = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype("float32")
AREA = (2 * HALF / CELLS) ** 2


def on_grid(log_density):
    """A log density at the nodes, normalised there, and its log Z."""
    values = np.asarray(log_density, "float64")
    log_z = np.log(np.sum(np.exp(values - values.max())) * AREA) + values.max()
    return values - log_z, log_z


def divergence(log_p, log_q):
    """KL(p‖q) of two log densities on the grid."""
    return float(np.sum(np.exp(log_p) * (log_p - log_q)) * AREA)


true_ring, true_wave = log_ring(nodes), log_wave(nodes)
log_learned = {name: on_grid(p.unnormalized_log_prob(nodes)) for name, p in (("ring", ring), ("wave", wave))}
log_both, log_z_both = on_grid(both.unnormalized_log_prob(nodes))
kl = {
    "ring": divergence(on_grid(true_ring)[0], log_learned["ring"][0]),
    "wave": divergence(on_grid(true_wave)[0], log_learned["wave"][0]),
    "product": divergence(on_grid(true_ring + true_wave)[0], log_both),
}
print("KL(truth‖learned):", {name: round(value, 4) for name, value in kl.items()})
print(f"log Z of the product by the grid {log_z_both:.3f}")

# %% [markdown]
# ## Or: a mixture
#
# The mixture $w\,p(x) + (1-w)\,q(x)$ is large where either is. It needs densities, not energies: with unknown
# normalisers nobody knows what the shares are. Here both are known, so the mixture has $\log Z = 0$ and exact draws. To
# check the shares, we assign each draw to the part that explains it, with the probability that Bayes' rule gives.

# %%
SHARE = 0.3
either = ebm.composition.mixture([ring_model, wave_model], [SHARE, 1 - SHARE])
from_either = either.sample(size(20_000, 2_000), seed=1).numpy()
odds = np.log(SHARE) + ring.log_prob(from_either) - np.log(1 - SHARE) - wave.log_prob(from_either)
found_share = float(np.mean(1 / (1 + np.exp(-np.float64(odds)))))
print(
    f"share of the ring among draws: {found_share:.4f}, given {SHARE}; log Z on the grid: "
    f"{on_grid(either.log_prob(nodes))[1]:.4f}"
)

# %% [markdown]
# ## Not, with a guard
#
# Negation is more delicate. The negative energy $-E(x)$ is lowest where the density is smallest, which is far outside,
# without end: $1/p(x)$ has no normaliser. The package refuses such products.

# %%
try:
    ebm.composition.product([ring_model], [-1.0])
except ValueError as error:
    print(f"ValueError: {error}")

# %% [markdown]
# A negation makes sense only beside something that holds the density together, and it must be bounded. Take a wide
# Gaussian $g$, and cover the ring by it: $c(x) = .95\,p_{ring}(x) + .05\,g(x)$. The factor $g(x)/c(x)$ is small on the
# ring, and never above 20. So
#
# $$\text{wave and not ring:}\qquad p(x) \propto p_{wave}(x)\,g(x)\,c(x)^{-1}$$
#
# always has a normaliser. It is a `product` with exponents.

# %%
wide = tfd.MultivariateNormalDiag([0.0, 0.0], [3.0, 3.0])
cover = ebm.composition.mixture([ring_model, wide], [0.95, 0.05])
cover = cover.copy(base=wide)  # its base says how far the negation may reach
without = ebm.composition.product([wave_model, wide, cover], [1.0, 1.0, -1.0])
log_without, _ = on_grid(without.unnormalized_log_prob(nodes))
true_cover = np.logaddexp(np.log(0.95) + true_ring, np.log(0.05) + wide.log_prob(nodes).numpy())
kl["not"] = divergence(on_grid(true_wave + wide.log_prob(nodes).numpy() - true_cover)[0], log_without)
on_ring = np.abs(np.linalg.norm(nodes, axis=-1) - 2) < 0.5
mass_on_ring = {
    name: float(np.sum(np.exp(values)[on_ring]) * AREA)
    for name, values in (("wave", log_learned["wave"][0]), ("wave and not ring", log_without))
}
print("mass within .5 of the ring:", {name: round(mass, 3) for name, mass in mass_on_ring.items()})
print(f"KL(truth‖learned) of the negation: {kl['not']:.4f}")

# %% [markdown]
# ## Tempering
#
# A power $p(x)^a$ is the density at temperature $T = 1/a$ (eq. 4). For $a < 1$ it is broader, which helps chains; for
# $a > 1$ only the most probable points remain. For a Gaussian the variance is divided by $a$, exactly.

# %%
hot = wave**0.25
gaussian = tfd.MultivariateNormalTriL([1.0, 0.0], [[1.0, 0.0], [0.6, 0.8]])
tempered = ebm.composition.product([gaussian], [0.25])
far, near = np.array([[3.0, 1.0]], "float32"), np.array([[1.0, 0.0]], "float32")
ratio = (tempered.unnormalized_log_prob(far) - tempered.unnormalized_log_prob(near)) / (
    gaussian.log_prob(far) - gaussian.log_prob(near)
)
print(f"a Gaussian to the power .25 falls {float(ratio[0]):.6f} times as fast")

# %% figure="composition"
panels = {
    "ring": (log_learned["ring"][0], ring.sample(400, seed=2)),
    "wave": (log_learned["wave"][0], wave.sample(400, seed=3)),
    "ring and wave": (log_both, drawn.states[:400]),
    "ring or wave, 3 : 7": (on_grid(either.log_prob(nodes))[0], from_either[:400]),
    "wave and not ring": (log_without, without.sample(size(400, 100), seed=4)),
    "wave, T = 4": (on_grid(hot.unnormalized_log_prob(nodes))[0], size(hot, wave).sample(400, seed=5)),
}
figure, axes = plt.subplots(2, 3, figsize=(10.6, 7.2), sharex=True, sharey=True)
for ax, (name, (log_density, points)) in zip(axes.flat, panels.items(), strict=True):
    ax.pcolormesh(axis, axis, np.exp(0.5 * log_density).reshape(CELLS, CELLS), rasterized=True)
    ax.plot(*np.asarray(points).T, ".", color="white", ms=2.2, alpha=0.8)
    ax.set(title=name, aspect="equal", xlim=(-HALF, HALF), ylim=(-HALF, HALF))
    ax.set(xticks=[-3, 0, 3], yticks=[-3, 0, 3])
figure.suptitle("Square roots of the densities, and draws")
plt.show()

# %% [markdown]
# ## Saved like any other
#
# A composition is a model. Its file contains its parts, and the exported program needs TensorFlow alone.

# %%
differences = {}
for name, p in size({"product": both, "mixture": either}, {"mixture": either}).items():
    before = p.energy_model.energy(nodes[:500]).numpy()
    p.energy_model.save(workspace / f"{name}.keras")
    loaded = keras.models.load_model(workspace / f"{name}.keras")
    differences[name, "keras"] = float(np.max(np.abs(loaded.energy(nodes[:500]).numpy() - before)))
    p.energy_model.export(workspace / name, kernel=ebm.mcmc.MALA(0.3), verbose=False)
    served = tf.saved_model.load(workspace / name)
    differences[name, "SavedModel"] = float(np.max(np.abs(served.energy(tf.constant(nodes[:500])).numpy() - before)))
print(differences)

# %% [markdown]
# ## Completion
#
# Some coordinates are known, and the others are not. As a function of the unknown ones the joint density *is* the
# conditional density, up to a factor: $p(x_B \mid x_A) \propto p(x_A, x_B)$. So the energy stays the same, and only the
# known coordinates are held fixed. `given_coordinates` does this for any distribution of this package. Its $\log Z$,
# estimated by `draw`, is the log density of what is known, $\log p(x_A)$.
#
# On the ring, the first coordinate is 1. Where is the second one?

# %%
KNOWN = 1.0
part = ring.given_coordinates([KNOWN, np.nan], [True, False])
completed = part.draw(size(2_000, 200), seed=0)
line = np.linspace(-3.5, 3.5, 1401)
along = np.stack([np.full_like(line, KNOWN), line], -1)
marginal = np.trapezoid(np.exp(log_ring(along)), line)
upper_share = float(np.mean(completed.states.numpy() > 0))
print(
    f"log p(x₁ = 1): draws {completed.log_normalizer.value:.3f} ± {completed.log_normalizer.standard_error:.3f}, "
    f"truth {np.log(marginal):.3f}; share of the upper half {upper_share:.3f}"
)

# %% [markdown]
# The same for images. The upper half of a digit is known; what is the lower half? The density of the digits is here a
# mixture of Gaussians in 64 dimensions, an energy too, of which `given_coordinates` returns the conditional *exactly*:
# a mixture again, with other weights, since the upper half also says which components are plausible. (Tutorial 10 fills
# in digits by chains on a network's energy.) For comparison a single Gaussian, which is linear regression.

# %%
pixels = ebm.datasets.digits(seed=0)
pixels = pixels[np.random.default_rng(0).permutation(len(pixels))]
train_pixels, test_pixels = pixels[:1400], pixels[1400:]
known = np.arange(64) < 32
densities = {
    "one Gaussian": ebm.fit_base(train_pixels),
    "mixture": ebm.fit_base(train_pixels, kind="gaussian_mixture", num_components=size(20, 2), seed=0),
}
NUM_SHOWN, num_judged = 10, size(60, 10)
lower, lower_draws = {}, {}
for name, density in densities.items():
    p = ebm.composition.mixture([density], [1.0])
    drawn_halves = [p.given_coordinates(image, known).sample(50, seed=1).numpy() for image in test_pixels[:num_judged]]
    lower[name] = np.stack([half.mean(0) for half in drawn_halves])
    lower_draws[name] = np.stack([half[:2] for half in drawn_halves])
lower["mean image"] = np.broadcast_to(train_pixels.mean(0)[32:], (num_judged, 32))
completion_errors = {
    name: float(np.sqrt(np.mean((halves - test_pixels[:num_judged, 32:]) ** 2))) for name, halves in lower.items()
}
print("root mean square error of the lower half:", {k: round(v, 3) for k, v in completion_errors.items()})

# %% figure="completion"
figure = plt.figure(figsize=(11, 3.7))
left, right = figure.subplots(1, 2, width_ratios=[1, 2])
left.plot(line, np.exp(log_ring(along)) / marginal, color=BLACK, ls=":", label="truth")
left.hist(completed.states.numpy()[:, 0], np.linspace(-3, 3, 61), density=True, color=BLUE, alpha=0.6, label="draws")
left.set(title="On the ring, $x_1$ = 1", xlabel="$x_2$", ylabel="density", xlim=(-3, 3))
left.legend(loc="upper center", fontsize=10)
shown = test_pixels[:NUM_SHOWN]
seen = np.where(known, shown, np.nan)
lines = [
    shown,
    seen,
    *(np.concatenate([shown[:, :32], lower_draws["mixture"][:NUM_SHOWN, i]], 1) for i in range(2)),
    np.concatenate([shown[:, :32], lower["mixture"][:NUM_SHOWN]], 1),
]
canvas = np.full((len(lines) * 9 - 1, NUM_SHOWN * 9 - 1), np.nan)
for i, row in enumerate(lines):
    for j, image in enumerate(row.reshape(-1, 8, 8)):
        canvas[9 * i : 9 * i + 8, 9 * j : 9 * j + 8] = image
right.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
right.set_yticks(9 * np.arange(len(lines)) + 3.5, ["truth", "known", "a draw", "another draw", "mean of draws"])
right.set(title="The lower half of a digit, given the upper one", xticks=[])
right.tick_params(length=0)
right.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# ## Memory: one task after the other
#
# A network that learns new classes forgets the old ones, because nothing in the new data speaks for them. An energy has
# a remedy of its own. It can *draw* what it has learned, so the old data need not be kept. And persistent chains, which
# maximum likelihood leaves in its replay buffer (tutorial 6), are such draws already.
#
# Eight classes lie on a circle. The model is a joint energy: a classifier that is also a density (tutorial 14). It
# sees four tasks of two classes each. Once it trains on the rows of the present task alone; once the chains of the
# buffer, with the labels that the model itself gives to them, are added as rows of the past.

# %%
CLASSES, PER_CLASS = 8, size(1000, 200)
angles = 2 * np.pi * np.arange(CLASSES) / CLASSES
centres = 2 * np.stack([np.cos(angles), np.sin(angles)], -1)


def class_rows(labels, seed):
    """A point near the centre of each label."""
    noise = np.random.default_rng(seed).normal(size=(len(labels), 2))
    return (centres[labels] + 0.2 * noise).astype("float32")


def new_model():
    """A joint energy of eight classes, trained by persistent chains."""
    start = [keras.initializers.GlorotUniform(seed=i) for i in range(3)]
    layers = [keras.layers.Dense(64, "silu", kernel_initializer=start[i]) for i in range(2)]
    logits = keras.layers.Dense(CLASSES, kernel_initializer=start[2])
    classifier = keras.Sequential([keras.Input([2]), *layers, logits])
    base = tfd.MultivariateNormalDiag([0.0, 0.0], [2.0, 2.0])
    model = ebm.EnergyModel(ebm.networks.JointEnergy(classifier), base_measure=base)
    chains = ebm.losses.PersistentContrastiveDivergence(num_steps=10, capacity=size(1000, 200))
    loss = ebm.losses.JointEnergyLoss(chains)
    model.compile(keras.optimizers.Adam(2e-3), loss, jit_compile=size(True, False), steps_per_execution=25)
    return model


judged_labels = np.repeat(np.arange(CLASSES), 200)
judged_rows = class_rows(judged_labels, seed=99)
accuracies, densities_after = {}, {}
for has_memory in (False, True):
    model = new_model()
    for task in range(4):
        rng = np.random.default_rng(task)
        y = np.repeat([2 * task, 2 * task + 1], PER_CLASS)
        x = class_rows(y, seed=task)
        if has_memory and task > 0:  # as many rows of each class of the past, from the chains
            chains = model.loss.density_loss.chains.states.numpy()
            remembered = model.class_probabilities(chains).numpy().argmax(1)
            chosen = rng.choice(len(chains), 2 * task * PER_CLASS)
            x, y = np.concatenate([x, chains[chosen]]), np.concatenate([y, remembered[chosen]])
        batches = rng.choice(len(x), size(250, 25) * 200)
        model.fit(x[batches], y[batches], batch_size=200, shuffle=False, verbose=0)
        predicted = model.class_probabilities(judged_rows).numpy().argmax(1)
        learned_so_far = judged_labels < 2 * task + 2
        accuracies[has_memory, task] = float(np.mean((predicted == judged_labels)[learned_so_far]))
        densities_after[has_memory, task] = on_grid(-model.energy(nodes))[0]
for has_memory, name in ((False, "without memory"), (True, "with the chains")):
    print(f"{name:16s} accuracy on all classes so far:", [round(accuracies[has_memory, t], 3) for t in range(4)])

# %% figure="memory"
figure, axes = plt.subplots(2, 4, figsize=(11, 5.6), sharex=True, sharey=True)
for row, has_memory, name in zip(axes, (False, True), ("new rows alone", "with the chains"), strict=True):
    for task, ax in enumerate(row):
        density = np.exp(0.5 * densities_after[has_memory, task]).reshape(CELLS, CELLS)
        ax.pcolormesh(axis, axis, density, rasterized=True)
        ax.plot(*centres[: 2 * task + 2].T, "o", mfc="none", mec="white", ms=15, mew=1.2)
        ax.set(title=f"task {task + 1}: accuracy {accuracies[has_memory, task]:.2f}", aspect="equal")
        ax.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), xticks=[], yticks=[])
    row[0].set_ylabel(name)
figure.suptitle("Densities after each task; circles: all classes so far")
plt.show()

# %% [markdown]
# The first model moves its density, and its labels, to each new task. The second one keeps all eight classes, although
# no row of the past was stored. The price: what the chains get wrong is learned as if it were data, so that small
# errors add up over many tasks.
#
# ## Which one when
#
# | you want | use | $\log Z$ |
# |---|---|---|
# | both | `p * q`, or `composition.product` | unknown; `draw` estimates it |
# | either | `composition.mixture` | known, if it is for the parts |
# | not | a factor $g/c$ that is bounded, by `product` with an exponent of $-1$ | unknown |
# | broader or sharper | `p ** a` | unknown |
# | the rest of a point | `p.given_coordinates` | that of the known part |
# | old classes kept | chains of the buffer as rows | |
#
# ## The numbers beside the truth

# %%
for name, bound in {"ring": 0.02, "wave": 0.02, "product": 0.02, "not": 0.03}.items():
    ledger.at_most(f"{name}: KL(truth‖learned) on the grid", kl[name], size(bound, 5.0))
tolerance = 4 * drawn.log_normalizer.standard_error + 0.01
ledger.equal("product: log Z by draws", drawn.log_normalizer.value, log_z_both, size(tolerance, 1.0))
ledger.equal("mixture: share of the ring", found_share, SHARE, size(0.02, 0.1))
ledger.at_most("negation: mass near the ring / before", mass_on_ring["wave and not ring"] / mass_on_ring["wave"], 0.9)
ledger.equal("tempering: slope of a Gaussian to the power .25", float(ratio[0]), 0.25, 1e-5)
ledger.at_most("saved and loaded: largest difference", max(differences.values()), 0)
ledger.equal(
    "completion: log p of the known coordinate", completed.log_normalizer.value, np.log(marginal), size(0.1, 2.0)
)
ledger.equal("completion: share of the upper half", upper_share, 0.5, size(0.06, 0.5))
quotient = completion_errors["mixture"] / completion_errors["mean image"]
ledger.at_most("digits: error of the lower half / of the mean image", quotient, size(0.9, 1.5))
ledger.at_most("memory: accuracy without it", accuracies[False, 3], size(0.5, 0.9))
ledger.at_least("memory: accuracy with the chains", accuracies[True, 3], size(0.9, 0.1))
ledger.close()
