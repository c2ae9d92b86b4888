# %% [markdown]
# # 10. In practice
#
# From a table of your own to a model that serves without this package; rows that do not belong; and an energy as the
# prior of a Bayesian inverse problem.
#
# **After this you can**
#
# - read a CSV, fit it, and know from numbers whether the fit can be trusted;
# - save the model, and load its energy, score and sampler where only TensorFlow is installed;
# - score rows by how much they look like the data, and say how good that is;
# - give a learned energy to a `tfd.JointDistribution` as a prior, and draw from the posterior.
#
# It uses all that tutorials 1 to 9 explain: energies as distributions (eqs. 1-5), noise contrastive estimation
# (eqs. 58-64), denoising score matching (eq. 52) and Hamiltonian Monte Carlo (eqs. 16-20).

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

# %% [markdown]
# ## A table of your own
#
# Yours comes from a file. So that we can compare with the truth, we write ours: measurements of a lake, in their
# usual units, from a law that we know, a summer and a winter with correlated quantities. From here on the file is all
# we have.

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
# `load_table` finds the delimiter and the header, refuses what is not whole, and gives float32.

# %%
table = ebm.datasets.load_table(workspace / "lake.csv")
x, x_test = table.values[:-4000], table.values[-4000:]
print(x.shape, table.columns)

# %% [markdown]
# ## Fit
#
# Four columns in very different units: `low_dimensional` standardises them, and everything public keeps speaking the
# units of the file. The loss is noise contrastive estimation, which learns $\log Z$ with the energy (tutorial 8). The
# rows are shuffled already, as `validation_split` needs it.
#
# (`size(full, smoke)` is `full` here, and `smoke` where the tests run this page quickly. From a shell, `python -m
# tfp_ebm fit lake.csv --out runs/lake` does the like and writes a report.)

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
# Is it a density? Three questions: is $\log Z$ right, do its own chains arrive, and are rows that it never saw as
# probable under it as they can be?

# %%
p = ebm.EnergyDistribution(model)
log_z = ebm.evaluation.annealed_importance_sampling(p, num_temperatures=size(300, 40), num_chains=500, seed=1)
held_out = ebm.evaluation.log_likelihood(p, x_test, log_z)
kl = ebm.evaluation.kl_divergence(law, p, log_z, size(50_000, 10_000))
best = float(np.mean(law.log_prob(x_test)))
gaussian_fit = ebm.fit_base(x)
base_likelihood = float(np.mean(gaussian_fit.log_prob(x_test)))
print(f"log Z learned {float(p.log_normalizer):.4f}, by AIS {log_z.value:.4f} ± {log_z.standard_error:.4f}")
print(f"held-out log-likelihood {held_out.value:.3f}, of the true law {best:.3f}, of a Gaussian {base_likelihood:.3f}")
print(f"KL(law‖model) {kl.value:.4f} ± {kl.standard_error:.4f} nats")

# %% [markdown]
# Now the chains. Summer and winter lie apart, and local moves seldom cross. R-hat says so: it should be below 1.05. A
# kernel that begins each step with a draw of the fitted Gaussian, accepted by Metropolis' rule, crosses. (Chains of a
# model run in standardised units, so that is where the Gaussian lives.)

# %%
wide = tfd.MultivariateNormalTriL(
    tf.zeros(4), tf.linalg.cholesky(tf.constant(1.2 * np.corrcoef(x.T) + 0.05 * np.eye(4), tf.float32))
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
        f"effective draws {found[name].ess.min():.0f}, summer {summer:.3f}"
    )
draws = chains.states[::50].numpy().reshape(-1, 4)

# %%
axes = ebm.plotting.histograms(x_test, draws, ["temperature, °C", "oxygen, mg/l", "conductivity, µS/cm", "pH"])
plt.show()

# %% [markdown]
# ## Save, and serve without this package
#
# `save` keeps all that training needs: weights, units, the loss with its $\log Z$, the step counter. `export` writes a
# SavedModel with the endpoints `energy`, `score`, `unnormalized_log_prob` and `sample`. We load the latter in a fresh
# Python process that has TensorFlow and never imports `tfp_ebm`, and compare bit by bit.

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
# A sensor fails, and oxygen values end up with other rows. Each number is as usual as before; only together they make
# no sense. `ood_statistic` says how much a row looks like the data, and `ood_auroc` how often a good row scores above a
# bad one: one half is chance. A perfect model scores as the true density does, so that is the mark. Even that is not
# the best score there can be: who knew how the sensor fails would take the ratio of both densities (Neyman and
# Pearson), $p(x)/(p(x_{oxygen})\,p(x_{others}))$, which here can be written down too.


