"""One page to look at a segmentation: slices, classes on and off, windows, statistics."""

from __future__ import annotations

import base64
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from ..data import check_output_folder
from ..errors import InputError, by_axis
from ..files import writing
from .label_maps import Segmentation, read_segmentation
from .measures import EMPTY_RULES, measure
from .pages import template, versions
from .scenes import (
    ERRORS,
    Scene,
    centre_of,
    colour_of,
    kinds_between,
    largest_slices,
    load_scene,
    percentiles,
)
from .tables import TITLES, Cell, Row, Table, number_cell, titled

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATE = "view.html.jinja"
_ENDING = ".html"
_MOST_POINTS = 1 << 24  # that a page shows of an image: megabytes, and what a browser draws at once
_MOST_VALUES = 255  # of label maps, each a byte on the page
_PIXELS, _PIXELS_ALONE = 640, 1100  # of a picture's longer side, among three and alone
_LEVELS = 256  # of grey that are kept of an image
# Levels and HU between which they are spread evenly: 3 HU apart where soft tissue is.
_CT = ((0, 52, 202, 255), (-1024.0, -200.0, 250.0, 1500.0))
# As above, and percentiles.
_OTHER = ((0, 24, 231, 255), (0.0, 1.0, 99.0, 100.0))
_CT_REACHES = (-100.0, 100.0)  # what is lower and higher in every CT, and in few other images
# Radiopaedia's, of width and level; the abdomen's is the overlay's.
_CT_WINDOWS = {
    "Abdomen": (-150.0, 250.0),
    "Liver": (-45.0, 105.0),
    "Mediastinum": (-125.0, 225.0),
    "Lung": (-1350.0, 150.0),
    "Bone": (-500.0, 1300.0),
    "Brain": (0.0, 80.0),
}
_SHARES = {
    "Percentiles 1 to 99": (1.0, 99.0),
    "Percentiles 0.1 to 99.9": (0.1, 99.9),
    "Percentiles 5 to 95": (5.0, 95.0),
    "All values": (0.0, 100.0),
}
_METRICS = ("dice", "iou", "precision", "recall", "asd", "hd95", "nsd")
_TOLERANCE = 2.0  # of NSD, mm or pixels


class _Grey(NamedTuple):
    """An image in few levels of grey.

    Attributes:
        numbers: of each voxel's level, (x, y, z).
        levels: their values, ascending.
        windows: (name, lowest value shown, highest), the one to begin with first.
    """

    numbers: NDArray[np.uint8]
    levels: NDArray[np.float32]
    windows: list[tuple[str, float, float]]


def write_view(
    image: str | Path,
    prediction: str | Path,
    output: str | Path,
    label: str | Path | None = None,
    classes: Any = None,
    modality: str | None = None,
) -> Path:
    """Write an HTML page of an image and its segmentation, one file that opens without a network.

    It shows slices across each axis, contours and fill of each class, on and off, windows, and of
    each class its volume and the image's values in it. With a label it shows what was missed and
    what is false, and the metrics of `measure`, as `evaluate` has them.

    An image of more than 2^24 voxels is shown reduced: of each block of voxels the image's mean,
    and the class that most have. Values are kept in 256 levels. Numbers are of all voxels. What is
    written of files is their names.

    Args:
        image: a volume in any orientation, or a DICOM folder; or a picture.
        prediction, label, classes: as for `read_segmentation`, on the image's grid.
        output: the page to write, which ends in .html; its folder is created.
        modality: the image's, as DICOM calls it: of "CT" values are HU, and windows are a CT's, of
            all others they are percentiles. None takes a volume for a CT whose values reach from
            -100 or less to 100 or more.

    Raises:
        InputError: a file cannot be read, the grids differ, classes are none, there are more than
            255 values, jinja2 is not installed, or the page cannot be written.
    """
    page = _template_for(output)
    segmentation = read_segmentation(prediction, label, classes)
    return _write(page, image, segmentation, Path(output), modality, None)


def write_page(
    image: str | Path,
    segmentation: Segmentation,
    output: str | Path,
    modality: str | None = None,
    series_uid: str | None = None,
) -> Path:
    """As `write_view`, of a segmentation that was read.

    Args:
        series_uid: which DICOM series the image is, where there are several.
    """
    page = _template_for(output)
    return _write(page, image, segmentation, Path(output), modality, series_uid)


def _template_for(output: str | Path) -> Template:
    if Path(output).suffix.lower() != _ENDING:
        raise InputError(f"output is {output}; allowed are files that end in {_ENDING}.")
    return template(_TEMPLATE)


