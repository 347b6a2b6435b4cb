"""Zip files of bundles: the same bytes for the same content, and nothing outside their folder."""

from __future__ import annotations

import hashlib
import shutil
import stat
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..files import replacing

MAX_BYTES = 8 << 30  # of an archive and of what it unpacks to: no bundle comes near
_MAX_MEMBERS = 10_000
_MAX_RATIO = 200  # of unpacked to packed bytes; text reaches 20
# What zipfile raises for archives that are damaged or of a kind that it does not know.
_DAMAGE = (OSError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError)


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_archive(path: str | Path, members: Mapping[str, Path]) -> None:
    """Write a zip file whose bytes depend on nothing but the names and contents of its members.

    Members are sorted, of one date and one permission, and stored: weights hardly compress, and
    the output of compression differs between versions of zlib.

    Args:
        path: it appears complete or not at all.
        members: names in the archive and the files with their contents.
    """
    with replacing(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, also where this is not
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.file_size = members[name].stat().st_size
            with members[name].open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def check_archive(path: str | Path) -> str:
    """Check that an archive can be unpacked without harm, and name the one folder that is in it.

    Raises:
        InputError: it is no zip file; or a member is outside the folder, is neither a file nor a
            folder, or occurs twice; or the whole is too large. Nothing is written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as a zip file ({error}).") from error
    folders, seen = set(), set()
    for member in members:
        name = PurePosixPath(member.filename)
        if unsafe := _unsafe(member):
            raise InputError(
                f"{path} has the member {member.filename!r}, {unsafe}; allowed are files below "
                "one folder."
            )
        if str(name).casefold() in seen:
            raise InputError(f"{path} has the member {member.filename!r} twice; allowed is once.")
        seen.add(str(name).casefold())
        if len(name.parts) == 1 and not member.is_dir():
            raise InputError(f"{path} has the file {member.filename!r} beside its folder.")
        folders.add(name.parts[0])
    if len(folders) != 1:
        found = ", ".join(sorted(folders)) or "none"
        raise InputError(f"{path} has the folders {found}; allowed is one, with the bundle's name.")
    size = sum(member.file_size for member in members)
    allowed = min(MAX_BYTES, _MAX_RATIO * Path(path).stat().st_size)
    if size > allowed or len(members) > _MAX_MEMBERS:
        raise InputError(
            f"{path} would unpack to {size} bytes in {len(members)} files; allowed are {allowed} "
            f"in {_MAX_MEMBERS}, for an archive of its size."
        )
    return folders.pop()


def _unsafe(member: zipfile.ZipInfo) -> str | None:
    """Why a member may not be unpacked, if so."""
    # Windows takes backslashes and drives for what they are there, so they are refused everywhere.
    if member.filename.startswith("/") or "\\" in member.filename or ":" in member.filename:
        return "which is an absolute path or one of another system"
    parts = member.filename.removesuffix("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "which may lead outside the folder"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "which is a link or a device"
    if member.filename.endswith((".pyc", ".so", ".pyd")):
        return "which is compiled code"
    if member.flag_bits & 0x1:
        return "which is encrypted"
    return None


def unpack_archive(path: str | Path, folder: str | Path) -> Path:
    """Unpack an archive below a folder, and return what it unpacked: the bundle's folder.

    Raises:
        InputError: as `check_archive`, before anything is written; or a member is damaged.
    """
    bundle = Path(folder) / check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                target = Path(folder) / member.filename
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                # No more than its file_size is read. Its permissions are not taken over.
                with archive.open(member) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except _DAMAGE as error:
        raise InputError(f"{path} cannot be unpacked ({error}).") from error
    return bundle
