"""Losses that MONAI does not have, one file per family; in float32 where logits have 16 bits.

What a target marks as ignored (`common.ignored.IGNORED`) has no part in any of them. In a training
of several ranks, each has the loss of their global batch, of as many samples from each; all must
ask for it together.
"""

from .boundary import BoundaryAwareBCEDiceLoss
from .deep_supervision import (
    DeepSupervisionDecay,
    WeightedDeepSupervisionLoss,
    deep_supervision_weights,
)
from .dice_ce import DiceBCELoss, DiceCELoss
from .hybrid import HybridLoss
from .inclusion import CodebookMambaLoss, InclusionLoss
from .region_tversky import DiceCERegionTverskyLoss, RegionSpecificTverskyLoss
from .vae import VAERegularisedLoss

__all__ = [
    "BoundaryAwareBCEDiceLoss",
    "CodebookMambaLoss",
    "DeepSupervisionDecay",
    "DiceBCELoss",
    "DiceCELoss",
    "DiceCERegionTverskyLoss",
    "HybridLoss",
    "InclusionLoss",
    "RegionSpecificTverskyLoss",
    "VAERegularisedLoss",
    "WeightedDeepSupervisionLoss",
    "deep_supervision_weights",
]
