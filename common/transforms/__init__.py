"""MONAI dictionary transforms that the bundles share."""

from .body import BodyCropd, body_mask
from .checks import CheckInputd
from .components import KeepLargestComponentsd
from .inverted import InvertedLabelsd
from .labels import (
    LabelRegionsd,
    LeaveOutIgnoredd,
    MergeMasksd,
    NestedLabelsd,
    NestedRegionsd,
    RegionLabelsd,
    region_values,
)
from .loading import LoadCheckedImaged, LoadRadiographd
from .patches import AdjacentSlicesd, ForegroundOrAll, PadToPatchd, input_size
from .spacing import OwnKeysSpacingd, RelativeSpacingd

__all__ = [
    "AdjacentSlicesd",
    "BodyCropd",
    "CheckInputd",
    "ForegroundOrAll",
    "InvertedLabelsd",
    "KeepLargestComponentsd",
    "LabelRegionsd",
    "LeaveOutIgnoredd",
    "LoadCheckedImaged",
    "LoadRadiographd",
    "MergeMasksd",
    "NestedLabelsd",
    "NestedRegionsd",
    "OwnKeysSpacingd",
    "PadToPatchd",
    "RegionLabelsd",
    "RelativeSpacingd",
    "body_mask",
    "input_size",
    "region_values",
]
