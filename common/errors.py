"""Errors that are the user's to mend: one sentence instead of a traceback."""

from __future__ import annotations

import logging
import re
import sys
from types import TracebackType

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
        if isinstance(error, InputError):
            return str(error)
        if found := _IN_TEXT.search(str(error)):
            return found[1]
        error = error.__cause__ or error.__context__
    return None


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
