"""nnU-Net's raw data sets, of its second version: a dataset.json that lists no case.

The cases are those of ``imagesTr/CASE_0000.ENDING``, ``CASE_0001.ENDING``, ..., one file per
channel of "channel_names", and ``labelsTr/CASE.ENDING``; or of "dataset", which names the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from ...errors import InputError, listed
from ..formats import allowed_endings, format_of, name_of
from .names import (
    IMAGES,
    LABELS,
    TEST_IMAGES,
    as_image,
    by_label,
    case_names,
    distinct_names,
    images_of,
)
from .pairing import paired, unlabelled_images
from .refusals import refuse_doubled, refuse_missing
from .stated import with_stated
from .types import Case, DataSet


def read(path: Path, stated: Mapping[str, Any]) -> DataSet:
    """The data set of a dataset.json without a list "training".

    Raises:
        InputError: a case lacks its label or one of its channels, "file_ending" is no image's or of
            none that is there, or a file of "dataset" does not exist or is there twice.
    """
    root, notes = path.parent, list[str]()
    ending = stated.get("file_ending") or ""
    if ending and format_of(f"case{ending}") is None:
        raise InputError(f"{path} has the file_ending {ending!r}; allowed are {allowed_endings()}.")
    if "dataset" in stated:
        cases = _named(path, stated["dataset"])
    else:
        cases = paired(root / IMAGES, root / LABELS, notes, ending)
        if not cases and ending:
            raise InputError(
                f"{path} has the file_ending {ending!r}, and {root / IMAGES} has no such file; "
                "needed is the ending of its images."
            )
    images = unlabelled_images(root / TEST_IMAGES, ending=ending)
    data = DataSet("nnU-Net raw", cases, images, notes=notes)
    folders = (IMAGES, LABELS, TEST_IMAGES)
    kept = {file for folder in folders for file in images_of(root / folder, ending=ending)}
    if others := [f for folder in folders for f in images_of(root / folder) if f not in kept]:
        notes.append(
            f"What does not end in {ending}, the file_ending, is left out: {listed(others)}."
        )
    data = with_stated(data, stated, path, len(cases))
    _check_channels(data, path)
    return data


def _named(path: Path, dataset: Any) -> list[Case]:
    try:
        cases = [
            Case(
                image=as_image(path.parent / file for file in case["images"]),
                label=str(path.parent / case["label"]),
            )
            for case in dataset.values()
        ]
    except (AttributeError, TypeError, KeyError) as error:
        raise InputError(
            f'{path} has a "dataset" that is not nnU-Net\'s ({error!r}); allowed is '
            '{"CASE": {"images": [FILE, ...], "label": FILE}}.'
        ) from error
    refuse_missing(cases, path)
    refuse_doubled(cases, path)
    return by_label(cases)


def _check_channels(data: DataSet, path: Path) -> None:
    """A file without a channel's number may hold all of them, and so may a picture, in colours."""
    if data.channel_names is None:
        return
    wrong = []
    for name, case in zip(distinct_names(data.cases), data.cases, strict=True):
        files = ensure_tuple(case["image"])
        found = format_of(files[0])
        several = name_of(files[0]) in case_names(case)[:1] or (found and found.spatial_dims == 2)
        if len(files) != len(data.channel_names) and not (len(files) == 1 and several):
            wrong.append(f"{name} has {len(files)}")
    if wrong:
        raise InputError(
            f"{path} names the channels {', '.join(map(str, data.channel_names))}, but "
            f"{listed(wrong)}; needed is a file of each channel."
        )
