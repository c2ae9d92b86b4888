# %% [markdown]
# # 9. Side by side
#
# Five ways to train the same network on the same data: what each costs, what each gets right, and when to use which.
#
# **After this you can**
#
# - read every line of the note's Table 1 as a loss of this package;
# - judge a density by its picture, its samples (eq. 65), its Kullback-Leibler divergence and its Fisher divergence, and
#   explain why these may disagree;
# - choose a loss for your own data.
#
# It covers section 3.4 of the note *Basics of Energy Based Models*: Table 1 and eq. 65.
#
# Prerequisites: tutorials [6](06_maximum_likelihood.ipynb), [7](07_score_matching.ipynb) and
# [8](08_noise_contrastive_estimation.ipynb). Reading time about 20 minutes; "Which one when" near the end can be read
# alone. Next: [tutorial 10](10_in_practice.ipynb).

# %%
import time

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from scipy.ndimage import gaussian_filter

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, Ledger, size, style

tfd = tfp.distributions
style()
tf.get_logger().setLevel("ERROR")  # its advice on retracing is for programs of one model, not of ten
ledger = Ledger()

# %% [markdown]
# ## Table 1, line by line
#
# Each line of Table 1 is a gradient step $\theta^{k+1} = \theta^k - \nabla_\theta(\ldots)$ on an average over a batch.
# (The table leaves out the learning rate, and does not state that the samples $\hat x$ are held fixed when the gradient
# is taken.) This is what is averaged, and the class that computes it here:
#
# - maximum likelihood by chains: $E(x) - E(\hat x)$ with $\hat x \sim P_\theta$;
#   `PersistentContrastiveDivergence`, `ContrastiveDivergence`, `MaximumLikelihood`
# - score matching: $\frac12\lVert\nabla E(x)\rVert^2 - \operatorname{tr} H_E(x)$; `ScoreMatching`
# - denoising: $\frac12\lVert z/\sigma - \nabla E(x + \sigma z)\rVert^2$ with $z \sim N(0, I)$; `DenoisingScoreMatching`
# - sliced: $\frac12\lVert\nabla E(x)\rVert^2 - \nabla(\nabla E(x)\cdot v)\cdot v$ with random $v$;
#   `SlicedScoreMatching`
# - noise contrastive: $-\log\frac{P_n(\hat x)}{P_n(\hat x)+P_\theta(\hat x)} -
#   \log\frac{P_\theta(x)}{P_n(x)+P_\theta(x)}$ with $\hat x \sim P_n$; `NoiseContrastiveEstimation`
#
# (The last line of Table 1 is right for as much noise as data only; tutorial 8 shows what changes otherwise.)
#
# A loss can be called on any energy. For $E(x) = \frac12 x^T P x$ the gradient is $Px$ and the Hessian $P$, so that
# Table 1 can be written out in NumPy. Score matching must agree to rounding. The others sample $z$, $v$ or $\hat x$,
# and must agree within their standard error with the mean over these samples.

# %%
precision = np.array([[1.5, -0.4], [-0.4, 0.8]])
covariance = np.linalg.inv(precision)
n, sigma = size(100_000, 20_000), 0.5
rng = np.random.default_rng(0)
rows = rng.normal(size=(n, 2))  # data of another law than the model, so that nothing vanishes
matrix = tf.Variable(precision)


def quadratic(x):
    """E(x) = ½ xᵀPx."""
    return 0.5 * tf.reduce_sum(x * tf.linalg.matvec(matrix, x), -1)


def log_normal(x, p):
    """log N(x; 0, P⁻¹)."""
    return 0.5 * np.linalg.slogdet(p)[1] - 0.5 * np.sum(x * (x @ p), -1) - np.log(2 * np.pi)


def softplus(u):
    """−log σ(−u)."""
    return np.logaddexp(0, u)


gradients, second_moment = rows @ precision, rows.T @ rows / n
noise_draws = rng.normal(size=(n, 2))
u_data, u_noise = (log_normal(r, precision) - log_normal(r, np.eye(2)) for r in (rows, noise_draws))
table = {
    "score matching": np.mean(0.5 * np.sum(gradients**2, -1) - np.trace(precision)),
    "denoising": 0.5 * (2 / sigma**2 - 2 * np.trace(precision))
    + 0.5 * np.trace(precision @ precision @ (second_moment + sigma**2 * np.eye(2))),
    "sliced": np.mean(0.5 * np.sum(gradients**2, -1)) - np.trace(precision),
    "noise contrastive": np.mean(softplus(-u_data) + softplus(u_noise)),
}

