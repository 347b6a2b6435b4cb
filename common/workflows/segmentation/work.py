"""Folders for what is half done: below the output, so that what is complete is moved at once."""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from filelock import FileLock, Timeout

TASK = "task.json"  # in the folder of each task of a cluster: what it is to do
JOBS, _PREFIX = ".jobs-", ".partial-"  # what the folders begin with
_LOCK, _MACHINE = "in-use.lock", "machine.txt"
_IDS = ("/etc/machine-id", "/proc/sys/kernel/random/boot_id")
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
        with _in_use(folder):
            yield folder


@contextmanager
def jobs_folder(output: Path) -> Iterator[Path]:
    """A new folder, for one of each task of this run on a cluster; it stays, with their logs.

    Those of runs before, of this machine, are removed, but where a task may still be at work.

    Raises:
        OSError: it cannot be made.
    """
    for folder in output.glob(f"{JOBS}*"):
        if _is_left(folder):
            _remove_tasks(folder)
    folder = Path(mkdtemp(prefix=JOBS, dir=output))
    with _in_use(folder):
        yield folder


def remove_left(output: Path) -> None:
    """Remove what runs into this output left where they were killed, on this machine.

    What another run works in stays, one of a cluster's tasks, too: each holds a lock, which ends
    with its process. Of other machines' it is not known, as not every network's disk shares locks.
    """
    tasks = [task for jobs in output.glob(f"{JOBS}*") for task in _tasks(jobs)]
    for place in (output, *tasks):
        for folder in place.glob(f"{_PREFIX}*"):
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _tasks(jobs: Path) -> list[Path]:
    """The folders of tasks in that of a run; what is a link, or somebody's own, is none."""
    if jobs.is_symlink():
        return []
    return [x.parent for x in jobs.glob(f"*/{TASK}") if x.is_file() and not x.parent.is_symlink()]


def _remove_tasks(jobs: Path) -> None:
    for task in _tasks(jobs):
        if all(_is_left(work) for work in task.glob(f"{_PREFIX}*")):
            shutil.rmtree(task, ignore_errors=True)
    with suppress(OSError):  # another run may do the same
        if {path.name for path in jobs.iterdir()} <= {_LOCK, _MACHINE}:
            shutil.rmtree(jobs)


@contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Lock a new folder, and write which machine did: without both it is in use for ever."""
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        if _locked(lock) and (machine := _machine()):
            (folder / _MACHINE).write_text(machine, encoding="utf-8")
        yield
    finally:
        lock.release()


def _machine() -> str:
    """This machine; empty where it has no name. Many are called localhost, so its id is with it.

    A container often has no id of its own; that of the host's start stands for it.
    """
    ids = []
    for file in _IDS:
        with suppress(OSError, UnicodeDecodeError):
            ids.append(Path(file).read_text(encoding="utf-8").strip())
    node = platform.node()
    return " ".join([node, *list(filter(None, ids))[:1]]) if node else ""


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
    """Whether nobody works in a folder of ours any more: of what is not known it is not so."""
    try:
        if folder.is_symlink() or not (machine := _machine()):
            return False
        if (folder / _MACHINE).read_text(encoding="utf-8") != machine:
            return False
        with FileLock(folder / _LOCK, timeout=0):
            return True
    except (Timeout, UnicodeDecodeError, *_NO_LOCKS):  # in use, or not ours
        return False
