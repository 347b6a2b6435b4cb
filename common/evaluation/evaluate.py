"""Predicted masks against labels, folder against folder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.utils import MetaKeys
from numpy.typing import NDArray
from tqdm import tqdm

from ..data import check_output_folder, label_names
from ..data.formats import allowed_endings, format_of, is_lossy, name_of
from ..data.geometry import SAME_PLACE, apart, described, spacing_of
from ..data.label_values import LabelValues, count_values
from ..data.layouts import told_apart
from ..data.layouts.names import lits_image, without_mask
from ..data.readers import FormatReader
from ..data.writers import grey_levels
from ..errors import InputError, by_axis, check_choice, first_line, listed
from ..ignored import IGNORED
from .cases import CaseResult, write_results
from .lesions import STRATA, WELL_SEGMENTED, find_lesions
from .measures import BETTER, EMPTY_RULES, measure

__all__ = ["BETTER", "Evaluation", "evaluate"]

_PROBABILITIES = "_probabilities"  # what the bundles write beside their masks


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


class _Map(NamedTuple):
    """A label map, (x, y) or (x, y, z), and the values in it; without an affine it is a picture."""

    values: NDArray[np.int32]
    present: set[int]
    affine: NDArray[np.float64] | None

    @property
    def spacing(self) -> list[float] | None:
        return None if self.affine is None else spacing_of(self.affine, self.values.ndim)

    def mask(self, values: Sequence[int]) -> NDArray[np.bool_]:
        return np.isin(self.values, values)


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
    named = None if classes is None else _named(classes)
    pairs, unpaired = _pairs(Path(predictions), Path(labels))
    if named is None:
        named = _found_classes(Path(labels), [pair.label for pair in pairs.values()], label_values)
    looked_at = _looked_at(lesions, named)
    check_output_folder(output)

    cases = []
    skipped: dict[str, str] = {}
    for name, pair in tqdm(pairs.items(), desc="cases", disable=None):
        try:
            prediction, label = _read_pair(pair, label_values, named, closed=classes is None)
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
    found = _masks_of(predictions, "predictions", labels)
    true = _masks_of(labels, "labels", predictions)
    pairs = {name: _Pair(found[name], true[name]) for name in true if name in found}
    if not pairs:
        raise InputError(
            f"No prediction in {predictions} ({listed(found, 3)}) is of a label in {labels} "
            f"({listed(true, 3)}); allowed are equal names, but for _seg, _segmentation, "
            "_mask and _label at their ends."
        )
    kinds: dict[int, Path] = {}
    for file in (file for pair in pairs.values() for file in pair):
        kinds.setdefault(_spatial_dims(file), file)
    if len(kinds) > 1:
        raise InputError(
            f"{kinds[2]} is a picture and {kinds[3]} a volume; allowed are pictures alone, or "
            "volumes alone."
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


def _masks_of(folder: Path, what: str, other: Path) -> dict[str, Path]:
    """The label maps in a folder, and in those in it but for the other one, by case."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; needed is one with the {what}.")
    apart_from = os.path.abspath(other)
    nested = Path(apart_from).is_relative_to(os.path.abspath(folder))
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if format_of(file) is not None
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and not name_of(file).endswith(_PROBABILITIES)
        and not (nested and Path(os.path.abspath(file)).is_relative_to(apart_from))
    ]
    if not files:
        raise InputError(
            f"{folder} holds no {what}; allowed are files that end in {allowed_endings()}."
        )
    names = [lits_image(without_mask(name_of(file))) for file in files]
    named: dict[str, Path] = {}
    for name, file in zip(told_apart(names, [str(file) for file in files]), files, strict=True):
        if name in named:
            raise InputError(f"{named[name]} and {file} are of one name; allowed is one of them.")
        named[name] = file
    return named


def _spatial_dims(file: Path) -> int:
    found = format_of(file)
    assert found is not None  # of no other file there is a pair
    return found.spatial_dims


def _found_classes(
    labels: Path, files: Sequence[Path], label_values: LabelValues
) -> dict[str, list[int]]:
    """The classes that a dataset.json names, or else those that labels have."""
    if names := label_names(Path(os.path.abspath(labels)).parent, None, label_values.label_map):
        return {name: [value] for value, name in enumerate(names) if value > 0}
    if _spatial_dims(files[0]) == 2:
        return {"class 1": [1]}
    values: set[int] = set()
    for file in tqdm(files, desc="labels", disable=None):
        try:
            values |= _read("label", file, label_values).present
        except InputError:
            continue  # its case will say so
    found = {f"class {value}": [value] for value in sorted(values) if value > 0}
    if not found:
        raise InputError(
            f"No label in {labels} has a class; needed is one whose values are not 0 everywhere, "
            "or classes that name some."
        )
    return found


