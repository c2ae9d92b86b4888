"""The benchmarks' contestants of this package run, on small cases: the peers and the times are for the benchmarks."""

import dataclasses
import importlib
import pathlib

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture(autouse=True)
def _folder(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_without_the_peers(name):
    importlib.import_module(name)


def test_case_has_the_weights_of_its_network():
    from peers import Case

    dense = Case("dense", (3,), 4, (5, 6))
    assert [w.shape for w in dense.weights()] == [(3, 5), (5,), (5, 6), (6,), (6, 1)]
    assert dense.flops("denoising") == 4 * 2 * 6 * (3 * 5 + 5 * 6 + 6)
    images = Case("images", (4, 4, 1), 4, (5,), filters=(2, 3))
    assert [w.shape for w in images.weights()][::2] == [(3, 3, 1, 2), (3, 3, 2, 3), (2 * 2 * 3, 5), (5, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["denoising", "multiscale", "sliced", "exact", "chunked"])
def test_steps_of_score_matching_run(objective):
    from peers import Case
    from score_matching import tfp_ebm

    run = tfp_ebm(Case("small", (4,), 8, (5,), chunk_size=2), objective, "graph")
    assert np.isfinite(run(2))


@pytest.mark.long
def test_steps_of_maximum_likelihood_run():
    from maximum_likelihood import CASES, tfp_ebm

    case = dataclasses.replace(CASES[0], batch=8, units=(5,), num_steps=2)
    for objective in ("plain", "calibrated"):
        assert np.isfinite(tfp_ebm(case, objective, "graph")(2))


@pytest.mark.parametrize("sampler", ["ULA", "MALA", "HMC"])
def test_chains_of_the_samplers_run(sampler, monkeypatch):
    import samplers

    monkeypatch.setitem(samplers.STEPS_PER_CALL, sampler, 4)
    run = samplers.tfp_ebm(samplers.SamplingCase("small", (2,), 8, (5,)), sampler, False)
    assert np.isfinite(run(4))
