"""What files are called: which are images, and of what."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path

from monai.utils import ensure_tuple

from ...errors import InputError, listed
from ..dicom import is_dicom
from ..formats import format_of, is_archive, name_of
from .types import Case, Image

IMAGES, LABELS, TEST_IMAGES = "imagesTr", "labelsTr", "imagesTs"  # the Decathlon's and nnU-Net's
RADIOGRAPHS = "CXR_png"  # the Montgomery and Shenzhen sets'
IMAGE_FOLDERS = (TEST_IMAGES, RADIOGRAPHS, "test_images", "images")  # what is to segment is there

_BESIDE = (*IMAGE_FOLDERS, IMAGES, LABELS, "labels", "masks", "train", "valid", "val", "test")
_NOTES = (".json", ".txt", ".csv", ".tsv", ".md", ".pdf", ".html", ".log", ".bval", ".bvec")

FIRST_CHANNEL = "0000"
CHANNEL = re.compile(r"(.+)_(\d{4})")
_MASK = re.compile(r"[-_](mask|seg|segmentation|label)$", re.IGNORECASE)
_LITS = re.compile(r"^segmentation(?=-\d+$)", re.IGNORECASE)


def images_of(folder: Path, spatial_dims: int | None = None, ending: str = "") -> list[Path]:
    """Its image files, of pictures (2), volumes (3) or both (None), and its DICOM series.

    Where an ending is given, in whatever case, only what ends in it.
    """
    if not folder.is_dir():
        return []
    entries = (
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.lower().endswith(ending.lower())
    )
    return sorted(path for path in entries if _is_image(path, spatial_dims))


def _is_image(path: Path, spatial_dims: int | None) -> bool:
    found = format_of(path)
    if found is not None and not path.is_dir():
        return spatial_dims in (None, found.spatial_dims)
    if spatial_dims == 3 and not (path.is_dir() or is_archive(path)):
        return False  # one DICOM file of a volume is a slice, and the folder is the image
    return is_dicom(path)


def beside_images(path: Path) -> bool:
    """Whether it is of a data set, or notes on one, which nobody takes for an image."""
    return path.name in _BESIDE or path.suffix.lower() in _NOTES


def volumes_of(folder: Path) -> list[Path]:
    """Its files that are volumes by their names; nothing is opened."""
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and (found := format_of(path)) and found.spatial_dims == 3
    )


def subfolders(root: Path) -> list[Path]:
    """The folders in a folder, and those in these."""
    found = sorted(path for path in root.iterdir() if path.is_dir())
    return found + sorted(path for folder in found for path in folder.iterdir() if path.is_dir())


def without_channel(name: str) -> str:
    """nnU-Net's CASE_0000 is of CASE."""
    found = CHANNEL.fullmatch(name)
    return found[1] if found else name


def without_first_channel(name: str) -> str:
    """CASE_0000 is of CASE; a name of another number may end in it: scan_2019."""
    return without_channel(name) if name.endswith(f"_{FIRST_CHANNEL}") else name


def without_mask(name: str) -> str:
    """A label may be called CASE_mask, CASE_seg, CASE_segmentation or CASE_label."""
    return _MASK.sub("", name)


def lits_image(name: str) -> str:
    """LiTS's segmentation-N is of the image volume-N."""
    return _LITS.sub("volume", name)


def case_names(case: Case) -> list[str]:
    """What a case may be called in a list; its own name, see `distinct_names`, is the first."""
    names = [name_of(file) for file in (*ensure_tuple(case["label"]), *ensure_tuple(case["image"]))]
    return list(dict.fromkeys(n for x in names for n in (without_mask(x), x, without_channel(x))))


def distinct_names(cases: Sequence[Case]) -> list[str]:
    """Each case's own name, `told_apart` by the folders of the labels."""
    return told_apart([case_names(c)[0] for c in cases], [label_key(c)[0] for c in cases])


def told_apart(names: Sequence[str], files: Sequence[str]) -> list[str]:
    """Names of files; where they are not different, with the folders that are: patient_1/seg.

    In one folder the files' own names are taken: a and a_seg may be the labels of two cases.
    """
    cases_of = defaultdict(list)
    for i, name in enumerate(names):
        cases_of[name].append(i)
    distinct = list(names)
    for name, cases in cases_of.items():
        if len(cases) > 1:
            folders = [Path(os.path.abspath(files[i])).parent.parts for i in cases]
            alike = len(set(folders)) < len(folders)
            above = _shared(folders)
            folders = [folder[above:] for folder in folders]
            below = _shared([folder[::-1] for folder in folders])
            for i, folder in zip(cases, folders, strict=True):
                own = name_of(files[i]) if alike else name
                distinct[i] = "/".join([*folder[: len(folder) - below], own])
    return distinct


def _shared(paths: Sequence[tuple[str, ...]]) -> int:
    """How many parts at the start are the same in all."""
    return len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))))


def case_key(case: Case) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A case's files, for sets of cases."""
    return ensure_tuple(case["image"]), ensure_tuple(case["label"])


def as_image(files: Iterable[Path]) -> Image:
    names = [str(file) for file in files]
    return names[0] if len(names) == 1 else names


def label_key(case: Case) -> tuple[str, ...]:
    files: tuple[str, ...] = ensure_tuple(case["label"])
    return files


def by_label(cases: Iterable[Case]) -> list[Case]:
    return sorted(cases, key=label_key)


def by_name(files: Iterable[Path], name: Callable[[Path], str] = name_of) -> dict[str, Path]:
    """Files by name.

    Raises:
        InputError: two are of one name, as a.nii and a.nii.gz are.
    """
    named: dict[str, Path] = {}
    doubled = []
    for file in files:
        other = named.setdefault(name(file), file)
        if other != file:
            doubled.append(f"{other} and {file}")
    if doubled:
        raise InputError(f"{listed(doubled)} are of one name; allowed is one of them.")
    return named
