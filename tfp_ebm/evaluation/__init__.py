"""Evaluation of models: the normaliser with error bars, and distances from the true distribution.

An energy does not determine log Z. For one or two coordinates, `grid_log_normalizer` computes it by quadrature. For
more, `annealed_importance_sampling` estimates it by chains of this package's kernels, from below, and
`reverse_annealed_importance_sampling` from above. `log_likelihood`, `bits_per_dimension` and `kl_divergence` need
log Z; `probability_flow_log_likelihood` needs the scores of all noise levels instead. The other measures need neither:
`fisher_divergence` and `kernel_stein_discrepancy` use the score, `mmd` uses samples, and `ood_auroc` the order of rows.
`two_sample_auc`, `column_distances` and `worst_pairs` compare samples with held-out rows of a table, and
`reference_log_likelihoods` gives the log-likelihoods of simple densities of the table. `expected_calibration_error`
judges the probabilities of a classifier, and `simulation_based_calibration` the posteriors of a simulator's parameters.

Every result has a `value` and a `standard_error`, and unreliable results come with a warning.
"""

from tfp_ebm.evaluation.calibration import expected_calibration_error
from tfp_ebm.evaluation.discrepancies import Discrepancy, kernel_stein_discrepancy, mmd
from tfp_ebm.evaluation.grid import grid_kl_divergence, grid_log_normalizer, grid_total_variation
from tfp_ebm.evaluation.importance import (
    annealed_importance_sampling,
    importance_sampling,
    reverse_annealed_importance_sampling,
)
from tfp_ebm.evaluation.likelihood import bits_per_dimension, fisher_divergence, kl_divergence, log_likelihood
from tfp_ebm.evaluation.out_of_distribution import ood_auroc, ood_statistic
from tfp_ebm.evaluation.probability_flow import probability_flow_log_likelihood
from tfp_ebm.evaluation.references import reference_log_likelihoods
from tfp_ebm.evaluation.simulation_based_calibration import RankCalibration, simulation_based_calibration
from tfp_ebm.evaluation.two_sample import PairDistance, column_distances, two_sample_auc, worst_pairs
from tfp_ebm.types import Estimate

__all__ = [
    "Discrepancy",
    "Estimate",
    "PairDistance",
    "RankCalibration",
    "annealed_importance_sampling",
    "bits_per_dimension",
    "column_distances",
    "expected_calibration_error",
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
    "probability_flow_log_likelihood",
    "reference_log_likelihoods",
    "reverse_annealed_importance_sampling",
    "simulation_based_calibration",
    "two_sample_auc",
    "worst_pairs",
]
