"""Label maps of masks, and of regions that lie within one another."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform


class MergeMasksd(MapTransform):
    """Make of the masks of an organ its label map: 1 where any of them is above 0.

    With more than two classes there is nothing to merge: the image's values are the classes.

    Args:
        keys: key of the masks, (masks, ...).
        num_classes: classes of the label map, the background among them.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        merged = dict(data)
        if self.num_classes == 2:
            for key in self.key_iterator(merged):
                merged[key] = (merged[key].amax(0, keepdim=True) > 0).to(merged[key].dtype)
        return merged


class NestedRegionsd(MapTransform):
    """Label maps (1, ...) of nested classes to a channel per region, (num_classes - 1, ...).

    Each region includes those within it: of 0, 1 liver and 2 tumour, the whole liver, tumour
    included, and the tumour. `NestedLabelsd` goes back.

    Args:
        keys: keys of the label maps.
        num_classes: classes of the map, the background among them.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        split = dict(data)
        for key in self.key_iterator(split):
            label = split[key]
            regions = torch.cat([label > outer for outer in range(self.num_classes - 1)])
            split[key] = regions.to(label.dtype)
        return split


class NestedLabelsd(MapTransform):
    """Probabilities of nested regions (n, ...), outermost first, to a label map (1, ...) of 0 to n.

    A voxel is in a region whose probability is above 0.5, but only within the region outside it:
    a tumour outside the liver is background.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        joined = dict(data)
        for key in self.key_iterator(joined):
            inside = (joined[key] > 0.5).to(torch.uint8)
            joined[key] = inside.cumprod(0, dtype=torch.uint8).sum(
                0, keepdim=True, dtype=torch.uint8
            )
        return joined
