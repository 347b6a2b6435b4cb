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
from .repeats import Spread, read_metrics, spread_over_seeds, write_spread
from .report import write_report

__all__ = [
    "ConfusionRate",
    "FBetaScore",
    "HausdorffDistanceInMM",
    "MeanDice",
    "MeanIoUHandler",
    "MetricsSaver",
    "PerClassMetric",
    "RelativeVolumeDifference",
    "Spread",
    "SurfaceDistanceInMM",
    "VolumeOverlapError",
    "dice_per_class",
    "draw_overlay",
    "draw_prototypes",
    "read_metrics",
    "spread_over_seeds",
    "write_code_maps",
    "write_report",
    "write_spread",
]
