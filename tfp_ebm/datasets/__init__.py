"""Data to learn from: draws of the targets, scikit-learn's digits, and the user's own files.

`load` returns finite float32 numbers `[rows, ...]`, `load_table` a data frame. A file that cannot be taken as it is (a
missing cell, a date, a column that float32 cannot resolve) raises an error with the line, the column and the cure.

**Dequantisation.** Data that can only be whole numbers have no density. A model that tries to give them one puts ever
sharper peaks on the integers: the likelihood grows without limit and the exact score-matching objective falls without
limit. Adding U(0, 1) to each number spreads every integer over its own unit cell; a density of the spread data,
averaged over a cell, bounds the log-likelihood of the integers from below (Theis, van den Oord & Bethge, A note on the
evaluation of generative models, 2016, https://arxiv.org/abs/1511.01844).
"""

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
