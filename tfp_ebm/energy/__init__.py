"""What an energy is: its function, the standardization of its data, and its base distribution."""

from tfp_ebm.backend import check_backend

check_backend()  # for the command line, which imports the package in parts
