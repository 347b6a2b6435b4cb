"""BraTS as it is downloaded: a folder per case, with a file per sequence and the segmentation.

The channels are FLAIR, T1, T1 with contrast and T2, in this order, which is that of the Decathlon's
Task01_BrainTumour: CASE/CASE_{flair,t1,t1ce,t2} and CASE_seg until 2021, CASE-{t2f,t1n,t1c,t2w} and
CASE-seg since 2023.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError, listed
from .names import by_label, by_name, subfolders, volumes_of
from .refusals import refuse_unlabelled
from .types import Case, DataSet, Image

SEQUENCES = {"_": ("flair", "t1", "t1ce", "t2"), "-": ("t2f", "t1n", "t1c", "t2w")}


def read(root: Path) -> DataSet | None:
    """None where no folder in `root`, or in one of its folders, is such a case.

    Raises:
        InputError: a case lacks a sequence, or some have a segmentation and others not.
    """
    found = _files(root)
    if not found:
        return None
    labelled = [(files, label) for files, label in found if label is not None]
    if labelled:
        folders = [files[0].parent for files, label in found if label is None]
        refuse_unlabelled(folders, "their folders, CASE_seg or CASE-seg")
    return DataSet(
        "BraTS",
        by_label(Case(image=list(map(str, files)), label=str(label)) for files, label in labelled),
        [list(map(str, files)) for files, label in found if label is None],
    )


def images(root: Path, spatial_dims: int) -> list[Image]:
    """Those of the cases without a segmentation where there are some, or else of all."""
    found = _files(root) if spatial_dims == 3 else []
    unlabelled = [files for files, label in found if label is None]
    return [list(map(str, files)) for files in unlabelled or [files for files, _ in found]]


def _files(root: Path) -> list[tuple[list[Path], Path | None]]:
    """The sequences of each case in order, and its segmentation."""
    cases, incomplete = [], []
    for folder in subfolders(root):
        of_case = (path for path in volumes_of(folder) if path.name.startswith(folder.name))
        files = by_name(of_case)
        for joint, sequences in SEQUENCES.items():
            names = [f"{folder.name}{joint}{sequence}" for sequence in sequences]
            lacking = [name for name in names if name not in files]
            if len(lacking) == len(names):
                continue
            if lacking:
                incomplete.append(f"{folder} lacks {', '.join(lacking)}")
            else:
                label = files.get(f"{folder.name}{joint}seg")
                cases.append(([files[name] for name in names], label))
    if incomplete:
        raise InputError(
            f"{listed(incomplete)}; needed of each case are FLAIR, T1, T1 with contrast and T2."
        )
    return cases
