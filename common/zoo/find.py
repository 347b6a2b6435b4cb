"""Bundles by name, by folder and by zip file."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from ..collection import known_bundles, places
from ..errors import InputError, nearest
from ..files import replace_folder
from ..ops.native import cache_folder
from .archives import check_archive, differs_from_checksum, sha256
from .install import is_intact, unpack_recorded


def find_bundle(name: str | Path) -> Path:
    """A bundle's folder: by its path, by the path of its zip file, or by its name.

    A name is looked for in the current folder, in ``bundles`` there, and in the collection that
    came with this package. A zip file is verified as `install` does, by the checksum beside it if
    there is one, and unpacked once, into the user's cache: a folder to read from, which may be
    removed at any time.

    Raises:
        InputError: there is no such bundle; or the zip file is unusable, has another checksum than
            the file beside it says, or has weights that hold more than tensors.
    """
    path = Path(name)
    if path.is_file():
        return _unpacked(path)
    for place in places() if path.name == str(path) else [Path()]:
        if (place / path / "configs").is_dir():
            return (place / path).resolve()
    if path.is_dir():
        raise InputError(f"{path} is no bundle: it has no folder configs; needed is one with it.")
    known = nearest(str(name), known_bundles())
    raise InputError(f"There is no bundle {name}, by its name, folder or zip file{known}.")


def _unpacked(path: Path) -> Path:
    try:
        archive = path.open("rb")  # once: what is hashed is what is unpacked
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    with archive:
        if failures := differs_from_checksum(path, archive):
            raise InputError(f"{failures[0]}; it is damaged or was changed.")
        check_archive(archive)
        try:
            return _cached(archive, _private(cache_folder() / "bundles") / sha256(archive))
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
            raise InputError(
                f"{path} cannot be unpacked into the cache ({error}); unpack it yourself, or set "
                "XDG_CACHE_HOME to a folder of yours."
            ) from error


def _cached(archive: BinaryIO, folder: Path) -> Path:
    """The bundle of an archive in a folder of its own, where another process may unpack it, too."""
    bundle = folder / check_archive(archive)
    if is_intact(bundle):
        return bundle
    folder.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=folder) as temporary:
        new = unpack_recorded(archive, temporary)
        try:
            if not is_intact(bundle):  # else another process was faster
                replace_folder(new, bundle)
        except OSError:
            if not is_intact(bundle):
                raise
    return bundle


def _private(folder: Path) -> Path:
    """The folder, made if need be: nobody else may put a bundle there, whose configs are code."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if os.name == "posix" and (
        status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise PermissionError(f"others may write in {folder}")
    return folder
