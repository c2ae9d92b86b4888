"""How good is a model? The normaliser with honest error bars, and distances from the truth."""

from tfp_ebm.evaluation.annealed import (
    annealed_importance_sampling,
    importance_sampling,
    reverse_annealed_importance_sampling,
)
from tfp_ebm.evaluation.estimate import Estimate
from tfp_ebm.evaluation.grid import grid_kl_divergence, grid_log_normalizer, total_variation

__all__ = [
    "Estimate",
    "annealed_importance_sampling",
    "grid_kl_divergence",
    "grid_log_normalizer",
    "importance_sampling",
    "reverse_annealed_importance_sampling",
    "total_variation",
]
