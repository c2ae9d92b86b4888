# %% [markdown]
# # 6. Maximum likelihood with MCMC
#
# How an energy is fitted by maximum likelihood with samples from Markov chains, and why the chains determine what is
# learned.
#
# **After this you can**
#
# - write the likelihood's gradient as a difference of two averages, and check it;
# - distinguish contrastive divergence, short-run chains and persistent chains, and the error that each of them makes;
# - predict which density is learned with unadjusted Langevin chains, and explain why Metropolis' rule matters;
# - judge a training by its density instead of its chains, and get it right with calibrated chains and global moves;
# - protect a run with `callbacks.DivergenceGuard`;
# - run the recipe of Du & Mordatch (2019) on images, knowing what its samples are.
#
# It covers §2 of the note *Basics of Energy Based Models*, eqs. 6-10.
#
# Prerequisites: [tutorials 2](02_monte_carlo_and_markov_chains.ipynb) to [5](05_langevin_and_fokker_planck.ipynb),
# whose chains and kernels it uses, and Keras's `fit`. Reading time about 35 minutes. Next: [tutorial
# 7](07_score_matching.ipynb).

# %%
import warnings

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, GREEN, ORANGE, VERMILION, Ledger, size, style

style()
tfd = tfp.distributions

# %% [markdown]
# ## The likelihood and its gradient
#
# We have data from $P_{data}$ and a model $P_\theta = e^{-E_\theta}/Z_\theta$. Maximum likelihood maximises (eq. 6)
#
# $$\mathbb{L}(\theta) = \mathbb{E}_{P_{data}} \log P_\theta(X) =
# -\mathbb{E}_{P_{data}} E_\theta(X) - \log \int e^{-E_\theta(X)} dX,$$
#
# where the second form is eq. 7. Differentiating under the integral gives $\partial\log Z_\theta/\partial\theta =
# -\mathbb{E}_{P_\theta}[\partial E_\theta/\partial\theta]$ (eq. 8), so that the gradient needs no $Z_\theta$ (eq. 9):
#
# $$\frac{\partial\mathbb{L}}{\partial\theta} = \mathbb{E}_{P_\theta} \frac{\partial E_\theta}{\partial\theta}(X) -
# \mathbb{E}_{P_{data}} \frac{\partial E_\theta}{\partial\theta}(X).$$
#
# In one dimension every term is known by quadrature. Take the double well $E_\theta(x) = \theta_1 x + \theta_2 x^2 +
# \theta_3 x^4$, so that $\partial E/\partial\theta = (x, x^2, x^4)$. The data are samples from one such well, the model
# starts at another.


# %%
class Well(keras.layers.Layer):
    """E(x) = θ₁x + θ₂x² + θ₃x⁴."""

    def __init__(self, theta):
        super().__init__(dtype="float64")
        self.theta = self.add_weight(shape=(3,), dtype="float64", name="theta")
        self.theta.assign(theta)

    def call(self, x):
        return tf.linalg.matvec(tf.concat([x, x**2, x**4], -1), self.theta)


def features(x):
    return np.stack([x, x**2, x**4], -1)


grid = np.linspace(-5.0, 5.0, 2001)


def density_on_grid(theta):
    weights = np.exp(-features(grid) @ theta)
    return weights / np.trapezoid(weights, grid)


truth, start = np.array([-0.3, -1.0, 0.25]), np.array([0.2, 0.1, 0.05])
rng = np.random.default_rng(0)
cumulative = np.cumsum(density_on_grid(truth))
data = np.interp(rng.uniform(size=20_000), cumulative / cumulative[-1], grid)
data_average = features(data).mean(0)  # E_data of ∂E/∂θ, eq. 10

# %% [markdown]
# `grid_log_normalizer` gives $\log Z_\theta$, so $\mathbb{L}$ itself can be computed (eq. 7) and differentiated by
# differences. Eq. 9 must give the same numbers.


# %%
model = ebm.EnergyModel(Well(start), event_shape=[1])


def log_likelihood(theta):
    model.network.theta.assign(theta)
    return -data_average @ theta - ebm.evaluation.grid_log_normalizer(model, -5, 5, num=2000).value


