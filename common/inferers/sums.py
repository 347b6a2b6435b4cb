"""The mean of several inferers' maps, which may be too large for the memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from monai.data import MetaTensor
from torch import Tensor

from .. import scratch


class Mean:
    """The mean of maps (b, classes, ...) that come one after the other.

    Args:
        first: the first of them.
        of: what is averaged, from slabs of a map, if it is not the maps themselves.
    """

    def __init__(self, first: Tensor, of: Callable[[Tensor], Tensor] | None = None) -> None:
        self.axis = scratch.slowest_axis(first, 2)
        self.like = first.meta if isinstance(first, MetaTensor) else None
        self.of = of
        self.number = 0
        dtype = first.dtype if of is None else torch.float32
        self.total = scratch.zeros(first.shape, self.axis, dtype, first.device)
        self.add(first)

    def add(self, other: Tensor, flip: Sequence[int] = ()) -> None:
        """Another map, to be flipped along some of its axes."""
        length = other.shape[self.axis]
        other = other.as_tensor() if isinstance(other, MetaTensor) else other
        for part in scratch.slabs(self.total.shape, self.axis):
            mirrored = slice(length - part.stop, length - part.start)
            slab = other[scratch.along(self.axis, mirrored if self.axis in flip else part)]
            slab = slab.flip(list(flip)) if flip else slab
            slab = slab if self.of is None else self.of(slab)
            self.total[scratch.along(self.axis, part)] += slab.to(self.total.device)
            scratch.release(other, self.total)
        self.number += 1

    def result(self, finish: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The mean; `finish` makes of slabs of it what is wanted."""
        for part in scratch.slabs(self.total.shape, self.axis):
            here = scratch.along(self.axis, part)
            self.total[here] /= self.number
            if finish is not None:
                self.total[here] = finish(self.total[here])
            scratch.release(self.total)
        return self.total if self.like is None else MetaTensor(self.total, meta=self.like)