# %%
def marginal(columns):
    """The law of some columns."""
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
    scores = np.clip(ebm.evaluation.ood_statistic(model, values), bins[0], None)
    axes[1].hist(scores, bins, color=color, alpha=0.6, label=label)
axes[1].set(title="Their scores (all below −25 in the first bin)", xlabel="−E(x)", ylabel="rows")
axes[1].legend(loc="upper center", title="in both panels")
plt.show()

# %% [markdown]
# ## Digits that do not belong
#
# The same for images: an energy of scikit-learn's 8 × 8 digits, by denoising score matching (eq. 52). Its noise, a
# quarter of each pixel's standard deviation, is somewhat smaller than the `recipes.noise_scale(train)` of so few
# rows, which keeps the strokes sharper. What is no digit: digits upside down, their pixels shuffled, noise.

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
    for score in ("log_prob", "gradient"):
        digit_auroc[name, score] = ebm.evaluation.ood_auroc(digit_model, test, images, score)
    by_base = ebm.evaluation.ood_auroc(digit_model.base, test, images)
    print(
        f"{name:16s} AUROC by −E {digit_auroc[name, 'log_prob'].value:.3f}, by −‖∇E‖ "
        f"{digit_auroc[name, 'gradient'].value:.3f}, by the fitted Gaussian {by_base.value:.3f}"
    )

# %%
scores = ebm.evaluation.ood_statistic(digit_model, test)
order = np.argsort(scores)
figure, axes = plt.subplots(1, 3, figsize=(11.2, 3.4), width_ratios=[1, 1, 1.6])
figure.get_layout_engine().set(wspace=0.08)
ebm.plotting.image_grid(test[order[::-1][:30]].reshape(-1, 8, 8), axes[0], "Highest −E", columns=6)
ebm.plotting.image_grid(test[order[:30]].reshape(-1, 8, 8), axes[1], "Lowest −E", columns=6)
middle, spread = np.median(scores), np.std(scores)
bins = np.linspace(middle - 8 * spread, middle + 4 * spread, 61)
sets = {"held-out digits": test} | others
for (name, images), color in zip(sets.items(), (BLUE, ORANGE, VERMILION, BLACK), strict=True):
    shown = np.clip(ebm.evaluation.ood_statistic(digit_model, images), bins[0], None)
    axes[2].hist(shown, bins, color=color, alpha=0.6, label=name)
axes[2].set(title="Scores (far lower ones in the first bin)", xlabel="−E(x)", ylabel="images", ylim=(0, 120))
axes[2].legend(fontsize=10, loc="upper center")
plt.show()

# %% [markdown]
# ## An inverse problem whose answer is known
#
# The upper half of a digit is seen, with noise; what is the lower half? In Bayes' way: a prior for whole digits $x$,
# a likelihood $y\,|\,x \sim N(x_{upper}, 0.1^2 I)$, and the posterior of $x$ given $y$. An `EnergyDistribution` is a
# prior like any other of TFP's, in a `tfd.JointDistribution`; the posterior's density is known up to a constant,
# which is all that HMC asks for.
#
# First with an energy whose posterior has a closed form, a Gaussian: $E(x) = \frac12(x-m)^T\Sigma^{-1}(x-m)$,
# posterior precision $\Sigma^{-1} + A^TA/0.1^2$ where $A$ picks the upper half. Neighbouring pixels go together, so
# the chain moves in coordinates in which the Gaussian fitted to the digits is round: `mcmc.Transformed` with a TFP
# bijector does that.

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
# The same lines with the learned energy as the prior. A joint distribution draws once from its parts to learn their
# shapes. Only the density of the prior is asked for here, so we spare it the chain: with `num_burnin_steps=0` that
# draw is one of the base.

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
ledger.at_most("table: KL(law‖model) / KL(law‖Gaussian)", kl.value / (best - base_likelihood), size(0.2, 0.6))
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
