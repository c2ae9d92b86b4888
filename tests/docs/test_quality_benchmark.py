"""The quality benchmark's KL, total variation and draws against closed forms, and its results for models that fail."""

import importlib
import json
import math
import pathlib

import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def quality():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("quality")


@pytest.fixture(scope="module")
def square():
    """Nodes of ±12 a tenth apart, and the area of a cell."""
    axis = np.linspace(-12, 12, 241)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2), 0.1**2


def normal(x, shift=0.0, sd=1.0):
    """log N(x; (shift, 0), sd²I)."""
    return -0.5 * np.square((x - [shift, 0.0]) / sd).sum(-1) - 2 * math.log(sd) - math.log(2 * math.pi)


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_a_shift_in_closed_form(quality, square, shift):
    """KL = a²/2, TV = erf(a/√8), log Z = the constant that the energy has; on a grid, to 1e-8 and 1e-3 (a kink)."""
    nodes, cell = square
    result = quality.judge(normal(nodes), 5.0 - normal(nodes, shift), nodes, cell)
    assert result["kl"] == pytest.approx(shift**2 / 2, abs=1e-8)
    assert result["grid_total_variation"] == pytest.approx(math.erf(shift / math.sqrt(8)), abs=1e-3)
    assert result["log_normalizer"] == pytest.approx(-5.0, abs=1e-8)
    assert result["at_rim"] < 1e-12


@pytest.mark.parametrize("sd", [0.7, 1.3])
def test_a_scale_in_closed_form_and_planted_mistakes(quality, square, sd):
    """KL(p‖q) = 2 log s + 1/s² − 1. KL(q‖p), a forgotten area of the cell, and a normaliser taken as 1 are not it."""
    nodes, cell = square
    log_p, energies = normal(nodes), 2.0 - normal(nodes, sd=sd)
    truth = 2 * math.log(sd) + 1 / sd**2 - 1
    assert quality.judge(log_p, energies, nodes, cell)["kl"] == pytest.approx(truth, abs=1e-8)
    reverse = quality.judge(normal(nodes, sd=sd), -log_p, nodes, cell)["kl"]
    assert reverse == pytest.approx(sd**2 - 1 - 2 * math.log(sd), abs=1e-8) and abs(reverse - truth) > 0.04
    assert abs(quality.judge(log_p, energies, nodes, 1.0)["kl"] - truth) > 1.0
    assert abs(np.sum(np.exp(log_p) * (log_p + energies)) * cell - truth) > 1.0


def test_mass_far_from_the_data_counts(quality, square):
    """Half of the model is at (8, 0): KL = log 2, TV = ½; what lies within ±4 alone would be a perfect model."""
    nodes, cell = square
    log_p = normal(nodes, sd=0.5)
    energies = -np.logaddexp(log_p, normal(nodes, 8.0, 0.5))
    result = quality.judge(log_p, energies, nodes, cell)
    assert result["kl"] == pytest.approx(math.log(2), abs=1e-6)
    assert result["grid_total_variation"] == pytest.approx(0.5, abs=1e-6)
    near = np.abs(nodes).max(1) <= 4
    assert quality.judge(log_p[near], energies[near], nodes[near], cell)["kl"] < 1e-6


@pytest.mark.slow
def test_the_grid_fits_the_targets(quality):
    """No node is on an edge of the checkerboard, whose mass is 1 to rounding; so is that of the narrow rings."""
    nodes, cell = quality.grid()
    for name in ("checkerboard", "rings"):
        _, log_p = quality.target_of(name)
        assert np.sum(np.exp(log_p) * cell) == pytest.approx(1.0, abs=1e-6)
    assert not (np.abs(nodes - np.round(nodes)) < 1e-9).any()
    assert cell.sum() == pytest.approx(24.0**2)  # neither gap nor overlap where the fine part begins


