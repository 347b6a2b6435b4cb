"""Bundles as packages: their contract, zip files, index, download and upload."""

# The configs of bundles find these here.
from ..checkpoints import check_checkpoint, check_stage, keep_other_stage, load_encoder, members
from .catalogue import HEADER, catalogue, catalogue_rows, describe
from .find import find_bundle
from .index import write_index
from .install import install
from .new import new_bundle
from .pack import pack
from .push import push
from .ship import ship
from .verify import verify
from .versions import check_version

__all__ = [
    "HEADER",
    "catalogue",
    "catalogue_rows",
    "check_checkpoint",
    "check_stage",
    "check_version",
    "describe",
    "find_bundle",
    "install",
    "keep_other_stage",
    "load_encoder",
    "members",
    "new_bundle",
    "pack",
    "push",
    "ship",
    "verify",
    "write_index",
]
