"""Voxels that no loss sees: those that a target marks as `common.ignored.IGNORED`."""

from __future__ import annotations

from torch import Tensor

from ..distributed import any_over_ranks, mean_over_ranks
from ..ignored import is_ignored


def known_voxels(target: Tensor) -> Tensor | None:
    """Where a target (b, c, ...) is not ignored, (b, ...); None where it is so everywhere.

    Everywhere on all ranks, so that these go the same way through a loss.
    """
    ignored = is_ignored(target.as_subclass(Tensor)[:, 0])
    return ~ignored if any_over_ranks(ignored) else None


def of_voxels(x: Tensor, voxels: Tensor) -> Tensor:
    """The voxels of a map (b, c, ...) that a mask (b, ...) has, (1, c, n)."""
    return x.as_subclass(Tensor).movedim(1, -1)[voxels].T[None]  # no meta of MONAI's to keep up


def known_part(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps (b, c, ...) as they are, or their voxels that are not ignored, (1, c, n).

    A mean over the batch's voxels, and an overlap of the batch as a whole, is then of these alone.
    """
    known = known_voxels(target)
    if known is None:
        return logits, target
    return of_voxels(logits, known), of_voxels(target, known)


def known_samples(logits: Tensor, target: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The `known_part` of each sample, for what is a mean or a sum over samples."""
    samples = zip(logits.split(1), target.split(1), strict=True)
    return [known_part(*sample) for sample in samples]


def mean(x: Tensor) -> Tensor:
    """The mean, of all ranks; of nothing 0, and with a gradient, where all voxels are ignored."""
    return mean_over_ranks(x.mean() if x.numel() else x.sum(), x.numel())
