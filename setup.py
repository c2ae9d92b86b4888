"""Package metadata; tool settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "tfp_ebm" / "__init__.py").read_text(), re.MULTILINE).group(1)

ARVIZ = ["arviz>=0.17,<2"]
TEST = [
    "pytest>=8",
    "pytest-xdist>=3.5",
    "scikit-learn>=1.4",
    "scipy>=1.11",
    "ruff>=0.6",
    "mypy>=1.11",
    "jupytext>=1.16",
    *ARVIZ,
]
TUTORIALS = ["jupytext>=1.16", "nbclient>=0.10.1", "ipykernel>=6", "scikit-learn>=1.4"]
BENCH = ["torch", "torchebm", "jax", "folx", "optax", "blackjax", "numpyro"]  # ebmkit is not on the index

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
    install_requires=[
        "tensorflow>=2.18,<2.22",
        "tensorflow-probability>=0.25,<0.26",
        "tf-keras>=2.18,<2.22",
        "keras>=3.6",
        "numpy>=1.26",
        "matplotlib>=3.8",
        "setuptools",  # TFP imports distutils, which Python 3.12 and later only has through setuptools
    ],
    extras_require={"test": TEST, "tutorials": TUTORIALS, "bench": BENCH, "arviz": ARVIZ},
    entry_points={"console_scripts": ["tfp-ebm=tfp_ebm.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
