"""Known distributions, most on the plane, with exact `log_prob`, exact sampler and exact moments.

A learned energy can only be evaluated against a known density. Every target here is therefore a `tfd.Distribution`
whose density is exact. There are five constructions:

- **mixtures of round Gaussians** Σₖ wₖ N(x; mₖ, s²I): two and eight Gaussians;
- **thick curves**: a point c(u) of a curve, u ~ U(0, 1), plus noise N(0, s²I). The density ∫ N(x; c(u), s²I) du is
  smooth in u at the scale s, so 160 Gauss-Legendre nodes per smooth piece give it to rounding, again as a mixture of
  round Gaussians: two moons, swiss roll;
- **bent Gaussians**: x₁ ~ N(m, s²), x₂ | x₁ ~ N(a x₁² + b, (t exp(c x₁))²): banana, Rosenbrock, funnel;
- **area-preserving maps and symmetries**: rings (uniform angle, Gaussian radius), pinwheel (Gaussian arms, each
  point rotated by an angle that depends on its radius, a map of Jacobian one), checkerboard (uniform on squares);
- **separated modes**, whose exact shares judge a sampler: GMM-40, two Gaussians of unequal width in any number of
  coordinates, many double wells.

Each target draws the same sample for the same seed, also for an int seed (which TFP itself treats as stateful). The
targets work in graphs, under XLA and with any number of leading dimensions, in float32 or float64.
"""

from tfp_ebm.targets.gaussian import banana, eight_gaussians, funnel, rosenbrock, swiss_roll, two_gaussians, two_moons
from tfp_ebm.targets.modes import gmm40, many_well, two_widths
from tfp_ebm.targets.symmetric import checkerboard, pinwheel, rings
from tfp_ebm.targets.target import Target

__all__ = [
    "Target",
    "banana",
    "checkerboard",
    "eight_gaussians",
    "funnel",
    "gmm40",
    "many_well",
    "pinwheel",
    "rings",
    "rosenbrock",
    "swiss_roll",
    "two_gaussians",
    "two_moons",
    "two_widths",
]
