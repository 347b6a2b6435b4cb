"""Methods that were evaluated on the same cases, compared."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ..data import check_output_folder
from ..errors import InputError, check_choice, first_line, listed
from ..files import write_json
from .measures import BETTER
from .statistics import RULES, compare_values, fewest_cases

LESION_DICE = "lesion_dice"  # of lesions.csv, all others are columns of cases.csv

_BETTER = {**BETTER, LESION_DICE: "larger"}
_RESAMPLES = 10_000
_MEAN = "mean"  # of classes

_Cells = dict[tuple[str, str], float]  # by case and class, or stratum of a class's lesions


def compare(
    methods: Mapping[str, str | Path],
    output: str | Path,
    metrics: Sequence[str] = ("dice",),
    strata: Sequence[float] = (20.0, 50.0),
    seed: int = 0,
) -> dict[str, Any]:
    """Compare methods that were evaluated on the same cases; write ``comparison.json``.

    For every metric and class, and where there are several for their "mean" in each case: each
    method's mean, standard deviation and interval; for every pair the two-sided Wilcoxon
    signed-rank test, Holm's correction over the pairs, the rank-biserial correlation as effect
    size, and the interval of the mean difference; the ranking by means, and how stable it is. The
    rules are written with them.

    Args:
        methods: by name, the folders into which `evaluate` wrote; two or more.
        output: the folder to write to.
        metrics: columns of ``cases.csv``; or lesion_dice, the mean Dice of a case's lesions in
            ``lesions.csv``, where one that was missed has 0, of each class and stratum.
        strata: of lesion_dice, the diameters in mm at which one stratum ends and the next begins.
        seed: of the resampled cases.

    Returns:
        What was written: "settings", "cases" (their names), "metrics" (metric -> class -> what
        `compare_values` returns), and "notes" (sentences on what cannot be concluded).

    Raises:
        InputError: fewer than two methods, a table that is missing or damaged, or sets of cases
            that are not the same; an unknown metric, or strata that do not ascend.
    """
    _check(methods, metrics, strata, seed)
    columns = [metric for metric in metrics if metric != LESION_DICE]
    tables = [_case_cells(Path(folder), columns) for folder in methods.values()]
    keys = [own for own, _ in tables]
    _check_paired(dict(zip(methods, keys, strict=True)))
    cases = list(dict.fromkeys(case for case, _ in keys[0]))
    classes = list(dict.fromkeys(name for _, name in keys[0]))
    of_classes = {name: [name] for name in classes} | ({_MEAN: classes} if classes[1:] else {})
    groups = dict.fromkeys(columns, of_classes)
    cells = {metric: [table[metric] for _, table in tables] for metric in columns}
    settings: dict[str, Any] = {"methods": list(methods), **RULES}
    settings |= {"resamples": _RESAMPLES, "seed": seed}
    if LESION_DICE in metrics:
        cells[LESION_DICE] = _lesion_cells(methods, cases, strata)
        groups[LESION_DICE] = {name: [name] for _, name in cells[LESION_DICE][0]}
        settings[LESION_DICE] = "a case's mean over its lesions; a missed one has 0"
        settings["strata_mm"] = list(strata)
    check_output_folder(output)
    shares = np.full(len(cases), 1 / len(cases))
    drawn = np.random.default_rng(seed).multinomial(len(cases), shares, size=_RESAMPLES)
    weights = drawn.astype(float)
    found: dict[str, dict[str, Any]] = {metric: {} for metric in metrics}
    notes = []
    for metric in metrics:
        for group, members in groups[metric].items():
            values = np.array(
                [
                    [[own.get((case, name), math.nan) for name in members] for case in cases]
                    for own in cells[metric]
                ]
            )
            results = compare_values(list(methods), values, _BETTER[metric], weights)
            found[metric][group] = results
            notes += [f"{metric}, {group}: {note}" for note in _notes(results)]
    comparison = {"settings": settings, "cases": cases, "metrics": found, "notes": notes}
    path = Path(output) / "comparison.json"
    try:
        write_json(path, comparison)
    except OSError as error:
        raise InputError(f"The comparison {path} cannot be written ({error.strerror}).") from error
    return comparison


def comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    """What `compare` returns as text: for each metric and class a table of methods and of pairs."""
    lines = []
    for metric, groups in comparison["metrics"].items():
        for group, found in groups.items():
            lines += [f"{metric}, {group}", *_methods_table(found), *_pairs_table(found), ""]
    return [*lines, *comparison["notes"]]


def _check(
    methods: Mapping[str, str | Path], metrics: Sequence[str], strata: Sequence[float], seed: int
) -> None:
    if len(methods) < 2:
        named = ", ".join(methods) or "none"
        raise InputError(f"methods are {named}; allowed are two or more.")
    for metric in metrics:
        check_choice("metric", metric, _BETTER)
    if not metrics or len(set(metrics)) < len(metrics):
        named = ", ".join(metrics) or "none"
        raise InputError(f"metrics are {named}; allowed are one or more, each once.")
    if not strata or not all(a < b < math.inf for a, b in pairwise([0.0, *strata])):
        named = ", ".join(map(str, strata)) or "none"
        raise InputError(f"strata are {named}; allowed are ascending diameters in mm above 0.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is {seed!r}; allowed are whole numbers from 0.")


def _check_paired(keys: Mapping[str, Mapping[Any, Any]]) -> None:
    """See that methods have the same cases and classes, or lesions."""
    (first, known), *others = keys.items()
    for name, own in others:
        for has, lacks, a, b in ((known, own, first, name), (own, known, name, first)):
            if left := [" ".join(key) for key in has if key not in lacks]:
                raise InputError(
                    f"The sets are not paired: {b} lacks {listed(left, 5)}, which {a} has; allowed "
                    "are methods with the same cases, classes and lesions."
                )


def _case_cells(
    folder: Path, metrics: Sequence[str]
) -> tuple[dict[tuple[str, str], None], dict[str, _Cells]]:
    """The cases with their classes, and each metric's values."""
    keys: dict[tuple[str, str], None] = {}
    cells: dict[str, _Cells] = {metric: {} for metric in metrics}
    for where, row in _rows(folder, "cases.csv", ["case", "name", *metrics]):
        key = row["case"], row["name"]
        if key in keys:
            raise InputError(f"{where}: {' '.join(key)} is there twice; allowed is once.")
        if key[1] == _MEAN:
            raise InputError(f"{where}: a class is named {_MEAN}, which is that of all classes.")
        keys[key] = None
        for metric in metrics:
            cells[metric][key] = _number(where, metric, row[metric])
    if not keys:
        raise InputError(f"{folder / 'cases.csv'} has no cases; needed is one.")
    return keys, cells


