"""Sampling from exp(−E): kernels over `tfp.mcmc`, one compiled driver, and the diagnosis of its chains.

A kernel leaves the target's law unchanged, so a long enough chain samples it (§2.1.2 of the note). `HMC`, `MALA`,
`NUTS`, `RandomWalk`, `MetropolisHastings` and `Langevin` are recipes for `tfp.mcmc` kernels, `Adaptive` tunes their
step size. `IndependenceMetropolis` and `ReplicaExchange` move chains between modes, `Sequential` joins kernels, and
`Transformed` keeps them on a part of space. `sample` runs any kernel of TFP's, `summarize` does without keeping the
draws, and `diagnose` says whether chains can be trusted. `annealed_langevin` follows the noise scales of a
noise-conditional model down.
"""

from tfp_ebm.mcmc.annealing import annealed_langevin
from tfp_ebm.mcmc.diagnostics import Diagnostics, diagnose
from tfp_ebm.mcmc.kernels import (
    HMC,
    MALA,
    NUTS,
    Adaptive,
    IndependenceMetropolis,
    Kernel,
    Langevin,
    MetropolisHastings,
    RandomWalk,
    ReplicaExchange,
    Sequential,
    TemperedTransition,
    Transformed,
    UncalibratedLangevin,
    UncalibratedProposal,
    default_kernel,
)
from tfp_ebm.mcmc.sampling import Samples, sample
from tfp_ebm.mcmc.starts import ChainStart, FromBase, FromData, ReplayBuffer
from tfp_ebm.mcmc.summary import Summary, summarize

__all__ = [
    "HMC",
    "MALA",
    "NUTS",
    "Adaptive",
    "ChainStart",
    "Diagnostics",
    "FromBase",
    "FromData",
    "IndependenceMetropolis",
    "Kernel",
    "Langevin",
    "MetropolisHastings",
    "RandomWalk",
    "ReplayBuffer",
    "ReplicaExchange",
    "Samples",
    "Sequential",
    "Summary",
    "TemperedTransition",
    "Transformed",
    "UncalibratedLangevin",
    "UncalibratedProposal",
    "annealed_langevin",
    "default_kernel",
    "diagnose",
    "sample",
    "summarize",
]
