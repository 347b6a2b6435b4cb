"""Tables of what methods reached, and the same tables as Markdown and as LaTeX."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import InputError, by_axis
from .measures import BETTER
from .results import METRICS, Results, as_number

# How metrics are called, and their decimals; lengths are in the results' unit.
TITLES = {
    "dice": ("Dice", 4),
    "iou": ("IoU", 4),
    "voe": ("VOE", 4),
    "rvd": ("RVD", 4),
    "rvd_abs": ("|RVD|", 4),
    "precision": ("Precision", 4),
    "recall": ("Recall", 4),
    "f2": ("F2", 4),
    "asd": ("ASD", 2),
    "hd95": ("HD95", 2),
    "nsd": ("NSD", 4),
    "volume_ml": ("Volume, mL", 2),
    "reference_ml": ("Volume in the label, mL", 2),
    "lesion_dice": ("Dice of lesions", 4),
}
LENGTHS = ("asd", "hd95")
_QUALITY = tuple(metric for metric in METRICS if metric not in ("volume_ml", "reference_ml"))
_LESIONS: dict[str, tuple[str, str | None, int]] = {  # of summary.json's lesions
    "recall": ("Recall", "larger", 4),
    "precision": ("Precision", "larger", 4),
    "f1": ("F1", "larger", 4),
    "false_positives_per_case": ("False per case", "smaller", 2),
    "dice": ("Dice of found", "larger", 4),
    "dice_with_missed": ("Dice, missed as 0", "larger", 4),
    "found": ("found", None, 0),
    "missed": ("missed", None, 0),
    "false": ("false", None, 0),
}
_STRATA = {
    "diameter_mm": "diameter, mm",
    "diameter_voxels": "diameter, voxels",
    "volume_ml": "volume, mL",
    "number": "lesions in the case",
}
# Of costs.json: title, what one of the unit is worth, decimals.
COSTS = {
    "parameters": ("Parameters, M", 1e6, 3),
    "flops": ("FLOPs, G", 1e9, 2),
    "seconds_forward": ("Forward, ms", 1e-3, 2),
    "seconds_training_step": ("Training step, ms", 1e-3, 2),
    "seconds_volume": ("Volume, s", 1.0, 2),
    "peak_memory_bytes": ("Memory of forward, MB", 1e6, 0),
    "peak_memory_training_bytes": ("Memory of training, MB", 1e6, 0),
    "peak_memory_volume_bytes": ("Memory of a volume, MB", 1e6, 0),
}
# What a paper's number may be in.
_UNITS = {"%": 0.01, "M": 1e6, "G": 1e9, "MB": 1e6, "ms": 1e-3, **dict.fromkeys(("s", "mm"), 1.0)}
_NOTHING = "-"
_PAPER = (
    "Rows marked (paper) are the paper's own numbers, of its own cases; none was measured here."
)


class Cell(NamedTuple):
    """What a table has at one place.

    Attributes:
        text: as it is read.
        order: by which rows are sorted; the text's own where it is None, last where it is NaN.
        strong: whether it stands out.
    """

    text: str
    order: float | None = None
    strong: bool = False


class Row(NamedTuple):
    cells: list[Cell]
    of_paper: bool = False


class Table(NamedTuple):
    """A table with its caption and, below it, sentences that say how its numbers were made."""

    title: str
    columns: list[str]
    rows: list[Row]
    notes: list[str]

    @property
    def numeric(self) -> list[bool]:
        """Of each column whether it has numbers."""
        return [
            any(row.cells[i].order is not None for row in self.rows)
            for i in range(len(self.columns))
        ]


class Paper(NamedTuple):
    """A paper's own numbers, each by method.

    Attributes:
        metrics: (class or "mean", metric) -> mean and, NaN where it has none, standard deviation.
        costs: name in costs.json -> value.
        others: what it calls a number -> the number, of what no table here has.
    """

    metrics: dict[str, dict[tuple[str, str], tuple[float, float]]]
    costs: dict[str, dict[str, float]]
    others: dict[str, dict[str, float]]


def read_paper(paper: Mapping[str, Mapping[str, Any]] | None, classes: Sequence[str]) -> Paper:
    """A study's map of the paper's numbers: {"LightM-UNet": {"liver dice, %": 96.31, ...}}.

    A name is "CLASS METRIC", of which CLASS may be mean, or one of `COSTS`; after it may stand sd
    and, with a comma, the unit: %, M, G, MB, ms, s or mm. What is named in another way is kept.

    Raises:
        InputError: a value is no number.
    """
    read = Paper({}, {}, {})
    for method, numbers in (paper or {}).items():
        if not isinstance(numbers, Mapping):
            raise InputError(
                f"paper has {numbers!r} of {method}; allowed is a map of names to numbers."
            )
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InputError(f"paper has {value!r} as {name} of {method}; allowed are numbers.")
            plain, _, unit = name.rpartition(", ")
            factor = _UNITS.get(unit) if plain else None
            plain, number = (plain, value * factor) if factor else (name, float(value))
            group, _, metric = plain.removesuffix(" sd").rpartition(" ")
            if plain in COSTS:
                read.costs.setdefault(method, {})[plain] = number
            elif group in (*classes, "mean") and metric in _QUALITY:
                of_method = read.metrics.setdefault(method, {})
                mean, deviation = of_method.get((group, metric), (math.nan, math.nan))
                pair = (mean, number) if plain.endswith(" sd") else (number, deviation)
                of_method[group, metric] = pair
            else:
                read.others.setdefault(method, {})[name] = float(value)
    return read


def result_tables(results: Mapping[str, Results], paper: Paper) -> list[Table]:
    """Means of each metric over all classes, and with standard deviations of each class."""
    first = next(iter(results.values()))
    tables = [_class_table(name, results, paper) for name in first.classes]
    if len(first.classes) == 1:
        return tables
    means = [_mean_table("Mean of the classes' means", "mean", results, paper)]
    if _means_differ(results):
        of_cases = "Mean over all cases and classes at once, which differs"
        means.append(_mean_table(of_cases, "mean_over_cases", results, Paper({}, {}, {})))
    return means + tables


def _class_table(name: str, results: Mapping[str, Results], paper: Paper) -> Table:
    own = {method: found.summary["classes"][name] for method, found in results.items()}
    metrics = [m for m in _QUALITY if _known(as_number(own[x].get(m, {}).get("mean")) for x in own)]
    counts = ("n", "left_out", "missed", "false")
    rows = {
        method: [
            *(_mean_cell(metric, told.get(metric, {})) for metric in metrics),
            *(_count(told.get("dice", {}).get(count)) for count in counts),
        ]
        for method, told in own.items()
    }
    _mark_best(list(rows.values()), [BETTER[metric] for metric in metrics])
    fewer = [
        f"{TITLES[metric][0]} is over another number of cases: "
        f"{', '.join(f'{method} {n}' for method, n in of_method.items())}."
        for metric in metrics
        if (of_method := _other_numbers(own, metric))
    ]
    columns = [*_titles(metrics, results), "cases", "left out", "missed", "false"]
    explained = (
        "Mean ± standard deviation over the cases that have a value, the best mean in bold. Cases "
        "and left out are those of Dice; missed: the label alone has the class; false: the "
        "prediction alone."
    )
    shown = _with_paper(rows, paper, name, metrics, len(counts))
    notes = [explained, *fewer, *_rules(results), *_of_paper(shown)]
    return Table(f"{name}: mean over cases", ["Method", *columns], shown, notes)


def _mean_table(title: str, key: str, results: Mapping[str, Results], paper: Paper) -> Table:
    own = {method: found.summary.get(key, {}) for method, found in results.items()}
    metrics = [m for m in _QUALITY if _known(as_number(own[x].get(m)) for x in own)]
    rows = {
        method: [_mean_cell(metric, {"mean": told.get(metric)}) for metric in metrics]
        for method, told in own.items()
    }
    _mark_best(list(rows.values()), [BETTER[metric] for metric in metrics])
    shown = _with_paper(rows, paper, "mean", metrics)
    columns = ["Method", *_titles(metrics, results)]
    return Table(title, columns, shown, [*_rules(results), *_of_paper(shown)])


def lesion_tables(results: Mapping[str, Results]) -> list[Table]:
    """Lesions as instances: recall, precision and F1, of all of a class and in strata."""
    first = next(iter(results.values()))
    tables = []
    for name in first.classes:
        own = {m: x.summary.get("lesions", {}).get(name, {}) for m, x in results.items()}
        if not any(own.values()):
            continue
        tables.append(_lesion_table(f"Lesions of {name}", [("", own)], results))
        strata = {by: told for x in own.values() for by, told in x.get("strata", {}).items()}
        for by, told in strata.items():
            within = [
                (
                    stratum,
                    {m: x.get("strata", {}).get(by, {}).get(stratum, {}) for m, x in own.items()},
                )
                for stratum in told
            ]
            title = f"Lesions of {name} by {_STRATA.get(by, by)}"
            tables.append(_lesion_table(title, within, results))
    return tables


def _lesion_table(
    title: str,
    strata: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]],
    results: Mapping[str, Results],
) -> Table:
    """Detection by each method in each stratum that has a lesion or a false one."""
    known = [
        (stratum, own)
        for stratum, own in strata
        if any(x.get(kind) for x in own.values() for kind in ("found", "missed", "false"))
    ]
    keys = [
        key
        for key in _LESIONS
        if _known(as_number(x.get(key)) for _, own in known for x in own.values())
    ]
    shown = []
    for stratum, own in known:
        cells = [
            [number_cell(as_number(x.get(k)), _LESIONS[k][2]) for k in keys] for x in own.values()
        ]
        _mark_best(cells, [_LESIONS[key][1] for key in keys])
        within = [Cell(stratum)] if stratum else []
        shown += [
            Row([Cell(method), *within, *numbers])
            for method, numbers in zip(own, cells, strict=True)
        ]
    columns = [_with_arrow(_LESIONS[key][0], _LESIONS[key][1]) for key in keys]
    if known and known[0][0]:
        columns.insert(0, "Stratum")
    settings = next(iter(results.values())).summary["settings"]
    told = {key: settings[key] for key in _OF_LESIONS if key in settings}
    return Table(title, ["Method", *columns], shown, [described(told)] if told else [])


_OF_LESIONS = ("lesion_overlap", "lesion_connectivity")


def cost_table(results: Mapping[str, Results], paper: Paper) -> Table | None:
    """Parameters, FLOPs, times and memory of the methods of which they were measured."""
    measured = {method: found.costs for method, found in results.items() if found.costs}
    told = [*measured.values(), *paper.costs.values()]
    keys = [key for key in COSTS if _known(as_number(x.get(key)) for x in told)]
    if not keys:
        return None
    rows, theirs = (
        {
            method: [
                number_cell(as_number(x.get(key)) / COSTS[key][1], COSTS[key][2]) for key in keys
            ]
            for method, x in costs.items()
        }
        for costs in (measured, paper.costs)
    )
    _mark_best(list(rows.values()), ["smaller"] * len(keys))
    alike: dict[str, list[str]] = {}
    for method, costs in measured.items():
        alike.setdefault(_measured_on(costs), []).append(method)
    notes = [f"{', '.join(methods)}: {about}." for about, methods in alike.items() if about]
    columns = ["Method", *(_with_arrow(COSTS[key][0], "smaller") for key in keys)]
    shown = _interleaved(rows, theirs)
    return Table("Costs", columns, shown, [*notes, *_of_paper(shown)])


def paper_table(paper: Paper) -> Table | None:
    """The paper's numbers that stand beside none of ours."""
    columns = list(dict.fromkeys(name for x in paper.others.values() for name in x))
    if not columns:
        return None
    rows = {
        method: [
            Cell(f"{x[name]:g}", x[name]) if name in x else Cell(_NOTHING, math.nan)
            for name in columns
        ]
        for method, x in paper.others.items()
    }
    shown = _interleaved({}, rows)
    return Table("The paper's other numbers", ["Method", *columns], shown, _of_paper(shown))


