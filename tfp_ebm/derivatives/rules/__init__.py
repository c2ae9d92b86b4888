"""Rules for the propagation of second-order jets through Keras layers, one module per family, registered on import."""

from tfp_ebm.derivatives.rules import convolution, dense, merging, normalization, operators, shaping

__all__ = ["convolution", "dense", "merging", "normalization", "operators", "shaping"]
