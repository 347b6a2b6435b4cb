"""Label maps as DICOM segmentations and RT structure sets, read back by other means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from common.data.dicom import read_dicom, read_series
from common.data.dicom_codes import coded, is_lesion
from common.data.dicom_seg import write_dicom_seg
from common.data.dicom_source import Maker, Segment
from common.data.rtstruct import outlines, write_rtstruct
from common.errors import InputError

from .series import COLUMNS, FIRST, ROWS, SLICES, SPACING, multi_frame, slice_of, write_series
from .test_ircadb import change

highdicom = pytest.importorskip("highdicom", reason="needs the extra dicom")

MAKER = Maker("liver_ct_test_segmentation", "0.1.0", "0123456789abcdef" * 4)
SEGMENTS = [Segment(1, "liver", "#009E73"), Segment(2, "tumour", "#CC79A7")]


def labels() -> NDArray[np.uint8]:
    """Two classes, with a hole, parts that touch at a corner, and a slice without any."""
    found = np.zeros((COLUMNS, ROWS, SLICES), np.uint8)
    found[1:6, 1:6, 1:] = 1
    found[3, 3, 1:] = 0
    found[2, 2, 2:4] = 2
    found[6, 0, 2] = found[7, 1, 2] = 2
    return found


@pytest.fixture
def series(tmp_path: Path) -> Path:
    ids = {tag: generate_uid() for tag in ("StudyInstanceUID", "FrameOfReferenceUID")}
    patient = {"PatientID": "7", "PatientName": "Doe^Jane", "SeriesNumber": 3}
    write_series(tmp_path / "ct", **ids, **patient)
    return tmp_path / "ct"


def source(folder: Path) -> tuple[Any, dict[str, Any]]:
    return read_dicom(folder)[1], read_series(folder)


def frames_by_hand(file: Path, segments: int) -> NDArray[np.uint8]:
    """What a segmentation's frames say, by pydicom alone: (columns, rows, slices)."""
    data = pydicom.dcmread(file)
    pixels = data.pixel_array.reshape(-1, ROWS, COLUMNS)
    found = np.zeros((COLUMNS, ROWS, SLICES), np.uint8)
    for frame, about in zip(pixels, data.PerFrameFunctionalGroupsSequence, strict=True):
        position = about.PlanePositionSequence[0].ImagePositionPatient
        k = round((float(position[2]) - FIRST[2]) / SPACING[2])
        number = 1
        if segments > 1:
            number = about.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[:, :, k][frame.T > 0] = number
    return found


