"""What a label map holds, without another to compare it with: volumes, lesions, intensities."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist, squareform

from .lesions import find_lesions


def findings(
    labels: NDArray[np.integer],
    values: NDArray[np.floating],
    classes: Mapping[str, int],
    lesions: Collection[str],
    spacing: Sequence[float] | None,
    axial: int = 2,
) -> dict[str, Any]:
    """What there is of each class, as ``statistics.json`` has it; None is no value.

    Of a class ``voxels``, ``volume_ml``, and ``mean`` and ``sd`` of the image's values there (sd of
    n, not n - 1: these are all the voxels). Of a class of lesions also ``lesions``, its connected
    parts as `find_lesions` has them, the largest first. Each has these numbers, too; its
    ``diameter_mm``, in three dimensions; and ``long_axis_mm`` and ``short_axis_mm``, as `axes`
    measures them, in the ``slice`` in which the long one is the longest.

    Args:
        labels: (x, y) or (x, y, z).
        values: of the image, on the grid of the labels.
        classes: name -> value in the labels.
        lesions: names of classes whose parts are looked at.
        spacing: mm along each axis; None of a picture, whose lengths are in pixels.
        axial: the axis across axial slices, in which lesions are measured.
    """
    found = {}
    for name, value in classes.items():
        mask = labels == value
        found[name] = _described(mask, values, spacing)
        if name in lesions:
            found[name]["lesions"] = _parts(mask, values, spacing, axial)
    return found


def axes(points: NDArray[np.float64]) -> tuple[float, float]:
    """The long and the short axis of a lesion in a slice, in the manner of RECIST 1.1.

    The long one is the largest distance between two points; the short one the longest line
    perpendicular to it inside the points' convex hull (Eisenhauer et al., Eur J Cancer 45, 2009).
    Both are between centres of pixels, as `Lesion.diameter_mm` is: of a row of pixels the short one
    is 0.

    Args:
        points: centres of pixels, (n, 2), mm.
    """
    try:
        hull = points[ConvexHull(points).vertices] if len(points) > 2 else None
    except QhullError:  # all on a line
        hull = None
    if hull is None:
        return float(pdist(points).max(initial=0.0)), 0.0
    apart = squareform(pdist(hull))
    first, last = np.unravel_index(apart.argmax(), apart.shape)
    length = float(apart[first, last])
    along = (hull[last] - hull[first]) / length
    across = np.array([-along[1], along[0]])
    # The vertices are in their order around it: from one end to the other on either side.
    ring = np.roll(hull, -int(first), 0)
    turn = int(last - first) % len(ring)
    sides = ring[: turn + 1], np.concatenate([ring[turn:], ring[:1]])[::-1]
    at = (hull - hull[first]) @ along
    heights = [
        np.interp(at, (side - hull[first]) @ along, (side - hull[first]) @ across) for side in sides
    ]
    return length, float(np.abs(heights[0] - heights[1]).max())


def _described(
    mask: NDArray[np.bool_], values: NDArray[np.floating], spacing: Sequence[float] | None
) -> dict[str, Any]:
    inside = values[mask].astype(np.float64)
    voxels = len(inside)
    volume = None
    if spacing is not None and mask.ndim == 3:
        volume = voxels * (math.prod(spacing) / 1000)  # as `measure` multiplies
    return {
        "voxels": voxels,
        "volume_ml": volume,
        "mean": float(inside.mean()) if voxels else None,
        "sd": float(inside.std()) if voxels else None,
    }


def _parts(
    mask: NDArray[np.bool_],
    values: NDArray[np.floating],
    spacing: Sequence[float] | None,
    axial: int,
) -> list[dict[str, Any]]:
    """Each connected part of a mask: numbered and measured as `find_lesions` does."""
    boxes = ndimage.find_objects(mask.view(np.uint8))
    if not boxes:
        return []
    touching = ndimage.generate_binary_structure(mask.ndim, mask.ndim)
    parts, _ = ndimage.label(mask[boxes[0]], touching)
    inside = values[boxes[0]]
    steps = [1.0] * mask.ndim if spacing is None else list(spacing)
    found = []
    for lesion, box in zip(
        find_lesions(mask, mask, spacing), ndimage.find_objects(parts), strict=True
    ):
        part = parts[box] == lesion.lesion
        long, short, at = _longest(part, steps, axial)
        if at is not None:
            at += boxes[0][axial].start + box[axial].start
        found.append(
            _described(part, inside[box], spacing)
            | {
                "diameter_mm": lesion.diameter_mm,
                "long_axis_mm": long,
                "short_axis_mm": short,
                "slice": at,
            }
        )
    found.sort(key=lambda lesion: lesion["voxels"], reverse=True)
    return found


def _longest(
    part: NDArray[np.bool_], steps: Sequence[float], axial: int
) -> tuple[float, float, int | None]:
    """Both axes in the slice whose long one is the longest, and which slice; None of a picture."""
    if part.ndim == 2:
        return (*axes(np.argwhere(part) * np.array(steps)), None)
    in_plane = np.array([step for axis, step in enumerate(steps) if axis != axial])
    slices = np.moveaxis(part, axial, 0)
    measured = [
        (*axes(np.argwhere(section) * in_plane), at)
        for at, section in enumerate(slices)
        if section.any()
    ]
    return max(measured)
