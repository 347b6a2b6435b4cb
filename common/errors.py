"""Errors that are the user's to mend: one sentence instead of a traceback."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Iterable
from difflib import get_close_matches
from multiprocessing.dummy import DummyProcess
from numbers import Integral, Real
from pathlib import Path
from types import TracebackType
from typing import Any

_IN_TEXT = re.compile(r"common\.errors\.InputError: (.*)")


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that names the thing, its value and what is allowed.
    """


def input_error_in(error: BaseException | None) -> str | None:
    """The sentence of the ``InputError`` that led to ``error``, if one did.

    It is looked for in the causes and contexts, and in the text, where MONAI and the workers of a
    DataLoader leave the traceback of what they caught.
    """
    while error is not None:
        if found := _IN_TEXT.search(str(error)):  # a worker's comes with its traceback as its text
            return found[1]
        if isinstance(error, InputError):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def explain_input_errors() -> None:
    """Make this process end with one sentence, and exit code 1, at an uncaught ``InputError``.

    MONAI wraps what a transform raises, and its handlers and ignite's engine log the traceback; a
    bundle's ``run`` begins with this so that its command-line users read only the sentence, under
    torchrun in what it says last of its processes. Every other error keeps its traceback.
    """
    if getattr(sys.excepthook, "__module__", "") == __name__:
        return
    previous_hook, previous_factory = sys.excepthook, logging.getLogRecordFactory()

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        sentence = input_error_in(error)
        if sentence is None:
            previous_hook(kind, error, traceback)
        else:
            _close_progress_bars()  # which would have the sentence at their ends
            sys.stderr.write(f"error: {sentence}\n")
            _tell_torchrun(f"error: {sentence}")
            _wait_for_pools()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = previous_factory(*args, **kwargs)
        if record.exc_info:
            sentence = input_error_in(record.exc_info[1])
        else:
            found = _IN_TEXT.search(str(record.msg))
            sentence = found[1] if found else None
        if sentence is not None:
            record.msg, record.args, record.exc_info = sentence, (), None
        return record

    sys.excepthook = hook
    logging.setLogRecordFactory(factory)


def _close_progress_bars() -> None:
    if tqdm := sys.modules.get("tqdm"):
        for bar in list(getattr(tqdm.tqdm, "_instances", ())):
            bar.close()


def _tell_torchrun(message: str) -> None:
    """Have it in torchrun's last lines: other ranks' tracebacks follow one that has ended."""
    if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        error = {"message": message, "timestamp": int(time.time())}
        Path(file).write_text(json.dumps(error), encoding="utf-8")


def _wait_for_pools() -> None:
    """Let CacheDataset's threads end the case each is at: one inside torch at exit aborts it."""
    for thread in threading.enumerate():
        if isinstance(thread, DummyProcess):
            thread.join(timeout=60)


def how_to_install(extra: str) -> str:
    """The command that adds an extra of pyproject.toml to an installed clone of this project."""
    return f'pip install ".[{extra}]" in this project\'s folder'


def first_line(error: BaseException) -> str:
    """What an error says, as far as it fits into a sentence of ours."""
    return (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")


def check_switches(**switches: Any) -> None:
    """See that switches are switches: `python -m monai.bundle` makes a text of no, off and false.

    Args:
        switches: by their names.

    Raises:
        InputError: one is neither True nor False.
    """
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; allowed are True and False.")


def check_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """See that a setting is one of those that there are.

    Raises:
        InputError: it is none of them.
    """
    choices = list(allowed)
    if value not in choices:
        raise InputError(f"{name} is {value!r}; allowed are {', '.join(map(repr, choices))}.")


def are_numbers(
    value: object,
    count: int | None = None,
    least: float = -math.inf,
    above: float = -math.inf,
    whole: bool = False,
) -> bool:
    """Whether a setting is a list of finite numbers: on a command line it may be one, or a word.

    Args:
        value: a list, tuple, array or tensor of one axis, or anything else, which is none.
        count: how many there have to be; None allows any number from 1.
        least: what they may be at least.
        above: what they have to be above.
        whole: whether they have to be whole numbers.
    """
    found = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(found, (list, tuple)) or not found or len(found) != (count or len(found)):
        return False
    return all(
        isinstance(x, Integral if whole else Real)
        and not isinstance(x, bool)
        and x >= least  # type: ignore[operator]
        and above < x < math.inf  # type: ignore[operator]
        for x in found
    )


def by_axis(numbers: Iterable[float], digits: int = 6) -> str:
    """Numbers along the axes of an image as a part of a sentence: 512 x 512 x 80."""
    return " x ".join(f"{float(number):.{digits}g}" for number in numbers)


def listed(things: Iterable[object], most: int = 20) -> str:
    """Things as a part of a sentence: the first of them, and how many more there are."""
    words = [str(thing) for thing in things]
    rest = len(words) - most
    return "; ".join([*words[:most], *([f"and {rest} more"] if rest > 0 else [])])


def nearest(name: str, allowed: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence on a name that is none of those that are allowed.

    The nearest is what it was probably meant to be, or all that it is a part of; where nothing is
    near, all are named.

    Args:
        prefix: of each name in the sentence.
    """
    known = list(allowed)
    parts = [other for other in known if len(name) > 2 and name in other]
    near = get_close_matches(name, known, n=1) or parts
    names = listed(f"{prefix}{other}" for other in near or known) or "none"
    if not near:
        return f"; allowed are {names}"
    return f"; the nearest {'is' if len(near) == 1 else 'are'} {names}"
