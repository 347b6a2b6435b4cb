"""Surfaces of label and predictions, side by side in three dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from .scenes import Scene, box_around, colour_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FINEST = 56  # points along the longest axis: of more a picture of this size shows nothing
_SMOOTHED = 0.5  # points, by which steps of voxels become slopes
_TRANSLUCENT = 0.12
_LIGHT = np.array([0.45, 0.75, 0.5]) / np.linalg.norm([0.45, 0.75, 0.5])  # from above the viewer


def draw_surfaces(
    scene: Scene, names: Mapping[str, str], classes: Mapping[str, Sequence[int]]
) -> Figure:
    """Draw the surface of each class, seen from the front: the patient's right is at the left.

    A class around another one, as a liver around its tumour, is translucent. What is smaller than
    one of 56 points along the longest axis does not show.

    Args:
        scene: its maps are the label's, called label, and those of the predictions in `names`.
        names: of each prediction's map, what stands above it.
        classes: name -> values in the maps that belong to it.

    Returns:
        A figure for white paper.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = {"label": "Label", **names}
    box = box_around(scene.maps.values())
    opacity = opacity_of([np.isin(scene.maps["label"][box], list(x)) for x in classes.values()])
    columns = min(6, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.3 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, subplot_kw={"projection": "3d"})
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (name, title) in zip(panels.flat, shown.items(), strict=False):
        masks = [np.isin(scene.maps[name][box], list(values)) for values in classes.values()]
        draw_surface(axes, masks, opacity, scene.spacing)
        axes.set_title(title, fontsize=9, y=0.96)
    figure.legend(
        handles=[Patch(color=colour_of(i), label=x) for i, x in enumerate(classes, start=1)][:20],
        loc="outside lower center",
        ncols=6,
        frameon=False,
        fontsize=8,
    )
    return figure


def draw_surface(
    axes: Any,
    masks: Sequence[NDArray[np.bool_]],
    opacity: Sequence[float],
    spacing: Sequence[float],
) -> None:
    """Draw the surfaces of masks of one grid, in the order of their colours, seen from the front.

    Args:
        axes: matplotlib's of three dimensions.
        masks: (x, y, z), axes pointing right, front and up.
        opacity: of each; see `opacity_of`.
        spacing: mm of a voxel.
    """
    size = np.array(masks[0].shape) * spacing
    corners, colours = _faces(masks, opacity, spacing)
    if len(corners):
        points = corners.reshape(-1, 3)
        order = np.arange(len(points)).reshape(-1, 3)
        surface = axes.plot_trisurf(*points.T, triangles=order, linewidth=0, antialiased=False)
        surface.set_facecolor(colours)
        surface.set_rasterized(True)  # in a PDF, too: there are thousands
    axes.set(xlim=(0, size[0]), ylim=(0, size[1]), zlim=(0, size[2]))
    axes.set_box_aspect(tuple(size), zoom=1.3)  # an array it would change
    axes.view_init(elev=15, azim=75)


def opacity_of(masks: Sequence[NDArray[np.bool_]]) -> list[float]:
    """Of each class: low where another one's box is within its own."""
    extents = [_extent(mask) for mask in masks]
    opacity = []
    for outer in extents:
        inside = [
            other
            for other in extents
            if outer is not None and other is not None and other is not outer
            if (outer[0] <= other[0]).all() and (other[1] <= outer[1]).all()
        ]
        opacity.append(_TRANSLUCENT if inside else 1.0)
    return opacity


def _extent(mask: NDArray[np.bool_]) -> NDArray[np.intp] | None:
    """The first and the last place of a mask along each axis, (2, axes)."""
    if not mask.any():
        return None
    axes = set(range(mask.ndim))
    places = [np.flatnonzero(mask.any(tuple(axes - {axis}))) for axis in range(mask.ndim)]
    return np.array([(x[0], x[-1]) for x in places]).T


def _faces(
    masks: Sequence[NDArray[np.bool_]], opacity: Sequence[float], spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The triangles of all surfaces, (faces, 3, 3) in mm, and their shaded colours, (faces, 4)."""
    from matplotlib.colors import to_rgb

    corners, colours = [np.empty((0, 3, 3))], [np.empty((0, 4))]
    for number, (mask, alpha) in enumerate(zip(masks, opacity, strict=True), start=1):
        triangles = _surface(mask, spacing)
        normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        lengths = np.linalg.norm(normals, axis=1)
        facing = np.abs(normals @ _LIGHT) / np.maximum(lengths, 1e-12)
        colour = (0.35 + 0.65 * facing[:, None]) * np.array(to_rgb(colour_of(number)))
        corners.append(triangles)
        colours.append(np.hstack([colour, np.full((len(triangles), 1), alpha)]))
    return np.concatenate(corners), np.concatenate(colours)


def _surface(mask: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    """Triangles of a mask's surface, (faces, 3, 3), in mm from the grid's first corner."""
    from skimage.measure import block_reduce, marching_cubes

    finest = max(n * s for n, s in zip(mask.shape, spacing, strict=True)) / _FINEST
    blocks = tuple(max(1, round(finest / s)) for s in spacing)
    steps = np.array(spacing) * blocks
    occupied = np.pad(block_reduce(mask, blocks, np.mean), 1)
    occupied = gaussian_filter(occupied.astype(np.float32), _SMOOTHED)
    if not occupied.max() > 0.5:
        return np.empty((0, 3, 3))
    vertices, faces, *_ = marching_cubes(occupied, 0.5, spacing=tuple(steps))
    return (vertices - steps / 2)[faces].astype(np.float64)
