"""What drives a bundle: checks, plans, runs over several seeds, its trained network, exports."""

from .check import CaseReport, DatasetReport, check_dataset
from .export import FORMS, export_network
from .plan import write_plan
from .repeat import run_with_seeds
from .settings import running_settings
from .trained import load_for_export, load_trained

__all__ = [
    "FORMS",
    "CaseReport",
    "DatasetReport",
    "check_dataset",
    "export_network",
    "load_for_export",
    "load_trained",
    "run_with_seeds",
    "running_settings",
    "write_plan",
]
