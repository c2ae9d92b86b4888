"""The package's shape: floors, size, names, documentation, and an import without side effects."""

import ast
import importlib
import inspect
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import tfp_ebm as ebm

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "tfp_ebm"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def table(section):
    """The rows of the table in a section of CONTRIBUTING.md, as lists of cells, without its head."""
    text = CONTRIBUTING.split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def names_in(cell):
    """The names in backticks in a cell."""
    return re.findall(r"`([\w.]+)`", cell)


FLOORS = [names_in(modules) for _, modules, _ in table("Floors")]
FLOOR = {module: number for number, modules in enumerate(FLOORS) for module in modules}
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {path: ".".join(("tfp_ebm", *path.relative_to(PACKAGE).with_suffix("").parts)) for path in FILES}
MODULES = {path: name.removesuffix(".__init__") for path, name in MODULES.items()}


def room(module):
    """The part of the package below the top that a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def imports(path, known):
    """Modules among `known` that a file imports when it is loaded, not for type checkers nor inside functions."""
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # a module, or a name in one
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found & known - {"tfp_ebm"}


EDGES = {(MODULES[path], target) for path in FILES for target in imports(path, set(MODULES.values()))}


def climbing(edges):
    """The imports from a floor to a higher one."""
    return sorted((a, b) for a, b in edges if a != "tfp_ebm" and FLOOR[room(b)] > FLOOR[room(a)])


def circles(edges):
    """Files that reach themselves along imports."""
    reach = {a: {b for x, b in edges if x == a} for a, _ in edges}
    while True:
        more = {a: set().union(targets, *(reach.get(b, set()) for b in targets)) for a, targets in reach.items()}
        if more == reach:
            return sorted(a for a, targets in reach.items() if a in targets)
        reach = more


def test_every_module_has_a_floor():
    assert {room(module) for module in MODULES.values()} - {""} <= set(FLOOR)


def test_imports_only_go_down():
    assert len(EDGES) > 200 and climbing(EDGES) == []


def test_no_file_imports_itself_in_a_circle():
    assert circles(EDGES) == []


def test_the_checks_see_planted_imports():
    for planted in [
        ("tfp_ebm.derivatives.jet", "tfp_ebm.model.trainer"),
        ("tfp_ebm.losses.base", "tfp_ebm.model.trainer"),
    ]:
        assert climbing(EDGES | {planted}) == [planted]
    planted = ("tfp_ebm.mcmc.sampling", "tfp_ebm.mcmc.summary"), ("tfp_ebm.mcmc.summary", "tfp_ebm.mcmc.sampling")
    assert set(circles(EDGES | set(planted))) >= {"tfp_ebm.mcmc.sampling", "tfp_ebm.mcmc.summary"}


def test_files_are_small_and_begin_with_a_docstring():
    texts = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in FILES}
    assert [name for name, text in texts.items() if len(text.splitlines()) > 400] == []
    assert [name for name, text in texts.items() if not ast.get_docstring(ast.parse(text))] == []
    assert [name for name in texts if "utils" in name] == []


BLOCKED = """
import sys, keras, tensorflow_probability  # Keras imports matplotlib by itself where it is installed
for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
    del sys.modules[name]
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "matplotlib":
            raise AssertionError("matplotlib was imported")
sys.meta_path.insert(0, Refuse())
import tfp_ebm, tfp_ebm.cli, tfp_ebm.plotting
print("imported", flush=True)
import matplotlib.pyplot  # planted
"""


@pytest.mark.slow
def test_import_is_silent_and_does_not_load_matplotlib():
    """Up to the line "imported" nothing is printed or refused; the planted import after it is refused."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-c", BLOCKED]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.stdout == "imported\n", result.stderr[-1000:]
    said, _, refused = result.stderr.partition("Traceback")
    assert "matplotlib was imported" in refused
    # what TensorFlow's C++ libraries print at start-up is theirs
    assert not [line for line in said.splitlines() if "tfp_ebm" in line or "Warning" in line]


