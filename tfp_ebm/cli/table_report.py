"""The report of a fit to a table: log-likelihoods beside simple densities, samples beside held-out rows, a verdict.

The verdict is "failed" if
  * the model is less likely than a simple density on the same held-out rows, by more than 2 standard errors of the mean
    difference (more where the rows are so few that their error is uncertain: Student's t) and by more than `TOLERANCE`,
    or its log density is not a number;
  * a classifier separates samples from held-out rows nearly always, or clearly more often than samples of a Gaussian
    mixture fitted to the data: this is a check of models whose log Z is unknown, too;
  * samples are not finite, came from chains that have not mixed, or sequential Monte Carlo found that they cannot be
    trusted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfp_ebm.evaluation import two_sample
from tfp_ebm.mcmc.diagnostics import MAX_RHAT
from tfp_ebm.recipes.density_rows import mean_and_error

# A loss that counts, in nats: for each column, and for each row.
TOLERANCE, _BASIC_TOLERANCE = 0.02, 0.02
# The difference of log-likelihoods, and of areas, that counts, in standard errors.
_ERRORS, _AUC_ERRORS = 2.0, 3.0
# A classifier that separates so well sees a different table; held-out rows for this to count.
MAX_AUC, _MIN_AUC_ROWS = 0.9, 50
# How much better than a mixture's samples a classifier may separate those of the model. Two moons after one step of
# training, when the samples are still those of the base, have an AUC of .79, those of a mixture of .51.
_AUC_TOLERANCE = 0.1
# A row is impossible for every density if all are so far below the median of the row's best, in nats.
_IMPOSSIBLE = 1000.0
# Columns and pairs that are kept in the report, and shown.
_PAIRS, _SHOWN = 10, 5


def table_report(
    held_out: Any,
    samples: Any,
    columns: Sequence[Mapping[str, Any]],
    log_prob: np.ndarray | None = None,
    references: Mapping[str, np.ndarray] | None = None,
    *,
    reference_samples: Any = None,
    sampling: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the report of a model of a table, whose keys are documented for `report.json`.

    Args:
      held_out: rows that the model was not trained on, a data frame or `[rows, columns]`.
      samples: the model's, in the same columns.
      columns: `name`, `kind` and `treatment` of each column.
      log_prob: the model's log density of each held-out row; None if log Z is unknown.
      references: log densities of the same rows under simple densities, `References.log_probs`.
      reference_samples: samples of a Gaussian mixture fitted to the data, for the classifier, in the same columns.
      sampling: diagnostics of the draws: `max_rhat`, `num_nonfinite` and `trouble`, where they are known.
      seed: of the classifier.

    Raises:
      ValueError: if log densities are not those of as many rows.

    >>> x, y = np.random.default_rng(0).normal(size=(2, 200, 1))
    >>> columns = [{"name": "0", "kind": "continuous", "treatment": "kept"}]
    >>> table_report(x, y, columns)["status"], table_report(x, y + 9.0, columns)["status"]
    ('ok', 'failed')
    """
    kinds = [str(column["kind"]) for column in columns]
    report: dict[str, Any] = {"status": "ok", "failures": []}
    report |= likelihoods(log_prob, references or {}, len(held_out), len(set(_modelled(kinds))))
    samples, num_nonfinite = _finite(samples)
    num_nonfinite = max(num_nonfinite, int((sampling or {}).get("num_nonfinite") or 0))
    report |= {
        "two_sample_auc": None, "two_sample_auc_standard_error": None, "two_sample_auc_of_reference": None,
        "columns": [{**_of_column(column), "distance": None, "distance_by_chance": None} for column in columns],
        "worst_pairs": [],
    }  # fmt: skip
    if len(samples):
        distances = two_sample.column_distances(held_out, samples, kinds)
        chance = two_sample.chance_distances(held_out, samples, kinds)
        for column, distance, by_chance in zip(report["columns"], distances.values(), chance.values(), strict=True):
            column |= {"distance": distance, "distance_by_chance": by_chance}
        pairs = two_sample.worst_pairs(held_out, samples, kinds, count=_PAIRS)
        report["worst_pairs"] = [{"columns": list(pair[:2]), "distance": pair.distance} for pair in pairs]
    if min(len(samples), len(held_out)) >= _MIN_AUC_ROWS:
        report["failures"] += _separated(report, held_out, samples, reference_samples, seed)
    if num_nonfinite:
        report["failures"].append(f"{num_nonfinite} samples, or chains, hold values that are not finite.")
    rhat = (sampling or {}).get("max_rhat")
    if rhat is not None and not rhat <= MAX_RHAT:
        report["failures"].append(
            f"R-hat of the chains is {rhat:.3f}, above {MAX_RHAT}: they have not mixed, and their samples need not "
            "have the model's distribution."
        )
    report["failures"] += (sampling or {}).get("trouble", ())
    report["status"] = "failed" if report["failures"] else "ok"
    return report


