"""Checks of what was loaded, before any work is spent on it."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform
from torch import Tensor

from ..data.formats import format_of, is_lossy
from ..data.geometry import SAME_PLACE, apart, grid_problem
from ..data.label_values import LabelValues, count_values
from ..errors import InputError, by_axis
from .naming import image_name

_logger = logging.getLogger(__name__)

SAID_DISPLACEMENT = 1e-3  # below is what rounding of headers does
_FAT = -90.0  # HU


class CheckInputd(MapTransform):
    """Check what was loaded against what the network takes, before any work is spent on it.

    A label map becomes its classes, 0 to num_classes - 1, and `IGNORED` where it has the
    ignore_label. One that lies within a tenth of a voxel of its image takes the image's geometry,
    which the log says once.

    Args:
        keys: key of the image, (channels, ...).
        in_channels: channels that the network takes.
        spatial_dims: spatial axes that it takes.
        label_key: key of the label map, (1, ...), where there is one.
        num_classes, label_map, ignore_label: as for `LabelValues`.

    Raises:
        InputError: other axes or channels; values that are not finite or all the same; a grid that
            is none; a label map of another geometry than its image, or with other values.
    """

    def __init__(
        self,
        keys: KeysCollection,
        in_channels: int,
        spatial_dims: int,
        label_key: Hashable | None = None,
        num_classes: int | None = None,
        label_map: Mapping[Any, Any] | None = None,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__(keys)
        self.in_channels = in_channels
        self.spatial_dims = spatial_dims
        self.label_key = label_key
        self.values = LabelValues(num_classes, label_map, ignore_label)
        self._said = torch.zeros(1).share_memory_()  # also by the workers of every epoch

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        checked = dict(data)
        for key in self.key_iterator(checked):
            image = checked[key]
            _raise_first(image_problems(image, self.in_channels, self.spatial_dims))
            if self.label_key is not None:
                label = checked[self.label_key]
                _raise_first(label_problems(label, image, self.values))
                self._say(label, image)
                checked[self.label_key] = on_grid_of(image, self.values.apply(label))
        return checked

    def _say(self, label: Tensor, image: Tensor) -> None:
        moved = displacement(label, image)
        if moved > SAID_DISPLACEMENT and not self._said:
            self._said.fill_(1)
            _logger.warning(
                "The label %s lies %.2g voxels off its image %s: it takes the image's geometry, "
                "as every label within %g voxels of its image does.",
                image_name(label),
                moved,
                image_name(image),
                SAME_PLACE,
            )


class CheckHounsfieldd(MapTransform):
    """Check that an image may be CT in HU, which formats other than DICOM do not say.

    CT has fat and air in it, of -90 HU and less; MR, and CT that was stored with an offset and not
    rescaled, do not.

    Args:
        keys: key of the image, (channels, ...).

    Raises:
        InputError: every value is above -90.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(dict(data)):
            if (least := float(data[key].min())) > _FAT:
                raise InputError(
                    f"The image {image_name(data[key])} has no value below {least:g}, and CT has "
                    f"fat and air, below {_FAT:g} HU: it is of another modality, or not in HU; "
                    "allowed are CT in HU or, by any_modality, whatever you know to be right."
                )
        return dict(data)


def image_problems(
    image: Tensor, in_channels: int | None = None, spatial_dims: int | None = None
) -> Iterator[str]:
    """A sentence for everything that is wrong with an image (channels, ...).

    Args:
        in_channels, spatial_dims: as for `CheckInputd`; None allows any.
    """
    name, shape = image_name(image), tuple(image.shape[1:])
    dims = dimensions(image)
    if spatial_dims is not None and dims != spatial_dims:
        yield (
            f"The image {name} is {dims}D, of size {by_axis(shape)}; allowed are "
            f"{spatial_dims}D images."
        )
    if in_channels is not None and image.shape[0] != in_channels:
        yield (
            f"The image {name} has {image.shape[0]} channels; allowed are {in_channels}, "
            "the configuration's in_channels."
        )
    if image.is_complex():
        yield f"The image {name} has complex values; allowed are real ones."
        return
    if not torch.isfinite(image).all():
        yield (
            f"The image {name} has {int((~torch.isfinite(image)).sum())} voxels that are NaN "
            "or infinite; allowed are finite values."
        )
    elif image.min() == image.max():
        yield (
            f"The image {name} has the value {float(image.min()):g} everywhere; allowed are "
            "images with contrast."
        )
    yield from grid_problems("image", image)


