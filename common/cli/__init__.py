"""The command line: python -m common <verb> --help."""

from __future__ import annotations

import errno
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import fire
from fire.decorators import SetParseFn, SetParseFns
from fire.parser import DefaultParseValue

from ..errors import InputError, check_switches, input_error_in
from .check import check
from .checkpoints import convert, export, join, settings
from .data import ircadb, phantom
from .results import codebook, compare, evaluate, overlay, profile, report, study
from .segment import segment
from .setup import doctor, nnunet, plan
from .zoo import zoo_index, zoo_install, zoo_pack, zoo_push, zoo_verify

__all__ = ["main"]


def main() -> None:
    try:
        before = (phantom, ircadb, check, plan, nnunet, doctor)
        results = (overlay, evaluate, compare, report, profile, study)
        after = (*results, settings, convert, join, codebook, export)
        zoo = (zoo_pack, zoo_verify, zoo_index, zoo_install, zoo_push)
        groups = {"zoo": {verb.__name__.removeprefix("zoo_"): _typed(verb) for verb in zoo}}
        verbs = {verb.__name__: _typed(verb) for verb in (segment, *before, *after)}
        words = ["--output" if word == "-o" else word for word in sys.argv[1:]]
        _check_flags(verbs | groups, words)
        fire.Fire(verbs | groups, command=words, name="common")
    except Exception as error:
        sentence = input_error_in(error)  # MONAI wraps what its transforms raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            sentence = f"{error.filename} cannot be a path ({error.strerror})."
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def _typed(verb: Callable) -> Callable:
    """A verb whose texts stay what was typed: --output 1234 is a path, and so is a,b.

    Its switches are True or False, and no other word.
    """
    parameters = inspect.signature(verb).parameters.values()
    texts = [p for p in parameters if p.annotation in ("str", "str | None")]
    parse = {p.name: str if p in texts else DefaultParseValue for p in parameters}
    parse |= {p.name: partial(_switch, p.name) for p in parameters if p.annotation == "bool"}
    if any(p.kind is p.VAR_POSITIONAL for p in texts):
        SetParseFn(str)(verb)  # names in a row have no name of their own
    return SetParseFns(**parse)(verb)


def _switch(name: str, text: str) -> bool:
    value = {"True": True, "False": False}.get(text, text)
    check_switches(**{name: value})
    return value is True


def _check_flags(verbs: Mapping[str, Any], words: Sequence[str]) -> None:
    """Refuse what a verb does not know before it works: python-fire calls it first."""
    verb: Any = verbs
    for word in words[:2]:
        if isinstance(verb, Mapping) and word in verb:
            verb = verb[word]
    if isinstance(verb, Mapping):
        return
    parameters = inspect.signature(verb).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    known = {*parameters, *(f"no{name}" for name in parameters), "help"}
    for word in words:
        name = word[2:].partition("=")[0].replace("-", "_")
        if word.startswith("--") and name not in known:
            if name == "":
                return  # what follows is python-fire's own
            raise InputError(
                f"{verb.__name__} has no --{name}; it has "
                f"{', '.join(f'--{parameter}' for parameter in parameters) or 'no arguments'}."
            )
