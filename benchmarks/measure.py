"""What the benchmarks share: processes of their own, times, peak memory, and tables."""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from common.doctor import cpu_name
from common.errors import how_to_install

_STATUS = Path("/proc/self/status")  # Linux


class Failed(Exception):
    """A measurement that could not be made; the message says why."""


def in_own_process(function: Callable[..., Any], *arguments: Any, preload: Sequence[str]) -> Any:
    """`function(*arguments)` in a process of its own, so that its memory and threads are its own.

    Without CUDA, which reserves addresses far beyond what it uses, it may take nine tenths of the
    memory that is free, so that too large a case fails by itself. Processes are forked from one
    that has imported the modules of `preload` and run nothing.

    Raises:
        Failed: the function raised, or its process ended.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        succeeded, answer = ours.recv()
    except EOFError:
        process.join()
        succeeded, answer = False, f"its process ended with code {process.exitcode}"
    process.join()
    if not succeeded:
        raise Failed(answer)
    return answer


def _answer(connection: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        _limit_memory()
        connection.send((True, function(*arguments)))
    except Failed as failure:
        connection.send((False, str(failure)))
    except ImportError as error:
        connection.send((False, f"{_first_line(error)} {how_to_install('benchmark')}"))
    except Exception as error:  # whatever it is becomes a row of the table
        connection.send((False, f"{type(error).__name__}: {_first_line(error)}"[:150]))


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
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
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


def seconds(run: Callable[[], Any], device: str) -> float:
    synchronise = torch.cuda.synchronize if device != "cpu" else lambda: None
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


def machine(device: str, threads: int) -> str:
    """One line that a table of figures is worth little without."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{cpu_name()}, {threads} threads, torch {torch.__version__}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; a row may be short, and its last cell is then as long as it likes."""
    full = [header, *(row for row in rows if len(row) == len(header))]
    widths = [max(len(row[i]) for row in full) for i in range(len(header))]
    for row in rows:
        widths[: len(row) - 1] = map(max, widths, map(len, row[:-1]))
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in (header, ["-" * width for width in widths], *rows)
    )
    return "\n".join(lines)


def say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
