"""What an evaluation writes: a table of cases, one of lesions, and a summary."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..files import replacing, write_json
from .lesions import Lesion, summarise_lesions
from .measures import BETTER, EMPTY_RULES, Measures

CASES, LESIONS, SUMMARY = "cases.csv", "lesions.csv", "summary.json"
_OF_A_CLASS = ("case", "class", "name")


class CaseResult(NamedTuple):
    """One case.

    Attributes:
        name: the case's.
        measures: of each class by its name, see `measure`.
        lesions: of each class whose lesions are looked at, see `find_lesions`.
    """

    name: str
    measures: Mapping[str, Measures]
    lesions: Mapping[str, Sequence[Lesion]]


def write_results(
    output: str | Path,
    cases: Sequence[CaseResult],
    settings: Mapping[str, Any],
    skipped: Iterable[str] = (),
) -> dict[str, Any]:
    """Write ``cases.csv``, ``summary.json`` and, where lesions are looked at, ``lesions.csv``.

    Each file appears whole or not at all. A ``lesions.csv`` of an earlier evaluation goes where
    there are none now: it would be of other masks than the table beside it.

    Args:
        output: a folder that there is.
        cases: of one or more, all with the same classes in the same order.
        settings: what was chosen, for the summary.
        skipped: names of cases that could not be evaluated, for the summary.

    Returns:
        The summary, see `summarise`.

    Raises:
        InputError: a file cannot be written.
    """
    folder = Path(output)
    numbered = list(enumerate(cases[0].measures, start=1))
    summary = summarise(cases, settings) | {"skipped": list(skipped)}
    rows = [
        [case.name, number, name, *map(_cell, case.measures[name].values.values())]
        for case in cases
        for number, name in numbered
    ]
    lesion_rows = [
        [case.name, number, name, *map(_cell, lesion)]
        for case in cases
        for number, name in numbered
        for lesion in case.lesions.get(name, ())
    ]
    _write(folder / CASES, lambda path: _write_csv(path, [*_OF_A_CLASS, *BETTER], rows))
    if cases[0].lesions:
        header = [*_OF_A_CLASS, *Lesion._fields]
        _write(folder / LESIONS, lambda path: _write_csv(path, header, lesion_rows))
    else:
        _write(folder / LESIONS, lambda path: path.unlink(missing_ok=True))
    _write(folder / SUMMARY, lambda path: write_json(path, summary))
    return summary


def summarise(cases: Sequence[CaseResult], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of each class over the cases, as ``summary.json`` has them; None is no value.

    Of a metric: mean, sd (the sample's, with n - 1) and median of the n cases that have a value,
    and how many are left_out, having none. In how many the class was missed, or was false, is the
    same for each metric of a class. "mean" is the mean of the classes' means, "mean_over_cases"
    that over cases of the mean over each case's classes: they differ where classes have values in
    different numbers of cases.

    Args:
        cases: as for `write_results`.
        settings: what was chosen.
    """
    names = list(cases[0].measures)
    # (cases, classes, metrics)
    values = np.array(
        [[list(case.measures[name].values.values()) for name in names] for case in cases]
    )
    classes = {}
    for i, name in enumerate(names):
        outcomes = [case.measures[name].outcome for case in cases]
        counts = {kind: outcomes.count(kind) for kind in ("missed", "false")}
        classes[name] = {
            metric: _statistics(values[:, i, j]) | counts for j, metric in enumerate(BETTER)
        }
    means = {
        metric: _mean([_mean(column) for column in values[:, :, j].T])
        for j, metric in enumerate(BETTER)
    }
    over_cases = {
        metric: _mean([_mean(row) for row in values[:, :, j]]) for j, metric in enumerate(BETTER)
    }
    lesions = {
        name: summarise_lesions([x for case in cases for x in case.lesions[name]], len(cases))
        for name in cases[0].lesions
    }
    return {
        "settings": dict(settings) | {"empty_rule": EMPTY_RULES[settings["empty"]]},
        "cases": len(cases),
        "classes": classes,
        "mean": {metric: _known(mean) for metric, mean in means.items()},
        "mean_over_cases": {metric: _known(mean) for metric, mean in over_cases.items()},
        "lesions": lesions,
    }


def _statistics(values: NDArray[np.float64]) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    return {
        "mean": _known(_mean(known)),
        "sd": float(known.std(ddof=1)) if len(known) > 1 else None,
        "median": float(np.median(known)) if len(known) else None,
        "n": len(known),
        "left_out": len(values) - len(known),
    }


def _mean(values: ArrayLike) -> float:
    """Of those that are known; NaN of none."""
    array = np.asarray(values, np.float64)
    known = array[~np.isnan(array)]
    return float(known.mean()) if len(known) else math.nan


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _cell(value: float | str) -> float | str:
    return "" if isinstance(value, float) and math.isnan(value) else value


def _write(path: Path, write: Callable[[Path], None]) -> None:
    try:
        write(path)
    except OSError as error:
        raise InputError(f"The file {path} cannot be written ({error.strerror}).") from error


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(rows)
