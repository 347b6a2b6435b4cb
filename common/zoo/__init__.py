"""Checkpoints and bundles of the model zoo."""

from .bundles import load_for_export, load_trained
from .cascade import check_stage, join_stages, keep_other_stage
from .checkpoints import check_checkpoint, convert_checkpoint, load_encoder, load_state_dict
from .export import FORMS, export_network
from .index import write_index
from .install import install
from .pack import find_bundle, pack
from .push import push
from .repeat import run_with_seeds
from .verify import verify
from .versions import check_version

__all__ = [
    "FORMS",
    "check_checkpoint",
    "check_stage",
    "check_version",
    "convert_checkpoint",
    "export_network",
    "find_bundle",
    "install",
    "join_stages",
    "keep_other_stage",
    "load_encoder",
    "load_for_export",
    "load_state_dict",
    "load_trained",
    "pack",
    "push",
    "run_with_seeds",
    "verify",
    "write_index",
]
