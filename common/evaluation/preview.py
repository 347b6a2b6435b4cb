"""A segmentation at a glance: three planes with contours, and the surfaces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import replacing
from .overlay import draw_contours, patch_of, section_of, show_slice
from .renderings import draw_surface, opacity_of
from .scenes import Scene, box_around, centre_of, colour_of, percentiles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CT = (-150.0, 250.0)  # HU: soft tissue
_NAMED = 20  # classes in the legend: of more there are no colours


def draw_preview(
    scene: Scene,
    names: Mapping[int, str],
    output: str | Path,
    title: str,
    ct: bool = False,
) -> Path:
    """Draw a label map's contours on slices of its image, one per body plane, and its surfaces.

    The slices have most voxels of the highest class. Of a radiograph there is one picture, in full.

    Args:
        scene: with one map, the label map.
        names: of its classes, by their values; the legend has those that are there.
        output: the PNG to write.
        title: what stands above, which ends with a word where no class is there.
        ct: show HU of soft tissue, not the 1st to 99th percentile of the values.

    Raises:
        OSError: the PNG cannot be written.
    """
    from matplotlib import rc_context

    path = Path(output)
    with rc_context({"text.parse_math": False}):  # names may have dollars
        figure = _preview(scene, names, title, ct)
        with replacing(path) as partial:
            figure.savefig(partial, dpi=110, format="png")
    return path


def _preview(scene: Scene, names: Mapping[int, str], title: str, ct: bool) -> Figure:
    from matplotlib.figure import Figure

    (labels,) = scene.maps.values()
    found = [value for value in names if (labels == value).any()]
    # A value's number is that of its colour, those without a name among them.
    classes = {names.get(x, f"class {x}"): [x] for x in range(1, max(names, default=0) + 1)}
    planes = scene.planes[::-1]
    solid = not scene.flat and bool(found)
    columns = len(planes) + solid
    figure = Figure(
        figsize=(7, 7) if columns == 1 else (4.3 * columns, 5),
        layout="constrained",
        facecolor="black",
    )
    grid = figure.add_gridspec(1, columns)
    window = _CT if ct else percentiles(scene.values, 1, 99)
    centre = centre_of(labels)
    for column, axis in enumerate(planes):
        axes = figure.add_subplot(grid[column])
        show_slice(axes, section_of(scene.values, axis, centre), axis, scene, window)
        draw_contours(axes, section_of(labels, axis, centre), classes, "solid")
        axes.set_title(scene.plane_name(axis), color="white")
    if solid:
        axes = figure.add_subplot(grid[-1], projection="3d", facecolor="black")
        axes.set_axis_off()
        inside = labels[box_around([labels])]
        # One a colour, those that are not shown among them.
        masks = [inside == value for value in range(1, max(found) + 1)]
        draw_surface(axes, masks, opacity_of(masks), scene.spacing)
        axes.set_title("from the front", color="white")
    nothing = "" if found else ": nothing found"
    figure.suptitle(f"{title}{nothing}", color="white")
    if found:
        figure.legend(
            handles=[patch_of(names[value], colour_of(value)) for value in found[:_NAMED]],
            loc="outside lower center",
            ncols=6,
            labelcolor="white",
            frameon=False,
        )
    return figure
