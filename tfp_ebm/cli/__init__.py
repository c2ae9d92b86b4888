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
    signals_raise,
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
    raised: set[type[BaseException]] = set()
    try:
        options = make_parser().parse_args(arguments)
        options.command_line = ["tfp-ebm", *arguments]
        with quiet_tensorflow(), warnings_on_one_line(), signals_raise() as raised:
            if options.command == "fit":
                from tfp_ebm.cli.fit import fit as command
            elif options.command == "sample":
                from tfp_ebm.cli.sample import sample as command
            elif options.command == "evaluate":
                from tfp_ebm.cli.evaluate import evaluate as command
            else:
                from tfp_ebm.cli.outliers import outliers as command
            is_good = command(options)
    except (KeyboardInterrupt, Terminated) as error:
        return _stopped({type(error)}, "", options)
    except Exception as error:
        if raised:  # C code may turn an interrupt into another exception
            return _stopped(raised, f" ({type(error).__name__}: {error})".splitlines()[0], options)
        is_input = isinstance(error, ValueError | TypeError | OSError | ImportError)
        message = str(error) if is_input else out_of_memory(error, options.command)
        if not message and not is_input:
            raise
        say("error", f"{message}{_kept(options)}")
        return 2
    return 0 if is_good else 3


def _stopped(raised: set[type[BaseException]], detail: str, options: argparse.Namespace) -> int:
    """Says that a signal has ended the command, and returns the exit code."""
    word, code = ("terminated", 143) if Terminated in raised else ("interrupted", 130)
    say("error", f"{word}{detail}.{_kept(options) or ' Nothing was written.'}")
    return code


def _kept(options: argparse.Namespace) -> str:
    """Returns a sentence on what an unfinished command has saved, and how to continue it; empty if it has nothing."""
    chains = getattr(options, "chains", None)
    if chains is not None and chains.exists():
        return " The chains are kept: the same command continues them."
    unfinished = getattr(options, "unfinished", None)
    if unfinished is None or not unfinished.is_resumable:
        return ""
    return f" The training is kept: continue with `tfp-ebm fit --resume {options.out}`."
