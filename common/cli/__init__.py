"""The command line: python -m common <verb> --help."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

import fire
from fire.decorators import SetParseFn, SetParseFns

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
        groups = {"zoo": {verb.__name__.removeprefix("zoo_"): _typed(verb) for verb in zoo}}
        verbs = {verb.__name__: _typed(verb) for verb in (*before, *after)}
        fire.Fire(verbs | groups, name="common")
    except Exception as error:
        sentence = input_error_in(error)  # MONAI wraps what its transforms raise
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def _typed(verb: Callable) -> Callable:
    """A verb whose texts stay what was typed: --output 1234 is a path, and so is a,b."""
    parameters = inspect.signature(verb).parameters.values()
    texts = [p for p in parameters if p.annotation in ("str", "str | None")]
    if any(p.kind is p.VAR_POSITIONAL for p in texts):
        SetParseFn(str)(verb)  # names in a row have no name of their own
    return SetParseFns(**dict.fromkeys((p.name for p in texts), str))(verb)
