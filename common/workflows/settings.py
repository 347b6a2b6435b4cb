"""Settings that travel: what a training was told, in its checkpoints, for all that use these."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

from ..checkpoints import build_setting, check_setting, differences, load_settings
from ..errors import InputError
from ..files import write_json

_logger = logging.getLogger(__name__)
_PLAIN = (str, int, float, bool, type(None))
_AS_TRAINED = "common.workflows.as_trained"
_OF_AS_TRAINED = ("_target_", "settings", "name", "default")


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


def running_settings(names: Iterable[str], **used: Any) -> dict[str, Any]:
    """Values of the running config as plain data, for a checkpoint: numbers, text, lists, dicts.

    References and expressions are resolved, a component stays the dict that describes it (without
    what it ``_requires_`` to be built). A value that is not plain, such as a function, is left out,
    and the log says so.

    Args:
        names: of the config's ids; those that it does not have are left out.
        used: values of some of them in place of the config's, where a training uses another than
            it was told, such as a size that is rounded.
    """
    parser = running_config()
    settings = {}
    for name in names:
        if name in parser:
            try:
                settings[name] = _plain(parser, name, used.get(name, parser[name]))
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


def read_settings(checkpoint: str | Path | Sequence[str | Path]) -> dict[str, Any]:
    """The settings of the training that wrote a checkpoint, for a config that uses it.

    The config's ids refer to them, ``"$@settings.get('spacing', [1.5, 1.5, 2.0])"``, and its
    components are built by `as_trained`. What a user gives in place of such a reference counts, and
    the log says where it differs.

    Args:
        checkpoint: a file; or those of an ensemble, which were trained alike. Where there is none,
            or it has no settings, the config's own hold.

    Raises:
        InputError: as `load_settings`; the members of an ensemble differ; or a value that is used
            would run as code.
    """
    files = [Path(path) for path in ensure_tuple(checkpoint)]
    if missing := [str(file) for file in files if not file.is_file()]:
        _logger.warning(
            "There is no checkpoint %s: the settings are the config's own.", ", ".join(missing)
        )
        return {}
    settings, *others = (load_settings(file) for file in files)
    for file, other in zip(files[1:], others, strict=True):
        if found := next(differences("", settings, other), None):
            id_, first, second = found
            raise InputError(
                f"{id_} is {first} in {files[0]} and {second} in {file}; allowed are checkpoints "
                "that were trained with the same settings."
            )
    if not settings:
        _logger.warning("%s has no settings of its training: the config's own hold.", files[0])
        return {}
    parser = running_config()
    references = set(_references(parser.config))
    for id_ in sorted(references - settings.keys()):
        _logger.warning("%s says nothing of %s: the config's own holds.", files[0], id_)
    for id_ in (used := sorted(references & settings.keys())):
        check_setting(id_, settings[id_])
    _logger.info("As %s was trained: %s.", files[0], ", ".join(used) or "nothing")
    for id_, given, trained in _given(parser, settings):
        _logger.warning("%s is %s as given; %s was trained with %s.", id_, given, files[0], trained)
    return settings


def as_trained(
    settings: Mapping[str, Any], name: str, default: Callable[..., Any], **overrides: Any
) -> Any:
    """Build a component of a config as a training had it, or else as the config has it.

    Args:
        settings: those of the training, see `read_settings`.
        name: the component's id in them.
        default: builds the config's own from keyword arguments (``"_mode_": "callable"``).
        overrides: arguments that are given in place of either's.

    Raises:
        InputError: as `build_setting`.
    """
    if name in settings:
        return build_setting(name, settings[name], **overrides)
    return default(**overrides)


def with_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the values that it has from a checkpoint, so that it needs none.

    Raises:
        InputError: such a value would run as code.
    """
    parser = ConfigParser({**config, "settings": {}})
    for id_ in _references(config):
        if id_ in settings:
            check_setting(id_, settings[id_])
            given = parser[id_]
            more = _overrides(given) if _is_as_trained(given) else {}
            parser[id_] = {**settings[id_], **more} if more else settings[id_]
    return dict(parser.config)


def write_settings(path: str | Path, settings: Mapping[str, Any]) -> None:
    """Write settings as a config, to be given after others; complete or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_json(path, settings)


def _references(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Ids of a config whose values are a checkpoint's."""
    for key, value in config.items():
        if _is_as_trained(value) or (isinstance(value, str) and value.startswith("$@settings.")):
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping):
            yield from _references(value, f"{prefix}{key}#")


def _is_as_trained(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("_target_") == _AS_TRAINED


def _overrides(component: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in component.items() if key not in _OF_AS_TRAINED}


def _given(parser: ConfigParser, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What a config has in place of a checkpoint's values, and these, where they differ."""
    known = ConfigParser(
        {**parser.config, "settings": "$settings_"}, globals={"settings_": dict(settings)}
    )
    references = set(_references(parser.config))
    for name, trained in settings.items():
        if name not in parser or (name in references and not _is_as_trained(parser[name])):
            continue
        given, kept = parser[name], trained
        if name in references:
            given = _overrides(given)
            kept = {key: trained[key] for key in given if key in trained}
        try:
            given = _plain(known, name, given)
        except TypeError as error:  # what was trained with is data
            given = str(error)
        yield from differences(name, given, kept)
