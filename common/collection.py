"""The bundles that came with this package, and those of the current folder.

Nothing is imported here that takes time: what the shell completes is looked up by this.
"""

from __future__ import annotations

from pathlib import Path

INDEX = "model_zoo_index.json"
_PACKAGE = Path(__file__).parent


def collection() -> Path | None:
    """The folder that has ``bundles`` and their index: this package, or the checkout around it.

    (setup.py puts both into the package that it installs.) None in a packed bundle, whose copy of
    the package comes with no other bundle.
    """
    for folder in (_PACKAGE, _PACKAGE.parent):
        if (folder / "bundles").is_dir() and (folder / INDEX).is_file():
            return folder
    return None


def places() -> list[Path]:
    """Where a bundle's name is looked for: here, in ``bundles`` here, and in the collection."""
    ours = collection()
    return [Path(), Path("bundles"), *([ours / "bundles"] if ours else [])]


def known_bundles() -> dict[str, Path]:
    """The bundles of these `places` by their names, and their folders."""
    found: dict[str, Path] = {}
    for place in places():
        for file in sorted(place.glob("*/configs/metadata.json")):
            found.setdefault(file.parents[1].name, file.parents[1].resolve())
    return dict(sorted(found.items()))


def default_index() -> Path:
    """The index of the current folder, or else the collection's."""
    ours = collection()
    return ours / INDEX if ours and not Path(INDEX).is_file() else Path(INDEX)
