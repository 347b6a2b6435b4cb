"""Downloads that go on where an earlier one ended."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from tqdm import tqdm

from ..errors import InputError
from .archives import MAX_BYTES

_TIMEOUT = 60  # seconds without an answer
_MAX_TEXT = 10 << 20


def check_address(url: str) -> None:
    """Check that an address is http, https, or a file's.

    Raises:
        InputError: it is another.
    """
    if urlparse(url).scheme not in ("http", "https", "file"):
        raise InputError(f"The address is {url!r}; allowed are http, https and file addresses.")


def read(url: str) -> bytes:
    """What is at an address, of 10 MB at most.

    Raises:
        InputError: it cannot be read, or is longer.
    """
    check_address(url)
    try:
        with urlopen(url, timeout=_TIMEOUT) as response:
            content: bytes = response.read(_MAX_TEXT + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(f"{url} cannot be read ({error}).") from error
    if len(content) > _MAX_TEXT:
        raise InputError(f"{url} is longer than {_MAX_TEXT} bytes; allowed are shorter ones.")
    return content


def download(url: str, file: Path) -> None:
    """Download to a file, after what it holds already where the server can continue.

    Raises:
        InputError: the server cannot be reached, or ended early; what came is kept for next time.
    """
    check_address(url)
    done = file.stat().st_size if file.is_file() else 0
    request = Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urlopen(request, timeout=_TIMEOUT) as response:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                done = 0  # the server begins from the start
            length = response.headers.get("Content-Length")
            total = done + int(length) if length else None
            with (
                file.open("ab" if done else "wb") as target,
                tqdm(
                    desc=url.rpartition("/")[2],
                    total=total,
                    initial=done,
                    unit="B",
                    unit_scale=True,
                ) as bar,
            ):
                while block := response.read(1 << 20):
                    target.write(block)
                    done += len(block)
                    bar.update(len(block))
                    if done > MAX_BYTES:
                        raise InputError(f"{url} is longer than {MAX_BYTES} bytes; no bundle is.")
    except HTTPError as error:
        if error.code != 416 or not done:  # 416: there is nothing after what the file holds
            raise InputError(f"{url} cannot be read ({error}).") from error
        return
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{url} cannot be downloaded ({error}); try again to continue.") from error
    if total is not None and done < total:
        raise InputError(
            f"The download of {url} ended after {done} of {total} bytes; try again to continue."
        )
