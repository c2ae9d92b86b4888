"""Ready-made configurations: one for tables, one for small images, and those of papers, with the papers' constants.

Each recipe returns a compiled `EnergyModel`, ready to `fit`:

    low_dimensional(x)            tables of up to some hundred coordinates
    small_images(network)         small images of few grey levels: persistent chains, and their draws at temperature 1
    du_mordatch_2019(network)     images in [0, 1]: short cold chains from a replay buffer
    uva_mnist(network)            MNIST in [−1, 1], as the deep-learning course notes of Amsterdam have it
    jem(network)                  images in [−1, 1], the chains of joint energy models; a classifier serves as network
    li_chen_sommer_2019(network)  images in [0, 1]: denoising at many scales with one energy

Those of papers take your network and the box of your pixels, and set the model's units so that z = (x − loc)/scale runs
over the paper's box: network, loss and chains see what the paper's do, and every constant is the paper's own. So do not
`adapt` such a model. What they leave to you is the network, and the size of a batch (`fit`).

Chains. A paper's step x' = x − η∇E(x) + τZ is `mcmc.Langevin` of ε = √(2η), because its drift is −½ε²∇E, with
`noise_scale=τ`. Its temperature T = τ²/ε² = τ²/(2η) is far below 1 in their three recipes with chains: what they learn
is an energy whose *cold, short* chains give pictures, not the density exp(−E)/Z. For that see `small_images` and
`losses.PersistentContrastiveDivergence`. In other units, z = (x − loc)/s, the same step has ε/s, τ/s, a gradient clip
of c·s and the box moved alike, since ∇_z E = s∇_x E.

Draws of the three are in the buffer, `model.standardization.to_x(model.loss.chains.states)`, or come from the same
chains run again:
`EnergyDistribution(model, kernel=model.loss.kernel, base=model.loss.chains.base, num_burnin_steps=...)`.
`li_chen_sommer_2019_samples` draws from the fourth.
"""

from tfp_ebm.recipes.density import fit_density
from tfp_ebm.recipes.li_chen_sommer import li_chen_sommer_2019, li_chen_sommer_2019_samples
from tfp_ebm.recipes.short_run import du_mordatch_2019, jem, uva_mnist
from tfp_ebm.recipes.small_images import small_images
from tfp_ebm.recipes.tables import loss_for, low_dimensional, noise_scale, settings_for

__all__ = [
    "du_mordatch_2019",
    "fit_density",
    "jem",
    "li_chen_sommer_2019",
    "li_chen_sommer_2019_samples",
    "loss_for",
    "low_dimensional",
    "noise_scale",
    "settings_for",
    "small_images",
    "uva_mnist",
]