def comparison_tables(comparison: Mapping[str, Any]) -> list[Table]:
    """Intervals, ranks and pairwise tests of what `compare` wrote."""
    settings = {k: x for k, x in comparison.get("settings", {}).items() if k != "methods"}
    tables: list[Table] = []
    for metric, groups in comparison["metrics"].items():
        title, decimals = TITLES.get(metric, (metric, 4))
        for group, found in groups.items():
            where = f"{title}, {'mean of classes' if group == 'mean' else group}"
            said = [f"{x[0].upper()}{x[1:]}" for x in _said_of(comparison, metric, group)]
            tables.append(_ranking(where, found, decimals, said))
            tables.append(_pairs(where, found, decimals, said))
    for table in tables[:1]:
        table.notes.append(f"{described(settings)} They are of all comparisons here.")
    return tables


def _said_of(comparison: Mapping[str, Any], metric: str, group: str) -> list[str]:
    """Its notes on one metric of one class, which begin with these."""
    start = f"{metric}, {group}: "
    notes = (str(note) for note in comparison.get("notes", ()))
    return [note.removeprefix(start) for note in notes if note.startswith(start)]


def _ranking(where: str, found: Mapping[str, Any], decimals: int, notes: list[str]) -> Table:
    ranks = {entry["method"]: entry for entry in found["ranking"]}
    rows = []
    for method in sorted(found["methods"], key=lambda x: ranks.get(x, {}).get("rank", math.inf)):
        own, rank = found["methods"][method], ranks.get(method, {})
        low, high = rank.get("rank_ci", (None, None))
        first = as_number(rank.get("first"))
        cells = [
            _count(rank.get("rank")),
            Cell(_NOTHING if low is None else f"{low} to {high}", as_number(low)),
            Cell(_NOTHING if math.isnan(first) else f"{100 * first:.1f} %", first),
            number_cell(as_number(own.get("mean")), decimals),
            number_cell(as_number(own.get("sd")), decimals),
            _interval(own.get("ci"), decimals),
        ]
        rows.append(Row([Cell(method), *cells]))
    columns = ["Method", "Rank", "95 % CI of the rank", "First in", "Mean", "SD", "95 % CI"]
    first_in = "First in: the share of bootstrap samples of the cases in which it ranks first."
    return Table(f"{where}: ranking and its stability", columns, rows, [first_in, *notes])


