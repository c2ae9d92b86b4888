"""Sampling from exp(−E): kernels over `tfp.mcmc`, one compiled driver, and the diagnosis of its chains.

A kernel leaves the target's law unchanged, so a long enough chain samples it (§2.1.2 of the note). `HMC`, `MALA`,
`NUTS`, `RandomWalk`, `MetropolisHastings` and `Langevin` are recipes for `tfp.mcmc` kernels, `Adaptive` tunes their
step size. `IndependenceMetropolis` and `Tempered` carry chains from mode to mode, `Sequence` joins kernels, and
`Transformed` keeps them on a part of space. `sample` runs any kernel of TFP's, `summarize` does without keeping the
draws, and `diagnose` says whether chains can be trusted. `annealed_langevin` follows the noise scales of a
noise-conditional model down.
"""

from tfp_ebm.mcmc.adaptation import Adaptive
from tfp_ebm.mcmc.annealing import annealed_langevin
from tfp_ebm.mcmc.arviz import to_arviz
from tfp_ebm.mcmc.chains import FromBase, FromData, ReplayBuffer
from tfp_ebm.mcmc.defaults import DEFAULT_KERNEL
from tfp_ebm.mcmc.diagnostics import Diagnostics, diagnose
from tfp_ebm.mcmc.kernels import HMC, MALA, NUTS, Kernel, Langevin, RandomWalk
from tfp_ebm.mcmc.langevin import UncalibratedLangevin
from tfp_ebm.mcmc.metropolis import IndependenceMetropolis, MetropolisHastings, UncalibratedProposal
from tfp_ebm.mcmc.sampling import Samples, sample
from tfp_ebm.mcmc.sequence import Sequence, SequenceResults
from tfp_ebm.mcmc.summary import Summary, summarize
from tfp_ebm.mcmc.supports import Transformed
from tfp_ebm.mcmc.tempered_transition import TemperedTransition
from tfp_ebm.mcmc.tempering import Tempered

__all__ = [
    "DEFAULT_KERNEL",
    "HMC",
    "MALA",
    "NUTS",
    "Adaptive",
    "Diagnostics",
    "FromBase",
    "FromData",
    "IndependenceMetropolis",
    "Kernel",
    "Langevin",
    "MetropolisHastings",
    "RandomWalk",
    "ReplayBuffer",
    "Samples",
    "Sequence",
    "SequenceResults",
    "Summary",
    "Tempered",
    "TemperedTransition",
    "Transformed",
    "UncalibratedLangevin",
    "UncalibratedProposal",
    "annealed_langevin",
    "diagnose",
    "sample",
    "summarize",
    "to_arviz",
]
