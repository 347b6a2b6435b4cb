"""Checkpoints and bundles of the model zoo."""

from .bundles import load_for_export, load_trained
from .checkpoints import check_checkpoint, convert_checkpoint, load_encoder, load_state_dict
from .export import FORMS, export_network
from .repeat import run_with_seeds

__all__ = [
    "FORMS",
    "check_checkpoint",
    "convert_checkpoint",
    "export_network",
    "load_encoder",
    "load_for_export",
    "load_state_dict",
    "load_trained",
    "run_with_seeds",
]
