"""Values on other grids as nnU-Net has them: images cubic, label maps linear, thick slices apart.

Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, and nnunetv2's resampling: images by cubic
splines, kept within the values that were there; of a label map each class by itself, linearly, and
in a voxel the class that has most; where voxels are more than three times as long along one axis as
along another, that axis by its nearest slices.

Such an interpolation is one along each axis after the other, and each a small matrix: of scipy's
spline, from what it makes of single voxels. That takes no more memory than what comes out, slab by
slab, and no float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .. import scratch

ANISOTROPIC = 3.0  # times as long: nnU-Net's threshold
_NOTHING = 1e-9  # a weight: splines reach across the whole axis, but vanish in some 15 voxels
_TIE = 1e-5  # of one-hot values


class Axis(NamedTuple):
    """An axis of a grid on an image: voxel i lies at scale * i + offset of the image's axis."""

    size: int
    scale: float
    offset: float


def same_extent(size: int, wanted: int) -> Axis:
    """The axis of `wanted` voxels that begins and ends where one of `size` voxels does."""
    scale = size / wanted
    return Axis(wanted, scale, (scale - 1) / 2)


def slices_apart(spacing: Sequence[float], wanted: Sequence[float]) -> int | None:
    """The axis of which slices are resampled each by itself, nnU-Net's rule; None for no such.

    Args:
        spacing, wanted: mm, of the image and of the grid that it is resampled to.
    """
    for lengths in (np.asarray(spacing), np.asarray(wanted)):
        if lengths.max() / lengths.min() > ANISOTROPIC:
            (longest,) = np.nonzero(lengths == lengths.max())
            return int(longest[0]) if len(longest) == 1 else None
    return None


def resample_image(volume: Tensor, axes: Sequence[Axis], apart: int | None = None) -> Tensor:
    """An image (channels, ...) on another grid (channels, ...), by cubic splines, float32.

    Values stay within the channel's, or with slices apart within the slice's; beyond its last
    voxels an image goes on as it ends.

    Args:
        volume: (channels, ...), of as many axes as there are in `axes`.
        axes: of the grid.
        apart: the axis along which the nearest slice is taken; see `slices_apart`.
    """
    volume = volume.to(torch.float32)
    orders = [0 if i == apart else 3 for i in range(len(axes))]
    weights = _all_weights(volume, axes, orders)
    plane = [i + 1 for i in range(len(axes)) if i != apart]
    low, high = volume.amin(plane, keepdim=True), volume.amax(plane, keepdim=True)
    out = volume.new_empty([len(volume), *(axis.size for axis in axes)])
    along, parts = _slabs(volume, out)
    for part in parts:
        mine = [w[part] if i == along else w for i, w in enumerate(weights)]
        slab = _weighed(volume, mine)
        limits = (low, high)
        if apart is not None:
            one = [w if i == apart else None for i, w in enumerate(mine)]
            limits = (_weighed(low, one), _weighed(high, one))
        out[scratch.along(along + 1, part)] = slab.clamp(*limits)
    return out


def resample_labels(label: Tensor, axes: Sequence[Axis], apart: int | None = None) -> Tensor:
    """A label map (1, ...) on another grid (1, ...), of its type: the class with the largest share.

    Shares are those of linear interpolation. Where several classes have the same, that of the
    nearest voxel counts, or if it is none of them the smallest.

    Args:
        label: (1, ...), of whole numbers, `IGNORED` among them.
        axes, apart: as for `resample_image`.
    """
    linear = _all_weights(label, axes, [0 if i == apart else 1 for i in range(len(axes))])
    nearest = _all_weights(label, axes, [0] * len(axes))
    out = label.new_empty([1, *(axis.size for axis in axes)])
    along, parts = _slabs(label, out)
    for part in parts:
        here = scratch.along(along, part)
        near, share = (
            [w[part] if i == along else w for i, w in enumerate(weights)]
            for weights in (nearest, linear)
        )
        first, stop = _reach(share[along] + near[along])
        rows = slice(first, stop)
        near[along], share[along] = near[along][:, rows], share[along][:, rows]
        inside = label[0][scratch.along(along, rows)]
        out[0][here] = _largest_share(inside, share, near)
    return out


