"""Label maps, masks, and regions that overlap."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from ..errors import InputError
from ..ignored import IGNORED, is_ignored


class MergeMasksd(MapTransform):
    """Make of the masks of an organ its label map: 1 where any of them is above 0.

    There is nothing to merge with more than two classes, whose values are the file's, nor with a
    `label_map` or an `ignore_label`, which are of the file's values too, nor in one map of more
    than two values.

    Args:
        keys: key of the masks, (masks, ...).
        num_classes: classes of the label map, the background among them.
        label_map, ignore_label: as for `CheckInputd`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        label_map: Mapping[Any, Any] | None = None,
        ignore_label: int | None = None,
    ) -> None:
        super().__init__(keys)
        self.merges = num_classes == 2 and label_map is None and ignore_label is None

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        merged = dict(data)
        if self.merges:
            for key in self.key_iterator(merged):
                masks = merged[key]
                if len(masks) == 1 and len(masks.unique()) > 2:
                    continue  # more than a mask: its values are to be refused
                highest = masks.amax(0, keepdim=True)
                # What is not a number stays so, to be refused.
                merged[key] = highest.where(highest.isnan(), (highest > 0).to(highest.dtype))
        return merged


class ClassLogitsd(MapTransform):
    """A logit for every class, of what a network gives for a softmax or, of two, for a sigmoid.

    One channel is the logit of a sigmoid for class 1. With 0 as the background's logit, the softmax
    of both is that sigmoid: what is done with several classes is then right for one, too.

    Args:
        keys: keys of the logits, (num_classes, ...), or (1, ...) of two classes.
        num_classes: classes, the background among them.

    Raises:
        InputError: at a call, there are other channels.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        for key in self.key_iterator(done):
            channels = len(done[key])
            if channels == 1 and self.num_classes == 2:
                done[key] = torch.cat([torch.zeros_like(done[key]), done[key]])
            elif channels != self.num_classes:
                raise InputError(
                    f"The network's output has {channels} channel{'s' * (channels != 1)} and "
                    f"num_classes is {self.num_classes}; allowed is a channel for each class, or "
                    "one for num_classes 2."
                )
        return done


class NestedRegionsd(MapTransform):
    """Label maps (1, ...) of nested classes to a channel per region, (num_classes - 1, ...).

    Each region includes those within it: of 0, 1 liver and 2 tumour, the whole liver, tumour
    included, and the tumour. What is `IGNORED` is so in every region. `NestedLabelsd` goes back.

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
            regions = [label > outer for outer in range(self.num_classes - 1)]
            split[key] = _channels(regions, label)
        return split


class NestedLabelsd(MapTransform):
    """Probabilities of nested regions (n, ...), outermost first, to a label map (1, ...) of 0 to n.

    A voxel is in a region whose probability is above 0.5, but only within the region outside it:
    a tumour outside the liver is background.

    Args:
        keys: keys of the probabilities.
        clip: False leaves each region where it was found, as masks (n, ...): no label map tells a
            tumour outside the liver from one inside.
    """

    def __init__(self, keys: KeysCollection, clip: bool = True) -> None:
        super().__init__(keys)
        self.clip = clip

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        joined = dict(data)
        for key in self.key_iterator(joined):
            inside = (joined[key] > 0.5).to(torch.uint8)
            if self.clip:
                nested = inside.cumprod(0, dtype=torch.uint8)
                inside = nested.sum(0, keepdim=True, dtype=torch.uint8)
            joined[key] = inside
        return joined


class LabelRegionsd(MapTransform):
    """Label maps (1, ...) to a channel per region, (regions, ...): any sets of classes.

    BraTS' whole tumour, its core and the enhancing tumour are [[1, 2, 3], [1, 3], [3]]. What is
    `IGNORED` is so in every region. `RegionLabelsd` goes back.

    Args:
        keys: keys of the label maps.
        regions: the classes of each.

    Raises:
        InputError: as `region_values`.
    """

    def __init__(self, keys: KeysCollection, regions: Sequence[Sequence[int]]) -> None:
        super().__init__(keys)
        region_values(regions)
        self.regions = regions

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        split = dict(data)
        for key in self.key_iterator(split):
            label = split[key]
            regions = [
                torch.stack([label == value for value in region]).any(0) for region in self.regions
            ]
            split[key] = _channels(regions, label)
        return split


class RegionLabelsd(MapTransform):
    """Probabilities of regions (regions, ...) to a label map (1, ...), painted in their order.

    Where a region's probability is above 0.5 its own class (`region_values`) is painted over what
    earlier regions left there, as nnU-Net does by its regions_class_order.

    Args:
        keys: keys of the probabilities.
        regions: as for `LabelRegionsd`, the outermost first.

    Raises:
        InputError: as `region_values`.
    """

    def __init__(self, keys: KeysCollection, regions: Sequence[Sequence[int]]) -> None:
        super().__init__(keys)
        self.values = region_values(regions)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        painted = dict(data)
        for key in self.key_iterator(painted):
            label = torch.zeros_like(painted[key][:1])
            for region, value in zip(painted[key], self.values, strict=True):
                label[0][region > 0.5] = value
            painted[key] = label
        return painted


def region_values(regions: Sequence[Sequence[int]]) -> list[int]:
    """The class that each region is painted with: its first that no later region has.

    Of [[1, 2, 3], [1, 3], [3]] these are 2, 1 and 3.

    Raises:
        InputError: a region is empty, has the background, or has no class of its own.
    """
    values = []
    for i, region in enumerate(regions):
        if not region or min(region) < 1:
            raise InputError(
                f"The region {list(region)} is none; allowed are one or more classes, from 1."
            )
        later = {value for other in regions[i + 1 :] for value in other}
        own = [value for value in region if value not in later]
        if not own:
            raise InputError(
                f"The region {list(region)} lies within later ones of {list(map(list, regions))}; "
                "allowed are the outermost first, each with a class that those after it lack."
            )
        values.append(own[0])
    return values


def _channels(regions: Sequence[Tensor], label: Tensor) -> Tensor:
    """Masks as channels of the label's type: 1 in a region, 0 outside, `IGNORED` where that is."""
    channels = torch.cat(list(regions)).to(label.dtype)
    ignored = is_ignored(label)
    return channels.masked_fill(ignored, IGNORED) if ignored.any() else channels


class LeaveOutIgnoredd(MapTransform):
    """Make what is `IGNORED` in a label background in prediction and label: metrics then skip it.

    No metric of foreground counts such a voxel: in Dice and IoU it is neither right nor wrong, and
    surfaces end there alike in both. It belongs where the label is still a map, or regions, before
    MONAI's `AsDiscreted` makes channels of it.

    Args:
        keys: key of the prediction: probabilities (classes, ...) for a label map (1, ...), or
            regions (n, ...) for a label of the same n.
        label_key: key of the label.
    """

    def __init__(self, keys: KeysCollection, label_key: Hashable = "label") -> None:
        super().__init__(keys)
        self.label_key = label_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        label = done[self.label_key]
        ignored = is_ignored(label[:1])
        if ignored.any():
            done[self.label_key] = label.masked_fill(ignored, 0)
            for key in self.key_iterator(done):
                has_background = len(done[key]) > len(label)
                pred = done[key].masked_fill(ignored, 0)
                if has_background:
                    pred[:1].masked_fill_(ignored, 1)
                done[key] = pred
        return done