def model_average(theta):
    return np.trapezoid(features(grid) * density_on_grid(theta)[:, None], grid, axis=0)


h = 1e-5
by_differences = np.array(
    [(log_likelihood(start + h * e) - log_likelihood(start - h * e)) / (2 * h) for e in np.eye(3)]
)
by_eq_9 = -data_average + model_average(start)
gradient_error = np.abs(by_differences - by_eq_9).max()
print("eq. 7, differentiated:", by_differences.round(6))
print("eq. 9:                ", by_eq_9.round(6))

# %% [markdown]
# Now maximise. The curvature of $\mathbb{L}$ is minus the covariance of $\partial E/\partial\theta$ under the model, so
# $\mathbb{L}$ is concave here and Newton's method takes a few steps. At the maximum both averages agree: *the model's
# samples have the data's moments*.

# %%
fitted = start.copy()
for _ in range(20):
    deviations = features(grid) - model_average(fitted)
    density = density_on_grid(fitted)[:, None, None]
    covariance = np.trapezoid(density * deviations[:, :, None] * deviations[:, None, :], grid, axis=0)
    fitted += np.linalg.solve(covariance, model_average(fitted) - data_average)
moment_gap = np.abs(model_average(fitted) - data_average).max()
print("truth: ", truth, "\nfitted:", fitted.round(3))

figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
axes[0].hist(data, 60, density=True, color=BLUE, alpha=0.35, label="data")
axes[0].plot(grid, density_on_grid(start), color=VERMILION, label="model at the start")
axes[0].plot(grid, density_on_grid(fitted), color=BLACK, linestyle="--", label="model of the greatest likelihood")
axes[0].set(title="Maximum likelihood", xlabel="$x$", ylabel="density", xlim=(-3.5, 3.5), ylim=(0, 0.72))
axes[0].legend(fontsize=10, loc="upper left")
push = density_on_grid(start) - density_on_grid(truth)
axes[1].plot(grid, push, color=BLACK)
axes[1].fill_between(grid, push, where=push > 0, color=VERMILION, alpha=0.5, label="model > data: energy is raised")
axes[1].fill_between(grid, push, where=push < 0, color=BLUE, alpha=0.5, label="data > model: energy is lowered")
axes[1].set(title="What eq. 9 does to $E(x)$ at the start", xlabel="$x$", ylabel="$P_θ − P_{data}$", xlim=(-3.5, 3.5))
axes[1].set_ylim(-0.42, 0.6)
axes[1].legend(fontsize=10, loc="upper left")
plt.show()

# %% [markdown]
# ## Samples in place of the second average
#
# The data's average in eq. 9 is a mean over examples (eq. 10). The note writes $i \sim \mathbb U(1, \dots, n)$ beside a
# sum over all $i$; both readings are right, the mean over all examples and the mean over a random minibatch, which
# estimates it without bias. The model's average needs samples from the model, from Markov chains.
# `losses.MaximumLikelihood` is $E(x) - E(x^-)$ with negatives $x^-$ from chains, held constant, so its gradient is
# minus eq. 9. Its *value* fluctuates around 0 and does not measure the fit.

# %%
model.network.theta.assign(start)
base = tfd.MultivariateNormalDiag(tf.zeros(1, tf.float64), tf.ones(1, tf.float64))
loss = ebm.losses.MaximumLikelihood(ebm.mcmc.MALA(0.6), num_steps=size(300, 150), chains=ebm.mcmc.FromBase(base))
rows = size(20_000, 5000)
with tf.GradientTape() as tape:
    output = loss(model.energy_function, data[:rows, None], seed=0, training=True)
    value = tf.reduce_mean(output.per_example)
by_chains = -tape.gradient(value, model.network.theta.value).numpy()
exact = -features(data[:rows]).mean(0) + model_average(start)
second_moment = np.trapezoid(features(grid) ** 2 * density_on_grid(start)[:, None], grid, axis=0)
by_chains_error = np.sqrt((second_moment - model_average(start) ** 2) / rows)  # of the mean over independent chains
print("exact:     ", exact.round(3))
print("by chains: ", by_chains.round(3), "±", by_chains_error.round(3))
print(f"value of the loss: {float(value):.2f}, acceptance {float(output.metrics['acceptance_rate']):.2f}")

