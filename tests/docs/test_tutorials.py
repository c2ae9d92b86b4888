"""The tutorials: all there, notebooks in step with their sources, pictures that show something, claims that hold."""

import base64
import io
import json
import pathlib
import re

import jupytext
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
TUTORIALS = ROOT / "tutorials"

NAMES = [
    "01_energies_as_distributions",
    "02_monte_carlo_and_markov_chains",
    "03_metropolis_hastings",
    "04_hamiltonian_monte_carlo",
    "05_langevin_and_fokker_planck",
    "06_maximum_likelihood",
    "07_score_matching",
    "08_noise_contrastive_estimation",
    "09_side_by_side",
    "10_in_practice",
    "11_densities_of_tables",
    "12_a_users_own_table",
    "13_noise_levels",
    "14_conditional_densities",
    "15_composition",
]
ROW = re.compile(r"^(.+?) +\| +(\S+) \| (.+?) +\| holds$", re.MULTILINE)
NUMBER = r"([-+\d.e]+)"


def notebook(name):
    """The executed notebook as it is in the repository."""
    return json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8"))


def cells_of(content):
    """Kind and text of every cell of a notebook."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in content["cells"]]


def cells_of_source(text):
    """Kind and text of every cell of a percent-format source."""
    return [(cell.cell_type, cell.source) for cell in jupytext.reads(text, fmt="py:percent").cells]


def pictures(content):
    """Every picture that a notebook shows."""
    outputs = [output for cell in content["cells"] for output in cell.get("outputs", [])]
    return [
        base64.b64decode(output["data"]["image/png"]) for output in outputs if "image/png" in output.get("data", {})
    ]


def is_blank(png):
    """Whether a picture shows next to nothing: fewer than one pixel in two hundred differs from the commonest."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.int64) @ [1, 256, 65536]
    _, counts = np.unique(pixels, return_counts=True)
    return 1.0 - counts.max() / pixels.size < 0.005


def claims(content):
    """The rows of the table that a tutorial ends in, as (name, value, claim)."""
    outputs = [output for cell in content["cells"][-2:] for output in cell.get("outputs", [])]
    return ROW.findall("".join("".join(output.get("text", [])) for output in outputs))


def holds(value, claim):
    """Whether a printed claim is true of the printed value; rounding to six digits is forgiven."""
    value = float(value)
    if match := re.fullmatch(rf"= {NUMBER} ± {NUMBER}", claim):
        truth, tolerance = map(float, match.groups())
        return abs(value - truth) <= tolerance + 1e-5 * (abs(value) + abs(truth))
    bound = float(re.fullmatch(rf"(?:<=|>=) {NUMBER}", claim).group(1))
    slack = 1e-5 * (abs(value) + abs(bound))
    return value <= bound + slack if claim.startswith("<=") else value >= bound - slack


def test_all_tutorials_are_there_and_no_other():
    assert [path.stem for path in sorted(TUTORIALS.glob("[0-9]*.py"))] == NAMES
    assert [path.stem for path in sorted(TUTORIALS.glob("*.ipynb"))] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_in_step_with_its_source(name):
    """After a change of the text alone `build.py --text` brings the notebook into step, without executing it."""
    source = (TUTORIALS / f"{name}.py").read_text(encoding="utf-8")
    is_in_step = cells_of(notebook(name)) == cells_of_source(source)
    assert is_in_step, f"run `python tutorials/build.py --text {name[:2]}`, without --text if code has changed"
    assert cells_of(notebook(name)) != cells_of_source(source.replace("import", "import  ", 1))


@pytest.mark.parametrize("name", NAMES)
def test_notebook_ran_from_top_to_bottom(name):
    cells = [cell for cell in notebook(name)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_figures_show_something(name):
    found = pictures(notebook(name))
    assert found and not any(is_blank(png) for png in found)
    assert (TUTORIALS / f"{name}.ipynb").stat().st_size < 300_000


def test_a_blank_figure_is_seen():
    import matplotlib.pyplot as plt

    for x, blank in (([], True), (range(10), False)):
        figure, axes = plt.subplots()
        if blank:
            axes.axis("off")
        axes.plot(x)
        buffer = io.BytesIO()
        figure.savefig(buffer)
        plt.close(figure)
        assert is_blank(buffer.getvalue()) == blank


@pytest.mark.parametrize("name", NAMES)
def test_final_numbers_hold(name):
    rows = claims(notebook(name))
    assert len(rows) >= 3
    assert [row for row in rows if not holds(*row[1:])] == []


@pytest.mark.parametrize("name", NAMES)
def test_public_interface_was_enough(name):
    source = (TUTORIALS / f"{name}.py").read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.])(?:ebm|tfp|tf|keras|model|network|loss|p)(?:\.\w+)*\._[a-z]\w*", source) == []
    assert "tfp_ebm._" not in source and "import tfp_ebm as ebm" in source


def test_ledger_sees_what_does_not_hold(capsys):
    from tfp_ebm.lesson import Ledger

    ledger = Ledger()
    ledger.equal("log Z", 1.8379, 1.83788, 0.001)
    ledger.at_most("KL", 0.002, 0.005)
    ledger.at_least("acceptance", 0.6, 0.5)
    ledger.close()
    rows = ROW.findall(capsys.readouterr().out)
    assert [name for name, *_ in rows] == ["log Z", "KL", "acceptance"] and all(holds(*row[1:]) for row in rows)
    assert not holds("1.85", rows[0][2]) and not holds("0.006", rows[1][2]) and not holds("0.4", rows[2][2])
    for value in (1.85, float("nan")):
        ledger = Ledger()
        ledger.equal("log Z", value, 1.83788, 0.001)
        with pytest.raises(AssertionError, match="log Z"):
            ledger.close()
    with pytest.raises(AssertionError, match="nothing"):
        Ledger().close()