def _pairs(where: str, found: Mapping[str, Any], decimals: int, notes: list[str]) -> Table:
    rows = []
    for pair in found["pairs"]:
        holm = as_number(pair.get("p_holm"))
        cells = [
            Cell(pair["a"]),
            Cell(pair["b"]),
            number_cell(as_number(pair.get("difference")), decimals, sign="+"),
            _interval(pair.get("ci"), decimals),
            number_cell(as_number(pair.get("statistic")), 1),
            _p(as_number(pair.get("p"))),
            _p(holm)._replace(strong=holm < 0.05),
            number_cell(as_number(pair.get("effect_size")), 2, sign="+"),
            _count(pair.get("n")),
        ]
        rows.append(Row(cells))
    columns = ["A", "B", "A - B", "95 % CI", "W", "p", "p (Holm)", "Effect size", "cases"]
    bold = "Bold: p after Holm's correction is below 0.05."
    return Table(f"{where}: pairs", columns, rows, [bold, *notes])


def case_table(results: Mapping[str, Results]) -> Table:
    """The Dice of every case and class by every method, with the label's volume."""
    first = next(iter(results.values()))
    rows = []
    for i, case in enumerate(first.cases):
        for j, name in enumerate(first.classes):
            volume = number_cell(float(first.values["reference_ml"][i, j]), 2)
            scores = [number_cell(float(x.values["dice"][i, j]), 4) for x in results.values()]
            rows.append(Row([Cell(case), Cell(name), volume, *scores]))
    columns = ["Case", "Class", TITLES["reference_ml"][0], *(f"Dice of {m}" for m in results)]
    return Table("Dice of every case", columns, rows, _rules(results))


