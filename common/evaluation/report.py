"""A report on methods that were evaluated on the same cases: a page, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data import check_output_folder
from ..data.label_values import LabelValues
from ..data.layouts.names import without_first_channel
from ..errors import InputError, listed
from ..files import writing
from .figures import (
    Picture,
    draw_boxes,
    draw_curves,
    draw_lesions,
    draw_sizes,
    draw_volumes,
    picture,
    shortened,
    style,
)
from .label_maps import as_classes, files_by_case, read_case
from .overlay import draw_errors
from .pages import template, versions
from .renderings import draw_surfaces
from .results import Results, read_results
from .scenes import Scene, load_scene
from .tables import (
    TITLES,
    Paper,
    Table,
    as_latex,
    as_markdown,
    case_table,
    comparison_tables,
    cost_table,
    described,
    lesion_tables,
    paper_table,
    read_paper,
    result_tables,
)

_TEMPLATE = "report.html.jinja"
_BOXES = ("dice", "nsd", "hd95")
_MOST_CLASSES = 8  # that have a figure of their own


class Section(NamedTuple):
    """A part of the page.

    Attributes:
        folded: tables that are shown on demand.
    """

    title: str
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    folded: Sequence[Table] = ()


def write_report(
    title: str,
    methods: Mapping[str, str | Path],
    output: str | Path,
    comparison: Mapping[str, Any] | None = None,
    paper: Mapping[str, Mapping[str, Any]] | None = None,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    predictions: Mapping[str, str | Path] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write ``report.html``, ``tables.md``, ``tables.tex`` and ``figures``, each as PNG and PDF.

    The page is one file that opens without a network. With images, labels and predictions it shows
    the cases with the best, the median and the worst Dice, the mean over methods and classes.

    Args:
        title: of the page.
        methods: by name, the folders into which `evaluate` wrote, and maybe ``costs.json`` of
            `profile` and ``learning_curves.csv`` of a training, or ``learning_curves_*.csv``.
        output: the folder to write to.
        comparison: of these methods, what `compare` returned or wrote.
        paper: a paper's own numbers, see `read_paper`; they are marked as its own.
        images, labels: the folders of the cases' files. Files are of a case by their names, as for
            `evaluate`; of an image in several files the first channel is shown.
        predictions: for each method the folder of its masks.
        notes: sentences to stand below the title.

    Returns:
        The page's path.

    Raises:
        InputError: a folder of results is not what `read_results` takes; only some of images,
            labels and predictions are given; a case's file is missing, cannot be read, or is not
            on the image's grid; comparison or paper are of something else; jinja2 is not
            installed; or a file cannot be written.
    """
    page_template = template(_TEMPLATE)
    results = read_results(methods)
    numbers = read_paper(paper, next(iter(results.values())).classes)
    if comparison is not None:
        _check_compared(comparison, results)
    chosen = _chosen(results, images, labels, predictions)
    tables = result_tables(results, numbers)
    statistics = comparison_tables(comparison) if comparison is not None else []
    lesions = lesion_tables(results)
    costs = [x for x in (cost_table(results, numbers), paper_table(numbers)) if x]
    with style():
        cases = _cases(results, chosen)  # first, as files may be damaged
        sections = [
            Section("Results", tables, _boxes(results), [case_table(results)]),
            Section("Statistics", statistics),
            Section("Lesions", lesions, _of_classes(results, "lesions")),
            Section("Volumes", (), _of_classes(results, "volumes")),
            Section("Costs", costs, _sizes(results, numbers)),
            Section("Training", (), _curves(results)),
            Section("Cases", (), cases),
        ]
    sections = [section for section in sections if section.tables or section.pictures]
    page = page_template.render(
        title=title,
        about=_about(results),
        notes=notes,
        sections=sections,
        settings=described(next(iter(results.values())).summary["settings"]),
        versions=versions(),
    )
    shown = [*tables, *statistics, *lesions, *costs]
    files = {
        f"figures/{x.name}.{ending}": content
        for section in sections
        for x in section.pictures
        for ending, content in (("png", x.png), ("pdf", x.pdf))
    }
    files["tables.md"] = as_markdown(title, shown).encode()
    files["tables.tex"] = as_latex(shown).encode()
    files["report.html"] = page.encode()
    _write(Path(output), files)
    return Path(output) / "report.html"


def _check_compared(comparison: Mapping[str, Any], results: Mapping[str, Results]) -> None:
    if not isinstance(comparison.get("metrics"), Mapping):
        raise InputError(
            "The comparison has no metrics; allowed is what python -m common compare writes."
        )
    compared = {
        method
        for groups in comparison["metrics"].values()
        for found in groups.values()
        for method in found["methods"]
    }
    if unknown := sorted(compared - set(results)):
        raise InputError(
            f"The comparison is of {listed(unknown)}, too; allowed are the report's methods "
            f"{', '.join(results)}."
        )


class _Chosen(NamedTuple):
    """A case to be looked at.

    Attributes:
        role: "best", "median" or "worst", or several of them.
        predictions: by method.
    """

    name: str
    role: str
    image: Path
    label: Path
    predictions: dict[str, Path]


