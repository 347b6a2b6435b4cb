"""Files that appear complete or not at all, JSON that is read strictly, and paths as typed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from .errors import InputError

_PARTIAL = ".partial-"  # what folders of files that are being written begin with
_MAX_DEPTH = 100  # of JSON: what reads it has to be able to follow


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path of the same name, which takes the place of `path` in the end.

    It is in a new folder beside `path` that nobody else may write in: nothing can be planted there
    to be written through. After an error the file that was there before is there still, and no
    other.

    Raises:
        FileExistsError: `path` is a link, a folder or a device, which would be lost.
    """
    target = Path(path)
    if target.is_symlink() or (target.exists() and not target.is_file()):
        reason = "it is a link, a folder or a device, and only a file is replaced"
        raise FileExistsError(errno.EEXIST, reason, str(target))
    with TemporaryDirectory(prefix=_PARTIAL, dir=target.parent) as folder:
        partial = Path(folder) / target.name
        yield partial
        os.replace(partial, target)


@contextmanager
def writing(what: str, path: str | os.PathLike[str]) -> Iterator[Path]:
    """As `replacing`, for a file that a user asked for.

    Args:
        what: it is, such as "picture".

    Raises:
        InputError: it cannot be written.
    """
    try:
        with replacing(path) as partial:
            yield partial
    except OSError as error:
        raise InputError(f"The {what} {path} cannot be written ({error.strerror}).") from error


def remove_partial(folder: Path) -> None:
    """Remove what `replacing` left in a folder where its process was killed; nobody else writes."""
    for left in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)


def replace_folder(new: Path, target: Path) -> None:
    """Put a folder in the place of another, if there is one, which after an error is there still.

    Both are on one file system. For an instant, between two renames, there is neither.
    """
    if not target.exists():
        new.rename(target)
        return
    aside = Path(mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    old = aside / target.name
    try:
        target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            old.rename(target)
            raise
    except BaseException:
        if not old.exists():  # where it could not be put back, it is kept there
            aside.rmdir()
        raise
    shutil.rmtree(aside)


def as_typed(name: str, value: Any) -> Any:
    """A path as it was typed after ``--NAME``.

    The command line of MONAI's bundles makes numbers of 1234, 1e3 and 2024_01, a tuple of a,b, and
    data of data#1. Configs have this around each path that a user may give; in other programs, and
    where nothing was typed, it is `value` itself.
    """
    from fire.parser import DefaultParseValue

    words = sys.argv[1:]
    for index, word in reversed(list(enumerate(words))):
        flag, equals, text = word.partition("=")
        if flag.startswith("--") and flag[2:].replace("-", "_") == name and value is not None:
            text = text if equals else "".join(words[index + 1 : index + 2])
            return text if DefaultParseValue(text) == value else value
    return value


def as_word(value: Any) -> str:
    """What to type after ``--NAME`` for the command line of MONAI's bundles to read `value`.

    None is typed as an expression: MONAI leaves out a None that is typed as such.
    """
    from fire.parser import DefaultParseValue

    if value is None:
        return "$None"
    text = value if isinstance(value, str) else repr(value)
    return text if DefaultParseValue(text) == value else repr(value)


def read_bytes(file: Path) -> bytes:
    """What a file holds.

    Raises:
        InputError: it is missing, or cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"The file {file} cannot be read ({error.strerror}).") from error


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Write a JSON object, see `as_json`.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    with replacing(path) as partial:
        partial.write_text(as_json(content) + "\n", encoding="utf-8")


def as_json(content: Mapping[str, Any]) -> str:
    """A JSON object as a person would write a config: one name a line."""
    lines = [f"    {json.dumps(str(name))}: {json.dumps(x)}" for name, x in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def read_json(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        InputError: as `read_bytes`, or it is no JSON object as `parse_json` wants it.
    """
    loaded = parse_json(read_bytes(file), str(file))
    if not isinstance(loaded, dict):
        raise InputError(f"{file} holds a {type(loaded).__name__}; allowed is a JSON object.")
    return loaded


def parse_json(text: str | bytes, where: str) -> Any:
    """What a JSON text holds; `where` it is from is for messages.

    Raises:
        InputError: it is no JSON, has a name twice in one object, or is nested too deeply.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise InputError(f"{where} has {name!r} twice; allowed is once.")
            found[name] = value
        return found

    too_deep = f"{where} is nested too deeply; allowed are {_MAX_DEPTH} levels."
    try:
        content = json.loads(text, object_pairs_hook=once)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(too_deep) from error
    except ValueError as error:
        raise InputError(f"{where} cannot be read as JSON ({error}).") from error
    level = [content]
    for _ in range(_MAX_DEPTH):
        level = [inner for outer in level for inner in _within(outer)]
    if level:
        raise InputError(too_deep)
    return content


def _within(content: Any) -> list[Any]:
    if isinstance(content, dict):
        return list(content.values())
    return content if isinstance(content, list) else []