losses = {
    "score matching": ebm.losses.ScoreMatching(),
    "denoising": ebm.losses.DenoisingScoreMatching(sigma),
    "sliced": ebm.losses.SlicedScoreMatching(projection="gaussian"),
    "noise contrastive": ebm.losses.NoiseContrastiveEstimation(
        tfd.MultivariateNormalDiag(tf.zeros(2, tf.float64), tf.ones(2, tf.float64))
    ),
}
losses["noise contrastive"].build((2,), "float64")
losses["noise contrastive"].log_normalizer.assign(-log_normal(np.zeros(2), precision))
values, errors = {}, {}
for name, loss in losses.items():
    per_row = loss(quadratic, rows, seed=1).per_example.numpy()
    values[name] = per_row.mean()
    errors[name] = per_row.std() / np.sqrt(n)
errors["score matching"] = 1e-9
errors["noise contrastive"] = np.std(softplus(u_noise)) * np.sqrt(2 / n)  # two independent sets of noise

# %% [markdown]
# For maximum likelihood only the gradient has a meaning. Its negatives come from chains, here 60 steps of HMC from the
# data. For $\partial/\partial P_{11}$ Table 1 gives $\frac12\overline{x_1^2} - \frac12\overline{\hat x_1^2}$, whose
# mean over exact samples of the model is $\frac12(\overline{x_1^2} - (P^{-1})_{11})$.

# %%
likelihood = ebm.losses.MaximumLikelihood(ebm.mcmc.HMC(0.5, 3), num_steps=60, chains=ebm.mcmc.FromData())
with tf.GradientTape() as tape:
    value = tf.reduce_mean(likelihood(quadratic, rows, seed=2).per_example)
name = "maximum likelihood, ∂/∂P₁₁"
values[name] = tape.gradient(value, matrix).numpy()[0, 0]
table[name] = 0.5 * (second_moment[0, 0] - covariance[0, 0])
errors[name] = 0.5 * covariance[0, 0] * np.sqrt(2 / n)  # of the mean of n squares
for name, value in values.items():
    print(f"{name:28s} package {value:9.5f}   Table 1 {table[name]:9.5f} ± {errors[name]:.5f}")

# %% [markdown]
# ## One network, five losses
#
# Now a network of two hidden layers of 128, with the same initial weights, the same batches, number of steps and
# learning rate for all, and a Gaussian fitted to the data as base measure. (By default `ebm.recipes.low_dimensional`
# chooses what suits the loss: the learning rate, and Fourier features for maximum likelihood and noise contrastive
# estimation, which makes these two better still.)
#
# We use two data sets: the moons, two curved shapes close to each other, and two Gaussians of weights .3 and .7 that
# are twelve standard deviations apart.

