"""Trained networks, as a bundle's inference config builds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser
from torch import nn

from ..checkpoints import check_checkpoint, load_settings, load_state_dict
from ..errors import InputError, are_numbers, nearest
from ..files import read_json
from .settings import with_settings


class Trained(NamedTuple):
    """A network with its parameters, on its device, and what its images must go through."""

    network: nn.Module
    preprocessing: Callable
    patch_size: list[int]


class Exportable(NamedTuple):
    """A network with its parameters, the size of an image for it, and its bundle's files."""

    network: nn.Module
    size: list[int]
    config: dict[str, Any]
    metadata: dict[str, Any] | None


def load_trained(
    config_file: str | Path, checkpoint: str | Path, overrides: dict[str, Any] | None = None
) -> Trained:
    """Build a bundle's network and preprocessing, and load a checkpoint.

    Args:
        config_file: an inference config with the ids network, preprocessing and patch_size.
        checkpoint: see `load_state_dict`; a bundle's config takes the settings from it.
        overrides: values for ids of the config, such as ``{"network_def#num_prototypes": 128}``.

    Raises:
        InputError: the config cannot be read, has no such id, or builds a network that the
            checkpoint does not fit.
    """
    parser = _read_config(config_file, checkpoint, overrides, Trained._fields)
    trained = Trained(*(parser.get_parsed_content(name) for name in Trained._fields))
    _check_size("patch_size", trained.patch_size)
    _load(trained.network, checkpoint)
    return trained


def load_for_export(
    config_file: str | Path, checkpoint: str | Path, overrides: dict[str, Any] | None = None
) -> Exportable:
    """Build a bundle's network and load a checkpoint; the size is its patch_size or image_size.

    The config in the result has the checkpoint's settings in it, and needs none.

    Raises:
        InputError: as `load_trained`.
    """
    parser = _read_config(config_file, checkpoint, overrides, ("network_def",))
    name = next((name for name in ("patch_size", "image_size") if name in parser.config), None)
    if name is None:
        raise InputError(f"{config_file} has no patch_size and no image_size; needed is one.")
    size = parser.get_parsed_content(name)
    _check_size(name, size)
    network = parser.get_parsed_content("network_def")
    _load(network, checkpoint)
    metadata = Path(config_file).with_name("metadata.json")
    config = {name: x for name, x in parser.config.items() if name != ConfigParser.meta_key}
    return Exportable(
        network,
        list(size),
        with_settings(config, load_settings(checkpoint)),
        read_json(metadata) if metadata.is_file() else None,
    )


def _read_config(
    config_file: str | Path,
    checkpoint: str | Path,
    overrides: dict[str, Any] | None,
    needed: Sequence[str],
) -> ConfigParser:
    """A config for a checkpoint, with overrides of its ids.

    Raises:
        InputError: the config cannot be read, or lacks an id that is needed or overridden.
    """
    file = Path(config_file)
    if not file.is_file():
        raise InputError(
            f"There is no config {file}; needed is a bundle's inference.json, by --config_file."
        )
    parser = ConfigParser()
    if file.suffix.casefold() == ".json":
        read_json(file)  # as MONAI reads it too, but with a sentence for what is wrong
    try:
        parser.read_config(file)
    except ValueError as error:
        raise InputError(f"{file} cannot be read as a bundle's config ({error}).") from error
    for name in (*(overrides or {}), *needed):
        if name.partition("#")[0] not in parser.config:
            known = [str(key) for key in parser.config if key != ConfigParser.meta_key]
            raise InputError(f"{file} has no {name}{nearest(name.partition('#')[0], known)}.")
    if "settings" in parser.config:
        parser["checkpoint"] = str(checkpoint)
    parser.update(overrides or {})
    return parser


def _check_size(name: str, size: Any) -> None:
    if not are_numbers(size, least=1, whole=True):
        raise InputError(
            f"{name} is {size!r}; allowed are whole numbers from 1, one for each axis."
        )


def _load(network: nn.Module, checkpoint: str | Path) -> None:
    check_checkpoint(checkpoint, network)
    network.load_state_dict(load_state_dict(checkpoint))