def _of_column(column: Mapping[str, Any]) -> dict[str, Any]:
    return {key: column.get(key) for key in ("name", "kind", "treatment")}


def _modelled(kinds: Sequence[str]) -> list[int]:
    return [i for i, kind in enumerate(kinds) if kind not in two_sample.LEFT_OUT]


def _finite(samples: Any) -> tuple[Any, int]:
    """Returns the samples without rows that hold an infinity, and the number of those rows."""
    if hasattr(samples, "select_dtypes"):
        numbers = samples.select_dtypes("number").to_numpy(np.float64, na_value=np.nan)
    else:
        numbers = np.asarray(samples, np.float64)
    is_bad = np.isinf(numbers).any(1)
    return samples[~is_bad], int(is_bad.sum())


def likelihoods(
    log_prob: np.ndarray | None, references: Mapping[str, np.ndarray], num_rows: int, num_columns: int
) -> dict[str, Any]:
    """Returns the parts of the report on log-likelihoods: `held_out`, `references` and `failures`.

    Rows that every density finds impossible, such as one with a cell of 10³⁰, are left out of all means and counted.

    Args:
      log_prob: the model's log density of each row; None if it is unknown.
      references: log densities of the same rows.
      num_rows: number of rows.
      num_columns: number of columns that the model has.
    """
    values = {name: np.asarray(value, np.float64) for name, value in references.items()}
    for name, value in {**values, **({} if log_prob is None else {"log_prob": np.asarray(log_prob)})}.items():
        if value.shape != (num_rows,):
            raise ValueError(f"`{name}` must have one log density for each of the {num_rows} rows, got {value.shape}.")
    densities = [*values.values(), *([] if log_prob is None else [np.asarray(log_prob, np.float64)])]
    kept: np.ndarray = np.ones(num_rows, bool)
    if values:
        best = np.max([np.where(np.isnan(value), -np.inf, value) for value in densities], axis=0)
        kept = best > np.median(best) - _IMPOSSIBLE if np.isfinite(np.median(best)) else kept
    held_out: dict[str, Any] = {
        "log_likelihood": None,
        "standard_error": None,
        "rows": num_rows,
        "rows_left_out": int((~kept).sum()),
    }
    found: dict[str, dict[str, Any]] = {}
    failures = []
    for name, value in values.items():
        found[name] = dict(zip(("log_likelihood", "standard_error"), mean_and_error(value[kept]), strict=True))
    if log_prob is not None:
        model = np.asarray(log_prob, np.float64)[kept]
        held_out |= dict(zip(("log_likelihood", "standard_error"), mean_and_error(model), strict=True))
        if num_bad := int((~np.isfinite(model)).sum()):
            failures.append(f"The model's log density is not finite in {num_bad} of {len(model)} held-out rows.")
        for name, value in values.items():
            with np.errstate(invalid="ignore"):
                difference, error = mean_and_error(model - value[kept])
            found[name] |= {"model_minus_reference": difference, "model_minus_reference_standard_error": error}
            limit = max(_errors_that_count(int(kept.sum())) * error, TOLERANCE * num_columns + _BASIC_TOLERANCE)
            if not num_bad and difference < -limit:
                failures.append(
                    f"The model is less likely than a {in_words(name)} fitted to the same rows, by {-difference:.3f} ± "
                    f"{error:.3f} nats per row."
                )
    return {"held_out": held_out, "references": found, "failures": failures}


def _errors_that_count(num_rows: int) -> float:
    """Returns the quantile of Student's t that is as rare as 2 standard errors of a mean of many rows."""
    from scipy import stats

    return float(stats.t.isf(stats.norm.sf(_ERRORS), num_rows - 1)) if num_rows > 1 else math.inf


