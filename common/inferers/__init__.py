"""Inferers of MONAI's kind: how networks are applied to an image."""

from .autocast import AutocastInferer
from .bounded import BoundedSliceInferer, BoundedSlidingWindowInferer
from .cascade import CascadeInferer
from .ensemble import EnsembleInferer
from .flips import FlipInferer

__all__ = [
    "AutocastInferer",
    "BoundedSliceInferer",
    "BoundedSlidingWindowInferer",
    "CascadeInferer",
    "EnsembleInferer",
    "FlipInferer",
]
