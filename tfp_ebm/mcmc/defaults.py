"""The kernel that runs where a user names none."""

from __future__ import annotations

from tfp_ebm.mcmc.adaptation import Adaptive
from tfp_ebm.mcmc.kernels import HMC

__all__ = ["DEFAULT_KERNEL"]

# In standardised units a step of .1 is a safe start for any energy; adaptation takes it from there.
DEFAULT_KERNEL = Adaptive(HMC(step_size=0.1, num_leapfrog_steps=10))
