"""What bundles there are, on this machine and in an index, and what each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ..collection import default_index, known_bundles
from ..errors import InputError
from .contract import WEIGHTS, compared, config
from .find import find_bundle
from .index import entries, names_in
from .install import read_index
from .pack import files_of

HEADER = ("bundle", "task", "version", "weights", "size", "released")
_NONE = "none"


class Listing(NamedTuple):
    """A bundle, as its files and an index tell.

    Attributes:
        name: of its folder.
        folder: None where it is in the index alone; then the following are not known.
        task, version: as its metadata.json has them.
        weights: bytes of its models/model.pt, if it has one.
        size: bytes of its configs, docs and weights.
        released: versions that the index has to download, the newest first.
        problem: why its files cannot be read, if so.
    """

    name: str
    folder: Path | None
    task: str
    version: str
    weights: int | None
    size: int | None
    released: list[str]
    problem: str | None


def catalogue(index: str | Path | None = None) -> list[Listing]:
    """All bundles that `find_bundle` finds by a name or an index lists, by their names.

    Args:
        index: a file or an address; None is `default_index`, if there is one.

    Raises:
        InputError: the index is named and cannot be read, or is none.
    """
    found, released = known_bundles(), _released(index)
    return [
        _listing(name, found.get(name), released.get(name, []))
        for name in sorted(found.keys() | released.keys())
    ]


def catalogue_rows(listings: Sequence[Listing]) -> list[tuple[str, ...]]:
    """A row of text for each bundle, under `HEADER`."""
    return [
        (
            x.name,
            x.task or "-",
            x.version or "-",
            "-" if x.size is None else _bytes(x.weights),
            "-" if x.size is None else _bytes(x.size),
            ", ".join(x.released) or _NONE,
        )
        for x in listings
    ]


def describe(name: str, index: str | Path | None = None) -> dict[str, list[str]]:
    """What a bundle is, does and takes, from its files: lines of text by what they are about.

    Args:
        name: see `find_bundle`; or the name of one that is in the index alone.
        index: as of `catalogue`.

    Raises:
        InputError: there is no such bundle, or its metadata.json or the index cannot be read.
    """
    released = _released(index)
    try:
        folder = find_bundle(name)
    except InputError:
        if not released.get(name):
            raise
        return {
            "bundle": [name],
            "released": released[name],
            "folder": [f"not on this machine; python -m common download {name}"],
        }
    metadata = config(folder, "metadata")
    version = _text(metadata, "version")
    changed = _part(metadata, "changelog").get(version)
    formats = _part(metadata, "network_data_format")
    image = _part(formats, "inputs", "image")
    names = _part(formats, "outputs", "pred", "channel_def")
    shape = " x ".join(_several(image, "spatial_shape"))
    weights = folder / WEIGHTS
    licence = _text(metadata, "weights_license")
    lines = {
        "bundle": [folder.name],
        **{key: [_text(metadata, key)] for key in ("task", "organ", "modality", "description")},
        "version": [f"{version} ({changed})" if changed else version],
        "released": [", ".join(released.get(folder.name, [])) or _NONE],
        "image": [f"channels: {_text(image, 'num_channels')}; at once: {shape}" if image else ""],
        "classes": [", ".join(f"{number} {label}" for number, label in names.items())],
        "weights": [
            f"{WEIGHTS}, {_bytes(weights.stat().st_size)}{licence and f', {licence}'}"
            if weights.is_file()
            else "none: train it, or download a version that is released with weights"
        ],
        "compared": [", ".join(name.rpartition("/")[2] for name in compared(folder))],
        "data": [_text(metadata, "data_source")],
        "use": [_text(metadata, "intended_use")],
        "papers": _several(metadata, "references"),
        "folder": [str(folder)],
    }
    return {key: found for key, found in lines.items() if any(found)}


def _released(index: str | Path | None) -> dict[str, list[str]]:
    """The versions that an index has to download, the newest first, by their bundles."""
    if index is None and not default_index().is_file():
        return {}
    where = str(default_index() if index is None else index)
    content = read_index(where)
    found = {
        name: [x.version for x in reversed(entries(content, name)) if x.checksum is not None]
        for name in names_in(content)
    }
    return {name: versions for name, versions in found.items() if versions}


def _listing(name: str, folder: Path | None, released: list[str]) -> Listing:
    if folder is None:
        return Listing(name, None, "", "", None, None, released, None)
    weights = folder / WEIGHTS
    try:
        metadata = config(folder, "metadata")
        size = sum(file.stat().st_size for file in files_of(folder))
    except (InputError, OSError) as error:
        return Listing(name, folder, "", "", None, None, released, str(error))
    return Listing(
        name,
        folder,
        _text(metadata, "task"),
        _text(metadata, "version"),
        weights.stat().st_size if weights.is_file() else None,
        size,
        released,
        None,
    )


def _part(content: Any, *keys: str) -> dict[str, Any]:
    """An object within objects; of anybody's metadata.json it may be missing, or anything."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else {}


def _text(content: dict[str, Any], key: str) -> str:
    value = content.get(key)
    return "" if value is None else str(value)


def _several(content: dict[str, Any], key: str) -> list[str]:
    values = content.get(key)
    return [str(value) for value in values] if isinstance(values, list) else []


def _bytes(number: int | None) -> str:
    return _NONE if number is None else str(tqdm.format_sizeof(number, "B"))
