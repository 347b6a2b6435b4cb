"""One version of this package per process: bundles that need another are refused."""

from __future__ import annotations

from pathlib import Path

from .. import __version__
from ..errors import InputError


def check_version(required: str) -> None:
    """Check that this package is the version that a bundle was made with.

    Each bundle's ``network_def`` requires this, so that every program that builds the network asks.
    A packed bundle carries its own copy of this package, but Python imports one copy per process:
    where MONAI Label loads several bundles, the first one's serves them all.

    Raises:
        InputError: it is another version.
    """
    if required != __version__:
        raise InputError(
            f"The bundle needs version {required} of the package common, and {__version__} is "
            f"loaded, from {Path(__file__).parents[1]}; bundles that run in one process have to be "
            "of one release: install them all from one."
        )
