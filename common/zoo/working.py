"""Folders to train bundles in: the user's own, or a copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ..errors import InputError
from .contract import config
from .find import find_bundle
from .pack import files_of


class Working(NamedTuple):
    """Where a bundle's files are, and the folder to work in, which may be the same."""

    source: Path
    folder: Path


def working_folder(name: str | Path, output: str | Path | None = None) -> Working:
    """Where a bundle is to be trained. Nothing is written yet: see `copy_bundle`.

    That is the folder itself, where it is named; of a bundle that is found by its name alone, or in
    a zip file, a copy of that name in the current folder. A copy that is there already is the
    source as well, as somebody may have changed its configs.

    Args:
        name: see `find_bundle`.
        output: another folder, to be made or with such a copy.

    Raises:
        InputError: there is no such bundle; or the folder has other files, another bundle, or
            another version of it.
    """
    source = find_bundle(name)
    if output is not None:
        folder = Path(output).resolve()
    elif (Path(name) / "configs").is_dir():
        folder = source
    else:
        folder = Path(source.name).resolve()
    if folder == source:
        return Working(source, folder)
    if (folder / "configs").is_dir():
        for key in ("name", "version"):
            wanted, found = (config(x, "metadata").get(key) for x in (source, folder))
            if wanted != found:
                raise InputError(
                    f"{folder} has a bundle of the {key} {found!r}, and {name} has {wanted!r}; "
                    "allowed is another folder, by --output."
                )
        return Working(folder, folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(
            f"{folder} has other files, and no bundle; allowed is a new folder, by --output."
        )
    return Working(source, folder)


def copy_bundle(source: Path, folder: Path) -> None:
    """Copy a bundle's licence, configs and docs; the folder appears complete or not at all.

    Raises:
        InputError: the folder cannot be written; or a file is a link, see `files_of`.
    """
    files = [file for file in files_of(source) if file.relative_to(source).parts[0] != "models"]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            copy = Path(temporary) / folder.name
            for file in files:
                target = copy / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
            copy.rename(folder)  # an empty folder may be in its place
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error}).") from error
