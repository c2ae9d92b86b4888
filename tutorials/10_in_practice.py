# %% [markdown]
# # 10. In practice
#
# From a table of your own to an exported model that runs without this package; the detection of rows that do not belong
# to the data; and an energy as the prior of a Bayesian inverse problem.
#
# **After this you can**
#
# - read a CSV, fit it, and know from numbers whether the fit can be trusted;
# - save the model, and load its energy, score and sampler where only TensorFlow is installed;
# - rank rows by how well they fit the data, and measure how good the ranking is;
# - use a learned energy as a prior in a `tfd.JointDistribution`, and sample the posterior.
#
# It applies what tutorials 1 to 9 explain: energies as distributions (eqs. 1-5), noise contrastive estimation (eqs.
# 58-64), denoising score matching (eq. 52) and Hamiltonian Monte Carlo (eqs. 16-20) of the note *Basics of Energy Based
# Models*.
#
# Prerequisites: tutorials [1](01_energies_as_distributions.ipynb), [4](04_hamiltonian_monte_carlo.ipynb) and
# [8](08_noise_contrastive_estimation.ipynb); Bayes' rule. Reading time about 25 minutes. It is the last tutorial; the
# [list](README.md) has all of them.

# %%
import pathlib
import subprocess
import sys
import tempfile

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_ebm as ebm
from tfp_ebm.lesson import BLACK, BLUE, ORANGE, VERMILION, Ledger, size, style

tfd = tfp.distributions
style()
tf.get_logger().setLevel("ERROR")  # no notes on the files of an export
ledger = Ledger()
workspace = pathlib.Path(tempfile.mkdtemp())
keras.utils.set_random_seed(0)  # for the order of batches in `fit`

# %% [markdown]
# ## A table of your own
#
# Your table comes from a file. So that we can compare with the truth, we write such a file: measurements of a lake, in
# their usual units, from a known distribution with correlated quantities in summer and winter. From here on we use only
# the file.

# %%
names = ["temperature_C", "oxygen_mg_per_l", "conductivity_uS_per_cm", "ph"]
centres = np.array([[19.0, 8.5, 310.0, 8.3], [5.0, 12.2, 270.0, 7.6]], "float32")
spreads = np.array([[2.5, 0.7, 18.0, 0.20], [1.2, 0.5, 9.0, 0.12]], "float32")
shape = np.array([[1, 0, 0, 0], [-0.8, 0.6, 0, 0], [0.3, 0, 0.95, 0], [0.5, 0.4, -0.2, 0.7]], "float32")
law = tfd.MixtureSameFamily(
    tfd.Categorical(probs=[0.6, 0.4]),
    tfd.MultivariateNormalTriL(centres, spreads[:, :, None] * shape / np.linalg.norm(shape, axis=1)[:, None]),
)
rows = law.sample(size(24_000, 6000), seed=(0, 1)).numpy()
np.savetxt(workspace / "lake.csv", rows, delimiter=",", fmt="%.4f", header=",".join(names), comments="")
print((workspace / "lake.csv").read_text()[:200])

# %% [markdown]
# `load_table` finds the delimiter and the header, refuses tables with missing cells, and returns a data frame.

# %%
table = ebm.datasets.load_table(workspace / "lake.csv")
values = table.to_numpy("float32")
x, x_test = values[:-4000], values[-4000:]
print(x.shape, table.columns)

# %% [markdown]
# ## Fit
#
# The four columns have very different units: `low_dimensional` standardises them, while all public methods use the
# units of the file. The loss is noise contrastive estimation, which learns $\log Z$ with the energy (tutorial 8). The
# rows are already in random order, as `validation_split` requires.
#
# (The command line trains such a model with `python -m tfp_ebm fit lake.csv --loss noise_contrastive_estimation --out
# runs/lake`. Without `--loss` it would choose denoising score matching, because the table has more than three columns.)

