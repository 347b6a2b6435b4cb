"""What drives a bundle: checks, plans, costs, studies of several, segments, exports."""

from .best import SaveBest, ValidateLast
from .catalogue import (
    Catalogue,
    Figures,
    catalogue_rows,
    draw_catalogue,
    not_measured,
    read_catalogue,
    twin_rows,
    write_catalogue,
)
from .check import CaseReport, DatasetReport, check_dataset
from .costs import Costs, cost_rows, profile
from .curves import LearningCurves
from .export import FORMS, export_network
from .finite import CheckFinite
from .frozen import FrozenAtFirst
from .nnunet import convert_nnunet
from .plan import write_plan
from .precision import check_precision
from .prototypes import CodebookStatistics
from .resume import Stopped, TrainingState
from .segmentation import Segmentations, Views, segment, view_results
from .settings import as_trained, read_settings, running_settings, with_settings, write_settings
from .study import run_study
from .train import prepare_training
from .trained import load_for_export, load_trained

__all__ = [
    "FORMS",
    "CaseReport",
    "Catalogue",
    "CheckFinite",
    "CodebookStatistics",
    "Costs",
    "DatasetReport",
    "Figures",
    "FrozenAtFirst",
    "LearningCurves",
    "SaveBest",
    "Segmentations",
    "Stopped",
    "TrainingState",
    "ValidateLast",
    "Views",
    "as_trained",
    "catalogue_rows",
    "check_dataset",
    "check_precision",
    "convert_nnunet",
    "cost_rows",
    "draw_catalogue",
    "export_network",
    "load_for_export",
    "load_trained",
    "not_measured",
    "prepare_training",
    "profile",
    "read_catalogue",
    "read_settings",
    "run_study",
    "running_settings",
    "segment",
    "twin_rows",
    "view_results",
    "with_settings",
    "write_catalogue",
    "write_plan",
    "write_settings",
]
