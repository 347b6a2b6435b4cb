"""Image writers that never leave half a file behind."""

from __future__ import annotations

import logging
from os import PathLike

from monai.data import NibabelWriter

from ..files import replacing

_logger = logging.getLogger(__name__)


class AtomicNibabelWriter(NibabelWriter):
    """MONAI's NIfTI writer; a file appears under its name only when it is complete."""

    def write(self, filename: str | PathLike, verbose: bool = False, **obj_kwargs: object) -> None:
        with replacing(filename) as partial:
            super().write(partial, **obj_kwargs)
        if verbose:
            _logger.info("The mask is in %s", filename)
