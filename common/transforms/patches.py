"""What of a volume a network sees at once."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, SpatialPadd
from torch import Tensor

from ..errors import InputError, by_axis
from .naming import image_name

_logger = logging.getLogger(__name__)


def input_size(
    size: Sequence[int], multiple_of: int, spatial_dims: int, name: str = "patch_size"
) -> list[int]:
    """The size of a network's input: what was asked for, rounded up to what it can halve.

    Args:
        size: voxels along each axis.
        multiple_of: what the network needs; 1 leaves the size as it is.
        spatial_dims: axes of the input.
        name: of the size in the config, for what is said of it.

    Raises:
        InputError: the size is not of that many whole numbers from 1, or one voxel would be left of
            it, of which norms of a map are nothing.
    """
    wanted: list[Any] = list(size) if isinstance(size, (list, tuple)) else [size]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in wanted)
    if len(wanted) != spatial_dims or not whole:
        raise InputError(f"{name} is {size}; allowed are {spatial_dims} whole numbers from 1.")
    rounded = [-(-n // multiple_of) * multiple_of for n in wanted]
    if multiple_of > 1 and max(rounded) == multiple_of:
        raise InputError(
            f"{name} is {by_axis(wanted)}, of which the network would leave one voxel; allowed is "
            f"more than {multiple_of} along an axis."
        )
    if rounded != wanted:
        _logger.info(
            "The network takes multiples of %s voxels: %s is %s, not %s.",
            multiple_of,
            name,
            by_axis(rounded),
            by_axis(wanted),
        )
    return rounded


class PadToPatchd(SpatialPadd):
    """MONAI's `SpatialPadd` up to the training patch; says so in the log.

    Args:
        keys: keys of the volumes.
        spatial_size: voxels of the patch.
        value: what the volumes are padded with.
    """

    def __init__(
        self, keys: KeysCollection, spatial_size: Sequence[int], value: float = 0.0
    ) -> None:
        super().__init__(keys, spatial_size, value=value)
        self.value = value

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict:
        first = data[self.first_key(dict(data))]
        patch: Sequence[int] = self.padder.spatial_size
        if any(size < wanted for size, wanted in zip(first.shape[1:], patch, strict=True)):
            _logger.warning(
                "The image %s is %s voxels at the working spacing, smaller than the patch %s: "
                "it is padded with %s.",
                image_name(first),
                by_axis(first.shape[1:]),
                by_axis(patch),
                f"{self.value:g}" if self.value else "zeros",
            )
        return super().__call__(data, lazy=lazy)


class AdjacentSlicesd(MapTransform):
    """Stack the slices around each slice as channels: 2.5D input for a 2D network.

    (channels, h, w, depth) becomes (slices * channels, h, w, depth), the lower slices' channels
    first; beyond the volume its first or last slice is repeated.

    Args:
        keys: keys of the volumes.
        slices: how many, the middle one being the slice itself: odd; 1 changes nothing.

    Raises:
        InputError: slices is even, or below 1.
    """

    def __init__(self, keys: KeysCollection, slices: int) -> None:
        super().__init__(keys)
        if slices < 1 or slices % 2 == 0:
            raise InputError(f"slices is {slices}; allowed are odd numbers from 1.")
        self.slices = slices

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        stacked = dict(data)
        for key in self.key_iterator(stacked):
            volume = stacked[key]
            depth = volume.shape[-1]
            offsets = range(-(self.slices // 2), self.slices // 2 + 1)
            at = [(torch.arange(depth) + offset).clamp(0, depth - 1) for offset in offsets]
            stacked[key] = torch.cat([volume[..., index] for index in at]) if at[1:] else volume
        return stacked


class NonZero:
    """For `CropForegroundd`: what is not 0 in any channel, to which nnU-Net crops an image."""

    def __call__(self, image: Tensor) -> Tensor:
        return image != 0


class ForegroundOrAll:
    """For `CropForegroundd`: the foreground; of a label map without any, the whole."""

    def __call__(self, label: Tensor) -> Tensor:
        return (label > 0) | ~(label > 0).any()
