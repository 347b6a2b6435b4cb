"""Before a training: what is wrong with a data set."""

from __future__ import annotations

from typing import Any

from ..errors import InputError
from .output import quieten_monai, say


def check(
    dataset_dir: str,
    output: str | None = None,
    workers: int | None = None,
    num_classes: int | None = None,
    label_map: Any = None,
    ignore_label: int | None = None,
    cases: str | None = None,
    modality: str | None = None,
) -> None:
    """Load every case as training does; say what is wrong, and what training changes.

    Where anything is wrong the exit code is 1. What training will be given about its data belongs
    here as well.

    Input:
        dataset_dir: the data set: a folder in any of the layouts of docs/data.md.
        cases: a file that lists the cases, in place of the folder.
        modality: of the DICOM series that count, as CT; by default any.
    Labels:
        num_classes: by default as many as the labels have.
        label_map: what becomes of their values, as "{0: 0, 1: 0, 2: 1}".
        ignore_label: the value of voxels that do not count.
    Output:
        output: a file for the report, FILE.json, or FILE.csv for its cases alone.
    Computing:
        workers: processes; by default as many as processors, or one for little data.
    """
    from ..workflows import check_dataset

    quieten_monai()
    report = check_dataset(
        dataset_dir, output, workers, num_classes, label_map, ignore_label, cases, modality
    )
    for line in report.lines():
        say(line)
    if output is not None:
        say(f"report: {output}")
    if report.wrong:
        several = "s are" if report.wrong > 1 else " is"
        raise InputError(f"{report.wrong} thing{several} wrong with {dataset_dir}, as said above.")