# %% [markdown]
# ## Where chains start determines what they see
#
# A training step can afford a few steps of a chain, not hundreds. So it matters where chains start:
#
# - at the data: *contrastive divergence*, `ContrastiveDivergence(num_steps=k)`;
# - at noise: *short-run* chains, `MaximumLikelihood(kernel, k, chains=FromBase(base))`;
# - where they were left in the step before: *persistent* chains from a replay buffer,
#   `PersistentContrastiveDivergence()`.
#
# Two narrow modes at ±3 show the difference. The data has a share of .3 on the left, the model one of .2; its only
# parameter is the logit $a$ of that share. By eq. 9, $\partial\mathbb{L}/\partial a = .3 - .2 = .1$: the share must
# grow.


# %%
class TwoModes(keras.layers.Layer):
    """E(x) = −log(w N(x; −3, ½²) + (1 − w) N(x; 3, ½²)), w = 1/(1 + e^−a)."""

    def __init__(self, share):
        super().__init__(dtype="float64")
        self.logit = self.add_weight(shape=(), dtype="float64", name="logit")
        self.logit.assign(np.log(share / (1 - share)))

    def call(self, x):
        left = tf.math.log_sigmoid(self.logit.value) - 2.0 * (x[:, 0] + 3.0) ** 2
        right = tf.math.log_sigmoid(-self.logit.value) - 2.0 * (x[:, 0] - 3.0) ** 2
        return -tf.reduce_logsumexp(tf.stack([left, right]), 0)


num = size(4000, 2000)
x = np.where(np.arange(num)[:, None] < 0.3 * num, -3.0, 3.0) + 0.5 * rng.normal(size=(num, 1))
base = tfd.MultivariateNormalDiag(tf.zeros(1, tf.float64), 3.0 * tf.ones(1, tf.float64))
starts = {
    "CD-1: data, 1 step": (ebm.losses.ContrastiveDivergence(ebm.mcmc.MALA(0.5), 1), 1),
    "CD-50: data, 50 steps": (ebm.losses.ContrastiveDivergence(ebm.mcmc.MALA(0.5), 50), 1),
    "short-run: noise, 50 steps": (
        ebm.losses.MaximumLikelihood(ebm.mcmc.MALA(0.5), 50, ebm.mcmc.FromBase(base)),
        1,
    ),
    "persistent, local moves only": (
        ebm.losses.PersistentContrastiveDivergence(ebm.mcmc.MALA(0.5), 20, num, base=base, global_move=None),
        30,
    ),
    "persistent, global moves (default)": (
        ebm.losses.PersistentContrastiveDivergence(ebm.mcmc.MALA(0.5), 20, num, base=base),
        30,
    ),
}
share_gradients = {}
for name, (loss, num_calls) in starts.items():
    model = ebm.EnergyModel(TwoModes(0.2), event_shape=[1])
    loss.build((1,), "float64")

    @tf.function
    def gradient(seed, loss=loss, model=model):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(loss(model.energy_function, x, seed=seed, training=True).per_example)
        return -tape.gradient(value, model.network.logit.value)

    for i in range(num_calls):  # persistent chains go on from call to call
        share_gradients[name] = float(gradient(tf.constant([0, i])))
share_error = np.sqrt(0.2 * 0.8 / num)  # of the model's share among as many independent chains as rows
noise_error = np.sqrt(0.5 * 0.5 / num)  # of a share of one half

figure, axis = plt.subplots(figsize=(9, 3.2))
rows_of_plot = np.arange(len(share_gradients))[::-1]
axis.axvline(0.1, color=BLACK, linestyle="--", label="exact, eq. 9")
axis.axvline(0.0, color="#999999", linewidth=1)
axis.errorbar(list(share_gradients.values()), rows_of_plot, xerr=2 * noise_error, fmt="o", color=VERMILION, capsize=4)
axis.set(yticks=rows_of_plot, yticklabels=list(share_gradients), xlabel="$∂L/∂a$ by chains, ± 2 standard errors")
axis.set(title="Should the left mode's share grow?", xlim=(-0.3, 0.2), ylim=(-0.6, 4.6))
axis.legend(loc="lower left")
plt.show()

