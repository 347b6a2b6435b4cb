"""The command line: python -m common <verb> --help."""

from __future__ import annotations

import sys

import fire

from ..errors import input_error_in
from .check import check
from .checkpoints import convert, export, join
from .data import ircadb, phantom
from .results import codebook, overlay, repeat
from .setup import doctor, plan
from .zoo import zoo_index, zoo_install, zoo_pack, zoo_push, zoo_verify

__all__ = ["main"]


def main() -> None:
    try:
        before = (phantom, ircadb, check, plan, doctor)
        after = (overlay, convert, join, codebook, export, repeat)
        zoo = (zoo_pack, zoo_verify, zoo_index, zoo_install, zoo_push)
        groups = {"zoo": {verb.__name__.removeprefix("zoo_"): verb for verb in zoo}}
        fire.Fire({verb.__name__: verb for verb in (*before, *after)} | groups, name="common")
    except Exception as error:
        sentence = input_error_in(error)  # MONAI wraps what its transforms raise
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")
