"""Voxels that nobody labelled: what stands for them from the loaded label to loss and metrics."""

from __future__ import annotations

from torch import Tensor

# Below every class: what looks for foreground by `label > 0`, as MONAI's crops do, finds none.
IGNORED = -1


def is_ignored(label: Tensor) -> Tensor:
    """Where a label is `IGNORED`; nowhere in one of a type without a sign."""
    return label < 0
