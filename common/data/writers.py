"""Image writers that never leave half a file behind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import NibabelWriter, PILWriter

from ..errors import InputError
from ..files import replacing

_logger = logging.getLogger(__name__)


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer; a file appears under its name only when it is complete."""

    def write(self, filename: str | PathLike, verbose: bool = False, **obj_kwargs: object) -> None:
        with _complete(filename) as partial:
            super().write(partial, **obj_kwargs)
        if verbose:
            _logger.info("The mask is in %s", filename)


class AtomicPILWriter(PILWriter):
    """MONAI's PNG writer for maps of classes; a file appears only when it is complete.

    The classes are written as grey levels that a person can tell apart, spread evenly from 0 to
    255 and rounded to whole ones: 0 and 255 for two classes, 0, 128 and 255 for three.

    Args:
        num_classes: 2 to 256, the background among them.
    """

    data_obj: np.ndarray

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        if not 2 <= num_classes <= 256:
            raise ValueError(f"num_classes is {num_classes}; allowed are 2 to 256.")
        super().__init__(**kwargs)
        self.levels = np.linspace(0, 255, num_classes).round().astype(np.uint8)

    def write(self, filename: str | PathLike, verbose: bool = False, **kwargs: object) -> None:
        self.data_obj = self.levels[np.asarray(self.data_obj, np.int64)]
        with _complete(filename) as partial:
            super().write(partial, **kwargs)
        if verbose:
            _logger.info("The mask is in %s", filename)


@contextmanager
def _complete(filename: str | PathLike) -> Iterator[Path]:
    """`replacing`, whose errors are the user's to mend."""
    try:
        with replacing(filename) as partial:
            yield partial
    except OSError as error:
        raise InputError(f"The mask {filename} cannot be written ({error}).") from error
