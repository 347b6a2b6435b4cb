"""Versions: their order, and one of this package per process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

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


_NUMBER = r"(?:0|[1-9][0-9]*)"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
# Three numbers, what comes before their release, and which build it is (semver.org, 2 to 10).
SEMANTIC = (
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}"
    rf"(?:-{_IDENTIFIER}(?:\.{_IDENTIFIER})*)?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)


def precedence(version: str) -> tuple[Any, ...]:
    """A key by which semantic versions sort from the oldest to the newest (semver.org, 11).

    Raises:
        InputError: it is none.
    """
    if not re.fullmatch(SEMANTIC, version):
        raise InputError(
            f"The version is {version!r}; allowed are semantic versions, such as 0.1.0."
        )
    release, _, before = version.partition("+")[0].partition("-")
    return _key(release), not before, _key(before)


def is_prerelease(version: str) -> bool:
    """Whether a semantic version is one before a release, such as 1.0.0-rc.1."""
    return "-" in version.partition("+")[0]


def _key(identifiers: str) -> list[tuple[bool, int, str]]:
    """Numbers by their size, which their digits tell, and before words."""
    return [(False, len(x), x) if x.isdigit() else (True, 0, x) for x in identifiers.split(".")]
