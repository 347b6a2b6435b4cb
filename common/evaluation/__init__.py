"""Metrics and pictures of results."""

from .codebook import draw_prototypes, write_code_maps
from .metrics import (
    ConfusionRate,
    FBetaScore,
    HausdorffDistanceInMM,
    MeanDice,
    MeanIoUHandler,
    MetricsSaver,
    PerClassMetric,
    RelativeVolumeDifference,
    SurfaceDistanceInMM,
    VolumeOverlapError,
)
from .overlay import dice_per_class, draw_overlay

__all__ = [
    "ConfusionRate",
    "FBetaScore",
    "HausdorffDistanceInMM",
    "MeanDice",
    "MeanIoUHandler",
    "MetricsSaver",
    "PerClassMetric",
    "RelativeVolumeDifference",
    "SurfaceDistanceInMM",
    "VolumeOverlapError",
    "dice_per_class",
    "draw_overlay",
    "draw_prototypes",
    "write_code_maps",
]
