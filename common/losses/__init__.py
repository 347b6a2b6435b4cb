"""Losses that MONAI does not have, one file per family."""

from .boundary import BoundaryAwareBCEDiceLoss
from .inclusion import CodebookMambaLoss, InclusionLoss
from .region_tversky import (
    DiceCERegionTverskyLoss,
    RegionSpecificTverskyLoss,
    deep_supervision_weights,
)

__all__ = [
    "BoundaryAwareBCEDiceLoss",
    "CodebookMambaLoss",
    "DiceCERegionTverskyLoss",
    "InclusionLoss",
    "RegionSpecificTverskyLoss",
    "deep_supervision_weights",
]