def _write(
    page: Template,
    image: str | Path,
    segmentation: Segmentation,
    path: Path,
    modality: str | None,
    series_uid: str | None,
) -> Path:
    scene = load_scene(image, segmentation.maps, modality, series_uid)
    check_output_folder(path.parent)  # before what may take a while
    blocks = _blocks(scene.values.shape, scene.spacing)
    values = _reduced_image(scene.values, blocks)
    is_ct = str(modality).upper() == "CT" if modality else not scene.flat and _may_be_ct(values)
    grey = _grey(values, is_ct)
    text = page.render(
        title=_name(image),
        about=_about(scene, segmentation),
        notes=_notes(segmentation, blocks),
        planes=[{"axis": axis, "name": scene.plane_name(axis)} for axis in scene.planes],
        classes=[(name, colour_of(i)) for i, name in enumerate(segmentation.classes, start=1)],
        errors=ERRORS if "label" in scene.maps else {},
        windows=grey.windows,
        data=_data(scene, segmentation, grey, blocks),
        table=_statistics(scene, segmentation, "HU" if is_ct else ""),
        versions=versions(),
    )
    with writing("page", path) as partial:
        partial.write_text(text, encoding="utf-8")
    return path


def _name(path: str | Path) -> str:
    """Of a file or folder, without where it is."""
    return Path(os.path.abspath(path)).name


def _about(scene: Scene, segmentation: Segmentation) -> str:
    size = by_axis(scene.values.shape[: 2 if scene.flat else 3])
    what = "pixels" if scene.flat else f"voxels of {by_axis(scene.spacing, 3)} mm"
    files = [f"{name}: {_name(each.file)}" for name, each in segmentation.maps.items()]
    return f"{size} {what}; {'; '.join(files)}"


def _notes(segmentation: Segmentation, blocks: Sequence[int]) -> list[str]:
    notes = []
    if math.prod(blocks) > 1:
        notes.append(
            f"A point shows {by_axis(blocks)} voxels: the image's mean, and the class that most of "
            "them have. The table is of all voxels."
        )
    named = {value for values in segmentation.classes.values() for value in values}
    notes += [
        f"The {name} has none of the classes."
        for name, each in segmentation.maps.items()
        if not each.present & named
    ]
    return notes


def _may_be_ct(values: NDArray[np.float32]) -> bool:
    return bool(values.min() <= _CT_REACHES[0] and values.max() >= _CT_REACHES[1])


