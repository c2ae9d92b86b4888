"""Energy networks, and layers with correct second derivatives."""

from tfp_ebm.networks import derivative_rules as _rules  # noqa: F401  (registers them)
from tfp_ebm.networks.autoregressive import AutoregressiveEnergy, autoregressive
from tfp_ebm.networks.builders import convnet, mlp
from tfp_ebm.networks.conditional import FixedCondition
from tfp_ebm.networks.fourier import FourierFeatures
from tfp_ebm.networks.joint_energy import JointEnergy
from tfp_ebm.networks.noise_level_builders import noise_level_convnet, noise_level_mlp
from tfp_ebm.networks.noise_levels import NoiseLevelEnergy
from tfp_ebm.networks.normalization import GroupNormalization, LayerNormalization
from tfp_ebm.networks.normalized import NormalizedEnergy
from tfp_ebm.networks.spectral import SpectralNormalization

__all__ = [
    "AutoregressiveEnergy",
    "FixedCondition",
    "FourierFeatures",
    "GroupNormalization",
    "JointEnergy",
    "LayerNormalization",
    "NoiseLevelEnergy",
    "NormalizedEnergy",
    "SpectralNormalization",
    "autoregressive",
    "convnet",
    "mlp",
    "noise_level_convnet",
    "noise_level_mlp",
]
