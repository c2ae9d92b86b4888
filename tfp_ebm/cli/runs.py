"""The files of a run: where it may be written, what is in it, and how it is read again."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfp_ebm import __version__
from tfp_ebm.files import written_atomically

if TYPE_CHECKING:
    import pandas

    from tfp_ebm.datasets.columns import TableEncoder
    from tfp_ebm.model.energy_model import EnergyModel

RUN_FILES = ("model.keras", "saved_model", "samples.npy", "figure.png", "report.json")
# Files of a run of a table, beside those.
TABLE_FILES = ("samples.csv", "references.npz")
# Of report.json; a run without one is of version 1. A later version than this is refused.
FORMAT_VERSION = 3
# Characters of a library's own message that are passed on.
_LONGEST_REASON = 400
# Files that samples and energies can be written to.
SUFFIXES = (".npy", ".csv", ".parquet")


class Run(NamedTuple):
    """A fitted model.

    Attributes:
      model: the model.
      columns: the names of its columns; None where the data had none.
      encoder: maps a table to the model's numbers; None where the data were numbers alone.
    """

    model: EnergyModel
    columns: tuple[str, ...] | None
    encoder: TableEncoder | None = None


def check_free(out: pathlib.Path, overwrite: bool, is_run: bool) -> None:
    """Raises ValueError if a run, or a file, cannot or must not be written at `out`, an absolute path."""
    if out.exists():
        if not overwrite:
            raise ValueError(f"`--out` {out} exists; pass --overwrite to replace it.")
        ours = (*RUN_FILES, *TABLE_FILES, "samples_*.npy", "samples_*.npy.chains")
        if is_run and not (out.is_dir() and all(any(map(path.match, ours)) for path in out.iterdir())):
            raise ValueError(f"`--out` {out} holds something else than a run; it is not overwritten.")
        if not is_run and not out.is_file():
            raise ValueError(f"`--out` {out} is not a file; it is not overwritten.")
    parent = next(folder for folder in out.parents if folder.exists())
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as error:
        raise ValueError(f"`--out` {out} cannot be written: {error}") from error


def check_file(out: pathlib.Path, overwrite: bool) -> None:
    """Raises ValueError if samples or energies cannot be written at `out`, an absolute path."""
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"`--out` must end in one of {', '.join(SUFFIXES)}, got {out.name!r}.")
    if out.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ImportError('`--out`: .parquet files need pyarrow: pip install "tfp_ebm[tables]".')
    check_free(out, overwrite, is_run=False)


def load_run(path: pathlib.Path) -> Run:
    """Reads a run.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the model is damaged, or the run is of a later version.
    """
    import keras

    from tfp_ebm.model.energy_model import EnergyModel  # Keras finds the classes of a file only where they are imported

    missing = [name for name in RUN_FILES if not (path / name).exists()]
    if missing:
        raise FileNotFoundError(f"`run` {path} is not a complete run: {', '.join(missing)} missing.")
    try:
        report = json.loads((path / "report.json").read_text(encoding="utf-8"))
        version = int(report.get("format_version", 1))
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"`run` {path}: report.json is damaged: it is not the JSON that `fit` wrote.") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"`run` {path} has format version {version}, written by tfp_ebm {report.get('version')}; this is "
            f"{__version__}, which reads versions up to {FORMAT_VERSION}."
        )
    try:
        model = keras.saving.load_model(path / "model.keras")
    except Exception as error:
        raise ValueError(f"`run` {path}: model.keras cannot be read: {_reason(error)}") from error
    if not isinstance(model, EnergyModel):
        raise ValueError(f"`run` {path}: model.keras must hold an EnergyModel, got {type(model).__name__}.")
    return Run(model, model.columns, model.encoder)


def _reason(error: BaseException) -> str:
    """Returns why Keras could not load a model, without the configuration that its messages contain."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    if any("safe_mode" in str(one) for one in chain):
        return (
            "it holds code of Python, such as a Lambda layer, which is not run. Do not use files that you do not trust."
        )
    message = " ".join(str(chain[-1]).split())
    if type(chain[-1]) is ValueError and 0 < len(message) <= _LONGEST_REASON and "<" not in message:
        return message
    return "it is damaged, or was written by another version of this package or of Keras."


def save_rows(out: pathlib.Path, values: np.ndarray, columns: tuple[str, ...]) -> None:
    """Writes rows `[rows, *event]` to a file: as they are for .npy, with a header for .csv and .parquet."""
    import pandas

    if out.suffix.lower() != ".npy":
        save_frame(out, pandas.DataFrame(values.reshape(len(values), -1), columns=list(columns)))
        return
    with written_atomically(out) as temporary, temporary.open("wb") as file:  # given a path, NumPy would add a suffix
        np.save(file, values)


def save_frame(out: pathlib.Path, frame: pandas.DataFrame) -> None:
    """Writes a table to a file.

    Raises:
      ValueError: if the file is .npy and the table has columns that are not numbers.
    """
    if out.suffix.lower() == ".npy":
        others = [str(name) for name, dtype in frame.dtypes.items() if getattr(dtype, "kind", "O") not in "biuf"]
        if others:
            raise ValueError(f"`--out` must be a .csv or .parquet file: columns {others} are not numbers.")
        save_rows(out, frame.to_numpy(), ())
        return
    with written_atomically(out) as temporary:
        if out.suffix.lower() == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)


def versions() -> dict[str, str]:
    """Returns the versions of this package and of those whose numbers it depends on."""
    packages = ("tensorflow", "tensorflow-probability", "keras", "numpy")
    return {"tfp_ebm": __version__, **{name: importlib.metadata.version(name) for name in packages}}


def to_json(value: dict[str, Any]) -> str:
    """Returns JSON, in which NaN and infinities are null.

    >>> to_json({"a": [1.0, math.nan]})
    '{\\n  "a": [\\n    1.0,\\n    null\\n  ]\\n}'
    """
    return json.dumps(_plain(value), indent=2, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
