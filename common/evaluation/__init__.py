"""Metrics, tables and pictures of results."""

from .cases import CaseResult, summarise, write_results
from .codebook import draw_prototypes, prototypes_figure, write_code_maps
from .comparison import compare, comparison_lines
from .evaluate import Evaluation, evaluate
from .findings import findings
from .lesions import Lesion, find_lesions
from .measures import BETTER, EMPTY_RULES, Measures, measure
from .metrics import (
    CasesSaver,
    MeanDice,
    MeanIoUHandler,
    MetricsSaver,
    OverlapMetric,
    PerClassMetric,
)
from .overlay import dice_per_class, draw_overlay
from .preview import draw_preview
from .report import write_report
from .view import write_view

__all__ = [
    "BETTER",
    "EMPTY_RULES",
    "CaseResult",
    "CasesSaver",
    "Evaluation",
    "Lesion",
    "MeanDice",
    "MeanIoUHandler",
    "Measures",
    "MetricsSaver",
    "OverlapMetric",
    "PerClassMetric",
    "compare",
    "comparison_lines",
    "dice_per_class",
    "draw_overlay",
    "draw_preview",
    "draw_prototypes",
    "evaluate",
    "find_lesions",
    "findings",
    "measure",
    "prototypes_figure",
    "summarise",
    "write_code_maps",
    "write_report",
    "write_results",
    "write_view",
]
