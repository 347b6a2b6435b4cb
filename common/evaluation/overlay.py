"""A segmentation as a person looks at it: contours on slices, and a Dice score per class."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.metrics import compute_dice
from monai.networks import one_hot
from numpy.typing import NDArray

from ..errors import InputError
from ..files import replacing

_COLOURS = ("tab:green", "tab:red", "tab:blue", "tab:orange", "tab:purple", "tab:cyan")
_AXES = ("sagittal", "coronal", "axial")


def dice_per_class(prediction: str | Path, label: str | Path) -> dict[int, float]:
    """Dice of each class but the background in two label maps on one grid.

    A class that neither has is NaN.

    Raises:
        InputError: a file cannot be read, or the grids differ.
    """
    first, second = _load(prediction), _load(label)
    _same_grid(prediction, first, label, second)
    maps = [torch.from_numpy(_classes(image))[None, None] for image in (first, second)]
    classes = int(max(x.max() for x in maps)) + 1
    scores = compute_dice(*(one_hot(x, classes) for x in maps), include_background=False)
    return dict(enumerate(scores[0].tolist(), start=1))


def draw_overlay(
    image: str | Path,
    prediction: str | Path,
    output: str | Path,
    label: str | Path | None = None,
    window: tuple[float, float] | None = (-150.0, 250.0),
) -> Path:
    """Draw three slices of an image with the contours of a prediction, and a label's dashed.

    The slices, one per body plane, have most voxels of the highest class (of the label, if any).

    Args:
        image, prediction, label: NIfTI files on one grid, in any orientation.
        output: the PNG to write.
        window: lowest and highest value shown, HU for CT; None takes the 1st and 99th percentile.

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
    maps = {name: _classes(turned[name]) for name in list(turned)[1:]}
    low, high = window if window else (float(p) for p in np.percentile(values, (1, 99)))
    spacing = turned["image"].header.get_zooms()
    centre = _centre(maps)

    figure = Figure(figsize=(13, 5), layout="constrained", facecolor="black")
    for axis, axes in enumerate(figure.subplots(1, 3)):
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
        axes.set_title(_AXES[axis], color="white")
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


def _load(path: str | Path) -> nib.Nifti1Image:
    try:
        image = nib.load(path)
        image.get_fdata(dtype=np.float32)
    except Exception as error:
        raise InputError(f"{path} cannot be read as a NIfTI image ({error}).") from error
    if len(image.shape) != 3:
        raise InputError(f"{path} has {len(image.shape)} axes; allowed are 3.")
    return image


def _same_grid(
    path: str | Path, image: nib.Nifti1Image, other_path: str | Path, other: nib.Nifti1Image
) -> None:
    same = image.shape == other.shape and np.allclose(image.affine, other.affine, atol=1e-3)
    if not same:
        raise InputError(
            f"{other_path} of size {other.shape} is not on the grid of {path}, {image.shape}; "
            "allowed are files of one size and affine."
        )


def _classes(image: nib.Nifti1Image) -> NDArray[np.int64]:
    return np.rint(image.get_fdata(dtype=np.float32)).astype(np.int64)


def _centre(maps: dict[str, NDArray[np.int64]]) -> list[int]:
    """Per axis, the slice with most voxels of the label's highest class, or the prediction's."""
    for classes in (maps.get("label", maps["prediction"]), maps["prediction"]):
        if classes.any():
            mask = classes == classes.max()
            return [int(mask.sum(tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)]
    return [size // 2 for size in maps["prediction"].shape]
