"""What is measured of one class of one case, and what counts where a mask is empty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from .overlap import OVERLAP, confusion
from .surface import average_distance, percentile_distance, surface_dice, surface_distances

# Whether more is better; None of what is best at another's value. Its order is that of tables.
BETTER: Mapping[str, Literal["larger", "smaller"] | None] = {
    "dice": "larger",
    "iou": "larger",
    "voe": "smaller",
    "rvd": None,
    "rvd_abs": "smaller",
    "precision": "larger",
    "recall": "larger",
    "f2": "larger",
    "asd": "smaller",
    "hd95": "smaller",
    "nsd": "larger",
    "volume_ml": None,
    "reference_ml": None,
}

EMPTY_RULES: Mapping[str, str] = {
    "nnunet": (
        "A class that neither mask has is left out. One that the prediction alone has counts as "
        "Dice 0. Distances of a class that one mask alone has are left out, and counted beside."
    ),
    "diagonal": "As nnunet, but such a distance is the image's diagonal.",
    "brats": "As diagonal, but a class that neither mask has is right: Dice 1, distance 0.",
    "label": "A class that the label lacks is left out, whatever was predicted.",
}
METRICS = tuple(name for name in BETTER if name not in ("volume_ml", "reference_ml"))


class Measures(NamedTuple):
    """Of one class of one case.

    Attributes:
        values: the metrics of `BETTER`, in its order; NaN where there is no value.
        outcome: whether both masks have the class, neither, the label alone (missed), or the
            prediction alone (false).
    """

    values: dict[str, float]
    outcome: Literal["both", "neither", "missed", "false"]


def measure(
    prediction: NDArray[np.bool_],
    label: NDArray[np.bool_],
    spacing: Sequence[float] | None,
    tolerance: float = 2.0,
    empty: str = "nnunet",
) -> Measures:
    """The metrics of a mask.

    Dice, IoU, VOE (1 - IoU), RVD ((prediction - label) / label in volume), its absolute value,
    precision, recall and F2 are of voxels. ASD and HD95 are in mm, those of a picture in pixels;
    NSD is at the tolerance. An axis of one voxel is none: of a slice, the surface is its contour.

    Recall and RVD of what the label lacks and precision of what the prediction lacks are 0 / 0:
    they have no value by any rule, but where neither mask has a voxel and `empty` is "brats".

    Args:
        prediction, label: of one shape, two or three axes.
        spacing: mm along each axis; None of a picture, which has no volume either.
        tolerance: of NSD, mm or pixels.
        empty: one of `EMPTY_RULES`.
    """
    steps = [1.0] * label.ndim if spacing is None else list(spacing)
    values = dict.fromkeys(BETTER, math.nan)
    if spacing is not None and label.ndim == 3:
        millilitres = math.prod(steps) / 1000
        values["volume_ml"] = np.count_nonzero(prediction) * millilitres
        values["reference_ml"] = np.count_nonzero(label) * millilitres
    boxes = ndimage.find_objects((prediction | label).view(np.uint8))
    if not boxes:
        if empty == "brats":
            values |= {name: float(BETTER[name] == "larger") for name in METRICS}
        return Measures(values, "neither")
    found, true = (torch.from_numpy(mask[boxes[0]]) for mask in (prediction, label))
    if empty == "label" and not true.any():
        return Measures(values, "false")
    counts = confusion(found, true)  # of true negatives those in the box, which no metric here uses
    values |= {name: float(score(counts)) for name, score in OVERLAP.items()}
    if found.any() and true.any():
        kept = [axis for axis, size in enumerate(label.shape) if size > 1]
        if len(kept) >= 2:
            found, true = (
                mask.reshape([mask.shape[axis] for axis in kept]) for mask in (found, true)
            )
            steps = [steps[axis] for axis in kept]
        there, back = surface_distances(found, true, steps)
        values["asd"] = average_distance(there, back)
        values["hd95"] = percentile_distance(there, back)
        values["nsd"] = surface_dice(there, back, tolerance)
        return Measures(values, "both")
    values["nsd"] = 0.0
    if empty in ("diagonal", "brats"):
        values["asd"] = values["hd95"] = float(np.linalg.norm(np.multiply(label.shape, steps)))
    return Measures(values, "missed" if true.any() else "false")
