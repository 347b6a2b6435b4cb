"""Losses that MONAI does not have, one file per family."""

from .boundary import BoundaryAwareBCEDiceLoss
from .deep_supervision import (
    DeepSupervisionDecay,
    WeightedDeepSupervisionLoss,
    deep_supervision_weights,
)
from .hybrid import HybridLoss
from .inclusion import CodebookMambaLoss, InclusionLoss
from .region_tversky import DiceCERegionTverskyLoss, RegionSpecificTverskyLoss

__all__ = [
    "BoundaryAwareBCEDiceLoss",
    "CodebookMambaLoss",
    "DeepSupervisionDecay",
    "DiceCERegionTverskyLoss",
    "HybridLoss",
    "InclusionLoss",
    "RegionSpecificTverskyLoss",
    "WeightedDeepSupervisionLoss",
    "deep_supervision_weights",
]