# %%
far_apart = tfd.MixtureSameFamily(
    tfd.Categorical(probs=[0.3, 0.7]), tfd.MultivariateNormalDiag([[-3.0, 0.0], [3.0, 0.0]], [[0.5, 0.5], [0.5, 0.5]])
)
targets = {"Two moons": ebm.targets.two_moons(), "Two Gaussians": far_apart}
num_rows, steps, batch = size(50_000, 6000), size(2000, 144), 250
box = {"low": [-8, -8], "high": [8, 8], "num": size(256, 128)}
METHODS = {
    "Maximum likelihood": (
        BLUE,
        lambda: ebm.losses.PersistentContrastiveDivergence(num_steps=10, capacity=size(2000, 500)),
    ),
    "Score matching": (VERMILION, ebm.losses.ScoreMatching),
    "Denoising": (ORANGE, lambda: ebm.losses.DenoisingScoreMatching(sigma=0.1)),
    "Sliced": (PURPLE, ebm.losses.SlicedScoreMatching),
    "Noise contrastive": (GREEN, lambda: ebm.losses.NoiseContrastiveEstimation(noise_ratio=4.0)),
}
runs, gaussian_kl = {}, {}
for data_name, target in targets.items():
    x = target.sample(num_rows, seed=(0, 0)).numpy()
    gaussian_kl[data_name] = ebm.evaluation.grid_kl_divergence(ebm.fit_base(x), target, **box).value
    print(f"{data_name}: KL to the fitted Gaussian {gaussian_kl[data_name]:.3f}")
    for method, (_, make_loss) in METHODS.items():
        model = ebm.recipes.low_dimensional(
            x, make_loss(), steps, fourier_features=0, learning_rate=3e-3, steps_per_execution=size(40, 24)
        )
        start = time.perf_counter()
        model.fit(x, batch_size=batch, epochs=steps * batch // num_rows, verbose=0)
        seconds = time.perf_counter() - start
        log_z = ebm.evaluation.grid_log_normalizer(model, **box).value
        kl = ebm.evaluation.grid_kl_divergence(model, target, log_normalizer=log_z, **box).value
        fisher = ebm.evaluation.fisher_divergence(model, target, num_samples=size(5000, 1000)).value
        p = ebm.EnergyDistribution(model, log_normalizer=log_z)
        runs[data_name, method] = {"p": p, "model": model, "kl": kl, "fisher": fisher, "seconds": seconds}
        print(f"  {method:20s} KL {kl:8.4f}   Fisher divergence {fisher:8.4f}   {seconds:5.1f} s")

# %% [markdown]
# ## The densities
#
# Each panel shows $e^{-E(x)}/Z$ with $Z$ by the grid, on one scale of colours.


# %% figure="side_by_side"
def panels(data_name, half_width, half_height):
    """The truth and five densities."""
    axis_1 = np.linspace(-half_width, half_width, 201, dtype="float32")
    axis_2 = np.linspace(-half_height, half_height, 201, dtype="float32")
    plane = np.stack(np.meshgrid(axis_1, axis_2), -1)
    truth = targets[data_name].prob(plane).numpy()
    _, axes = plt.subplots(2, 3, figsize=(10.4, 0.6 + 7.4 * half_height / half_width), sharex=True, sharey=True)
    shown = {"Truth": truth} | {m: runs[data_name, m]["p"].prob(plane).numpy() for m in METHODS}
    for ax, (name, density) in zip(axes.flat, shown.items(), strict=True):
        ax.pcolormesh(axis_1, axis_2, density, vmin=0, vmax=truth.max(), rasterized=True)
        note = "" if name == "Truth" else f", KL {runs[data_name, name]['kl']:.2g}"
        ax.set(title=name + note, aspect="equal", xlabel="$x_1$", ylabel="$x_2$")
        ax.label_outer()
    plt.show()


panels("Two moons", 3.2, 2.2)

# %%
panels("Two Gaussians", 5.0, 2.4)

# %% [markdown]
# On the moons all five are near the truth in KL. But the three that match scores give the upper moon too much weight
# and the lower one too little, which the colours show (shares of .55 to .57, printed below). On the Gaussians the same
# error is complete: the three have the shape of the right mode, and hardly any mass in the left one. A score is the
# slope of the log-density, and between the modes there is no data from which the slope could be learned. So nothing
# determines how high one mode is above the other.
#
# The Fisher divergence, which they minimise (eq. 40), does not reveal that. On the Gaussians it is smallest for exact
# and sliced score matching, .016 and .015, whose KL of more than 2 nats is larger than that of a single fitted
# Gaussian, 1.1. On the moons it is three times as large for maximum likelihood and noise contrastive estimation, 1.5,
# as for score matching, .5, although their KL is about the same. The two divergences measure different errors. The
# Fisher divergence compares slopes where the data are: small ripples of the density have steep slopes and count much, a
# wrong weight of a mode has none and counts nothing. KL compares heights: the ripples hardly change it, and the weights
# do.
#
# The two losses that compare the density with samples, of chains or of noise, learn the weights too. The share of the
# mass in the upper moon, and in the left Gaussian:

# %%
wide = np.linspace(-8, 8, 321, dtype="float32")
wide_plane = np.stack(np.meshgrid(wide, wide), -1)
cell = float(wide[1] - wide[0]) ** 2


def distance_to(centre, angles):
    """Distance of the nodes from an arc of radius 1.5."""
    arc = np.array(centre) + 1.5 * np.stack([np.cos(angles), np.sin(angles)], -1)
    return np.min([np.linalg.norm(wide_plane - point, axis=-1) for point in arc], 0)


upper_arc = distance_to([-0.75, -0.375], np.linspace(0, np.pi, 60))
lower_arc = distance_to([0.75, 0.375], np.linspace(-np.pi, 0, 60))
left = np.where(wide < 0, 1.0, np.where(wide > 0, 0.0, 0.5))
shares, marginals, upper = {}, {}, {}
for method in METHODS:
    density = runs["Two Gaussians", method]["p"].prob(wide_plane).numpy()
    marginals[method] = density.sum(0) * (wide[1] - wide[0])
    shares[method] = float((density * left).sum() * cell)
    upper[method] = float(runs["Two moons", method]["p"].prob(wide_plane).numpy()[upper_arc < lower_arc].sum() * cell)
    print(f"{method:20s} upper moon {upper[method]:.3f} (truth .500), left Gaussian {shares[method]:.3f} (truth .300)")

figure, ax = plt.subplots(figsize=(8, 3.8))
truth = targets["Two Gaussians"].prob(wide_plane).numpy().sum(0) * (wide[1] - wide[0])
ax.plot(wide, truth, color=BLACK, lw=4, alpha=0.3, label="truth")
for (method, (color, _)), dash in zip(METHODS.items(), ("-", "--", "-.", ":", "-"), strict=True):
    ax.plot(wide, marginals[method], color=color, ls=dash, label=f"{method}: {shares[method]:.2f} on the left")
ax.set(title="Two Gaussians, the first coordinate", xlabel="$x_1$", ylabel="density", xlim=(-5.2, 5.2))
ax.legend(fontsize=10, loc="upper center")
plt.show()

# %% [markdown]
# ## What denoising learns
#
# Denoising matches the data *blurred* by noise of $\sigma$ (eqs. 46-52), here a tenth of a standard deviation in each
# coordinate. Blurring the true density on a grid gives the smallest KL that it can reach, and shows that the learned
# density is nearer to the blurred one than to the data's.

# %%
fine = np.linspace(-5, 5, 301, dtype="float32")
fine_plane = np.stack(np.meshgrid(fine, fine), -1)
step = float(fine[1] - fine[0])
moons = targets["Two moons"].prob(fine_plane).numpy().astype("float64")
scale = runs["Two moons", "Denoising"]["model"].standardization.scale.numpy()
blurred = gaussian_filter(moons, 0.1 * scale[::-1] / step)
learned = runs["Two moons", "Denoising"]["p"].log_prob(fine_plane).numpy().astype("float64")


def kl_on_grid(p, log_q):
    """KL of a density on the fine grid."""
    return float(np.sum(np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - log_q), 0)) * step**2)


