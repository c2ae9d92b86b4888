"""`networks.autoregressive` with conditions: E(x; c) = −log p(x | c), by the energies of targets given inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfp_ebm.arguments import check_event_shape
from tfp_ebm.networks.conditioning import check_sizes
from tfp_ebm.networks.targets import RegressionEnergy, TargetEnergy


def conditional_autoregressive(
    event_shape: Any,
    condition_shape: Any,
    units: Sequence[int],
    num_components: int,
    dtype: Any,
    seed: Any,
    refused: Mapping[str, Any],
) -> RegressionEnergy:
    """Returns the network −log p(x | c) of x and c, which is normalised for every c and draws exactly.

    Args:
      event_shape, condition_shape: of vectors; () for conditions that are numbers.
      units, num_components, dtype, seed: as for `autoregressive`.
      refused: further arguments of `autoregressive`, which must be None.

    Raises:
      TypeError, ValueError: if a shape is not that of a vector, or another argument is given.

    >>> network = conditional_autoregressive([2], [3], [8], 1, None, 0, {})
    >>> network.input_shape
    [(None, 2), (None, 3)]
    """
    for name, value in refused.items():
        if value is not None:
            raise ValueError(f"`{name}` must not be given with `condition_shape`, got {value!r}.")
    shape, given = check_event_shape(event_shape), check_sizes("condition_shape", condition_shape)
    if len(shape) != 1 or len(given) > 1:
        raise ValueError(
            f"`event_shape` and `condition_shape` must be those of vectors, got {list(shape)} and {list(given)}."
        )
    options = {"num_components": num_components, "dtype": dtype, "seed": 0 if seed is None else seed}
    return RegressionEnergy([TargetEnergy(given[0] if given else 1, shape[0], units, **options)])
