"""A small CT as DICOM slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.uid import generate_uid

from .test_ircadb import write_slice

ROWS, COLUMNS, SLICES = 6, 8, 5
STORED = np.random.default_rng(0).integers(0, 4000, (SLICES, ROWS, COLUMNS)).astype(np.uint16)
HU = STORED.astype(np.int32).transpose(2, 1, 0) - 1000
SPACING = (0.8, 0.7, 2.5)  # between rows, columns and slices, mm
FIRST = (-100.0, -80.0, 300.0)  # LPS, mm
AFFINE = nib.affines.from_matvec(np.diag([-0.7, -0.8, 2.5]), [100, 80, 300])


def write_series(
    folder: Path,
    uid: str | None = None,
    heights: Sequence[float] = tuple(range(SLICES)),
    **tags: object,
) -> str:
    """Slices at multiples of their distance; their files' names are in another order."""
    uid = uid or generate_uid()
    for n, height in enumerate(heights):
        about = {
            "Modality": "CT",
            "ImagePositionPatient": [FIRST[0], FIRST[1], FIRST[2] + SPACING[2] * height],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": list(SPACING[:2]),
            "RescaleSlope": 1,
            "RescaleIntercept": -1000,
        }
        file = folder / f"{(7 * n) % 5}_{n}.dcm"
        write_slice(file, STORED[n % SLICES], n, uid, **(about | tags))
    return uid
