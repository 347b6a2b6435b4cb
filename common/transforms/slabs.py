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
from monai.utils import TraceKeys, get_torch_dtype_from_string
from monai.utils.type_conversion import get_equivalent_dtype
from torch import Tensor

from .. import scratch

_RESAMPLES = ("SpatialResample", "SlabwiseResample")
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
    if done.get(TraceKeys.CLASS_NAME) == "Resize" and not how["new_dim"]:
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


class SlabwiseResample(SpatialResample):
    """MONAI's `SpatialResample`, slab by slab where what comes out is large.

    Of those with linear interpolation: the nearest of two voxels as far away might be another one.
    """

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
        asked = (dst_affine, spatial_size, mode, padding_mode, align_corners, dtype, lazy)
        mode = self.mode if mode is None else mode
        lazy = self.lazy if lazy is None else lazy
        known = dst_affine is not None and isinstance(spatial_size, Sequence)
        if lazy or not known or mode != "bilinear" or not isinstance(img, MetaTensor):
            return super().__call__(img, *asked)
        size = [int(n) for n in spatial_size]
        ours, wanted = (
            to_affine_nd(len(size), np.asarray(a, np.float64)) for a in (img.affine, dst_affine)
        )
        matrix = np.linalg.solve(ours, wanted)
        unchanged = size == list(img.shape[1:]) and np.allclose(matrix, np.eye(len(matrix)))
        if unchanged or len(img) * math.prod(size) * 4 <= scratch.IN_MEMORY:
            return super().__call__(img, *asked)
        how = {
            "mode": mode,
            "padding_mode": self.padding_mode if padding_mode is None else padding_mode,
            "align_corners": self.align_corners if align_corners is None else align_corners,
            "dtype": get_equivalent_dtype(dtype or self.dtype or img.dtype, Tensor),
        }
        out = torch.empty((len(img), *size), device=img.device)
        for part in scratch.slabs(out.shape, 1):
            out[:, part] = resampled_slab(img.as_tensor(), matrix, size, 0, part, **how)
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
