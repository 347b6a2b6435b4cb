"""Seconds and peak memory, in processes of their own."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from .doctor import cpu_name
from .errors import how_to_install, input_error_in

_STATUS = Path("/proc/self/status")  # Linux


class Failed(Exception):
    """A measurement that could not be made; the message says why."""


class Refused(Failed):
    """What the user gave cannot be measured; the message is the sentence of an InputError."""


def in_own_process(function: Callable[..., Any], *arguments: Any, preload: Sequence[str]) -> Any:
    """`function(*arguments)` in a process of its own, so that its memory and threads are its own.

    Without CUDA, which reserves addresses far beyond what it uses, it may take nine tenths of the
    memory that is free, so that too large a case fails by itself. Processes are forked from one
    that has imported the modules of `preload` and run nothing.

    Raises:
        Refused: the function raised an InputError.
        Failed: it raised anything else, or its process ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        failure, answer = ours.recv()
    except EOFError:
        process.join()
        failure, answer = Failed, f"its process ended with code {process.exitcode}"
    process.join()
    if failure is not None:
        raise failure(answer)
    return answer


def _answer(connection: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        _limit_memory()
        connection.send((None, function(*arguments)))
    except Failed as failure:
        connection.send((Failed, str(failure)))
    except Exception as error:  # whatever it is becomes a row of a table
        if (sentence := input_error_in(error)) is not None:
            connection.send((Refused, sentence))
        elif isinstance(error, ImportError):
            connection.send((Failed, f"{_first_line(error)} {how_to_install('benchmark')}"))
        else:
            connection.send((Failed, f"{type(error).__name__}: {_first_line(error)}"[:150]))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def free_memory(device: str = "cpu") -> int | None:
    """Bytes that a process could still take; None where the system does not say."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    info = Path("/proc/meminfo")
    return _kibibytes(info, "MemAvailable") if info.exists() else None


def _limit_memory() -> None:
    free = free_memory()
    if free is not None and not torch.cuda.is_available():
        limit = _kibibytes(_STATUS, "VmData") + free * 9 // 10
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def peak_memory(run: Callable[[], Any], device: str) -> int:
    """Bytes that `run` needed at its peak beyond what was in use before.

    Of the GPU's memory on CUDA, else of the process's resident set.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if _STATUS.exists():
        # What was freed and is still held would count as there before.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = _kibibytes(_STATUS, "VmRSS")
        run()
        return _kibibytes(_STATUS, "VmHWM") - before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def in_use(device: str) -> int:
    """Bytes that this process holds: of the GPU's memory by torch, else all that is resident."""
    if device != "cpu":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def peak_in_use(device: str) -> int:
    """The most bytes so far of what `in_use` tells."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        return status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def status(name: str) -> int:
    """Bytes that Linux says of this process, such as VmHWM."""
    return _kibibytes(_STATUS, name)


def _kibibytes(file: Path, name: str) -> int:
    """A value of one of Linux's status files, which give it in KiB, in bytes."""
    line = next(line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def median_seconds(run: Callable[[], Any], device: str, budget: float) -> float:
    """Median of at least three runs, for `budget` seconds; of one where that takes longer.

    The first is a warm-up that does not count, unless it is the one.
    """
    first = seconds(run, device)
    if first > budget:
        return first
    times: list[float] = []
    while len(times) < 3 or sum(times) < budget:
        times.append(seconds(run, device))
    return statistics.median(times)


def repeated_seconds(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Median of so many runs, after one that warms up and does not count."""
    run()
    return statistics.median(seconds(run, device) for _ in range(repeats))


def seconds(run: Callable[[], Any], device: str) -> float:
    start = now(device)
    run()
    return now(device) - start


def now(device: str) -> float:
    """The time in seconds, once a GPU has done all that it was given."""
    if device != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def machine(device: str, threads: int) -> str:
    """One line that a table of figures is worth little without."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{cpu_name()}, {threads} threads, torch {torch.__version__}"


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """In it, nothing is seen of what this process writes to its output, in whatever language."""
    before = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in enumerate(before, start=1):
                os.dup2(copy, number)
                os.close(copy)
