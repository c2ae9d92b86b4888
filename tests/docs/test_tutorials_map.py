"""The map from the note to notebooks and code, and the errata: nothing is left out, and every link leads somewhere."""

import ast
import functools
import json
import pathlib
import re

import pytest

TUTORIALS = pathlib.Path(__file__).parents[2] / "tutorials"
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
WANTED = (
    {f"eq. {n}" for n in range(1, 66)}
    | {f"Figure {n}" for n in range(1, 8)}
    | {"Definition 1", "Definition 2", "Theorem 2.1", "Table 1"}
)
# The facts that the note states without a number, as the map names them.
FACTS = {
    '"every system seeks minimum energy"',
    "any network is an energy",
    "irreducible and aperiodic chains",
    "the three steps of HMC",
    "discrete data, and the boundary",
    "small σ against the variance",
    "Z is a trainable scalar",
    "the noise is standard normal",
    "all models are sampled by MCMC",
}
# The slips that the errata must list, and the equations that are right and must not be listed.
SLIPS = {
    *("Property 1", "Property 2", "Property 3", "Theorem 2.1", "§2.1.1", "§2.1.2", "§2.1.3", "§3", "§3.2", "Table 1"),
    *(f"Figure {n}" for n in (3, 6, 7)),
    *(f"eq. {n}" for n in (4, 12, 17, 19, 23, 29, 31, 32, 33, 37, 38, 41, 42, 43, 44, 53, 54, 56, 57, 63, 64)),
}
NUMBERS_OF_RIGHT = [
    *(*range(1, 4), *range(5, 10), 11, 13, 15, 16, 18, *range(20, 23), *range(24, 29), 30, *range(34, 37)),
    *(39, 40, 45, 52, 55, *range(58, 62), 65),
]
RIGHT = {f"eq. {n}" for n in NUMBERS_OF_RIGHT}


def rows(text):
    """The body rows of the tables of a page, as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not set(line) <= set("|-: ")]


def things(cell):
    """What a first cell speaks of: "eqs. 5-7" is three equations; commas part them."""
    found, kind = set(), ""
    for part in cell.split(","):
        match = re.fullmatch(
            r"(eqs?\.|Figures?|Definitions?|Theorem|Table|Property|)\s*(§?[\d.]+)(?:[-–](\d+))?", part.strip()
        )
        if not match:
            continue
        kind = match.group(1).rstrip("s") if match.group(1).startswith(("Fig", "Def")) else match.group(1) or kind
        kind = "eq." if kind in ("eqs.", "eq.") else kind
        first, last = match.group(2), match.group(3)
        numbers = range(int(first), int(last) + 1) if last else [first]
        found |= {number if str(number).startswith("§") else f"{kind} {number}" for number in numbers}
    return found


@functools.cache
def headings(notebook):
    """The anchors of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    found = [match.strip() for text in texts for match in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {heading.replace(" ", "-") for heading in found}


@functools.cache
def definitions(path):
    """Functions, classes and `Class.method` of a source file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def dead(text, folder=TUTORIALS):
    """The links of a page that lead nowhere: no such file, heading of a notebook, or name in a source file."""
    found = []
    for label, target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        path = folder / path
        is_good = path.is_file()
        if is_good and path.suffix == ".ipynb" and anchor:
            is_good = anchor in headings(path)
        elif is_good and path.suffix == ".py":
            is_good = label.strip("`") in definitions(path) | {path.name}
        if not is_good:
            found.append(target)
    return found


def linked_rows(page):
    """The rows of a page that link to a section of a notebook."""
    text = (TUTORIALS / page).read_text(encoding="utf-8")
    return [row for row in rows(text) if any(".ipynb#" in target for _, target in LINK.findall(" ".join(row)))]


@pytest.mark.parametrize(("page", "wanted"), [("map.md", WANTED), ("errata.md", SLIPS)])
def test_pages_speak_of_everything_and_link_to_it(page, wanted):
    spoken = set().union(*(things(row[0]) for row in linked_rows(page)))
    assert wanted - spoken == set()
    text = (TUTORIALS / page).read_text(encoding="utf-8")
    assert len(LINK.findall(text)) >= 20 and dead(text) == []


def test_the_map_has_the_facts_without_a_number():
    assert FACTS - {row[0] for row in linked_rows("map.md")} == set()


def test_the_map_has_a_row_for_each_method_of_table_1():
    found = {LINK.findall(row[3])[0][0].strip("`") for row in linked_rows("map.md") if row[0] == "Table 1"}
    assert found == {
        *("PersistentContrastiveDivergence", "ScoreMatching", "DenoisingScoreMatching", "SlicedScoreMatching"),
        "NoiseContrastiveEstimation",
    }


def test_the_errata_list_no_right_equation():
    spoken = set().union(*(things(row[0]) for row in linked_rows("errata.md")))
    assert spoken & RIGHT == set() and WANTED - RIGHT - spoken == {
        *("Figure 1", "Figure 2", "Figure 4", "Figure 5", "Definition 1", "Definition 2")
    }
    assert things("eqs. 24-28, 37-38") & RIGHT == {f"eq. {n}" for n in range(24, 29)}


def test_planted_slips_are_seen():
    assert things("eqs. 5-7, 9") == {"eq. 5", "eq. 6", "eq. 7", "eq. 9"}
    assert things("Figures 2-3, Theorem 2.1, §3") == {"Figure 2", "Figure 3", "Theorem 2.1", "§3"}
    text = (TUTORIALS / "map.md").read_text(encoding="utf-8")
    notebook = re.search(r"\(([^)]+\.ipynb)#[^)]+\)", text).group(1)
    source = re.search(r"\((\.\./[^)]+\.py)\)", text).group(1)
    assert dead(f"[a]({notebook}#No-such-heading) [`NoSuchName`]({source}) [b](no_such_file.py)") == [
        f"{notebook}#No-such-heading", source, "no_such_file.py"
    ]  # fmt: skip
