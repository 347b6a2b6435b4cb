"""MONAI dictionary transforms that the bundles share."""

from .affine_patches import RandAffinePatchesd
from .augmentation import RandGammad, RandGaussianBlurd, RandLowResolutiond
from .body import BodyCropd, body_mask
from .checks import CheckHounsfieldd, CheckInputd
from .components import KeepLargestComponentsd
from .inverted import InvertedLabelsd
from .labels import (
    ClassLogitsd,
    LabelRegionsd,
    LeaveOutIgnoredd,
    MergeMasksd,
    NestedLabelsd,
    NestedRegionsd,
    RegionLabelsd,
    region_values,
)
from .loading import LoadCheckedImaged, LoadPhotographd, LoadRadiographd
from .patches import AdjacentSlicesd, ForegroundOrAll, NonZero, PadToPatchd, input_size
from .spacing import OwnKeysSpacingd, RelativeSpacingd, SplineResized

__all__ = [
    "AdjacentSlicesd",
    "BodyCropd",
    "CheckHounsfieldd",
    "CheckInputd",
    "ClassLogitsd",
    "ForegroundOrAll",
    "InvertedLabelsd",
    "KeepLargestComponentsd",
    "LabelRegionsd",
    "LeaveOutIgnoredd",
    "LoadCheckedImaged",
    "LoadPhotographd",
    "LoadRadiographd",
    "MergeMasksd",
    "NestedLabelsd",
    "NestedRegionsd",
    "NonZero",
    "OwnKeysSpacingd",
    "PadToPatchd",
    "RandAffinePatchesd",
    "RandGammad",
    "RandGaussianBlurd",
    "RandLowResolutiond",
    "RegionLabelsd",
    "RelativeSpacingd",
    "SplineResized",
    "body_mask",
    "input_size",
    "region_values",
]
