"""Energy-based models for Keras and TensorFlow Probability."""

from tfp_ebm import datasets, derivatives, losses, mcmc, networks, plotting, recipes, targets
from tfp_ebm.base import fit_base
from tfp_ebm.distribution import EnergyDistribution
from tfp_ebm.model import EnergyModel

__version__ = "0.1.0"

__all__ = [
    "EnergyDistribution",
    "EnergyModel",
    "datasets",
    "derivatives",
    "fit_base",
    "losses",
    "mcmc",
    "networks",
    "plotting",
    "recipes",
    "targets",
]
