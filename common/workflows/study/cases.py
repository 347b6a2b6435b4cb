"""The cases of a study: which are trained on and which are tested, and the files of these."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import ensure_tuple
from PIL import Image

from ...data import disjoint_parts
from ...data.formats import format_of, name_of
from ...data.layouts import SPLITS, Case, Split
from ...data.layouts.names import without_mask
from ...errors import InputError, listed
from ...files import read_json, replacing, write_json
from .definition import Study

_DETACHED = (".mhd", ".nhdr")  # headers whose voxels are in a file beside them
_Parts = dict[Split, dict[str, Case]]


@dataclass(frozen=True)
class Fold:
    """A fold's cases; without folds, the one split's.

    Attributes:
        number: None without folds.
        split_file: for the trainings; it is written from `names`.
        images: the folder for the prediction, of the images of `test`.
        names: of the cases of each part.
        test: the cases that are tested, by what their files will be called.
    """

    number: int | None
    split_file: Path
    images: Path
    names: Mapping[Split, list[str]]
    test: Mapping[str, Case]


def folds_of(study: Study, output: Path) -> list[Fold]:
    """The cases of all folds.

    Raises:
        InputError: as `disjoint_parts`; or a test case's file has its voxels in a second one.
    """
    parts = [disjoint_parts(study.dataset_dir, fold=n, **study.parts) for n in study.folds]
    tested = {name: case for part in parts for name, case in part["test"].items()}
    called = dict(zip(tested, _file_names(tested), strict=True))
    for case in tested.values():
        for file in (*ensure_tuple(case["image"]), *ensure_tuple(case["label"])):
            if file.lower().endswith(_DETACHED):
                raise InputError(
                    f"{file} has its voxels in another file; for tests of a study allowed are "
                    "formats of one file, such as .mha, .nrrd and .nii.gz."
                )
    return [
        _fold(number, part, called, output) for number, part in zip(study.folds, parts, strict=True)
    ]


def _fold(number: int | None, part: _Parts, called: Mapping[str, str], output: Path) -> Fold:
    name = "split" if number is None else f"fold{number}"
    return Fold(
        number=number,
        split_file=output / f"splits/{name}.json",
        images=output / f"splits/{name}",
        names={split: list(part[split]) for split in SPLITS},
        test={called[case]: part["test"][case] for case in part["test"]},
    )


def _file_names(names: Mapping[str, Any]) -> list[str]:
    """Names of cases as names of files; patient_1/seg is patient_1, where no other case is."""
    plain = [name.replace("/", "-") for name in names]
    short = [without_mask(name) for name in plain]
    return short if len(set(short)) == len(short) else plain


def write_folds(folds: Sequence[Fold], output: Path) -> None:
    """Write the split of each fold, and put the files of the tests where they are found by name.

    `images` has a file of each case, of several channels the first, `labels` its label, and a
    fold's folder all channels. They are links, or copies where there are no links; a label that is
    several masks is what these mask together.

    Raises:
        InputError: a label is several volumes, or a mask cannot be read.
        OSError: a file cannot be written.
    """
    for fold in folds:
        fold.images.mkdir(parents=True, exist_ok=True)
        if not fold.split_file.is_file():
            write_json(fold.split_file, {str(part): names for part, names in fold.names.items()})
        for place, file in _links(fold, output):
            link(place, file)
        for name, case in fold.test.items():
            masks = [Path(os.path.abspath(file)) for file in ensure_tuple(case["label"])]
            if len(masks) == 1:
                link(output / "labels" / f"{name}{_ending(masks[0])}", masks[0])
            else:
                _write_union(output / "labels" / f"{name}.png", masks)


def check_folds(folds: Sequence[Fold]) -> None:
    """See that the cases are those that the study began with, if it has.

    Raises:
        InputError: they are not.
    """
    for fold in folds:
        if not fold.split_file.is_file():
            continue
        kept = read_json(fold.split_file)
        for split in SPLITS:
            now, before = fold.names[split], kept.get(split, [])
            if now != before:
                new, gone = (
                    [name for name in one if name not in other]
                    for one, other in ((now, before), (before, now))
                )
                raise InputError(
                    f"The cases for {split} are not those of {fold.split_file}, with which this "
                    f"study began (new: {listed(new, 5) or 'none'}; gone: "
                    f"{listed(gone, 5) or 'none'}); allowed are the same cases, or another output "
                    "folder."
                )


def _links(fold: Fold, output: Path) -> Iterator[tuple[Path, Path]]:
    """The links to the images of a fold's tests, and where they lead."""
    for name, case in fold.test.items():
        for channel, file in enumerate(ensure_tuple(case["image"])):
            path = Path(os.path.abspath(file))
            yield fold.images / f"imagesTs/{name}_{channel:04d}{_ending(path)}", path
            if channel == 0:
                yield output / "images" / f"{name}{_ending(path)}", path


def _ending(path: Path) -> str:
    return path.name.removeprefix(name_of(path))


def link(place: Path, file: Path) -> None:
    """Have a file or folder at a second place, by a link, or where there are none as a copy.

    Raises:
        OSError: it cannot be there.
    """
    if place.is_symlink():
        if Path(os.readlink(place)) == file:
            return
        place.unlink()  # the data have moved
    elif place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(file)
    except OSError:
        (shutil.copytree if file.is_dir() else shutil.copyfile)(file, place)


def _write_union(path: Path, masks: Sequence[Path]) -> None:
    if path.is_file():
        return
    if any((found := format_of(mask)) is None or found.spatial_dims != 2 for mask in masks):
        raise InputError(
            f"The label of one case is {listed(masks)}; for tests of a study allowed are one label "
            "map, or masks that are pictures."
        )
    arrays: list[Any] = []
    for mask in masks:
        try:
            with Image.open(mask) as image:
                arrays.append(np.asarray(image.convert("L")) > 0)
        except OSError as error:
            raise InputError(f"The mask {mask} cannot be read ({error}).") from error
    union = np.logical_or.reduce(arrays).astype(np.uint8) * 255
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        Image.fromarray(union).save(partial)