def described(settings: Mapping[str, Any]) -> str:
    """Settings as a sentence: empty: nnunet; tolerance_mm: 1; classes: liver = 1, 2; tumour = 2."""
    return f"Settings: {'; '.join(f'{name}: {_plain(x)}' for name, x in settings.items())}."


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} = {_plain(x)}" for name, x in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return " and ".join(map(_plain, value)) or "none"
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value).rstrip(".")


_ARROWS = {"larger": " ↑", "smaller": " ↓"}


def titled(metric: str, unit: str) -> str:
    """How a metric is called, with its unit if it has one."""
    return f"{TITLES[metric][0]}, {unit}" if metric in LENGTHS else TITLES[metric][0]


def _titles(metrics: Sequence[str], results: Mapping[str, Results]) -> list[str]:
    unit = next(iter(results.values())).unit
    return [_with_arrow(titled(metric, unit), BETTER[metric]) for metric in metrics]


def _with_arrow(title: str, better: str | None) -> str:
    return title + (_ARROWS[better] if better else "")


def _known(values: Iterable[float]) -> bool:
    return any(not math.isnan(value) for value in values)


def number_cell(value: float, decimals: int, sign: str = "") -> Cell:
    """A number as it is read, by which its column sorts; of NaN a dash, which sorts last."""
    if math.isnan(value):
        return Cell(_NOTHING, math.nan)
    shown = round(value, decimals) + 0.0  # of -0 it is 0
    return Cell(f"{shown:{sign}.{decimals}f}", value)


def _mean_cell(metric: str, told: Mapping[str, Any]) -> Cell:
    """A metric's mean, and its standard deviation if it has one."""
    decimals = TITLES[metric][1]
    cell, deviation = number_cell(as_number(told.get("mean")), decimals), as_number(told.get("sd"))
    if math.isnan(deviation):
        return cell
    return cell._replace(text=f"{cell.text} ± {deviation:.{decimals}f}")


