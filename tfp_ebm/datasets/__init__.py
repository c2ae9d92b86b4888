"""Data to learn from: draws of the targets, scikit-learn's digits, and the user's own `.npy`, `.npz` and `.csv` files.

Everything arrives as float32 `[rows, ...]`, finite and whole, or not at all: a file that cannot be taken as it is (a
missing cell, a NaN, a column that float32 cannot resolve) raises an error that says where the trouble sits.

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
from tfp_ebm.datasets.loading import Table, load, load_table

__all__ = [
    "TOY_NAMES",
    "Table",
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
