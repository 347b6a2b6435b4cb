"""Segmentations as a person looks at them: contours or errors on slices, and Dice scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import nibabel as nib
import numpy as np
import torch
from monai.utils import MetaKeys
from numpy.typing import NDArray
from PIL import Image

from ..data.formats import allowed_endings, format_of, is_lossy
from ..data.readers import FormatReader
from ..errors import InputError, first_line
from ..files import replacing
from .overlap import OVERLAP, confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

# Of classes: the first four all people can tell apart (Okabe and Ito's), for more there is the
# legend. Errors have the rest of these seven.
COLOURS = (
    *("#009E73", "#CC79A7", "#0072B2", "#E69F00", "#882255", "#44AA99", "#DDCC77"),
    *("#AA4499", "#BBCC33", "#FFAABB", "#999933", "#4477AA", "#CC6677", "#99DDFF"),
    *("#77CC55", "#AA7744", "#DDDDDD", "#7755CC", "#EE8866", "#EEDD88"),
)
_AGREES, _MISSED, _FALSE, _OTHER = 1, 2, 3, 4
_ERRORS = {
    _MISSED: ("missed", "#D55E00"),
    _FALSE: ("false", "#56B4E9"),
    _OTHER: ("another class", "#F0E442"),
}
_AXES = ("sagittal", "coronal", "axial")
_MARGIN = 0.2  # around what is segmented, of its size
_LEAST = 32  # voxels that are shown across
_PICTURE = np.diag([-1.0, -1.0, 1.0, 1.0])  # where a radiograph is: x to the left, y downwards


class Scene(NamedTuple):
    """An image and label maps on its grid, turned so that axes point right, front and up.

    Attributes:
        values: of the image, (x, y, z).
        maps: each label map, (x, y, z).
        spacing: mm of a voxel.
        flat: whether it is a radiograph, of one slice.
    """

    values: NDArray[np.float32]
    maps: dict[str, NDArray[np.int32]]
    spacing: tuple[float, ...]
    flat: bool

    @property
    def planes(self) -> list[int]:
        """The axes across which slices are no lines, the axial plane's first."""
        sizes = self.values.shape
        return [axis for axis in (2, 1, 0) if min(sizes[:axis] + sizes[axis + 1 :]) > 1] or [2]


def load_scene(
    image: str | Path, maps: Mapping[str, str | Path], last_class: int | None = None
) -> Scene:
    """Read an image and label maps on its grid.

    Args:
        image: a volume in any orientation, the first of several channels in one file; or a picture.
        maps: of the same kind.
        last_class: of pictures, whose classes up to this one may be spread over the grey levels;
            None takes each grey level that there is as a class.

    Raises:
        InputError: a file cannot be read, or the grids differ.
    """
    whole = _load(image, channels=True)
    values = nib.as_closest_canonical(whole)
    turned = {}
    for name, path in maps.items():
        loaded = _load(path)
        _same_grid(image, whole, path, loaded)
        turned[name] = _classes(path, nib.as_closest_canonical(loaded), last_class)
    spacing = tuple(float(x) for x in values.header.get_zooms())
    return Scene(values.get_fdata(dtype=np.float32), turned, spacing, _is_picture(image))


def scene_of(
    values: NDArray[np.floating],
    affine: NDArray[np.float64] | None,
    maps: Mapping[str, NDArray[np.integer]],
) -> Scene:
    """A scene of arrays: an image (x, y, z) and label maps on its grid, wherever axes point.

    Args:
        affine: of both, (4, 4), to RAS, mm; None of a picture and its masks, (x, y).
    """
    if affine is None:
        values, maps = values[..., None], {name: x[..., None] for name, x in maps.items()}
    placed = _PICTURE if affine is None else affine

    def turned(array: NDArray) -> nib.Nifti1Image:
        return nib.as_closest_canonical(nib.Nifti1Image(array, placed))

    image = turned(values.astype(np.float32, copy=False))
    return Scene(
        image.get_fdata(dtype=np.float32),
        {name: np.asarray(turned(x.astype(np.int32)).dataobj) for name, x in maps.items()},
        tuple(float(x) for x in image.header.get_zooms()),
        affine is None,
    )


