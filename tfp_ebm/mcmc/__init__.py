"""Sampling from exp(−E): kernels over `tfp.mcmc`, one compiled driver, and the diagnosis of its chains.

A kernel leaves the target's law unchanged, so a long enough chain samples it (§2.1.2 of the note). `HMC`, `MALA`,
`NUTS`, `RandomWalk` and `Langevin` are recipes for `tfp.mcmc` kernels, `Adaptive` tunes their step size, `sample` runs
any kernel of TFP's, and `diagnose` says whether the chains can be trusted. `annealed_langevin` follows the noise scales
of a noise-conditional model down.
"""

from tfp_ebm.mcmc.adaptation import Adaptive
from tfp_ebm.mcmc.annealing import annealed_langevin
from tfp_ebm.mcmc.defaults import DEFAULT_KERNEL
from tfp_ebm.mcmc.diagnostics import Diagnostics, diagnose
from tfp_ebm.mcmc.kernels import HMC, MALA, NUTS, Kernel, Langevin, RandomWalk
from tfp_ebm.mcmc.langevin import UncalibratedLangevin
from tfp_ebm.mcmc.sampling import Samples, sample

__all__ = [
    "DEFAULT_KERNEL",
    "HMC",
    "MALA",
    "NUTS",
    "Adaptive",
    "Diagnostics",
    "Kernel",
    "Langevin",
    "RandomWalk",
    "Samples",
    "UncalibratedLangevin",
    "annealed_langevin",
    "diagnose",
    "sample",
]
