"""What verbs print."""

from __future__ import annotations

import logging
import sys
import warnings


def say(line: str) -> None:
    """Print a line, seen at once also where it is piped."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def quieten_monai() -> None:
    """Leave out what MONAI logs and warns of at each call; its errors come as exceptions."""
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"monai\.")
