"""Transition kernels, one file per algorithm."""

from typing import Any

from tfp_ebm.mcmc.kernels.adaptive import Adaptive
from tfp_ebm.mcmc.kernels.hamiltonian import HMC, NUTS
from tfp_ebm.mcmc.kernels.kernel import Kernel
from tfp_ebm.mcmc.kernels.langevin import MALA, Langevin, UncalibratedLangevin
from tfp_ebm.mcmc.kernels.metropolis import (
    IndependenceMetropolis,
    MetropolisHastings,
    UncalibratedProposal,
)
from tfp_ebm.mcmc.kernels.random_walk import RandomWalk
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
    "default_kernel",
]

# The kernel used if the user gives none and no base is known. In standardised units a step of 0.1 is a safe initial
# value for any energy; adaptation then changes it. Trajectories vary between 1 and 20 steps, to avoid resonances.
DEFAULT_KERNEL = Adaptive(HMC(step_size=0.1, num_leapfrog_steps=(1, 20)))


def default_kernel(base: Any = None, bijector: Any = None) -> Kernel:
    """Returns the default kernel: adaptive HMC, preceded by a global move from the base if there is one.

    Args:
      base: a `tfd.Distribution` over states, or None. With a base, each step starts with an `IndependenceMetropolis`
        move, which moves chains between modes and away from initial states of very low density.
      bijector: a `tfp.bijectors.Bijector` onto the support of the target; HMC then moves in unconstrained coordinates.

    >>> import tensorflow_probability as tfp
    >>> kernel = default_kernel(tfp.distributions.MultivariateNormalDiag([0.0], [1.0]))
    >>> [type(part).__name__ for part in kernel.kernels]
    ['IndependenceMetropolis', 'Adaptive']
    """
    local: Kernel = DEFAULT_KERNEL if bijector is None else Transformed(DEFAULT_KERNEL, bijector)
    return local if base is None else Sequential((IndependenceMetropolis(base), local))
