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
import tempfile

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from lesson import Ledger, size, style

import tfp_ebm as ebm

tfd = tfp.distributions
style()
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
centres = np.array([[19.0, 8.5, 310.0, 8.3], [5.0, 12.2, 270.0, 7.6]])
spreads = np.array([[2.5, 0.7, 18.0, 0.20], [1.2, 0.5, 9.0, 0.12]])
shape = np.array([[1.0, 0, 0, 0], [-0.8, 0.6, 0, 0], [0.3, 0.0, 0.95, 0], [0.5, 0.4, -0.2, 0.7]])
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
steps, batch = size(4000, 400), 250
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
log_z = ebm.evaluation.annealed_importance_sampling(p, num_temperatures=size(300, 100), num_chains=500, seed=1)
held_out = ebm.evaluation.log_likelihood(p, x_test, log_z)
kl = ebm.evaluation.kl_divergence(law, lambda v: model.energy(tf.cast(v, tf.float32)), log_z, size(50_000, 10_000))
best = float(np.mean(law.log_prob(x_test.astype("float64"))))
base_likelihood = float(np.mean(model.base.log_prob(x_test)))
chains = p.sample_chains(num_results=size(500, 100), num_chains=64, seed=2)
found = ebm.mcmc.diagnose(chains)
print(f"log Z learned {float(p.log_normalizer):.4f}, by AIS {log_z.value:.4f} ± {log_z.standard_error:.4f}")
print(f"held-out log-likelihood {held_out.value:.3f}, of the true law {best:.3f}, of a Gaussian {base_likelihood:.3f}")
print(f"KL(law‖model) {kl.value:.4f} ± {kl.standard_error:.4f} nats")
print(f"acceptance {found.acceptance_rate:.2f}, largest R-hat {found.rhat.max():.3f}, nonfinite {found.num_nonfinite}")