# %% [markdown]
# Contrastive divergence gives 0: its chains stay in the mode of the example that they came from, so they have the
# data's shares whatever the model's are. Chains from noise have the shares of the *basins* of attraction, and the sign
# is wrong. Persistent chains with local moves inherit the same shares. Only chains that can cross between the modes
# represent the density: the default of `PersistentContrastiveDivergence` begins each training step with a Metropolis
# move that proposes a fresh sample of the base distribution.

# %% [markdown]
# ## The chain's distribution is what is learned
#
# Even within one mode the chains must have the right distribution. Training stops where the *negatives'* average equals
# the data's (eq. 9 with negatives in place of samples from $P_\theta$). Let the data be $N(0, s^2)$, the model $E =
# \tfrac12\lambda x^2$, and the chain unadjusted Langevin (eq. 65) of step $\varepsilon$. That chain's stationary
# variance is not $1/\lambda$ but $1/(\lambda(1 - \lambda\varepsilon^2/4))$; set it equal to $s^2$ and solve:
#
# $$\lambda = \frac{2}{\varepsilon^2}\left(1 - \sqrt{1 - \varepsilon^2/s^2}\right) > \frac{1}{s^2}.$$
#
# The model becomes too narrow by as much as the chain is too wide. For $\varepsilon > s$ there is no solution: the
# chain's variance is never below $\varepsilon^2$, so it can never match the data, and $\lambda$ grows until the chain
# diverges.
#
# We train five models at once, one in each coordinate, by giving the kernel one step size per coordinate: with
# `Langevin` and with `MALA`, which is the same step, accepted by Metropolis' rule.


# %%
class Precisions(keras.layers.Layer):
    """E(x) = ½ Σ λₖxₖ²."""

    def __init__(self, d):
        super().__init__(dtype="float64")
        self.precisions = self.add_weight(shape=(d,), initializer="ones", dtype="float64", name="precisions")

    def call(self, x):
        return 0.5 * tf.linalg.matvec(x**2, self.precisions)


step_sizes = np.array([0.3, 0.5, 0.7, 0.85, 0.95])
rows = size(4000, 1000)
x = rng.normal(size=(rows, 5))
x /= np.sqrt(np.mean(x**2, 0))  # a sample whose s is exactly 1
unit = tfd.MultivariateNormalDiag(tf.zeros(5, tf.float64), tf.ones(5, tf.float64))
learned, learned_error = {}, {}
for kernel in (ebm.mcmc.Langevin(step_sizes), ebm.mcmc.MALA(step_sizes)):
    model = ebm.EnergyModel(Precisions(5), event_shape=[5])
    chains = ebm.mcmc.ReplayBuffer(rows, base=unit)
    loss = ebm.losses.MaximumLikelihood(kernel, num_steps=10, chains=chains, global_move=None)
    model.compile(keras.optimizers.SGD(0.4), loss)
    path = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs, path=path, net=model.network: path.append(net.precisions.numpy())
    )
    batches = tf.data.Dataset.from_tensors(x).repeat(size(700, 200))
    spread = model.fit(batches, verbose=0, shuffle=False, callbacks=[record]).history["energy_spread"][-1]
    name, path = type(kernel).__name__, np.array(path)[size(200, 50) :]
    blocks = path.reshape(10, -1, 5).mean(1)  # means of ten stretches: their spread tells the error of the mean
    learned[name], learned_error[name] = blocks.mean(0), blocks.std(0, ddof=1) / np.sqrt(10)


def biased_precision(step_size):
    return 2 * (1 - np.sqrt(1 - step_size**2)) / step_size**2


print("step size       ", step_sizes)
print("theory, Langevin", biased_precision(step_sizes).round(4))
for name in learned:
    print(f"learned, {name:8s}", learned[name].round(4), "±", learned_error[name].round(4))

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8))
precision = np.linspace(0.4, 5.0, 600)
for step_size, color in ((0.3, GREEN), (0.7, BLUE), (0.95, ORANGE), (1.1, VERMILION)):
    inside = precision[precision < 3.9 / step_size**2]
    variance = 1 / (inside * (1 - inside * step_size**2 / 4))
    axes[0].plot(inside, variance, color=color, label=f"ε = {step_size:g}")
