"""The bundles that came with this package, and their index."""

from __future__ import annotations

from pathlib import Path

INDEX = "model_zoo_index.json"
_PACKAGE = Path(__file__).parents[1]


def collection() -> Path | None:
    """The folder that has ``bundles`` and their index: installed the package itself, or a checkout.

    (setup.py puts both into the package that it installs.) None in a packed bundle, whose copy of
    the package comes with no other bundle.
    """
    for folder in (_PACKAGE, _PACKAGE.parent):
        if (folder / "bundles").is_dir() and (folder / INDEX).is_file():
            return folder
    return None
