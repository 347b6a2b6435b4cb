"""The library's C++ files."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.ops import native


def test_each_header_parses_alone():
    """It includes what it uses: none needs a name from the file that includes it."""
    compiler = next(native._compilers(), None)
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    command = [*compiler, *native.FLAGS, "-O0", "-fsyntax-only", "-x", "c++", os.devnull]

    def complaint(file: Path) -> str:
        done = subprocess.run(
            [*command, "-include", file], capture_output=True, text=True, check=False
        )
        return f"{file.name}: {done.stderr[:500]}" if done.returncode else ""

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        complaints = list(pool.map(complaint, native.SOURCE.parent.glob("*.h")))
    assert complaints
    assert not any(complaints), "\n".join(filter(None, complaints))