axes[0].plot(precision, 1 / precision, color=BLACK, linewidth=1, linestyle=":", label="1/λ")
axes[0].axhline(1.0, color=BLACK, linestyle="--", linewidth=1.2)
axes[0].text(5.0, 1.03, "data", fontsize=10, ha="right")
axes[0].set(title="Variance of an unadjusted Langevin chain", xlabel="precision λ of the model", ylabel="variance")
axes[0].set(xlim=(0.3, 5.1), ylim=(0.15, 3.0))
axes[0].legend(fontsize=10, loc="upper right")
fine = np.linspace(0.01, 1, 300)
axes[1].plot(fine, biased_precision(fine), color=VERMILION, label="theory, Langevin")
axes[1].axhline(1.0, color=BLACK, linestyle=":", label="truth, 1/s²")
axes[1].plot(step_sizes, learned["Langevin"], "o", color=VERMILION, label="learned with Langevin")
axes[1].plot(step_sizes, learned["MALA"], "s", color=BLUE, label="learned with MALA")
axes[1].set(title="What is learned", xlabel="step size ε, in units of s", ylabel="precision λ")
axes[1].legend(fontsize=10)
plt.show()

# %% [markdown]
# On the left the learned $\lambda$ is where a curve crosses the dashed line, the variance of the data. The curve of
# $\varepsilon = .95$ crosses it twice, and training finds the smaller root. There the chain's variance falls as
# $\lambda$ grows, so a $\lambda$ that is too large makes the chain too narrow, and the gradient lowers $\lambda$ again.
# At the larger root the variance grows with $\lambda$, and any deviation grows too.
#
# The curve of $\varepsilon = 1.1\,s$ (red) never reaches the line. The expected gradient step $\lambda \leftarrow
# \lambda + \tfrac12\eta(v(\lambda) - s^2)$, with $v$ the chain's variance, always goes up, until
# $\lambda\varepsilon^2/4 = 1$, where the chain's steps overshoot more and more.

# %%
path, step_size, learning_rate = [1.0], 1.1, 0.4
while path[-1] < 4 / step_size**2:
    variance = 1 / (path[-1] * (1 - path[-1] * step_size**2 / 4))
    path.append(path[-1] + 0.5 * learning_rate * (variance - 1.0))
print(f"ε = 1.1: λ passes {4 / step_size**2:.2f} after {len(path) - 1} steps; smallest step {np.diff(path).min():+.3f}")

# %% [markdown]
# ## Chains that look right while the density is wrong
#
# Now a network, and the common recipe for it: unadjusted Langevin of $\varepsilon^2/2 = .01$, 20 steps per training
# step, a replay buffer, 5 % restarts from noise. The data are two Gaussians of weights .3 and .7. In two dimensions the
# density can be computed on a grid, so we need not trust the chains: we compute KL(data‖model) after every epoch, for
# the same network, the same data and the same optimiser, with the recipe's chains and with the package's default.

# %%
target = ebm.targets.two_gaussians()
x = ebm.datasets.two_gaussians(50_000, seed=0)
num_epochs, steps_per_epoch, batch_size = size(8, 4), size(150, 75), 256


def exact_kl(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mass outside the box, of which we make our own picture
        return ebm.evaluation.grid_kl_divergence(model, target, -10, 10, num=256).value


def train(loss):
    network = ebm.networks.mlp([2], units=size([128, 128], [64, 64]), seed=0)
    model = ebm.EnergyModel(network, seed=0)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, num_epochs * steps_per_epoch)
    model.compile(keras.optimizers.Adam(schedule), loss, steps_per_execution=steps_per_epoch)
    kls = [exact_kl(model)]
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kls.append(exact_kl(model)))
    batches = tf.data.Dataset.from_tensor_slices(x).shuffle(len(x), seed=0).repeat().batch(batch_size)
    history = model.fit(
        batches, epochs=num_epochs, steps_per_epoch=steps_per_epoch, verbose=0, callbacks=[watch], shuffle=False
    )
    return model, kls, history.history


