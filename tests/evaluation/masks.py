"""Masks by hypothesis, and what they measure counted voxel by voxel, without MONAI."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
SPACINGS = st.sampled_from([0.3, 0.7, 1.0, 1.5, 3.0, 5.0])


@st.composite
def pairs(draw: st.DrawFn, longest: int = 6) -> tuple[Mask, Mask, list[float]]:
    """Two masks of one shape, in 2D or 3D, and a spacing: sparse, full, or a box at the border."""
    shape = draw(st.lists(st.integers(1, longest), min_size=2, max_size=3).map(tuple))
    kinds = st.one_of(
        arrays.arrays(bool, shape),
        st.lists(st.tuples(*(st.integers(0, n - 1) for n in shape)), max_size=4).map(
            lambda voxels: with_voxels(shape, voxels)
        ),
        st.tuples(*(st.integers(0, n) for n in shape)).map(lambda size: with_box(shape, size)),
    )
    return draw(kinds), draw(kinds), [draw(SPACINGS) for _ in shape]


def with_voxels(shape: tuple[int, ...], voxels: list[tuple[int, ...]]) -> Mask:
    mask = np.zeros(shape, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def with_box(shape: tuple[int, ...], size: tuple[int, ...]) -> Mask:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(n) for n in size)] = True
    return mask


def surface(mask: Mask) -> list[tuple[int, ...]]:
    """Voxels with a face on what is not the mask's; an axis of one voxel has no faces."""
    voxels = set(map(tuple, np.argwhere(mask).tolist()))
    axes = [axis for axis, n in enumerate(mask.shape) if n > 1]
    axes = axes if len(axes) >= 2 else list(range(mask.ndim))
    found = []
    for voxel in sorted(voxels):
        neighbours = [
            (*voxel[:axis], voxel[axis] + step, *voxel[axis + 1 :])
            for axis in axes
            for step in (-1, 1)
        ]
        if not all(neighbour in voxels for neighbour in neighbours):
            found.append(voxel)
    return found


def distances_by_pairs(
    prediction: Mask, label: Mask, spacing: list[float]
) -> tuple[list[float], list[float]]:
    found, true = surface(prediction), surface(label)

    def nearest(voxel: tuple[int, ...], others: list[tuple[int, ...]]) -> float:
        scaled = [[s * x for s, x in zip(spacing, v, strict=True)] for v in (voxel, *others)]
        return min(math.dist(scaled[0], other) for other in scaled[1:])

    return [nearest(v, true) for v in found], [nearest(v, found) for v in true]


def distances_by_transform(
    prediction: Mask, label: Mask, spacing: list[float]
) -> tuple[list[float], list[float]]:
    edges = [with_voxels(mask.shape, surface(mask)) for mask in (prediction, label)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return maps[1][edges[0]].tolist(), maps[0][edges[1]].tolist()


def components(mask: Mask) -> list[set[tuple[int, ...]]]:
    """Sets of voxels that touch each other, be it at a corner, in the order of their first ones."""
    left = sorted(map(tuple, np.argwhere(mask).tolist()))
    parts = []
    steps = list(itertools.product((-1, 0, 1), repeat=mask.ndim))
    rest = set(left)
    for start in left:
        if start not in rest:
            continue
        rest.remove(start)
        part, border = {start}, [start]
        while border:
            voxel = border.pop()
            for step in steps:
                other = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if other in rest:
                    rest.remove(other)
                    part.add(other)
                    border.append(other)
        parts.append(part)
    return parts
