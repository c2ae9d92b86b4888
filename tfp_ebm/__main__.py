"""`python -m tfp_ebm`."""

import sys

from tfp_ebm.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