def dice_per_class(prediction: str | Path, label: str | Path) -> dict[int, float]:
    """Dice of each class but the background in two label maps on one grid.

    A class that neither has is NaN; one that the prediction alone has is 0.

    Raises:
        InputError: a file cannot be read, or the grids differ.
    """
    loaded = {path: _load(path) for path in (prediction, label)}
    _same_grid(prediction, loaded[prediction], label, loaded[label])
    found, true = (torch.from_numpy(_classes(path, loaded[path])) for path in (prediction, label))
    return {
        value: float(OVERLAP["dice"](confusion(found == value, true == value)))
        for value in range(1, int(max(found.max(), true.max())) + 1)
    }


def draw_overlay(
    image: str | Path,
    prediction: str | Path,
    output: str | Path,
    label: str | Path | None = None,
    window: tuple[float, float] | None = (-150.0, 250.0),
) -> Path:
    """Draw three slices of an image with the contours of a prediction, and a label's dashed.

    The slices, one per body plane, have most voxels of the highest class (of the label, if any).
    Of a radiograph there is one picture, in full. Classes have up to 20 colours, which a legend
    names.

    Args:
        image, prediction, label: NIfTI files on one grid, in any orientation; or pictures of one
            size, whose masks have a grey level per class.
        output: the PNG to write.
        window: lowest and highest value shown, HU for CT; None takes the 1st and 99th percentile,
            as a radiograph always does.

    Raises:
        InputError: a file cannot be read, the grids differ, or the PNG cannot be written.
    """
    from matplotlib.figure import Figure

    scene = load_scene(image, {"prediction": prediction} | ({"label": label} if label else {}))
    shown = window if window and not scene.flat else window_of(scene.values)
    centre = centre_of(scene.maps.get("label"), scene.maps["prediction"])
    planes = scene.planes[::-1]
    size = (7, 7) if len(planes) == 1 else (13, 5)
    figure = Figure(figsize=size, layout="constrained", facecolor="black")
    drawn: set[int] = set()
    for axis, axes in zip(planes, figure.subplots(1, len(planes), squeeze=False)[0], strict=True):
        drawn |= draw_contours(axes, scene, axis, centre, shown)
    figure.suptitle(
        f"{Path(image).name}: prediction solid" + (", label dashed" if label else ""),
        color="white",
        parse_math=False,  # a name may have dollars
    )
    if drawn:
        figure.legend(
            handles=[patch(f"class {x}", colour_of(x)) for x in sorted(drawn)],
            loc="outside lower center",
            ncols=10,
            labelcolor="white",
            frameon=False,
        )
    path = Path(output)
    try:
        with replacing(path) as partial:
            figure.savefig(partial, dpi=110, format="png")
    except OSError as error:
        raise InputError(f"The picture {path} cannot be written ({error.strerror}).") from error
    return path


def draw_contours(
    axes: Axes, scene: Scene, axis: int, centre: Sequence[int], window: Sequence[float]
) -> set[int]:
    """Show a slice of a scene, with the contours of its first map's classes, a second one's dashed.

    Args:
        axes: where it is shown, on black.
        axis: across the slice.
        centre: the slice to show, per axis; see `centre_of`.
        window: lowest and highest value shown.

    Returns:
        The classes that are drawn.
    """
    _show_slice(axes, _section(scene.values, axis, centre), axis, scene, window)
    drawn: set[int] = set()
    for classes, style in zip(scene.maps.values(), ("solid", "dashed"), strict=False):
        section = _section(classes, axis, centre)
        found = np.unique(section[section > 0]) if min(section.shape) > 1 else np.empty(0)
        for value in found.tolist():
            axes.contour(
                section == value,
                [0.5],
                colors=[colour_of(value)],
                linestyles=style,
                linewidths=1.3,
            )
            drawn.add(value)
    axes.set_title("frontal" if scene.flat else _AXES[axis], color="white")
    return drawn


