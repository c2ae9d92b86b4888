"""Helpers of the tutorials: the amount of work, the style of figures, and the table of numbers at the end of each one.

It is part of the package so that a tutorial's notebook runs wherever `tfp_ebm` is installed, alone in any folder.
"""

import math
import os
from collections.abc import Callable
from typing import Any

# Eight colours that people with any kind of colour vision can distinguish (Okabe & Ito 2008).
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, YELLOW, BLACK = "#56B4E9", "#CC79A7", "#F0E442", "#000000"

SMOKE = os.environ.get("TFP_EBM_SMOKE") == "1"


def size(full: Any, smoke: Any) -> Any:
    """Returns `full`, or `smoke` if the environment has TFP_EBM_SMOKE=1, with which a tutorial runs in a minute."""
    return smoke if SMOKE else full


def style() -> None:
    """Sets matplotlib's style: figures that can be read at half their size, in small files."""
    import matplotlib
    from cycler import cycler

    matplotlib.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "figure.dpi": 80,
            "savefig.dpi": 80,
            "font.size": 12,
            "axes.titlesize": 13,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]),
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "image.cmap": "viridis",
        }
    )


class Ledger:
    """A table of a tutorial's numbers and their true values.

    `close` prints the table, which the tests read in the executed notebook, and raises if a row does not hold.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, str, bool]] = []

    def equal(self, name: str, value: float, truth: float, tolerance: float) -> None:
        """Claims |value − truth| ≤ tolerance; for a statistical claim, a multiple of its standard error."""
        self._add(name, value, f"= {_text(truth)} ± {_text(tolerance)}", lambda v: abs(v - truth) <= tolerance)

    def at_most(self, name: str, value: float, bound: float) -> None:
        """Claims value ≤ bound."""
        self._add(name, value, f"<= {_text(bound)}", lambda v: v <= bound)

    def at_least(self, name: str, value: float, bound: float) -> None:
        """Claims value ≥ bound."""
        self._add(name, value, f">= {_text(bound)}", lambda v: v >= bound)

    def _add(self, name: str, value: float, claim: str, holds: Callable[[float], bool]) -> None:
        value = float(value)
        self.rows.append((name, value, claim, math.isfinite(value) and bool(holds(value))))

    def close(self) -> None:
        """Prints every claim; raises AssertionError if one fails or none was made."""
        width = max((len(name) for name, *_ in self.rows), default=0)
        for name, value, claim, holds in self.rows:
            print(f"{name:{width}s} | {_text(value):>12s} | {claim:28s} | {'holds' if holds else 'FAILS'}")
        failed = [name for name, *_, holds in self.rows if not holds]
        if failed or not self.rows:
            raise AssertionError(f"not as claimed: {failed}" if self.rows else "a tutorial that claims nothing")


def _text(value: float) -> str:
    return f"{value:.6g}"
