"""Bundles as zip files, each with its copy of this package, so that it runs by itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ..errors import InputError
from ..files import replacing
from .archives import write_archive
from .contract import SETTINGS, WEIGHTS, config, shipped
from .new_page import MARK, marked
from .reference import LABEL_MAPS
from .verify import check_verified


class Packed(NamedTuple):
    """A bundle's zip file, and what of the bundle's folder is not in it."""

    archive: Path
    left_out: list[str]


def pack(bundle: str | Path, output: str | Path) -> Packed:
    """Write ``<name>_v<version>.zip`` and its checksum, as sha256sum writes it, into a folder.

    In it are the bundle's LICENSE, configs, docs and weights, where it has ``models/model.pt``, its
    ``models/settings.json`` and its reference prediction, and the sources of this package. Nothing
    else of the folder is: no data, outputs, other checkpoints.

    Raises:
        InputError: what would be packed has lines to fill in, see `new_bundle`, does not pass
            `verify`, or is a link; or the output cannot be written.
    """
    bundle = Path(bundle).resolve()
    members = {file.relative_to(bundle).as_posix(): file for file in files_of(bundle)}
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
    try:
        with TemporaryDirectory() as folder:
            copy = Path(folder) / bundle.name  # what is verified is what is packed, and no more
            for name, file in members.items():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy / name)
            own = {name: copy / name for name in members if not name.startswith("common/")}
            if left := marked(own):
                raise InputError(
                    f"{bundle.name} is not finished: {left[0]} has {MARK}, the first of "
                    f"{len(left)} such lines; needed is what they ask for."
                )
            check_verified(copy, bundle)
            version = config(copy, "metadata")["version"]
            archive = Path(output) / f"{bundle.name}_v{version}.zip"
            archive.parent.mkdir(parents=True, exist_ok=True)
            files = {f"{bundle.name}/{name}": copy / name for name in members}
            checksum = write_archive(archive, files)
            with replacing(f"{archive}.sha256") as partial:
                partial.write_text(f"{checksum}  {archive.name}\n", newline="\n")
    except OSError as error:
        raise InputError(f"{bundle.name} cannot be packed in {output} ({error}).") from error
    return Packed(archive, left_out)


def files_of(bundle: Path) -> Iterator[Path]:
    """The files of a bundle that are packed.

    Raises:
        InputError: one is a link, or in a folder that is: what it leads to may be anybody's.
    """
    configs, docs, weights = bundle / "configs", bundle / "docs", bundle / WEIGHTS
    places = [bundle / "LICENSE", configs, *configs.glob("*.json"), configs / "logging.conf"]
    places += [configs / "networks", *configs.glob("networks/*.json")]
    places += [docs, *docs.rglob("*"), weights.parent, weights, bundle / SETTINGS]
    places += [bundle / name for name in LABEL_MAPS]
    for place in places:
        if any(part.startswith(".") for part in place.relative_to(bundle).parts):
            continue
        if place.is_symlink():
            raise InputError(
                f"{place} is a link, to {os.readlink(place)}; allowed are files and folders of the "
                "bundle's own."
            )
        if place.is_file():
            yield place
