"""The two public objects: the Keras model and the TFP distribution of an energy."""

from tfp_ebm.model.distribution import EnergyDistribution
from tfp_ebm.model.energy_model import EnergyModel

__all__ = ["EnergyDistribution", "EnergyModel"]