def _read_pair(
    pair: _Pair, label_values: LabelValues, classes: Mapping[str, Sequence[int]], closed: bool
) -> tuple[_Map, _Map]:
    """Prediction and label, without what is ignored; `closed` allows no values but the classes'.

    Raises:
        InputError: one of them cannot be read, has other values, or is on another's grid.
    """
    prediction = _read("prediction", pair.prediction, LabelValues())
    label = _read("label", pair.label, label_values)
    _check_grid(pair, prediction, label)
    known = {0, IGNORED}.union(*classes.values())
    if label.affine is None:
        prediction = _without_levels("prediction", pair.prediction, prediction, max(known))
        label = _without_levels("label", pair.label, label, max(known))
    for what, file, values in zip(("prediction", "label"), pair, (prediction, label), strict=True):
        if closed and (unknown := sorted(values.present - known)):
            raise InputError(
                f"The {what} {file} has the values {listed(unknown, 5)}; allowed are 0 and "
                f"{listed(sorted(known - {0, IGNORED}))}, or classes that name others."
            )
    if label_values.ignore_label is not None:
        counted = np.where(label.values == IGNORED, 0, prediction.values)
        prediction = prediction._replace(values=counted)
    return prediction, label


def _read(what: str, file: Path, allowed: LabelValues) -> _Map:
    if is_lossy(file):
        raise InputError(
            f"The {what} {file} is a JPEG, which does not keep values as they are; allowed are "
            "formats that do, such as PNG."
        )
    picture = _spatial_dims(file) == 2
    reader = FormatReader(grey=picture, palette=picture)
    try:
        read, meta = reader.get_data(reader.read(file))
        values = torch.from_numpy(np.ascontiguousarray(read, np.float32))
    except InputError as error:
        raise InputError(f"The {what} {error}") from error
    except Exception as error:  # whatever readers raise of what is no image
        raise InputError(
            f"The {what} {file} cannot be read ({first_line(error)}); allowed are complete image "
            "files, such as NIfTI or PNG."
        ) from error
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in (2, 3):
        raise InputError(f"The {what} {file} has {values.ndim} axes; allowed are 2 and 3.")
    present = list(count_values(values))
    if problem := allowed.problem(present):
        raise InputError(f"The {what} {file} {problem}")
    return _Map(
        allowed.apply(values).to(torch.int32).numpy(),
        {int(value) for value in allowed.apply(torch.tensor(present))},
        None if picture else np.asarray(meta[MetaKeys.AFFINE], np.float64),
    )


def _check_grid(pair: _Pair, prediction: _Map, label: _Map) -> None:
    size, expected = prediction.values.shape, label.values.shape
    if size != expected:
        raise InputError(
            f"The prediction {pair.prediction} has the size {by_axis(size)}, its label "
            f"{pair.label} {by_axis(expected)}; allowed is the label's."
        )
    if prediction.affine is None or label.affine is None:
        return
    if not (distance := apart(label.affine, prediction.affine, size)) <= SAME_PLACE:
        raise InputError(
            f"The prediction {pair.prediction} has the affine {described(prediction.affine)}, its "
            f"label {pair.label} {described(label.affine)}, which are up to {distance:.3g} voxels "
            f"apart; allowed is the label's place, within {SAME_PLACE:g} voxels."
        )


def _without_levels(what: str, file: Path, picture: _Map, most: int) -> _Map:
    """The classes 0 to `most` of a picture, which may have them as grey levels."""
    present = picture.present - {IGNORED}
    if max(present, default=0) <= most:
        return picture
    levels = grey_levels(most + 1).tolist() if most < 256 else []
    if not present <= set(levels):
        shown = f", or the grey levels {listed(levels)}" if levels else ""
        raise InputError(
            f"The {what} {file} has the values {listed(sorted(present), 5)}; allowed are the "
            f"classes 0 to {most}{shown}; others need classes that name them."
        )
    classes = np.searchsorted(levels, picture.values)
    classes[picture.values == IGNORED] = IGNORED
    return picture._replace(
        values=classes.astype(np.int32), present={levels.index(value) for value in present}
    )


def _named(classes: Any) -> dict[str, list[int]]:
    if not isinstance(classes, Mapping) or not classes:
        raise InputError(
            f"classes is {classes!r}; allowed is {{name: value or values}}, such as "
            '{"liver": [1, 2], "tumour": 2}.'
        )
    named = {}
    for name, values in classes.items():
        of_class = list(values) if isinstance(values, (list, tuple)) else [values]
        whole = all(isinstance(x, int) and not isinstance(x, bool) and x > 0 for x in of_class)
        if not of_class or not whole:
            raise InputError(
                f"The class {name} has the values {values!r}; allowed are one or more whole "
                "numbers from 1."
            )
        named[str(name)] = sorted(set(of_class))
    return named


def _looked_at(lesions: Any, classes: Iterable[str]) -> list[str]:
    several = isinstance(lesions, (list, tuple))
    wanted = list(lesions) if several else [] if lesions is None else [lesions]
    for name in wanted:
        if name not in (allowed := list(classes)):
            raise InputError(f"lesions has {name!r}; allowed are classes: {', '.join(allowed)}.")
    return wanted


def _check_number(name: str, value: Any, most: float) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 <= value <= most:
        to = f" to {most:g}" if math.isfinite(most) else ""
        raise InputError(f"{name} is {value!r}; allowed are numbers from 0{to}.")
