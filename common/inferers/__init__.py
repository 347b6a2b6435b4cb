"""Inferers of MONAI's kind: how networks are applied to an image."""

from .bounded import BoundedSliceInferer, BoundedSlidingWindowInferer
from .cascade import CascadeInferer
from .ensemble import EnsembleInferer
from .flips import FlipInferer

__all__ = [
    "BoundedSliceInferer",
    "BoundedSlidingWindowInferer",
    "CascadeInferer",
    "EnsembleInferer",
    "FlipInferer",
]
