"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp


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
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        partial = Path(folder) / target.name
        yield partial
        os.replace(partial, target)


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