def _separated(report: dict[str, Any], held_out: Any, samples: Any, of_mixture: Any, seed: int) -> list[str]:
    """Adds the areas of the classifier to the report; returns what they are a sign of."""
    auc = two_sample.two_sample_auc(held_out, samples, seed=seed)
    report |= {"two_sample_auc": auc.value, "two_sample_auc_standard_error": auc.standard_error}
    if of_mixture is not None:
        reference = two_sample.two_sample_auc(held_out, of_mixture, seed=seed)
        report["two_sample_auc_of_reference"] = reference.value
    if auc.value - _ERRORS * auc.standard_error > MAX_AUC:
        return [f"A classifier separates samples from held-out rows nearly always: its AUC is {auc.value:.3f}."]
    if of_mixture is None:
        return []
    excess, error = auc.value - reference.value, math.hypot(auc.standard_error, reference.standard_error)
    if excess > max(_AUC_ERRORS * error, _AUC_TOLERANCE):
        return [
            f"A classifier separates samples from held-out rows more easily (AUC {auc.value:.3f}) than those of a "
            f"Gaussian mixture fitted to the same rows ({reference.value:.3f})."
        ]
    return []


def in_words(name: str) -> str:
    """Returns the name of a reference as text.

    >>> in_words("gaussian_mixture"), in_words("kernel_density")
    ('Gaussian mixture', 'kernel density')
    """
    return name.replace("_", " ").replace("gaussian", "Gaussian")


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Returns the report as lines of text for the screen; the last is the verdict."""
    held_out = report["held_out"]
    left_out = held_out.get("rows_left_out", 0)
    rows = f"{held_out['rows']} held-out rows" + (f", without {left_out} that no density explains" if left_out else "")
    lines = [f"Log-likelihood in nats per row, of {rows}:"]
    if held_out["log_likelihood"] is None:
        lines.append("  model               unknown, since log Z is")
    else:
        lines.append(f"  {'model':16s} {_number(held_out)}")
    for name, reference in report["references"].items():
        line = f"  {in_words(name):16s} {_number(reference)}"
        if (difference := reference.get("model_minus_reference")) is not None:
            error = reference["model_minus_reference_standard_error"]
            line += f"   model: {difference:+.3f} ± {error:.3f}"
        lines.append(line)
    if report["two_sample_auc"] is not None:
        line = f"Samples and held-out rows, separated by a classifier: AUC {report['two_sample_auc']:.3f} ± "
        line += f"{report['two_sample_auc_standard_error']:.3f} (0.5 not at all, 1 always)"
        if report.get("two_sample_auc_of_reference") is not None:
            line += f"; samples of a Gaussian mixture: {report['two_sample_auc_of_reference']:.3f}"
        lines.append(line)
    return [*lines, *_column_lines(report), *_verdict(report)]


def worst_columns(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the columns of a report by how far their distance is above that of chance, worst first."""
    judged = [column for column in report["columns"] if column["distance"] is not None and column["kind"] not in
              two_sample.LEFT_OUT and math.isfinite(column["distance"])]  # fmt: skip
    return sorted(judged, key=lambda column: column["distance_by_chance"] - column["distance"])


def _number(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['log_likelihood']:12.3f} ± {estimate['standard_error']:.3f}"


def _column_lines(report: Mapping[str, Any]) -> list[str]:
    worst = worst_columns(report)[:_SHOWN]
    if not worst:
        return []
    labels = [f"{column['name']} ({column['kind']})" for column in worst]
    width = min(max(map(len, labels)), 40)
    head = "Columns by distance" if len(worst) == len(worst_columns(report)) else "Columns with the largest distances"
    lines = [f"{head} between samples and held-out rows (0 none, 1 the largest possible):"]
    for label, column in zip(labels, worst, strict=True):
        short = label if len(label) <= width else label[: width - 1] + "…"
        lines.append(f"  {short:{width}s}  {column['distance']:.3f}   by chance {column['distance_by_chance']:.3f}")
    return lines


def _verdict(report: Mapping[str, Any]) -> list[str]:
    if report["status"] == "ok":
        return ["ok: no check found a fault."]
    return ["FAILED:", *(f"  {failure}" for failure in report["failures"])]


def print_report(report: Mapping[str, Any]) -> None:
    """Prints the report."""
    print("\n".join(report_lines(report)), flush=True)
