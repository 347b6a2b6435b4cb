"""Command lines in processes that have the imports behind them: seconds less for each.

A server process imports once and forks at each call; what a command changes ends with its process.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .conftest import REPOSITORY

_PRELOADED = ["monai.bundle", "monai.engines", "monai.handlers", "common.cli", "common.networks"]
_PRELOADED += ["common.data", "common.transforms", "common.losses", "common.evaluation"]


def server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


class Running:
    """A command line that runs; ``process`` can be killed."""

    def __init__(self, module: str, words: list[str], cwd: Path) -> None:
        self._words = words
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        files = [str(file) for file in self._files]
        self.process = server().Process(target=_main, args=(module, words, str(cwd), files))
        self.process.start()

    def output(self) -> str:
        """What it has said so far."""
        return "".join(self._said())

    def _said(self) -> list[str]:
        return [file.read_text() if file.is_file() else "" for file in self._files]

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> subprocess.CompletedProcess:
        """Wait for it."""
        self.process.join()
        out, err = self._said()
        self._folder.cleanup()
        code = self.process.exitcode if self.process.exitcode is not None else -1
        return subprocess.CompletedProcess(self._words, code, out, err)


def start(module: str, *arguments: object, cwd: Path = REPOSITORY) -> Running:
    """As ``python -m MODULE ARGUMENTS &`` in a folder."""
    return Running(module, [str(argument) for argument in arguments], cwd)


def run(module: str, *arguments: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    """As ``python -m MODULE ARGUMENTS`` in a folder."""
    return start(module, *arguments, cwd=cwd).end()


def _main(module: str, words: Sequence[str], cwd: str, files: Sequence[str]) -> None:
    os.chdir(cwd)
    for number, file in enumerate([os.devnull, *files]):
        os.dup2(os.open(file, os.O_CREAT | os.O_RDWR | os.O_TRUNC), number)
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        sys.exit(1)