def test_a_thin_layer_at_the_edge_of_a_square(quality):
    """Data uniform on [−1, 1]², the model's density σ((1 − |xᵢ|)/w) in each coordinate, w = .01, whose integral is
    2w·log(1 + exp(1/w)) = 2: KL = 2wπ²/12 = .01645. Centres 1/32 apart are off by more than a tenth of it."""
    width = 0.01
    truth = 2 * width * math.pi**2 / 12

    def kl(nodes, cell):
        inside = np.abs(nodes).max(1) < 1
        energies = np.logaddexp(0.0, (np.abs(nodes) - 1) / width).sum(1)
        return quality.judge(np.where(inside, -math.log(4), -np.inf), energies, nodes, cell)["kl"]

    assert kl(*quality.grid()) == pytest.approx(truth, rel=0.02)
    coarse = quality.centres(12.0, 768)
    assert abs(kl(coarse, 32.0**-2) / truth - 1) > 0.1


def test_energies_that_are_no_density(quality, square):
    nodes, cell = square
    flat = quality.judge(normal(nodes), np.zeros(len(nodes)), nodes, cell)
    assert flat["at_rim"] == pytest.approx(1 - (221 / 241) ** 2)  # 221 of 241 nodes are within ±11
    assert flat["kl"] == pytest.approx(math.log(24.1**2) - math.log(2 * math.pi) - 1, abs=1e-6)
    for bad in (np.nan, -np.inf):
        energies = np.zeros(len(nodes))
        energies[7] = bad
        assert all(math.isnan(value) for value in quality.judge(normal(nodes), energies, nodes, cell).values())
    nowhere = np.where(nodes[:, 0] > 0, np.inf, 0.0)  # no mass where half of the data is
    assert quality.judge(normal(nodes), nowhere, nodes, cell)["kl"] == np.inf


def test_draws_follow_the_density(quality, square):
    """40 000 draws of N((1, 0), .25): means within 4 errors of .0025, the sd, to which a cell adds 5e-4, within 4 of
    .0018; false alarms 1 in 4000. Draws from the wrong energy, of sd .45, are 28 errors away."""
    nodes, cell = square
    x = quality.draws(-normal(nodes, 1.0, 0.5), nodes, cell, 40_000, seed=0)
    assert np.abs(x.mean(0) - [1.0, 0.0]).max() < 4 * 0.0025
    assert np.abs(x.std(0) - 0.5).max() < 4 * 0.0018 + 1e-3
    wrong = quality.draws(-normal(nodes, 1.0, 0.45), nodes, cell, 40_000, seed=0)
    assert np.abs(wrong.std(0) - 0.5).min() > 10 * 0.0018


def made_up(kl, contestant="tfp_ebm", method="DSM", seed=0, at_rim=0.0):
    return {"contestant": contestant, "method": method, "target": "rings", "seed": seed, "kl": kl, "at_rim": at_rim}


def verdict(quality, runs, *words):
    """How the one line of the verdicts ends that has these words."""
    (line,) = [line for line in quality.verdicts(runs).splitlines() if all(word in line for word in words)]
    return line.rpartition(": ")[2]


def test_what_the_tables_say(quality, tmp_path):
    """Medians with their range, bounds as bounds, and no verdict softened: a failed seed fails its method."""
    ours = [made_up(value, seed=seed) for seed, value in enumerate([0.4, 0.1, 0.2])]
    theirs = [made_up(0.15, "ebmkit", seed=seed, at_rim=0.5) for seed in range(3)]
    table = quality.table(ours + theirs, "kl")
    assert ".2" in table and "| tfp_ebm DSM |  |  |  |  |  | 0.2 (0.1–0.4) |" in table
    assert "≥ 0.15" in table
    assert verdict(quality, ours + theirs, "0.2", "ebmkit", "0.15") == "FALLS SHORT"
    assert verdict(quality, ours + theirs, "rings", "0.2", "aim") == "FALLS SHORT"
    assert verdict(quality, [*ours, made_up(0.3, "ebmkit")], "0.2", "ebmkit", "0.3") == "holds"
    failed = [made_up(float("nan"), seed=seed) for seed in range(2)] + [made_up(0.001, seed=2)]
    assert verdict(quality, [*failed, made_up(0.3, "ebmkit")], "∞", "ebmkit", "0.3") == "FALLS SHORT"
    assert "| ∞ (.0010–∞) |" in quality.table(failed, "kl")
    quality.save(tmp_path / "runs.json", ours)
    assert json.loads((tmp_path / "runs.json").read_text()) == ours
    assert [path.name for path in tmp_path.iterdir()] == ["runs.json"]
