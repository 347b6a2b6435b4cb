"""Bundles as zip files, each with its copy of this package, so that it runs by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import replacing
from .archives import sha256, write_archive
from .contract import WEIGHTS, config, shipped
from .verify import check_verified


class Packed(NamedTuple):
    """A bundle's zip file, and what of the bundle's folder is not in it."""

    archive: Path
    left_out: list[str]


def find_bundle(name: str) -> Path:
    """A bundle's folder by its path, or by its name in ``bundles``.

    Raises:
        InputError: there is none.
    """
    for folder in (Path(name), Path("bundles") / name):
        if (folder / "configs").is_dir():
            return folder.resolve()
    raise InputError(f"There is no bundle {name}; allowed is a folder, or its name in bundles.")


def pack(bundle: str | Path, output: str | Path) -> Packed:
    """Write ``<name>_v<version>.zip`` and its checksum, as sha256sum writes it, into a folder.

    In it are the bundle's LICENSE, configs, docs and weights, where it has ``models/model.pt``, and
    the sources of this package. Nothing else of the folder is: no data, outputs, other checkpoints.

    Raises:
        InputError: the bundle does not pass `verify`; or the output cannot be written.
    """
    bundle = Path(bundle).resolve()
    check_verified(bundle)
    members = {file.relative_to(bundle).as_posix(): file for file in _files(bundle)}
    top = {Path(name).parts[0] for name in members}
    left_out = sorted(
        path.name for path in bundle.iterdir() if path.name not in top | {"common", "models"}
    )
    left_out += sorted(
        f"models/{path.name}"
        for path in (bundle / "models").glob("[!.]*")
        if f"models/{path.name}" not in members
    )
    members |= {f"common/{name}": file for name, file in shipped().items()}
    version = config(bundle, "metadata")["version"]
    archive = Path(output) / f"{bundle.name}_v{version}.zip"
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        write_archive(archive, {f"{bundle.name}/{name}": file for name, file in members.items()})
        with replacing(f"{archive}.sha256") as partial:
            partial.write_text(f"{sha256(archive)}  {archive.name}\n", newline="\n")
    except OSError as error:
        raise InputError(f"{archive} cannot be written ({error}).") from error
    return Packed(archive, left_out)


def _files(bundle: Path) -> Iterator[Path]:
    yield bundle / "LICENSE"
    yield from (bundle / "configs").glob("*.json")
    yield bundle / "configs/logging.conf"
    for file in (bundle / "docs").rglob("*"):
        hidden = any(part.startswith(".") for part in file.relative_to(bundle).parts)
        if file.is_file() and not hidden:
            yield file
    if (bundle / WEIGHTS).is_file():
        yield bundle / WEIGHTS
