"""What drives a bundle: checks, plans, costs, studies of several, segments, exports."""

from .best import SaveBest, ValidateLast
from .check import CaseReport, DatasetReport, check_dataset
from .costs import Costs, cost_rows, profile
from .curves import LearningCurves
from .export import FORMS, export_network
from .finite import CheckFinite
from .nnunet import convert_nnunet
from .plan import write_plan
from .precision import check_precision
from .prototypes import CodebookStatistics
from .resume import Stopped, TrainingState
from .segmentation import Segmentations, segment
from .settings import as_trained, read_settings, running_settings, with_settings, write_settings
from .study import run_study
from .trained import load_for_export, load_trained

__all__ = [
    "FORMS",
    "CaseReport",
    "CheckFinite",
    "CodebookStatistics",
    "Costs",
    "DatasetReport",
    "LearningCurves",
    "SaveBest",
    "Segmentations",
    "Stopped",
    "TrainingState",
    "ValidateLast",
    "as_trained",
    "check_dataset",
    "check_precision",
    "convert_nnunet",
    "cost_rows",
    "export_network",
    "load_for_export",
    "load_trained",
    "profile",
    "read_settings",
    "run_study",
    "running_settings",
    "segment",
    "with_settings",
    "write_plan",
    "write_settings",
]
