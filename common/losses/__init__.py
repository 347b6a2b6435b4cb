"""Losses that MONAI does not have, one file per family."""

from .boundary import BoundaryAwareBCEDiceLoss
from .deep_supervision import WeightedDeepSupervisionLoss, deep_supervision_weights
from .inclusion import CodebookMambaLoss, InclusionLoss
from .region_tversky import DiceCERegionTverskyLoss, RegionSpecificTverskyLoss

__all__ = [
    "BoundaryAwareBCEDiceLoss",
    "CodebookMambaLoss",
    "DiceCERegionTverskyLoss",
    "InclusionLoss",
    "RegionSpecificTverskyLoss",
    "WeightedDeepSupervisionLoss",
    "deep_supervision_weights",
]