def _count(value: Any) -> Cell:
    number = as_number(value)  # of several seeds it is a mean
    return Cell(_NOTHING if math.isnan(number) else f"{number:.4g}", number)


def _p(value: float) -> Cell:
    if value < 0.001:
        return Cell("< 0.001", value)
    return number_cell(value, 3)


def _interval(ci: Sequence[float] | None, decimals: int) -> Cell:
    if ci is None:
        return Cell(_NOTHING, math.nan)
    low, high = (number_cell(as_number(x), decimals) for x in ci)
    return Cell(f"{low.text} to {high.text}", low.order)


def _mark_best(rows: list[list[Cell]], better: Sequence[str | None]) -> None:
    """Have the best of each column stand out, and what reads the same, unless all do."""
    for column, direction in enumerate(better):
        known = [row[column] for row in rows if not math.isnan(row[column].order or 0.0)]
        if direction is None or len({_mean_of(cell) for cell in known}) < 2:
            continue
        choose = max if direction == "larger" else min
        best = _mean_of(choose(known, key=lambda cell: cell.order or 0.0))
        for row in rows:
            row[column] = row[column]._replace(strong=_mean_of(row[column]) == best)


def _mean_of(cell: Cell) -> str:
    return cell.text.partition(" ")[0]


def _with_paper(
    rows: Mapping[str, list[Cell]],
    paper: Paper,
    group: str,
    metrics: Sequence[str],
    counts: int = 0,
) -> list[Row]:
    """Our rows, each followed by the paper's of the same method, and the paper's others."""
    theirs = {}
    for method, numbers in paper.metrics.items():
        pairs = [numbers.get((group, metric), (math.nan, math.nan)) for metric in metrics]
        cells = [
            _mean_cell(metric, {"mean": mean, "sd": deviation})
            for metric, (mean, deviation) in zip(metrics, pairs, strict=True)
        ]
        if _known(cell.order or 0.0 for cell in cells):
            theirs[method] = cells + [Cell(_NOTHING, math.nan)] * counts
    return _interleaved(rows, theirs)


def _interleaved(ours: Mapping[str, list[Cell]], theirs: Mapping[str, list[Cell]]) -> list[Row]:
    rows = []
    for method in [*ours, *(m for m in theirs if m not in ours)]:
        if method in ours:
            rows.append(Row([Cell(method), *ours[method]]))
        if method in theirs:
            rows.append(Row([Cell(f"{method} (paper)"), *theirs[method]], of_paper=True))
    return rows


def _other_numbers(own: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, int]:
    """Of how many cases a metric is the mean, where that is not as many as of Dice."""
    numbers = {}
    for method, told in own.items():
        n, of_dice = (as_number(told.get(m, {}).get("n")) for m in (metric, "dice"))
        if n != of_dice and not math.isnan(n):
            numbers[method] = int(n)
    return numbers


def _means_differ(results: Mapping[str, Results]) -> bool:
    for found in results.values():
        of_cases = found.summary.get("mean_over_cases", {})
        for metric in _QUALITY:
            one, other = (as_number(x.get(metric)) for x in (found.summary["mean"], of_cases))
            if abs(one - other) >= 0.5 * 10.0 ** -TITLES[metric][1]:
                return True
    return False


def _rules(results: Mapping[str, Results]) -> list[str]:
    """What counts where a mask is empty, the tolerance of NSD, and who lacks cases."""
    settings = next(iter(results.values())).summary["settings"]
    told = {key: settings[key] for key in ("empty", "tolerance_mm") if key in settings}
    rules = [described(told)] if told else []
    if "empty_rule" in settings:
        tolerance = (
            f" NSD is at {_plain(settings.get('tolerance_mm'))} {settings.get('unit', 'mm')}."
        )
        rules = [f"Empty masks: {settings['empty_rule']}{tolerance}"]
    skipped = {method: len(found.summary.get("skipped", ())) for method, found in results.items()}
    if any(skipped.values()):
        counts = ", ".join(f"{method} {n}" for method, n in skipped.items())
        rules.append(f"Cases that could not be evaluated are in no number: {counts}.")
    return rules


def _of_paper(rows: Iterable[Row]) -> list[str]:
    return [_PAPER] if any(row.of_paper for row in rows) else []