PUBLIC = {names_in(module)[0]: names_in(names) for module, names in table("Public names")}


def differences(public):
    """Where CONTRIBUTING.md and `__all__` disagree, in words."""
    modules = {"tfp_ebm", *(f"tfp_ebm.{name}" for name in ebm.__all__ if inspect.ismodule(getattr(ebm, name)))}
    found = [f"{name} has no row" for name in sorted(modules - set(public))]
    found += [f"{name} is not a public module" for name in sorted(set(public) - modules)]
    for module in sorted(modules & set(public)):
        names = importlib.import_module(module).__all__
        found += [f"{module}.{name} is not listed" for name in sorted(set(names) - set(public[module]))]
        found += [f"{module}.{name} is listed and not public" for name in sorted(set(public[module]) - set(names))]
        found += [
            f"{module}.{name} does not exist" for name in names if not hasattr(importlib.import_module(module), name)
        ]
        found += [f"{module}.{name} occurs twice" for name in names if public[module].count(name) > 1]
    return found


def test_public_names_are_those_of_contributing():
    assert differences(PUBLIC) == []
    without = {**PUBLIC, "tfp_ebm.mcmc": [*PUBLIC["tfp_ebm.mcmc"], "Gibbs", "HMC"]}  # controls
    del without["tfp_ebm.targets"]
    assert differences(without) == [
        "tfp_ebm.targets has no row", "tfp_ebm.mcmc.Gibbs is listed and not public", "tfp_ebm.mcmc.HMC occurs twice"
    ]  # fmt: skip


def test_arguments_of_public_names():
    def names(function):
        return [name for name in inspect.signature(function).parameters if name not in ("self", "kwargs")]

    assert names(ebm.EnergyModel.__init__) == [
        "network", "base_measure", "event_shape", "seed", "condition_shape", "condition_dtype",
    ]  # fmt: skip
    assert names(ebm.EnergyDistribution.__init__)[:6] == [
        "energy", "event_shape", "kernel", "base", "num_burnin_steps", "log_normalizer",
    ]  # fmt: skip
    assert names(ebm.networks.mlp) == [
        "event_shape", "units", "activation", "fourier_features", "dtype", "seed",
        "condition_shape", "num_labels", "conditioning",
    ]  # fmt: skip
    assert names(ebm.losses.DenoisingScoreMatching) == ["sigma"]
    assert names(ebm.losses.NoiseContrastiveEstimation)[:2] == ["noise", "noise_ratio"]
    assert names(ebm.mcmc.HMC) == ["step_size", "num_leapfrog_steps", "mass"]
    assert names(ebm.mcmc.sample) == [
        "target_log_prob_fn", "initial_state", "kernel", "num_results", "num_burnin_steps", "num_steps_between_results",
        "seed", "jit_compile", "progress", "backup_dir",
    ]  # fmt: skip
    assert names(ebm.evaluation.annealed_importance_sampling)[:7] == [
        "energy_fn", "base", "kernel", "num_temperatures", "num_chains", "schedule", "seed",
    ]  # fmt: skip
    assert names(ebm.evaluation.grid_log_normalizer)[:4] == ["energy_fn", "low", "high", "num"]
    assert names(ebm.evaluation.kl_divergence) == ["energy_fn", "reference", "log_normalizer", "num_samples", "seed"]
    assert re.fullmatch(r"\d+\.\d+\.\d+\w*", ebm.__version__)


def public():
    """Every public name: of the package, of its subpackages, and of each of their modules."""
    for info in [None, *pkgutil.walk_packages(ebm.__path__, "tfp_ebm.")]:
        if info is not None and info.name.endswith("__main__"):
            continue
        module = ebm if info is None else __import__(info.name, fromlist=["_"])
        for name in getattr(module, "__all__", ()):
            yield f"{module.__name__}.{name}", getattr(module, name)


