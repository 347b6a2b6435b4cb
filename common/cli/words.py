"""The words of a command line, looked at before a verb works: python-fire calls it first."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence

from ..errors import InputError, listed, nearest

_FLAG = re.compile(r"--|-[A-Za-z]")  # what python-fire takes for an option; -1 is a number
_HELP = ("--help", "-h")


def split_flags(words: Sequence[str]) -> list[str]:
    """The words that are ours: those after a -- are python-fire's own."""
    return list(words[: words.index("--")] if "--" in words else words)


def asks_for_help(words: Sequence[str]) -> bool:
    return any(word in _HELP for word in words)


def find_verb(names: Sequence[str], words: Sequence[str]) -> str | None:
    """The verb that a command line begins with, of one word or two; None where it names none.

    Raises:
        InputError: it begins with a word that no verb begins with.
    """
    if not words or words[0] in _HELP:
        return None
    typed = [word.replace("-", "_") for word in words[:2]]
    known = {name.replace("-", "_"): name for name in names}
    for name in (" ".join(typed), typed[0]):
        if name in known:
            return known[name]
    members = [name for name in names if name.startswith(f"{typed[0]} ")]
    if not members:
        raise InputError(f"There is no verb {words[0]}{nearest(words[0], names)}.")
    if len(words) > 1 and words[1] not in _HELP:
        first = f"{typed[0]} "
        close = nearest(words[1], [name.removeprefix(first) for name in members], prefix=first)
        raise InputError(f"There is no verb {first}{words[1]}{close}.")
    return None


def check_words(name: str, verb: Callable[..., None], words: Sequence[str]) -> None:
    """Refuse what a verb does not know, and tell what it lacks.

    Args:
        name: of the verb.
        words: those after it.

    Raises:
        InputError: there is a word or an option too many, or one is missing.
    """
    parameters = inspect.signature(verb).parameters
    kinds = {p.kind for p in parameters.values()}
    named = {
        p.name: p for p in parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    given, loose = _given(name, named, words, inspect.Parameter.VAR_KEYWORD in kinds)
    several = inspect.Parameter.VAR_POSITIONAL in kinds
    by_place = [p.name for p in named.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    open_places = [] if several else [x for x in by_place if x not in given]
    if loose[len(open_places) :] and not several:
        raise InputError(
            f"{name} takes no further word, and there is {listed(loose[len(open_places) :])}; "
            f"allowed are options, which begin with --, and `python -m common {name} --help` lists "
            "them."
        )
    given |= set(open_places[: len(loose)])
    missing = [x for x, p in named.items() if p.default is p.empty and x not in given]
    if missing:
        raise InputError(
            f"{name} needs {' and '.join(f'--{x}' for x in missing)}; `python -m common {name} "
            "--help` says what that is."
        )


def _given(
    name: str, named: Mapping[str, inspect.Parameter], words: Sequence[str], more: bool
) -> tuple[set[str], list[str]]:
    """The parameters that options name, and the words that are none, as python-fire reads them.

    Args:
        more: whether any other option is allowed, too.
    """
    given: set[str] = set()
    loose: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not _FLAG.match(word):
            loose.append(word)
            continue
        typed, equals, _ = word.lstrip("-").partition("=")
        key = typed.replace("-", "_")
        alone = not equals and (not rest or _FLAG.match(rest[0]) is not None)
        short = [x for x in named if len(key) == 1 and x.startswith(key)]
        if alone and key not in named and key.startswith("no") and key[2:] in named:
            key = key[2:]  # --noprivate
        elif key not in named and not more and len(short) == 1:
            key = short[0]
        elif key not in named and not more:
            raise InputError(f"{name} has no --{typed}{nearest(key, named, prefix='--')}.")
        given.add(key)
        if not (equals or alone):
            rest.pop(0)
    return given, loose
