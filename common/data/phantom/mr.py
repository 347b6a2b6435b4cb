"""A T1-weighted MR of one hippocampus and what is around it; nothing here is a patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from .shapes import Array, check_grid, smooth_noise

_WHITE, _GREY, _FLUID = 110.0, 76.0, 24.0
_HEAD = 0.33  # of the way from the front: the uncus ends there, where the anterior part does


class MRCase(NamedTuple):
    """One T1-weighted MR, cropped around a hippocampus; axes to the right, anterior, superior."""

    image: NDArray[np.int16]
    label: NDArray[np.uint8]
    """0 background, 1 anterior hippocampus (head), 2 posterior (body and tail)."""


def mr_case(rng: Generator, shape: Sequence[int], spacing: Sequence[float]) -> MRCase:
    """Draw the left or the right hippocampus of one patient in the middle of a grid.

    Args:
        rng: decides the patient.
        shape: voxels to the right, anterior and superior.
        spacing: mm between voxels, at most 2; the grid must cover 32 x 46 x 32 mm.
    """
    check_grid(shape, spacing, "a hippocampus", 2, (32, 46, 32))
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    mm = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    warp = np.stack([smooth_noise(rng, axes, 16) for _ in range(3)])
    shift = rng.uniform((-1.5, -1, -1.5), (1.5, 1, 1.5)).reshape(3, 1, 1, 1)
    point = (mm + 0.5 * warp - shift) / rng.uniform(0.92, 1)
    point[0] *= rng.choice((-1, 1))  # from here on, away from the body's middle is +

    level, along = _hippocampus(point)
    image = _surroundings(rng, axes, point, level, spacing[0])
    image = _painted(image, level, _GREY + 3 * smooth_noise(rng, axes, 4), spacing[0])
    gain = rng.uniform(1, 6) * (1 + 0.06 * smooth_noise(rng, axes, 60))
    noisy = ndimage.gaussian_filter(image, 0.4) + rng.uniform(1.5, 4) * rng.standard_normal(shape)
    label = _in_one_piece(np.where(level < 0, np.where(along < _HEAD, 1, 2), 0))
    return MRCase((gain * noisy).clip(0, 32767).round().astype(np.int16), label)


def _in_one_piece(label: NDArray[np.integer]) -> NDArray[np.uint8]:
    """What lies apart from the hippocampus is left out, what lies apart from a part the other's."""
    whole = _largest(label > 0)
    anterior = _largest(whole & (label == 1))
    posterior = _largest(whole & ~anterior)
    return np.where(posterior, 2, whole).astype(np.uint8)


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, _ = ndimage.label(mask)
    return np.asarray(mask & (pieces == np.bincount(pieces[mask]).argmax()))


def _hippocampus(point: Array) -> tuple[Array, Array]:
    """Its level, and how far along it each voxel is, from 0 in front to 1 at the tail's end.

    It is a tube that bends inwards and upwards to the back, thick at its head.
    """
    t = np.linspace(0, 1, 60)
    line = np.stack([4 * np.sin(np.pi * t) - 4 * t**2, 14 - 32 * t, -4.5 + 11 * t**1.6], axis=1)
    radius = 4.4 + 2.4 * np.exp(-(((t - 0.16) / 0.15) ** 2)) - 1.6 * t
    distance, nearest = cKDTree(line).query(point.reshape(3, -1).T)
    level, along = distance - radius[nearest], t[nearest]
    return level.reshape(point.shape[1:]), along.reshape(point.shape[1:])


def _surroundings(
    rng: Generator, axes: Sequence[Array], point: Array, hippocampus: Array, width: float
) -> Array:
    """White matter, a folded cortex below, the amygdala in front, and fluid beside and within."""
    x, y, z = point
    image = _WHITE + 3 * smooth_noise(rng, axes, 8)
    fold = z + 13.5 + 3 * np.sin(x / 3.2 + rng.uniform(0, 6)) + 1.5 * smooth_noise(rng, axes, 9)
    image = _painted(image, np.abs(fold) - 1.6, _GREY, width)
    image = _painted(image, fold + 2.5, _FLUID, width)
    thalamus = np.linalg.norm([(x + 16) / 9, (y + 12) / 14, (z - 13) / 9], axis=0) - 1
    image = _painted(image, 9 * thalamus, 0.6 * _GREY + 0.4 * _WHITE, width)
    cistern = np.maximum(x + 13 + 0.15 * y, z - 9) + smooth_noise(rng, axes, 7)
    image = _painted(image, cistern, _FLUID, width)
    amygdala = np.linalg.norm([(x - 1) / 8, (y - 17) / 8, (z - 6) / 7], axis=0) - 1
    image = _painted(image, 7 * amygdala, _GREY, width)
    # The ventricle's temporal horn lies on the hippocampus, to the outside and above.
    horn = np.maximum(np.maximum(hippocampus - 1.8, 0.5 - hippocampus), 1.5 - x - 0.5 * z)
    return _painted(image, horn, _FLUID, width)


def _painted(image: Array, level: Array, value: Array | float, width: float) -> Array:
    """A shape filled, with partial volume along its surface."""
    inside = np.clip(0.5 - level / width, 0, 1)
    return image + inside * (value - image)
