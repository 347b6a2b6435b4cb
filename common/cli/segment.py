"""Everyday use: from a scan to masks, pictures, numbers and DICOM."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from fire.parser import DefaultParseValue

from ..errors import InputError
from .output import say


def segment(
    *inputs: str,
    output: str,
    bundle: str,
    checkpoint: str | None = None,
    device: str = "auto",
    fast: bool = False,
    flips: bool = False,
    preview: bool = False,
    statistics: bool = False,
    dicom_seg: bool = False,
    rtstruct: bool = False,
    ml: bool = True,
    roi_subset: str | None = None,
    force_split: bool = False,
    any_modality: bool = False,
    overwrite: bool = True,
    engine: str = "local",
    address: str | None = None,
    gpus: float | None = None,
    **overrides: Any,
) -> None:
    """Segment scans, files or folders of them, by a bundle: masks, pictures, numbers, DICOM.

    INPUTS come first, then -o OUTPUT, in which each study gets a folder. docs/segment.md says what
    each option does; what else the bundle's inference.json has may be given, too (--series_uid
    UID, --keep_largest_component True). Where a study fails the others are done, and the exit code
    is 1.
    """
    from ..workflows import segment as segment_scans

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    warnings.filterwarnings("ignore", module=r"monai\.")
    found = segment_scans(
        *(list(inputs), output, bundle, checkpoint, device, fast, flips, preview, statistics),
        *(dicom_seg, rtstruct, ml, roi_subset, force_split, any_modality, overwrite, engine),
        *(address, gpus),
        overrides={name: DefaultParseValue(value) for name, value in overrides.items()},
    )
    for name, folder in found.done.items():
        say(f"{name}: {folder}")
    for sentence in found.failed.values():
        say(f"failed: {sentence}")
    if found.failed:
        raise InputError(
            f"{len(found.failed)} of the inputs failed, or lack something, as said above; "
            f"{len(found.done)} are in {output}."
        )