def draw_errors(
    scene: Scene, names: Mapping[str, str], classes: Mapping[str, Sequence[int]]
) -> Figure:
    """Draw an image, its label, and what each of several predictions missed and made up.

    Each plane of the body is a row: the slice with most voxels of the label's highest class, as
    far as label and predictions reach.

    Args:
        scene: its maps are the label's, called label, and those of the predictions in `names`.
        names: of each prediction's map, what stands above it.
        classes: name -> values in the maps that belong to it.

    Returns:
        A figure for white paper.
    """
    from matplotlib.figure import Figure

    centre = centre_of(scene.maps["label"], *scene.maps.values())
    box = box_around(scene.maps.values())
    window = window_of(scene.values[box])
    ratios = []
    for axis in scene.planes:
        width, height = (
            (box[i].stop - box[i].start) * scene.spacing[i] for i in range(3) if i != axis
        )
        ratios.append(float(np.clip(height / width, 0.4, 1.6)))
    columns = 2 + len(names)
    figure = Figure(figsize=(1.9 * columns + 0.3, 1.9 * sum(ratios) + 0.9), layout="constrained")
    grid = figure.subplots(len(ratios), columns, squeeze=False, height_ratios=ratios)
    order = [f"class {name}" for name in classes]
    drawn: dict[str, Patch] = {}
    for row, axis in zip(grid, scene.planes, strict=True):
        section = _section(scene.values, axis, centre, box)
        true, *found = (_section(scene.maps[x], axis, centre, box) for x in ("label", *names))
        for axes in row:
            _show_slice(axes, section, axis, scene, window)
        for axes, prediction in zip(row[1:], [true, *found], strict=True):
            kinds = _kinds(true, prediction, classes)
            innermost = np.where(kinds == _AGREES, true, 0)
            for number, (name, values) in reversed(list(enumerate(classes.items(), start=1))):
                mask = np.isin(innermost, list(values)) & (innermost != 0)
                innermost[mask] = 0  # a tumour is not painted as liver, too
                if _fill(axes, mask, colour_of(number), 0.5):
                    drawn.setdefault(f"class {name}", patch(name, colour_of(number)))
            for kind, (name, colour) in _ERRORS.items():
                if _fill(axes, kinds == kind, colour, 0.9):
                    drawn.setdefault(name, patch(name, colour))
        if not scene.flat:
            row[0].text(
                -0.05,
                0.5,
                _AXES[axis],
                transform=row[0].transAxes,
                rotation=90,
                ha="right",
                va="center",
            )
    for axes, title in zip(grid[0], ["Image", "Label", *names.values()], strict=True):
        axes.set_title(title, fontsize=9)
    figure.legend(
        handles=[
            drawn[name]
            for name in (*order, *(name for name, _ in _ERRORS.values()))
            if name in drawn
        ],
        loc="outside lower center",
        ncols=6,
        frameon=False,
        fontsize=8,
    )
    return figure


def colour_of(number: int) -> str:
    """The colour of a class by its number, from 1; after the last the first comes again."""
    return COLOURS[(number - 1) % len(COLOURS)]