def test_segmentation_is_the_label_map(series: Path, tmp_path: Path):
    file = tmp_path / "seg.dcm"
    write_dicom_seg(file, labels(), *source(series), SEGMENTS, MAKER)
    np.testing.assert_array_equal(frames_by_hand(file, 2), labels())

    found = highdicom.seg.segread(file)
    instances = [pydicom.dcmread(slice_of(series, n)) for n in range(SLICES)]
    pixels = found.get_pixels_by_source_instance(
        [data.SOPInstanceUID for data in instances],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(pixels.transpose(2, 1, 0), labels())
    liver, tumour = (found.get_segment_description(number) for number in (1, 2))
    assert (liver.segment_label, tumour.segment_label) == ("liver", "tumour")
    assert liver.segmented_property_type.value == "10200004"
    assert tumour.segmented_property_type.value == "108369006"
    assert tumour.segmented_property_category.value == "49755003"
    assert liver.algorithm_identification[0].AlgorithmName == MAKER.bundle
    assert found.StudyInstanceUID == instances[0].StudyInstanceUID
    assert found.FrameOfReferenceUID == instances[0].FrameOfReferenceUID
    assert found.SeriesInstanceUID != instances[0].SeriesInstanceUID
    assert (found.PatientID, str(found.PatientName)) == ("7", "Doe^Jane")


def test_segmentation_of_chosen_classes(series: Path, tmp_path: Path):
    """Segments are counted from 1, whatever values they have."""
    file = tmp_path / "seg.dcm"
    write_dicom_seg(file, labels(), *source(series), SEGMENTS[1:], MAKER)
    np.testing.assert_array_equal(frames_by_hand(file, 1) > 0, labels() == 2)


def test_nothing_found(series: Path, tmp_path: Path):
    nothing = labels() * 0
    write_dicom_seg(tmp_path / "seg.dcm", nothing, *source(series), SEGMENTS, MAKER)
    assert not pydicom.dcmread(tmp_path / "seg.dcm").pixel_array.any()
    write_rtstruct(tmp_path / "rt.dcm", nothing, *source(series), SEGMENTS, MAKER)
    data = pydicom.dcmread(tmp_path / "rt.dcm")
    assert [roi.ROIName for roi in data.StructureSetROISequence] == ["liver", "tumour"]
    assert not any("ContourSequence" in roi for roi in data.ROIContourSequence)


def test_frames_of_one_file(tmp_path: Path):
    """An enhanced CT, whose frames are in another order than slices are."""
    file = tmp_path / "frames.dcm"
    multi_frame(file, (4, 2, 3, 1, 0))
    write_dicom_seg(tmp_path / "seg.dcm", labels(), *source(file), SEGMENTS, MAKER)
    np.testing.assert_array_equal(frames_by_hand(tmp_path / "seg.dcm", 2), labels())
    write_rtstruct(tmp_path / "rt.dcm", labels(), *source(file), SEGMENTS, MAKER)
    data = pydicom.dcmread(tmp_path / "rt.dcm")
    references = {
        int(contour.ContourImageSequence[0].ReferencedFrameNumber): float(contour.ContourData[2])
        for contour in data.ROIContourSequence[0].ContourSequence
    }
    assert references == {
        n: pytest.approx(FIRST[2] + SPACING[2] * height)
        for n, height in enumerate((4, 2, 3, 1), start=1)
    }


def rasterised(polygon: NDArray[np.float64], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centres are in a polygon of (row, column)."""
    centres = np.argwhere(np.ones(shape, bool))
    return Polygon(polygon, closed=False).contains_points(centres).reshape(shape)


def test_structures_rasterised_are_the_label_map(series: Path, tmp_path: Path):
    write_rtstruct(tmp_path / "rt.dcm", labels(), *source(series), SEGMENTS, MAKER)
    data = pydicom.dcmread(tmp_path / "rt.dcm")
    files = {file.SOPInstanceUID: file for file in map(pydicom.dcmread, series.glob("*.dcm"))}
    frame = data.ReferencedFrameOfReferenceSequence[0]
    assert frame.FrameOfReferenceUID == next(iter(files.values())).FrameOfReferenceUID
    referred = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert {image.ReferencedSOPInstanceUID for image in referred.ContourImageSequence} == {*files}
    assert str(data.PatientName) == "Doe^Jane"

    names = {roi.ROINumber: roi.ROIName for roi in data.StructureSetROISequence}
    found = {name: np.zeros((COLUMNS, ROWS, SLICES), bool) for name in names.values()}
    for roi in data.ROIContourSequence:
        for contour in roi.ContourSequence:
            assert contour.ContourGeometricType == "CLOSED_PLANAR"
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            file = files[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            place = np.array(file.ImagePositionPatient, float)
            np.testing.assert_allclose(points[:, 2], place[2], atol=1e-3)
            pixels = (points - place)[:, [1, 0]] / SPACING[:2]
            k = round((place[2] - FIRST[2]) / SPACING[2])
            found[names[roi.ReferencedROINumber]][:, :, k] |= rasterised(pixels, (ROWS, COLUMNS)).T
    np.testing.assert_array_equal(found["liver"], labels() == 1)
    np.testing.assert_array_equal(found["tumour"], labels() == 2)


@pytest.mark.parametrize("seed", range(6))
def test_outlines_hold_the_mask_and_nothing_else(seed: int):
    """Whatever it is: holes in holes, parts at corners, at the border, single pixels."""
    generator = np.random.default_rng(seed)
    mask = generator.random((23, 19)) < (0.3 + 0.08 * seed)
    found = np.zeros_like(mask)
    for polygon in outlines(mask):
        part = rasterised(polygon, mask.shape)
        assert not (found & part).any()
        found |= part
    np.testing.assert_array_equal(found, mask)


def test_outlines_have_no_more_points_than_corners():
    mask = np.zeros((40, 30), bool)
    mask[5:25, 3:20] = True
    (polygon,) = outlines(mask)
    assert len(polygon) == 8  # each corner is cut


@pytest.mark.parametrize(
    "tag", ["SOPInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID"]
)
def test_series_without_its_uids(series: Path, tmp_path: Path, tag: str):
    for n in range(SLICES):
        change(slice_of(series, n), **{tag: None})
    for write in (write_dicom_seg, write_rtstruct):
        with pytest.raises(InputError, match=rf"\.dcm has no {tag}, by which .*fill_uids"):
            write(tmp_path / "out.dcm", labels(), *source(series), SEGMENTS, MAKER)
    assert not (tmp_path / "out.dcm").exists()


def test_another_series(series: Path, tmp_path: Path):
    affine, files = source(series)
    with pytest.raises(ValueError, match="The series has 5 slices, and the label map 4"):
        write_rtstruct(tmp_path / "o.dcm", labels()[..., :4], affine, files, SEGMENTS, MAKER)


@pytest.mark.parametrize(
    ("name", "value", "category", "side"),
    [
        ("liver", "10200004", "91723000", None),
        ("Lungs", "39607008", "91723000", None),
        ("tumour", "108369006", "49755003", None),
        ("liver_tumor", "108369006", "49755003", None),
        ("left kidney", "64033007", "91723000", "7771000"),
        ("oesophagus", "32849002", "91723000", None),
    ],
)
def test_codes(name: str, value: str, category: str, side: str | None):
    found = coded(name)
    assert (found.kind.value, found.kind.scheme_designator) == (value, "SCT")
    assert found.category.value == category
    assert (found.side.value if found.side else None) == side


def test_names_without_a_code():
    kind = coded("class 4").kind
    assert (kind.value, kind.scheme_designator, kind.meaning) == ("class_4", "99MAMBA", "class 4")


def test_which_classes_are_lesions():
    names = ["liver", "tumour", "enhancing tumour", "Liver cysts", "lung", "vena cava", "lesion_2"]
    assert [name for name in names if is_lesion(name)] == [
        *("tumour", "enhancing tumour", "Liver cysts", "lesion_2"),
    ]