def _largest_share(label: Tensor, share: Sequence[Tensor], near: Sequence[Tensor]) -> Tensor:
    """Of a label map (...) on a grid (...): `share` weighs voxels linearly, `near` the nearest."""
    lowest = label.min()
    counts = torch.bincount((label - lowest).flatten().to(torch.int32))
    base, *others = (counts.argsort(descending=True)[: int((counts > 0).sum())] + lowest).tolist()
    size = [len(w) for w in share]
    winner = label.new_full(size, base)
    if not others:
        return winner
    nearest = _weighed(label[None].float(), near)[0]
    best = torch.zeros(size, device=label.device)
    rest = torch.ones(size, device=label.device)  # what the others leave to the largest class
    for value in others:
        mask = label == value
        box, weights = [], []
        for i, w in enumerate(share):
            there = mask.any(dim=[j for j in range(mask.ndim) if j != i]).nonzero()
            box.append(slice(int(there.min()), int(there.max()) + 1))
            weights.append(w[:, box[-1]])
        reached = tuple(slice(*_reach(w.T)) for w in weights)
        weights = [w[rows] for w, rows in zip(weights, reached, strict=True)]
        found = _weighed(mask[tuple(box)][None].float(), weights)[0]
        rest[reached] -= found
        _give(value, found, winner[reached], best[reached], nearest[reached])
    _give(base, rest, winner, best, nearest)
    return winner


def _give(value: int, share: Tensor, winner: Tensor, best: Tensor, nearest: Tensor) -> None:
    by_number = (winner > value) & (nearest != winner)
    more = (share > best + _TIE) | (share >= best - _TIE) & ((nearest == value) | by_number)
    winner.masked_fill_(more, value)
    torch.where(more, share, best, out=best)


def _slabs(volume: Tensor, out: Tensor) -> tuple[int, Iterator[slice]]:
    """The axis of what comes out that is done part by part, and its parts.

    What lies between is as large as the larger of the two along the other axes.
    """
    along = scratch.slowest_axis(volume, 1) - 1
    between = [max(sizes) for sizes in zip(volume.shape, out.shape, strict=True)]
    between[along + 1] = out.shape[along + 1]
    return along, scratch.slabs(between, along + 1)


def _all_weights(volume: Tensor, axes: Sequence[Axis], orders: Sequence[int]) -> list[Tensor]:
    sizes = volume.shape[1:]
    return [
        _weights(size, axis, order).to(volume.device)
        for size, axis, order in zip(sizes, axes, orders, strict=True)
    ]


def _weights(size: int, axis: Axis, order: int) -> Tensor:
    """What each voxel of an axis (size) is worth in each of another one (axis.size, size)."""
    weights = ndimage.affine_transform(
        np.eye(size),
        np.diag([axis.scale, 1.0]),
        (axis.offset, 0.0),
        (axis.size, size),
        order=order,
        mode="nearest",
    )
    weights[np.abs(weights) < _NOTHING] = 0
    return torch.from_numpy(weights.astype(np.float32))


def _reach(weights: Tensor) -> tuple[int, int]:
    """The first column that is worth anything in any row, and the one after the last."""
    (columns,) = weights.any(0).nonzero(as_tuple=True)
    return (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)


def _weighed(volume: Tensor, weights: Sequence[Tensor | None]) -> Tensor:
    """A volume (channels, ...) of which each axis is weighed; None leaves one as it is."""
    sizes = volume.shape[1:]
    shrinking = sorted(  # first, as it leaves least to the others
        (i for i, w in enumerate(weights) if w is not None),
        key=lambda i: len(cast(Tensor, weights[i])) / sizes[i],
    )
    for i in shrinking:
        weight = cast(Tensor, weights[i])
        first, stop = _reach(weight)
        part = volume.narrow(i + 1, first, stop - first)
        weight = weight[:, first:stop]
        if torch.equal(weight, torch.eye(*weight.shape, device=weight.device)):
            volume = part
        else:
            volume = torch.tensordot(part, weight, ([i + 1], [1])).movedim(-1, i + 1)
    return volume
