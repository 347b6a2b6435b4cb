"""MONAI dictionary transforms that the bundles share."""

from .body import BodyCropd, body_mask
from .checks import CheckInputd
from .labels import MergeMasksd, NestedLabelsd, NestedRegionsd
from .loading import LoadCheckedImaged, LoadRadiographd
from .patches import AdjacentSlicesd, PadToPatchd
from .spacing import OwnKeysSpacingd, RelativeSpacingd

__all__ = [
    "AdjacentSlicesd",
    "BodyCropd",
    "CheckInputd",
    "LoadCheckedImaged",
    "LoadRadiographd",
    "MergeMasksd",
    "NestedLabelsd",
    "NestedRegionsd",
    "OwnKeysSpacingd",
    "PadToPatchd",
    "RelativeSpacingd",
    "body_mask",
]
