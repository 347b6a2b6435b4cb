"""Sentences about lists of cases that cannot be used."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from monai.utils import ensure_tuple

from ...errors import InputError, listed
from .types import Case


def refuse_missing(cases: Iterable[Case], path: Path) -> None:
    """See that the files of the cases that `path` lists exist.

    Raises:
        InputError: some do not.
    """
    files = [file for case in cases for key in case.values() for file in ensure_tuple(key)]
    missing = [file for file in files if not os.path.exists(file)]
    if missing:
        does = "do" if len(missing) > 1 else "does"
        raise InputError(
            f"{path} lists {listed(missing)}, which {does} not exist; needed are all files that it "
            "lists."
        )


def refuse_doubled(cases: Iterable[Case], path: Path) -> None:
    """See that the cases that `path` lists share no file, however it is spelled.

    Raises:
        InputError: some do.
    """
    seen: set[str] = set()
    doubled = []
    for case in cases:
        files = {os.path.realpath(file): file for file in ensure_tuple(case["image"])}
        # git-annex and the like link masks of equal content, such as empty ones, to one file.
        files |= {os.path.abspath(file): file for file in ensure_tuple(case["label"])}
        doubled += sorted(files[path] for path in files.keys() & seen)[:1]
        seen |= files.keys()
    if doubled:
        raise InputError(f"{path} lists {listed(doubled)} twice; allowed is once.")


def refuse_unlabelled(images: Iterable[object], labels: object) -> None:
    """See that there are none of these images, which have no label in `labels`.

    Raises:
        InputError: there are some.
    """
    if unlabelled := [str(image) for image in images]:
        count = f"{len(unlabelled)} images have" if len(unlabelled) > 1 else "An image has"
        raise InputError(
            f"{count} no label: {listed(unlabelled)}; needed are labels of the same names in "
            f"{labels}, or the removal of what has none."
        )
