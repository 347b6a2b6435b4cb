"""The package's C++ library: found beside this file, in the user's cache, or compiled on first use.

Processes that need it at the same time, as the ranks of a training, compile it once: one does, the
others wait for it.

It is loaded with ctypes, includes no header of Python or torch, and so fits every version of both.
Only the standard library is imported here: setup.py uses this file too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

SOURCE = Path(__file__).with_name("csrc") / "selective_scan.cpp"
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-pthread")
# The first is what the compiler takes for granted: on 64-bit ARM, NEON.
_BASELINE = "NEON" if platform.machine() in ("aarch64", "arm64") else "portable"
INSTRUCTION_SETS = (_BASELINE, "AVX2", "AVX-512")
HOW_TO_GET = (
    "Install a C++17 compiler (on Debian and Ubuntu `apt install g++`, on macOS "
    "`xcode-select --install`, with conda `conda install cxx-compiler`), or name one in $CXX."
)


_T = TypeVar("_T")


class BuildError(Exception):
    """The compiler cannot be run, or fails."""


def library() -> ctypes.CDLL:
    """The library, compiled now if it has to be.

    Raises:
        RuntimeError: there is none and none can be built; the message says why and what to install.
    """
    loaded, reason = _find_or_build()
    if loaded is None:
        raise RuntimeError(f"The C++ backend is not available: {reason} {HOW_TO_GET}")
    return loaded


def location() -> Path:
    """The file that `library` was loaded from; gone again where the cache cannot be written."""
    return Path(library()._name)


def why_unavailable() -> str | None:
    """None where `library` works, else the reason in a sentence. May compile, once per process."""
    return _find_or_build()[1]


def instruction_set() -> str:
    """The fastest of INSTRUCTION_SETS that this machine has and the library will use."""
    return INSTRUCTION_SETS[library().selective_scan_isa()]


def has_tiles() -> bool:
    """Whether this machine has AMX, by which the Mamba block's products can be in bfloat16."""
    return bool(library().mamba_mixer_has_tiles())


def source_hash() -> str:
    """What a library must have been built from to be used."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.parent.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where compiled libraries are kept for this user; not necessarily there yet."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "monai-mamba"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monai-mamba"


@functools.cache
def _find_or_build() -> tuple[ctypes.CDLL | None, str | None]:
    if os.name != "posix":
        return None, "it is made for Linux and macOS only."
    for path in SOURCE.parent.parent.glob("_selective_scan*.so"):  # built by setup.py
        try:
            return _load(path), None
        except OSError:  # of another platform, or of an earlier source
            continue
    try:
        return _with_any_compiler(_from_cache_or_build), None
    except BuildError as error:
        return None, str(error)


def _with_any_compiler(build: Callable[[list[str]], _T]) -> _T:
    """What the first compiler builds that can."""
    reasons = []
    for compiler in _compilers():
        try:
            return build(compiler)
        except (OSError, BuildError) as error:
            reasons.append(f"{shlex.join(compiler)}: {error}.")
    raise BuildError(" ".join(reasons) or "there is no C++ compiler on the PATH.")


def _compilers() -> Iterator[list[str]]:
    if os.environ.get("CXX"):
        yield shlex.split(os.environ["CXX"])
        return
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            yield [name]


def _from_cache_or_build(compiler: list[str]) -> ctypes.CDLL:
    what = (source_hash(), *FLAGS, sys.platform, platform.machine(), *compiler)
    version = _run([*compiler, "--version"])
    key = hashlib.sha256("\0".join((*what, version)).encode()).hexdigest()[:16]
    try:
        folder = _private(cache_folder())
        if (found := _cached(folder, key)) is not None:
            return found
        with _locked(folder):  # whoever waited finds what the other built
            return _cached(folder, key) or _build(compiler, folder, key)
    except (OSError, RuntimeError):  # not writable, not ours, mounted noexec, or no home
        with tempfile.TemporaryDirectory(prefix="monai-mamba-") as temporary:
            return _build(compiler, Path(temporary), key)  # stays loaded when the file is gone


def _private(folder: Path) -> Path:
    """The folder, made if need be; nobody else may be able to put a library there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise OSError(f"{folder} belongs to another user")
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, where its file system has any; that of a dead process is free."""
    import fcntl  # not on Windows

    with (folder / ".lock").open("w") as file:
        with contextlib.suppress(OSError):  # no locks: each process compiles for itself
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:  # not left to close: a process that was forked meanwhile has the file open too
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def _cached(folder: Path, key: str) -> ctypes.CDLL | None:
    for path in folder.glob(f"selective_scan-{key}-*.so"):
        try:
            # A truncated library may crash the process that maps it, so its content is checked.
            if path.stem.rpartition("-")[2] == _digest(path):
                return _load(path)
        except OSError:
            pass
        path.unlink(missing_ok=True)
    return None


def _build(compiler: list[str], folder: Path, key: str) -> ctypes.CDLL:
    handle, name = tempfile.mkstemp(prefix="building-", suffix=".so", dir=folder)
    os.close(handle)
    built = Path(name)
    try:
        compile_library(compiler, built)
        final = folder / f"selective_scan-{key}-{_digest(built)}.so"
        os.replace(built, final)  # whoever else built it, where there are no locks, built the same
    finally:
        built.unlink(missing_ok=True)
    return _load(final)


def compile_with_any(output: Path) -> None:
    """Compile the library into a file with whatever compiler there is, for setup.py.

    Raises:
        BuildError: there is none that can; the message says why.
    """
    _with_any_compiler(lambda compiler: compile_library(compiler, output))


def compile_library(compiler: list[str], output: Path) -> None:
    """Compile the library into a file.

    Raises:
        BuildError: the message has the compiler's first complaint.
    """
    macro = f'-DSOURCE_HASH="{source_hash()}"'
    _run([*compiler, *FLAGS, macro, "-shared", str(SOURCE), "-o", str(output)])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(str(error)) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BuildError(next((line for line in lines if "error" in line), lines[-1]))
    return done.stdout


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    try:
        loaded.selective_scan_source.restype = ctypes.c_char_p
        source = loaded.selective_scan_source().decode()
    except AttributeError as error:
        raise OSError(f"{path} is not this package's library") from error
    if source != source_hash():
        raise OSError(f"{path} was built from other source")
    return loaded
