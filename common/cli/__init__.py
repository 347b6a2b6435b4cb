"""The command line: python -m common VERB --help."""

from __future__ import annotations

import errno
import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import fire
from fire.decorators import SetParseFn, SetParseFns
from fire.parser import DefaultParseValue

from ..errors import check_switches, input_error_in
from .bundles import download, info, list_bundles, new_bundle, train
from .check import check
from .checkpoints import convert, export, join, settings
from .completion import script
from .data import ircadb, phantom
from .help import Verbs, help_of, overview
from .output import say
from .results import codebook, compare, evaluate, overlay, profile, report, study, view
from .segment import segment
from .setup import doctor, networks, nnunet, plan
from .words import asks_for_help, check_words, find_verb, split_flags
from .zoo import zoo_index, zoo_pack, zoo_push, zoo_ship, zoo_verify

__all__ = ["VERBS", "main"]


def completion() -> None:
    """Print what completes verbs, options and bundles in bash and zsh.

    In ~/.bashrc or ~/.zshrc: eval "$(python -m common completion)". The command is called common
    there, for short.
    """
    say(script(VERBS))


VERBS: Verbs = {
    "Scans": {"segment": segment},
    "Bundles": {
        "list": list_bundles,
        "info": info,
        "networks": networks,
        "download": download,
        "train": train,
        "new-bundle": new_bundle,
    },
    "Data": {"phantom": phantom, "check": check, "plan": plan, "ircadb": ircadb},
    "Results": {
        "overlay": overlay,
        "view": view,
        "evaluate": evaluate,
        "compare": compare,
        "report": report,
        "study": study,
        "codebook": codebook,
    },
    "Weights": {"settings": settings, "convert": convert, "join": join, "export": export},
    "This machine": {
        "doctor": doctor,
        "profile": profile,
        "nnunet": nnunet,
        "completion": completion,
    },
    "Packing and releasing": {
        "zoo ship": zoo_ship,
        "zoo pack": zoo_pack,
        "zoo verify": zoo_verify,
        "zoo index": zoo_index,
        "zoo install": download,
        "zoo push": zoo_push,
    },
}


def main() -> None:
    verbs = {name: verb for group in VERBS.values() for name, verb in group.items()}
    try:
        words = ["--output" if word == "-o" else word for word in sys.argv[1:]]
        ours = split_flags(words)
        name = find_verb(list(verbs), ours)
        if name is None and ours == words:
            say(overview(_of_group(ours)))
            return
        if name is not None and asks_for_help(ours):
            say(help_of(name, verbs[name]))
            return
        if name is not None and ours == words:  # what follows a -- is not told by the verb
            check_words(name, verbs[name], ours[len(name.split()) :])
        if name is not None:  # which may be typed with _ in place of -
            words[: len(name.split())] = name.split()
        fire.Fire(_nested(verbs), command=words, name="common")
    except Exception as error:
        sentence = input_error_in(error)  # MONAI wraps what its transforms raise
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            sentence = f"{error.filename} cannot be a path ({error.strerror})."
        if isinstance(error, PermissionError) and error.filename:  # as of Path.exists
            sentence = f"{error.filename} cannot be read, or written to ({error.strerror})."
        if sentence is None:
            raise
        sys.exit(f"error: {sentence}")


def _of_group(words: list[str]) -> Verbs:
    """All verbs; after a word that several begin with, such as zoo, these."""
    first = f"{words[0]} " if words else ""
    groups = {
        title: {name: verb for name, verb in group.items() if name.startswith(first)}
        for title, group in VERBS.items()
    }
    found = {title: group for title, group in groups.items() if group}
    return found or VERBS


def _nested(verbs: dict[str, Callable[..., None]]) -> dict[str, Any]:
    """The verbs as python-fire takes them: those of two words in a group."""
    nested: dict[str, Any] = {}
    for name, verb in verbs.items():
        *groups, last = name.split()
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = _typed(verb)
    return nested


def _typed(verb: Callable) -> Callable:
    """A verb whose texts stay what was typed: --output 1234 is a path, and so is a,b.

    Its switches are True or False, and no other word.
    """
    parameters = inspect.signature(verb).parameters.values()
    texts = [p for p in parameters if p.annotation in ("str", "str | None")]
    parse = {p.name: str if p in texts else DefaultParseValue for p in parameters}
    parse |= {p.name: partial(_switch, p.name) for p in parameters if p.annotation == "bool"}
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in texts):
        SetParseFn(str)(verb)  # names in a row, and ids, have no names of their own
    return SetParseFns(**parse)(verb)


def _switch(name: str, text: str) -> bool:
    value = {"True": True, "False": False}.get(text, text)
    check_switches(**{name: value})
    return value is True
