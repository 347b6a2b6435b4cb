"""Checks of what was loaded, before any work is spent on it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from ..errors import InputError
from .naming import format_size, image_name


class CheckInputd(MapTransform):
    """Check what was loaded against what the network takes, before any work is spent on it.

    Args:
        keys: key of the image, (channels, ...).
        in_channels: channels that the network takes.
        spatial_dims: spatial axes that it takes.
        label_key: key of the label map, (1, ...), where there is one.
        num_classes: a label's values are 0 .. num_classes - 1.

    Raises:
        InputError: other axes or channels; values that are not finite or all the same; a label
            map of another size than its image, or with other values.
    """

    def __init__(
        self,
        keys: KeysCollection,
        in_channels: int,
        spatial_dims: int,
        label_key: Hashable | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(keys)
        self.in_channels = in_channels
        self.spatial_dims = spatial_dims
        self.label_key = label_key
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(data):
            self._check_image(data[key])
            if self.label_key is not None:
                self._check_label(data[self.label_key], data[key])
        return dict(data)

    def _check_image(self, image: Tensor) -> None:
        name, shape = image_name(image), tuple(image.shape[1:])
        # A 2D image in a 3D file format has a last axis of one slice.
        dims = 2 if len(shape) == 3 and shape[-1] == 1 else len(shape)
        if dims != self.spatial_dims:
            raise InputError(
                f"The image {name} is {dims}D, of size {format_size(shape)}; allowed are "
                f"{self.spatial_dims}D images."
            )
        if image.shape[0] != self.in_channels:
            raise InputError(
                f"The image {name} has {image.shape[0]} channels; allowed are {self.in_channels}, "
                "the configuration's in_channels."
            )
        if not torch.isfinite(image).all():
            raise InputError(
                f"The image {name} has {int((~torch.isfinite(image)).sum())} voxels that are NaN "
                "or infinite; allowed are finite values."
            )
        if image.min() == image.max():
            raise InputError(
                f"The image {name} has the value {float(image.min()):g} everywhere; allowed are "
                "images with contrast."
            )

    def _check_label(self, label: Tensor, image: Tensor) -> None:
        name = image_name(label)
        if label.shape[1:] != image.shape[1:] or label.shape[0] != 1:
            raise InputError(
                f"The label {name} has {label.shape[0]} channels of size "
                f"{format_size(label.shape[1:])}; allowed is one, of its image's size "
                f"{format_size(image.shape[1:])}."
            )
        if self.num_classes is None:
            return
        allowed = set(range(self.num_classes))
        unknown = sorted({float(value) for value in label.unique()} - allowed)
        if unknown:
            raise InputError(
                f"The label {name} has the values {', '.join(f'{v:g}' for v in unknown[:5])}; "
                f"allowed are the classes 0 to {self.num_classes - 1}, the configuration's "
                "num_classes being one more."
            )
