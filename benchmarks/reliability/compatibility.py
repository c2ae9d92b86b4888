"""Tests the package with the oldest and the newest releases that it allows, and as a built distribution.

For each Python that is found (3.10 to 3.13) and both ends of the pins of `setup.py`, an environment is made, the wheel
is installed there, and a few files of tests run, with warnings as errors. `--build-only` builds wheel and sdist, checks
them by `twine check`, installs each in an environment of its own, and compares the version with that in the package.

    python benchmarks/reliability/compatibility.py [--build-only] [--pythons 3.10 3.13] [--ends oldest newest]
        [--tests tests/model/test_training.py ...] [--keep FOLDER] [--json out.json]

Each environment takes about 3 GB of disk and some minutes. It needs `build` and `twine`, which it installs itself.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# The lower ends of the pins; Python 3.13 has releases of some packages from later ones on.
OLDEST = (
    *("tensorflow==2.20.*", "tf-keras==2.20.*", "keras==3.12.*"),
    *("numpy==2.0.*", "pandas==2.2.2", "scikit-learn==1.6.*"),
)
OLDEST_OF_313 = (*OLDEST[:3], "numpy==2.1.*", "pandas==2.2.3", "scikit-learn==1.6.*")
TESTS = (
    *("tests/test_private_parts.py", "tests/model/test_executions.py", "tests/model/test_saving.py"),
    *("tests/mcmc/test_kernels.py", "tests/datasets/test_regular_tables.py", "tests/derivatives/test_derivatives.py"),
)
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "MPLBACKEND": "Agg"}


def run(*command, cwd=None):
    """Runs a command; returns whether it succeeded, and what it printed."""
    environment = {**os.environ, **QUIET}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, env=environment)
    return done.returncode == 0, done.stdout + done.stderr


def needed(*command, cwd=None):
    """Runs a command that must succeed; returns what it printed."""
    good, text = run(*command, cwd=cwd)
    if not good:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{text[-3000:]}")
    return text


def interpreter(version):
    """The path of a Python of that version; None if there is none."""
    for name in (f"python{version}", *map(str, pathlib.Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))):
        path = shutil.which(name)
        if path and run(path, "-c", f"import sys; assert sys.version.startswith('{version}.')")[0]:
            return path
    return None


def environment(python, folder):
    """Makes an environment; returns its Python."""
    needed(python, "-m", "venv", folder)
    return folder / "bin" / "python"


def version_in_package():
    """The one place where the version stands."""
    return re.search(r'^__version__ = "(.+)"$', (ROOT / "tfp_ebm" / "__init__.py").read_text(), re.MULTILINE)[1]


def build(folder):
    """Builds wheel and sdist from what git knows, checks them, and returns their paths."""
    source = folder / "source"
    source.mkdir()
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive, check=True)
    tools = environment(sys.executable, folder / "tools")
    needed(tools, "-m", "pip", "install", "-q", "build", "twine")
    needed(tools, "-m", "build", "--outdir", folder / "dist", source)
    files = sorted((folder / "dist").iterdir())
    print(needed(tools, "-m", "twine", "check", "--strict", *files).strip())
    version = version_in_package()
    assert [file.name for file in files] == [f"tfp_ebm-{version}-py3-none-any.whl", f"tfp_ebm-{version}.tar.gz"], files
    return files


def check_built(files, folder):
    """Installs wheel and sdist without their dependencies, and compares version and files."""
    listed = []
    for file in files:
        python = environment(sys.executable, folder / f"of_{file.suffix[1:]}")
        needed(
            python, "-m", "pip", "install", "-q", "--no-deps", *([] if file.suffix == ".whl" else ["setuptools"]), file
        )
        shown = needed(
            python,
            "-c",
            "import importlib.metadata as m; print(m.version('tfp_ebm')); [print(f) for f in "
            "sorted(map(str, m.files('tfp_ebm'))) if f.startswith('tfp_ebm/') and '__pycache__' not in f]",
        )
        version, *names = shown.split()
        assert version == version_in_package(), version
        listed.append(names)
    here = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tfp_ebm").rglob("*.py"))
    assert listed[0] == listed[1] and [name for name in listed[0] if name.endswith(".py")] == here, "files differ"
    assert "tfp_ebm/py.typed" in listed[0]
    print(f"wheel and sdist: version {version_in_package()}, {len(listed[0])} files each, the same ones")


def tested(version, end, wheel, tests, folder):
    """Installs the wheel with one end of the pins, and runs tests; returns what happened."""
    found = interpreter(version)
    if found is None:
        return {"result": "no such Python here"}
    start = time.perf_counter()
    python = environment(found, folder / f"{version}_{end}")
    pins = () if end == "newest" else OLDEST_OF_313 if version == "3.13" else OLDEST
    good, text = run(
        python, "-m", "pip", "install", "-q", f"{wheel}[tables]", "pytest", "scipy", "hypothesis", "arviz<2", *pins
    )
    if not good:
        return {"result": "not installed", "text": text[-600:]}
    shown = needed(
        python, "-c", "import importlib.metadata as m; print(*(m.version(n) for n in ('tensorflow','keras','numpy')))"
    )
    names = dict(zip(("tensorflow", "keras", "numpy"), shown.split()[-3:], strict=True))
    copy = folder / f"tests_{version}_{end}"
    shutil.copytree(ROOT / "tests", copy / "tests")
    shutil.copy(ROOT / "pyproject.toml", copy)
    good, text = run(python, "-m", "pytest", "-q", "-x", *tests, cwd=copy)
    seconds = round(time.perf_counter() - start)
    shutil.rmtree(folder / f"{version}_{end}")
    return {
        **names,
        "result": "passed" if good else "failed",
        "seconds": seconds,
        "text": text[-200:] if good else text,
    }


def main():
    """Builds, installs, tests, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--pythons", nargs="+", default=list(PYTHONS))
    parser.add_argument("--ends", nargs="+", choices=("oldest", "newest"), default=["oldest", "newest"])
    parser.add_argument("--tests", nargs="+", default=list(TESTS))
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--json")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or pathlib.Path(name)
        folder.mkdir(exist_ok=True)
        files = build(folder)
        check_built(files, folder)
        for version in [] if options.build_only else options.pythons:
            for end in options.ends:
                result = tested(version, end, files[0], options.tests, folder)
                results[f"{version} {end}"] = result
                print(f"Python {version}, {end}: {result}", flush=True)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))
    sys.exit(any(result["result"] in ("failed", "not installed") for result in results.values()))


if __name__ == "__main__":
    main()
