"""Energy-based models for Keras and TensorFlow Probability."""

import pathlib
import sys

from tfp_ebm.backend import check_backend

__version__ = "0.1.0"

__all__ = [
    "EnergyDistribution",
    "EnergyModel",
    "callbacks",
    "composition",
    "datasets",
    "derivatives",
    "evaluation",
    "fit_base",
    "fit_density",
    "impute",
    "losses",
    "mcmc",
    "networks",
    "outliers",
    "plotting",
    "random",
    "recipes",
    "sklearn",
    "targets",
]

# TensorFlow takes seconds to import, so the command line parses its arguments first and then imports what it needs.
# Any other import loads the complete package, because Keras finds a saved model's classes only once they are imported.
_IS_COMMAND = sys.orig_argv[1:3] == ["-m", "tfp_ebm"] or pathlib.Path(sys.argv[0]).name == "tfp-ebm"

check_backend(imports_keras=not _IS_COMMAND)  # before another import fails with a less helpful error

if not _IS_COMMAND:
    from tfp_ebm import (
        callbacks,
        composition,
        datasets,
        derivatives,
        evaluation,
        losses,
        mcmc,
        networks,
        outliers,
        plotting,
        random,
        recipes,
        sklearn,
        targets,
    )
    from tfp_ebm.energy.base import fit_base
    from tfp_ebm.model.distribution import EnergyDistribution
    from tfp_ebm.model.energy_model import EnergyModel
    from tfp_ebm.recipes.density import fit_density
    from tfp_ebm.recipes.imputation import impute
