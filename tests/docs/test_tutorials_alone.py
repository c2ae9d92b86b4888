"""The tutorials' notebooks run alone in any folder, and their text can be copied without executing them."""

import ast
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TUTORIALS = ROOT / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))


def code_of(path):
    """The code of a notebook, as one script."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def imported(code):
    """The top-level modules that a script imports."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_needs_a_file_beside_it(path):
    beside = {source.stem for source in TUTORIALS.glob("*.py")}
    assert imported(code_of(path)) & beside == set()
    assert imported("from build import size\n" + code_of(path)) & beside == {"build"}


@pytest.mark.slow
@pytest.mark.parametrize("planted", ["", "import beside_the_notebook\n"])
def test_a_notebook_copied_alone_into_an_empty_folder_runs(tmp_path, planted):
    """The package is importable, as if installed; the folder of the tutorials is not."""
    path = pathlib.Path(shutil.copy(TUTORIALS / "02_monte_carlo_and_markov_chains.ipynb", tmp_path))
    script = tmp_path / "alone.py"
    script.write_text(planted + code_of(path), encoding="utf-8")
    changes = {"TFP_EBM_SMOKE": "1", "MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env={**os.environ, **changes}, capture_output=True, text=True
    )
    if planted:
        assert result.returncode == 1 and "No module named 'beside_the_notebook'" in result.stderr
        return
    assert result.returncode == 0, result.stderr[-2000:]
    assert "| holds" in result.stdout and "FAILS" not in result.stdout


@pytest.fixture(scope="module")
def build():
    """`tutorials/build.py` as a module."""
    spec = importlib.util.spec_from_file_location("tutorials_build", TUTORIALS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_text_is_copied_and_outputs_stay(tmp_path, build):
    """With the same text the notebook stays byte for byte; changed text is taken over; changed code is refused."""
    name = "02_monte_carlo_and_markov_chains"
    source, notebook = (
        pathlib.Path(shutil.copy(TUTORIALS / f"{name}{suffix}", tmp_path)) for suffix in (".py", ".ipynb")
    )
    before = notebook.read_text(encoding="utf-8")
    build.retold(source)
    assert notebook.read_text(encoding="utf-8") == before

    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("# # 2. ", "# # Two. ", 1) + "\n# %% [markdown]\n# The end.\n", encoding="utf-8")
    build.retold(source)
    old, new = json.loads(before)["cells"], json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert new[0]["source"][0].startswith("# Two. ") and new[-1]["source"] == ["The end."]
    assert new[1:-1] == old[1:]

    source.write_text(text.replace("rng = ", "rng  = ", 1), encoding="utf-8")
    with pytest.raises(SystemExit, match="code has changed"):
        build.retold(source)
