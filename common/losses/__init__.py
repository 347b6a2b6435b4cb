"""Losses that MONAI does not have, one file per family; in float32 where logits have 16 bits."""

from .boundary import BoundaryAwareBCEDiceLoss
from .deep_supervision import (
    DeepSupervisionDecay,
    WeightedDeepSupervisionLoss,
    deep_supervision_weights,
)
from .dice_ce import DiceCELoss
from .hybrid import HybridLoss
from .inclusion import CodebookMambaLoss, InclusionLoss
from .region_tversky import DiceCERegionTverskyLoss, RegionSpecificTverskyLoss

__all__ = [
    "BoundaryAwareBCEDiceLoss",
    "CodebookMambaLoss",
    "DeepSupervisionDecay",
    "DiceCELoss",
    "DiceCERegionTverskyLoss",
    "HybridLoss",
    "InclusionLoss",
    "RegionSpecificTverskyLoss",
    "WeightedDeepSupervisionLoss",
    "deep_supervision_weights",
]
