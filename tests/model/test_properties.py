"""Random architectures, event shapes, dtypes, batch sizes and leading dimensions, from energy to export.

A few of the cases that `benchmarks/reliability/fuzz.py --parts models` draws in numbers.
"""

import pathlib
import tempfile

import architectures
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tfp_ebm as ebm


@pytest.mark.long
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
@given(st.randoms(use_true_random=False))
def test_any_model_keeps_its_promises(rng):
    with tempfile.TemporaryDirectory() as folder:
        architectures.check(architectures.random_case(rng), pathlib.Path(folder) / "model")


CASE = {
    **{"event": (2,), "policy": "float32", "blocks": ["norm"], "activation": "tanh", "units": 3, "tilted": False},
    **{"vector_output": True, "rows": 7, "batch": 5, "leading": (2, 3), "offset": 0.0, "scale": 1.0},
    **{"loss": "denoising", "seed": 3},
}


def test_the_check_sees_planted_faults(tmp_path, monkeypatch):
    """The control: leading dimensions in another order, a score of the wrong sign."""
    energy = ebm.EnergyModel.energy

    def reordered(self, x, condition=None):
        values = energy(self, x, condition)
        return values[::-1] if len(np.shape(x)) > 2 else values

    with monkeypatch.context() as patch:
        patch.setattr(ebm.EnergyModel, "energy", reordered)
        with pytest.raises(AssertionError, match="leading dimensions"):
            architectures.check(CASE, tmp_path / "a")
    score = ebm.EnergyModel.score
    monkeypatch.setattr(ebm.EnergyModel, "score", lambda self, x, condition=None: -score(self, x, condition))
    with pytest.raises(AssertionError, match="score: gradient"):
        architectures.check(CASE, tmp_path / "b")
