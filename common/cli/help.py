"""What verbs are for, and a line for each of their options, from their docstrings.

A docstring has, after what it says, sections with the options: a title for their purpose, and below
it, indented, ``name: what it is``. A name in capitals is one that is typed without its dashes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

Verbs = Mapping[str, Mapping[str, Callable[..., None]]]  # by purpose, by name

_TITLE = re.compile(r"([A-Z][\w ]*):")
_OPTION = re.compile(r"    (\w+): (.+)")


class Option(NamedTuple):
    """An option of a verb.

    Attributes:
        name: of the parameter.
        typed: what stands on the command line.
        text: what it is.
        needed: whether there is no default.
    """

    name: str
    typed: str
    text: str
    needed: bool


def overview(verbs: Verbs) -> str:
    """All verbs, a line each."""
    width = max(len(name) for group in verbs.values() for name in group)
    lines = [
        "Mamba segmentation networks as MONAI bundles: find, train, use, measure and share them.",
        "",
        "  python -m common VERB --help    says what a verb takes",
        "  python -m common completion     completes verbs, options and bundles in your shell",
    ]
    for title, group in verbs.items():
        lines += ["", title]
        lines += [f"  {name:{width}}  {_first_line(verb)}" for name, verb in group.items()]
    return "\n".join(lines)


def help_of(name: str, verb: Callable[..., None]) -> str:
    """What a verb does, and its options, a line each, by their purpose."""
    groups = options(verb)
    every = [option for group in groups.values() for option in group]
    width = max((len(option.typed) for option in every), default=0)
    usage = ["python -m common", name]
    for option in every:
        if option.needed:
            value = f" {option.name.upper()}" if option.typed.startswith("--") else ""
            usage.append(f"{option.typed}{value}")
        elif not option.typed.startswith("--"):
            usage.append(f"[{option.typed}]")
    if any(not option.needed for option in every):
        usage.append("[--option value ...]")
    lines = [" ".join(usage), "", *_prose(verb)]
    for title, group in groups.items():
        lines += ["", title]
        lines += [f"  {option.typed:{width}}  {option.text}" for option in group]
    return "\n".join(lines)


def options(verb: Callable[..., None]) -> dict[str, list[Option]]:
    """The options of a verb by their purpose, in the order of its docstring."""
    parameters = inspect.signature(verb).parameters
    found: dict[str, list[Option]] = {}
    for line in _lines(verb)[len(_prose(verb)) :]:
        if title := _TITLE.fullmatch(line):
            group = found.setdefault(title[1], [])
        elif option := _OPTION.fullmatch(line):
            group.append(_option(parameters[option[1].lower()], *option.groups()))
        elif line:  # what goes on from the line before
            group[-1] = group[-1]._replace(text=f"{group[-1].text} {line.strip()}")
    return {
        title: [x._replace(text=x.text.rstrip(".") + _default(parameters[x.name])) for x in group]
        for title, group in found.items()
    }


def _option(parameter: inspect.Parameter, written: str, text: str) -> Option:
    several = parameter.kind is parameter.VAR_POSITIONAL
    typed = f"--{parameter.name}"
    if parameter.kind is parameter.VAR_KEYWORD:
        return Option(parameter.name, "--ID VALUE", text, False)
    if written.isupper():
        typed = f"{written} ..." if several else written
    return Option(parameter.name, typed, text, several or parameter.default is parameter.empty)


def _default(parameter: inspect.Parameter) -> str:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return ""
    if parameter.default is parameter.empty:
        return " (needed)"
    return "" if parameter.default is None else f" [{parameter.default}]"


def _lines(verb: Callable[..., None]) -> list[str]:
    return (inspect.getdoc(verb) or "").splitlines()


def _first_line(verb: Callable[..., None]) -> str:
    return _lines(verb)[0].rstrip(".")


def _prose(verb: Callable[..., None]) -> list[str]:
    """A docstring's lines before its options."""
    lines = _lines(verb)
    for number, line in enumerate(lines):
        if _TITLE.fullmatch(line) and _OPTION.fullmatch((lines[number + 1 :] or [""])[0]):
            lines = lines[:number]
            break
    while lines and not lines[-1]:
        lines.pop()
    return lines
