"""Data sets: draws of the targets, scikit-learn's digits, and the user's own files.

`load` returns finite float32 numbers `[rows, ...]`, and `load_table` a data frame. A file that cannot be used directly
(because of a missing cell, a date, a column that needs more precision than float32) raises an error with the line, the
column and a remedy. `load_table(path, mixed=True)` keeps text, truth values and missing cells, and `TableEncoder` maps
such frames to numbers and back.

**Dequantisation.** Data that are whole numbers have no density. A model of such a density puts increasingly sharp peaks
on the integers: the likelihood grows without bound, and the exact score-matching objective decreases without bound.
Adding U(0, 1) to each number spreads every integer over its own unit cell. A log density of the spread data, averaged
over a cell, is a lower bound on the log-likelihood of the integers (Theis, van den Oord & Bethge, A note on the
evaluation of generative models, 2016, https://arxiv.org/abs/1511.01844).
"""

from tfp_ebm.datasets.columns import TableEncoder
from tfp_ebm.datasets.draws import (
    TOY_NAMES,
    banana,
    checkerboard,
    digits,
    eight_gaussians,
    funnel,
    pinwheel,
    rings,
    rosenbrock,
    swiss_roll,
    two_gaussians,
    two_moons,
)
from tfp_ebm.datasets.loading import load
from tfp_ebm.datasets.tables import load_table

__all__ = [
    "TOY_NAMES",
    "TableEncoder",
    "banana",
    "checkerboard",
    "digits",
    "eight_gaussians",
    "funnel",
    "load",
    "load_table",
    "pinwheel",
    "rings",
    "rosenbrock",
    "swiss_roll",
    "two_gaussians",
    "two_moons",
]
