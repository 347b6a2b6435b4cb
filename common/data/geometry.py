"""Where the voxels of an image are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

SAME_PLACE = 0.1  # voxels that channels of one image, and image and label, may lie apart


def grid_problem(affine: ArrayLike) -> str | None:
    """What is wrong with an affine (n + 1, n + 1): not finite, or of axes that span no space."""
    if _is_grid(affine):
        return None
    return (
        f"has the affine {described(affine)}, of which no grid of voxels can be made; allowed are "
        "finite ones that can be inverted."
    )


def _is_grid(affine: ArrayLike) -> bool:
    matrix = np.asarray(affine, np.float64)
    axes = matrix[:-1, :-1]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(matrix).all() or not lengths.all():
        return False
    return bool(abs(np.linalg.det(axes / lengths)) >= 1e-6)


def apart(affine: ArrayLike, other: ArrayLike, size: Sequence[int]) -> float:
    """How far the farthest corner of a grid lies from another's of the same size, in voxels.

    Args:
        affine: (n + 1, n + 1), whose voxels count; both can be inverted.
        other: (n + 1, n + 1).
        size: n numbers of voxels; axes that it lacks have one.
    """
    ours, theirs = np.asarray(affine, np.float64), np.asarray(other, np.float64)
    dims = len(ours) - 1
    ends = [(0, n - 1) for n in [*size, *[1] * dims][:dims]]
    corners = np.array([(*corner, 1) for corner in itertools.product(*ends)], np.float64).T
    moved = np.linalg.solve(ours, theirs @ corners) - corners
    return float(np.linalg.norm(moved[:-1], axis=0).max())


def spacing_of(affine: ArrayLike, dims: int) -> list[float]:
    """How long a voxel is along each of its first `dims` axes, wherever they point."""
    axes = np.asarray(affine, np.float64)[:-1, :dims]
    return [float(length) for length in np.linalg.norm(axes, axis=0)]


def described(affine: ArrayLike) -> str:
    """The rows of an affine but the last, for a sentence."""
    rows = np.asarray(affine, np.float64)[:-1]
    return f"[{'; '.join(' '.join(f'{x:g}' for x in row) for row in rows)}]"
