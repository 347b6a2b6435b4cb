"""Command lines in processes that have the imports behind them: seconds less for each.

A server process imports once and forks at each call; what a command changes ends with its process.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .conftest import REPOSITORY

_PRELOADED = ["monai.bundle", "monai.engines", "monai.handlers", "common.cli", "common.networks"]
_PRELOADED += ["common.data", "common.transforms", "common.losses", "common.evaluation"]


def server() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def run(module: str, *arguments: object, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    """As ``python -m MODULE ARGUMENTS`` in a folder."""
    context = server()
    words = [str(argument) for argument in arguments]
    files = [Path(os.path.abspath(cwd)) / name for name in (".stdout", ".stderr")]
    process = context.Process(target=_main, args=(module, words, str(cwd), [str(f) for f in files]))
    process.start()
    process.join()
    out, err = (file.read_text() for file in files)
    for file in files:
        file.unlink()
    code = process.exitcode if process.exitcode is not None else -1
    return subprocess.CompletedProcess(words, code, out, err)


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
