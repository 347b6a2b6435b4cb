"""ISIC's challenges of lesion segmentation, 2016 to 2018, as they are downloaded.

A folder of photographs for each part, and one of masks: ``ISIC-2017_Training_Data`` and
``ISIC-2017_Training_Part1_GroundTruth``, ``ISIC2018_Task1-2_Validation_Input`` and
``ISIC2018_Task1_Validation_GroundTruth``, with ``ISIC_0000000.jpg`` and
``ISIC_0000000_segmentation.png`` in them (Gutman et al. 2016, arXiv:1605.01397; Codella et al.
2018, arXiv:1710.05006, and 2019, arXiv:1902.03368). Superpixels beside the photographs are no
images.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import InputError
from ..formats import name_of
from .names import by_label, by_name, images_of, without_mask
from .refusals import refuse_unlabelled
from .types import SPLITS, Case, DataSet, Image, Split

_YEARS = r"ISBI2016_ISIC_Part1|ISIC-2017|ISIC2018_Task1(?:-2)?"
_PART = rf"(?:{_YEARS})_(training|validation|test)(?:_v2)?"
_PHOTOGRAPHS = re.compile(rf"{_PART}_(?:Data|Input)", re.IGNORECASE)
_MASKS = re.compile(rf"{_PART}(?:_Part1)?_GroundTruth", re.IGNORECASE)


def read(root: Path) -> DataSet | None:
    """None where no folder of photographs is in `root`.

    Raises:
        InputError: two folders are of one part and kind, the photographs for training or validation
            have no folder of masks, or a photograph has no mask in it.
    """
    photographs, masks = _folders(root, _PHOTOGRAPHS), _folders(root, _MASKS)
    if not photographs:
        return None
    parts: dict[Split, list[Case]] = {}
    images: list[Image] = []
    for split, folder in photographs.items():
        if split in masks:
            parts[split] = _cases(folder, masks[split])
        elif split == "test":
            images = [str(file) for file in _photographs(folder)]
        else:
            raise InputError(
                f"{folder} has no masks; needed is the folder of its part whose name ends in "
                "_GroundTruth beside it."
            )
    cases = by_label(case for part in parts.values() for case in part)
    # Of a part for training alone the others are drawn; one for test alone stays that.
    return DataSet("ISIC", cases, images, parts if parts.keys() - {"training"} else None)


def images(root: Path, spatial_dims: int) -> list[Image]:
    """The photographs of such a folder; of a folder of such, those of the part called test."""
    if spatial_dims != 2:
        return []
    folder = root if _PHOTOGRAPHS.fullmatch(root.name) else _folders(root, _PHOTOGRAPHS).get("test")
    return [] if folder is None else [str(file) for file in _photographs(folder)]


def _folders(root: Path, kind: re.Pattern[str]) -> dict[Split, Path]:
    found: dict[Split, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if named := kind.fullmatch(folder.name):
            split = next(split for split in SPLITS if split == named[1].lower())
            if split in found:
                raise InputError(
                    f"{found[split]} and {folder} are both there for {split}; allowed is one of "
                    "them."
                )
            found[split] = folder
    return found


def _photographs(folder: Path) -> list[Path]:
    return [file for file in images_of(folder, 2) if not file.stem.endswith("_superpixels")]


def _cases(photographs: Path, masks: Path) -> list[Case]:
    images = by_name(_photographs(photographs))
    labels = by_name(images_of(masks, 2), lambda file: without_mask(name_of(file)))
    refuse_unlabelled([file for name, file in images.items() if name not in labels], masks)
    return by_label(Case(image=str(file), label=str(labels[name])) for name, file in images.items())
