"""LiTS as it is downloaded: volume-N.nii and segmentation-N.nii, in one folder or several.

The test images, test-volume-N.nii, have no label.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import listed
from ..formats import name_of
from .folders import PAIRS
from .names import TEST_IMAGES, by_name, subfolders, volumes_of
from .refusals import refuse_unlabelled
from .types import Case, DataSet, Image

_KINDS = ("volume", "segmentation", "test-volume")
_NAME = re.compile(rf"({'|'.join(_KINDS)})-\d+", re.IGNORECASE)
_OTHERS = {TEST_IMAGES, *(folder for pair in PAIRS for folder in pair)}  # are paired by name


def read(root: Path) -> DataSet | None:
    """Cases sorted by their numbers; None where there is no segmentation-N."""
    files = _files(root)
    labels = files["segmentation"]
    if not labels:
        return None
    volumes = files["volume"]
    unlabelled = (image for number, image in volumes.items() if number not in labels)
    refuse_unlabelled(unlabelled, f"{root}, segmentation-N")
    notes = []
    if rest := [str(label) for number, label in labels.items() if number not in volumes]:
        notes.append(f"Labels without an image are left out: {listed(rest)}.")
    cases = [Case(image=str(image), label=str(labels[number])) for number, image in volumes.items()]
    tests: list[Image] = [str(file) for file in files["test-volume"].values()]
    return DataSet("LiTS", cases, tests, notes=notes)


def images(root: Path, spatial_dims: int) -> list[Image]:
    """The test images where there are some, or else all volumes."""
    files = _files(root) if spatial_dims == 3 else {}
    found = files.get("test-volume") or files.get("volume") or {}
    return [str(file) for file in found.values()]


def is_named_so(file: Path) -> bool:
    """Whether a file is called as LiTS's are."""
    return _NAME.fullmatch(name_of(file)) is not None


def _files(root: Path) -> dict[str, dict[int, Path]]:
    """Volumes, segmentations and test volumes by their numbers, in their numbers' order."""
    files = (
        path
        for folder in (root, *subfolders(root))
        if folder.name not in _OTHERS
        for path in volumes_of(folder)
        if is_named_so(path)
    )

    def number_of(file: Path) -> str:
        """However it is spelled: volume-1 and Volume-01 are one."""
        kind, number = name_of(file).rsplit("-", 1)
        return f"{kind.lower()}-{int(number)}"

    kinds: dict[str, dict[int, Path]] = {kind: {} for kind in _KINDS}
    for name, path in by_name(files, number_of).items():
        kind, number = name.rsplit("-", 1)
        kinds[kind][int(number)] = path
    return {kind: dict(sorted(files.items())) for kind, files in kinds.items()}
