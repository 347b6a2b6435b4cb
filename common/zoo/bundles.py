"""Trained networks, as a bundle's inference config builds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser
from torch import nn

from ..errors import InputError
from .checkpoints import check_checkpoint, load_state_dict


class Trained(NamedTuple):
    """A network with its parameters, on its device, and what its images must go through."""

    network: nn.Module
    preprocessing: Callable
    patch_size: list[int]


def load_trained(
    config_file: str | Path, checkpoint: str | Path, overrides: dict[str, Any] | None = None
) -> Trained:
    """Build a bundle's network and preprocessing, and load a checkpoint.

    Args:
        config_file: an inference config with the ids network, preprocessing and patch_size.
        checkpoint: see `load_state_dict`.
        overrides: values for ids of the config, such as ``{"network_def#num_prototypes": 128}``.

    Raises:
        InputError: the config cannot be read, has no such id, or builds a network that the
            checkpoint does not fit.
    """
    file = Path(config_file)
    if not file.is_file():
        raise InputError(
            f"There is no config {file}; needed is a bundle's inference.json, by --config_file."
        )
    parser = ConfigParser()
    try:
        parser.read_config(file)
    except ValueError as error:
        raise InputError(f"{file} cannot be read as a bundle's config ({error}).") from error
    for name in (*(overrides or {}), *Trained._fields):
        if name.partition("#")[0] not in parser.config:
            raise InputError(
                f"{file} has no {name}; it has {', '.join(str(key) for key in parser.config)}."
            )
    parser.update(overrides or {})
    trained = Trained(*(parser.get_parsed_content(name) for name in Trained._fields))
    check_checkpoint(checkpoint, trained.network)
    trained.network.load_state_dict(load_state_dict(checkpoint))
    return trained
