"""How good is a model? The normaliser with honest error bars, and distances from the truth.

What an energy lacks is log Z. On one or two coordinates `grid_log_normalizer` has it by quadrature; beyond,
`annealed_importance_sampling` estimates it by chains of this package's kernels, from below, and
`reverse_annealed_importance_sampling` from above. With it come `log_likelihood`, `bits_per_dimension` and
`kl_divergence`. Without it judge `fisher_divergence` and `kernel_stein_discrepancy`, by the score alone, `mmd`, by
samples alone, and `ood_auroc`, by order alone.

Everything returned has a `value` and a `standard_error`, and whatever cannot be trusted warns.
"""

from tfp_ebm.evaluation.discrepancies import Discrepancy, kernel_stein_discrepancy, mmd
from tfp_ebm.evaluation.grid import grid_kl_divergence, grid_log_normalizer, grid_total_variation
from tfp_ebm.evaluation.importance import (
    annealed_importance_sampling,
    importance_sampling,
    reverse_annealed_importance_sampling,
)
from tfp_ebm.evaluation.likelihood import bits_per_dimension, fisher_divergence, kl_divergence, log_likelihood
from tfp_ebm.evaluation.out_of_distribution import ood_auroc, ood_statistic
from tfp_ebm.types import Estimate

__all__ = [
    "Discrepancy",
    "Estimate",
    "annealed_importance_sampling",
    "bits_per_dimension",
    "fisher_divergence",
    "grid_kl_divergence",
    "grid_log_normalizer",
    "grid_total_variation",
    "importance_sampling",
    "kernel_stein_discrepancy",
    "kl_divergence",
    "log_likelihood",
    "mmd",
    "ood_auroc",
    "ood_statistic",
    "reverse_annealed_importance_sampling",
]
