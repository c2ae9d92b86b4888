"""The picture of a fit to a table: log-likelihoods, training, columns, the worst pairs, and all pairs of few columns.

Data are blue and samples vermilion, as in `plotting`. Axes reach from .5 to 99.5 % of the data. matplotlib is imported
when something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from tfp_ebm.cli.table_report import in_words, worst_columns
from tfp_ebm.evaluation import two_sample
from tfp_ebm.plotting import DATA_COLOR, MODEL_COLOR, SAMPLE_COLOR

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_MARGINALS, _MAX_PAIRS, _MAX_CORNER, _MAX_POINTS = 12, 4, 6, 800
# Up to so many columns, the plot of all pairs shows the worst well enough.
_FEW_COLUMNS = 3
# Panels in a row, and the width of the figure, inches.
_PER_ROW, _WIDTH = 4, 11.0
# Labels that have a bar of their own, and characters of a label and of a name.
_MAX_BARS, _MAX_LABEL, _MAX_NAME = 10, 9, 24
# Bins of a column with many rows.
_MAX_BINS = 30
# How far an axis reaches beyond the quartiles, in ranges of the quartiles.
_MAX_TAIL = 5.0
_MISSING, _OTHER = "missing", "other"


class _Column(NamedTuple):
    """A column as numbers: values, or positions among labels.

    Attributes:
      name: its name.
      x, y: numbers of the data and of the samples; NaN where a number is missing.
      labels: the text at positions 0, 1, …; None for numbers.
      low, high: the ends of its axis.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    labels: list[str] | None
    low: float
    high: float


