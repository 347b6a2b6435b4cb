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

    Each study gets a folder. Where one fails the others are done, and the exit code is 1.
    docs/segment.md says more of each option.

    Input:
        INPUTS: files, DICOM folders or zip files, or folders of many.
        bundle: which bundle segments, by its name, folder or zip file.
        checkpoint: other weights than the bundle's.
        any_modality: take what does not look like the bundle's, such as MR for CT.
    Output:
        output: the folder for all studies, or -o.
        preview: draw a picture of each.
        statistics: write volumes, lesions and intensities.
        dicom_seg: write a DICOM Segmentation, of DICOM inputs.
        rtstruct: write an RT Structure Set, of DICOM inputs.
        ml: one file for all classes; with --ml False a file for each.
        roi_subset: these classes alone, as liver,spleen.
        overwrite: do anew what is there; with --overwrite False it is kept.
    How:
        device: auto, cpu, cuda, cuda:1, mps or xpu.
        fast: fewer windows.
        flips: average over mirrored images, too.
        force_split: less memory, more time.
        engine: local, or ray for a cluster.
        address: of the Ray cluster.
        gpus: of each task on it.
        overrides: what else the bundle's inference.json has.
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
