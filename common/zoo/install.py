"""Bundles of an index, downloaded, verified and unpacked; an old version stays until they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from ..collection import default_index
from ..errors import InputError
from ..files import replace_folder
from .archives import check_archive, sha256, unpack_archive
from .contract import config, unsafe_weights
from .download import download, open_partial, read, scheme
from .index import Entry, Index, find_entry, parse_index

RECORD = ".installed.sha256"


def install(
    name: str,
    version: str | None = None,
    index: str | Path | None = None,
    output: str | Path = ".",
    overwrite: bool = False,
) -> Path:
    """Install a bundle from an index into ``output/name``, and return that folder.

    The archive is verified by its SHA-256 before it is unpacked, its weights before they are
    installed. An installed folder holds a record of its files, in sha256sum's format.

    Args:
        name: the bundle's.
        version: the newest if None.
        index: a file or an address; None is `default_index`.
        output: the folder that has or will have the bundle's.
        overwrite: replace a folder also where this loses files that were not installed.

    Raises:
        InputError: the index or the archive is unusable or not what the index says; the folder has
            files that would be lost; or a file or a link is in its place. What was there before is
            as it was.
    """
    where = str(default_index() if index is None else index)
    entry = find_entry(read_index(where), name, version, where)
    _check_released(entry, where)
    target = Path(output).resolve() / name
    _check_nothing_is_lost(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            _fetched(entry, target.parent) as archive,
            TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as folder,
        ):
            bundle = _unpacked(archive, entry, folder)
            _check_nothing_is_lost(target, overwrite)  # the download may have taken a while
            replace_folder(bundle, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({error}).") from error
    return target


def read_index(index: str) -> Index:
    """An index that is a file or at an address.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    if scheme(index) is not None:
        return parse_index(read(index), index)
    if not Path(index).is_file():
        raise InputError(
            f"There is no index {index}; --index names one, as a file or an http or https address."
        )
    return parse_index(read(Path(index).resolve().as_uri()), index)


def _check_released(entry: Entry, where: str) -> None:
    """Check that an entry is that of an archive, and one that its index may name."""
    if entry.checksum is None:
        raise InputError(
            f"Version {entry.version} of {entry.name} is not released: {where} has no checksum for "
            f"it, and the folder {entry.source} as its source; use it there."
        )
    if not re.fullmatch("[0-9a-f]{64}", entry.checksum):
        raise InputError(
            f"{where} has the checksum {entry.checksum!r} for {entry.name}; allowed are SHA-256."
        )
    if scheme(entry.source) == "file" and scheme(where) in ("http", "https"):
        raise InputError(
            f"{where} has the source {entry.source} for {entry.name}; allowed in a downloaded "
            "index are http and https addresses."
        )


def _check_nothing_is_lost(target: Path, overwrite: bool) -> None:
    """Check that a folder that is to be replaced is one, and has no files of the user's."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise InputError(
            f"{target} is a {'link' if target.is_symlink() else 'file'}; allowed is a folder or "
            "nothing: move it, or name another folder for the bundle's by --output."
        )
    if target.exists() and not overwrite and (own := list(_own_files(target))):
        raise InputError(
            f"{target} has {len(own)} files that were not installed or have changed, such as "
            f"{own[0]}; --overwrite True replaces the folder with them, --output names another."
        )


def _own_files(folder: Path) -> Iterator[str]:
    """Files that the record of an installation does not have as they are: the user's."""
    installed = _record(folder)
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if file.is_symlink():
            yield path.as_posix()
            continue
        pythons = file.suffix == ".pyc" and file.parent.name == "__pycache__"
        if file.is_dir() or path == Path(RECORD) or pythons:
            continue
        if not file.is_file() or installed.get(path.as_posix()) != sha256(file):
            yield path.as_posix()


def _record(folder: Path) -> dict[str, str]:
    """The files that were installed in a folder, and their SHA-256; none where none were."""
    record = folder / RECORD
    lines = record.read_text(errors="replace").splitlines() if record.is_file() else []
    return {path: digest for digest, _, path in (line.partition("  ") for line in lines)}


def is_intact(folder: Path) -> bool:
    """Whether all files that were installed in a folder are there as they were."""
    record = _record(folder)
    return bool(record) and all(
        (folder / path).is_file() and sha256(folder / path) == digest
        for path, digest in record.items()
    )


@contextmanager
def _fetched(entry: Entry, folder: Path) -> Iterator[BinaryIO]:
    """The entry's archive, downloaded and of its checksum, while it is needed.

    It stays open from the first byte on, so that what is unpacked is what was verified. What came
    of a download that broke off is kept for the next time.
    """
    path = folder / f".{entry.name}_v{entry.version}.zip.part"
    file, keep = open_partial(path), False
    try:
        with file:
            try:
                download(entry.source, file)
            except BaseException:
                keep = os.fstat(file.fileno()).st_size > 0
                raise
            if (found := sha256(file)) != entry.checksum:
                raise InputError(
                    f"{entry.source} has SHA-256 {found}, and the index says {entry.checksum}; it "
                    "is damaged or was changed, and is not installed."
                )
            yield file
    finally:
        if not keep:
            path.unlink(missing_ok=True)


def _unpacked(archive: BinaryIO, entry: Entry, folder: str) -> Path:
    """The bundle of an entry, from its archive, as `unpack_recorded`."""
    if (found := check_archive(archive)) != entry.name:
        raise InputError(f"{entry.source} has the bundle {found}; needed is {entry.name}.")
    bundle = unpack_recorded(archive, folder)
    version = config(bundle, "metadata").get("version")
    if version != entry.version:
        raise InputError(f"{entry.source} has version {version}; needed is {entry.version}.")
    return bundle


def unpack_recorded(archive: BinaryIO, folder: str | Path) -> Path:
    """The bundle in an archive, unpacked below a folder, with a record of its files.

    Raises:
        InputError: as `unpack_archive`, or its weights hold more than tensors.
    """
    bundle = unpack_archive(archive, folder)
    for unsafe in unsafe_weights(bundle):
        raise InputError(unsafe)
    (bundle / RECORD).unlink(missing_ok=True)  # one of the archive's own says nothing
    files = sorted(file for file in bundle.rglob("*") if file.is_file())
    record = "".join(f"{sha256(file)}  {file.relative_to(bundle).as_posix()}\n" for file in files)
    (bundle / RECORD).write_text(record, newline="\n")
    return bundle
