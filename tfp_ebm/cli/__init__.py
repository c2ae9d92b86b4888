"""The command line: `python -m tfp_ebm` and `tfp-ebm`. One command trains, samples and exports a model.

    python -m tfp_ebm fit two_moons --out runs/moons
    python -m tfp_ebm sample runs/moons -n 1000
    python -m tfp_ebm evaluate runs/moons data.csv
    python -m tfp_ebm outliers runs/moons data.csv --calibration other.csv

TensorFlow is imported inside the commands, after the arguments are parsed, so that `--help` and a mistyped option
answer at once. A run is written in one step at the end: if anything goes wrong before, what was at its place is left as
it was. A training saves itself about every minute, and `fit --resume RUN` continues one that was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tfp_ebm.cli.messages import (
    Terminated,
    out_of_memory,
    quiet_tensorflow,
    say,
    termination_raises,
    warnings_on_one_line,
)
from tfp_ebm.cli.options import make_parser

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: what follows the program's name; default: those of this process.

    Returns:
      The exit code: 0; 2 for bad input, after one line on stderr that names it; 3 if `fit` wrote a run that its report
      calls failed; 130 when interrupted, 143 when terminated.

    >>> main(["sample", "no/such/run"])
    2
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = argparse.Namespace()
    try:
        options = make_parser().parse_args(arguments)
        options.command_line = ["tfp-ebm", *arguments]
        with quiet_tensorflow(), warnings_on_one_line(), termination_raises():
            if options.command == "fit":
                from tfp_ebm.cli.fit import fit as command
            elif options.command == "sample":
                from tfp_ebm.cli.sample import sample as command
            elif options.command == "evaluate":
                from tfp_ebm.cli.evaluate import evaluate as command
            else:
                from tfp_ebm.cli.outliers import outliers as command
            is_good = command(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        say("error", f"{error}{_kept(options)}")
        return 2
    except KeyboardInterrupt:
        say("error", f"interrupted.{_kept(options) or ' Nothing was written.'}")
        return 130
    except Terminated:
        say("error", f"terminated.{_kept(options) or ' Nothing was written.'}")
        return 143
    except Exception as error:
        message = out_of_memory(error, options.command)
        if not message:
            raise
        say("error", f"{message}{_kept(options)}")
        return 2
    return 0 if is_good else 3


def _kept(options: argparse.Namespace) -> str:
    """Returns a sentence on what an unfinished command has saved, and how to continue it; empty if it has nothing."""
    chains = getattr(options, "chains", None)
    if chains is not None and chains.exists():
        return " The chains are kept: the same command continues them."
    unfinished = getattr(options, "unfinished", None)
    if unfinished is None or not unfinished.is_resumable:
        return ""
    return f" The training is kept: continue with `tfp-ebm fit --resume {options.out}`."
