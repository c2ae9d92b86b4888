"""Sampling from exp(−E): `tfp.mcmc` kernels, a compiled loop, and diagnostics of the chains.

A kernel leaves the target distribution invariant, so a long enough chain samples it (§2.1.2 of the note). `HMC`,
`MALA`, `NUTS`, `RandomWalk`, `MetropolisHastings` and `Langevin` build `tfp.mcmc` kernels; `Adaptive` adapts their step
size. `IndependenceMetropolis` and `ReplicaExchange` move chains between modes, `Sequential` combines kernels, and
`Transformed` restricts chains to a subset of space. `sample` runs any TFP kernel, `summarize` computes statistics
without keeping the draws, and `diagnose` checks whether the chains have converged. `sequential_monte_carlo` draws from
densities with several modes, with log Z and a verdict (`Draws`). `annealed_langevin` runs chains through the decreasing
noise scales of a noise-conditional model, and `anneal_noise_levels` weighted particles, with log Z.
"""

from tfp_ebm.mcmc.annealing import annealed_langevin
from tfp_ebm.mcmc.diagnostics import Diagnostics, diagnose
from tfp_ebm.mcmc.draws import Draws
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
from tfp_ebm.mcmc.noise_levels import anneal_noise_levels
from tfp_ebm.mcmc.sampling import Samples, sample
from tfp_ebm.mcmc.sequential_monte_carlo import sequential_monte_carlo
from tfp_ebm.mcmc.starts import ChainStart, FromBase, FromData, ReplayBuffer
from tfp_ebm.mcmc.summary import Summary, summarize

__all__ = [
    "HMC",
    "MALA",
    "NUTS",
    "Adaptive",
    "ChainStart",
    "Diagnostics",
    "Draws",
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
    "anneal_noise_levels",
    "annealed_langevin",
    "default_kernel",
    "diagnose",
    "sample",
    "sequential_monte_carlo",
    "summarize",
]
