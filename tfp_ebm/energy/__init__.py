"""Energies: the energy function, the standardization of data, and base distributions."""

from tfp_ebm.backend import check_backend

check_backend()  # for the command line, which imports the package in parts