# %%
steps, batch = size(3000, 400), 250
model = ebm.recipes.low_dimensional(
    x, ebm.losses.NoiseContrastiveEstimation(noise_ratio=4.0), num_steps=steps, steps_per_execution=8
)
history = model.fit(
    x, batch_size=batch, epochs=max(1, int(steps * batch / (0.9 * len(x)))), validation_split=0.1, verbose=0
).history
print({name: round(values[-1], 3) for name, values in history.items()})

# %% [markdown]
# ## Diagnose
#
# Can the fit be trusted? Three questions: is $\log Z$ right, are held-out rows as probable under the model as under the
# true distribution, and do chains on the model converge?

# %%
p = ebm.EnergyDistribution(model)
log_z = ebm.evaluation.annealed_importance_sampling(p, num_temperatures=size(300, 40), num_chains=500, seed=1)
held_out = ebm.evaluation.log_likelihood(p, x_test, log_z)
kl = ebm.evaluation.kl_divergence(p, law, log_z, size(50_000, 10_000))
best = float(np.mean(law.log_prob(x_test)))
gaussian_fit = ebm.fit_base(x)
base_likelihood = float(np.mean(gaussian_fit.log_prob(x_test)))
print(f"log Z learned {float(p.log_normalizer):.4f}, by AIS {log_z.value:.4f} ± {log_z.standard_error:.4f}")
print(f"held-out log-likelihood {held_out.value:.3f}, of the truth {best:.3f}, of a Gaussian {base_likelihood:.3f}")
print(f"KL(truth‖model) {kl.value:.4f} ± {kl.standard_error:.4f} nats")

# %% [markdown]
# The held-out log-likelihood of the model is slightly *above* that of the true distribution, and the KL divergence
# slightly negative, which is impossible for exact values. Both contain the estimate of $\log Z$ by annealed importance
# sampling, and its standard error is .033. Within this error the model cannot be distinguished from the truth. With the
# learned $\log Z$ instead, the log-likelihood would be lower by the difference of the two estimates, .040, and so below
# the truth. The fitted Gaussian loses .92 nats.
#
# Now the chains. Summer and winter are separate modes, and local moves seldom cross between them. R-hat shows it: it
# should be below 1.05. A kernel that begins each step with a proposal from the fitted Gaussian, accepted by Metropolis'
# rule, crosses. (The Gaussian is over x, although chains of a model run in standardised units.)

# %%
wide = tfd.MultivariateNormalTriL(
    x.mean(0), tf.linalg.cholesky(tf.constant(1.2 * np.cov(x.T) + 0.05 * np.diag(x.var(0)), tf.float32))
)
local = ebm.mcmc.HMC(0.06, 10)
found = {}
for name, kernel in {
    "local": local,
    "with global moves": ebm.mcmc.Sequential([ebm.mcmc.IndependenceMetropolis(wide), local]),
}.items():
    p = ebm.EnergyDistribution(model, kernel=kernel)
    chains = p.sample_chains(num_results=size(800, 300), num_chains=64, seed=2, num_burnin_steps=100)
    found[name] = ebm.mcmc.diagnose(chains)
    summer = float(np.mean(chains.states.numpy()[..., 0] > 12))
    print(
        f"{name:18s} acceptance {found[name].acceptance_rate:.2f}, largest R-hat {found[name].rhat.max():.3f}, "
        f"effective sample size {found[name].ess.min():.0f}, summer {summer:.3f}"
    )
draws = chains.states[::50].numpy().reshape(-1, 4)

# %%
axes = ebm.plotting.histograms(x_test, draws, ["temperature, °C", "oxygen, mg/l", "conductivity, µS/cm", "pH"])
plt.show()

