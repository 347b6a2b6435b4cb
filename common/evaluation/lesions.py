"""Lesions: the connected components of a mask, found or missed one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

# By what lesions are told apart, and the bounds between strata: LCMambaNet's diameters (table 3),
# Codebook Mamba U-Net's diameters in voxels and its volumes (section 4.8), and how many a case has.
STRATA: Mapping[str, tuple[float, ...]] = {
    "diameter_mm": (20, 50),
    "diameter_voxels": (10, 20, 30, 50),
    "volume_ml": (20, 200),
    "number": (3, 6),
}
WELL_SEGMENTED = 0.6  # Dice from which on a lesion is segmented well
_FEW = 64  # points whose distances are all computed


class Lesion(NamedTuple):
    """A connected component of a label, or of a prediction where no lesion is.

    Attributes:
        lesion: its number, from 1, in the label, or in the prediction if it is false.
        kind: found or missed in the label; false.
        voxels: how many it has.
        volume_ml: NaN of a picture.
        diameter_mm: the largest distance between the centres of two of its voxels, along any
            direction; of one voxel 0. In pixels of a picture.
        number: how many lesions the label has.
        dice: of a lesion that is found with what it is found by; else NaN.
        diameter_voxels: as diameter_mm, voxels being 1 apart along each axis.
    """

    lesion: int
    kind: Literal["found", "missed", "false"]
    voxels: int
    volume_ml: float
    diameter_mm: float
    number: int
    dice: float
    diameter_voxels: float


def find_lesions(
    prediction: NDArray[np.bool_],
    label: NDArray[np.bool_],
    spacing: Sequence[float] | None,
    overlap: float = 0.1,
) -> list[Lesion]:
    """The lesions of a label, and what the prediction has elsewhere.

    Voxels that share a corner are of one component. A lesion is found by the one component of the
    prediction whose IoU with it is the largest, if it is at least `overlap`; each finds one lesion,
    the pairs of the largest IoU first. Every other component is false.

    Args:
        prediction, label: masks of one shape, two or three axes.
        spacing: mm along each axis; None of a picture.
        overlap: IoU, 0 to 1. 0 is any common voxel.
    """
    boxes = ndimage.find_objects((prediction | label).view(np.uint8))
    if not boxes:
        return []
    touching = ndimage.generate_binary_structure(label.ndim, label.ndim)
    found, of_found = ndimage.label(prediction[boxes[0]], touching)
    true, of_true = ndimage.label(label[boxes[0]], touching)
    found_sizes = np.bincount(found.ravel(), minlength=of_found + 1)
    true_sizes = np.bincount(true.ravel(), minlength=of_true + 1)

    both = (found > 0) & (true > 0)
    pairs, common = np.unique(
        true[both].astype(np.int64) * (of_found + 1) + found[both], return_counts=True
    )
    lesions, components = np.divmod(pairs, of_found + 1)
    iou = common / (true_sizes[lesions] + found_sizes[components] - common)
    dice: dict[int, float] = {}  # of the lesions that are found
    used: set[int] = set()
    for pair in np.argsort(-iou, kind="stable"):
        lesion, component = int(lesions[pair]), int(components[pair])
        if iou[pair] >= overlap and lesion not in dice and component not in used:
            dice[lesion] = 2 * int(common[pair]) / int(true_sizes[lesion] + found_sizes[component])
            used.add(component)

    def described(
        parts: NDArray[np.int32], sizes: NDArray[np.int64], kind_of: Mapping[int, Any]
    ) -> list[Lesion]:
        rows = []
        for i, box in enumerate(ndimage.find_objects(parts), start=1):
            if i not in kind_of:
                continue
            part = parts[box] == i
            where = np.argwhere(part ^ ndimage.binary_erosion(part))  # the ends are on the surface
            steps = np.ones(label.ndim) if spacing is None else np.asarray(spacing)
            volume = math.nan
            if spacing is not None and label.ndim == 3:
                volume = float(sizes[i] * np.prod(steps) / 1000)
            rows.append(
                Lesion(
                    lesion=i,
                    kind=kind_of[i],
                    voxels=int(sizes[i]),
                    volume_ml=volume,
                    diameter_mm=_diameter(where * steps),
                    number=of_true,
                    dice=dice.get(i, math.nan) if kind_of[i] == "found" else math.nan,
                    diameter_voxels=_diameter(where.astype(np.float64)),
                )
            )
        return rows

    kinds = {i: "found" if i in dice else "missed" for i in range(1, of_true + 1)}
    false = {i: "false" for i in range(1, of_found + 1) if i not in used}
    return described(true, true_sizes, kinds) + described(found, found_sizes, false)


def summarise_lesions(lesions: Sequence[Lesion], cases: int) -> dict[str, Any]:
    """Detection of a class's lesions over all cases, and in each stratum of `STRATA`.

    A rate is None where it is 0 / 0. `dice` is the mean over the lesions that are found,
    `dice_with_missed` over all of them, one that is missed having 0. `major_axis_mm` is the mean
    diameter of lesions of Dice `WELL_SEGMENTED` or more, and of all others, those missed included.
    """
    well = [x.diameter_mm for x in lesions if x.kind == "found" and x.dice >= WELL_SEGMENTED]
    badly = [x.diameter_mm for x in lesions if x.kind != "false" and not x.dice >= WELL_SEGMENTED]
    counted = _detection(lesions)
    return counted | {
        "false_positives_per_case": counted["false"] / cases if cases else None,
        "major_axis_mm": {"well": _mean(well), "badly": _mean(badly)},
        "strata": {
            by: {
                name: _detection([x for x in lesions if low <= getattr(x, by) < high])
                for name, low, high in _between(bounds)
            }
            for by, bounds in STRATA.items()
        },
    }


def _detection(lesions: Sequence[Lesion]) -> dict[str, Any]:
    count = {kind: sum(x.kind == kind for x in lesions) for kind in ("found", "missed", "false")}
    found, missed, false = count.values()
    dice = [x.dice for x in lesions if x.kind == "found"]
    return count | {
        "recall": _ratio(found, found + missed),
        "precision": _ratio(found, found + false),
        "f1": _ratio(2 * found, 2 * found + missed + false),
        "dice": _mean(dice),
        "dice_with_missed": _mean(dice + [0.0] * missed),
    }


def _between(bounds: Sequence[float]) -> list[tuple[str, float, float]]:
    """Names, lowest values and what is just too large, of the strata between bounds."""
    inner = [(f"{low} to {high}", low, high) for low, high in pairwise(bounds)]
    first, last = bounds[0], bounds[-1]
    return [(f"< {first}", -math.inf, first), *inner, (f">= {last}", last, math.inf)]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _mean(values: Sequence[float]) -> float | None:
    return _ratio(math.fsum(values), len(values))


def _diameter(points: NDArray[np.float64]) -> float:
    """The largest distance between two of the points, (n, axes)."""
    if len(points) > _FEW:
        points = points - points.mean(0)
        _, extents, axes = np.linalg.svd(points, full_matrices=False)
        # Turned to their own axes; those along which they are flat are none, which a hull needs.
        points = points @ axes[extents > 1e-6 * extents[0]].T
        if points.shape[1] > 1:
            points = points[ConvexHull(points).vertices]
        else:
            points = points[[points.argmin(), points.argmax()]]
    return float(pdist(points).max(initial=0.0))
