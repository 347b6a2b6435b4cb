"""Pages of one file, which open without a network: templates, and what made a page."""

from __future__ import annotations

import base64
import hashlib
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..errors import InputError, how_to_install

if TYPE_CHECKING:
    from jinja2 import Template

_PACKAGES = (
    *("torch", "monai", "numpy", "scipy", "scikit-image", "nibabel", "matplotlib", "jinja2"),
)


def template(name: str) -> Template:
    """A template of this folder.

    Raises:
        InputError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise InputError(f"A page needs jinja2: {how_to_install('study')}.") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names are anybody's
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "base64": lambda data: base64.b64encode(data).decode(),
        "digest": _digest,
        "number": lambda value: "" if math.isnan(value) else f"{value:.10g}",
    }
    return environment.get_template(name)


def _digest(script: str) -> str:
    """What the page's policy allows to run: this script and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def versions() -> str:
    """What this package and those that it stands on are, for a page's foot."""
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return f"monai-mamba-bundles {__version__}, Python {platform.python_version()}, {packages}"
