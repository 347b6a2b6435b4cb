"""Predicted masks against labels, folder against folder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ..data import check_output_folder, named_classes
from ..data.label_values import LabelValues
from ..errors import InputError, check_choice, listed
from .cases import CaseResult, write_results
from .label_maps import as_classes, files_by_case, is_picture, read_case, read_label_map
from .lesions import STRATA, WELL_SEGMENTED, find_lesions
from .measures import BETTER, EMPTY_RULES, measure

__all__ = ["BETTER", "Evaluation", "evaluate"]


class Evaluation(NamedTuple):
    """What was evaluated.

    Attributes:
        summary: as in ``summary.json``.
        skipped: case -> a sentence, of those that are not in the tables.
    """

    summary: dict[str, Any]
    skipped: dict[str, str]


class _Pair(NamedTuple):
    prediction: Path
    label: Path


def evaluate(
    predictions: str | Path,
    labels: str | Path,
    output: str | Path,
    classes: Mapping[str, int | Sequence[int]] | None = None,
    lesions: str | Sequence[str] | None = None,
    lesion_overlap: float = 0.1,
    empty: str = "nnunet",
    tolerance_mm: float = 2.0,
    label_map: Mapping[Any, Any] | None = None,
    ignore_label: int | None = None,
) -> Evaluation:
    """Measure predicted label maps against labels, and write tables of it.

    Files of both folders, and of folders in them, are of one case if their names are equal without
    their endings and _seg, _mask or _label. A case that cannot be evaluated is left out of the
    tables, and the others are not.

    ``output`` gets ``cases.csv``, a row per case and class with the metrics of `measure`;
    ``summary.json``, see `summarise`; and ``lesions.csv``, a row per `Lesion`.

    Pictures have classes or, as the bundles write them, n classes as n grey levels from 0 to 255;
    n is one more than the largest value of `classes`.

    Args:
        predictions, labels: folders of label maps, all of them volumes or all pictures.
        output: the folder for the tables.
        classes: name -> value, or values, which both label maps have for it: {"liver": [1, 2],
            "tumour": 2}. They may overlap, and values that are in none are background. None takes
            each value as a class: those that a dataset.json beside the labels' folder names, else
            those that the labels have; of pictures 1, a mask's.
        lesions: names of classes whose connected components are looked at one by one.
        lesion_overlap: as for `find_lesions`.
        empty: what counts where a mask is empty, one of `EMPTY_RULES`.
        tolerance_mm: of NSD; pixels, of pictures.
        label_map: {value in the labels' files: value in the predictions'}, as for the bundles.
        ignore_label: the value in the labels' files of voxels that do not count.

    Raises:
        InputError: an argument is none of what is allowed, no two files are of one case, no case
            can be evaluated, or a file cannot be written.
    """
    check_choice("empty", empty, EMPTY_RULES)
    _check_number("tolerance_mm", tolerance_mm, math.inf)
    _check_number("lesion_overlap", lesion_overlap, 1)
    label_values = LabelValues(None, label_map, ignore_label)
    named = None if classes is None else as_classes(classes)
    pairs, unpaired = _pairs(Path(predictions), Path(labels))
    if named is None:
        named = _found_classes(Path(labels), [pair.label for pair in pairs.values()], label_values)
    looked_at = check_lesions(lesions, named)
    check_output_folder(output)

    cases = []
    skipped: dict[str, str] = {}
    for name, pair in tqdm(pairs.items(), desc="cases", disable=None):
        try:
            label, (prediction,) = read_case(
                pair.label, [pair.prediction], label_values, named, closed=classes is None
            )
        except InputError as error:
            skipped[name] = str(error)
            continue
        measures, parts = {}, {}
        for class_name, values in named.items():
            masks = prediction.mask(values), label.mask(values)
            measures[class_name] = measure(*masks, label.spacing, tolerance_mm, empty)
            if class_name in looked_at:
                parts[class_name] = find_lesions(*masks, label.spacing, lesion_overlap)
        cases.append(CaseResult(name, measures, parts))
    skipped |= unpaired
    if not cases:
        sentences = listed((sentence.rstrip(".") for sentence in skipped.values()), 3)
        raise InputError(f"No case can be evaluated: {sentences}.")
    settings = {
        "classes": named,
        "empty": empty,
        "unit": "pixels" if label.affine is None else "mm",
        "tolerance_mm": tolerance_mm,
        "label_map": label_values.label_map,
        "ignore_label": label_values.ignore_label,
        "lesions": looked_at,
        "lesion_overlap": lesion_overlap,
        "lesion_connectivity": "voxels that share a corner",
        "well_segmented": WELL_SEGMENTED,
        "strata": STRATA,
    }
    return Evaluation(write_results(output, cases, settings, sorted(skipped)), skipped)


def _pairs(predictions: Path, labels: Path) -> tuple[dict[str, _Pair], dict[str, str]]:
    """Files by case, and of those without the other one a sentence."""
    if predictions.resolve() == labels.resolve():
        raise InputError(f"predictions and labels are both {labels}; allowed are two folders.")
    found = files_by_case(predictions, "predictions", besides=labels)
    true = files_by_case(labels, "labels", besides=predictions)
    pairs = {name: _Pair(found[name], true[name]) for name in true if name in found}
    if not pairs:
        raise InputError(
            f"No prediction in {predictions} ({listed(found, 3)}) is of a label in {labels} "
            f"({listed(true, 3)}); allowed are equal names, but for _seg, _segmentation, "
            "_mask and _label at their ends."
        )
    kinds: dict[bool, Path] = {}
    for file in (file for pair in pairs.values() for file in pair):
        kinds.setdefault(is_picture(file), file)
    if len(kinds) > 1:
        raise InputError(
            f"{kinds[True]} is a picture and {kinds[False]} a volume; allowed are pictures alone, "
            "or volumes alone."
        )
    skipped = {
        name: f"The label {true[name]} has no prediction in {predictions}; needed is one."
        for name in true
        if name not in found
    }
    skipped |= {
        name: f"The prediction {found[name]} has no label in {labels}; needed is one."
        for name in found
        if name not in true
    }
    return pairs, skipped


def _found_classes(
    labels: Path, files: Sequence[Path], label_values: LabelValues
) -> dict[str, list[int]]:
    """The classes that a dataset.json names, or else those that labels have."""
    if named := named_classes(
        Path(os.path.abspath(labels)).parent, label_map=label_values.label_map
    ):
        return named
    if is_picture(files[0]):
        return {"class 1": [1]}
    values: set[int] = set()
    for file in tqdm(files, desc="labels", disable=None):
        try:
            values |= read_label_map("label", file, label_values).present
        except InputError:
            continue  # its case will say so
    found = {f"class {value}": [value] for value in sorted(values) if value > 0}
    if not found:
        raise InputError(
            f"No label in {labels} has a class; needed is one whose values are not 0 everywhere, "
            "or classes that name some."
        )
    return found


def check_lesions(lesions: Any, classes: Iterable[str], whose: str = "lesions") -> list[str]:
    """The classes whose lesions are looked at.

    Args:
        lesions: as for `evaluate`.
        classes: that there are.
        whose: what the lesions are called where they were given.

    Raises:
        InputError: one is none of these classes.
    """
    several = isinstance(lesions, (list, tuple))
    wanted = list(lesions) if several else [] if lesions is None else [lesions]
    for name in wanted:
        if name not in (allowed := list(classes)):
            raise InputError(f"{whose} has {name!r}; allowed are classes: {', '.join(allowed)}.")
    return wanted


def _check_number(name: str, value: Any, most: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= most:
        to = f" to {most:g}" if math.isfinite(most) else ""
        raise InputError(f"{name} is {value!r}; allowed are numbers from 0{to}.")
