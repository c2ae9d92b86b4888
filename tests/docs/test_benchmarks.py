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
    exact = dense.flops("denoising") + 4 * 2 * 3 * (3 * 5 * 6)  # three directions, carried through the middle product
    assert dense.flops("exact") == exact
    images = Case("images", (4, 4, 1), 4, (5,), filters=(2, 3))
    assert [w.shape for w in images.weights()][::2] == [(3, 3, 1, 2), (3, 3, 2, 3), (2 * 2 * 3, 5), (5, 1)]


def test_operations_of_a_case_with_chains_depend_on_the_loss():
    """Twenty kernel steps count in the likelihood, and not in score matching."""
    from maximum_likelihood import LikelihoodCase
    from peers import Case

    case, plain = LikelihoodCase("chains", (3,), 4, (5, 6)), Case("plain", (3,), 4, (5, 6))
    assert case.flops("PCD") == case.flops("calibrated") == (21 * 2 + 6) * plain.flops("denoising") / 6
    for objective in ("denoising", "sliced", "exact", "product"):
        assert case.flops(objective) == plain.flops(objective)


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


def ring(size, number, latency, bandwidth):
    """The time of a ring all-reduce, round by round: twice, each process passes each of its neighbours' parts on."""
    clock = [0.0] * number
    for _ in range(2 * (number - 1)):
        sent = [at + latency + size / number / bandwidth for at in clock]
        clock = [max(clock[i], sent[i - 1]) for i in range(number)]
    return max(clock)


def test_model_of_scaling():
    import scaling

    for number in (1, 2, 5, 64):
        expected = sum(ring(size, number, 3e-4, 7e8) for size in (4, 68_000))
        assert scaling.exchange_time([4, 68_000], number, 3e-4, 7e8) == pytest.approx(expected, rel=1e-12, abs=1e-15)
    times = {size: scaling.exchange_time([4 * size], 2, 3e-4, 7e8) for size in scaling.MESSAGES}
    latency, bandwidth = scaling.constants_of(times)
    assert (latency, bandwidth) == pytest.approx((3e-4, 7e8), rel=1e-4)
    assert scaling.line([64, 128, 256], [2.5, 3.0, 4.0]) == pytest.approx((2.0, 1 / 128))
    # 1 ms and 1 µs a row; a hop of 10 µs: by calculus B per_row / n² = 2 latency, n = sqrt(256e-3 / 20e-6) = 113
    constants = ([0.0], 1e-3, 1e-6, 1e-5, 1e9)
    assert scaling.best_number(256_000, 4096, *constants)[0] == 128
    assert scaling.best_number(256_000, 8, *constants)[0] == 8
    assert scaling.best_number(20, 64, *constants)[0] == 1
    # 1 ms + 1000 rows = 2 ms of work; 2 (n - 1) 10 µs of exchange reach that at n = 101
    assert scaling.last_efficient(1000, 4096, *constants) == 64


@pytest.mark.slow
def test_a_step_alone_exchanges_nothing():
    import scaling
    import tensorflow as tf

    found = scaling.step_seconds(2, 4, 8, tf.distribute.get_strategy())
    assert found["messages"] == [] and 0 < found["spread"][0] <= found["seconds"] <= found["spread"][1]
