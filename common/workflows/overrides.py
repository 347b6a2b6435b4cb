"""What a bundle's configs may be given, told before they are run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser

from ..errors import InputError, first_line, listed, nearest
from ..files import read_json


def read_configs(files: Sequence[Path]) -> ConfigParser:
    """Configs, the later ones overriding the earlier, as MONAI reads them.

    Raises:
        InputError: one is missing, is no JSON object, or overrides what is not there.
    """
    for file in files:
        read_json(file)  # as MONAI reads it too, but with a sentence for what is wrong
    parser = ConfigParser()
    try:
        parser.read_config([str(file) for file in files])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{listed(files)} cannot be read as configs ({first_line(error)})."
        ) from error
    return parser


def check_id(
    config: ConfigParser, id_: str, whose: str, file: Path, others: Sequence[str] = ()
) -> None:
    """See that a config has an id, or that what it is an argument of takes it.

    Args:
        id_: as typed, with # between its parts.
        whose: who sets it, for the message.
        file: where the config is from, for the message.
        others: names that may be meant beside those of the config.

    Raises:
        InputError: it has not.
    """
    node: Any = config.config
    steps = id_.split("#")
    for depth, step in enumerate(steps):
        if isinstance(node, list) and step.isdecimal() and int(step) < len(node):
            node = node[int(step)]
        elif isinstance(node, dict) and step in node:
            node = node[step]
        elif depth == 0 or step != steps[-1] or not _takes(node, step):
            of = f" of {'#'.join(steps[:depth])}" if depth else ""
            known = [*_names(node), *(others if depth == 0 else ())]
            raise InputError(f"{whose} sets {id_}; {file} has no {step}{of}{nearest(step, known)}.")


def _takes(node: Any, name: str) -> bool:
    """Whether a part of a config may be given what it has not: an argument has a default."""
    if not isinstance(node, dict):
        return False
    parameters = _parameters(node)
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return True
    return name in parameters or name in ("_disabled_", "_mode_", "_requires_")


def _names(node: Any) -> list[str]:
    """The names that a part of a config has, or may have."""
    if not isinstance(node, dict):
        return []
    return [*(x for x in node if x != ConfigParser.meta_key), *(_parameters(node) or ())]


def _parameters(node: dict[str, Any]) -> Mapping[str, inspect.Parameter] | None:
    """What a component is built from; None of what is no component, or cannot be looked at."""
    if "_target_" not in node:
        return None
    try:
        target = ConfigComponent(node, locator=_locator()).resolve_module_name()
        built: Any = locate(target) if isinstance(target, str) else target
        return inspect.signature(built).parameters
    except (ErrorDuringImport, TypeError, ValueError):
        return None


@cache
def _locator() -> ComponentLocator:
    return ComponentLocator()
