"""A data set's check before a night of training, by the loading and checks of training."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import EnsureChannelFirstd
from monai.utils import ensure_tuple
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

from ..data import find_cases, split_cases
from ..data.formats import format_of, name_of
from ..data.label_values import LabelValues, count_values
from ..data.layouts import SPLITS, Case, Split, distinct_names, told_apart
from ..errors import InputError, by_axis, first_line, input_error_in
from ..files import replacing
from ..transforms import LoadCheckedImaged, LoadRadiographd, MergeMasksd
from ..transforms.checks import (
    SAID_DISPLACEMENT,
    dimensions,
    displacement,
    has_geometry,
    image_problems,
    label_problems,
    orientation,
)
from ..transforms.naming import file_names

PATCH_VOXELS = {2: 512**2, 3: 128**3}  # what the bundles' patches have
_PATCH_MULTIPLE = 16
_MANY_BYTES = 200e6  # of files, from which on processes are worth their start
_MAX_PARTS = 256  # values of a label whose connected components are counted

_Files = tuple[str, Sequence[str], Sequence[str]]  # a case's name, image and label


@dataclasses.dataclass
class CaseReport:
    """What was found of one case; lists and numbers are empty or None where it could not be read.

    Attributes:
        image, label: files; no label of an image to segment.
        size, spacing, orientation: of the image, in voxels and mm; spacing and orientation are
            empty for pictures.
        low, median, high: percentiles 0.5, 50 and 99.5 of its values.
        classes: voxels of each of the label's values, as its file has them.
        components: connected components of each but 0.
        problems: what training refuses, a sentence each.
        warnings: what it does not refuse, and probably should not be.
        treatment: what it changes.
    """

    name: str
    image: list[str]
    label: list[str]
    channels: int | None = None
    size: list[int] = dataclasses.field(default_factory=list)
    spacing: list[float] = dataclasses.field(default_factory=list)
    orientation: str = ""
    minimum: float | None = None
    low: float | None = None
    median: float | None = None
    high: float | None = None
    maximum: float | None = None
    classes: dict[float, int] = dataclasses.field(default_factory=dict)
    components: dict[int, int] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    treatment: list[str] = dataclasses.field(default_factory=list)
    image_hash: str = ""
    label_hash: str = ""

    def line(self) -> str:
        """The case in one line, without what is wrong."""
        parts = [by_axis(self.size)] if self.size else ["not read"]
        if self.channels and self.channels > 1:
            parts[0] += f" of {self.channels} channels"
        if self.spacing:
            parts.append(f"{by_axis(self.spacing)} mm {self.orientation}")
        if self.minimum is not None:
            parts.append(
                f"values {self.minimum:g} to {self.maximum:g}, mostly {self.low:g} to {self.high:g}"
            )
        for value, voxels in self.classes.items():
            found = self.components.get(int(value)) if math.isfinite(value) else None
            in_parts = f" in {found} part{'s' if found > 1 else ''}" if found else ""
            parts.append(f"{value:g}: {voxels}{in_parts}")
        return f"{self.name}: {'; '.join(parts)}"


@dataclasses.dataclass
class DatasetReport:
    """What was found of a data set.

    Attributes:
        layout: how the data set is laid out.
        values: the labels' values over all cases, and in how many cases each is.
        spacing: mm, along R, A and S: the median; nnU-Net's rule for slices far apart.
        size: the median at that spacing, or of the pictures.
        patch: voxels, the largest of multiples of 16 within the median size and `PATCH_VOXELS`.
        split: cases of training, validation and test by 7:1:2.
        problems, warnings, treatment: as for `CaseReport`, of the set as a whole.
    """

    cases: list[CaseReport]
    values: dict[float, int]
    spacing: list[float]
    size: list[int]
    patch: list[int]
    split: dict[str, int]
    problems: list[str]
    warnings: list[str]
    treatment: list[str]
    layout: str = ""

    @property
    def wrong(self) -> int:
        return len(self.problems) + sum(len(case.problems) for case in self.cases)

    def lines(self) -> list[str]:
        """The report as text."""
        lines = []
        for case in self.cases:
            lines += [case.line(), *_told(case)]
        labelled = sum(bool(case.label) for case in self.cases)
        lines += ["", f"layout:    {self.layout}"]
        lines.append(f"cases:     {labelled}, and {len(self.cases) - labelled} without a label")
        found = ", ".join(f"{value:g} in {n}" for value, n in self.values.items())
        lines.append(f"values:    {found or 'none'}")
        if self.spacing:
            lines.append(f"spacing:   {by_axis(self.spacing)} mm (right, anterior, superior)")
        if self.size:
            budget = PATCH_VOXELS[len(self.size)]
            lines.append(f"size:      {by_axis(self.size)}, the median there")
            lines.append(f"patch:     {by_axis(self.patch)}, of at most {budget} voxels")
        lines.append(f"split:     {', '.join(f'{n} {part}' for part, n in self.split.items())}")
        return lines + _told(self)


def check_dataset(
    dataset_dir: str | Path,
    output: str | Path | None = None,
    workers: int | None = None,
    num_classes: int | None = None,
    label_map: Mapping[Any, Any] | None = None,
    ignore_label: int | None = None,
    cases: str | Path | None = None,
    modality: str | None = None,
) -> DatasetReport:
    """Load every case as training does, and say all that is wrong, or odd, or will be changed.

    Args:
        dataset_dir: as for `find_cases`; its images without a label are looked at too.
        output: where the report goes, FILE.json, or its cases alone, FILE.csv.
        workers: processes; None takes as many as there are processors, or none for a small set.
        num_classes, label_map, ignore_label: as training has them; without, ignore_label is what
            the data set calls so, and classes are what the labels have, which have to be 0 to the
            number of them.
        cases: a list of cases in place of the folder, see `find_cases`.
        modality: of the DICOM series that count, as training has it; None takes any.

    Raises:
        InputError: there are no cases, or the arguments or the output cannot be.
    """
    target = _target(output)
    data = find_cases(dataset_dir, cases)
    ignored = data.ignore_label if ignore_label is None else ignore_label
    values = LabelValues(num_classes, label_map, ignored)
    images = [ensure_tuple(image) for image in data.images]
    names = told_apart([name_of(files[0]) for files in images], [files[0] for files in images])
    found = [
        *(
            (name, ensure_tuple(case["image"]), ensure_tuple(case["label"]))
            for name, case in zip(distinct_names(data.cases), data.cases, strict=True)
        ),
        *((name, files, ()) for name, files in zip(names, images, strict=True)),
    ]
    merges = num_classes in (None, 2) and label_map is None and ignored is None
    examine = partial(_examine, values=values, merges=merges, modality=modality)
    examined = _examine_all(found, examine, workers)
    _find_duplicates(examined)
    report = _summarise(partial(split_cases, dataset_dir, cases_file=cases), examined, values)
    report.layout = data.layout
    report.warnings[:0] = data.notes
    if ignore_label is None and data.ignore_label is not None:
        option = f"--ignore_label {data.ignore_label}"
        report.treatment.append(f"{data.ignore_label} is left out where training is given {option}")
    if target is not None:
        _write(report, target)
    return report


def _examine_all(found: Sequence[_Files], examine: Any, workers: int | None) -> list[CaseReport]:
    if workers is not None and (type(workers) is not int or workers < 1):
        raise InputError(f"workers is {workers!r}; allowed are whole numbers from 1.")
    if workers is None:
        files = [file for _, *parts in found for part in parts for file in part]
        many = sum(map(os.path.getsize, filter(os.path.isfile, files))) > _MANY_BYTES
        workers = (os.cpu_count() or 1) if many else 1
    workers = min(workers, len(found))
    bar = partial(tqdm, total=len(found), desc="Checking", unit="case")
    if workers <= 1:
        return list(bar(map(examine, found)))
    # As on every system, and safe beside this process's threads.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_prepare_worker) as pool:
        return list(bar(pool.map(examine, found)))


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # what is to be said is in the reports


def _examine(
    case: _Files,
    values: LabelValues,
    merges: bool,
    modality: str | None,
) -> CaseReport:
    name, files, masks = case
    report = CaseReport(name, list(files), list(masks))
    picture = (kind := format_of(files[0])) is not None and kind.spatial_dims == 2
    image = _load("image", files, picture, modality, report.problems)
    if image is not None:
        _describe_image(image, report)
    label = _load("label", masks, picture, modality, report.problems) if masks else None
    if label is not None:
        if picture and merges and (values.num_classes == 2 or len(label) > 1):
            label = MergeMasksd("label", 2)({"label": label})["label"]
            report.treatment.append("the label is 1 where any of its masks is above 0")
        _describe_label(label, image, values, report)
    return report


def _load(
    key: str, files: Sequence[str], picture: bool, modality: str | None, problems: list[str]
) -> Tensor | None:
    """What training loads, (channels, ...); None, and a problem, where it cannot."""
    load = (LoadRadiographd if picture else LoadCheckedImaged)(key, modality=modality)
    try:
        loaded = load({key: files[0] if len(files) == 1 else list(files)})
        image: Tensor = EnsureChannelFirstd(key)(loaded)[key]
    except Exception as error:
        sentence = input_error_in(error)
        problems.append(
            sentence or f"The {key} {file_names(files)} cannot be used ({first_line(error)})."
        )
        return None
    return image


def _describe_image(image: Tensor, report: CaseReport) -> None:
    report.problems += image_problems(image)
    report.channels, report.size = image.shape[0], list(image.shape[1 : 1 + dimensions(image)])
    if has_geometry(image):
        affine = np.asarray(image.affine, np.float64)  # type: ignore[attr-defined]
        if np.isfinite(affine).all():
            lengths = np.linalg.norm(affine[:3, : len(report.size)], axis=0)
            report.spacing = [round(float(x), 4) for x in lengths]
            report.orientation = orientation(image)
        if report.size[:2] == [512, 512] and report.spacing == [1, 1, 1]:
            report.warnings.append(
                "512 x 512 slices of 1 x 1 x 1 mm: the scan's spacing was probably lost, as in "
                "some cases of LiTS; distances in mm, and spacings, would be wrong"
            )
    if image.is_complex():
        return
    values = np.asarray(image.as_subclass(Tensor), np.float32)
    report.image_hash = _hash(values)
    for i, channel in enumerate(values if len(values) > 1 else ()):
        if channel.min() == channel.max():
            report.warnings.append(f"channel {i} has the value {channel.min():g} everywhere")
    finite = values.ravel()
    finite = finite[np.isfinite(finite)]
    if finite.size:
        report.minimum, report.maximum = float(finite.min()), float(finite.max())
        sample = finite[:: max(1, finite.size // 1_000_000)]
        report.low, report.median, report.high = (
            round(float(x), 4) for x in np.percentile(sample, (0.5, 50, 99.5))
        )


def _describe_label(
    label: Tensor, image: Tensor | None, values: LabelValues, report: CaseReport
) -> None:
    report.classes = count_values(label)
    problems = list(label_problems(label, image, values, report.classes))
    report.problems += problems
    whole = {round(v): n for v, n in report.classes.items() if math.isfinite(v)}
    present = [value for value in whole if value not in (0, values.ignore_label)]
    if not present:
        report.warnings.append("the label has no foreground: it trains, and no metric counts it")
    elif len(whole) == 1:
        report.warnings.append(f"the label is {present[0]} everywhere")
    if image is not None and not problems:
        moved = displacement(label, image)
        if moved > SAID_DISPLACEMENT:
            report.treatment.append(
                f"the label takes the image's geometry, {moved:.2g} voxels away from its own"
            )
    array = np.asarray(label.as_subclass(Tensor))[0]
    if values.problem(list(report.classes)) is None:
        rounded = array.round()
        if (rounded != array).any():
            report.treatment.append("the label's values are rounded to whole ones")
        report.classes = dict(_rounded(report.classes))
        if values.ignore_label in whole:
            report.treatment.append(f"{whole[values.ignore_label]} voxels are left out")
        if max(whole) < _MAX_PARTS and min(whole) >= 0:
            report.components = _components(rounded.astype(np.int32), present)
    if present:
        report.label_hash = _hash(array)


def _rounded(classes: Mapping[float, int]) -> list[tuple[int, int]]:
    summed: Counter[int] = Counter()
    for value, voxels in classes.items():
        summed[round(value)] += voxels
    return sorted(summed.items())


def _components(label: np.ndarray, values: Sequence[int]) -> dict[int, int]:
    """Parts of each value whose voxels share faces, edges or corners."""
    boxes = ndimage.find_objects(label)
    around = ndimage.generate_binary_structure(label.ndim, label.ndim)
    return {v: int(ndimage.label(label[boxes[v - 1]] == v, around)[1]) for v in values}


def _hash(values: np.ndarray) -> str:
    found = hashlib.blake2b(str(values.shape).encode(), digest_size=16)
    found.update(np.ascontiguousarray(values).data)
    return found.hexdigest()


def _find_duplicates(cases: Sequence[CaseReport]) -> None:
    images, labels = defaultdict(list), defaultdict(list)
    for case in cases:
        if case.image_hash:
            images[case.image_hash].append(case)
        if case.label_hash:
            labels[case.label_hash].append(case)
    for same in images.values():
        for case in same[1:]:
            case.problems.append(
                f"The image {', '.join(case.image)} has the voxels of {', '.join(same[0].image)}, "
                "and a split could train on one and test on the other; allowed is one of them."
            )
    for same in labels.values():
        for case in same[1:]:
            if case.image_hash != same[0].image_hash:
                case.warnings.append(f"the label has the voxels of {', '.join(same[0].label)}")


def _summarise(
    split_cases: Callable[[Split], Sequence[Case]], cases: list[CaseReport], values: LabelValues
) -> DatasetReport:
    labelled = [case for case in cases if case.label]
    found: Counter[float] = Counter(v for case in labelled for v in case.classes)
    problems, warnings, treatment = [], [], []
    read = [case for case in cases if case.size]
    for attribute, what in (("channels", "channels"), ("dimensions", "spatial axes")):
        numbers = [c.channels if attribute == "channels" else len(c.size) for c in read]
        usual = Counter(numbers).most_common(1)[0][0] if numbers else None
        for case, number in zip(read, numbers, strict=True):
            if number != usual:
                case.problems.append(
                    f"The image {', '.join(case.image)} has {number} {what}; allowed are {usual}, "
                    "which most images of the set have."
                )
    whole = sorted(v for v in found if v == int(v)) if all(map(math.isfinite, found)) else []
    if values.num_classes is None and values.label_map is None and len(whole) == len(found):
        classes = [int(v) for v in whole if v != values.ignore_label]
        pictures = all((kind := format_of(c.image[0])) and kind.spatial_dims == 2 for c in cases)
        if classes != list(range(len(classes))):
            kept = [0, *(value for value in classes if value > 0)]
            suggested = {value: i for i, value in enumerate(kept)}
            ignoring = "".join(f" --ignore_label {v}" for v in classes[:1] if v < 0)
            if pictures and len(classes) == 2 and classes[0] == 0:
                treatment.append(f"the labels are 1 where they are {classes[1]}, of 2 classes")
            else:
                problems.append(
                    f"The labels' values are {', '.join(map(str, classes))}; allowed are 0 to "
                    f"num_classes - 1; others need a label_map, such as --label_map "
                    f'"{suggested}" --num_classes {max(2, len(suggested))}{ignoring}.'
                )
    if values.label_map is not None:
        treatment.append(f"the labels' values become classes by {values.label_map}")
    size, spacing = _typical(read)
    split: dict[str, int] = {}
    missing = []
    for part in SPLITS:
        try:
            split[part] = len(split_cases(part))
        except InputError as error:
            split[part] = 0
            missing.append(str(error))
    if labelled:
        warnings += [f"training by default would end with: {sentence}" for sentence in missing]
    else:
        problems += dict.fromkeys(missing)
    return DatasetReport(
        cases,
        dict(sorted(found.items())),
        spacing,
        size,
        _patch(size, spacing),
        split,
        problems,
        warnings,
        treatment,
    )


def _typical(cases: Sequence[CaseReport]) -> tuple[list[int], list[float]]:
    """The median size, and the spacing that it is at; none for pictures.

    The spacing is the median along R, A and S, or along an axis whose slices are three times as far
    apart, and a third as many, the 10th percentile, but not below the others' (nnU-Net, Isensee et
    al. 2021, doi:10.1038/s41592-020-01008-z).
    """
    dims = Counter(len(case.size) for case in cases).most_common(1)
    if not dims:
        return [], []
    usual = [case for case in cases if len(case.size) == dims[0][0]]
    volumes = [case for case in usual if len(case.spacing) == 3 and "?" not in case.orientation]
    if not volumes:
        return [round(x) for x in np.median([case.size for case in usual], 0)], []
    orders = [
        np.argsort(["RL AP SI".index(code) // 3 for code in case.orientation]) for case in volumes
    ]
    sizes, spacings = (
        np.array([np.array(getattr(c, name))[o] for c, o in zip(volumes, orders, strict=True)])
        for name in ("size", "spacing")
    )
    target, median = np.median(spacings, 0), np.median(sizes, 0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    if target[worst] > 3 * target[others].max() and median[worst] * 3 < median[others].min():
        target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max())
    size = np.median(sizes * spacings / target, 0)
    return [round(x) for x in size], [round(float(x), 4) for x in target]


def _patch(size: Sequence[int], spacing: Sequence[float]) -> list[int]:
    """The median size in multiples of 16, its longest side cut until `PATCH_VOXELS` hold it."""
    if not size:
        return []
    patch = [max(_PATCH_MULTIPLE, n // _PATCH_MULTIPLE * _PATCH_MULTIPLE) for n in size]
    lengths = np.array(spacing or [1.0] * len(size))
    while math.prod(patch) > PATCH_VOXELS[len(patch)]:
        sides = np.array(patch) * lengths * (np.array(patch) > _PATCH_MULTIPLE)
        patch[int(sides.argmax())] -= _PATCH_MULTIPLE
    return patch


def _told(found: CaseReport | DatasetReport) -> list[str]:
    return [
        f"    {kind}: {sentence}"
        for kind, sentences in (
            ("wrong", found.problems),
            ("odd", found.warnings),
            ("training", found.treatment),
        )
        for sentence in sentences
    ]


def _target(output: str | Path | None) -> Path | None:
    if output is None:
        return None
    target = Path(output)
    if target.suffix.lower() not in (".csv", ".json"):
        raise InputError(f"output is {output}; allowed are names that end in .csv or .json.")
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {target.parent}, where {target.name} is to go.")
    return target


def _write(report: DatasetReport, target: Path) -> None:
    try:
        with replacing(target) as partial_file:
            if target.suffix.lower() == ".json":
                content = dataclasses.asdict(report) | {"wrong": report.wrong}
                text = json.dumps(content, indent=4, ensure_ascii=False)
                partial_file.write_text(text + "\n", encoding="utf-8")
            else:
                names = [field.name for field in dataclasses.fields(CaseReport)]
                with partial_file.open("w", newline="", encoding="utf-8") as file:
                    table = csv.writer(file)
                    table.writerow(names)
                    for case in report.cases:
                        table.writerow([_cell(getattr(case, name)) for name in names])
    except OSError as error:
        raise InputError(f"The report {target} cannot be written ({error}).") from error


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return "; ".join(f"{key:g}: {number}" for key, number in value.items())
    if isinstance(value, list):
        return "; ".join(f"{x:g}" if isinstance(x, (int, float)) else x for x in value)
    return "" if value is None else value
