"""An image and label maps on its grid, turned upright: what pictures and pages show of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from monai.data.utils import to_affine_nd
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

from ..data.geometry import spacing_of
from .label_maps import LabelMap, check_grid, read_image

# Of classes: the first four all people can tell apart (Okabe and Ito's). No two, nor one and an
# error's colour or a grey, are alike: from CIEDE2000 14 on, chosen one by one as the farthest.
COLOURS = (
    *("#009E73", "#CC79A7", "#0072B2", "#E69F00", "#66FFEE", "#AA00FF", "#00EE44"),
    *("#FFCCCC", "#888822", "#CCCCFF", "#8888FF", "#AACCAA", "#CC0088", "#EE0044"),
    *("#228800", "#FFAAFF", "#AA8866", "#886666", "#8866AA", "#66AAAA"),
)
AGREES, MISSED, FALSE, OTHER = 1, 2, 3, 4
# The rest of Okabe and Ito's, but for black.
ERRORS = {
    MISSED: ("missed", "#D55E00"),
    FALSE: ("false", "#56B4E9"),
    OTHER: ("another class", "#F0E442"),
}
AXES = ("sagittal", "coronal", "axial")
_PICTURE = np.diag([-1.0, -1.0, 1.0, 1.0])  # the patient's right is at its left, his head above
_MARGIN = 0.2  # around what is segmented, of its size
_LEAST = 32  # voxels that are shown across


class Scene(NamedTuple):
    """An image and label maps on its grid, turned so that axes point right, front and up.

    Attributes:
        values: of the image, (x, y, z).
        maps: each label map, (x, y, z).
        spacing: mm of a voxel.
        flat: whether it is a picture, such as a radiograph, of one slice.
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

    def plane_name(self, axis: int) -> str:
        return "frontal" if self.flat else AXES[axis]


def load_scene(
    image: str | Path,
    maps: Mapping[str, LabelMap],
    modality: str | None = None,
    series_uid: str | None = None,
) -> Scene:
    """Read an image that label maps are of.

    Args:
        image, modality, series_uid: as for `read_image`; in any orientation.
        maps: by the names that they will have.

    Raises:
        InputError: the image cannot be read, or a map is not on its grid.
    """
    flat = any(each.affine is None for each in maps.values())
    whole = read_image(image, modality, series_uid, flat)
    for each in maps.values():
        check_grid(each, whole)
    return scene_of(whole.values, whole.affine, {name: x.values for name, x in maps.items()})


def scene_of(
    values: NDArray, affine: NDArray[np.float64] | None, maps: Mapping[str, NDArray]
) -> Scene:
    """A scene of arrays: an image (x, y, z) and label maps on its grid, wherever axes point.

    Args:
        affine: of both, (4, 4), to RAS, mm; None of a picture and its masks, (x, y).
    """
    placed = _PICTURE if affine is None else to_affine_nd(3, affine)
    turn = io_orientation(placed)

    def turned(array: NDArray, dtype: type) -> NDArray:
        whole = array.reshape(array.shape + (1,) * (3 - array.ndim))
        return apply_orientation(whole.astype(dtype, copy=False), turn)

    spacing = np.empty(3)
    spacing[turn[:, 0].astype(int)] = spacing_of(placed, 3)
    return Scene(
        turned(values, np.float32),
        {name: turned(each, np.int32) for name, each in maps.items()},
        tuple(spacing.tolist()),
        affine is None,
    )


def colour_of(number: int) -> str:
    """The colour of a class by its number, from 1; after the last the first comes again."""
    return COLOURS[(number - 1) % len(COLOURS)]


def percentiles(values: NDArray[np.float32], *shares: float) -> list[float]:
    """Of the values that are finite; where none is, 0 to 1 evenly."""
    known = values[np.isfinite(values)]
    if not known.size:
        return [float(x) for x in np.linspace(0, 1, len(shares))]
    return [float(x) for x in np.percentile(known, shares)]


def centre_of(*maps: NDArray[np.int32]) -> list[int]:
    """Per axis, the slice with most voxels of the highest class of the first map that has one."""
    for classes in maps:
        if classes.any():
            return largest_slices(classes == classes.max())
    return [size // 2 for size in maps[0].shape]


def largest_slices(mask: NDArray[np.bool_]) -> list[int]:
    """Per axis, the slice with most of a mask's voxels."""
    return [int(mask.sum(tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]


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


def kinds_of(
    label: NDArray[np.int32], prediction: NDArray[np.int32], classes: Mapping[str, Sequence[int]]
) -> NDArray[np.uint8]:
    """Of each voxel what `kinds_between` says of its two values."""
    true, found = np.unique(label), np.unique(prediction)
    kinds = kinds_between(true.tolist(), found.tolist(), classes)
    return kinds[np.searchsorted(true, label), np.searchsorted(found, prediction)]


def kinds_between(
    true: Sequence[int], found: Sequence[int], classes: Mapping[str, Sequence[int]]
) -> NDArray[np.uint8]:
    """What a prediction's values are where a label has each of its own, (true, found).

    0 where neither is of a class, `AGREES`, or one of `ERRORS`. Classes may overlap, as a tumour is
    liver, too: a voxel is missed that is of a class in the label alone, false that is of one in the
    prediction alone, and of another class if both.
    """
    kinds = np.zeros((len(true), len(found)), np.uint8)
    in_found = [{name for name, values in classes.items() if b in values} for b in found]
    for i, a in enumerate(true):
        ours = {name for name, values in classes.items() if a in values}
        for j, theirs in enumerate(in_found):
            if ours - theirs:
                kinds[i, j] = OTHER if theirs - ours else MISSED
            elif theirs - ours:
                kinds[i, j] = FALSE
            elif ours:
                kinds[i, j] = AGREES
    return kinds
