"""What `evaluate` wrote of several methods on the same cases, read to be shown side by side."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, listed
from ..files import read_json
from .measures import BETTER

METRICS = tuple(BETTER)  # the columns of cases.csv after case, class and name
_CASES = ("case", "class", "name", *METRICS)
_LESIONS = ("case", "name", "kind", "diameter_mm", "dice")
_KINDS = ("found", "missed", "false")


class Lesion(NamedTuple):
    """A lesion of a label, found or missed, or a false one of a prediction.

    Attributes:
        name: its class.
        kind: found, missed or false.
        diameter_mm: pixels, of pictures; NaN where it has none.
        dice: NaN unless it is found.
    """

    case: str
    name: str
    kind: str
    diameter_mm: float
    dice: float


class Results(NamedTuple):
    """What one method reached.

    Attributes:
        cases: their names.
        classes: their names, in the order of their numbers.
        values: metric -> (cases, classes), NaN where a case has no value.
        summary: of summary.json.
        lesions: of lesions.csv; empty where there is none.
        costs: of costs.json; empty where there is none.
        curves: of each training column -> (epochs,), NaN where an epoch has no value.
    """

    cases: tuple[str, ...]
    classes: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    summary: dict[str, Any]
    lesions: list[Lesion]
    costs: dict[str, Any]
    curves: list[dict[str, NDArray[np.float64]]]

    @property
    def unit(self) -> str:
        """Of distances: mm, or pixels."""
        return str(self.summary["settings"].get("unit", "mm"))

    def mean(self, name: str, metric: str) -> float:
        """A metric's mean over cases; of `name` "mean" the mean of the classes' means."""
        if name == "mean":
            return as_number(self.summary["mean"].get(metric))
        return as_number(self.summary["classes"][name].get(metric, {}).get("mean"))


def as_number(value: Any) -> float:
    """A number of a JSON file, in which null stands for none, as NaN does here."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def read_results(methods: Mapping[str, str | Path]) -> dict[str, Results]:
    """The results of methods, cases and classes in the order that the first one has.

    Args:
        methods: the folder of each, with cases.csv and summary.json, and lesions.csv, costs.json,
            and learning_curves.csv (of several trainings learning_curves_*.csv) where there are.

    Raises:
        InputError: there is no method, a file is missing or is not what `evaluate` writes, or
            methods have other cases, other classes or other settings than the first one.
    """
    if not methods:
        raise InputError("There is no folder of results; needed is one or more.")
    found = {method: _read(Path(folder)) for method, folder in methods.items()}
    first, *others = found
    for other in others:
        _check_alike(first, found[first], other, found[other])
        found[other] = _in_order(found[other], found[first].cases)
    return found


def _read(folder: Path) -> Results:
    if not (folder / "cases.csv").is_file():
        raise InputError(
            f"{folder} has no cases.csv; allowed are folders that python -m common evaluate wrote."
        )
    cases, classes, values = _read_cases(folder / "cases.csv")
    path = folder / "summary.json"
    summary = read_json(path)
    for key in ("settings", "classes", "mean"):
        if not isinstance(summary.get(key), dict):
            raise InputError(f"{path} has no object {key!r}; needed is one, as evaluate writes.")
    if not isinstance(summary["settings"].get("classes"), dict):
        raise InputError(f"{path} has no classes in its settings; needed is an object of them.")
    if set(summary["classes"]) != set(classes):
        raise InputError(
            f"{path} has the classes {', '.join(summary['classes'])}, and cases.csv beside it "
            f"{', '.join(classes)}; allowed are the files of one evaluation."
        )
    lesions, costs = folder / "lesions.csv", folder / "costs.json"
    return Results(
        cases,
        classes,
        values,
        summary,
        _read_lesions(lesions) if lesions.is_file() else [],
        read_json(costs) if costs.is_file() else {},
        [_read_curve(file) for file in sorted(folder.glob("learning_curves*.csv"))],
    )


