"""The command line: `python -m tfp_ebm` and `tfp-ebm`."""

from tfp_ebm.cli.commands import main

__all__ = ["main"]
