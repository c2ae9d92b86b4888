"""The programs that `benchmarks/gpu.py` writes: arguments and results are those of TensorFlow's own step.

JAX runs them (`benchmarks/gpu_run.py`), and is not among the packages of the tests.
"""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _folder(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def small_case():
    import gpu

    return dataclasses.replace(gpu.CASES["2-128"], batch=8, units=(5,), num_steps=2)


def arrays_of(entry, folder):
    with np.load(folder / entry["arrays"]) as arrays:
        return (
            [arrays[f"argument_{i}"] for i in range(entry["num_arguments"])],
            [arrays[f"result_{i}"] for i in range(entry["num_results"])],
        )


def agreement(results, expected):
    """The smallest share of entries that agree, as the runner computes it."""
    from gpu_run import TOLERANCE, share_of_agreement

    pairs = zip(results, expected, strict=True)
    return min(share_of_agreement(np.asarray(a, "float64"), b, TOLERANCE["float32"]) for a, b in pairs)


@pytest.mark.slow
def test_a_step_has_the_arguments_and_results_of_tensorflow(tmp_path):
    """The stored arguments are batch and weights of a new model, the stored results those of its step in graph mode.

    The step of a model whose weights are moved by .1 has other results.
    """
    import gpu

    entry = gpu.write(gpu.step_of(small_case(), "denoising", "float32"), tmp_path)
    assert json.loads(json.dumps(entry))["case"]["units"] == [5] and entry["flops"] > 0
    assert (tmp_path / entry["program"]).stat().st_size > 1000
    arguments, results = arrays_of(entry, tmp_path)
    outputs = [result for result, _ in entry["feedback"]]
    assert outputs == list(range(1, entry["num_results"])) and results[0].shape == ()  # the loss, then new weights

    for moved, agrees in ((0.0, True), (0.1, False)):
        program = gpu.step_of(small_case(), "denoising", "float32")
        function = tf.function(program.function, autograph=False)
        weights = gpu.captured(function.get_concrete_function(*program.arguments))
        for stored, value in zip(arguments, (*program.arguments, *weights), strict=True):
            np.testing.assert_array_equal(stored, np.asarray(value))
        for weight in weights:
            if weight.dtype.is_floating:
                weight.assign(weight + moved)
        loss = function(*program.arguments)
        after = [weights[argument - 1] for _, argument in entry["feedback"]]
        assert (agreement([loss, *after], results) == 1.0) == agrees


def test_chains_and_their_peers_have_the_same_case():
    """A hundred steps of chains in graph mode are finite; the runner rebuilds the case from the list of programs."""
    import gpu
    import gpu_run
    import samplers

    program = gpu.chain_of(small_case(), "MALA", "float32")
    states, means = tf.function(program.function, autograph=False)(*program.arguments)
    assert states.shape == means.shape == (8, 2) and np.isfinite(states).all()
    entry = json.loads(json.dumps({"kind": "chain", "case": dataclasses.asdict(program.case)}))
    case = gpu_run.case_of(entry)
    assert case == program.case and isinstance(case, samplers.SamplingCase)
    assert program.flops == 100 * case.flops("MALA")


def test_agreement_is_the_share_of_equal_entries():
    from gpu_run import share_of_agreement

    expected = np.array([1.0, -1.0, 0.0, 2.0], "float32")
    assert share_of_agreement(expected.astype("float64"), expected, 1e-3) == 1.0
    assert share_of_agreement(expected + np.array([0.0, 0.5, 0.0, 0.0]), expected, 1e-3) == 0.75
    assert share_of_agreement(np.full(4, np.nan), expected, 1e-3) == 0.0
    assert share_of_agreement(np.array([1, 3]), np.array([1, 2]), 1e-3) == 0.5


def test_wrong_arguments_are_refused():
    import gpu

    with pytest.raises(RuntimeError, match=r"denoising: the arrays have shapes \[\(3, 2\)\]"):
        gpu.check_shapes(Named("denoising"), [(3, 2)], [Shape((2, 3))])


@dataclasses.dataclass
class Named:
    name: str


@dataclasses.dataclass
class Shape:
    dimensions: tuple
