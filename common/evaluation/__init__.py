"""Metrics and pictures of results."""

from .codebook import draw_prototypes, write_code_maps
from .metrics import PerClassMetric
from .overlay import dice_per_class, draw_overlay

__all__ = [
    "PerClassMetric",
    "dice_per_class",
    "draw_overlay",
    "draw_prototypes",
    "write_code_maps",
]