def _measured_on(costs: Mapping[str, Any]) -> str:
    told = {key: costs[key] for key in ("machine", "precision", "batch") if costs.get(key)}
    size = costs.get("input_size")
    parts = [f"{key} {_plain(x)}" for key, x in told.items()]
    return "; ".join([*([f"input {by_axis(size)}"] if size else []), *parts])


def as_markdown(title: str, tables: Iterable[Table]) -> str:
    """Tables as GitHub's Markdown: the best in bold, the paper's in italics."""
    parts = [f"# {_markdown(title)}"]
    for table in tables:
        rows = [[_markdown(column) for column in table.columns]]
        for row in table.rows:
            mark = "*" if row.of_paper else ""
            cells = [("**" if cell.strong else mark, _markdown(cell.text)) for cell in row.cells]
            rows.append([f"{around}{text}{around}" for around, text in cells])
        lines = [f"| {' | '.join(cells)} |" for cells in rows]
        rule = ["---:" if numeric else "---" for numeric in table.numeric]
        lines.insert(1, f"| {' | '.join(rule)} |")
        notes = [_markdown(note) for note in table.notes]
        parts += [f"## {_markdown(table.title)}", "\n".join(lines), *notes]
    return "\n\n".join(parts) + "\n"


def as_latex(tables: Iterable[Table]) -> str:
    """Tables as LaTeX, by the packages booktabs and adjustbox: the best in bold.

    pdfLaTeX takes them. Names may have Latin letters up to U+017F and the Greek ones that LaTeX
    names; of what it cannot show, the code stands in its place, as [U+4E2D].
    """
    needed = (r"\usepackage[T1]{fontenc}", r"\usepackage{booktabs}", r"\usepackage{adjustbox}")
    parts = [f"% In the preamble: {' '.join(needed)}"]
    for number, table in enumerate(tables):
        if number and number % _FLOATS == 0:
            parts.append(r"\clearpage")
        lines = [" & ".join(map(_latex, table.columns)) + r" \\", r"\midrule"]
        for row in table.rows:
            cells = [_latex(cell.text) for cell in row.cells]
            for i, cell in enumerate(row.cells):
                if cell.order is not None:
                    cells[i] = "--" if cell.text == _NOTHING else cells[i].replace("-", "$-$")
                if cell.strong or row.of_paper:
                    cells[i] = rf"\text{'bf' if cell.strong else 'it'}{{{cells[i]}}}"
            lines.append(" & ".join(cells) + r" \\")
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{_latex(table.title)}}}",
                    r"\begin{adjustbox}{max width=\textwidth}",
                    rf"\begin{{tabular}}{{{''.join('lr'[x] for x in table.numeric)}}}",
                    r"\toprule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{adjustbox}",
                    rf"\par\smallskip{{\footnotesize {_latex(' '.join(table.notes))}\par}}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~$&#])", r"\\\1", _one_line(text))


_FLOATS = 16  # LaTeX may keep 18 tables with no text between them, and more are an error
_GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ"  # of which LaTeX has a name
_NOT_IN_T1 = "ĦħĸĿŀŉŦŧſ"  # of the Latin letters up to U+017F, those that this encoding lacks


def _greek(letter: str) -> str:
    name = unicodedata.name(letter).split()[-1].replace("LAMDA", "LAMBDA")
    return name.capitalize() if letter.isupper() else name.lower()


_LATEX = {
    **{letter: rf"$\{_greek(letter)}$" for letter in _GREEK},
    **{character: f"\\{character}" for character in "{}$&#%_"},
    **{character: f"{{{character}}}" for character in "[]*"},  # after the end of a row
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{LEFT SINGLE QUOTATION MARK}": "`",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
    "…": r"\ldots{}",
    "·": r"$\cdot$",
    "ς": r"$\varsigma$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "\N{MINUS SIGN}": "$-$",
    "°": r"$^\circ$",
    "µ": r"$\mu$",
    "²": "$^2$",
    "³": "$^3$",
    "≤": r"$\le$",
    "≥": r"$\ge$",
}


def _latex(text: str) -> str:
    composed = unicodedata.normalize("NFC", _one_line(text))  # an accent by itself is no letter
    return "".join(_LATEX.get(character) or _in_t1(character) for character in composed)


def _in_t1(character: str) -> str:
    """A character that LaTeX shows as it is, and the code of any other."""
    printed = character.isascii() and character.isprintable()
    letter = character.isalpha() and character <= "\u017f" and character not in _NOT_IN_T1
    return character if printed or letter else f"{{[}}U+{ord(character):04X}{{]}}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