def table_figure(
    data: Any,
    samples: Any,
    kinds: Sequence[str] | Mapping[str, str] | None,
    report: Mapping[str, Any],
    history: Mapping[str, Any] | None = None,
) -> Figure:
    """Draws the picture of a fit to a table.

    It has up to four parts: log-likelihoods of the model and of the references with the curves of training; the
    columns, at most 12, those with the largest distances first; of four columns or more the pairs whose dependence
    differs most; and of two to six columns all pairs, data below the diagonal and samples above it.

    Args:
      data, samples: tables with the same columns, data frames or `[rows, columns]`.
      kinds: the kind of each column, as for `evaluation.column_distances`.
      report: `table_report` of the fit.
      history: lists `loss` and `val_loss` with a number for each epoch, and, unless the lowest `val_loss` was kept, the
        number `epoch_kept`, from 1. Optional: `name`, of what was trained, and `step`, what is counted if not epochs.

    >>> import matplotlib; matplotlib.use("Agg")
    >>> from tfp_ebm.cli.table_report import table_report
    >>> x, y = np.random.default_rng(0).normal(size=(2, 200, 3))
    >>> report = table_report(x, y, [{"name": str(i), "kind": "continuous"} for i in range(3)])
    >>> len(table_figure(x, y, None, report).axes)  # three columns, and three by three
    12
    """
    from matplotlib import pyplot

    columns = _columns(data, samples, kinds)
    shown = [str(column["name"]) for column in worst_columns(report) if str(column["name"]) in columns]
    shown = (shown or list(columns))[:_MAX_MARGINALS]
    pairs = [pair["columns"] for pair in report.get("worst_pairs", ()) if set(pair["columns"]) <= set(columns)]
    parts: list[tuple[float, str, Callable[[Any], None]]] = []
    if _has_likelihood(report) or (history and len(history.get("loss") or ())):
        parts.append((2.3, "", lambda part: _likelihood_and_training(part, report, history)))
    title = "columns" if len(shown) == len(columns) else f"the {len(shown)} of {len(columns)} columns that differ most"
    height = 2.0 * math.ceil(len(shown) / _PER_ROW) + 0.5
    parts.append((height, f"{title}: data (filled), samples (line)", lambda part: _marginals(part, columns, shown)))
    if len(columns) > _FEW_COLUMNS and (pairs := pairs[:_MAX_PAIRS]):
        height = 2.2 * math.ceil(len(pairs) / 2) + 0.5
        title = "pairs that differ most: data (blue) beside samples (orange)"
        parts.append((height, title, lambda part: _pairs(part, columns, pairs)))
    if 2 <= len(columns) <= _MAX_CORNER:
        height = max(1.6 * len(columns), 3.6) + 0.5
        title = "all pairs: data (blue, below) and samples (orange, above)"
        parts.append((height, title, lambda part: _corner(part, list(columns.values()))))
    heights = [height for height, _, _ in parts]
    figure = pyplot.figure(figsize=(_WIDTH, sum(heights)), layout="constrained")
    places = figure.subfigures(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for place, (_, title, draw) in zip(places, parts, strict=True):
        if title:
            place.suptitle(title, fontsize="medium", x=0.01, ha="left", fontweight="bold")
        draw(place)
    return figure


def _columns(data: Any, samples: Any, kinds: Any) -> dict[str, _Column]:
    """Returns the columns that the model has, by name."""
    names, found = two_sample.names_and_kinds(data, kinds)
    columns = {}
    for i, (name, kind) in enumerate(zip(names, found, strict=True)):
        if kind in two_sample.LEFT_OUT:
            continue
        x, y = (table.iloc[:, i] if hasattr(table, "iloc") else np.asarray(table)[:, i] for table in (data, samples))
        if kind in two_sample.LABELS:
            columns[name] = _label_column(name, x, y)
        else:
            columns[name] = _Column(name, _floats(x), _floats(y), None, *_limits(_floats(x)))
    return columns


def _floats(column: Any) -> np.ndarray:
    if hasattr(column, "to_numpy"):
        return column.to_numpy(np.float64, na_value=np.nan)
    return np.asarray(column, np.float64)


def _limits(x: np.ndarray) -> tuple[float, float]:
    """Returns the ends of an axis: .5 to 99.5 % of the cells, or less where tails would hide the rest."""
    present = x[np.isfinite(x)]
    if not len(present):
        return -1.0, 1.0
    low, q25, q75, high = np.quantile(present, [0.005, 0.25, 0.75, 0.995])
    if q75 > q25:
        low, high = max(low, q25 - _MAX_TAIL * (q75 - q25)), min(high, q75 + _MAX_TAIL * (q75 - q25))
    if _is_whole(present) and high - low <= 30.0:
        margin = 0.6
    else:
        margin = 0.06 * (high - low) if high > low else 1.0
    return float(low - margin), float(high + margin)


def _is_whole(x: np.ndarray) -> bool:
    return len(x) > 0 and bool((x == np.round(x)).all())


def _label_column(name: str, x: Any, y: Any) -> _Column:
    """Returns positions among the labels, the most frequent of which are kept; others and missing ones come last."""
    texts = [_texts(column) for column in (x, y)]
    values, counts = np.unique(texts[0], return_counts=True)
    frequent = [str(value) for value in values[np.argsort(-counts, kind="stable")] if value != _MISSING][:_MAX_BARS]
    order = sorted(frequent, key=_sort_key)
    order += [_OTHER] if any(set(text) - {*frequent, _MISSING} for text in texts) else []
    order += [_MISSING] if any(_MISSING in text for text in texts) else []
    position = {label: i for i, label in enumerate(order)}
    codes = [np.array([position.get(label, position.get(_OTHER, 0)) for label in text], float) for text in texts]
    return _Column(name, codes[0], codes[1], [_short(label, _MAX_LABEL) for label in order], -0.6, len(order) - 0.4)


def _texts(column: Any) -> list[str]:
    import pandas

    values = pandas.Series(column).astype(object)
    return [_MISSING if missing else _text(value) for value, missing in zip(values, values.isna(), strict=True)]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _sort_key(label: str) -> tuple[int, float, str]:
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _likelihood_and_training(part: Any, report: Mapping[str, Any], history: Mapping[str, Any] | None) -> None:
    """Draws what there is of log-likelihoods and curves of training side by side."""
    drawers: list[Callable[[Axes], None]] = []
    if _has_likelihood(report):
        drawers.append(lambda ax: _likelihoods(ax, report))
    if history and len(history.get("loss") or ()):
        drawers.append(lambda ax: _training(ax, history))
    for draw, ax in zip(drawers, _grid(part, len(drawers), 2), strict=True):
        draw(ax)


def _has_likelihood(report: Mapping[str, Any]) -> bool:
    return bool(report.get("references")) or report["held_out"]["log_likelihood"] is not None


def _likelihoods(ax: Axes, report: Mapping[str, Any]) -> None:
    """Draws the model's log-likelihood above those of the references; one that is very low has a number at the edge."""
    estimates = {"model": report["held_out"], **report.get("references", {})}
    estimates = {name: value for name, value in estimates.items() if value["log_likelihood"] is not None}
    values = [value["log_likelihood"] for value in estimates.values()]
    errors = [value["standard_error"] for value in estimates.values()]
    finite = sorted((value for value in values if math.isfinite(value)), reverse=True) or [0.0]
    depth = max(4.0 * (finite[0] - finite[min(1, len(finite) - 1)]), 0.5)
    low = max(finite[-1], finite[0] - depth)
    shown = [error for value, error in zip(values, errors, strict=True) if value >= low and math.isfinite(error)]
    margin = 0.08 * (finite[0] - low) + 1.2 * max(shown, default=0.0) + 1e-3
    for i, (name, value, spread) in enumerate(zip(estimates, values, errors, strict=True)):
        color = SAMPLE_COLOR if name == "model" else MODEL_COLOR
        if value >= low:
            ax.errorbar(value, i, xerr=spread if math.isfinite(spread) else 0.0, fmt="o", color=color, capsize=3)
        else:
            ax.text(0.02, i, f"← {value:.6g}", transform=ax.get_yaxis_transform(), va="center", color=color, fontsize=9)
    ax.set(xlim=(low - margin, finite[0] + margin), ylim=(len(values) - 0.5, -0.5))
    ax.set_yticks(range(len(values)), [in_words(name) for name in estimates])
    ax.set_xlabel("log-likelihood of held-out rows, nats per row", fontsize=9)
    ax.set_title("model and simple densities", fontsize=10, loc="left", fontweight="bold")
    ax.locator_params(axis="x", nbins=5)
    ax.grid(axis="x", alpha=0.3)


def _training(ax: Axes, history: Mapping[str, Any]) -> None:
    """Draws the loss of training rows and of held-out rows by epoch, and marks the epoch that was kept."""
    curves = {"training": (history["loss"], DATA_COLOR), "held-out": (history.get("val_loss") or [], SAMPLE_COLOR)}
    for label, (values, color) in curves.items():
        if len(values):
            ax.plot(np.arange(1, len(values) + 1), values, color=color, label=label, marker="o" * (len(values) < 3))
    held_out, step = np.asarray(history.get("val_loss") or [], np.float64), history.get("step", "epoch")
    kept = history.get("epoch_kept") or (int(np.nanargmin(held_out)) + 1 if np.isfinite(held_out).any() else None)
    if kept is not None:
        ax.axvline(kept, color=MODEL_COLOR, linestyle=":", label=f"kept: {step.split()[0]} {kept}")
    numbers = np.concatenate([np.asarray(values, np.float64) for values, _ in curves.values()])
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) > 10:  # the first epochs are far above the rest
        top, bottom = np.quantile(numbers, 0.95), numbers.min()
        ax.set_ylim(bottom - 0.05 * (top - bottom) - 1e-6, top + 0.1 * (top - bottom) + 1e-6)
    ax.set_xlabel(step, fontsize=9)
    ax.set_title(
        f"loss of {history['name']}" if "name" in history else "loss", fontsize=10, loc="left", fontweight="bold"
    )
    ax.legend(frameon=False, fontsize=9)


