"""What all tutorials share: sizes for full and smoke runs, one look for the figures, and the table each one ends in."""

import math
import os
from collections.abc import Callable

import matplotlib
import matplotlib.pyplot as plt

__all__ = ["BLACK", "BLUE", "GREEN", "ORANGE", "PURPLE", "SKY", "VERMILION", "YELLOW", "Ledger", "size", "style"]

# Okabe & Ito 2008: eight colours that keep apart in every kind of colour vision.
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#000000"

SMOKE = os.environ.get("TFP_EBM_SMOKE") == "1"


def size(full, smoke):
    """`full`, or `smoke` where the environment has TFP_EBM_SMOKE=1: the same code, in less than a minute."""
    return smoke if SMOKE else full


def style():
    """Figures that can be read at half their size, and small as files."""
    matplotlib.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "font.size": 12,
            "axes.titlesize": 13,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]),
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "image.cmap": "viridis",
        }
    )


class Ledger:
    """Numbers beside the truth: one row for each claim of a tutorial.

    `close` prints the table, which the tests read in the executed notebook, and raises where a row does not hold.
    """

    def __init__(self):
        self.rows = []

    def equal(self, name: str, value: float, truth: float, tolerance: float):
        """Claims |value − truth| ≤ tolerance; a statistical claim gives a multiple of its standard error."""
        self._add(name, value, f"= {_text(truth)} ± {_text(tolerance)}", lambda v: abs(v - truth) <= tolerance)

    def at_most(self, name: str, value: float, bound: float):
        """Claims value ≤ bound."""
        self._add(name, value, f"<= {_text(bound)}", lambda v: v <= bound)

    def at_least(self, name: str, value: float, bound: float):
        """Claims value ≥ bound."""
        self._add(name, value, f">= {_text(bound)}", lambda v: v >= bound)

    def _add(self, name: str, value: float, claim: str, holds: Callable[[float], bool]):
        value = float(value)
        self.rows.append((name, value, claim, math.isfinite(value) and bool(holds(value))))

    def close(self):
        """Prints every claim, and raises AssertionError if one fails or none was made."""
        width = max((len(name) for name, *_ in self.rows), default=0)
        for name, value, claim, holds in self.rows:
            print(f"{name:{width}s} | {_text(value):>12s} | {claim:28s} | {'holds' if holds else 'FAILS'}")
        failed = [name for name, *_, holds in self.rows if not holds]
        if failed or not self.rows:
            raise AssertionError(f"not as claimed: {failed}" if self.rows else "a tutorial that claims nothing")


def _text(value: float) -> str:
    return f"{value:.6g}"
