"""A segmentation as a person looks at it: contours on slices, and a Dice score per class."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..data.formats import format_of, is_lossy
from ..errors import InputError
from ..files import replacing
from .overlap import OVERLAP, confusion

_COLOURS = ("tab:green", "tab:red", "tab:blue", "tab:orange", "tab:purple", "tab:cyan")
_AXES = ("sagittal", "coronal", "axial")


def dice_per_class(prediction: str | Path, label: str | Path) -> dict[int, float]:
    """Dice of each class but the background in two label maps on one grid.

    A class that neither has is NaN; one that the prediction alone has is 0.

    Raises:
        InputError: a file cannot be read, or the grids differ.
    """
    loaded = {path: _load(path) for path in (prediction, label)}
    _same_grid(prediction, loaded[prediction], label, loaded[label])
    found, true = (torch.from_numpy(_classes(path, loaded[path])) for path in (prediction, label))
    return {
        value: float(OVERLAP["dice"](confusion(found == value, true == value)))
        for value in range(1, int(max(found.max(), true.max())) + 1)
    }


def draw_overlay(
    image: str | Path,
    prediction: str | Path,
    output: str | Path,
    label: str | Path | None = None,
    window: tuple[float, float] | None = (-150.0, 250.0),
) -> Path:
    """Draw three slices of an image with the contours of a prediction, and a label's dashed.

    The slices, one per body plane, have most voxels of the highest class (of the label, if any).
    Of a radiograph there is one picture, in full.

    Args:
        image, prediction, label: NIfTI files on one grid, in any orientation; or pictures of one
            size, whose masks have a grey level per class.
        output: the PNG to write.
        window: lowest and highest value shown, HU for CT; None takes the 1st and 99th percentile,
            as a radiograph always does.

    Raises:
        InputError: a file cannot be read, the grids differ, or the PNG cannot be written.
    """
    from matplotlib.figure import Figure

    images = {"image": image, "prediction": prediction} | ({"label": label} if label else {})
    loaded = {name: _load(path) for name, path in images.items()}
    for name in loaded:
        _same_grid(image, loaded["image"], images[name], loaded[name])
    turned = {name: nib.as_closest_canonical(loaded[name]) for name in loaded}
    values = turned["image"].get_fdata(dtype=np.float32)
    maps = {name: _classes(images[name], turned[name]) for name in list(turned)[1:]}
    flat = _is_picture(image)
    low, high = window if window and not flat else np.percentile(values, (1, 99))
    spacing = turned["image"].header.get_zooms()
    centre = _centre(maps)

    planes = [2] if flat else [0, 1, 2]
    figure = Figure(figsize=(7, 7) if flat else (13, 5), layout="constrained", facecolor="black")
    for axis, axes in zip(planes, figure.subplots(1, len(planes), squeeze=False)[0], strict=True):
        across, up = (i for i in range(3) if i != axis)
        axes.imshow(
            values.take(centre[axis], axis).T,
            cmap="gray",
            vmin=low,
            vmax=high,
            origin="lower",
            aspect=spacing[up] / spacing[across],
        )
        for name, style in zip(maps, ("solid", "dashed"), strict=False):
            for value in range(1, int(maps[name].max()) + 1):
                mask = value == maps[name].take(centre[axis], axis).T
                if np.any(mask):
                    colour = _COLOURS[(value - 1) % len(_COLOURS)]
                    axes.contour(mask, [0.5], colors=[colour], linestyles=style, linewidths=1.3)
        axes.set_title("frontal" if flat else _AXES[axis], color="white")
        if across == 0:
            axes.invert_xaxis()  # radiological: the patient's right is on the left
        axes.set_axis_off()
    figure.suptitle(
        f"{Path(image).name}: prediction solid" + (", label dashed" if label else ""), color="white"
    )
    path = Path(output)
    try:
        with replacing(path) as partial:
            figure.savefig(partial, dpi=110, format="png")
    except OSError as error:
        raise InputError(f"The picture {path} cannot be written ({error.strerror}).") from error
    return path


def _is_picture(path: str | Path) -> bool:
    found = format_of(path)
    return found is not None and found.spatial_dims == 2


def _load(path: str | Path) -> nib.Nifti1Image:
    try:
        image = _load_picture(path) if _is_picture(path) else nib.load(path)
        image.get_fdata(dtype=np.float32)
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as NIfTI, PNG, JPEG, TIFF or BMP ({error})."
        ) from error
    if len(image.shape) != 3:
        raise InputError(f"{path} has {len(image.shape)} axes; allowed are 3.")
    return image


def _load_picture(path: str | Path) -> nib.Nifti1Image:
    """A radiograph as the one slice of a volume: the patient's right is at its left."""
    with Image.open(path) as image:
        grey = image if image.mode.startswith("I") else image.convert("L")
        rows = np.asarray(grey).astype(np.int32)
    return nib.Nifti1Image(rows.T[..., None], np.diag([-1.0, -1.0, 1.0, 1.0]))


def _same_grid(
    path: str | Path, image: nib.Nifti1Image, other_path: str | Path, other: nib.Nifti1Image
) -> None:
    same = image.shape == other.shape and np.allclose(image.affine, other.affine, atol=1e-3)
    if not same:
        raise InputError(
            f"{other_path} of size {other.shape} is not on the grid of {path}, {image.shape}; "
            "allowed are files of one size and affine."
        )


def _classes(path: str | Path, image: nib.Nifti1Image) -> NDArray[np.int64]:
    if is_lossy(path):
        raise InputError(
            f"The mask {path} is a JPEG, which does not keep values as they are; allowed are "
            "formats that do, such as PNG."
        )
    values = np.rint(image.get_fdata(dtype=np.float32)).astype(np.int64)
    if _is_picture(path):  # 0 and 255, say, are the classes 0 and 1
        return np.searchsorted(np.union1d(values, [0]), values)
    return values


def _centre(maps: dict[str, NDArray[np.int64]]) -> list[int]:
    """Per axis, the slice with most voxels of the label's highest class, or the prediction's."""
    for classes in (maps.get("label", maps["prediction"]), maps["prediction"]):
        if classes.any():
            mask = classes == classes.max()
            return [int(mask.sum(tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]
    return [size // 2 for size in maps["prediction"].shape]
