"""Checkpoints: of published code, of cascades in two halves, and of training."""

from .convert import convert_checkpoint
from .encoder import load_encoder
from .join import check_stage, join_stages, keep_other_stage
from .load import StateDict, check_checkpoint, load_checkpoint, load_state_dict, members
from .save import save_checkpoint

__all__ = [
    "StateDict",
    "check_checkpoint",
    "check_stage",
    "convert_checkpoint",
    "join_stages",
    "keep_other_stage",
    "load_checkpoint",
    "load_encoder",
    "load_state_dict",
    "members",
    "save_checkpoint",
]