noise = tfd.MultivariateNormalDiag([0.0, 0.0], [2.0, 2.0])
short_chains = ebm.mcmc.ReplayBuffer(8192, restart_probability=0.05, base=noise)
short_loss = ebm.losses.MaximumLikelihood(ebm.mcmc.Langevin(np.sqrt(0.02)), num_steps=20, chains=short_chains)
runs = {
    "short uncalibrated chains": train(short_loss),
    "calibrated, global moves": train(ebm.losses.PersistentContrastiveDivergence(capacity=8192, base=noise)),
}
for name, (_, kls, history) in runs.items():
    print(f"{name}: KL {kls[-1]:.4f}, energy gap in the last epoch {history['energy_gap'][-1]:+.3f}")

# %%
nodes = np.linspace(-4.0, 4.0, 161, dtype="float32")
plane = np.stack(np.meshgrid(nodes, nodes), -1)


def density_of(model):
    weights = np.exp(-np.asarray(model.energy(plane), np.float64))
    return weights / (weights.sum() * (nodes[1] - nodes[0]) ** 2)


def left_share(model):
    density = density_of(model)
    return density[:, nodes < 0].sum() / density.sum()


def show_density(axis, density, title):
    axis.pcolormesh(nodes, nodes, density, cmap="viridis", rasterized=True)
    axis.set(title=title, aspect="equal", xlabel="$x_1$")


# %% figure="maximum_likelihood"
chain_share, density_share = {}, {}
figure, axes = plt.subplots(2, 3, figsize=(9.6, 6.6), sharex=True, sharey=True)
ebm.plotting.scatter(x[:1000], axes[0, 0], "data: left .30")
show_density(axes[1, 0], np.exp(target.log_prob(plane)), "true density: left .30")
for column, (name, (model, _, _)) in zip(axes.T[1:], runs.items(), strict=True):
    used = model.loss.chains.ages.numpy() > 0
    chains = model.standardization.to_x(model.loss.chains.states.value).numpy()[used]
    chain_share[name], density_share[name] = np.mean(chains[:, 0] < 0), left_share(model)
    ebm.plotting.scatter(chains[:1000], column[0], f"{name}\nchains: left {chain_share[name]:.2f}", VERMILION)
    show_density(column[1], density_of(model), f"density: left {density_share[name]:.2f}")
for axis in axes.flat:
    axis.set(xlim=(-4, 4), ylim=(-4, 4), ylabel="$x_2$")
    axis.label_outer()
plt.show()

# %% [markdown]
# The recipe's chains show the right proportions, but the learned density does not. The loss compares the data with
# *short chains restarted from noise*, and training changes the energy until the distribution of these chains matches
# the data; the density of the energy need not match. The loss does not reveal it. So judge by the density where you
# can, and use chains that are calibrated.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
steps = steps_per_epoch * np.arange(num_epochs + 1)
for (name, (_, kls, history)), color in zip(runs.items(), (VERMILION, BLUE), strict=True):
    axes[0].semilogy(steps, np.maximum(kls, 1e-4), color=color, label=name)
    axes[1].plot(steps[1:], history["loss"], color=color, label=name)
axes[0].set(title="KL(data ‖ model), exact", xlabel="training steps", ylabel="nats")
axes[1].set(title="Value of the loss, mean of an epoch", xlabel="training steps", ylabel="$E(x) − E(x^-)$")
axes[0].legend(fontsize=10)
plt.show()

# %% [markdown]
# The calibrated run is not monotone: its KL is .017 after the first epoch, .47 after the second, and falls from there.
# The loss gives no sign of that either.
#
# ## What the guard shows
#
# Training an energy against its own chains can diverge. With a learning rate a thousand times too large the energy's
# scale grows without bound; every number stays finite, so a test for NaN detects nothing. `callbacks.DivergenceGuard`
# monitors the standard deviation of the energy over data and negatives, `energy_spread`, which is $\sqrt{d/2}$ for any
# Gaussian. Beyond its limit it returns to the last good state and halves the learning rate. We run the same diverging
# training without and with it.


