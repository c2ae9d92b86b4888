"""The package's shape: floors, size, names, documentation, and an import without side effects."""

import ast
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
FLOORS = [
    {"arguments", "files", "random", "derivatives"},
    {"energy", "serialization", "networks", "targets", "datasets"},
    {"mcmc"},
    {"losses"},
    {"model", "composition", "callbacks", "recipes"},
    {"evaluation", "plotting", "lesson", "cli", "__main__"},
]
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
"""


@pytest.mark.parametrize("planted", [False, True])
def test_import_is_silent_and_does_not_load_matplotlib(planted):
    code = BLOCKED + ("import matplotlib.pyplot" if planted else "")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    if planted:
        assert "matplotlib was imported" in result.stderr
        return
    assert result.returncode == 0, result.stderr[-1000:]
    assert result.stdout == ""
    # what TensorFlow's C++ libraries say at start-up is theirs
    assert not [line for line in result.stderr.splitlines() if "tfp_ebm" in line or "Warning" in line]


PINNED = """
EnergyModel EnergyDistribution fit_base
networks.mlp networks.convnet networks.LayerNormalization networks.GroupNormalization networks.SpectralNormalization
derivatives.score losses.Loss losses.LossOutput losses.DenoisingScoreMatching
losses.MultiscaleDenoisingScoreMatching losses.ScoreMatching losses.SlicedScoreMatching losses.MaximumLikelihood
losses.ContrastiveDivergence losses.PersistentContrastiveDivergence losses.NoiseConditionalDenoisingScoreMatching
losses.NoiseContrastiveEstimation
mcmc.MetropolisHastings mcmc.IndependenceMetropolis mcmc.Sequential mcmc.ReplicaExchange mcmc.annealed_langevin
derivatives.laplacian derivatives.energy_score_laplacian derivatives.directional_derivatives derivatives.explain
derivatives.forward_laplacian_rule
mcmc.FromData mcmc.FromBase mcmc.ReplayBuffer callbacks.DivergenceGuard callbacks.SampleSnapshots
mcmc.RandomWalk mcmc.HMC mcmc.MALA mcmc.Langevin mcmc.NUTS mcmc.Adaptive mcmc.sample mcmc.diagnose
mcmc.MetropolisHastings mcmc.IndependenceMetropolis mcmc.Sequential mcmc.ReplicaExchange mcmc.Transformed
recipes.low_dimensional recipes.du_mordatch_2019 recipes.uva_mnist recipes.jem recipes.li_chen_sommer_2019
datasets.two_moons datasets.load
targets.two_gaussians targets.rosenbrock targets.banana targets.eight_gaussians targets.two_moons targets.rings
targets.pinwheel targets.checkerboard
evaluation.Estimate evaluation.annealed_importance_sampling evaluation.reverse_annealed_importance_sampling
evaluation.grid_log_normalizer evaluation.kl_divergence evaluation.mmd evaluation.ood_auroc
""".split()


@pytest.mark.parametrize("name", PINNED)
def test_pinned_names_are_there(name):
    value = ebm
    for part in name.split("."):
        assert part in value.__all__
        value = getattr(value, part)


def test_arguments_of_pinned_names():
    def names(function):
        return [name for name in inspect.signature(function).parameters if name not in ("self", "kwargs")]

    assert names(ebm.EnergyModel.__init__) == ["network", "base_measure", "event_shape", "seed"]
    assert names(ebm.EnergyDistribution.__init__)[:6] == [
        "energy", "event_shape", "kernel", "base", "num_burnin_steps", "log_normalizer",
    ]  # fmt: skip
    assert names(ebm.networks.mlp) == ["event_shape", "units", "activation", "fourier_features", "dtype", "seed"]
    assert names(ebm.losses.DenoisingScoreMatching) == ["sigma"]
    assert names(ebm.losses.NoiseContrastiveEstimation)[:2] == ["noise", "noise_ratio"]
    assert names(ebm.mcmc.HMC) == ["step_size", "num_leapfrog_steps", "mass"]
    assert names(ebm.mcmc.sample) == [
        "target_log_prob_fn", "initial_state", "kernel", "num_results", "num_burnin_steps", "num_steps_between_results",
        "seed", "jit_compile", "progress",
    ]  # fmt: skip
    assert names(ebm.evaluation.annealed_importance_sampling)[:7] == [
        "target", "base", "kernel", "num_temperatures", "num_chains", "schedule", "seed",
    ]  # fmt: skip
    assert names(ebm.evaluation.grid_log_normalizer)[:4] == ["energy_fn", "low", "high", "num"]
    assert names(ebm.evaluation.kl_divergence) == ["target", "energy_fn", "log_normalizer", "num_samples", "seed"]
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
