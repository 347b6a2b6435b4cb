"""Folders for what is half done: below the output, so that what is complete is moved at once."""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

from ...errors import InputError

JOBS = ".jobs"  # of the output: a folder for each task of a cluster
_PREFIX = ".partial-"
_LOCK, _MACHINE = "in-use.lock", "machine.txt"
_NO_LOCKS = (OSError, NotImplementedError)  # of a file system that has none
_logger = logging.getLogger(__name__)


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """A new folder, which is removed in the end; where the process is killed, see `remove_left`.

    Raises:
        OSError: it cannot be made.
    """
    with TemporaryDirectory(prefix=_PREFIX, dir=output, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        lock = FileLock(folder / _LOCK, timeout=0)
        try:
            if _locked(lock):  # what says so is in use as long as it is locked
                (folder / _MACHINE).write_text(platform.node(), encoding="utf-8")
            yield folder
        finally:
            lock.release()


@contextmanager
def jobs_folder(output: Path) -> Iterator[Path]:
    """The folder for a cluster's tasks, of one run at a time, without those of the run before.

    Raises:
        InputError: another run's tasks are in it.
        OSError: it cannot be made.
    """
    folder = output / JOBS
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        _locked(lock)
    except Timeout as error:
        raise InputError(
            f"The output folder {output} is one into which a cluster is segmenting; allowed is "
            "another one, or to wait for its end."
        ) from error
    try:
        for task in folder.iterdir():
            if task.is_dir():
                shutil.rmtree(task, ignore_errors=True)
        yield folder
    finally:
        lock.release()


def remove_left(output: Path) -> None:
    """Remove what runs into this output left where they were killed, on this machine.

    What another run works in stays, one of a cluster's tasks, too: each holds a lock, which ends
    with its process. Of other machines' it is not known, as not every network's disk shares locks.
    """
    for pattern in (f"{_PREFIX}*", f"{JOBS}/*/{_PREFIX}*"):
        for folder in output.glob(pattern):
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _locked(lock: FileLock) -> bool:
    """Take a lock; whether there is one, which some file systems have not.

    Raises:
        Timeout: it is taken.
    """
    try:
        lock.acquire()
    except Timeout:
        raise
    except _NO_LOCKS as error:
        _logger.debug("%s cannot be locked (%s).", lock.lock_file, error)
        return False
    return True


def _is_left(folder: Path) -> bool:
    try:
        if (folder / _MACHINE).read_text(encoding="utf-8") != platform.node():
            return False
        with FileLock(folder / _LOCK, timeout=0):
            return True
    except (Timeout, UnicodeDecodeError, *_NO_LOCKS):  # in use, or not ours
        return False
