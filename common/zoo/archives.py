"""Zip files of bundles: the same bytes for the same content, and nothing outside their folder.

Functions that read take a path, or a file that is open: then what one of them checks is what the
next one reads, whatever has its name by then.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from ..files import replacing

File = str | Path | BinaryIO

MAX_BYTES = 8 << 30  # of an archive and of what it unpacks to: no bundle comes near
_MAX_MEMBERS = 10_000
_MAX_RATIO = 200  # of unpacked to packed bytes; text reaches 20
# What zipfile raises for archives that are damaged or of a kind that it does not know.
DAMAGE = (
    *(OSError, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
# What Python imports without a source to read.
COMPILED = re.compile(r"\.(py[cdo]|so(\.\d+)*|dylib|dll|egg|whl)\Z", re.IGNORECASE)
# Names that Windows cannot hold, shortens, or takes for devices, whatever their ending.
_NOT_PORTABLE = re.compile(
    r'[<>"|?*\x00-\x1f\x7f]|[. ]\Z|\A(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|\Z)',
    re.IGNORECASE,
)


@contextmanager
def _opened(file: File) -> Iterator[BinaryIO]:
    """A file from its beginning; it is closed in the end if this opened it."""
    if isinstance(file, (str, Path)):
        with open(file, "rb") as content:
            yield content
    else:
        file.seek(0)
        yield file


def _path(file: File) -> str:
    return str(file if isinstance(file, (str, Path)) else file.name)


def sha256(file: File) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with _opened(file) as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def differs_from_checksum(path: Path, archive: BinaryIO) -> list[str] | None:
    """How an archive differs from the checksum in the file beside it; None if there is none."""
    file = path.with_name(f"{path.name}.sha256")
    if not file.exists():
        return None
    try:
        wanted = file.read_text(errors="replace")
    except OSError as error:
        return [f"{file.name} cannot be read ({error})"]
    found = sha256(archive)
    if wanted.lower().split()[:1] == [found]:
        return []
    return [f"{path.name} has SHA-256 {found}, and {file.name} says {wanted.strip()[:64]}"]


def write_archive(path: str | Path, members: Mapping[str, Path]) -> str:
    """Write a zip file whose bytes depend on nothing but the names and contents of its members.

    Members are sorted, of one date and one permission, and stored: weights hardly compress, and
    the output of compression differs between versions of zlib.

    Args:
        path: it appears complete or not at all.
        members: names in the archive and the files with their contents.

    Returns:
        Its SHA-256.

    Raises:
        InputError: a name is one that `check_archive` refuses.
    """
    entries = [zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)) for name in sorted(members)]
    for entry in entries:
        entry.create_system = 3  # Unix, also where this is not
        entry.external_attr = (stat.S_IFREG | 0o644) << 16
        entry.file_size = members[entry.filename].stat().st_size
    _check_members(str(path), entries)
    with replacing(path) as partial, partial.open("x+b") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for entry in entries:
                with (
                    members[entry.filename].open("rb") as source,
                    archive.open(entry, "w") as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)
        return sha256(file)


def check_archive(archive: File) -> str:
    """Check that an archive can be unpacked without harm, and name the one folder that is in it.

    Raises:
        InputError: it is no zip file; or a member is outside the folder, is neither a file nor a
            folder, has a name that some system cannot hold or takes for another's, or occurs
            twice; or the whole is too large. Nothing is written.
    """
    path = _path(archive)
    try:
        with _opened(archive) as file, zipfile.ZipFile(file) as content:
            members = content.infolist()
            packed = file.seek(0, os.SEEK_END)
    except DAMAGE as error:
        raise InputError(f"{path} cannot be read as a zip file ({error}).") from error
    size = sum(member.file_size for member in members)
    allowed = min(MAX_BYTES, _MAX_RATIO * packed)
    if size > allowed or len(members) > _MAX_MEMBERS:
        raise InputError(
            f"{path} would unpack to {size} bytes in {len(members)} files; allowed are {allowed} "
            f"in {_MAX_MEMBERS}, for an archive of its size."
        )
    return _check_members(path, members)


def _check_members(path: str, members: Iterable[zipfile.ZipInfo]) -> str:
    """Check the members of an archive one by one and beside each other, and name their folder."""
    # What some system takes for one path -> the path as it is first, and whether it is a folder.
    seen: dict[str, tuple[str, bool]] = {}
    folders = set()
    for member in members:
        name = member.filename
        if unsafe := _unsafe(member):
            raise InputError(
                f"{path} has the member {name!r}, {unsafe}; allowed are files below one folder."
            )
        parts = name.removesuffix("/").split("/")
        for depth in range(1, len(parts) + 1):
            part, is_folder = "/".join(parts[:depth]), depth < len(parts) or member.is_dir()
            key = _folded(part)
            if key in seen and (not is_folder or seen[key] != (part, True)):
                raise InputError(
                    f"{path} has the member {name!r} twice, on some systems or on all: the other "
                    f"is {seen[key][0]!r}; allowed is once."
                )
            seen[key] = part, is_folder
        if len(parts) == 1 and not member.is_dir():
            raise InputError(f"{path} has the file {name!r} beside its folder.")
        folders.add(parts[0])
    if len(folders) != 1:
        found = ", ".join(sorted(folders)) or "none"
        raise InputError(f"{path} has the folders {found}; allowed is one, with the bundle's name.")
    return folders.pop()


def _folded(path: str) -> str:
    """What all paths share that are one where case and composed letters make no difference."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _unsafe(member: zipfile.ZipInfo) -> str | None:
    """Why a member may not be unpacked, if so."""
    # Windows takes backslashes and drives for what they are there, so they are refused everywhere.
    if member.filename.startswith("/") or "\\" in member.filename or ":" in member.filename:
        return "which is an absolute path or one of another system"
    parts = member.filename.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "which may lead outside the folder"
    if not all(is_portable(part) for part in parts):
        return "which Windows cannot hold or takes for another file or a device"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "which is a link or a device"
    if COMPILED.search(member.filename):
        return "which is compiled code"
    if member.flag_bits & 0x1:
        return "which is encrypted"
    return None


def is_portable(name: str) -> bool:
    """Whether the name of a file or folder means the same on Windows."""
    return _NOT_PORTABLE.search(name) is None


def unpack_archive(archive: File, folder: str | Path) -> Path:
    """Unpack an archive below a folder, and return what it unpacked: the bundle's folder.

    Raises:
        InputError: as `check_archive`, before anything is written; or a member is damaged.
    """
    try:
        with _opened(archive) as file:
            bundle = Path(folder) / check_archive(file)
            with zipfile.ZipFile(file) as content:
                for member in content.infolist():
                    target = Path(folder) / member.filename
                    if member.is_dir():
                        target.mkdir(parents=True, exist_ok=True)
                        continue
                    target.parent.mkdir(parents=True, exist_ok=True)
                    # No more than its file_size is read. Its permissions are not taken over.
                    with content.open(member) as source, target.open("xb") as unpacked:
                        shutil.copyfileobj(source, unpacked, 1 << 20)
    except DAMAGE as error:
        raise InputError(f"{_path(archive)} cannot be unpacked ({error}).") from error
    return bundle