# %%
def diverging_run(callbacks):
    model = ebm.EnergyModel(ebm.networks.mlp([2], units=[64, 64], seed=0), seed=0)
    chains = ebm.mcmc.ReplayBuffer(8192, restart_probability=0.05, base=noise)
    loss = ebm.losses.MaximumLikelihood(ebm.mcmc.Langevin(np.sqrt(0.02)), num_steps=20, chains=chains)
    model.compile(keras.optimizers.Adam(1.0), loss)
    spreads = []

    def note(batch, logs):
        spreads.append(logs["energy_spread"])
        model.reset_metrics()  # Keras's logs are means since the last reset

    watch = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    num_steps = size(150, 80)
    batches = tf.data.Dataset.from_tensor_slices(x).repeat().batch(batch_size).take(num_steps)
    model.fit(batches, verbose=0, shuffle=False, callbacks=[*callbacks, watch])
    return model, spreads


unguarded, unguarded_spreads = diverging_run([keras.callbacks.TerminateOnNaN()])
guard = ebm.callbacks.DivergenceGuard(max_energy_spread=50.0, max_rollbacks=20, keep_every=10)
with warnings.catch_warnings(record=True) as caught:  # it warns at each event; we print its list instead
    warnings.simplefilter("always")
    guarded, guarded_spreads = diverging_run([guard])
print(f"energy_spread of the five Gaussians that MALA trained above: {spread:.2f}; √(5/2) = {np.sqrt(2.5):.2f}")
for event in guard.events:
    print(event)
print("the first warning:", caught[0].message if caught else "none")

# %%
rates = [1.0, *(event["learning_rate"] for event in guard.events)]
figure, axis = plt.subplots(figsize=(8, 3.8))
axis.semilogy(unguarded_spreads, color=VERMILION, label="without the guard, learning rate 1")
by_guard = f"with the guard: {len(rates) - 1} rollbacks, learning rate {rates[0]:g} → {rates[-1]:g}"
axis.semilogy(guarded_spreads, color=BLUE, label=by_guard)
axis.axhline(50.0, color=BLACK, linestyle="--", linewidth=1.2, label="limit of the guard")
axis.set(title="Standard deviation of the energy", xlabel="training step", ylabel="energy_spread", ylim=(1e-2, 1e20))
axis.legend(fontsize=10, loc="upper left")
plt.show()

# %% [markdown]
# ## Du & Mordatch on digits
#
# `recipes.du_mordatch_2019` has that paper's constants: 60 steps $x' = x - 10\,\mathrm{clip}(\nabla E, \pm.01) + .005
# Z$ from a replay buffer, 5 % restarts from uniform noise, energies held near 0 by a penalty. In the terms of eq. 65
# the step is $\varepsilon = \sqrt{20}$ and the noise $\tau = .005$, so the chain's temperature is $T =
# \tau^2/\varepsilon^2$, practically zero. We train it for a short time on scikit-learn's digits.

# %%
digits = ebm.datasets.digits(images=True)
keras.utils.set_random_seed(0)
network = keras.Sequential(
    [
        keras.Input([8, 8, 1]),
        keras.layers.Conv2D(16, 3, padding="same", activation="silu"),
        keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="silu"),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="silu"),
        keras.layers.Dense(1),
    ]
)
pictures = ebm.recipes.du_mordatch_2019(network, pixels=(0, 1))
kernel = pictures.loss.kernel
temperature = kernel.noise_scale**2 / kernel.step_size**2
batches = tf.data.Dataset.from_tensor_slices(digits).shuffle(len(digits), seed=0).repeat().batch(32)
history = pictures.fit(batches, steps_per_epoch=size(400, 20), verbose=0, shuffle=False).history
print(f"temperature of the chains: {temperature:.3g}")
print({name: round(history[name][-1], 4) for name in ("data_energy", "sample_energy", "energy_spread")})

