"""Completion for bash and zsh, from the verbs and their parameters."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterable

from ..collection import known_bundles
from .help import Verbs

_PLAIN = re.compile(r"[\w.-]+")  # of others the shell would run what they say
_COMMAND = "common"
_NAMED = ("name", "names", "bundle")  # parameters that are bundles

# What is completed after an option is its value: a file, unless it is known to be something else.
_SCRIPT = """\
# Completion of {command} in bash and zsh: eval "$(python -m common completion)"
{command}() {{ {python} -m common "$@"; }}
if [ -n "${{ZSH_VERSION-}}" ]; then
    autoload -Uz compinit bashcompinit
    whence compdef > /dev/null || compinit
    bashcompinit
fi
_{command}_words() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
    local verb="${{COMP_WORDS[1]}}" first=2 choices="" bundles="{bundles}"
    case "$verb" in
        {groups}) verb="$verb ${{COMP_WORDS[2]-}}" first=3 ;;
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        choices="{verbs}"
    elif [ "$COMP_CWORD" -lt "$first" ]; then
        case "$verb" in
{members}
        esac
    elif [[ "$previous" == --* && "$current" != -* ]]; then
        case "$previous" in
            {switches}) choices="True False" ;;
            {named}) choices="$bundles" ;;
        esac
    else
        case "$verb" in
{options}
        esac
    fi
    COMPREPLY=( $(compgen -W "$choices" -- "$current") )
}}
complete -o default -F _{command}_words {command}"""


def script(verbs: Verbs) -> str:
    """A script for the shell, which defines the command and completes its words.

    python-fire's own completes no value, neither files nor bundles, and nothing after one.
    """
    every = {name: verb for group in verbs.values() for name, verb in group.items()}
    groups: dict[str, list[str]] = {}
    for name in every:
        first, *second = name.split()
        if second:
            groups.setdefault(first, []).extend(second)
    parameters = [p for verb in every.values() for p in _parameters(verb)]
    return _SCRIPT.format(
        command=_COMMAND,
        python=shlex.quote(sys.executable),
        bundles=" ".join(name for name in known_bundles() if _PLAIN.fullmatch(name)),
        verbs=" ".join(dict.fromkeys(name.split()[0] for name in every)),
        groups="|".join(groups),
        members=_cases({f"{group} ": names for group, names in groups.items()}, '"{}"*'),
        switches="|".join(_options(p for p in parameters if p.annotation == "bool")),
        named="|".join(_options(p for p in parameters if p.name in _NAMED)),
        options=_cases({name: _words(verb) for name, verb in every.items()}, '"{}"'),
    )


def _parameters(verb: Callable[..., None]) -> list[inspect.Parameter]:
    return list(inspect.signature(verb).parameters.values())


def _options(parameters: Iterable[inspect.Parameter]) -> list[str]:
    """Their options, each once."""
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return list(dict.fromkeys(f"--{p.name}" for p in named))


def _words(verb: Callable[..., None]) -> list[str]:
    """What may follow a verb."""
    parameters = _parameters(verb)
    named = ["$bundles"] if any(p.name in _NAMED[:2] for p in parameters) else []
    return [*named, *_options(parameters), "--help"]


def _cases(words: dict[str, list[str]], pattern: str) -> str:
    return "\n".join(
        f'            {pattern.format(name)}) choices="{" ".join(found)}" ;;'
        for name, found in words.items()
    )
