"""Errors that are the user's to mend: one sentence instead of a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import TracebackType


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence that names the thing, its value and what is allowed.
    """


def input_error_in(error: BaseException | None) -> InputError | None:
    """The ``InputError`` that led to ``error`` (itself, a cause or a context), if there is one."""
    return next((e for e in _chain(error) if isinstance(e, InputError)), None)


def explain_input_errors() -> None:
    """Make this process end with one sentence, and exit code 1, at an uncaught ``InputError``.

    MONAI wraps what a transform raises, and its handlers log the traceback; a bundle's
    ``initialize`` calls this so that its command-line users read only the sentence.
    Every other error keeps its traceback.
    """
    previous = sys.excepthook

    def hook(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        explained = input_error_in(error)
        if explained is None:
            previous(kind, error, traceback)
        else:
            sys.stderr.write(f"error: {explained}\n")

    if getattr(previous, "__module__", "") != __name__:
        sys.excepthook = hook
        for handler in logging.getLogger().handlers:
            handler.addFilter(_is_not_about_input)


def _is_not_about_input(record: logging.LogRecord) -> bool:
    return not (record.exc_info and input_error_in(record.exc_info[1]))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