def _lesion_cells(
    methods: Mapping[str, str | Path], cases: Sequence[str], strata: Sequence[float]
) -> list[_Cells]:
    """For each method, a case's mean Dice of its lesions, of each class and of its strata."""
    lesions = {name: _lesions(Path(folder), cases) for name, folder in methods.items()}
    _check_paired(lesions)
    (first, known), *_ = lesions.items()
    bands = [
        (low, high, f"{low:g} to {high:g} mm" if low else f"< {high:g} mm")
        for low, high in pairwise([0.0, *strata])
    ]
    bands.append((strata[-1], math.inf, f">= {strata[-1]:g} mm"))
    classes = dict.fromkeys(name for _, name, _ in known)
    columns = [[name, *(f"{name} {band}" for *_, band in bands)] for name in classes]
    cells = []
    for method, own in lesions.items():
        values: dict[tuple[str, str], list[float]] = {
            (case, column): [] for names in columns for column in names for case in cases
        }
        for key, (diameter, dice) in own.items():
            case, name, _ = key
            if not math.isclose(diameter, known[key][0], rel_tol=1e-6):
                raise InputError(
                    f"The sets are not paired: the lesion {' '.join(key)} measures {diameter:g} mm "
                    f"with {method} and {known[key][0]:g} mm with {first}; allowed is one label."
                )
            band = next(band for low, high, band in bands if low <= diameter < high)
            values[case, name].append(dice)
            values[case, f"{name} {band}"].append(dice)
        cells.append({key: float(np.mean(x)) for key, x in values.items() if x})
    return cells


