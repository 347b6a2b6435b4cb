"""Settings that travel: what a training was told, in its checkpoints, for all that use these."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from typing import Any

from monai.bundle import ConfigParser

_logger = logging.getLogger(__name__)
_PLAIN = (str, int, float, bool, type(None))


def running_config() -> ConfigParser:
    """The bundle's config, overrides included, in which the caller is a component.

    MONAI hands components their arguments, and none of them the config; but whatever a config names
    runs inside its parser, which is found among the callers.

    Raises:
        RuntimeError: no config is being resolved.
    """
    frame = inspect.currentframe()
    while frame is not None:
        parser = frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return parser
        frame = frame.f_back
    raise RuntimeError("No bundle's config is being resolved here.")


def running_settings(names: Iterable[str]) -> dict[str, Any]:
    """Values of the running config as plain data, for a checkpoint: numbers, text, lists, dicts.

    References and expressions are resolved, a component stays the dict that describes it (without
    what it ``_requires_`` to be built). A value that is not plain, such as a function, is left out,
    and the log says so.

    Args:
        names: of the config's ids; those that it does not have are left out.
    """
    parser = running_config()
    settings = {}
    for name in names:
        if name in parser:
            try:
                settings[name] = _plain(parser, name, parser[name])
            except TypeError as error:
                _logger.warning(
                    "The setting %s is not kept with the weights (%s): what uses them has to be "
                    "told it again.",
                    name,
                    error,
                )
    return settings


def _plain(parser: ConfigParser, id_: str, value: Any) -> Any:
    if isinstance(value, dict):
        kept = (key for key in value if key != "_requires_")
        return {key: _plain(parser, f"{id_}#{key}", value[key]) for key in kept}
    if isinstance(value, (list, tuple)):
        return [_plain(parser, f"{id_}#{i}", item) for i, item in enumerate(value)]
    if isinstance(value, str) and ("@" in value or value.startswith("$")):
        value = parser.get_parsed_content(id_)
        if isinstance(value, (dict, list, tuple)):
            return _plain(ConfigParser({}), id_, value)
    if not isinstance(value, _PLAIN):
        raise TypeError(f"{id_} is a {type(value).__name__}")
    return value