kl_floor = kl_on_grid(moons, np.log(np.maximum(blurred, 1e-300)))
kl_data, kl_blurred = kl_on_grid(moons, learned), kl_on_grid(blurred, learned)
print(
    f"KL(data‖blurred data) {kl_floor:.4f}, KL(data‖learned) {kl_data:.4f}, KL(blurred data‖learned) {kl_blurred:.4f}"
)

# %% [markdown]
# ## Samples
#
# An energy is sampled in the same way, however it was trained. The note's summary gives the Langevin step, eq. 65,
#
# $$X^{k+1} = X^k - \frac{\epsilon^2}{2}\nabla_X E_\theta(X^k) + \epsilon Z^k .$$
#
# It is `ebm.mcmc.Langevin(step_size=ε)`. With a small $\epsilon$ it is good enough for pictures (tutorial 5 measures
# its bias, and cures it). Chains run in standardised coordinates and start from the fitted Gaussian.

# %%
eps, num_samples = 0.05, size(1000, 300)
figure, axes = plt.subplots(2, 3, figsize=(9.6, 5.6), sharex=True, sharey=True)
moons_x = targets["Two moons"].sample(num_samples, seed=(9, 9)).numpy()
ebm.plotting.scatter(moons_x, axes[0, 0], "Data", BLACK)
langevin_p = {}
for ax, method in zip(axes.flat[1:], METHODS, strict=True):
    p = ebm.EnergyDistribution(
        runs["Two moons", method]["model"], kernel=ebm.mcmc.Langevin(eps), num_burnin_steps=size(1500, 200)
    )
    draws = p.sample_chains(1, num_samples, seed=3).states[0].numpy()
    langevin_p[method] = ebm.evaluation.mmd(moons_x, draws, seed=4)
    ebm.plotting.scatter(draws, ax, method, METHODS[method][0])
for ax in axes.flat:
    ax.set(xlim=(-3.2, 3.2), ylim=(-2.2, 2.2))
    ax.label_outer()
plt.show()
for method, result in langevin_p.items():
    print(f"{method:20s} MMD² {result.value:9.2e} ± {result.standard_error:.1e}, p = {result.p_value:.3f}")

# %% [markdown]
# On the moons the samples of all five pass the test: with 1000 samples it does not detect the differences between the
# densities above.
#
# On the Gaussians samples by eq. 65 cannot be trusted at all. Langevin steps hardly ever take a chain from one Gaussian
# to the other, so the shares of the samples are those of the starts, here about one half, whatever the density is:
# wrong for all five, and too large on the left even where the density has no left mode. A Metropolis kernel with global
# moves is right: it proposes from a fixed distribution and accepts by the density.

