"""The C++ library on 64-bit ARM, whose vectors are NEON's: built by a cross-compiler, run by QEMU.

The program is csrc/fuzz.cpp, which calls every entry point at random sizes and compares outputs and
all gradients with plain loops in double. QEMU keeps the order in which this machine's processor
lets threads see memory, which is stricter than ARM's: races are for the thread sanitizer to find.

On Debian and Ubuntu: apt install g++-aarch64-linux-gnu qemu-user-static
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from common.ops import native

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("csrc") / "fuzz.cpp"
LIBRARY = native.SOURCE.parent
COMPILER = "aarch64-linux-gnu-g++"
EMULATORS = ("qemu-aarch64-static", "qemu-aarch64")
AARCH64 = 183  # of an ELF file's header
# glibc fills new memory with bytes 127: what is read before it is written is 3e38.
ENVIRONMENT = {**os.environ, "MALLOC_PERTURB_": "128"}


@pytest.fixture(scope="module")
def emulator() -> str:
    found = next((name for name in EMULATORS if shutil.which(name)), None)
    if found is None or shutil.which(COMPILER) is None:
        pytest.skip(f"needs {COMPILER} and {' or '.join(EMULATORS)}")
    return found


def compile_driver(folder: Path, library: Path, *flags: str) -> Path:
    """The program, with the flags that the library is built with."""
    program = folder / "fuzz"
    command = [COMPILER, *native.FLAGS, *flags, "-DWITHOUT_SANITIZERS", "-static", f"-I{library}"]
    done = subprocess.run(
        [*command, DRIVER, "-o", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return program


def run(emulator: str, program: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [emulator, program, "0", str(seconds)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 100,
    )


def test_library_is_built(tmp_path: Path, emulator: str):
    native.compile_library([COMPILER], tmp_path / "library.so")
    header = (tmp_path / "library.so").read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == AARCH64


def test_random_calls(tmp_path: Path, emulator: str, record_property):
    done = run(emulator, compile_driver(tmp_path, LIBRARY), 45)
    assert done.returncode == 0, done.stderr[-5000:]
    record_property("say", f"{emulator}, {done.stdout}")
    counts = [int(count) for count in re.findall(r"(\d+) of ", done.stdout)]
    assert min(counts) >= 5, done.stdout  # or else it is too slow to find much


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("vector-inl.h", "vmaxq_f32", "vminq_f32"),
        ("vector-inl.h", "vcvt_f64_f32(vld1_f32(p))", "vcvt_f64_f32(vdup_n_f32(*p))"),
        ("tiles-inl.h", "const V ab = pick<0, 4, 1, 5>", "const V ab = pick<0, 4, 2, 5>"),
    ],
    ids=["clamp", "widening", "transpose"],
)
def test_faults_of_arms_own_code_are_seen(
    tmp_path: Path, emulator: str, file: str, right: str, wrong: str
):
    for source in LIBRARY.iterdir():
        shutil.copy(source, tmp_path)
    text = (tmp_path / file).read_text()
    assert text.count(right) == 1
    (tmp_path / file).write_text(text.replace(right, wrong))
    done = run(emulator, compile_driver(tmp_path, tmp_path, "-O1"), 30)
    assert done.returncode != 0
    assert "wrong result" in done.stderr
    assert "of seed 0" in done.stderr  # which case it was
