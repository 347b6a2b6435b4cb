"""Checkpoints and bundles of the model zoo."""

from .bundles import load_trained
from .cascade import check_stage, join_stages, keep_other_stage
from .checkpoints import check_checkpoint, convert_checkpoint, load_encoder, load_state_dict
from .repeat import run_with_seeds

__all__ = [
    "check_checkpoint",
    "check_stage",
    "convert_checkpoint",
    "join_stages",
    "keep_other_stage",
    "load_encoder",
    "load_state_dict",
    "load_trained",
    "run_with_seeds",
]
