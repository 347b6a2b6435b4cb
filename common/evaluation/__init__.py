"""Metrics and pictures of results."""

from .metrics import PerClassMetric
from .overlay import dice_per_class, draw_overlay

__all__ = ["PerClassMetric", "dice_per_class", "draw_overlay"]