# %% [markdown]
# An acceptance rate of .98 is far above the optimum for HMC, about .75: the step of .06 is smaller than it need be, and
# larger steps would give more independent samples per gradient. `ebm.mcmc.Adaptive` finds a good step by itself
# (tutorial 4). The histograms compare samples of the chains with held-out rows.
#
# ## Save, and serve without this package
#
# `save` keeps everything that training needs: weights, standardisation, the loss with its $\log Z$, the step counter.
# `export` writes a SavedModel with the endpoints `energy`, `score`, `unnormalized_log_prob` and `sample`. We load the
# latter in a new Python process that has TensorFlow and never imports `tfp_ebm`, and compare bit by bit.

# %%
model.save(workspace / "lake.keras")
again = keras.models.load_model(workspace / "lake.keras")
same_after_save = bool(np.all(again.energy(x_test).numpy() == model.energy(x_test).numpy()))

model.export(workspace / "lake", kernel=local, verbose=False)
np.save(workspace / "rows.npy", x_test)
program = """
import sys
import numpy as np
import tensorflow as tf

served = tf.saved_model.load("lake")
x = tf.constant(np.load("rows.npy"))
np.save("energy.npy", served.energy(x))
np.save("score.npy", served.score(x))
np.save("draws.npy", served.sample(x, tf.constant([0, 1]), tf.constant(50)))
print("tfp_ebm" in sys.modules)
"""
answer = subprocess.run([sys.executable, "-c", program], cwd=workspace, capture_output=True, text=True, check=True)
served = {name: np.load(workspace / f"{name}.npy") for name in ("energy", "score", "draws")}
difference = float(np.max(np.abs(served["energy"] - model.energy(x_test).numpy())))
difference_of_scores = float(np.max(np.abs(served["score"] - model.score(x_test).numpy())))
print("was tfp_ebm imported there?", answer.stdout.strip())
print(
    f"energies differ by {difference}, scores by {difference_of_scores}; saved and loaded are equal: {same_after_save}"
)
print("mean of served draws", np.round(served["draws"].mean(0), 2), "of held-out rows", np.round(x_test.mean(0), 2))

# %% [markdown]
# ## Rows that do not belong
#
# A sensor fails, and oxygen values are recorded in the wrong rows. Each number alone is as plausible as before; only
# the combinations are wrong. `ood_statistic` measures how well a row fits the data, here by $-E(x)$, and `ood_auroc`
# estimates the probability that a good row ranks above a bad one: one half is chance. A perfect model ranks as the true
# density does, so that is the reference. Even the true density is not the best detector: if we knew how the sensor
# fails, we would use the ratio of the two densities (Neyman and Pearson), $p(x)/(p(x_{oxygen})\,p(x_{others}))$, which
# here can be written down too.


# %%
def marginal(columns):
    """The distribution of some columns."""
    factors = spreads[:, :, None] * shape / np.linalg.norm(shape, axis=1)[:, None]
    covariances = (factors @ factors.transpose(0, 2, 1))[:, columns][:, :, columns]
    parts = tfd.MultivariateNormalTriL(centres[:, columns], np.linalg.cholesky(covariances))
    return tfd.MixtureSameFamily(tfd.Categorical(probs=[0.6, 0.4]), parts)


oxygen, the_others = marginal([1]), marginal([0, 2, 3])


def log_ratio(v):
    """Minus the logarithm of that ratio: an energy."""
    return oxygen.log_prob(v[:, 1:2]) + the_others.log_prob(tf.gather(v, [0, 2, 3], axis=1)) - law.log_prob(v)


broken = x_test.copy()
broken[:, 1] = np.random.default_rng(3).permutation(broken[:, 1])
auroc = {
    "model": ebm.evaluation.ood_auroc(model, x_test, broken),
    "true density": ebm.evaluation.ood_auroc(law, x_test, broken),
    "fitted Gaussian": ebm.evaluation.ood_auroc(gaussian_fit, x_test, broken),
    "ratio of densities": ebm.evaluation.ood_auroc(log_ratio, x_test, broken),
}
for name, value in auroc.items():
    print(f"{name:18s} AUROC {value.value:.4f} ± {value.standard_error:.4f}")

figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
axes[0].scatter(x_test[:1500, 0], x_test[:1500, 1], s=5, color=BLUE, alpha=0.5, label="held-out rows")
axes[0].scatter(broken[:600, 0], broken[:600, 1], s=5, color=VERMILION, alpha=0.6, label="oxygen shuffled")
axes[0].set(title="Two of the four columns", xlabel="temperature, °C", ylabel="oxygen, mg/l")
bins = np.linspace(-25, 0, 61)
for values, color, label in ((x_test, BLUE, "held-out rows"), (broken, VERMILION, "oxygen shuffled")):
    statistics = np.clip(ebm.evaluation.ood_statistic(model, values), bins[0], None)
    axes[1].hist(statistics, bins, color=color, alpha=0.6, label=label)
axes[1].set(title="Their −E (all below −25 in the first bin)", xlabel="−E(x)", ylabel="rows")
axes[1].legend(loc="upper center", title="in both panels")
plt.show()

# %% [markdown]
# The learned model detects as well as the true density, .852. So does the fitted Gaussian, .856 with a standard error
# of .004, although its likelihood is much worse: this fault breaks correlations, and those a Gaussian represents too.
# The best density need not be the best detector of a given fault. To choose a detector, test it on the faults that you
# expect.
#
# ## Digits that do not belong
#
# The same for images: an energy of scikit-learn's 8 × 8 digits, by denoising score matching (eq. 52). Its noise, a
# quarter of each pixel's standard deviation, is somewhat smaller than the `recipes.noise_scale(train)` of so few
# examples, which keeps the strokes sharper. As images that are no digits we take digits upside down, digits with
# shuffled pixels, and noise.

