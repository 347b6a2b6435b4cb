"""A bundle's training as a command line of MONAI's."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import run

from ..errors import InputError, nearest
from ..files import as_word
from ..zoo.working import copy_bundle, working_folder
from .overrides import check_id, read_configs

# What is given here under another name, or by itself.
_OWN = {"dataset_dir": "--data", "bundle_root": "--output", "config_file": "--config_file"}
_OF_TRACKING = ("tracking_uri", "experiment_name", "run_name", "save_execute_config")


def prepare_training(
    name: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    config_file: str | Sequence[str] = "configs/train.json",
    overrides: Mapping[str, Any] | None = None,
) -> list[str]:
    """The command that trains a bundle, and the folder that it trains in.

    A bundle that is named by its folder is trained there. One that is found by its name, or is in a
    zip file, is copied first, without weights, into a folder of its name in the current folder, so
    that what came with this package stays as it is; inference finds the weights in the copy.

    Args:
        name: see `common.zoo.find_bundle`.
        data: the data set, see `common.data.find_cases`.
        output: a folder to train in, in place of these.
        config_file: a config, or several, of which later ones change the earlier; as paths in the
            bundle's folder, or any others.
        overrides: what the configs are given in place of what they say, by its ids; texts are words
            of the command line.

    Returns:
        The words of the command.

    Raises:
        InputError: there is no such bundle or config; an id is none of the configs'; or the folder
            cannot be written, or is another bundle's.
    """
    given = dict(overrides or {})
    source, folder = working_folder(name, output)
    names = config_file if isinstance(config_file, (list, tuple)) else [config_file]
    found = [_config_file(source, str(name)) for name in names]
    _check(source, [source / file for file in found], given)
    if source != folder:
        copy_bundle(source, folder)
    # Of the copy, where the file is one of the bundle's; a path that is absolute stays as it is.
    files = [_from_here(folder / file) for file in found]
    options = {
        "config_file": as_word(files[0] if len(files) == 1 else files),
        "bundle_root": _from_here(folder),
        "dataset_dir": str(data),
        **{id_: x if isinstance(x, str) else as_word(x) for id_, x in given.items()},
    }
    words = [word for id_, value in options.items() for word in (f"--{id_}", value)]
    return [sys.executable, "-m", "monai.bundle", "run", *words]


def _config_file(bundle: Path, name: str) -> Path:
    """The path of a config within the bundle, or else an absolute one."""
    if (bundle / name).is_file():
        return Path(name)
    if Path(name).is_file():
        return Path(name).resolve()
    there = [file.relative_to(bundle).as_posix() for file in (bundle / "configs").rglob("*.json")]
    raise InputError(f"{bundle.name} has no config {name}{nearest(name, sorted(there))}.")


def _check(bundle: Path, files: Sequence[Path], overrides: Mapping[str, Any]) -> None:
    config = read_configs(files)
    known = [id_ for id_ in inspect.signature(run).parameters if id_ != "override"]
    known += _OF_TRACKING if "tracking" in overrides else ()
    for typed in overrides:
        id_ = typed.replace("::", "#")  # MONAI's other way to write it
        if id_ in _OWN:
            raise InputError(f"A training of {bundle.name} sets {id_}; allowed is {_OWN[id_]}.")
        if id_ in known or any(id_.startswith(f"{other}#") for other in overrides):
            continue
        check_id(config, id_, f"A training of {bundle.name}", files[0], ["data", "output"])


def _from_here(path: Path) -> str:
    """A path as a person would type it: relative to the current folder, if it is within."""
    here = Path.cwd()
    return os.path.relpath(path, here) if path.is_relative_to(here) else str(path)
