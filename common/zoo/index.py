"""The index of a zoo: every version of every bundle, its checksum, and where it is.

The format is that of MONAI's model zoo, ``{"<name>_v<version>": {"checksum": …, "source": …}}``,
with SHA-256 as checksums. A version that is not released has none, and its source is its folder.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import zipfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..errors import InputError, nearest
from ..files import parse_json, replacing
from .archives import DAMAGE, check_archive, is_portable, sha256
from .contract import config
from .download import ADDRESSES, scheme
from .versions import SEMANTIC, is_prerelease, precedence

Index = dict[str, dict[str, str]]
_KEY = re.compile(rf"([A-Za-z0-9_-]+)_v({SEMANTIC})")
_MAX_METADATA = 10 << 20


class Entry(NamedTuple):
    """One version of a bundle in an index."""

    name: str
    version: str
    source: str
    checksum: str | None


def parse_index(text: str | bytes, where: str) -> Index:
    """The index in a JSON text; `where` it is from is for messages.

    Raises:
        InputError: it is none.
    """
    index = parse_json(text, where)
    if not isinstance(index, dict):
        raise InputError(f"{where} holds a {type(index).__name__}; allowed is an index of bundles.")
    for key, entry in index.items():
        found = _KEY.fullmatch(key)
        if (
            not found
            or not is_portable(found[1])
            or not isinstance(entry, dict)
            or not isinstance(entry.get("source"), str)
            or not isinstance(entry.get("checksum", ""), str)
        ):
            raise InputError(
                f"{where} has the entry {reprlib.repr(key)}: {reprlib.repr(entry)}; allowed are "
                "names as spleen_ct_segmentation_v0.1.0, with a source and a checksum."
            )
        # Of a version that is not released the source is a folder.
        if "checksum" in entry and scheme(entry["source"]) is None:
            raise InputError(
                f"{where} has for {key} the source {reprlib.repr(entry['source'])}; {ADDRESSES}."
            )
    return index


def find_entry(index: Index, name: str, version: str | None, where: str) -> Entry:
    """A bundle's entry: of that version, or of the newest that is released.

    Of those that are released, one before a release, such as 1.0.0-rc.1, only if there is no other.
    Its checksum is in lower case.

    Raises:
        InputError: the bundle or the version is not in the index.
    """
    found = entries(index, name)
    if not found:
        raise InputError(f"{where} has no bundle {name}{nearest(name, names_in(index))}.")
    if version is None:
        return found[-1]
    for entry in found:
        if entry.version == version:
            return entry
    versions = ", ".join(entry.version for entry in found)
    raise InputError(f"{where} has no version {version} of {name}; it has {versions}.")


def names_in(index: Index) -> list[str]:
    """The names of an index's bundles."""
    return sorted({found[1] for key in index if (found := _KEY.fullmatch(key))})


def entries(index: Index, name: str) -> list[Entry]:
    """A bundle's versions: those that are not released, those before a release, the others.

    Each of these from the oldest to the newest.
    """
    found = [
        Entry(match[1], match[2], entry["source"], _checksum(entry))
        for key, entry in index.items()
        if (match := _KEY.fullmatch(key)) and match[1] == name
    ]
    return sorted(
        found,
        key=lambda entry: (
            entry.checksum is not None,
            not is_prerelease(entry.version),
            precedence(entry.version),
        ),
    )


def _checksum(entry: dict[str, str]) -> str | None:
    return entry["checksum"].lower() if "checksum" in entry else None


def write_index(
    output: str | Path,
    zips: str | Path | None = None,
    base_url: str | None = None,
    bundles: str | Path | None = None,
) -> Index:
    """Add packed bundles, and those that are not released yet, to an index; others stay in it.

    Args:
        output: the index; it is made if there is none.
        zips: a folder with what `pack` wrote.
        base_url: address of the folder in which these zip files will be.
        bundles: a folder of bundles; of versions that are not released, their folders are listed.

    Raises:
        InputError: an argument is missing or unusable; a version is in the index already, with
            another checksum: what was released does not change; or the index cannot be written.
    """
    output = Path(output)
    if zips is None and bundles is None:
        raise InputError("Neither zips nor bundles is given; needed is one of them or both.")
    index = parse_index(output.read_bytes(), str(output)) if output.is_file() else {}
    if zips is not None:
        if scheme(str(base_url)) is None:
            raise InputError(f"base_url is {base_url}; {ADDRESSES}.")
        archives = sorted(Path(zips).glob("*.zip"))
        if not archives:
            raise InputError(f"There is no zip file in {zips}; `zoo pack` writes them.")
        for archive in archives:
            key, checksum = _packed_version(archive)
            known = _checksum(index.get(key, {}))
            if known not in (None, checksum):
                raise InputError(
                    f"{archive} has SHA-256 {checksum}, and {output} has {known} for {key}; a "
                    "version does not change once it is released: raise it in metadata.json."
                )
            source = f"{str(base_url).rstrip('/')}/{quote(archive.name)}"
            index[key] = {"checksum": checksum, "source": source}
    if bundles is not None:
        _list_unreleased(index, Path(bundles), output)
    text = json.dumps(dict(sorted(index.items())), indent=4) + "\n"
    try:
        with replacing(output) as partial:
            partial.write_text(text, newline="\n")
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error}).") from error
    return index


def _list_unreleased(index: Index, bundles: Path, output: Path) -> None:
    """List each bundle's folder as the source of its version, where that is not released."""
    folders = [file.parents[1] for file in sorted(bundles.glob("*/configs/metadata.json"))]
    if not folders:
        raise InputError(f"There is no bundle in {bundles}; allowed is a folder of bundles.")
    for key in [key for key, entry in index.items() if "checksum" not in entry]:
        del index[key]
    for folder in folders:
        source = os.path.relpath(folder, output.parent).replace(os.sep, "/")
        index.setdefault(_key(folder.name, config(folder, "metadata")), {"source": source})


def _packed_version(archive: Path) -> tuple[str, str]:
    """The key of a packed bundle, from what is in it, and its checksum."""
    try:
        with archive.open("rb") as file:
            name, checksum = check_archive(file), sha256(file)
            with zipfile.ZipFile(file) as content:
                member = content.open(f"{name}/configs/metadata.json")
                text = member.read(_MAX_METADATA)
    except (KeyError, *DAMAGE) as error:
        raise InputError(f"{archive} has no configs/metadata.json of a bundle.") from error
    key = _key(name, parse_json(text, f"{archive}'s metadata.json"))
    if f"{key}.zip" != archive.name:
        raise InputError(f"{archive} holds {key}; allowed is the name {key}.zip.")
    return key, checksum


def _key(name: str, metadata: object) -> str:
    version = metadata.get("version") if isinstance(metadata, dict) else None
    key = f"{name}_v{version}"
    if not _KEY.fullmatch(key):
        raise InputError(f"{name} has the version {version}; allowed are such as 0.1.0.")
    return key
