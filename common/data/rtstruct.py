"""Label maps as DICOM RT structure sets: the outline of each class on each slice it is of.

Outlines are those of scikit-image's marching squares, midway between the centres of pixels inside
and outside: what has its centre within one is inside, so that filling them gives the label map
back. A hole is joined to the outline around it by a line there and back (the keyhole of DICOM PS3.3
C.8.8.6.3), as programs take closed planar contours apart otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from ..files import replacing
from .dicom_codes import coded
from .dicom_source import OF_THE_STUDY, Maker, Plane, Segment, planes_of, series_number

Outline = NDArray[np.float64]  # (points, 2): rows and columns


def write_rtstruct(
    path: str | Path,
    labels: NDArray[np.integer],
    affine: ArrayLike,
    series: Mapping[str, Any],
    segments: Sequence[Segment],
    maker: Maker,
) -> None:
    """Write a label map as an RT Structure Set, one structure a class, by pydicom.

    A class without a voxel is a structure without contours.

    Args:
        path: the file.
        labels: (columns, rows, slices), on the grid of the series.
        affine: of it, (4, 4), to RAS, mm.
        series: the slices, as `read_series` gives them.
        segments: the classes; others are background.
        maker: what made it.

    Raises:
        InputError: as `planes_of`.
        OSError: the file cannot be written.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    planes = planes_of(series, affine, labels.shape)
    source, now = planes[0].instance, datetime.now()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian  # explicit ones hold 64 KiB of a contour
    data = Dataset()
    data.file_meta = meta
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = RTStructureSetStorage
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    for tag in OF_THE_STUDY:
        value = source.get(tag)
        setattr(data, tag, "" if value is None else str(value))
    data.StudyInstanceUID = source.StudyInstanceUID
    data.Modality = "RTSTRUCT"
    data.SeriesInstanceUID = generate_uid()
    data.SeriesNumber = series_number(source)
    data.SeriesDescription = f"Segmentation by {maker.bundle}"[:64]
    data.OperatorsName = ""
    data.Manufacturer = "MONAI Mamba bundles"
    data.ManufacturerModelName = maker.bundle[:64]
    data.SoftwareVersions = maker.version
    data.DeviceSerialNumber = maker.weights[:16]
    data.FrameOfReferenceUID = source.FrameOfReferenceUID
    data.PositionReferenceIndicator = ""
    data.InstanceNumber = 1
    data.InstanceCreationDate = data.StructureSetDate = now.strftime("%Y%m%d")
    data.InstanceCreationTime = data.StructureSetTime = now.strftime("%H%M%S")
    data.StructureSetLabel = "SEGMENTATION"
    data.ApprovalStatus = "UNAPPROVED"
    data.ReferencedFrameOfReferenceSequence = [_referenced(planes)]
    data.StructureSetROISequence = [
        _item(
            ROINumber=number,
            ReferencedFrameOfReferenceUID=source.FrameOfReferenceUID,
            ROIName=segment.name[:64],
            ROIGenerationAlgorithm="AUTOMATIC",
        )
        for number, segment in enumerate(segments, start=1)
    ]
    data.ROIContourSequence = [
        _structure(number, segment, labels, planes)
        for number, segment in enumerate(segments, start=1)
    ]
    data.RTROIObservationsSequence = [
        _item(
            ObservationNumber=number,
            ReferencedROINumber=number,
            RTROIIdentificationCodeSequence=[_code(coded(segment.name).kind)],
            RTROIInterpretedType="",
            ROIInterpreter="",
        )
        for number, segment in enumerate(segments, start=1)
    ]
    with replacing(path) as partial:
        data.save_as(partial, enforce_file_format=True)


def outlines(mask: NDArray[np.bool_]) -> Iterator[Outline]:
    """Closed polygons around a mask (rows, columns), of which the last point is not the first.

    Each connected part, pixels sharing a side, has one; its holes are joined to it. Points are in
    rows and columns, a pixel's centre being whole numbers.
    """
    from skimage.measure import find_contours

    parts, _ = ndimage.label(mask)
    for number, box in enumerate(ndimage.find_objects(parts), start=1):
        # With a pixel around its box, where nothing of it is.
        part = np.pad(parts[box] == number, 1).astype(np.float64)
        corner = np.array([place.start - 1 for place in box], np.float64)
        rings = [ring[:-1] for ring in find_contours(part, 0.5)]
        outer, *holes = sorted(rings, key=_area, reverse=True)
        for hole in holes:
            outer = _joined(outer, hole)
        yield _straightened(outer) + corner


def _straightened(ring: Outline) -> Outline:
    """Without the points that are on the line between those before and after them."""
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    turns = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return ring[np.abs(turns) > 1e-9]


def _area(ring: Outline) -> float:
    y, x = ring.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _joined(outer: Outline, hole: Outline) -> Outline:
    """One polygon of two, by a line there and back where they are the nearest.

    It begins and ends on edges, not at points of the grid, so that it runs through no pixel's
    centre, of which programs could not tell on which side of the line it is.
    """
    at, to = np.unravel_index(cdist(outer, hole).argmin(), (len(outer), len(hole)))
    around = np.roll(hole, -int(to), 0)
    begin = outer[at] + 0.29 * (outer[(at + 1) % len(outer)] - outer[at])
    end = around[0] + 0.37 * (around[1] - around[0])
    there_and_back = [[begin, end], around[1:], around[:1], [end, begin]]
    return np.concatenate([outer[: at + 1], *there_and_back, outer[at + 1 :]])


def _structure(
    number: int, segment: Segment, labels: NDArray[np.integer], planes: Sequence[Plane]
) -> Any:
    structure = _item(ReferencedROINumber=number, ROIDisplayColor=list(segment.rgb))
    contours = []
    for k, plane in enumerate(planes):
        section = labels[:, :, k].T
        for outline in outlines(section == segment.value):
            points = plane.points(outline)
            contours.append(
                _item(
                    ContourImageSequence=[_reference(plane)],
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(points),
                    ContourData=[f"{x:.4f}" for x in points.ravel()],
                )
            )
    if contours:
        structure.ContourSequence = contours
    return structure


def _referenced(planes: Sequence[Plane]) -> Any:
    """The frame of reference, the study, the series, and its images."""
    source = planes[0].instance
    by_uid = {plane.instance.SOPInstanceUID: plane for plane in planes}
    images = [_reference(plane._replace(frame=None)) for plane in by_uid.values()]
    series = _item(SeriesInstanceUID=source.SeriesInstanceUID, ContourImageSequence=images)
    study = _item(
        # What the standard has here since Study Component Management was retired.
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=source.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=source.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _reference(plane: Plane) -> Any:
    item = _item(
        ReferencedSOPClassUID=plane.instance.SOPClassUID,
        ReferencedSOPInstanceUID=plane.instance.SOPInstanceUID,
    )
    if plane.frame is not None:
        item.ReferencedFrameNumber = plane.frame
    return item


def _code(code: Any) -> Any:
    return _item(
        CodeValue=code.value,
        CodingSchemeDesignator=code.scheme_designator,
        CodeMeaning=code.meaning,
    )


def _item(**tags: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return item
