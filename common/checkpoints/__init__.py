"""Checkpoints: of published code, of cascades in two halves, and of training."""

from .convert import convert_checkpoint
from .encoder import load_encoder
from .fine_tune import fine_tune
from .intensity import ct_intensity, z_score_intensity
from .join import check_stage, join_settings, join_stages, keep_other_stage
from .load import (
    LAST,
    StateDict,
    check_checkpoint,
    load_checkpoint,
    load_state_dict,
    members,
    state_dict_in,
    without_wrappers,
)
from .released import released_settings
from .save import save_checkpoint
from .settings import build_setting, check_setting, class_named, differences, load_settings

__all__ = [
    "LAST",
    "StateDict",
    "build_setting",
    "check_checkpoint",
    "check_setting",
    "check_stage",
    "class_named",
    "convert_checkpoint",
    "ct_intensity",
    "differences",
    "fine_tune",
    "join_settings",
    "join_stages",
    "keep_other_stage",
    "load_checkpoint",
    "load_encoder",
    "load_settings",
    "load_state_dict",
    "members",
    "released_settings",
    "save_checkpoint",
    "state_dict_in",
    "without_wrappers",
    "z_score_intensity",
]
