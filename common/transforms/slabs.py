"""Volumes on other grids, slab by slab: of all voxels, coordinates are thrice as large."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.networks.layers import AffineTransform
from monai.transforms import Resize, SpatialResample
from monai.transforms.inverse import TraceableTransform
from monai.transforms.utils import resolves_modes, scale_affine
from monai.utils import TraceKeys, fall_back_tuple, get_torch_dtype_from_string
from monai.utils.type_conversion import get_equivalent_dtype
from torch import Tensor

from .. import scratch
from .resampling import Axis, resample_image, resample_labels, same_extent, slices_apart

_RESAMPLES = ("SpatialResample", "SlabwiseResample")
_RESIZES = ("Resize", "SplineResize")
# Modes as nnU-Net resamples, and how that is undone.
_BACK: dict[Any, str] = {3: "bilinear", "one-hot": "nearest"}
_OURS = ("bilinear", *_BACK)
_STRAIGHT = 1e-3  # voxels that an axis may leave its line by
# (a volume on the grid that there is, the part of an axis of the wanted one) -> the slab there
Slab = Callable[[Tensor, slice], Tensor]


class Before(NamedTuple):
    """The grid that a volume had before it was resampled, and slabs of other volumes on it."""

    size: tuple[int, ...]
    affine: Tensor
    axis: int  # of the slabs
    slab: Slab


def before_resampling(
    image: MetaTensor, axis: int, prepare: Callable[[Tensor], Tensor]
) -> Before | None:
    """How to undo, slab by slab, what resampled an image last; None where that is not known.

    Args:
        image: (channels, ...), with its trace.
        axis: the spatial axis along which slabs are wanted; where only another one will do, it is
            that.
        prepare: what is done with the part of a volume that a slab is made of.
    """
    done = image.applied_operations[-1] if image.applied_operations else {}
    how = dict(done.get(TraceKeys.EXTRA_INFO) or {})
    size = tuple(int(n) for n in done.get(TraceKeys.ORIG_SIZE, ()))
    corners = how.get("align_corners")
    how["align_corners"] = False if corners in (None, TraceKeys.NONE) else corners
    if done.get(TraceKeys.CLASS_NAME) in _RESAMPLES and isinstance(how["mode"], str):
        affine = how.pop("src_affine")
        how["dtype"] = get_torch_dtype_from_string(how["dtype"])
        dims = len(size)
        ours, wanted = (
            to_affine_nd(dims, np.asarray(a, np.float64)) for a in (image.affine, affine)
        )
        matrix = np.linalg.solve(ours, wanted)

        def resample(volume: Tensor, part: slice) -> Tensor:
            return resampled_slab(volume, matrix, size, axis, part, prepare=prepare, **how)

        return Before(size, affine, axis, resample)
    if done.get(TraceKeys.CLASS_NAME) in _RESIZES and not how["new_dim"]:
        now = tuple(image.shape[1:])
        kept = [i for i in range(len(size)) if size[i] == now[i]]
        if not kept:
            return None
        axis = axis if axis in kept else kept[0]
        scale = scale_affine(size, now, align_corners=how["align_corners"])
        scale = to_affine_nd(len(image.affine) - 1, scale)  # a picture's may be of three axes
        affine = image.affine @ torch.linalg.inv(torch.as_tensor(scale).to(image.affine))

        def resize(volume: Tensor, part: slice) -> Tensor:
            inside = prepare(volume[scratch.along(axis + 1, part)])
            wanted = [*size[:axis], part.stop - part.start, *size[axis + 1 :]]
            corners = None if how["mode"] == "nearest" else how["align_corners"]
            return Resize(wanted, mode=how["mode"], align_corners=corners)(inside)

        return Before(size, affine, axis, resize)
    return None


def resampled_slab(
    volume: Tensor,
    matrix: np.ndarray,
    size: Sequence[int],
    axis: int,
    part: slice,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    dtype: torch.dtype,
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """What MONAI's `SpatialResample` would have in a slab of its output.

    Args:
        volume: (channels, ...).
        matrix: from voxels of the output to those of the volume, homogeneous.
        size: of the whole output.
        axis, part: the slab.
        mode, padding_mode, align_corners, dtype: as for MONAI's.
        prepare: what is done with the part of the volume that counts.
    """
    dims = len(size)
    wanted = [*size[:axis], part.stop - part.start, *size[axis + 1 :]]
    start, back = np.eye(dims + 1), np.eye(dims + 1)
    start[axis, -1] = part.start
    corners = np.array([*product(*([0, n - 1] for n in wanted))])
    there = (matrix @ start)[:-1] @ np.c_[corners, np.ones(len(corners))].T
    box = [slice(None)] * dims
    if padding_mode in ("border", "zeros"):  # what is reflected may come from anywhere
        for i, n in enumerate(volume.shape[1:]):
            low = min(max(math.floor(there[i].min()) - 1, 0), n - 1)
            box[i] = slice(low, max(min(math.ceil(there[i].max()) + 2, n), low + 1))
            back[i, -1] = -low
    here = (slice(None), *box)
    inside = prepare(volume[here]).to(dtype)
    _, mode, padding_mode, _ = resolves_modes(mode, padding_mode)
    resample = AffineTransform(
        mode=mode, padding_mode=padding_mode, align_corners=align_corners, reverse_indexing=True
    )
    theta = torch.from_numpy(back @ matrix @ start).to(inside)
    return resample(inside[None], theta=theta, spatial_size=wanted)[0].float()


def _axes(matrix: np.ndarray, size: Sequence[int]) -> list[Axis] | None:
    """The axes of a grid of a size on that of a volume; None where they do not run along its own.

    Args:
        matrix: from voxels of the grid to those of the volume, homogeneous.
    """
    dims = len(size)
    slopes = matrix[:dims, :dims]
    if (np.abs(slopes - np.diag(slopes.diagonal())) * size).max() > _STRAIGHT:
        return None
    scales = slopes.diagonal().tolist()
    return [Axis(*axis) for axis in zip(size, scales, matrix[:dims, dims].tolist(), strict=True)]


class SlabwiseResample(SpatialResample):
    """MONAI's `SpatialResample`, with nnU-Net's modes, slab by slab where what comes out is large.

    Modes are 3 for images and "one-hot" for label maps, see `resample_image` and
    `resample_labels`, which are undone linearly, as nnU-Net's probabilities are, and by the nearest
    voxel; and MONAI's. Of these only the linear one goes by slabs: the nearest of two voxels as far
    away might be another one. Between grids that are turned or sheared against each other no axis
    can be done after the other: there 3 is MONAI's spline, and label maps get the nearest voxel.
    """

    slices_apart = True  # where voxels are long

    def __call__(
        self,
        img: Tensor,
        dst_affine: Any = None,
        spatial_size: Any = None,
        mode: str | int | None = None,
        padding_mode: str | None = None,
        align_corners: bool | None = None,
        dtype: Any = None,
        lazy: bool | None = None,
    ) -> Tensor:
        mode = self.mode if mode is None else mode
        lazy = self.lazy if lazy is None else lazy
        asked = (dst_affine, spatial_size, mode, padding_mode, align_corners, dtype, lazy)
        known = dst_affine is not None and isinstance(spatial_size, Sequence)
        if lazy or not known or mode not in _OURS or not isinstance(img, MetaTensor):
            return super().__call__(img, *asked)
        size = [int(n) for n in spatial_size]
        ours, wanted = (
            to_affine_nd(len(size), np.asarray(a, np.float64)) for a in (img.affine, dst_affine)
        )
        matrix = np.linalg.solve(ours, wanted)
        unchanged = size == list(img.shape[1:]) and np.allclose(matrix, np.eye(len(matrix)))
        how = {
            "mode": str(_BACK.get(mode, mode)),  # no members of enumerations, which no file has
            "padding_mode": str(padding_mode or self.padding_mode),
            "align_corners": self.align_corners if align_corners is None else align_corners,
            "dtype": get_equivalent_dtype(dtype or self.dtype or img.dtype, Tensor),
        }
        volume = img.as_tensor()
        if unchanged:
            return super().__call__(img, *asked[:2], **how, lazy=lazy)
        if mode in _BACK:
            axes = _axes(matrix, size)
            if axes is None:
                return super().__call__(
                    img, *asked[:2], **how | {"mode": 3 if mode == 3 else "nearest"}, lazy=lazy
                )
            lengths = (np.linalg.norm(a[:-1, :-1], axis=0) for a in (ours, wanted))
            apart = slices_apart(*lengths) if self.slices_apart else None
            resample = resample_image if mode == 3 else resample_labels
            out = resample(volume, axes, apart)
        elif len(img) * math.prod(size) * 4 <= scratch.IN_MEMORY:
            return super().__call__(img, *asked)
        else:
            out = torch.empty((len(img), *size), device=img.device)
            for part in scratch.slabs(out.shape, 1):
                out[:, part] = resampled_slab(volume, matrix, size, 0, part, **how)
        # As MONAI keeps it for the way back.
        how |= {"dtype": str(how["dtype"])[6:], "src_affine": torch.from_numpy(ours)}
        meta = TraceableTransform.track_transform_meta(
            img,
            sp_size=torch.tensor(size),
            affine=torch.from_numpy(matrix),
            extra_info=how,
            orig_size=img.shape[1:],
            transform_info=self.get_transform_info(),
            lazy=False,
        )
        return MetaTensor(out).copy_meta_from(meta)


class SplineResize(Resize):
    """MONAI's `Resize`, with modes 3 for images and "one-hot" for label maps: nnU-Net's.

    See `resample_image` and `resample_labels`. On the way back they are linear, or the nearest.
    """

    def __call__(self, img: Tensor, mode: Any = None, **kwargs: Any) -> Tensor:
        mode = self.mode if mode is None else mode
        if mode not in _BACK:
            return super().__call__(img, mode=mode, **kwargs)
        size = fall_back_tuple(self.spatial_size, img.shape[1:])
        volume = img.as_tensor() if isinstance(img, MetaTensor) else img
        axes = [same_extent(n, wanted) for n, wanted in zip(volume.shape[1:], size, strict=True)]
        resample = resample_image if mode == 3 else resample_labels
        back = {3: {2: "bilinear", 3: "trilinear"}[len(size)]}.get(mode, "nearest-exact")
        how = {"mode": back, "align_corners": TraceKeys.NONE, "dtype": "float32", "new_dim": 0}
        meta = TraceableTransform.track_transform_meta(
            img,
            sp_size=size,
            affine=scale_affine(img.shape[1:], size, align_corners=False),
            extra_info=how,
            orig_size=img.shape[1:],
            transform_info=self.get_transform_info(),
            lazy=False,
        )
        return MetaTensor(resample(volume, axes)).copy_meta_from(meta)
