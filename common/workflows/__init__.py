"""What drives a bundle: checks, plans, runs over several seeds, its trained network, exports."""

from .check import CaseReport, DatasetReport, check_dataset
from .export import FORMS, export_network
from .plan import write_plan
from .repeat import run_with_seeds
from .settings import as_trained, read_settings, running_settings, with_settings, write_settings
from .trained import load_for_export, load_trained

__all__ = [
    "FORMS",
    "CaseReport",
    "DatasetReport",
    "as_trained",
    "check_dataset",
    "export_network",
    "load_for_export",
    "load_trained",
    "read_settings",
    "run_with_seeds",
    "running_settings",
    "with_settings",
    "write_plan",
    "write_settings",
]