def _chosen(
    results: Mapping[str, Results],
    images: str | Path | None,
    labels: str | Path | None,
    predictions: Mapping[str, str | Path] | None,
) -> list[_Chosen]:
    """The best, the median and the worst case with their files; none without folders of these."""
    given = {"images": images, "labels": labels, "predictions": predictions}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return []
    if images is None or labels is None or predictions is None:
        raise InputError(
            f"{' and '.join(missing)} are missing; allowed are images, labels and predictions "
            "together, or none of them."
        )
    if lacking := [method for method in results if method not in predictions]:
        raise InputError(f"predictions lack {listed(lacking)}; needed is a folder of each method.")
    roles = _roles(results)
    of_images = files_by_case(Path(images), "images", without_first_channel)
    of_labels = files_by_case(Path(labels), "labels")
    found = {x: files_by_case(Path(predictions[x]), "predictions") for x in results}
    folders = [(images, of_images), (labels, of_labels)]
    folders += [(predictions[method], found[method]) for method in results]
    for case in roles:
        for folder, files in folders:
            if case not in files:
                raise InputError(
                    f"{folder} has no file of the case {case}, which is to be shown; needed is one."
                )
    return [
        _Chosen(case, role, of_images[case], of_labels[case], {x: found[x][case] for x in found})
        for case, role in roles.items()
    ]


def _key(method: str) -> str:
    """What a method's prediction is called in a scene, where the label has a name, too."""
    return f"of {method}"


def _roles(results: Mapping[str, Results]) -> dict[str, str]:
    first = next(iter(results.values()))
    scores = np.stack([found.values["dice"] for found in results.values()])  # (methods, cases, ...)
    known = np.isfinite(scores)
    counts = known.sum((0, 2))
    means = np.where(known, scores, 0).sum((0, 2)) / np.maximum(counts, 1)
    order = [int(i) for i in np.argsort(-means, kind="stable") if counts[i]]
    roles: dict[str, str] = {}
    places = (0, len(order) // 2, -1) if order else ()
    for role, place in zip(("best", "median", "worst"), places, strict=False):
        case = first.cases[order[place]]
        roles[case] = f"{roles[case]} and {role}" if case in roles else role
    return roles


def _boxes(results: Mapping[str, Results]) -> list[Picture]:
    pictures = []
    for metric in _BOXES:
        if figure := draw_boxes(results, metric):
            caption = (
                f"{TITLES[metric][0]} of each case: boxes are quartiles, lines medians, diamonds "
                "means, whiskers reach to the last case within 1.5 interquartile ranges; n is of "
                "cases that have a value."
            )
            pictures.append(picture(f"{metric}_box", caption, figure))
    return pictures


def _of_classes(results: Mapping[str, Results], what: str) -> list[Picture]:
    first = next(iter(results.values()))
    pictures = []
    for number, name in enumerate(first.classes[:_MOST_CLASSES], start=1):
        if what == "lesions":
            figure = draw_lesions(results, name)
            caption = (
                f"{name}: Dice of each lesion of the label against its diameter; crosses are "
                "missed and have 0, the line is the median of parts with equal numbers of lesions."
            )
        else:
            figure = draw_volumes(results, name)
            caption = (
                f"{name}: Bland and Altman's plot of the volumes; lines are the mean difference "
                "and 1.96 standard deviations around it."
            )
        if figure:
            pictures.append(picture(f"{what}_class_{number}", caption, figure))
    return pictures


def _sizes(results: Mapping[str, Results], paper: Paper) -> list[Picture]:
    figure = draw_sizes(results, paper)
    caption = "Mean Dice against parameters, which the areas show, too; the paper's are hollow."
    return [picture("dice_parameters", caption, figure)] if figure else []


def _curves(results: Mapping[str, Results]) -> list[Picture]:
    figure = draw_curves(results)
    caption = "Learning curves; each line is a training."
    return [picture("learning_curves", caption, figure)] if figure else []


def _cases(results: Mapping[str, Results], chosen: Sequence[_Chosen]) -> list[Picture]:
    pictures = []
    settings = next(iter(results.values())).summary["settings"]
    classes = as_classes(settings["classes"])
    for case in chosen:
        scene = _scene(case, classes, settings)
        names = {_key(method): _heading(method, x, case.name) for method, x in results.items()}
        where = f"{case.role[0].upper()}{case.role[1:]} case by mean Dice, {case.name}"
        caption = (
            f"{where}: the slices with most of the label's last class. Errors are opaque: missed, "
            "false, or another class than the label's."
        )
        role = case.role.partition(" ")[0]
        figure = draw_errors(scene, names, classes)
        pictures.append(picture(f"{role}_case_slices", caption, figure, dpi=110))
        if not scene.flat:
            caption = f"{where}: surfaces, seen from the front."
            figure = draw_surfaces(scene, names, classes)
            pictures.append(picture(f"{role}_case_surfaces", caption, figure, dpi=110))
    return pictures


def _scene(
    case: _Chosen, classes: Mapping[str, Sequence[int]], settings: Mapping[str, Any]
) -> Scene:
    """The case as it was evaluated."""
    label_values = LabelValues(None, settings.get("label_map"), settings.get("ignore_label"))
    label, found = read_case(case.label, list(case.predictions.values()), label_values, classes)
    masks = zip(map(_key, case.predictions), found, strict=True)
    return load_scene(case.image, {"label": label, **dict(masks)})


def _heading(method: str, found: Results, case: str) -> str:
    scores = found.values["dice"][found.cases.index(case)]
    known = scores[np.isfinite(scores)]
    return f"{shortened(method)}\nDice {known.mean():.3f}" if len(known) else shortened(method)


def _about(results: Mapping[str, Results]) -> str:
    first = next(iter(results.values()))
    counts = [
        f"{n} {what}{'s' if n > 1 else ''}"
        for n, what in ((len(results), "method"), (len(first.cases), "case"))
    ]
    return f"{', '.join(counts)}, classes: {', '.join(first.classes)}"


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, the page last: each is whole, or what was there before."""
    check_output_folder(folder)
    check_output_folder(folder / "figures")
    for name, content in files.items():
        path = folder / name
        with writing("file", path) as partial:
            partial.write_bytes(content)
