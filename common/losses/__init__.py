"""Losses that MONAI does not have, one file per family."""

from .boundary import BoundaryAwareBCEDiceLoss

__all__ = ["BoundaryAwareBCEDiceLoss"]
