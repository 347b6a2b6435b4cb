"""Inferers of MONAI's kind: how networks are applied to an image."""

from .cascade import CascadeInferer, largest_component
from .flips import FlipInferer

__all__ = ["CascadeInferer", "FlipInferer", "largest_component"]
