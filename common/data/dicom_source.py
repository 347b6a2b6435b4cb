"""What DICOM objects of a label map share: the slices it is of, its classes, and who made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from .dicom import NO_UID, frame_places

# By which an object refers to an image.
_UIDS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"),
    "FrameOfReferenceUID",
)
# Of patient and study: an object has to have them, and may have them empty.
OF_THE_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from RAS
_SERIES = 1000  # is added to the source's number


class Segment(NamedTuple):
    """A class of a label map.

    Attributes:
        value: in the label map.
        name: what people call it.
        colour: red, green and blue, "#009E73".
    """

    value: int
    name: str
    colour: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        red, green, blue = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return red, green, blue


class Maker(NamedTuple):
    """What made a label map: a bundle, its version, and the SHA-256 of its weights."""

    bundle: str
    version: str
    weights: str


class Plane(NamedTuple):
    """A slice of a series.

    Attributes:
        instance: the file that has it, as pydicom's dataset.
        frame: which of the file's it is, from 1; None of a file of one slice.
        corner: the centre of its first pixel, (3,), mm, LPS.
        across, down: from a pixel to the next one of its row, and of its column, (3,), mm.
    """

    instance: Any
    frame: int | None
    corner: NDArray[np.float64]
    across: NDArray[np.float64]
    down: NDArray[np.float64]

    def points(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where in the patient places of the slice are, (n, 3), of (row, column), (n, 2)."""
        return self.corner + pixels[:, :1] * self.down + pixels[:, 1:] * self.across


def planes_of(series: Mapping[str, Any], affine: ArrayLike, size: Sequence[int]) -> list[Plane]:
    """The slices of a series in the order of a label map's, its third axis.

    Args:
        series: as `read_series` gives it.
        affine: of the label map, (4, 4), to RAS, mm.
        size: (columns, rows, slices).

    Raises:
        InputError: a file lacks a UID, or its place in the patient.
        ValueError: the series is not that of the label map.
    """
    for name, instance in series.items():
        for tag in _UIDS:
            if str(instance.get(tag) or NO_UID) == NO_UID:
                raise InputError(
                    f"{name} has no {tag}, by which DICOM objects refer to it; needed are files "
                    "with their UIDs, of which docs/fill_uids.py makes new ones."
                )
    to_lps = _TO_LPS @ np.asarray(affine, np.float64)
    to_voxels = np.linalg.inv(to_lps)
    found: dict[int, Plane] = {}
    for instance, frame, position in _positions(series):
        corner = np.array(position, np.float64)
        voxel = (to_voxels @ [*corner, 1.0])[:3]
        if np.abs(voxel - [0, 0, round(voxel[2])]).max() > 0.5:
            raise ValueError(f"A slice of the series is at voxel {voxel} of the label map.")
        found[round(voxel[2])] = Plane(instance, frame, corner, to_lps[:3, 0], to_lps[:3, 1])
    if sorted(found) != list(range(size[2])):
        raise ValueError(f"The series has {len(found)} slices, and the label map {size[2]}.")
    return [found[k] for k in range(size[2])]


def _positions(series: Mapping[str, Any]) -> Iterator[tuple[Any, int | None, Any]]:
    for name, instance in series.items():
        if int(instance.get("NumberOfFrames") or 1) > 1:
            for number, position in enumerate(frame_places(instance)[0], start=1):
                yield instance, number, position
        elif not instance.get("ImagePositionPatient"):
            raise InputError(
                f"{name} has no ImagePositionPatient; DICOM objects refer to slices that have "
                "their place in the patient."
            )
        else:
            yield instance, None, instance.ImagePositionPatient


def series_number(source: Any) -> int:
    """The number of a series that is made of another one."""
    return _SERIES + int(source.get("SeriesNumber") or 0)