def window_of(values: NDArray[np.float32]) -> tuple[float, float]:
    """The 1st and the 99th percentile, lowest and highest value that a picture shows."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, (1, 99)) if known.size else (0.0, 1.0)
    return float(low), float(high)


def patch(name: str, colour: str) -> Patch:
    """What a legend has of a class."""
    from matplotlib.patches import Patch

    return Patch(color=colour, label=name)


def _section(
    values: NDArray, axis: int, centre: Sequence[int], box: tuple[slice, ...] | None = None
) -> NDArray:
    """The slice across an axis, (up, across), inside a box."""
    place: list[int | slice] = list(box or [slice(None)] * 3)
    place[axis] = centre[axis]
    return values[tuple(place)].T


def _show_slice(
    axes: Axes, section: NDArray, axis: int, scene: Scene, window: Sequence[float]
) -> None:
    across, up = (i for i in range(3) if i != axis)
    axes.imshow(
        section,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        aspect=scene.spacing[up] / scene.spacing[across],
    )
    if across == 0:
        axes.invert_xaxis()  # radiological: the patient's right is on the left
    axes.set_autoscale_on(False)  # what is drawn on it does not turn it back
    axes.set_axis_off()


def _fill(axes: Axes, mask: NDArray[np.bool_], colour: str, alpha: float) -> bool:
    """Colour a part of a slice; whether there is any."""
    from matplotlib.colors import to_rgba

    if not mask.any():
        return False
    layer = np.zeros((*mask.shape, 4), np.float32)
    layer[mask] = to_rgba(colour, alpha)
    axes.imshow(layer, origin="lower", interpolation="nearest", aspect=axes.get_aspect())
    return True


def _kinds(
    label: NDArray[np.int32], prediction: NDArray[np.int32], classes: Mapping[str, Sequence[int]]
) -> NDArray[np.uint8]:
    """Of each voxel 0 where neither has a class, `_AGREES`, or one of `_ERRORS`.

    Classes may overlap, as a tumour is liver, too: a voxel is missed that is of a class in the
    label alone, false that is of one in the prediction alone, and of another class if both.
    """
    true, found = np.unique(label), np.unique(prediction)
    kinds = np.zeros((len(true), len(found)), np.uint8)
    for i, a in enumerate(true.tolist()):
        for j, b in enumerate(found.tolist()):
            ours = {name for name, values in classes.items() if a in values}
            theirs = {name for name, values in classes.items() if b in values}
            if ours - theirs:
                kinds[i, j] = _OTHER if theirs - ours else _MISSED
            elif theirs - ours:
                kinds[i, j] = _FALSE
            elif ours:
                kinds[i, j] = _AGREES
    return kinds[np.searchsorted(true, label), np.searchsorted(found, prediction)]


def box_around(maps: Iterable[NDArray[np.int32]]) -> tuple[slice, ...]:
    """Where any map has a class, with a margin; all of the grid where none has."""
    union = np.logical_or.reduce([classes > 0 for classes in maps])
    box = []
    for axis, size in enumerate(union.shape):
        places = np.flatnonzero(union.any(tuple({0, 1, 2} - {axis})))
        first, last = (places[0], places[-1]) if len(places) else (0, size - 1)
        margin = max(_MARGIN * (last - first + 1), (_LEAST - (last - first + 1)) / 2)
        box.append(slice(max(0, int(first - margin)), min(size, int(last + margin) + 2)))
    return tuple(box)


def _is_picture(path: str | Path) -> bool:
    found = format_of(path)
    return found is not None and found.spatial_dims == 2


def _load(path: str | Path, channels: bool = False) -> nib.Nifti1Image:
    """A volume of three axes; of one with `channels`, a fourth axis, the first."""
    found = format_of(path)
    try:
        if _is_picture(path):
            image = _load_picture(path)
        elif found is not None and found.library == "itk":
            reader = FormatReader()
            values, meta = reader.get_data(reader.read(path))
            image = nib.Nifti1Image(values, np.asarray(meta[MetaKeys.AFFINE], np.float64))
        else:
            image = nib.load(path)
        if len(image.shape) == 4 and (channels or image.shape[3] == 1):
            image = image.slicer[..., 0]
        image.get_fdata(dtype=np.float32)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as an image ({first_line(error)}); allowed are files that end "
            f"in {allowed_endings()}."
        ) from error
    if len(image.shape) != 3:
        raise InputError(f"{path} has {len(image.shape)} axes; allowed are 3.")
    return image


def _load_picture(path: str | Path) -> nib.Nifti1Image:
    """A radiograph as the one slice of a volume: the patient's right is at its left."""
    with Image.open(path) as image:
        grey = image if image.mode.startswith("I") else image.convert("L")
        rows = np.asarray(grey).astype(np.int32)
    return nib.Nifti1Image(rows.T[..., None], _PICTURE)


def _same_grid(
    path: str | Path, image: nib.Nifti1Image, other_path: str | Path, other: nib.Nifti1Image
) -> None:
    same = image.shape == other.shape and np.allclose(image.affine, other.affine, atol=1e-3)
    if not same:
        raise InputError(
            f"{other_path} of size {other.shape} is not on the grid of {path}, {image.shape}; "
            "allowed are files of one size and affine."
        )


def _classes(
    path: str | Path, image: nib.Nifti1Image, last_class: int | None = None
) -> NDArray[np.int32]:
    if is_lossy(path):
        raise InputError(
            f"The mask {path} is a JPEG, which does not keep values as they are; allowed are "
            "formats that do, such as PNG."
        )
    values = np.rint(image.get_fdata(dtype=np.float32)).astype(np.int32)
    if not _is_picture(path) or (last_class is not None and values.max() <= last_class):
        return values
    if last_class is not None:  # as AtomicPILWriter writes them
        levels = np.linspace(0, 255, last_class + 1).round()
    else:  # 0 and 255, say, are the classes 0 and 1
        levels = np.union1d(values, [0])
    return np.searchsorted(levels, values).astype(np.int32)


def centre_of(*maps: NDArray[np.int32] | None) -> list[int]:
    """Per axis, the slice with most voxels of the highest class of the first map that has one."""
    given = [classes for classes in maps if classes is not None]
    for classes in given:
        if classes.any():
            mask = classes == classes.max()
            return [int(mask.sum(tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]
    return [size // 2 for size in given[0].shape]