# %%
start = tfd.MultivariateNormalDiag(tf.zeros(2), 3.0 * tf.ones(2))
kernel = ebm.mcmc.Sequential([ebm.mcmc.IndependenceMetropolis(start), ebm.mcmc.HMC(0.2, 5)])
length = {"num_results": 1, "num_burnin_steps": size(300, 50)}
print("share on the left of two Gaussians:")
by_global_moves = {}
for method in METHODS:
    p = runs["Two Gaussians", method]["p"]
    initial = start.sample(size(2000, 500), seed=(1, 2))
    seen = {}
    for name, k in (("eq. 65", ebm.mcmc.Langevin(0.1)), ("global", kernel)):
        draws = ebm.mcmc.sample(p.unnormalized_log_prob, initial, k, **length, seed=5)
        seen[name] = float(np.mean(draws.states.numpy()[0, :, 0] < 0))
    by_global_moves[method] = seen["global"]
    print(f"  {method:20s} density {shares[method]:.3f}, eq. 65 {seen['eq. 65']:.3f}, global {seen['global']:.3f}")

# %% [markdown]
# ## Which one when
#
# The divergence from the truth against the time of training, on one machine with two cores. Maximum likelihood needs
# ten steps of a chain for each step of training.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10.5, 4), sharex=True, sharey=True)
for ax, data_name in zip(axes, targets, strict=True):
    for (method, (color, _)), marker in zip(METHODS.items(), "osD^v", strict=True):
        run = runs[data_name, method]
        ax.loglog(run["seconds"], run["kl"], marker, color=color, ms=11, label=method)
    ax.axhline(gaussian_kl[data_name], color=BLACK, ls="--", lw=1.2, label="the fitted Gaussian")
    ax.set(title=data_name, xlabel=f"seconds for {steps} steps")
times = [run["seconds"] for run in runs.values()]
axes[0].set_xlim(0.7 * min(times), 1.4 * max(times))
ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 30, 50, 100, 200) if 0.7 * min(times) < tick < 1.4 * max(times)]
axes[0].set_xticks(ticks, [str(tick) for tick in ticks])
axes[0].set_xticks([], minor=True)
axes[0].set_ylabel("KL(data‖model), nats")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=11)
plt.show()

# %% [markdown]
# - **Few dimensions, and $\log Z$ too:** noise contrastive estimation: the weights of the modes, log-densities at once,
#   and no chains. Watch `overlap`.
# - **The density with its weights, if no good noise distribution is known:** maximum likelihood by persistent chains.
#   It has the most expensive step; with longer chains it also works where noise contrastive estimation fails. Watch
#   `acceptance_rate` and `energy_gap`.
# - **Connected data in moderate dimension:** score matching; no chain, no noise, no $\sigma$. Make sure that there are
#   no separate modes.
# - **High dimension:** sliced score matching, which costs a few gradients in any dimension (tutorial 7).
# - **Images, or data near a surface of lower dimension:** denoising; it has the cheapest step, and works on any data.
#   It learns the blurred density.
# - **Separate modes, with score matching:** multi-scale denoising (tutorial 7); large noise joins the modes.
#
# ## The numbers beside the truth

# %%
for name, value in values.items():
    ledger.equal(f"Table 1, {name}", value, table[name], 4 * errors[name])
for method in METHODS:
    ratio = runs["Two moons", method]["kl"] / gaussian_kl["Two moons"]
    ledger.at_most(f"moons, {method}: KL / KL of the fitted Gaussian", ratio, size(0.2, 0.8))
for method in ("Maximum likelihood", "Noise contrastive"):
    ratio = runs["Two Gaussians", method]["kl"] / gaussian_kl["Two Gaussians"]
    ledger.at_most(f"two Gaussians, {method}: KL / KL of the fitted Gaussian", ratio, size(0.05, 0.5))
ledger.at_most("denoising: KL(blurred‖learned) / KL(data‖learned)", kl_blurred / kl_data, 1)
best_share = max(abs(shares[m] - 0.3) for m in ("Maximum likelihood", "Noise contrastive"))
worst_share = max(abs(shares[m] - 0.3) for m in ("Score matching", "Denoising", "Sliced"))
ledger.at_most("share of the left mode: worst of ML, NCE / worst of scores", best_share / worst_share, 1)
count = size(2000, 500)
for method in ("Maximum likelihood", "Noise contrastive"):
    error = np.sqrt(shares[method] * (1 - shares[method]) / count)
    name = f"global moves, {method}: share left is the density's"
    ledger.equal(name, by_global_moves[method], shares[method], 4 * error)
seconds = {m: sum(runs[d, m]["seconds"] for d in targets) for m in METHODS}
ledger.at_least("seconds, maximum likelihood / denoising", seconds["Maximum likelihood"] / seconds["Denoising"], 1.5)
ledger.close()
