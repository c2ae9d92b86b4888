"""`python -m tfp_ebm`."""

import sys

from tfp_ebm.cli import main

if __name__ == "__main__":
    sys.exit(main())