def _grid(part: Any, count: int, per_row: int) -> list[Axes]:
    """Returns `count` axes in rows; the remaining places stay empty, and one row alone is not stretched."""
    axes = list(part.subplots(math.ceil(count / per_row), per_row, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    return axes[:count]


def _marginals(part: Any, columns: Mapping[str, _Column], shown: Sequence[str]) -> None:
    for ax, name in zip(_grid(part, len(shown), _PER_ROW), shown, strict=True):
        column = columns[name]
        _marginal(ax, column)
        missing = float(np.isnan(column.x).mean())
        share = f" ({missing:.0%} missing)" if missing else ""
        ax.set_title(_short(column.name, _MAX_NAME - len(share)) + share, fontsize=9)
        ax.tick_params(labelsize=8)


def _marginal(ax: Axes, column: _Column) -> None:
    x, y = (values[np.isfinite(values)] for values in (column.x, column.y))
    if column.labels is not None:
        places = np.arange(len(column.labels))
        for values, width, style in ((x, 0.8, {"color": DATA_COLOR, "alpha": 0.4}), (y, 0.8, _outline())):
            ax.bar(places, np.bincount(values.astype(int), minlength=len(places)) / max(len(values), 1), width, **style)
        _label_ticks(ax, column, "x")
    else:
        edges = _edges(x, column.low, column.high)
        styles: list[dict[str, Any]] = [
            {"color": DATA_COLOR, "alpha": 0.4},
            {"color": SAMPLE_COLOR, "histtype": "step", "linewidth": 1.5},
        ]
        for values, style in zip((x, y), styles, strict=True):
            weights = np.full(len(values), 1.0 / (max(len(values), 1) * (edges[1] - edges[0])))
            ax.hist(values, edges.tolist(), weights=weights, **style)
        ax.locator_params(axis="x", nbins=4)
    ax.set(yticks=[], xlim=(column.low, column.high))


def _outline() -> dict[str, Any]:
    return {"facecolor": "none", "edgecolor": SAMPLE_COLOR, "linewidth": 1.5}


def _edges(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Returns the edges of the bins: at halves, a bin or more for each whole number, if all are whole."""
    if _is_whole(x):
        step = max(1.0, math.ceil((high - low) / 30.0))
        edges = np.arange(math.floor(low) - 0.5, high + step, step)
        return edges if len(edges) > 1 else np.array([low, high])
    return np.linspace(low, high, 1 + int(np.clip(2.0 * math.sqrt(len(x)), 8, _MAX_BINS)))


def _label_ticks(ax: Axes, column: _Column, axis: str) -> None:
    labels = column.labels or []
    if axis == "x":
        is_long = sum(map(len, labels)) > 20
        ax.set_xticks(range(len(labels)), labels, rotation=40 if is_long else 0, ha="right" if is_long else "center")
    else:
        ax.set_yticks(range(len(labels)), labels)


def _pairs(part: Any, columns: Mapping[str, _Column], pairs: Sequence[Sequence[str]]) -> None:
    axes = _grid(part, 2 * len(pairs), _PER_ROW)
    for i, (first, second) in enumerate(pairs):
        a, b = columns[first], columns[second]
        for ax, x, y, color in (
            (axes[2 * i], a.x, b.x, DATA_COLOR),
            (axes[2 * i + 1], a.y, b.y, SAMPLE_COLOR),
        ):
            _points(ax, a, b, x, y, color, min(len(a.x), len(a.y), _MAX_POINTS))
            _axis(ax, a, "x")
            _axis(ax, b, "y")
        axes[2 * i + 1].set(ylabel="", yticklabels=[])


def _axis(ax: Axes, column: _Column, axis: Literal["x", "y"], named: bool = True) -> None:
    """Sets limits, ticks and name of one axis."""
    ax.set(**{f"{axis}lim": (column.low, column.high)})
    if column.labels is None:
        ax.locator_params(axis=axis, nbins=4)
    else:
        _label_ticks(ax, column, axis)
    ax.tick_params(axis=axis, labelsize=7)
    if named:
        ax.set(**{f"{axis}label": _short(column.name, _MAX_NAME)})
        getattr(ax, f"{axis}axis").label.set_fontsize(8)


def _points(ax: Axes, a: _Column, b: _Column, x: np.ndarray, y: np.ndarray, color: str, count: int) -> None:
    """Draws points, spread around labels and whole numbers of few values, so that their number shows."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(x))[:count]
    spread = [values[chosen] + _jitter(column, rng, len(chosen)) for column, values in ((a, x), (b, y))]
    ax.scatter(spread[0], spread[1], s=5, color=color, alpha=0.5, linewidths=0)


def _jitter(column: _Column, rng: np.random.Generator, count: int) -> np.ndarray:
    x = column.x[np.isfinite(column.x)]
    is_discrete = column.labels is not None or (_is_whole(x) and len(np.unique(x)) <= 20)
    return rng.uniform(-0.3, 0.3, count) if is_discrete else np.zeros(count)


def _corner(part: Any, columns: Sequence[_Column]) -> None:
    """Draws all pairs: data below the diagonal, samples above it, the columns on it."""
    size = len(columns)
    axes = part.subplots(size, size, squeeze=False)
    for i, b in enumerate(columns):
        for j, a in enumerate(columns):
            ax = axes[i, j]
            if i == j:
                _marginal(ax, a)
            else:
                x, y, color = (a.x, b.x, DATA_COLOR) if i > j else (a.y, b.y, SAMPLE_COLOR)
                _points(ax, a, b, x, y, color, min(len(a.x), len(a.y), _MAX_POINTS))
                _axis(ax, b, "y", named=False)
            _axis(ax, a, "x", named=False)
            if i < size - 1:
                ax.set_xticklabels([])
            if j or i == j:
                ax.set_yticklabels([])
        axes[i, 0].set_ylabel(_short(b.name, 14), fontsize=8)
        axes[size - 1, i].set_xlabel(_short(b.name, 14), fontsize=8)
