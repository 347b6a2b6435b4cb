"""Downloads that go on where an earlier one ended."""

from __future__ import annotations

import logging
import os
import stat
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from ..errors import InputError
from .archives import MAX_BYTES

ADDRESSES = "allowed are http, https and file addresses, such as https://example.org/a.zip"
_TIMEOUT = 60  # seconds without an answer
_MAX_TEXT = 10 << 20
_logger = logging.getLogger(__name__)


def scheme(address: str) -> str | None:
    """Whether an address is "http", "https" or "file"; None if it is another, or is none."""
    if not (address.isascii() and address.isprintable()) or " " in address:
        return None  # urllib would leave some of it out
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        return None
    if parts.scheme == "file" or (parts.scheme in ("http", "https") and parts.hostname):
        return parts.scheme
    return None


def _answer(url: str, headers: dict[str, str]) -> Any:
    """What urllib's urlopen gives, from an address that is allowed and leads to none that is not.

    Raises:
        InputError: it is or does.
    """
    if scheme(url) is None:
        raise InputError(f"The address is {url!r}; {ADDRESSES}.")
    response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    if scheme(response.url) is None:
        response.close()
        raise InputError(f"{url} leads to the address {response.url!r}; {ADDRESSES}.")
    return response


def read(url: str) -> bytes:
    """What is at an address, of 10 MB at most; if it came over plain http, the log warns of it.

    Raises:
        InputError: it cannot be read, or is longer.
    """
    try:
        with _answer(url, {}) as response:
            content: bytes = response.read(_MAX_TEXT + 1)
            schemes = scheme(url), scheme(response.url)
    except InputError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"{url} cannot be read ({error}).") from error
    if len(content) > _MAX_TEXT:
        raise InputError(f"{url} is longer than {_MAX_TEXT} bytes; allowed are shorter ones.")
    if "http" in schemes:
        _logger.warning(
            f"{url} came over http, so that it and the checksums in it may have been changed on "
            "the way: use https."
        )
    return content


def open_partial(path: Path) -> BinaryIO:
    """Open a file to download into, for reading and writing: a new one, or that of an earlier time.

    Raises:
        InputError: what is there is a link or a device, has another name too, is another user's or
            for others to write; or another process downloads into it.
    """
    return open(path, "r+b", opener=_claimed)


def _claimed(path: str, flags: int) -> int:
    """A descriptor of a file that nobody else has written, or writes while it is open."""
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode=0o600)
    except FileExistsError:
        descriptor = _reopened(path, flags)
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise InputError(f"Another process downloads to {path}; wait for its end.") from error
        except OSError:
            pass  # the file system has no locks, and a download needs none to be verified
    return descriptor


def _reopened(path: str, flags: int) -> int:
    there = os.lstat(path)
    if stat.S_ISREG(there.st_mode):
        descriptor = os.open(path, flags)
        found = os.fstat(descriptor)
        # Elsewhere than on POSIX the numbers of users and permissions say nothing.
        private = os.name != "posix" or (
            found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        )
        if os.path.samestat(there, found) and found.st_nlink == 1 and private:
            return descriptor
        os.close(descriptor)
    raise InputError(
        f"{path} is no download of yours; remove it: it is a link, or others may have written it."
    )


def download(url: str, file: BinaryIO) -> None:
    """Download into a file, after what it holds already where the server can continue.

    Raises:
        InputError: the server cannot be reached, or ended early; what came is kept for next time.
    """
    done = file.seek(0, os.SEEK_END)
    try:
        with _answer(url, {"Range": f"bytes={done}-"} if done else {}) as response:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                done = file.seek(0)  # the server begins from the start
                file.truncate()
            length = response.headers.get("Content-Length")
            total = done + int(length) if length else None
            with tqdm(
                desc=url.rpartition("/")[2], total=total, initial=done, unit="B", unit_scale=True
            ) as bar:
                while block := response.read(1 << 20):
                    file.write(block)
                    done += len(block)
                    bar.update(len(block))
                    if done > MAX_BYTES:
                        file.truncate(0)
                        raise InputError(f"{url} is longer than {MAX_BYTES} bytes; no bundle is.")
    except HTTPError as error:
        if error.code != 416 or not done:  # 416: there is nothing after what the file holds
            raise InputError(f"{url} cannot be read ({error}).") from error
        return
    except InputError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"{url} cannot be downloaded ({error}); try again to continue.") from error
    if total is not None and done < total:
        raise InputError(
            f"The download of {url} ended after {done} of {total} bytes; try again to continue."
        )
