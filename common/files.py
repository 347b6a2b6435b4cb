"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, of the same ending, that takes its place in the end.

    After an error the file that was there before is there still, and no other.
    """
    target = Path(path)
    partial = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def replace_folder(new: Path, target: Path) -> None:
    """Put a folder in the place of another, if there is one, which after an error is there still.

    Both are on one file system. For an instant, between two renames, there is neither.
    """
    old = target.with_name(f".{os.getpid()}.{target.name}")
    existed = target.exists()
    if existed:
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if existed:
            old.rename(target)
        raise
    if existed:
        shutil.rmtree(old)
