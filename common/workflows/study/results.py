"""What is made of a study's runs: tables, comparison, costs and report."""

from __future__ import annotations

import csv
import logging
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from ...data.formats import name_of
from ...data.layouts import Case
from ...errors import InputError
from ...files import read_json, replacing, write_json
from ..curves import TABLE
from .cases import Fold, link
from .definition import Row, Study
from .jobs import STATE, Job

_logger = logging.getLogger(__name__)
_MADE_OF = "made_of.json"
_REPEATS = 3  # of what is timed
_IN_NUMBERS = ("missed", "false")  # of a class, how often


def write_results(
    study: Study, folds: Sequence[Fold], finished: Sequence[Job], output: Path
) -> list[str]:
    """Evaluate the rows of which all runs are finished, compare them, and write tables and report.

    ``rows/ROW`` has what `evaluate` and `profile` write. Cases are those of all folds. With several
    seeds, or folds that test the same cases, a case's value is the mean over its runs, of which
    each seed, or fold and seed, has an evaluation in a folder of its own; ``seeds.csv`` has mean
    and standard deviation over them.

    Args:
        finished: the runs that are.

    Returns:
        A sentence without its stop for each thing that went wrong; rows that are not finished yet
        are none, and the log names them.
    """
    from ...evaluation import compare, write_report

    missing: list[str] = []
    methods: dict[str, Path] = {}
    predictions: dict[str, Path] = {}
    spread: list[list[Any]] = []
    for row in study.rows.values():
        jobs = [job for job in finished if job.row == row.name]
        if len(jobs) < len(folds) * len(study.seeds):
            _logger.warning(
                "%s has %d of %d runs, and is in no table before it has all.",
                row.name,
                len(jobs),
                len(folds) * len(study.seeds),
            )
            continue
        folder = output / "rows" / row.name
        groups = _groups(folds, jobs)
        try:
            missing += _evaluate(study, row, folds, groups, folder, output)
        except InputError as error:
            missing.append(f"{row.name} is in no table ({_without_stop(error)})")
            continue
        methods[row.name] = folder
        predictions[row.name] = _places(folder, groups)[0] / "predictions"
        spread += _spread(row.name, _places(folder, groups))
    if not methods:
        return missing
    if spread:
        _write_csv(output / "seeds.csv", spread)
    comparison = None
    metrics = study.content.get("metrics", ["dice"])
    if metrics and len(methods) > 1:
        try:
            comparison = compare(methods, output, metrics)
        except InputError as error:
            missing.append(f"The rows are not compared ({_without_stop(error)})")
    try:
        write_report(
            study.title,
            methods,
            output,
            comparison=comparison,
            paper=study.content.get("paper"),
            images=output / "images",
            labels=output / "labels",
            predictions=predictions,
            notes=study.notes,
        )
    except InputError as error:
        missing.append(f"There is no report ({_without_stop(error)})")
    return missing


def _groups(folds: Sequence[Fold], jobs: Sequence[Job]) -> list[list[Job]]:
    """Runs whose cases are evaluated together, none of them twice: those of a seed."""
    tested = [name for fold in folds for name in fold.test]
    if len(set(tested)) < len(tested):
        return [[job] for job in jobs]
    return [
        [job for job in jobs if job.seed == seed] for seed in dict.fromkeys(j.seed for j in jobs)
    ]


def _places(folder: Path, groups: Sequence[Sequence[Job]]) -> list[Path]:
    """The folders of the evaluations: of one alone that of the row."""
    if len(groups) == 1:
        return [folder]
    alone = len(groups[0]) == 1
    return [folder / (Path(g[0].folder).name if alone else f"seed{g[0].seed}") for g in groups]


def _evaluate(
    study: Study,
    row: Row,
    folds: Sequence[Fold],
    groups: Sequence[Sequence[Job]],
    folder: Path,
    output: Path,
) -> list[str]:
    """Write a row's tables and costs, unless they are there; what is missing of them."""
    from ...evaluation import evaluate

    options = {
        "classes": study.classes,
        "label_map": row.label_map,
        "ignore_label": row.ignore_label,
        **study.content.get("evaluation", {}),
    }
    made_of = {
        "evaluation": options,
        "runs": {
            job.folder: (Path(job.folder) / STATE).stat().st_mtime
            for group in groups
            for job in group
        },
    }
    done = folder / _MADE_OF
    if done.is_file() and read_json(done)["of"] == made_of:
        return list(read_json(done)["missing"])
    shutil.rmtree(folder, ignore_errors=True)
    missing = []
    places = _places(folder, groups)
    summaries = []
    tests = {fold.number: fold.test for fold in folds}
    for group, place in zip(groups, places, strict=True):
        for job in group:
            _gather(job, tests[job.fold], place / "predictions")
        found = evaluate(place / "predictions", output / "labels", place, **options)
        tested = {name for job in group for name in tests[job.fold]}
        skipped = [sentence for name, sentence in found.skipped.items() if name in tested]
        missing += [f"{row.name} lacks a case ({sentence.rstrip('.')})" for sentence in skipped]
        summaries.append(found.summary)
    if len(places) > 1:
        _pool(places, summaries, folder)
    for group in groups:
        for job in group:
            _copy_curves(job, folder, alone=len(groups) * len(group) == 1)
    missing += _profile(row, groups[0][0], next(iter(folds[0].test.values())), folder)
    write_json(done, {"of": made_of, "missing": missing})
    return missing


