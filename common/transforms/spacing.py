"""Resampling, and back."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, Resized, Spacingd
from monai.utils import ensure_tuple_rep, fall_back_tuple
from scipy import ndimage

from ..errors import InputError, are_numbers
from .slabs import SlabwiseResample, SplineResize

_OF_LABELS = ("nearest", "nearest-exact", "one-hot")


class OwnKeysSpacingd(Spacingd):
    """MONAI's `Spacingd`, of which other entries of the data are none of its business.

    MONAI 1.6 takes every entry whose name begins with a key's, such as MONAI Label's `image_path`
    beside `image`, for metadata, and fails at it. Large volumes are resampled slab by slab.

    Its modes are MONAI's and, as nnU-Net resamples, 3 for images and "one-hot" for label maps; see
    `common.transforms.resampling`. nnU-Net's grid begins and ends with the image, so that its
    voxels are a little off the spacing asked for; MONAI's first voxel is the image's, its voxels
    have the spacing, and the last one lies within half a voxel of the image's.

    Args:
        keys: of the images.
        pixdim: the spacing, along each axis.
        args, kwargs: as of MONAI's.

    Raises:
        InputError: the spacing is none, or at a call not of as many axes as the image.
    """

    def __init__(
        self, keys: KeysCollection, pixdim: Sequence[float], *args: Any, **kwargs: Any
    ) -> None:
        self._check(pixdim, None)
        super().__init__(keys, pixdim, *args, **kwargs)
        whole = self.spacing_transform.sp_resample
        self.spacing_transform.sp_resample = SlabwiseResample(
            whole.mode, whole.padding_mode, whole.align_corners, whole.dtype, whole.lazy
        )

    def __call__(
        self, data: Mapping[Hashable, Any], lazy: bool | None = None
    ) -> dict[Hashable, Any]:
        own = {key: data[key] for key in self.key_iterator(dict(data))}
        for image in own.values():
            self._check(self.spacing_transform.pixdim, image.ndim - 1)
        return dict(data) | super().__call__(own, lazy=lazy)

    @staticmethod
    def _check(pixdim: Any, axes: int | None) -> None:
        shown = pixdim.tolist() if isinstance(pixdim, np.ndarray) else pixdim
        if not are_numbers(pixdim, axes) or not all(x > 0 or x == -1 for x in shown):
            of = f"{axes} numbers" if axes else "numbers"
            raise InputError(
                f"spacing is {shown!r}; allowed are {of} above 0, one for each axis, as "
                "[0.8, 0.8, 1.0], or -1 where it is to stay."
            )


class SplineResized(Resized):
    """MONAI's `Resized`, with modes 3 for images and "one-hot" for label maps: nnU-Net's.

    See `common.transforms.resampling`: both grids begin and end where the image does, as nnU-Net's.
    Axes that keep their size stay as they are; along those that get fewer voxels images are
    low-pass filtered first, as by `RelativeSpacingd`.

    Args:
        keys: keys of the images and label maps, MetaTensors (channels, ...).
        spatial_size: pixels or voxels; -1 keeps those of an axis.
        mode: MONAI's, 3, or "one-hot"; one for all keys or one for each.

    Raises:
        InputError: spatial_size is not of whole numbers, or at a call not one for each axis.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int],
        mode: str | int | Sequence[str | int] = 3,
    ) -> None:
        if not are_numbers(spatial_size, whole=True):
            raise InputError(
                f"The size of images is {spatial_size!r}; allowed are whole numbers, one for each "
                "axis, as [512, 512]."
            )
        super().__init__(keys, spatial_size, mode=mode)
        self.resizer = SplineResize(spatial_size)

    def __call__(
        self, data: Mapping[Hashable, Any], lazy: bool | None = None
    ) -> dict[Hashable, Any]:
        filtered = dict(data)
        for key, mode in self.key_iterator(filtered, self.mode):
            shape = filtered[key].shape[1:]
            if len(self.resizer.spatial_size) != len(shape):
                raise InputError(
                    f"The size of images is {list(self.resizer.spatial_size)}; allowed are "
                    f"{len(shape)} whole numbers, one for each axis."
                )
            if mode not in _OF_LABELS:
                size = fall_back_tuple(self.resizer.spatial_size, shape)
                ratios = [new / old for new, old in zip(size, shape, strict=True)]
                filtered[key] = _low_passed(filtered[key], ratios)
        return super().__call__(filtered, lazy=lazy)