def test_every_public_name_is_documented():
    undocumented, without_example = [], []
    for name, value in public():
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        if not inspect.getdoc(value):
            undocumented.append(name)
        if inspect.isclass(value):
            for method, function in vars(value).items():
                is_method = inspect.isfunction(function) and function.__name__ == method  # not a field's default
                if is_method and not method.startswith("_") and not function.__doc__:
                    undocumented.append(f"{name}.{method}")
        if inspect.isclass(value) and issubclass(value, tuple):
            continue  # what a function returns is shown where it is returned
        if name.count(".") <= 2 and ">>>" not in (value.__doc__ or "") and name.split(".")[1] in ebm.__all__:
            without_example.append(name)
    assert undocumented == []
    assert without_example == []


# Metaphors for plain words: a path or method, a function or argument, costly.
METAPHORS = re.compile(r"\b(roads?|doors?|dear)\b")


def docstrings(text):
    """Qualified name and docstring of everything in a source file that has one; the file's own is "the file"."""

    def visit(node, names):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names = [*names, node.name] if hasattr(node, "name") else names
            if (docstring := ast.get_docstring(node)) is not None:
                yield ".".join(names) or "the file", docstring
        for child in ast.iter_child_nodes(node):
            yield from visit(child, names)

    return visit(ast.parse(text), [])


def faults_of_docstrings(text):
    """What is wrong with the docstrings of a source file, in words."""
    found = []
    for name, docstring in docstrings(text):
        first = docstring.splitlines()[0].strip() if docstring.strip() else ""
        is_private = any(part.startswith("_") for part in name.split("."))
        if not is_private and not first.endswith("."):
            found.append(f"{name}: the first line must end with a period, got {first!r}")
        found += [f"{name}: {word!r} is a metaphor" for word in METAPHORS.findall(docstring)]
    return found


def test_tests_and_benchmarks_have_no_metaphors():
    root = PACKAGE.parent
    files = [path for folder in ("tests", "benchmarks") for path in sorted((root / folder).rglob("*.py"))]
    found = [
        f"{path.relative_to(root)}: {name}: {word!r}"
        for path in files
        for name, docstring in docstrings(path.read_text(encoding="utf-8"))
        for word in METAPHORS.findall(docstring)
    ]
    assert len(files) > 100 and found == []


def test_docstrings_have_a_first_line_and_no_metaphors():
    found = [
        f"{path.relative_to(PACKAGE)}: {fault}"
        for path in FILES
        for fault in faults_of_docstrings(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"{len(found)} faults of docstrings (see Style in CONTRIBUTING.md):\n" + "\n".join(found)


def test_planted_faults_of_docstrings_are_seen():
    text = '''"""Fine."""\nclass A:\n    """No end\n\n    Two roads."""\n    def _b(self):\n        """a door"""\n'''
    assert [fault.partition(":")[0] for fault in faults_of_docstrings(text)] == ["A", "A", "A._b"]
    assert faults_of_docstrings('"""Broadcasts adorable indoor roadsters."""') == []
    assert len(faults_of_docstrings('def f():\n    """   """')) == 1


def uses_of_function(source):
    """Numbers of the lines that use `tf.function`, other than for functions of the module, which are traced once."""
    tree = ast.parse(source)
    of_module = {part for node in tree.body for d in getattr(node, "decorator_list", ()) for part in ast.walk(d)}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node not in of_module]
    return [node.lineno for node in nodes if ast.unparse(node) == "tf.function"]


def test_functions_are_compiled_where_their_graphs_can_be_deleted():
    assert {path.name for path in FILES if uses_of_function(path.read_text(encoding="utf-8"))} == {"tracing.py"}


def test_control_each_use_of_function_is_found():
    within = "def outer():\n    @tf.function\n    def inner(): pass\n    return tf.function(inner, autograph=False)"
    assert uses_of_function("@tf.function(autograph=False)\ndef once(): pass\n" + within) == [4, 6]
