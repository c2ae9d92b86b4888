"""Ready-made configurations for tables and small images, and configurations of papers with the papers' constants.

Each recipe returns a compiled `EnergyModel`, ready to `fit`:

    low_dimensional(x)            tables of up to some hundred coordinates
    noise_levels(x)               few coordinates, at all noise levels: log p, and the shares of separate modes
    regression(x, y)              the density p(y | x) of targets given inputs, with exact log p
    neural_posterior_estimation(theta, x)        p(theta | x) of a simulator's parameters, with exact log p and draws
    neural_ratio_estimation(theta, x, prior)     the same as prior times a learned ratio
    noise_level_images(x)         small images at all noise levels: log p, and draws down the levels
    small_images(network)         small images of few grey levels: persistent chains, with draws at temperature 1
    du_mordatch_2019(network)     images in [0, 1]: short cold chains from a replay buffer
    uva_mnist(network)            MNIST in [−1, 1], as in the deep-learning course notes of Amsterdam
    jem(network)                  images in [−1, 1]: the chains of joint energy models; the network may be a classifier
    li_chen_sommer_2019(network)  images in [0, 1]: denoising at many scales with one energy

Recipes of papers take your network and the range of your pixels, and set the model's standardisation so that
z = (x − loc)/scale has the paper's range. Network, loss and chains then receive the same values as in the paper, and
every constant is the paper's own. Do not `adapt` such a model. You choose the network and the batch size (`fit`).

Chains. A paper's step x' = x − η∇E(x) + τZ is `mcmc.Langevin` with ε = √(2η), because the drift of the latter is
−½ε²∇E, and with `noise_scale=τ`. The temperature T = τ²/ε² = τ²/(2η) is far below 1 in the three recipes with chains:
they learn an energy whose *cold, short* chains generate images, not the density exp(−E)/Z. To learn the density, see
`small_images` and `losses.PersistentContrastiveDivergence`. In other units, z = (x − loc)/s, the same step has ε/s, τ/s
and a gradient clipped to c·s, since ∇_z E = s∇_x E, and the box is transformed in the same way.

For these three recipes, draws are the states in the buffer, `model.standardization.to_x(model.loss.chains.states)`, or
come from new runs of the same chains:
`EnergyDistribution(model, kernel=model.loss.kernel, base=model.loss.chains.base, num_burnin_steps=...)`.
For the fourth recipe, `li_chen_sommer_2019_samples` draws samples.

A `networks.JointEnergy(classifier)` in `small_images` or `jem` is trained as a classifier too, from `fit(x, labels)`.
`class_samples` draws from its classes, `refine` moves given states to more probable ones, and `calibrate` makes its
class probabilities right as often as they say.
"""

from tfp_ebm.recipes.density import fit_density
from tfp_ebm.recipes.imputation import impute
from tfp_ebm.recipes.joint_energy import calibrate, class_samples, refine
from tfp_ebm.recipes.li_chen_sommer import li_chen_sommer_2019, li_chen_sommer_2019_samples
from tfp_ebm.recipes.noise_levels import noise_level_images, noise_levels
from tfp_ebm.recipes.regression import regression
from tfp_ebm.recipes.short_run import du_mordatch_2019, jem, uva_mnist
from tfp_ebm.recipes.simulation_based_inference import neural_posterior_estimation, neural_ratio_estimation
from tfp_ebm.recipes.small_images import small_images
from tfp_ebm.recipes.tables import loss_for, low_dimensional, noise_scale, settings_for

__all__ = [
    "calibrate",
    "class_samples",
    "du_mordatch_2019",
    "fit_density",
    "impute",
    "jem",
    "li_chen_sommer_2019",
    "li_chen_sommer_2019_samples",
    "loss_for",
    "low_dimensional",
    "neural_posterior_estimation",
    "neural_ratio_estimation",
    "noise_level_images",
    "noise_levels",
    "noise_scale",
    "refine",
    "regression",
    "settings_for",
    "small_images",
    "uva_mnist",
]
