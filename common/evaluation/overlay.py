"""Segmentations as a person looks at them: contours or errors on slices, and Dice scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError, are_numbers
from ..files import writing
from .label_maps import Segmentation, read_segmentation
from .overlap import OVERLAP, confusion
from .scenes import (
    AGREES,
    AXES,
    ERRORS,
    Scene,
    box_around,
    centre_of,
    colour_of,
    kinds_of,
    load_scene,
    percentiles,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

_LETTERS = 9  # points, of a legend


def dice_per_class(
    prediction: str | Path, label: str | Path, classes: Any = None
) -> dict[str, float]:
    """Dice of each class of two label maps on one grid, by its name.

    A class that neither has is NaN; one that the prediction alone has is 0.

    Args:
        prediction, label, classes: as for `read_segmentation`.

    Raises:
        InputError: a file cannot be read, the grids differ, or classes are none.
    """
    maps, named = read_segmentation(prediction, label, classes)
    scores = {}
    for name, values in named.items():
        found, true = (torch.from_numpy(maps[x].mask(values)) for x in ("prediction", "label"))
        scores[name] = float(OVERLAP["dice"](confusion(found, true)))
    return scores


def draw_overlay(
    image: str | Path,
    prediction: str | Path,
    output: str | Path,
    label: str | Path | None = None,
    window: tuple[float, float] | None = (-150.0, 250.0),
    classes: Any = None,
) -> Path:
    """Draw three slices of an image with the contours of a prediction.

    With a label its contours are dashed, and voxels are filled that the prediction missed, has
    falsely, or gives another class. The slices, one per body plane, have most voxels of the highest
    class (of the label, if any). Of a radiograph there is one picture, in full. Classes have up to
    20 colours, which a legend names.

    Args:
        image: a volume in any orientation, or a DICOM folder; or a picture.
        prediction, label, classes: as for `read_segmentation`, on the image's grid.
        output: the PNG to write.
        window: lowest and highest value shown, HU for CT; None takes the 1st and 99th percentile,
            as a radiograph always does.

    Raises:
        InputError: a file cannot be read, the grids differ, classes are none, the window is none,
            or the PNG cannot be written.
    """
    from matplotlib import rc_context

    if window is not None and not (are_numbers(window, 2) and window[0] < window[1]):
        raise InputError(
            f"window is {window!r}; allowed are two numbers, the lower first, as [-150, 250], and "
            "None."
        )
    segmentation = read_segmentation(prediction, label, classes)
    scene = load_scene(image, segmentation.maps)
    with rc_context({"text.parse_math": False}):  # a name may have dollars
        figure = _overlay(Path(image).name, scene, segmentation, window)
        path = Path(output)
        with writing("picture", path) as partial:
            figure.savefig(partial, dpi=110, format="png")
    return path


def _overlay(
    name: str, scene: Scene, segmentation: Segmentation, window: tuple[float, float] | None
) -> Figure:
    from matplotlib.figure import Figure

    label, prediction = scene.maps.get("label"), scene.maps["prediction"]
    shown = window if window and not scene.flat else percentiles(scene.values, 1, 99)
    centre = centre_of(*([] if label is None else [label]), prediction)
    planes = scene.planes[::-1]
    size = (7, 7) if len(planes) == 1 else (13, 5)
    figure = Figure(figsize=size, layout="constrained", facecolor="black")
    of_classes: dict[int, Patch] = {}
    of_errors: dict[int, Patch] = {}
    for axis, axes in zip(planes, figure.subplots(1, len(planes), squeeze=False)[0], strict=True):
        show_slice(axes, section_of(scene.values, axis, centre), axis, scene, shown)
        sections = {x: section_of(each, axis, centre) for x, each in scene.maps.items()}
        if label is not None:
            kinds = kinds_of(sections["label"], sections["prediction"], segmentation.classes)
            for kind, (error, colour) in ERRORS.items():
                if _fill(axes, kinds == kind, colour, 0.6):
                    of_errors.setdefault(kind, patch_of(error, colour))
        for which, style in (("prediction", "solid"), ("label", "dashed")):
            if which in sections:
                of_classes |= draw_contours(axes, sections[which], segmentation.classes, style)
        axes.set_title(scene.plane_name(axis), color="white")
    figure.suptitle(
        f"{name}: prediction solid" + (", label dashed" if label is not None else ""),
        color="white",
    )
    patches = [of_classes[number] for number in sorted(of_classes)]
    patches += [of_errors[kind] for kind in ERRORS if kind in of_errors]
    if patches:
        longest = max(len(str(patch.get_label())) for patch in patches)
        wide = _LETTERS * (4.8 + 0.6 * longest)  # points, with its patch and what is between two
        figure.legend(
            handles=patches,
            loc="outside lower center",
            ncols=max(1, int(72 * size[0] / wide)),
            labelcolor="white",
            frameon=False,
            fontsize=_LETTERS,
        )
    return figure


def draw_errors(
    scene: Scene, names: Mapping[str, str], classes: Mapping[str, Sequence[int]]
) -> Figure:
    """Draw an image, its label, and what each of several predictions missed and made up.

    Each plane of the body is a row: the slice with most voxels of the label's highest class, as
    far as label and predictions reach.

    Args:
        scene: its maps are the label's, called label, and those of the predictions in `names`.
        names: of each prediction's map, what stands above it.
        classes: name -> values in the maps that belong to it.

    Returns:
        A figure for white paper.
    """
    from matplotlib.figure import Figure

    centre = centre_of(scene.maps["label"], *scene.maps.values())
    box = box_around(scene.maps.values())
    window = percentiles(scene.values[box], 1, 99)
    ratios = []
    for axis in scene.planes:
        width, height = (
            (box[i].stop - box[i].start) * scene.spacing[i] for i in range(3) if i != axis
        )
        ratios.append(float(np.clip(height / width, 0.4, 1.6)))
    columns = 2 + len(names)
    figure = Figure(figsize=(1.9 * columns + 0.3, 1.9 * sum(ratios) + 0.9), layout="constrained")
    grid = figure.subplots(len(ratios), columns, squeeze=False, height_ratios=ratios)
    order = [f"class {name}" for name in classes]
    drawn: dict[str, Patch] = {}
    for row, axis in zip(grid, scene.planes, strict=True):
        section = section_of(scene.values, axis, centre, box)
        true, *found = (section_of(scene.maps[x], axis, centre, box) for x in ("label", *names))
        for axes in row:
            show_slice(axes, section, axis, scene, window)
        for axes, prediction in zip(row[1:], [true, *found], strict=True):
            kinds = kinds_of(true, prediction, classes)
            innermost = np.where(kinds == AGREES, true, 0)
            for number, (name, values) in reversed(list(enumerate(classes.items(), start=1))):
                mask = np.isin(innermost, list(values)) & (innermost != 0)
                innermost[mask] = 0  # a tumour is not painted as liver, too
                if _fill(axes, mask, colour_of(number), 0.5):
                    drawn.setdefault(f"class {name}", patch_of(name, colour_of(number)))
            for kind, (name, colour) in ERRORS.items():
                if _fill(axes, kinds == kind, colour, 0.9):
                    drawn.setdefault(name, patch_of(name, colour))
        if not scene.flat:
            row[0].text(
                -0.05,
                0.5,
                AXES[axis],
                transform=row[0].transAxes,
                rotation=90,
                ha="right",
                va="center",
            )
    for axes, title in zip(grid[0], ["Image", "Label", *names.values()], strict=True):
        axes.set_title(title, fontsize=9)
    figure.legend(
        handles=[
            drawn[name]
            for name in (*order, *(name for name, _ in ERRORS.values()))
            if name in drawn
        ],
        loc="outside lower center",
        ncols=6,
        frameon=False,
        fontsize=8,
    )
    return figure


def draw_contours(
    axes: Axes, section: NDArray[np.int32], classes: Mapping[str, Sequence[int]], style: str
) -> dict[int, Patch]:
    """Draw the contours of a label map's classes on a slice that `show_slice` has shown.

    Args:
        axes: of that slice.
        section: of the label map, (up, across).
        classes: name -> values in the map that belong to it, in the order of their colours.
        style: matplotlib's, of the lines.

    Returns:
        For the legend, by their numbers, those that are there.
    """
    drawn: dict[int, Patch] = {}
    if min(section.shape) < 2:  # of a line there is no contour
        return drawn
    for number, (name, values) in enumerate(classes.items(), start=1):
        mask = np.isin(section, values)
        if not mask.any():
            continue
        colour = colour_of(number)
        if not mask.all():
            axes.contour(mask, [0.5], colors=[colour], linestyles=style, linewidths=1.3)
        drawn[number] = patch_of(name, colour)
    return drawn


def patch_of(name: str, colour: str) -> Patch:
    """What a legend has of a class."""
    from matplotlib.patches import Patch

    return Patch(color=colour, label=name)


def section_of(
    values: NDArray, axis: int, centre: Sequence[int], box: tuple[slice, ...] | None = None
) -> NDArray:
    """The slice across an axis, (up, across), inside a box."""
    place: list[int | slice] = list(box or [slice(None)] * 3)
    place[axis] = centre[axis]
    return values[tuple(place)].T


def show_slice(
    axes: Axes, section: NDArray, axis: int, scene: Scene, window: Sequence[float]
) -> None:
    """Show a slice of a scene's image, its grey values from the window's first to its last."""
    across, up = (i for i in range(3) if i != axis)
    axes.imshow(
        section,
        cmap="gray",
        vmin=window[0],
        vmax=window[1],
        origin="lower",
        aspect=scene.spacing[up] / scene.spacing[across],
    )
    if across == 0:
        axes.invert_xaxis()  # radiological: the patient's right is on the left
    axes.set_autoscale_on(False)  # what is drawn on it does not turn it back
    axes.set_axis_off()


def _fill(axes: Axes, mask: NDArray[np.bool_], colour: str, alpha: float) -> bool:
    """Colour a part of a slice; whether there is any."""
    from matplotlib.colors import to_rgba

    if not mask.any():
        return False
    layer = np.zeros((*mask.shape, 4), np.float32)
    layer[mask] = to_rgba(colour, alpha)
    axes.imshow(layer, origin="lower", interpolation="nearest", aspect=axes.get_aspect())
    return True
