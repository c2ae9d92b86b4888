"""The README and the pages beside it: two commands, live links, pictures with words, an example that runs."""

import importlib
import json
import pathlib
import re
import warnings

import numpy as np
import pytest

from tfp_ebm import cli
from tfp_ebm.cli import options as cli_options

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    *("README.md", "BENCHMARKS.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/decisions.md"),
    *("docs/scaling.md", "docs/reliability.md"),
    *("tutorials/README.md", "tutorials/map.md", "tutorials/errata.md"),
]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
TITLE = "Basics of Energy Based Models"


def blocks(text, language):
    """The code blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def dead(text, folder):
    """The local links of a page that lead to no file, and the pictures without words."""
    found = []
    for picture, words, target in LINK.findall(text):
        is_remote = target.startswith("https://")
        if not is_remote and not (folder / target.partition("#")[0]).exists():
            found.append(target)
        if picture and not words.strip():
            found.append(f"no words: {target}")
    return found


def test_there_are_two_commands_and_the_checks_run_the_second():
    first, second = blocks(README, "bash")
    assert len(first.splitlines()) == len(second.splitlines()) == 1
    assert first.strip().endswith("-m tfp_ebm fit two_moons --out runs/moons")
    assert second.strip() in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_and_pictures_have_words(page):
    path = ROOT / page
    assert dead(path.read_text(encoding="utf-8"), path.parent) == []


def test_planted_dead_links_are_seen():
    planted = "[a](no/such/file.md) ![](tutorials/figures/two_moons.png) [b](README.md#start-here)"
    assert dead(planted, ROOT) == ["no/such/file.md", "no words: tutorials/figures/two_moons.png"]


@pytest.mark.parametrize("page", ["README.md", "tutorials/README.md", "tutorials/map.md", "tutorials/errata.md"])
def test_the_note_is_named(page):
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert TITLE in text and "July 28, 2022" in text


def test_every_tutorial_is_listed():
    names = {path.name for path in (ROOT / "tutorials").glob("*.ipynb")}
    for page in ("README.md", "tutorials/README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert names - {pathlib.Path(target).name for _, _, target in LINK.findall(text)} == set()


def shortened(code):
    """The README's example with less data, fewer epochs and fewer samples."""
    for long, short in (("50_000", "2_000"), ("epochs=20", "epochs=1, verbose=0"), ("p.sample(1_000", "p.sample(8")):
        assert code.count(long) == 1
        code = code.replace(long, short)
    return code


@pytest.mark.slow
def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(README, "python")
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that so short a training and such short chains cannot be trusted
        exec(shortened(code), names)
    assert names["samples"].shape == (8, 2) and names["p"].log_prob(names["x"][:5]).shape == (5,)
    with pytest.raises(AttributeError, match="two_suns"):
        exec(shortened(code).replace("two_moons(", "two_suns("), {})


@pytest.mark.long
def test_the_picture_is_what_its_command_draws(tmp_path, monkeypatch):
    """Settings of the picture against those that the command reports; a short run without chains resolves them all."""
    module = importlib.import_module("tfp_ebm.cli.fit")
    monkeypatch.setattr(module, "draw", lambda *given: (np.zeros((8, 2), "float32"), {"sampler": "hmc"}))
    recorded = json.loads((ROOT / "tutorials" / "figures" / "two_moons.json").read_text(encoding="utf-8"))
    command = ["fit", "two_moons", "--out", str(tmp_path / "run")]
    defaults = vars(cli_options.make_parser().parse_args(command))
    defaults |= {name: module._TRAINING[name] for name in ("steps", "units", "batch_size")}
    short = {"rows": 6000, "steps": 2}
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in short.items()]
    if cli.main([*command, "--quiet", *arguments]) not in (0, 3):  # 3: so short a training is not good
        raise RuntimeError("the command failed")
    reported = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))["settings"]
    expected = reported | {name: defaults[name] for name in short}
    assert recorded == expected
    assert recorded != expected | {"loss": "another"}