def _read_cases(
    path: Path,
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, NDArray[np.float64]]]:
    cases: dict[str, int] = {}
    names: dict[int, str] = {}
    rows: dict[tuple[str, int], list[float]] = {}
    for line, row in _rows(path, _CASES):
        case, number, name, *texts = row
        if not number.isdecimal():
            raise InputError(
                f"{path} has the class {number!r} in line {line}; allowed are whole numbers from 1."
            )
        key = case, int(number)
        if key in rows or names.setdefault(int(number), name) != name:
            raise InputError(
                f"{path} has case {case!r}, class {number} ({name}) in line {line}, of which there "
                "is another row; allowed is one per case and class, and one name per class."
            )
        cases.setdefault(case, len(cases))
        rows[key] = [
            _number(text, path, column, line) for column, text in zip(METRICS, texts, strict=True)
        ]
    if not rows:
        raise InputError(f"{path} has no case; needed is one or more.")
    numbers = sorted(names)
    if lacking := [f"{c} class {n}" for c in cases for n in numbers if (c, n) not in rows]:
        raise InputError(f"{path} lacks {listed(lacking)}; needed is a row per case and class.")
    if len(set(names.values())) < len(names):
        raise InputError(
            f"{path} has the classes {', '.join(names[n] for n in numbers)}; allowed are different "
            "names."
        )
    table = np.array([[rows[case, number] for number in numbers] for case in cases])
    values = {metric: table[..., i] for i, metric in enumerate(METRICS)}
    return tuple(cases), tuple(names[n] for n in numbers), values


def _read_lesions(path: Path) -> list[Lesion]:
    lesions = []
    for line, row in _rows(path, _LESIONS):
        case, name, kind, diameter, dice = row
        if kind not in _KINDS:
            raise InputError(
                f"{path} has the kind {kind!r} in line {line}; allowed are {', '.join(_KINDS)}."
            )
        size = _number(diameter, path, "diameter_mm", line)
        lesions.append(Lesion(case, name, kind, size, _number(dice, path, "dice", line)))
    return lesions


def _read_curve(path: Path) -> dict[str, NDArray[np.float64]]:
    head, rows = _table(path)
    if "epoch" not in head:
        raise InputError(f"{path} has no column epoch; needed is one, as trainings write.")
    columns = {name: np.empty(len(rows)) for name in head}
    for i, (line, row) in enumerate(rows):
        for name, text in zip(head, row, strict=True):
            columns[name][i] = _number(text, path, name, line)
    return columns


def _rows(path: Path, columns: Sequence[str]) -> list[tuple[int, list[str]]]:
    """The values of some columns of a CSV, row by row, with the lines that they end in."""
    head, rows = _table(path)
    if lacking := [column for column in columns if column not in head]:
        raise InputError(
            f"{path} lacks the columns {', '.join(lacking)}; it has {', '.join(head) or 'none'}."
        )
    places = [head.index(column) for column in columns]
    return [(line, [row[place] for place in places]) for line, row in rows]


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The columns of a CSV, and its rows with the lines that they end in."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            head = next(reader, [])
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"The table {path} cannot be read ({error}).") from error
    for line, row in rows:
        if len(row) != len(head):
            raise InputError(
                f"{path} has {len(row)} values in line {line}; allowed are {len(head)}, one a "
                "column."
            )
    return head, rows


def _number(text: str, path: Path, column: str, line: int) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise InputError(
            f"{path} has {text!r} as {column} in line {line}; allowed are finite numbers, and "
            "nothing where there is no value."
        )
    return value


def _check_alike(first: str, ours: Results, other: str, theirs: Results) -> None:
    if theirs.classes != ours.classes:
        raise InputError(
            f"{other} has the classes {', '.join(theirs.classes)}, and {first} "
            f"{', '.join(ours.classes)}; allowed are methods with the same classes."
        )
    for (a, of_a), (b, of_b) in (
        ((first, ours), (other, theirs)),
        ((other, theirs), (first, ours)),
    ):
        if lacking := sorted(set(of_a.cases) - set(of_b.cases)):
            raise InputError(
                f"{b} lacks cases that {a} has: {listed(lacking)}; allowed are methods that were "
                "evaluated on the same cases."
            )
    for key in sorted({*ours.summary["settings"], *theirs.summary["settings"]}):
        one, another = (x.summary["settings"].get(key) for x in (ours, theirs))
        if one != another:
            raise InputError(
                f"{other} was evaluated with {key} {another!r}, and {first} with {one!r}; allowed "
                "are methods that were evaluated with the same settings."
            )


def _in_order(results: Results, cases: Sequence[str]) -> Results:
    place = {case: i for i, case in enumerate(results.cases)}
    order = [place[case] for case in cases]
    values = {metric: table[order] for metric, table in results.values.items()}
    return results._replace(cases=tuple(cases), values=values)
