"""How far the surfaces of two masks are apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from torch import Tensor


def surface_distances(
    prediction: Tensor, label: Tensor, spacing: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Distances of each surface voxel of a mask to the nearest of the other, there and back.

    On the surface is a voxel that shares a face with one outside of the mask, or with the outside
    of the image. Distances are those of voxels' centres. (MONAI's, as its metrics have them.)

    Args:
        prediction, label: masks of one shape, of bool, neither of them empty.
        spacing: of each axis, in whatever unit the distances are to have.

    Returns:
        From the prediction's surface, and from the label's.
    """
    found, true = get_mask_edges(prediction, label)
    there, back = (
        get_surface_distance(*edges, spacing=list(spacing)).double()
        for edges in ((found, true), (true, found))
    )
    return there, back


def average_distance(there: Tensor, back: Tensor) -> float:
    """ASD, the average symmetric surface distance: the mean over the voxels of both surfaces."""
    return float(torch.cat([there, back]).mean())


def percentile_distance(there: Tensor, back: Tensor, percentile: float = 95.0) -> float:
    """HD95: of the two 95th percentiles, one a direction, the larger one."""
    return max(float(torch.quantile(part, percentile / 100)) for part in (there, back))


def surface_dice(there: Tensor, back: Tensor, tolerance: float) -> float:
    """NSD: the share of the voxels of both surfaces that are within a tolerance of the other.

    (Nikolov et al. 2021, doi:10.2196/26151, of voxels instead of areas.)
    """
    nearest = torch.tensor(tolerance, dtype=torch.float32).double()  # MONAI's distances are float32
    return float((torch.cat([there, back]) <= nearest).double().mean())
