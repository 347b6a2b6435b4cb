"""The C++ library under the compiler's sanitizers, on random calls: see csrc/fuzz.cpp.

One minute in all, of the same cases each time. For others, or for a single one that failed:

    g++ <FLAGS and SANITIZERS below> -I common/ops/csrc tests/ops/csrc/fuzz.cpp -o fuzz
    ./fuzz SEED SECONDS
    ./fuzz SEED 0 CASE
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from common.ops import native

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("csrc") / "fuzz.cpp"
LIBRARY = native.SOURCE.parent
FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-ffp-contract=fast", "-fno-omit-frame-pointer", "-pthread"),
    "-D_GLIBCXX_ASSERTIONS",
)
SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}


PROBE = """
#include <sanitizer/common_interface_defs.h>
int main() { __sanitizer_set_death_callback(nullptr); }
"""


def compile_driver(folder: Path, sanitizer: str, *flags: str) -> Path:
    """The program; the test is skipped where the compiler lacks the sanitizer, or it cannot run."""
    compiler = next(native._compilers(), None)
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    probe, program = folder / "probe.cpp", folder / "program"
    probe.write_text(PROBE)
    command = [*compiler, *FLAGS, *SANITIZERS[sanitizer], *flags, "-o", program]
    for words in ([*command, probe], [program]):
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip(f"{compiler[0]} has no {sanitizer} sanitizer that works here")
    done = subprocess.run([*command, DRIVER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return program


def run(program: Path, seed: int, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, str(seed), str(seconds)],
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 100,
    )


@pytest.mark.parametrize(("sanitizer", "seconds"), [("address", 45), ("thread", 15)])
def test_random_calls(tmp_path: Path, sanitizer: str, seconds: int, record_property):
    done = run(compile_driver(tmp_path, sanitizer, f"-I{LIBRARY}"), 0, seconds)
    assert done.returncode == 0, done.stderr[-5000:]
    record_property("say", f"{sanitizer} sanitizer, {done.stdout}")
    counts = [int(count) for count in re.findall(r"(\d+) of ", done.stdout)]
    assert min(counts) >= 10, done.stdout  # or else it has become too slow to find much


@pytest.mark.parametrize(
    ("sanitizer", "file", "right", "wrong", "report"),
    [
        (
            "address",
            "tiles-inl.h",
            "whole = channels / W * W;",
            "whole = (channels + W - 1) / W * W;",
            "ERROR: AddressSanitizer",
        ),
        (
            "thread",
            "parallel.h",
            "std::atomic<int64_t> next{0}, arrived{0};",
            "std::atomic<int64_t> arrived{0}; int64_t next = 0;",
            "data race",
        ),
        (
            "address",
            "selective_scan-inl.h",
            "std::fill(y, y + in.tokens * COLUMN, 0.0f);",
            "",
            "wrong result",
        ),
    ],
    ids=["read beyond the end", "race", "scratch memory read before it is written"],
)
def test_faults_are_seen(tmp_path: Path, sanitizer, file, right, wrong, report):
    for source in LIBRARY.iterdir():
        shutil.copy(source, tmp_path)
    text = (tmp_path / file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    done = run(compile_driver(tmp_path, sanitizer, f"-I{tmp_path}", "-O0"), 0, 20)
    assert done.returncode != 0
    assert report in done.stderr
    assert "of seed 0" in done.stderr  # which case it was
