"""The runs of `golden.py` equal the stored ones, up to the rounding of another machine.

A rearranged loop, another seed or another order of draws changes every number by about its own size. Another machine
rounds float32 differently in the last bits, 6e-8 of a number; a run is at most a few hundred operations deep and its
targets contract, so that differences of some 1e-6 are left after it. 1e-4 lies between the two. A proposal accepted on
one machine and rejected on the other would exceed it: with differences of 1e-6 in log α that happens in one of 1e6
decisions, and all runs together make less than 2e4 of them.
"""

import golden
import numpy as np
import pytest

STORED = golden.stored()


def is_close(run, stored):
    return (run.dtype, run.shape) == (stored.dtype, stored.shape) and np.allclose(run, stored, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_runs_are_those_of_the_file():
    """One test for all: they share compiled functions."""
    runs = golden.runs()
    assert set(runs) == set(STORED)
    differ = [name for name in sorted(runs) if not is_close(runs[name], STORED[name])]
    assert differ == [], "these runs changed; if they should have, `python -m tests.golden` stores them anew"


def test_another_seed_or_step_size_is_seen():
    """Negative controls: the comparison accepts the run itself, and neither another seed nor one per cent of a step."""
    kernel, stored = golden.kernels()["mala"], STORED["mala_6"]
    assert is_close(golden.chains(kernel), stored)
    assert not is_close(golden.chains(kernel, seed=4), stored)
    assert not is_close(golden.chains(type(kernel)(1.01 * kernel.step_size)), stored)
