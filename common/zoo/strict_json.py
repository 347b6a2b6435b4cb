"""JSON from elsewhere: one value per name, and no deeper than what reads it can follow."""

from __future__ import annotations

import json
from typing import Any

from ..errors import InputError

_MAX_DEPTH = 100


def parse_json(text: str | bytes, where: str) -> Any:
    """What a JSON text holds; `where` it is from is for messages.

    Raises:
        InputError: it is no JSON, has a name twice in one object, or is nested too deeply.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise InputError(f"{where} has {name!r} twice; allowed is once.")
            found[name] = value
        return found

    too_deep = f"{where} is nested too deeply; allowed are {_MAX_DEPTH} levels."
    try:
        content = json.loads(text, object_pairs_hook=once)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(too_deep) from error
    except ValueError as error:
        raise InputError(f"{where} cannot be read as JSON ({error}).") from error
    level = [content]
    for _ in range(_MAX_DEPTH):
        level = [inner for outer in level for inner in _within(outer)]
    if level:
        raise InputError(too_deep)
    return content


def _within(content: Any) -> list[Any]:
    if isinstance(content, dict):
        return list(content.values())
    return content if isinstance(content, list) else []