def _gather(job: Job, names: Mapping[str, Any], folder: Path) -> None:
    """Links to a run's masks of its cases."""
    for file in sorted((Path(job.folder) / "predictions").iterdir()):
        if name_of(file).removesuffix("_seg") in names:
            link(folder / file.name, file)


def _pool(places: Sequence[Path], summaries: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """A table of each case's mean values over several evaluations, and its summary.

    In how many cases a class was missed, or false, is the mean over the evaluations. Lesions are
    not pooled: one may be found with one seed and missed with another.
    """
    from ...evaluation.cases import CaseResult
    from ...evaluation.cases import write_results as write_tables
    from ...evaluation.measures import BETTER, Measures

    values: dict[tuple[str, str], list[list[float]]] = {}
    for place in places:
        with (place / "cases.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                own = [float(row[metric] or "nan") for metric in BETTER]
                values.setdefault((row["case"], row["name"]), []).append(own)
    means = {
        key: dict(zip(BETTER, (_mean(column) for column in zip(*own, strict=True)), strict=True))
        for key, own in values.items()
    }
    classes = list(dict.fromkeys(name for _, name in means))
    cases = [
        CaseResult(case, {n: Measures(means[case, n], "both") for n in classes}, {})
        for case in dict.fromkeys(case for case, _ in means)
    ]
    skipped = dict.fromkeys(name for summary in summaries for name in summary["skipped"])
    summary = write_tables(folder, cases, summaries[0]["settings"], sorted(skipped))
    for name, metrics in summary["classes"].items():
        for metric, found in metrics.items():
            for count in _IN_NUMBERS:
                found[count] = statistics.fmean(
                    own["classes"][name][metric][count] for own in summaries
                )
    write_json(folder / "summary.json", summary | {"pooled": [place.name for place in places]})


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _spread(row: str, places: Sequence[Path]) -> list[list[Any]]:
    """Of each class and metric the means of several evaluations; of one alone nothing."""
    if len(places) == 1:
        return []
    own = [read_json(place / "summary.json")["classes"] for place in places]
    table: list[list[Any]] = []
    for name, metrics in own[0].items():
        for metric in metrics:
            values = [classes[name][metric]["mean"] for classes in own]
            known = [value for value in values if value is not None]
            table.append(
                [
                    *(row, name, metric),
                    statistics.fmean(known) if known else "",
                    statistics.stdev(known) if len(known) > 1 else "",
                    *("" if value is None else value for value in values),
                ]
            )
    head = ["row", "class", "metric", "mean", "sd", *(place.name for place in places)]
    return [head, *table]


def _write_csv(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """Rows, of which the first is the head, and others that are equal to it are left out."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([rows[0], *(row for row in rows if row != rows[0])])


def _copy_curves(job: Job, folder: Path, alone: bool) -> None:
    table = Path(job.folder) / "eval" / TABLE
    name = Path(TABLE)
    own = TABLE if alone else f"{name.stem}_{Path(job.folder).name}{name.suffix}"
    if table.is_file():
        shutil.copy(table, folder / own)


def _profile(row: Row, job: Job, test: Case, folder: Path) -> list[str]:
    """Measure what a row's first network costs, on this machine and an image of the tests."""
    from .. import profile

    channels = ensure_tuple(test["image"])
    weights = Path(job.folder) / "models/model.pt"
    volume = channels[0] if len(channels) == 1 else None
    try:
        profile(row.bundle, folder, checkpoint=weights, volume=volume, repeats=_REPEATS)
    except InputError as error:
        return [f"The costs of {row.name} are not measured ({_without_stop(error)})"]
    return []


def _without_stop(error: InputError) -> str:
    return str(error).rstrip(".")
