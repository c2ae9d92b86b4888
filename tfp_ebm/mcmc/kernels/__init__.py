"""Transition kernels, one file per algorithm."""

from tfp_ebm.mcmc.kernels.adaptive import Adaptive
from tfp_ebm.mcmc.kernels.hamiltonian import HMC, NUTS
from tfp_ebm.mcmc.kernels.kernel import Kernel
from tfp_ebm.mcmc.kernels.langevin import MALA, Langevin, UncalibratedLangevin
from tfp_ebm.mcmc.kernels.metropolis import (
    IndependenceMetropolis,
    MetropolisHastings,
    RandomWalk,
    UncalibratedProposal,
)
from tfp_ebm.mcmc.kernels.replica_exchange import ReplicaExchange
from tfp_ebm.mcmc.kernels.sequential import Sequential
from tfp_ebm.mcmc.kernels.tempered_transition import TemperedTransition
from tfp_ebm.mcmc.kernels.transformed import Transformed

__all__ = [
    "DEFAULT_KERNEL",
    "HMC",
    "MALA",
    "NUTS",
    "Adaptive",
    "IndependenceMetropolis",
    "Kernel",
    "Langevin",
    "MetropolisHastings",
    "RandomWalk",
    "ReplicaExchange",
    "Sequential",
    "TemperedTransition",
    "Transformed",
    "UncalibratedLangevin",
    "UncalibratedProposal",
]

# The kernel used where the user names none. In standardised units a step of 0.1 is a safe start for any energy;
# adaptation takes it from there.
DEFAULT_KERNEL = Adaptive(HMC(step_size=0.1, num_leapfrog_steps=10))
