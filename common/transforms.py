"""MONAI dictionary transforms that the bundles share."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import PILReader
from monai.transforms import (
    Crop,
    InvertibleTransform,
    LoadImaged,
    MapTransform,
    Spacingd,
    SpatialPadd,
    SpatialResample,
)
from monai.utils import TraceKeys, ensure_tuple_rep
from torch import Tensor

from .body import AIR_HU, body_mask
from .errors import InputError, first_line

_logger = logging.getLogger(__name__)


class LoadCheckedImaged(LoadImaged):
    """MONAI's `LoadImaged`, for files that a user chose.

    An image that is in memory stays as it is: MONAI Deploy reads images itself, and leaves out the
    transforms that it knows as loaders by their names.

    Raises:
        InputError: a file is missing, or cannot be read to its end as an image.
    """

    def __init__(self, keys: KeysCollection, reader: Any = None, **kwargs: Any) -> None:
        super().__init__(keys, reader, image_only=True, **kwargs)

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            if isinstance(data[key], Tensor):
                continue
            try:
                image = self._loader(data[key], reader)
            except Exception as error:
                raise InputError(
                    f"The {key} {_names(data[key])} cannot be read ({first_line(error)}); allowed "
                    "are complete image files, such as NIfTI or PNG."
                ) from error
            # MONAI Label has the reader give the metadata beside the image, where they are as well.
            loaded[key] = image[0] if isinstance(image, tuple) else image
        return loaded


class LoadRadiographd(LoadCheckedImaged):
    """`LoadCheckedImaged` that makes of each PNG, JPEG or BMP file one channel of grey.

    Colours become their luminance and transparency is left out; 16-bit greys stay 16-bit greys.
    As for every reader of MONAI the first spatial axis is the horizontal one.
    """

    def __init__(self, keys: KeysCollection, **kwargs: Any) -> None:
        super().__init__(keys, **kwargs)
        self.register(PILReader(converter=_grey))  # the last one registered is asked first


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
        name, shape = _source(image), tuple(image.shape[1:])
        # A 2D image in a 3D file format has a last axis of one slice.
        dims = 2 if len(shape) == 3 and shape[-1] == 1 else len(shape)
        if dims != self.spatial_dims:
            raise InputError(
                f"The image {name} is {dims}D, of size {_size(shape)}; allowed are "
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
        name = _source(label)
        if label.shape[1:] != image.shape[1:] or label.shape[0] != 1:
            raise InputError(
                f"The label {name} has {label.shape[0]} channels of size {_size(label.shape[1:])}; "
                f"allowed is one, of its image's size {_size(image.shape[1:])}."
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
                _source(first),
                _size(first.shape[1:]),
                _size(patch),
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


class OwnKeysSpacingd(Spacingd):
    """MONAI's `Spacingd`, of which other entries of the data are none of its business.

    MONAI 1.6 takes every entry whose name begins with a key's, such as MONAI Label's `image_path`
    beside `image`, for metadata, and fails at it.
    """

    def __call__(
        self, data: Mapping[Hashable, Any], lazy: bool | None = None
    ) -> dict[Hashable, Any]:
        own = {key: data[key] for key in self.key_iterator(dict(data))}
        return dict(data) | super().__call__(own, lazy=lazy)


class RelativeSpacingd(MapTransform, InvertibleTransform):
    """MONAI's `Spacingd`, but in plane relative to each volume's own spacing.

    Its inverse restores the volume's grid exactly. Values are kept within the volume's own, which
    a spline leaves at edges; for the same reason the inverse of a spline is linear.

    Args:
        keys: keys of the volumes, MetaTensors (channels, h, w, depth).
        in_plane_factor: voxels along h and w for each one that was there; 0.5 halves them.
        slice_spacing: mm along depth; None keeps the slices as they are.
        mode: "bilinear", "nearest", or the order of a spline, 3 being cubic; one for all keys or
            one for each.

    Raises:
        InputError: in_plane_factor or slice_spacing is not positive.
    """

    def __init__(
        self,
        keys: KeysCollection,
        in_plane_factor: float,
        slice_spacing: float | None,
        mode: str | int | Sequence[str | int] = "bilinear",
    ) -> None:
        super().__init__(keys)
        for name, value in (("in_plane_factor", in_plane_factor), ("slice_spacing", slice_spacing)):
            if value is not None and value <= 0:
                raise InputError(f"{name} is {value}; allowed are positive numbers.")
        self.in_plane_factor = in_plane_factor
        self.slice_spacing = slice_spacing
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.resample = SpatialResample(dtype=torch.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        resampled = dict(data)
        for key, mode in self.key_iterator(resampled, self.mode):
            volume = resampled[key]
            spacing = float(volume.pixdim[2])
            slices = spacing / (self.slice_spacing or spacing)
            ratios = (self.in_plane_factor, self.in_plane_factor, slices)
            # The first voxels coincide; the last ones as nearly as may be, the odd one left out.
            size = [
                1 + math.ceil((n - 1) * ratio - 0.5)
                for n, ratio in zip(volume.shape[1:], ratios, strict=True)
            ]
            scale = torch.tensor([*(1 / ratio for ratio in ratios), 1.0], dtype=torch.float64)
            affine = volume.affine.double() @ scale.diag()
            done = self.resample(volume, dst_affine=affine, spatial_size=size, mode=mode)
            resampled[key] = done.clamp(volume.min(), volume.max())
        return resampled

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        inverted = dict(data)
        for key in self.key_iterator(inverted):
            how = inverted[key].applied_operations[-1][TraceKeys.EXTRA_INFO]
            if isinstance(how["mode"], int):
                how["mode"] = "bilinear"
            inverted[key] = self.resample.inverse(inverted[key])
        return inverted


class BodyCropd(MapTransform, InvertibleTransform):
    """Crop a CT to the body, and make air of what else is in the box: table, sheets, single arms.

    Only `source_key`'s voxels change; labels are cropped to the same box. An image in which no
    body stands out from air keeps its size, with a warning. What counts as body: `body_mask`.
    The inverse, through `Invertd`, pads with background to the grid that there was.

    Args:
        keys: keys of what is cropped, (channels, h, w, depth), oriented "RAS" or otherwise with
            the last axis from head to foot or back.
        source_key: key of the CT, MetaTensor in HU; its first channel shows the body.
        margin: mm around the body that the box keeps, within the scan.
        allow_missing_keys: whether a key may be missing.

    Raises:
        InputError: margin is negative, or the source is not a volume.
    """

    def __init__(
        self,
        keys: KeysCollection,
        source_key: Hashable = "image",
        margin: float = 6.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if margin < 0:
            raise InputError(f"margin is {margin}; allowed are mm from 0.")
        self.source_key = source_key
        self.margin = margin
        self.crop = Crop()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        cropped = dict(data)
        source = cropped[self.source_key]
        if source.ndim != 4:
            raise InputError(
                f"The image {_source(source)} is {source.ndim - 1}D; allowed are 3D images, whose "
                "body can be found."
            )
        spacing = source.pixdim.tolist()
        body = body_mask(source[0].as_tensor(), spacing)
        if body is None or body.all():
            _logger.warning(
                "The image %s, of values %g to %g, is not cropped: no body stands out from air in "
                "it, as it does in a CT in HU.",
                _source(source),
                float(source.min()),
                float(source.max()),
            )
            body = torch.ones_like(source[0].as_tensor(), dtype=torch.bool)
        box = self._box(body, spacing)
        for key in self.key_iterator(cropped):
            cropped[key] = self.crop(cropped[key], box)
            if key == self.source_key:
                cropped[key] = cropped[key].masked_fill(~body[box], AIR_HU)
        return cropped

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        inverted = dict(data)
        for key in self.key_iterator(inverted):
            inverted[key] = self.crop.inverse(inverted[key])
        return inverted

    def _box(self, body: Tensor, spacing: Sequence[float]) -> tuple[slice, ...]:
        box = []
        for axis, mm in enumerate(spacing):
            others = [other for other in range(3) if other != axis]
            inside = body.any(others[1]).any(others[0]).nonzero()
            around = math.ceil(self.margin / mm)
            start = max(int(inside.min()) - around, 0)
            box.append(slice(start, min(int(inside.max()) + 1 + around, body.shape[axis])))
        return tuple(box)


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


def _grey(image: Any) -> Any:
    """A PIL image of one channel, of the bit depth that PIL gives it."""
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return image
    return image.convert("L")


def _source(image: Tensor) -> str:
    """The file that a MetaTensor came from."""
    return str(getattr(image, "meta", {}).get("filename_or_obj", "in memory"))


def _names(files: Any) -> str:
    return ", ".join(map(str, files)) if isinstance(files, (list, tuple)) else str(files)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(int(n)) for n in shape)
