"""A bundle held to the whole contract: our own, or somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import InputError, input_error_in
from .archives import differs_from_checksum, unpack_archive
from .contract import READING, RUNNING, Check


def verify(path: str | Path) -> Iterator[tuple[str, list[str] | None]]:
    """Check a bundle, and tell after each check what failed.

    First come the checks that only read: of an archive its members, before it is unpacked, and the
    checksum beside it. Only where all of them pass, the network and the workflows of the configs
    are built, by which expressions in them run: verify only what you would run.

    Args:
        path: a bundle's folder, or a zip file with it.

    Yields:
        The name of each check, and a sentence for each thing that fails; or None, where there is
        no checksum to check.

    Raises:
        InputError: there is no such folder or file, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        yield from _checks(path)
        return
    if not path.is_file():
        raise InputError(f"There is no {path}; allowed is a bundle's folder or zip file.")
    try:
        archive = path.open("rb")  # once: what is hashed is what is unpacked
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}).") from error
    with archive, TemporaryDirectory() as folder:
        failures = differs_from_checksum(path, archive)
        yield "checksum", failures
        if failures:
            return
        try:
            bundle = unpack_archive(archive, folder)
        except InputError as error:
            yield "archive", [str(error)]
            return
        yield "archive", []
        yield from _checks(bundle)


def check_verified(path: Path, name: Path | None = None) -> None:
    """Check that a bundle passes all that `verify` checks.

    Args:
        path: its folder.
        name: what messages call it, where that is another.

    Raises:
        InputError: it does not; what fails first is named.
    """
    failures = [f"{check}: {failure}" for check, found in verify(path) for failure in found or ()]
    if failures:
        raise InputError(
            f"{name or path} is no sound bundle: "
            f"{failures[0].replace(str(path), str(name or path))}; and {len(failures) - 1} other "
            "failures, which `python -m common zoo verify` lists."
        )


def _checks(bundle: Path) -> Iterator[tuple[str, list[str]]]:
    passed = True
    for check in READING:
        failures = _run(check, bundle)
        passed &= not failures
        yield check.__name__, failures
    if passed:
        for check in RUNNING:
            yield check.__name__, _run(check, bundle)


def _run(check: Check, bundle: Path) -> list[str]:
    try:
        return list(check(bundle))
    except Exception as error:  # a config may be of any shape, and build anything
        reason = input_error_in(error) or f"{type(error).__name__}: {error}"
        return [f"it cannot be checked ({reason})"]