def grid_problems(what: str, image: Tensor) -> Iterator[str]:
    """What is wrong with the affine of an image or label: no grid of voxels has it."""
    if isinstance(image, MetaTensor) and (problem := grid_problem(image.affine)):
        yield f"The {what} {image_name(image)} {problem}"


def label_problems(
    label: Tensor,
    image: Tensor | None,
    values: LabelValues,
    counts: Mapping[float, int] | None = None,
) -> Iterator[str]:
    """A sentence for everything that is wrong with a label map (1, ...).

    Args:
        image: what it labels, or None where that could not be read.
        counts: what `count_values` says of the label, where it is known.
    """
    name = image_name(label)
    broken = list(grid_problems("label", label))
    yield from broken
    if is_lossy(name):
        yield (
            f"The label {name} is a JPEG, which does not keep values as they are; allowed are "
            "formats that do, such as PNG."
        )
    if label.shape[0] != 1:
        yield f"The label {name} has {label.shape[0]} channels; allowed is one."
    if image is not None and not broken and not any(grid_problems("image", image)):
        moved = displacement(label, image) if label.shape[1:] == image.shape[1:] else np.inf
        if not moved <= SAME_PLACE:
            off = "" if np.isinf(moved) else f", up to {moved:.3g} voxels away"
            yield (
                f"The label {name} is not on the grid of its image {image_name(image)}{off}: it "
                f"has {describe_grid(label)}, the image {describe_grid(image)}; allowed is the "
                f"image's, within {SAME_PLACE:g} voxels."
            )
    if problem := values.problem(list(count_values(label) if counts is None else counts)):
        yield f"The label {name} {problem}"


def dimensions(image: Tensor) -> int:
    """Spatial axes of an image (channels, ...), of which a last one of one slice is none."""
    shape = image.shape[1:]
    return 2 if len(shape) == 3 and shape[-1] == 1 else len(shape)


def has_geometry(image: Tensor) -> bool:
    """Whether an image is somewhere in space: pictures are not, nor what came without a file."""
    if not isinstance(image, MetaTensor):
        return False
    found = format_of(image_name(image))
    return found is None or found.spatial_dims == 3


def displacement(label: Tensor, image: Tensor) -> float:
    """How far, in the image's voxels, the farthest corner of a label lies from the image's.

    Both are of one size; 0 where either has no geometry.
    """
    if not (has_geometry(label) and has_geometry(image)):
        return 0.0
    theirs, ours = (to_affine_nd(3, np.asarray(x.affine, np.float64)) for x in (image, label))  # type: ignore[attr-defined]
    return apart(theirs, ours, image.shape[1:])


def on_grid_of(image: Tensor, label: Tensor) -> Tensor:
    """A label, which is given the geometry of its image."""
    if isinstance(label, MetaTensor) and has_geometry(label) and has_geometry(image):
        label.affine = image.affine.clone()  # type: ignore[attr-defined]
        label.meta["original_affine"] = image.affine.clone()  # type: ignore[attr-defined]
    return label


def describe_grid(image: Tensor) -> str:
    """Size, spacing, origin and orientation, for a sentence."""
    size = by_axis(image.shape[1:])
    if not has_geometry(image):
        return f"the size {size}"
    affine = np.asarray(image.affine, np.float64)  # type: ignore[attr-defined]
    dims = min(len(affine) - 1, image.ndim - 1)
    spacing = by_axis(np.linalg.norm(affine[:-1, :dims], axis=0), digits=4)
    origin = ", ".join(f"{round(x, 3) + 0:.6g}" for x in affine[:-1, -1])
    return f"{size} voxels of {spacing} mm, origin ({origin}), axes {orientation(image)}"


def orientation(image: Tensor) -> str:
    """Where the axes of an image point, such as "RAS"."""
    affine = np.asarray(image.affine, np.float64)  # type: ignore[attr-defined]
    codes = nib.aff2axcodes(affine) if len(affine) == 4 else ()
    return "".join(code or "?" for code in codes[: image.ndim - 1])


def _raise_first(problems: Iterator[str]) -> None:
    for problem in problems:
        raise InputError(problem)
