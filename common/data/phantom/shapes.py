"""Smooth noise and implicit shapes, from which the phantoms are drawn.

A shape is given by its level: roughly the signed distance from its surface, negative inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from ...errors import InputError

Array = NDArray[Any]


def check_grid(
    shape: Sequence[int],
    spacing: Sequence[float],
    content: str,
    coarsest: float,
    least: Sequence[float],
) -> None:
    """Check that a grid can hold what a phantom is of.

    Args:
        shape: voxels along each of three axes.
        spacing: mm between voxels.
        content: what it has to hold, for the error.
        coarsest: the largest spacing, mm.
        least: what the grid must cover, mm along each axis.

    Raises:
        InputError: it is too coarse, or too small.
    """
    extent = np.multiply(shape, spacing)
    if extent.shape != (3,) or max(spacing) > coarsest or np.any(extent < least):
        raise InputError(
            f"A grid of {tuple(shape)} voxels of {tuple(spacing)} mm cannot hold {content}; "
            f"allowed are voxels of at most {coarsest:g} mm that cover "
            f"{' x '.join(f'{x:g}' for x in least)} mm."
        )


def smooth_noise(rng: Generator, axes: Sequence[Array], scale: float) -> Array:
    """Gaussian noise of unit variance that varies over about ``scale``, on a grid's axes."""
    knots = [np.arange(axis[0] - scale, axis[-1] + 2 * scale, scale) for axis in axes]
    field = rng.standard_normal([len(k) for k in knots], np.float32)
    for axis, knot in zip(axes, knots, strict=True):
        weight = np.exp(-(((axis[:, None] - knot) / scale) ** 2)).astype(np.float32)
        weight /= np.linalg.norm(weight, axis=1, keepdims=True)
        field = np.moveaxis(np.tensordot(weight, field, 1), 0, -1)
    return field


def tree_level(
    rng: Generator, roots: Sequence[Any], finest: float, point: Array, where: Array
) -> Array:
    """Level inside the mask ``where`` of vessels that fork until their radius is ``finest``.

    A root is (start, heading, length, radius), in the unit of ``point`` (axes first).
    """
    stack, beads = list(roots), []
    while stack:
        start, heading, length, radius = stack.pop()
        position = np.asarray(start, float)
        for _ in range(int(np.ceil(length / radius))):
            heading = _unit(heading + 0.12 * rng.standard_normal(len(position)))
            position = position + radius * heading
            beads.append((*position, radius))
        side = rng.standard_normal(len(position))
        side = 0.6 * _unit(side - side @ heading * heading)
        if 0.75 * radius > finest:
            length *= rng.uniform(0.7, 0.95)
            stack += [(position, heading + turn, length, 0.75 * radius) for turn in (side, -side)]
    tree = np.array(beads)
    distance, nearest = cKDTree(tree[:, :-1]).query(point[:, where].T)
    level = np.full(where.shape, np.inf)
    level[where] = distance - tree[nearest, -1]
    return level


def threshold(values: Array, count: float) -> float:
    """The level below which ``count`` of the values lie (at least one, not all)."""
    n = int(np.clip(round(count), 1, values.size - 1))
    low, high = np.partition(values.astype(float), (n - 1, n))[n - 1 : n + 1]
    return (low + high) / 2


def union(a: Array, b: Array, radius: float) -> Array:
    """Level of two shapes together, their seam filled over about ``radius``."""
    overlap = np.maximum(radius - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap**2 / (4 * radius)


def soft(level: Array, width: float) -> Array:
    """1 inside, 0 outside."""
    return 0.5 - 0.5 * np.tanh(level / (2 * width))


def _unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)
