"""Folders of images beside folders of labels of the same names, in parts or in one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ...errors import InputError, listed
from .names import IMAGES, LABELS, TEST_IMAGES, by_label, case_names
from .pairing import paired, unlabelled_images
from .types import SPLITS, Case, DataSet, Image, Split

PAIRS = (
    (IMAGES, LABELS),
    ("images", "labels"),
    ("images", "masks"),
    ("image", "label"),
    ("image", "mask"),
)
_PARTS: dict[Split, tuple[str, ...]] = {
    "training": ("train", "training"),
    "validation": ("valid", "val", "validation"),
    "test": ("test",),
}


def read_pairs(root: Path) -> DataSet | None:
    """``imagesTr`` and ``labelsTr``, or others of `PAIRS`; in ``imagesTs`` are those to segment."""
    found = [
        (root / images, root / labels)
        for images, labels in PAIRS
        if (root / images).is_dir() and (root / labels).is_dir()
    ]
    if len(found) > 1:
        names = ", and ".join(f"{images.name} with {labels.name}" for images, labels in found)
        raise InputError(f"{root} has {names}; allowed is one pair of folders, or a cases_file.")
    if not found:
        return None
    notes: list[str] = []
    cases = paired(*found[0], notes)
    return DataSet("folders", cases, unlabelled_images(root / TEST_IMAGES), notes=notes)


def read_parts(root: Path) -> DataSet | None:
    """``train_images`` and ``train_masks``, ``valid_images``, ..., or ``train/images``, ....

    The parts are called train or training, valid, val or validation, and test; labels are in masks
    or labels. Without labels test holds images to segment.
    """
    folders = {split: _part(root, split) for split in SPLITS}
    if folders["training"] is None:
        return None
    notes: list[str] = []
    parts: dict[Split, list[Case]] = {}
    images: list[Image] = []
    for split, found in folders.items():
        if found is None:
            continue
        if found.labels is not None:
            parts[split] = paired(found.images, found.labels, notes)
        elif split == "test":
            images = unlabelled_images(found.images)
        else:
            raise InputError(
                f"{found.images} has no labels beside it; needed is a folder "
                f"{found.images.with_name(found.images.name.replace('images', 'masks'))}."
            )
    cases = by_label(case for part in parts.values() for case in part)
    return DataSet("folders of parts", cases, images, parts, notes=notes)


def read_pooled(root: Path) -> DataSet | None:
    """Two folders or more that `read_parts` reads, such as CirrMRI600+'s of T1 and of T2, as one.

    Volumes of one name are one patient's. A patient whom another part holds does not train, and one
    of test is not for validation: what is left out is in none of the parts.
    """
    if _part(root, "training") is not None:
        return None
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    pooled = [data for folder in folders if (data := read_parts(folder)) is not None]
    if len(pooled) < 2:
        return None
    notes = [note for data in pooled for note in data.notes]
    parts: dict[Split, list[Case]] = {}
    held: set[str] = set()
    for split in reversed(SPLITS):
        cases = [case for data in pooled for case in (data.parts or {}).get(split, ())]
        parts[split] = [case for case in cases if case_names(case)[0] not in held]
        if twice := sorted({case_names(case)[0] for case in cases} & held):
            notes.append(
                f"Patients of {root} in several parts are left out of those for {split}: "
                f"{listed(twice)}."
            )
        held |= {case_names(case)[0] for case in cases}
    cases = by_label(case for part in parts.values() for case in part)
    images = [image for data in pooled for image in data.images]
    kept = {split: part for split, part in parts.items() if part}
    return DataSet("folders of parts, pooled", cases, images, kept, notes=notes)


def test_images(root: Path, spatial_dims: int) -> list[Image]:
    """Those to segment: of ``imagesTs``, or of the part called test, with labels or without."""
    if found := unlabelled_images(root / TEST_IMAGES, spatial_dims):
        return found
    part = _part(root, "test")
    return unlabelled_images(part.images, spatial_dims) if part else []


def of_images(root: Path) -> list[Path]:
    """The folders in which images to train with may be."""
    parts = (_part(root, split) for split in SPLITS)
    names = dict.fromkeys(images for images, _ in PAIRS)
    return [root / name for name in names] + [part.images for part in parts if part]


class _Part(NamedTuple):
    images: Path
    labels: Path | None


def _part(root: Path, split: Split) -> _Part | None:
    folders = [root / f"{name}{joint}images" for name in _PARTS[split] for joint in "_/"]
    found = [folder for folder in folders if folder.is_dir()]
    if len(found) > 1:
        raise InputError(
            f"{' and '.join(map(str, found))} are both there for {split}; allowed is one of them."
        )
    if not found:
        return None
    labels = (
        found[0].with_name(found[0].name.replace("images", name)) for name in ("masks", "labels")
    )
    return _Part(found[0], next((folder for folder in labels if folder.is_dir()), None))