def _blocks(size: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
    """How many voxels along each axis one point shows, so that points are few, and near to cubes.

    Points become as long, in mm, as they have to be, along the axes whose voxels are shorter.
    """
    lengths = sorted({step * n for step in spacing for n in range(1, max(size) + 1)})
    found = (
        tuple(max(1, min(n, int(length / x + 1e-3))) for n, x in zip(size, spacing, strict=True))
        for length in lengths
    )
    return next(x for x in found if math.prod(_divided(size, x)) <= _MOST_POINTS)


def _divided(size: Sequence[int], blocks: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-n // block) for n, block in zip(size, blocks, strict=True))


def _reduced_image(values: NDArray[np.float32], blocks: Sequence[int]) -> NDArray[np.float32]:
    """The mean of each block; what is not finite counts as the lowest value."""
    from skimage.measure import block_reduce

    known = np.isfinite(values)
    if not known.all():
        lowest = values[known].min() if known.any() else np.float32(0)
        values = np.where(known, values, lowest)
    if math.prod(blocks) == 1:
        return values
    if any(n % block for n, block in zip(values.shape, blocks, strict=True)):
        more = [(0, -n % block) for n, block in zip(values.shape, blocks, strict=True)]
        values = np.pad(values, more, mode="edge")
    reduced: NDArray[np.float32] = block_reduce(values, tuple(blocks), np.mean)
    return reduced


def _reduced_map(
    classes: NDArray[np.int32], known: Sequence[int], blocks: Sequence[int]
) -> NDArray[np.uint8]:
    """The value that most voxels of each block have, by its place in `known`, from 1.

    0 where more than half of a block have none of them.
    """
    from skimage.measure import block_reduce

    size = _divided(classes.shape, blocks)
    numbers = np.zeros(size, np.uint8)
    most, all_ = np.zeros(size, np.float32), np.zeros(size, np.float32)
    boxes = ndimage.find_objects(classes)
    for number, value in enumerate(known, start=1):
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is None:
            continue
        there = tuple(
            slice(part.start // block, -(-part.stop // block))
            for part, block in zip(box, blocks, strict=True)
        )
        voxels = tuple(
            slice(part.start * block, part.stop * block)
            for part, block in zip(there, blocks, strict=True)
        )
        share = block_reduce(classes[voxels] == value, tuple(blocks), np.mean).astype(np.float32)
        numbers[there][share > most[there]] = number
        most[there] = np.maximum(most[there], share)
        all_[there] += share
    numbers[all_ < 0.5 - 1e-4] = 0
    return numbers


def _grey(values: NDArray[np.float32], is_ct: bool) -> _Grey:
    shares = sorted({*_OTHER[1], *(share for limits in _SHARES.values() for share in limits)})
    found = dict(zip(shares, percentiles(values, *shares), strict=True))
    windows = [(name, found[low], found[high]) for name, (low, high) in _SHARES.items()]
    places, known = _OTHER[0], [found[share] for share in _OTHER[1]]
    if is_ct:
        windows = [(name, low, high) for name, (low, high) in _CT_WINDOWS.items()] + windows
        places, known = _CT[0], list(_CT[1])
    levels = np.interp(np.arange(_LEVELS), places, known).astype(np.float32)
    between = (levels[1:] + levels[:-1]) / 2
    return _Grey(np.searchsorted(between, values).astype(np.uint8), levels, windows)


def _data(
    scene: Scene, segmentation: Segmentation, grey: _Grey, blocks: Sequence[int]
) -> dict[str, Any]:
    """What the page's script draws; axes are right, front and up, and places are of points."""
    present = {0}.union(*(each.present for each in segmentation.maps.values()))
    named = {value for values in segmentation.classes.values() for value in values}
    known = sorted(named & present)
    if len(known) > _MOST_VALUES:
        raise InputError(
            f"The prediction{' and its label have' if 'label' in scene.maps else ' has'} "
            f"{len(known)} values; a page shows up to {_MOST_VALUES}."
        )
    maps = {name: _reduced_map(each, known, blocks) for name, each in scene.maps.items()}
    classes = []
    for number, values in enumerate(segmentation.classes.values(), start=1):
        numbers = [known.index(value) + 1 for value in values if value in present]
        masks = (np.isin(each, numbers) for each in maps.values())
        centre = next((largest_slices(mask) for mask in masks if mask.any()), None)
        classes.append({"colour": colour_of(number), "values": numbers, "centre": centre})
    shown = {name: scene.maps[name] for name in ("label", "prediction") if name in scene.maps}
    centre = [x // block for x, block in zip(centre_of(*shown.values()), blocks, strict=True)]
    return {
        "size": list(grey.numbers.shape),
        "spacing": [float(x * n) for x, n in zip(scene.spacing, blocks, strict=True)],
        "centre": centre,
        "flat": scene.flat,
        "pixels": _PIXELS if len(scene.planes) > 1 else _PIXELS_ALONE,
        "levels": [round(float(x), 4) for x in grey.levels],
        "windows": [list(limits) for _, *limits in grey.windows],
        "classes": classes,
        "values": len(known) + 1,
        "kinds": kinds_between([0, *known], [0, *known], segmentation.classes).ravel().tolist()
        if "label" in maps
        else [],
        "errors": {str(kind): colour for kind, (_, colour) in ERRORS.items()},
        "image": _packed(grey.numbers),
        "maps": {name: _packed(each) for name, each in maps.items()},
    }


def _packed(numbers: NDArray[np.uint8]) -> str:
    """Bytes along x, then y, then z, each less the one before it; deflated, in base64."""
    flat = np.ascontiguousarray(numbers.T).ravel()
    steps = flat.copy()
    steps[1:] -= flat[:-1]
    return base64.b64encode(zlib.compress(steps.tobytes(), 6)).decode()


def _statistics(scene: Scene, segmentation: Segmentation, unit: str) -> Table:
    """Of each class its volume, the image's values in it and, with a label, metrics."""
    spacing = None if scene.flat else scene.spacing
    boxes = {which: ndimage.find_objects(each) for which, each in scene.maps.items()}
    rows = []
    for name, values in tqdm(segmentation.classes.items(), desc="classes", disable=None):
        box = _box([found[x - 1] for found in boxes.values() for x in values if x <= len(found)])
        masks = {which: np.isin(each[box], values) for which, each in scene.maps.items()}
        prediction = masks["prediction"]
        cells = [Cell(name), _size(prediction, spacing)]
        if "label" in masks:
            # Of the box around both, which they have on the whole grid.
            scores = measure(prediction, masks["label"], spacing, _TOLERANCE).values
            cells.append(_size(masks["label"], spacing))
            cells += [number_cell(scores[metric], TITLES[metric][1]) for metric in _METRICS]
        inside = scene.values[box][prediction]
        inside = inside[np.isfinite(inside)].astype(np.float64)
        spread = (inside.mean(), inside.std()) if inside.size else (math.nan, math.nan)
        rows.append(Row([*cells, *(number_cell(float(x), 1) for x in spread)]))
    size, distance = (TITLES["volume_ml"][0], "mm") if spacing else ("Pixels", "pixels")
    columns = ["Class", size]
    notes = ["Mean and SD are of the image's values in the prediction."]
    if "label" in scene.maps:
        columns.append(TITLES["reference_ml"][0] if spacing else "Pixels in the label")
        columns += [titled(metric, distance) for metric in _METRICS]
        notes.append(f"NSD is at {_TOLERANCE:g} {distance}. {EMPTY_RULES['nnunet']}")
    columns += [f"{what}, {unit}" if unit else what for what in ("Mean", "SD")]
    return Table("Statistics", columns, rows, notes)


def _box(boxes: Sequence[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    """The smallest around all boxes; around none a voxel, which has nothing."""
    known = [box for box in boxes if box is not None]
    if not known:
        return (slice(0, 1),) * 3
    return tuple(
        slice(min(x.start for x in along), max(x.stop for x in along))
        for along in zip(*known, strict=True)
    )


def _size(mask: NDArray[np.bool_], spacing: Sequence[float] | None) -> Cell:
    """Millilitres, or of a picture pixels."""
    count = int(np.count_nonzero(mask))
    if spacing is None:
        return number_cell(count, 0)
    return number_cell(count * math.prod(spacing) / 1000, TITLES["volume_ml"][1])
