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
    """Load every case as training does; say what it is, what is wrong, and what training changes.

    The report also goes to --output, FILE.json or FILE.csv. Where anything is wrong the exit code
    is 1. What training will be given belongs here as well: --label_map "{0: 0, 1: 0, 2: 1}",
    --cases FILE, --modality CT.
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
