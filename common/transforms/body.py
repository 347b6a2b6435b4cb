"""The patient's body in a CT, without the air, the table and the things around it."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Crop, InvertibleTransform, MapTransform
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from ..components import largest_component
from ..errors import InputError
from .naming import image_name

_logger = logging.getLogger(__name__)

AIR_HU = -1000.0
_SURFACE_HU = -300.0  # between mattresses, up to -350 HU, and fat, -100 HU
_GRID_MM = (2.0, 2.0, 3.0)  # at most, unless the scan's own voxels are larger
_TABLE_MM = 6.0  # shells, sheets, cables and clothes are thinner
_GAP_MM = 90.0  # what opening breaks of the chest's wall is narrower
Mask = NDArray[np.bool_]


class BodyCropd(MapTransform, InvertibleTransform):
    """Crop a CT to the body, and make air of what else is in the box: table, sheets, single arms.

    Only `source_key`'s voxels change; labels are cropped to the same box. An image in which no
    body stands out from air keeps its size, with a warning. What counts as body: `body_mask`.
    The inverse, through `Invertd`, pads with background to the grid that there was.

    Args:
        keys: keys of what is cropped, (channels, h, w, depth), oriented "RAS" or otherwise with
            the last axis from head to foot or back.
        source_key: key of the CT, MetaTensor in HU; its first channel shows the body.
        margin: mm around the body that the box keeps, within the scan.
        allow_missing_keys: whether a key may be missing.

    Raises:
        InputError: margin is negative, or the source is not a volume.
    """

    def __init__(
        self,
        keys: KeysCollection,
        source_key: Hashable = "image",
        margin: float = 6.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if margin < 0:
            raise InputError(f"margin is {margin}; allowed are mm from 0.")
        self.source_key = source_key
        self.margin = margin
        self.crop = Crop()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        cropped = dict(data)
        source = cropped[self.source_key]
        if source.ndim != 4:
            raise InputError(
                f"The image {image_name(source)} is {source.ndim - 1}D; allowed are 3D images, "
                "whose body can be found."
            )
        spacing = source.pixdim.tolist()
        body = body_mask(source[0].as_tensor(), spacing)
        if body is None or body.all():
            _logger.warning(
                "The image %s, of values %g to %g, is not cropped: no body stands out from air in "
                "it, as it does in a CT in HU.",
                image_name(source),
                float(source.min()),
                float(source.max()),
            )
            body = torch.ones_like(source[0].as_tensor(), dtype=torch.bool)
        box = self._box(body, spacing)
        for key in self.key_iterator(cropped):
            cropped[key] = self.crop(cropped[key], box)
            if key == self.source_key:
                cropped[key] = cropped[key].masked_fill(~body[box], AIR_HU)
        return cropped

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        inverted = dict(data)
        for key in self.key_iterator(inverted):
            inverted[key] = self.crop.inverse(inverted[key])
        return inverted

    def _box(self, body: Tensor, spacing: Sequence[float]) -> tuple[slice, ...]:
        box = []
        for axis, mm in enumerate(spacing):
            others = [other for other in range(3) if other != axis]
            inside = body.any(others[1]).any(others[0]).nonzero()
            around = math.ceil(self.margin / mm)
            start = max(int(inside.min()) - around, 0)
            box.append(slice(start, min(int(inside.max()) + 1 + around, body.shape[axis])))
        return tuple(box)


def body_mask(hu: Tensor, spacing: Sequence[float]) -> Tensor | None:
    """The voxels of the body, all that it encloses included; None where there is no body.

    What is denser than air is opened in axial slices, which removes the thin shells of a table;
    the largest connected part of the rest is the body. An arm that meets the trunk nowhere in the
    scan is thus not of it. Opening breaks the chest's wall where that is thin: closing mends it,
    and then the holes in axial, coronal and sagittal slices, lungs and bowel gas, are filled.
    Neither brings back the table, for the body lies on it: it is outside the body's convex hull.

    All this on voxels of about 2 x 2 x 3 mm; the surface is then drawn on the scan's own. What of
    a table touches the skin may stay, a voxel or two thick.

    Args:
        hu: (h, w, depth), HU, the last axis from head to foot or back.
        spacing: mm between voxels.
    """
    steps = [
        min(max(1, int(most / mm)), size)
        for most, mm, size in zip(_GRID_MM, spacing, hu.shape, strict=True)
    ]
    coarse_mm = [step * mm for step, mm in zip(steps, spacing, strict=True)]
    dense = _block_means(hu, steps) > _SURFACE_HU
    opened = ndimage.grey_opening(dense.view(np.uint8), _axial(_TABLE_MM, coarse_mm)) > 0
    body = largest_component(opened)
    if not body.any():
        return None
    body = _filled(_closed(body, _axial(_GAP_MM, coarse_mm)))
    surface = (ndimage.maximum_filter(body.view(np.uint8), 3) > 0) & ~body
    inside, near = (_repeated(mask, steps, hu) for mask in (body, surface))
    return inside | (near & (hu > _SURFACE_HU))


def _block_means(hu: Tensor, steps: list[int]) -> NDArray[np.float32]:
    means = F.avg_pool3d(hu[None].float(), steps, ceil_mode=True, count_include_pad=False)
    return means[0].numpy(force=True)


def _axial(width: float, mm: Sequence[float]) -> tuple[int, int, int]:
    """A square of that width (mm) in an axial slice, in voxels."""
    return max(2, round(width / mm[0])), max(2, round(width / mm[1])), 1


def _closed(mask: Mask, size: Sequence[int]) -> Mask:
    around = [(n, n) for n in size]  # at its edge a scan is not closed with its mirror image
    closed = ndimage.grey_closing(np.pad(mask, around).view(np.uint8), size) > 0
    return closed[tuple(slice(n, -n) for n in size)]


def _filled(mask: Mask) -> Mask:
    """With the holes that slices along any of the three axes have."""
    filled = mask.copy()
    for axis in range(3):
        in_slice = ndimage.generate_binary_structure(3, 1) & (np.indices((3, 3, 3))[axis] == 1)
        parts, count = ndimage.label(~mask, in_slice)
        outside = np.zeros(count + 1, np.bool_)
        outside[0] = True  # the mask itself, which is no hole
        for edge in {0, 1, 2} - {axis}:
            outside[np.take(parts, (0, -1), edge)] = True
        filled |= ~outside[parts]
    return filled


def _repeated(mask: Mask, steps: Sequence[int], like: Tensor) -> Tensor:
    """Blocks to voxels, on the device of a volume and of its size."""
    repeated = torch.from_numpy(mask).to(like.device)
    for axis, step in enumerate(steps):
        repeated = repeated.repeat_interleave(step, axis).narrow(axis, 0, like.shape[axis])
    return repeated
