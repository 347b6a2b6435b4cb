"""Bundles of an index, downloaded, verified and unpacked; an old version stays until they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlparse

from ..errors import InputError
from ..files import replace_folder
from .archives import check_archive, sha256, unpack_archive
from .checkpoints import load_state_dict
from .contract import WEIGHTS, config
from .download import download, read
from .index import Entry, find_entry, parse_index

RECORD = ".installed.sha256"


def install(
    name: str,
    version: str | None = None,
    index: str | Path = "model_zoo_index.json",
    output: str | Path = ".",
    overwrite: bool = False,
) -> Path:
    """Install a bundle from an index into ``output/name``, and return that folder.

    The archive is verified by its SHA-256 before it is unpacked, its weights before they are
    installed. An installed folder holds a record of its files, in sha256sum's format.

    Args:
        name: the bundle's.
        version: the newest if None.
        index: a file or an address.
        output: the folder that has or will have the bundle's.
        overwrite: replace a folder also where this loses files that were not installed.

    Raises:
        InputError: the index or the archive is unusable or not what the index says, or the folder
            has files that would be lost. What was installed before is as it was.
    """
    text, where = _index_text(str(index)), str(index)
    entry = find_entry(parse_index(text, where), name, version, where)
    if entry.checksum is None:
        raise InputError(
            f"Version {entry.version} of {name} is not released: {where} has no checksum for it, "
            f"and the folder {entry.source} as its source; use it there."
        )
    if len(entry.checksum) != 64:
        raise InputError(
            f"{where} has the checksum {entry.checksum!r} for {name}; allowed are SHA-256."
        )
    target = (Path(output) / name).resolve()
    if target.exists() and not overwrite and (own := list(_own_files(target))):
        raise InputError(
            f"{target} has {len(own)} files that were not installed or have changed, such as "
            f"{own[0]}; --overwrite True replaces the folder with them, --output names another."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        archive = _fetched(entry, target.parent)
        try:
            with TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as folder:
                replace_folder(_unpacked(archive, entry, folder), target)
        finally:
            archive.unlink()
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error}).") from error
    return target


def _index_text(index: str) -> bytes:
    if urlparse(index).scheme in ("http", "https", "file"):
        return read(index)
    if not Path(index).is_file():
        raise InputError(
            f"There is no index {index}; --index names one, as a file or an http or https address."
        )
    return Path(index).read_bytes()


def _own_files(folder: Path) -> Iterator[str]:
    """Files that the record of an installation does not have as they are: the user's."""
    record = folder / RECORD
    lines = record.read_text().splitlines() if record.is_file() else []
    installed = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if file.is_dir() or path == Path(RECORD) or "__pycache__" in path.parts:
            continue
        if installed.get(path.as_posix()) != sha256(file):
            yield path.as_posix()


def _fetched(entry: Entry, folder: Path) -> Path:
    """The entry's archive, downloaded and of its checksum."""
    archive = folder / f".{entry.name}_v{entry.version}.zip.part"
    download(entry.source, archive)
    found = sha256(archive)
    if found != entry.checksum:
        archive.unlink()
        raise InputError(
            f"{entry.source} has SHA-256 {found}, and the index says {entry.checksum}; it is "
            "damaged or was changed, and is not installed."
        )
    return archive


def _unpacked(archive: Path, entry: Entry, folder: str) -> Path:
    """The bundle in an archive, unpacked below a folder, with a record of its files."""
    if (found := check_archive(archive)) != entry.name:
        raise InputError(f"{entry.source} has the bundle {found}; needed is {entry.name}.")
    bundle = unpack_archive(archive, folder)
    version = config(bundle, "metadata").get("version")
    if version != entry.version:
        raise InputError(f"{entry.source} has version {version}; needed is {entry.version}.")
    if (bundle / WEIGHTS).is_file():
        load_state_dict(bundle / WEIGHTS)
    files = sorted(file for file in bundle.rglob("*") if file.is_file())
    record = "".join(f"{sha256(file)}  {file.relative_to(bundle).as_posix()}\n" for file in files)
    (bundle / RECORD).write_text(record, newline="\n")
    return bundle