# %%
digits = ebm.datasets.digits(seed=0)
digits = digits[np.random.default_rng(0).permutation(len(digits))]
train, test = digits[:1400], digits[1400:]
steps = size(1400, 280)
loss = ebm.losses.DenoisingScoreMatching(0.25)
digit_model = ebm.recipes.low_dimensional(train, loss, num_steps=steps, steps_per_execution=14)
digit_model.fit(train, batch_size=100, epochs=steps // 14, verbose=0)

rng = np.random.default_rng(4)
others = {
    "upside down": test.reshape(-1, 8, 8)[:, ::-1].reshape(-1, 64),
    "pixels shuffled": np.stack([rng.permutation(row) for row in test]),
    "noise": rng.uniform(size=test.shape).astype("float32"),
}
digit_auroc = {}
for name, images in others.items():
    for kind in ("log_prob", "gradient"):
        digit_auroc[name, kind] = ebm.evaluation.ood_auroc(digit_model, test, images, kind)
    by_base = ebm.evaluation.ood_auroc(digit_model.base, test, images)
    print(
        f"{name:16s} AUROC by −E {digit_auroc[name, 'log_prob'].value:.3f}, by −‖∇E‖ "
        f"{digit_auroc[name, 'gradient'].value:.3f}, by the fitted Gaussian {by_base.value:.3f}"
    )

# %%
statistics = ebm.evaluation.ood_statistic(digit_model, test)
order = np.argsort(statistics)
figure, axes = plt.subplots(1, 3, figsize=(11.2, 3.4), width_ratios=[1, 1, 1.6])
figure.get_layout_engine().set(wspace=0.08)
ebm.plotting.image_grid(test[order[::-1][:30]].reshape(-1, 8, 8), axes[0], "Highest −E", columns=6)
ebm.plotting.image_grid(test[order[:30]].reshape(-1, 8, 8), axes[1], "Lowest −E", columns=6)
sets = {"held-out digits": test} | others
for row, (images, color) in enumerate(zip(sets.values(), (BLUE, ORANGE, VERMILION, BLACK), strict=True)):
    low, middle, high = np.quantile(ebm.evaluation.ood_statistic(digit_model, images), [0.05, 0.5, 0.95])
    axes[2].plot([low, high], [row, row], color=color, lw=7, alpha=0.4, solid_capstyle="butt")
    axes[2].plot(middle, row, "o", color=color, ms=9)
axes[2].set(title="−E: median, and 90 % of the images", xlabel="−E(x)", xscale="symlog", ylim=(3.6, -0.6))
axes[2].set_yticks(range(4), sets)
axes[2].set_xticks([-1000, -10, 0, 10, 100], ["−1000", "−10", "0", "10", "100"])
plt.show()

# %% [markdown]
# Shuffled pixels and noise are always detected, by every method. Digits upside down are harder, since many of them are
# digits too (0, 1, 8). The energy detects them better, with an AUROC of .81, than the Gaussian, with .76. The length of
# the gradient, $-\|\nabla E\|$, is no better than chance.
#
# ## An inverse problem whose answer is known
#
# The upper half of a digit is observed, with noise; what is the lower half? Bayesian inference needs a prior for
# complete digits $x$, a likelihood $y\,|\,x \sim N(x_{upper}, 0.1^2 I)$, and gives the posterior of $x$ given $y$. An
# `EnergyDistribution` is a prior like any other distribution of TFP, in a `tfd.JointDistribution`; the posterior's
# density is known up to a constant, which is all that HMC needs.
#
# First with an energy whose posterior has a closed form, a Gaussian: $E(x) = \frac12(x-m)^T\Sigma^{-1}(x-m)$, posterior
# precision $\Sigma^{-1} + A^TA/0.1^2$ where $A$ picks the upper half. Neighbouring pixels are correlated, so the chain
# moves in coordinates in which the Gaussian fitted to the digits is round: `mcmc.Transformed` with a TFP bijector does
# that.

# %%
NOISE, SEEN = 0.1, 32
shown = test[: size(12, 4)]
y = shown[:, :SEEN] + NOISE * np.random.default_rng(5).normal(size=(len(shown), SEEN)).astype("float32")


gaussian = ebm.fit_base(train)
whitening = tfp.bijectors.Shift(gaussian.loc)(tfp.bijectors.ScaleMatvecTriL(gaussian.scale.to_dense()))
kernel = ebm.mcmc.Transformed(ebm.mcmc.Adaptive(ebm.mcmc.HMC(0.1, 8)), whitening)


def posterior(prior, num_chains, num_burnin_steps, num_results):
    """Draws of x given y, [results, chains, digits, 64], by HMC on the joint density."""
    joint = tfd.JointDistributionNamed(
        {"x": prior, "y": lambda x: tfd.Independent(tfd.Normal(x[..., :SEEN], NOISE), 1)}
    )

    def target(x):
        return joint.unnormalized_log_prob(x=x, y=y)

    start = gaussian.sample([num_chains, len(y)], seed=(6, 6))
    return ebm.mcmc.sample(target, start, kernel, num_burnin_steps=num_burnin_steps, num_results=num_results, seed=7)


gaussian_prior = ebm.EnergyDistribution(
    lambda x: -gaussian.log_prob(x), event_shape=[64], base=gaussian, num_burnin_steps=0
)
samples = posterior(gaussian_prior, 16, 150, size(400, 250))
found_gaussian = ebm.mcmc.diagnose(samples.states, event_ndims=2)  # each digit has a posterior of its own

m, covariance = gaussian.mean().numpy().astype("float64"), gaussian.covariance().numpy().astype("float64")
precision = np.linalg.inv(covariance)
precision[:SEEN, :SEEN] += np.eye(SEEN) / NOISE**2
closed_covariance = np.linalg.inv(precision)
residual = np.concatenate([y - m[:SEEN], np.zeros([len(y), 64 - SEEN])], 1) / NOISE**2
closed_mean = m + residual @ closed_covariance
z = (found_gaussian.mean - closed_mean) / found_gaussian.mcse
print(f"largest R-hat {found_gaussian.rhat.max():.3f}, acceptance {np.mean(samples.is_accepted):.2f}")
print(f"means against the closed form, in s.e.: rms {np.sqrt(np.mean(z**2)):.2f}, largest {np.abs(z).max():.2f}")

# %% [markdown]
# ## Inpainting with a learned prior
#
# The same code with the learned energy as the prior. A joint distribution samples each of its parts once to find their
# shapes. Only the density of the prior is needed here, so we avoid the chain: with `num_burnin_steps=0` that sample
# comes from the base.

# %%
prior = ebm.EnergyDistribution(digit_model, num_burnin_steps=0)
samples = posterior(prior, 16, size(300, 100), size(200, 40))
found_learned = ebm.mcmc.diagnose(samples.states, event_ndims=2)
states = samples.states.numpy()
reconstruction = states.mean((0, 1))


def error_of(images):
    """Root mean square error of the lower half."""
    return float(np.sqrt(np.mean((images[:, SEEN:] - shown[:, SEEN:]) ** 2)))


reconstruction_errors = {
    "mean image": error_of(np.broadcast_to(m, shown.shape)),
    "Gaussian posterior": error_of(closed_mean),
    "learned posterior": error_of(reconstruction),
}
print({name: round(value, 4) for name, value in reconstruction_errors.items()})
print(f"acceptance {np.mean(samples.is_accepted):.2f}, median R-hat {np.median(found_learned.rhat):.3f}")

# %% figure="inpainting_digits"
observed = np.full(shown.shape, np.nan)
observed[:, :SEEN] = y
lines = {
    "truth": shown,
    "seen, with noise": observed,
    "posterior mean": reconstruction,
    "one draw": states[-1, 0],
    "another draw": states[-1, 1],
    "Gaussian prior's mean": closed_mean,
}
figure, axes = plt.subplots(len(lines), len(shown), figsize=(11.2, 5.6), squeeze=False)
for row, (name, images) in zip(axes, lines.items(), strict=True):
    for ax, image in zip(row, images, strict=True):
        ax.imshow(image.reshape(8, 8), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.axhline(3.5, color=VERMILION, lw=1)
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
figure.suptitle("The lower half of a digit, given the upper one")
plt.show()

# %% [markdown]
# ## The numbers beside the truth

# %%
ledger.at_most("table: KL(truth‖model) / KL(truth‖Gaussian)", kl.value / (best - base_likelihood), size(0.2, 0.6))
ledger.equal("table: log Z learned, against AIS", float(p.log_normalizer), log_z.value, 4 * log_z.standard_error + 0.05)
ledger.at_most("chains with global moves: R-hat", found["with global moves"].rhat.max(), 1.05)
ledger.at_most("served without tfp_ebm: largest difference of energies", difference, 0)
ledger.at_most("served without tfp_ebm: largest difference of scores", difference_of_scores, 0)
ledger.equal("served without tfp_ebm: was it imported", float(answer.stdout.strip() == "True"), 0, 0)
ledger.equal(
    "AUROC of shuffled oxygen, against the true density's",
    auroc["model"].value,
    auroc["true density"].value,
    4 * auroc["model"].standard_error,
)
ledger.at_most(
    "AUROC of shuffled oxygen: model's − best possible",
    auroc["model"].value - auroc["ratio of densities"].value,
    4 * auroc["model"].standard_error,
)
ledger.at_least("digits against shuffled pixels: AUROC", digit_auroc["pixels shuffled", "log_prob"].value, 0.99)
ledger.equal("Gaussian posterior by HMC: mean of z² over pixels", np.mean(z**2), 1, 4 * np.sqrt(2 / len(y) / 8))
ledger.at_most("Gaussian posterior by HMC: R-hat", found_gaussian.rhat.max(), size(1.05, 1.1))
quotient = reconstruction_errors["learned posterior"] / reconstruction_errors["mean image"]
ledger.at_most("lower half: error of the learned posterior / of the mean image", quotient, 1)
ledger.close()