# %% [markdown]
# The oldest chains of the buffer have made the most steps, and show blobs that resemble parts of digits. Are they
# samples from $e^{-E}/Z$? The energy differs by hundredths between a digit and noise, so at temperature 1 a digit is
# hardly more probable than noise. Calibrated chains (MALA in the box of the pixels, by `mcmc.Transformed`) that *start
# at digits* show it: the digits dissolve. The recipe learns an energy that ranks images correctly, and short
# low-temperature chains on it produce pictures; it does not learn a density. For a density use
# `PersistentContrastiveDivergence`; the digits in [BENCHMARKS.md](../BENCHMARKS.md) are its samples at temperature 1.

# %%
oldest = np.argsort(-pictures.loss.chains.ages.numpy())[:64]
cold = pictures.loss.chains.states.numpy()[oldest]  # this recipe's units are those of the pixels here
in_box = ebm.mcmc.Transformed(ebm.mcmc.MALA(0.7), tfp.bijectors.Sigmoid(0.0, 1.0))
inside = np.clip(digits[:64], 0.01, 0.99)
warm = ebm.mcmc.sample(
    pictures.unnormalized_log_prob, inside, in_box, num_results=1, num_burnin_steps=size(400, 200), seed=0
).states[0]
uniform = np.random.default_rng(0).uniform(size=(2000, 8, 8, 1)).astype("float32")
odds = np.exp(np.mean(pictures.energy(uniform)) - np.mean(pictures.energy(digits)))
auroc = ebm.evaluation.ood_auroc(pictures, digits, uniform).value
print(f"a digit is {odds:.4f} times as probable as noise; AUROC of the energy, digits against noise: {auroc:.3f}")

figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.9))
ebm.plotting.image_grid(digits[:64], axes[0], "digits")
ebm.plotting.image_grid(cold, axes[1], f"chains of the recipe, T = {temperature:.3g}")
ebm.plotting.image_grid(warm, axes[2], "the same energy, T = 1, from digits")
plt.show()

# %% [markdown]
# ## The numbers beside the truth

# %%
ledger = Ledger()
ledger.at_most("eq. 9 against differences of eq. 7, largest gap", gradient_error, 1e-6)
ledger.at_most("model's moments less the data's, at the maximum", moment_gap, 1e-9)
for name, value, exact_value, error in zip(("x", "x²", "x⁴"), by_chains, exact, by_chains_error, strict=True):
    ledger.equal(f"gradient by chains, ∂E/∂θ = {name}", value, exact_value, 4 * error)
ledger.equal("share's gradient, CD-50", share_gradients["CD-50: data, 50 steps"], 0.0, 4 * share_error)
ledger.equal("share's gradient, short-run", share_gradients["short-run: noise, 50 steps"], 0.3 - 0.5, 4 * noise_error)
by_default = share_gradients["persistent, global moves (default)"]
ledger.equal("share's gradient, persistent with global moves", by_default, 0.1, 4 * share_error)
for i, step_size in enumerate(step_sizes):
    for name, truth_of in (("Langevin", biased_precision(step_size)), ("MALA", 1.0)):
        error = 4 * learned_error[name][i]
        ledger.equal(f"precision learned with {name}, ε = {step_size:g}", learned[name][i], truth_of, error)
ledger.at_least("ε = 1.1 s: smallest step of the precision", np.diff(path).min(), 0.0)
short, calibrated = runs
ledger.equal("short chains: left share of the chains", chain_share[short], 0.3, 0.05)
ledger.at_most("short chains: left share of the density", density_share[short], size(0.05, 0.15))
ledger.at_least("short chains: KL", runs[short][1][-1], size(1.0, 0.5))
ledger.at_most("calibrated chains: KL", runs[calibrated][1][-1], size(0.05, 0.3))
ledger.at_least("no guard: largest energy spread, all finite", max(unguarded_spreads), 1e6)
ledger.at_least("guard: rollbacks", len(guard.events), 1)
ledger.at_most("guard: energy spread at the end", guarded_spreads[-1], guard.max_energy_spread)
ledger.equal("Du & Mordatch: temperature", temperature, 0.005**2 / 20, 1e-12)
ledger.equal("Du & Mordatch: odds of a digit against noise at T = 1", odds, 1.0, 0.1)
ledger.at_least("Du & Mordatch: AUROC, digits against noise", auroc, size(0.95, 0.8))
ledger.close()
