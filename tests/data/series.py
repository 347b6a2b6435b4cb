"""A small CT as DICOM slices, and what may be odd about it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from .test_ircadb import change, write_slice

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


def slice_of(folder: Path, n: int) -> Path:
    return next(folder.glob(f"*_{n}.dcm"))


def tilted(folder: Path) -> None:
    for n in range(SLICES):
        position = [FIRST[0], FIRST[1] + 0.5 * n, FIRST[2] + SPACING[2] * n]
        change(slice_of(folder, n), ImagePositionPatient=position)


def missing(folder: Path) -> None:
    slice_of(folder, 2).unlink()


def doubled(folder: Path) -> None:
    shutil.copy(slice_of(folder, 2), folder / "9_9.dcm")


def with_localisers(folder: Path, uid: str) -> None:
    """In the series itself; and a dose report, which has no place."""
    write_series(folder / "scout", uid, (7, 30), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(folder / "dose", heights=(0,), ImagePositionPatient=None)


def multi_frame(file: Path, positions: Sequence[float]) -> None:
    """An enhanced CT, its frames at multiples of their distance, each with its own intercept."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = EnhancedCTImageStorage, generate_uid()
    for name in ("SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(data, name, generate_uid())
    data.Modality, data.NumberOfFrames = "CT", SLICES
    data.Rows, data.Columns, data.SamplesPerPixel = ROWS, COLUMNS, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = STORED.tobytes()

    def item(**tags: object) -> Dataset:
        made = Dataset()
        for name, value in tags.items():
            setattr(made, name, value)
        return made

    orientation = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    measures = item(PixelSpacing=list(SPACING[:2]), SliceThickness=SPACING[2])
    data.SharedFunctionalGroupsSequence = [
        item(PlaneOrientationSequence=[orientation], PixelMeasuresSequence=[measures])
    ]
    data.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[
                item(ImagePositionPatient=[FIRST[0], FIRST[1], FIRST[2] + SPACING[2] * height])
            ],
            PixelValueTransformationSequence=[
                item(RescaleSlope=1, RescaleIntercept=-1000 - n, RescaleType="HU")
            ],
        )
        for n, height in enumerate(positions)
    ]
    data.save_as(file, enforce_file_format=True)


def compress(folder: Path, syntax: str) -> None:
    for file in folder.iterdir():
        data = pydicom.dcmread(file)
        data.compress(syntax, generate_instance_uid=False)
        data.save_as(file)


def without_preamble(file: Path, meta: bool) -> None:
    """What some archives keep: neither the 128 bytes nor DICM, or not even the file's own group."""
    data = file.read_bytes()[132:]
    length = int.from_bytes(data[8:12], "little")  # of what follows the first element of the group
    file.write_bytes(data if meta else data[12 + length :])
