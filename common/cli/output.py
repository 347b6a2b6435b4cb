"""What verbs print."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence


def say(line: str = "") -> None:
    """Print a line, seen at once also where it is piped."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def quieten_monai() -> None:
    """Leave out what MONAI logs and warns of at each call; its errors come as exceptions."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"monai\.")


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
