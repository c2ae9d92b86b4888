"""How second-order jets pass through the layers of Keras: one module per family; importing them fills the table."""

from tfp_ebm.derivatives.rules import convolution, dense, merging, normalization, operators, shaping

__all__ = ["convolution", "dense", "merging", "normalization", "operators", "shaping"]
