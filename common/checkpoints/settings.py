"""The settings in a checkpoint: data from anywhere, of which nothing runs that training has not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ComponentLocator
from monai.transforms import Transform
from torch import nn

from ..errors import InputError, first_line
from .load import load_checkpoint

# What may be built from them: classes that work on tensors and open no file, with arguments whose
# text is a word (a norm, a mode, a key), and no path, address, expression or reference.
_PLACES = {
    nn.Module: ("common.networks.", "monai.networks.nets."),
    Transform: (
        *("monai.transforms.intensity.", "monai.transforms.compose."),
        "monai.transforms.spatial.",
    ),
}
# Which call what torchvision has under a name, with any arguments.
_BY_NAME = ("monai.networks.nets.torchvision_fc.", "monai.networks.nets.milmodel.")
# Arguments by which a network fetches weights from a file or an address.
_FETCHES = re.compile(r"pretrained.*|weights.*|checkpoint|file.*|.*(download|url|repo_).*")
_WORD = re.compile(r"[\w -]*")
_RUNS = re.compile(r"[$%]|.*@", re.DOTALL)  # an expression, a macro, or a reference
_MAX_DEPTH = 20
_ABSENT = "no value"  # of an id that one of two settings has not


def load_settings(path: str | Path) -> dict[str, Any]:
    """Read what a training wrote of its settings beside the weights, without running any code.

    Ids of the training's config and their values, plain data as in JSON; a component is the dict
    that describes it. They are under "settings", or an attribute of the state dict of that name.
    Empty where the checkpoint has none.

    Raises:
        InputError: as `load_state_dict`; or the settings are no plain data.
    """
    content = load_checkpoint(path, mmap=True)
    settings = getattr(content, "settings", {})
    if isinstance(content, Mapping):
        settings = content.get("settings", settings)
    if not isinstance(settings, dict) or not _is_plain(settings):
        raise InputError(
            f"The settings in {path} are not what a training wrote; allowed are numbers, text, "
            "lists and dicts by their ids."
        )
    return settings


def _is_plain(value: Any, depth: int = _MAX_DEPTH) -> bool:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return value is None or isinstance(value, (str, int, float))


def differences(id_: str, first: Any, second: Any) -> Iterator[tuple[str, Any, Any]]:
    """Ids at which two settings differ, and what they have there; lists and tuples are alike."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in {**first, **second}:
            inner = f"{id_}#{key}" if id_ else str(key)
            yield from differences(inner, first.get(key, _ABSENT), second.get(key, _ABSENT))
    elif _as_lists(first) != _as_lists(second):
        yield id_, first, second


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


class _Refused(Exception):
    """A value that may do what it should not: its id, the value, and what is allowed."""


def check_setting(id_: str, value: Any, given: bool = False) -> None:
    """Check that nothing of a setting would run as code in a config, but what may be built.

    Nor fetch weights, which a network's argument may do, or its default.

    Args:
        given: whether a user typed it, and no checkpoint has it: so the sentence is.

    Raises:
        InputError: something would.
    """
    try:
        _check_setting(id_, value)
    except _Refused as refused:
        place, found, allowed = refused.args
        does = f"{found!r} as {place}, which might run any code or fetch any file"
        if given:
            raise InputError(f"You gave {does}; allowed are {allowed}.") from None
        raise InputError(
            f"The checkpoint's settings have {does}; allowed are {allowed}. If you trust it, give "
            f"--{place.partition('#')[0]} yourself."
        ) from None


def _check_setting(id_: str, value: Any) -> None:
    if isinstance(value, dict) and "_target_" in value:
        kind = _class_of(id_, value["_target_"])
        if issubclass(kind, nn.Module):
            defaults = inspect.signature(kind).parameters.values()
            given = {x.name: x.default for x in defaults if x.default is not x.empty} | value
            for name, argument in given.items():
                _check_fetches(f"{id_}#{name}", name, argument)
        for key, inner in value.items():
            if key != "_target_":
                if str(key).startswith("_"):  # as _mode_, by which MONAI builds otherwise
                    raise _Refused(f"{id_}#{key}", inner, "arguments")
                _check_argument(f"{id_}#{key}", inner)
    elif isinstance(value, (dict, list, tuple)):
        for key, inner in _items(value):
            _check_setting(id_, key)
            _check_setting(f"{id_}#{key}", inner)
    elif isinstance(value, str) and _RUNS.match(value):
        raise _Refused(id_, value, "data without $, % and @")


def build_setting(id_: str, value: Any, **overrides: Any) -> Any:
    """Build the component that a setting describes, with other values for some arguments.

    Raises:
        InputError: it is none that may be built, or does not take these arguments.
    """
    check_setting(id_, value)
    if not isinstance(value, dict) or "_target_" not in value:
        raise InputError(
            f"The checkpoint's settings have {value!r} as {id_}; allowed are a network or a "
            f"transform. Give --{id_} yourself."
        )
    try:
        return _built({**value, **overrides})
    except Exception as error:
        raise InputError(
            f"{id_} cannot be built as the checkpoint's settings have it ({first_line(error)}); "
            f"give --{id_} yourself."
        ) from error


def _built(value: Any) -> Any:
    if isinstance(value, dict):
        arguments = {key: _built(inner) for key, inner in value.items() if key != "_target_"}
        return _class_of("", value["_target_"])(**arguments) if "_target_" in value else arguments
    return [_built(item) for item in value] if isinstance(value, (list, tuple)) else value


def _check_argument(id_: str, value: Any) -> None:
    if isinstance(value, dict) and "_target_" in value:
        _check_setting(id_, value)
    elif isinstance(value, (dict, list, tuple)):
        for key, inner in _items(value):
            _check_fetches(f"{id_}#{key}", key, inner)
            _check_argument(f"{id_}#{key}", inner)
    elif isinstance(value, str) and not _WORD.fullmatch(value):
        raise _Refused(id_, value, "words")


def _check_fetches(id_: str, name: Any, value: Any) -> None:
    if value and _FETCHES.fullmatch(str(name)):
        raise _Refused(id_, value, "False and None: the weights are the checkpoint's")


def _items(value: dict | list | tuple) -> Any:
    return value.items() if isinstance(value, dict) else enumerate(value)


def class_named(target: Any) -> type | None:
    """The class of that name, as MONAI finds it, if it is one that settings may build."""
    path = str(target)
    if "." not in path:
        modules = ComponentLocator().get_component_module_name(path) or ""
        path = f"{modules if isinstance(modules, str) else modules[0]}.{path}"
    # To look elsewhere would be to import what is there, and so to run it.
    found = locate(path) if path.startswith(("common.networks.", "monai.")) else None
    for kind, places in _PLACES.items():
        if (
            isinstance(found, type)
            and issubclass(found, kind)
            and f"{found.__module__}.".startswith(places)
            and not f"{found.__module__}.".startswith(_BY_NAME)
        ):
            return found
    return None


def _class_of(id_: str, target: Any) -> type:
    if found := class_named(target):
        return found
    raise _Refused(
        id_,
        target,
        "the networks of common.networks and of monai.networks.nets, but for those of torchvision, "
        "and MONAI's intensity and spatial transforms",
    )