def _lesions(folder: Path, cases: Sequence[str]) -> dict[tuple[str, str, str], tuple[float, float]]:
    """Diameter in mm and Dice of the label's lesions, by case, class and number."""
    lesions: dict[tuple[str, str, str], tuple[float, float]] = {}
    columns = ["case", "name", "lesion", "kind", "diameter_mm", "dice"]
    for where, row in _rows(folder, "lesions.csv", columns):
        check_choice(f"{where}: kind", row["kind"], ("found", "missed", "false"))
        if row["kind"] == "false":
            continue  # the label has no such lesion
        key = row["case"], row["name"], row["lesion"]
        if key in lesions:
            raise InputError(f"{where}: {' '.join(key)} is there twice; allowed is once.")
        if row["case"] not in cases:
            raise InputError(f"{where}: {row['case']} is not in cases.csv.")
        diameter = _number(where, "diameter_mm", row["diameter_mm"])
        dice = _number(where, "dice", row["dice"]) if row["kind"] == "found" else 0.0
        if math.isnan(diameter) or math.isnan(dice):
            lacks = "diameter_mm" if math.isnan(diameter) else "dice"
            raise InputError(f"{where}: {lacks} is empty; needed is a number.")
        lesions[key] = diameter, dice
    return lesions


def _rows(folder: Path, name: str, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """A table's rows, each with its place for messages."""
    path = folder / name
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, strict=True)
            rows = [(f"{path}, line {table.line_num}", row) for row in table]
            header = list(table.fieldnames or [])
    except FileNotFoundError as error:
        raise InputError(
            f"There is no {name} in {folder}; `python -m common evaluate` writes it."
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"The table {path} cannot be read ({first_line(error)}).") from error
    for column in columns:
        if column not in header:
            has = ", ".join(header) or "none"
            raise InputError(f"The table {path} has no column {column}; it has {has}.")
    for where, row in rows:
        if None in row or None in row.values():
            raise InputError(f"{where} has not {len(header)} cells, as the header has.")
    return rows


def _number(where: str, column: str, text: str) -> float:
    """A cell's number; NaN where it is empty."""
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: {column} is {text!r}; allowed are numbers, or nothing.")
    return value


def _notes(found: Mapping[str, Any]) -> list[str]:
    notes = []
    for pair in found["pairs"]:
        both = f"{pair['a']} and {pair['b']}"
        if pair["n"] == 0:
            notes.append(f"{both} have no case in which both have a value.")
        elif pair["n"] == pair["zeros"]:
            notes.append(f"{both} are equal in all of {pair['n']} cases, so p is 1.")
    tested = [pair for pair in found["pairs"] if pair["n"]]
    most = max((pair["n"] - pair["zeros"] for pair in tested), default=0)
    needed = fewest_cases(len(tested))
    if 0 < most < needed:
        after = " after Holm" if len(tested) > 1 else ""
        notes.append(
            f"where {most} case{'s differ' if most > 1 else ' differs'}, no p below 0.05{after} is "
            f"possible; needed are {needed}."
        )
    return notes


def _methods_table(found: Mapping[str, Any]) -> list[str]:
    rows = [["rank", "(95 %)", "first", "method", "mean ± sd", "95 % CI", "cases"]]
    ranked = {entry["method"]: entry for entry in found["ranking"]}
    for name in ranked or found["methods"]:
        own, rank = found["methods"][name], ["-", "-", "-"]
        if name in ranked:
            low, high = ranked[name]["rank_ci"]
            rank[0] = str(ranked[name]["rank"])
            if low is not None:
                rank[1:] = [f"{low} to {high}", f"{100 * ranked[name]['first']:.0f} %"]
        mean = f"{_text(own['mean'])} ± {_text(own['sd'])}"
        rows.append([*rank, name, mean, _span(own["ci"]), str(own["n"])])
    return _aligned(rows)


def _pairs_table(found: Mapping[str, Any]) -> list[str]:
    rows = [["pair", "difference", "95 % CI", "p", "p (Holm)", "effect", "cases"]]
    for pair in found["pairs"]:
        numbers = [_text(pair["difference"]), _span(pair["ci"]), _text(pair["p"], ".3g")]
        numbers += [_text(pair["p_holm"], ".3g"), _text(pair["effect_size"]), str(pair["n"])]
        rows.append([f"{pair['a']} - {pair['b']}", *numbers])
    return _aligned(rows)


def _text(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def _span(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)) for row in rows]
    return [f"  {line.rstrip()}" for line in lines]