class RelativeSpacingd(MapTransform, InvertibleTransform):
    """MONAI's `Spacingd`, but in plane relative to each volume's own spacing.

    Images are low-pass filtered along axes that get fewer voxels, or what is finer than the new
    ones can tell would come back as structures that are not there: by a Gaussian of the standard
    deviation (voxels per new voxel - 1) / 2, as scikit-image's anti-aliasing has it.

    Its inverse restores the volume's grid exactly. Values are kept within the volume's own, which
    a spline leaves at edges; for the same reason the inverse of a spline is linear.

    Args:
        keys: keys of the volumes, MetaTensors (channels, h, w, depth).
        in_plane_factor: voxels along h and w for each one that was there; 0.5 halves them.
        slice_spacing: mm along depth; None keeps the slices as they are.
        mode: as of `OwnKeysSpacingd`, one for all keys or one for each; along thick slices, too.

    Raises:
        InputError: in_plane_factor or slice_spacing is not positive.
    """

    def __init__(
        self,
        keys: KeysCollection,
        in_plane_factor: float,
        slice_spacing: float | None,
        mode: str | int | Sequence[str | int] = "bilinear",
    ) -> None:
        super().__init__(keys)
        for name, value in (("in_plane_factor", in_plane_factor), ("slice_spacing", slice_spacing)):
            if value is not None and not are_numbers([value], above=0):
                raise InputError(f"{name} is {value}; allowed are positive numbers.")
        self.in_plane_factor = in_plane_factor
        self.slice_spacing = slice_spacing
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.resample = SlabwiseResample(dtype=torch.float32)
        self.resample.slices_apart = False

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        resampled = dict(data)
        for key, mode in self.key_iterator(resampled, self.mode):
            volume = resampled[key]
            spacing = float(volume.pixdim[2])
            slices = spacing / (self.slice_spacing or spacing)
            ratios = (self.in_plane_factor, self.in_plane_factor, slices)
            # The first voxels coincide; the last ones as nearly as may be, the odd one left out.
            size = [
                1 + math.ceil((n - 1) * ratio - 0.5)
                for n, ratio in zip(volume.shape[1:], ratios, strict=True)
            ]
            scale = torch.tensor([*(1 / ratio for ratio in ratios), 1.0], dtype=torch.float64)
            affine = volume.affine.double() @ scale.diag()
            image = volume if mode in _OF_LABELS else _low_passed(volume, ratios)
            done = self.resample(image, dst_affine=affine, spatial_size=size, mode=mode)
            resampled[key] = done.clamp(volume.min(), volume.max())
        return resampled

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        inverted = dict(data)
        for key in self.key_iterator(inverted):
            inverted[key] = self.resample.inverse(inverted[key])
        return inverted


def _low_passed(volume: MetaTensor, ratios: Sequence[float]) -> MetaTensor:
    """A volume without what `ratios` voxels for each of its own cannot tell apart."""
    sigmas = [0.0, *(max(0.0, (1 / ratio - 1) / 2) for ratio in ratios)]
    if not any(sigmas):
        return volume
    values = volume.numpy(force=True).astype(np.float32)
    filtered = torch.from_numpy(ndimage.gaussian_filter(values, sigmas, mode="nearest"))
    return MetaTensor(filtered.to(volume.device)).copy_meta_from(volume)
