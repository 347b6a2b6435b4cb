"""Checkpoint files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, first_line
from ..files import replacing


def save_checkpoint(content: Any, path: str | Path) -> None:
    """Write what torch.save takes; a crash at any moment leaves the old file or the new one.

    Raises:
        InputError: it cannot be written: the disk is full, or the folder is read-only or gone. What
            was there before is there still.
    """
    try:
        with replacing(path) as partial, partial.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"The checkpoint {path} cannot be written ({first_line(error)})."
        ) from error
