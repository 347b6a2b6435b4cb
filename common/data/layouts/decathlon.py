"""The Medical Segmentation Decathlon's dataset.json, and what nnU-Net v1 and MONAI made of it.

"training" lists ``{"image": ..., "label": ...}``; an image may be a list of files, one per channel,
or the name that nnU-Net v1 lists, ``case.nii.gz`` for ``case_0000.nii.gz``, ``case_0001.nii.gz``.
An entry that is a file alone has its label in ``labelsTr``. "validation" and a "test" with labels
are published parts (MONAI), and so is the "fold" of each entry (Auto3DSeg): a fold validates what
the others train. Paths are absolute, or relative to the file's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from ...errors import InputError
from ..formats import name_of
from .names import (
    LABELS,
    as_image,
    by_label,
    by_name,
    images_of,
    label_key,
    without_channel,
    without_mask,
)
from .pairing import channels_of
from .refusals import refuse_doubled, refuse_missing, refuse_unlabelled
from .stated import with_stated
from .types import SPLITS, Case, DataSet, Image, Split


def read(path: Path, stated: Mapping[str, Any]) -> DataSet:
    """The data set that a file with a list "training" is of.

    Raises:
        InputError: it is not as above, an image has no label, or a file does not exist or is listed
            twice; of the images to segment alone some may be missing.
    """
    tests = _tests(path, stated)
    labelled = [entry for entry in tests if isinstance(entry, dict) and entry.get("label")]
    listed_parts = {
        "training": _entries(stated, "training", path),
        "validation": _entries(stated, "validation", path),
        "test": labelled,
    }
    found = {key: _cases(path, key, entries) for key, entries in listed_parts.items()}
    cases = [case for part in found.values() for case in part]
    refuse_missing(cases, path)
    refuse_doubled(cases, path)
    parts: dict[Split, list[Case]] = {
        split: by_label(found[split]) for split in SPLITS if found[split]
    }
    to_segment = (e for e in tests if not (isinstance(e, dict) and e.get("label")))
    images = [_image(path, entry, "test") for entry in to_segment]
    there = _there(images)
    notes = []
    if len(there) < len(images):  # whoever trains need not have downloaded them
        gone = len(images) - len(there)
        notes.append(f"Of the test images that {path} lists {gone} of {len(images)} do not exist.")
    folds = _folds(path, [entry for entries in listed_parts.values() for entry in entries])
    order = sorted(range(len(cases)), key=lambda i: label_key(cases[i]))
    data = DataSet(
        "Medical Segmentation Decathlon",
        [cases[i] for i in order],
        there,
        parts if len(parts) > 1 else None,
        notes=notes,
        folds=[folds[i] for i in order] if any(fold is not None for fold in folds) else None,
    )
    return with_stated(data, stated, path, len(found["training"]))


def test_images(path: Path, stated: Mapping[str, Any]) -> list[Image]:
    """Those listed under "test", with labels or without, of which all files are there.

    Raises:
        InputError: "test" is no such list.
    """
    return _there(_image(path, entry, "test") for entry in _tests(path, stated))


def _tests(path: Path, stated: Mapping[str, Any]) -> list[Any]:
    return [entry for key in ("test", "testing") for entry in _entries(stated, key, path)]


def _there(images: Iterable[Image]) -> list[Image]:
    return [image for image in images if all(os.path.exists(file) for file in ensure_tuple(image))]


def _entries(stated: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    entries = stated.get(key) or []
    if not isinstance(entries, list):
        raise InputError(f"{path} has {key!r} {entries!r}; allowed is a list of images.")
    return entries


def _cases(path: Path, key: str, entries: list[Any]) -> list[Case]:
    by_key: dict[str, Path] | None = None
    cases, unlabelled = [], []
    for entry in entries:
        image = _image(path, entry, key)
        if isinstance(entry, dict) and entry.get("label"):
            cases.append(Case(image=image, label=as_image(_files(path, entry["label"], key))))
            continue
        if by_key is None:
            labels = images_of(path.parent / LABELS)
            by_key = by_name(labels, lambda file: without_mask(name_of(file)))
        name = name_of(ensure_tuple(image)[0])
        label = by_key.get(name) or by_key.get(without_channel(name))
        if label is None:
            unlabelled.append(ensure_tuple(image)[0])
        else:
            cases.append(Case(image=image, label=str(label)))
    refuse_unlabelled(unlabelled, path.parent / LABELS)
    return cases


def _image(path: Path, entry: Any, key: str) -> Image:
    files = _files(path, entry.get("image") if isinstance(entry, dict) else entry, key)
    if len(files) == 1 and not os.path.exists(files[0]):
        files = channels_of(files[0]) or files
    return as_image(files)


def _files(path: Path, files: Any, key: str) -> list[Path]:
    several = files if isinstance(files, list) else [files]
    if not several or not all(isinstance(file, str) and file for file in several):
        raise InputError(
            f"{path} is not in the layout of the Medical Segmentation Decathlon: {key!r} lists "
            f'{files!r}; allowed are {{"image": FILE, "label": FILE}}, FILE, or lists of one FILE '
            "per channel in its place."
        )
    return [path.parent / file for file in several]


def _folds(path: Path, entries: list[Any]) -> list[int | None]:
    folds = [entry.get("fold") if isinstance(entry, dict) else None for entry in entries]
    if odd := [fold for fold in folds if fold is not None and type(fold) is not int]:
        raise InputError(f'{path} has the "fold" {odd[0]!r}; allowed are whole numbers.')
    return folds
