"""Losses that MONAI does not have, one file per family."""

from .boundary import BoundaryAwareBCEDiceLoss
from .inclusion import CodebookMambaLoss, InclusionLoss

__all__ = ["BoundaryAwareBCEDiceLoss", "CodebookMambaLoss", "InclusionLoss"]
