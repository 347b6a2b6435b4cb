"""3D-IRCADb-01's layout, written here with pydicom as the archive has it, and read back."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from common.data import labelled_cases, split_cases, write_ircadb
from common.errors import InputError

from ..cli.test_cli import refused, run
from ..conftest import shared

ROWS, COLUMNS, SLICES = 20, 24, 5
SPACING = (0.8, 0.7, 2.5)  # between rows, columns and slices, mm
FIRST = (-100.0, -80.0, 300.0)  # LPS, mm, of the lowest slice's first voxel


def write_slice(
    file: Path, pixels: NDArray, number: int, series: str | None, **tags: object
) -> None:
    """A DICOM file of one slice, stored as the archive's are: without an ending, uncompressed."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = pydicom.Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    if series is not None:
        data.SeriesInstanceUID = series
    data.InstanceNumber = number
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    file.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(file, enforce_file_format=True)


def stored(z: int) -> NDArray[np.int16]:
    """Of the slice at height z; HU = 2 stored - 1000."""
    row, column = np.indices((ROWS, COLUMNS))
    return (100 * z + 10 * row + column).astype(np.int16)


def write_patient(folder: Path, structures: dict[str, set[int]], reverse: bool = False) -> None:
    """A CT whose names run downwards if reversed; a structure fills rows 5 to 9 of its slices."""
    series = generate_uid()
    for z in range(SLICES):
        name = f"image_{SLICES - 1 - z if reverse else z}"
        write_slice(
            folder / "PATIENT_DICOM" / name,
            stored(z),
            number=z + 1,
            series=series,
            ImagePositionPatient=[FIRST[0], FIRST[1], FIRST[2] + SPACING[2] * z],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=list(SPACING[:2]),
            RescaleSlope=2,
            RescaleIntercept=-1000,
        )
        for structure, heights in structures.items():
            pixels = np.zeros((ROWS, COLUMNS), np.uint8)
            pixels[5:10, 3 : 8 if structure == "liver" else 5] = 255 * (z in heights)
            write_slice(folder / "MASKS_DICOM" / structure / name, pixels, z + 1, None)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "3Dircadb1"
    tumours = {"livertumor01": {1}, "livertumor02": {2}, "leftsurretumor": {0}, "livercyst": {0}}
    write_patient(root / "3Dircadb1.2", {"liver": {0, 1, 2}} | tumours, reverse=True)
    write_patient(root / "3Dircadb1.10", {"liver": {3, 4}, "leftkidney": {0}})
    return root


def test_values_label_and_place(archive: Path, tmp_path: Path):
    cases = write_ircadb(archive, tmp_path / "out", progress=False)
    assert [(case.name, case.slices) for case in cases] == [
        ("3Dircadb1_02", 5),
        ("3Dircadb1_10", 5),
    ]
    assert [case.structures for case in cases] == [
        ("liver", "livertumor01", "livertumor02"),
        ("liver",),
    ]
    image = nib.load(tmp_path / "out/imagesTr/3Dircadb1_02.nii.gz")
    label = nib.load(tmp_path / "out/labelsTr/3Dircadb1_02.nii.gz")
    assert image.shape == label.shape == (COLUMNS, ROWS, SLICES)
    assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
    hu = np.stack([2 * stored(z).T - 1000 for z in range(SLICES)], -1)
    np.testing.assert_array_equal(image.dataobj, hu)
    expected = np.zeros(image.shape)
    expected[3:8, 5:10, :3] = 1
    expected[3:5, 5:10, 1:3] = 2
    np.testing.assert_array_equal(label.dataobj, expected)

    np.testing.assert_allclose(image.affine, label.affine)
    assert image.header.get_zooms() == pytest.approx((0.7, 0.8, 2.5))
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    # Column 7, row 9, slice 2 is at 100 - 7 x 0.7 mm to the right, 80 - 9 x 0.8 anterior, 305 up.
    np.testing.assert_allclose(image.affine @ (7, 9, 2, 1), (95.1, 72.8, 305, 1), atol=1e-4)

    other = nib.load(tmp_path / "out/labelsTr/3Dircadb1_10.nii.gz")
    assert np.unique(other.dataobj).tolist() == [0, 1]
    assert np.unique(np.nonzero(other.dataobj)[2]).tolist() == [3, 4]


def test_every_case_can_be_evaluated(archive: Path, tmp_path: Path):
    write_ircadb(archive, tmp_path / "out", progress=False)
    assert len(labelled_cases(tmp_path / "out")) == 2
    assert len(split_cases(tmp_path / "out", "test", ratios=[0, 0, 1])) == 2
    about = json.loads((tmp_path / "out/dataset.json").read_text())
    assert (about["numTraining"], about["labels"]["2"]) == (2, "tumour")


def test_tilted_slices(tmp_path: Path):
    """Rows to the patient's posterior, columns to the head, slices to the left; shuffled names."""
    folder = tmp_path / "sagittal.1"
    write_patient(folder, {"liver": {1}})
    for z, x in enumerate((20.0, 10.0, 40.0, 30.0, 0.0)):
        file = folder / f"PATIENT_DICOM/image_{z}"
        data = pydicom.dcmread(file)
        data.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        data.ImagePositionPatient = [-x, -80, 300]
        data.save_as(file)
    write_ircadb(folder, tmp_path / "out", progress=False)
    image = nib.load(tmp_path / "out/imagesTr/sagittal_01.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("P", "I", "R")
    # In order to the right: slices 4, 1, 0, 3, 2.
    assert np.asarray(image.dataobj)[0, 0].tolist() == [2 * 100 * z - 1000 for z in (4, 1, 0, 3, 2)]
    np.testing.assert_allclose(image.affine @ (0, 0, 3, 1), (30, 80, 300, 1), atol=1e-4)
    np.testing.assert_allclose(image.affine @ (1, 1, 0, 1), (0, 79.3, 299.2, 1), atol=1e-4)
    label = nib.load(tmp_path / "out/labelsTr/sagittal_01.nii.gz")
    assert np.unique(np.nonzero(label.dataobj)[2]).tolist() == [1]


def test_masks_of_other_names_pair_by_instance_number(archive: Path, tmp_path: Path):
    masks = archive / "3Dircadb1.10/MASKS_DICOM/liver"
    for number, file in enumerate(sorted(masks.iterdir())):
        file.rename(masks / f"mask{number}.dcm")
    write_ircadb(archive / "3Dircadb1.10", tmp_path / "out", progress=False)
    label = nib.load(tmp_path / "out/labelsTr/3Dircadb1_10.nii.gz")
    assert np.unique(np.nonzero(label.dataobj)[2]).tolist() == [3, 4]


def zipped(patient: Path) -> None:
    shutil.make_archive(str(patient / "MASKS_DICOM"), "zip", patient / "MASKS_DICOM")
    shutil.rmtree(patient / "MASKS_DICOM")


def without_liver(patient: Path) -> None:
    shutil.rmtree(patient / "MASKS_DICOM/liver")


def without_a_slice(patient: Path) -> None:
    for part in ("PATIENT_DICOM", "MASKS_DICOM/liver"):
        (patient / part / "image_2").unlink()


def without_a_masks_slice(patient: Path) -> None:
    (patient / "MASKS_DICOM/liver/image_4").unlink()


def twice(patient: Path) -> None:
    shutil.copy(patient / "PATIENT_DICOM/image_1", patient / "PATIENT_DICOM/image_9")


def two_series(patient: Path) -> None:
    change(patient / "PATIENT_DICOM/image_1", SeriesInstanceUID=generate_uid())


def other_spacing(patient: Path) -> None:
    change(patient / "PATIENT_DICOM/image_1", PixelSpacing=[1, 1])


def no_position(patient: Path) -> None:
    change(patient / "PATIENT_DICOM/image_1", ImagePositionPatient=None)


def smaller_mask(patient: Path) -> None:
    write_slice(patient / "MASKS_DICOM/liver/image_1", np.zeros((4, 5), np.uint8), 2, None)


def text(patient: Path) -> None:
    (patient / "PATIENT_DICOM/readme.txt").write_text("no slice")


def cut(patient: Path) -> None:
    file = patient / "PATIENT_DICOM/image_1"
    file.write_bytes(file.read_bytes()[:-100])


def change(file: Path, **tags: object) -> None:
    data = pydicom.dcmread(file)
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(file)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            zipped,
            r"MASKS_DICOM\.zip is still packed; unzip it to .*3Dircadb1\.10/MASKS_DICOM first",
        ),
        (without_liver, "has no mask of the liver, but leftkidney; needed is a folder liver"),
        (without_a_slice, "image_1 and image_3 are 5 mm apart, others 2.5 mm"),
        (without_a_masks_slice, "liver holds 4 slices, .*PATIENT_DICOM 5, which do not pair"),
        (twice, "image_1 and image_9 at the same place; allowed is one"),
        (two_series, "holds slices of 2 series; allowed is one"),
        (other_spacing, "holds slices of 2 pixel spacings; allowed is one"),
        (no_position, "image_1 has no ImagePositionPatient"),
        (smaller_mask, "image_1 has 5 x 4 pixels; allowed are those of its CT, 24 x 20"),
        (text, "readme.txt cannot be read as DICOM"),
        (cut, "image_1 cannot be decoded"),
    ],
)
def test_what_does_not_fit_is_named(archive: Path, tmp_path: Path, spoil, expected: str):
    spoil(archive / "3Dircadb1.10")
    with pytest.raises(InputError, match=expected) as raised:
        write_ircadb(archive, tmp_path / "out", progress=False)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3Dircadb1"]


def test_folders(archive: Path, tmp_path: Path):
    with pytest.raises(InputError, match="There is no folder"):
        write_ircadb(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no patient"):
        write_ircadb(tmp_path / "empty", tmp_path / "out")
    # Some unzip into a folder of the same name; whose parent may be given too.
    inner = archive / "3Dircadb1.2/PATIENT_DICOM"
    inner.rename(archive / "3Dircadb1.2/moved")
    inner.mkdir()
    (archive / "3Dircadb1.2/moved").rename(inner / "PATIENT_DICOM")
    assert len(write_ircadb(tmp_path, tmp_path / "out", progress=False)) == 2
    with pytest.raises(InputError, match="out exists already; allowed is a new or empty folder"):
        write_ircadb(archive, tmp_path / "out", progress=False)


def test_command(archive: Path, tmp_path: Path):
    done = run("ircadb", "--input", archive, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "3Dircadb1_02  5 slices  liver, livertumor01, livertumor02",
        "3Dircadb1_10  5 slices  liver",
        f"2 cases are in {tmp_path}/out",
    ]
    message = refused(
        "ircadb", "--input", archive / "3Dircadb1.2/MASKS_DICOM", "--output", tmp_path
    )
    assert "holds no patient" in message


@pytest.mark.slow
def test_compressed_slices_of_a_real_ct(tmp_path: Path):
    """JPEG 2000; the mask is what is denser than fat, so that its place can be compared."""
    patient = tmp_path / "3Dircadb1.1"
    shutil.copytree(shared("data/real_ct_dicom"), patient / "PATIENT_DICOM")
    for file in (patient / "PATIENT_DICOM").iterdir():
        data = pydicom.dcmread(file)
        dense = (data.pixel_array * data.RescaleSlope + data.RescaleIntercept > 0) * np.uint8(255)
        write_slice(patient / "MASKS_DICOM/liver" / file.name, dense, data.InstanceNumber, None)
    write_ircadb(patient, tmp_path / "out", progress=False)
    image = nib.load(tmp_path / "out/imagesTr/3Dircadb1_01.nii.gz")
    label = nib.load(tmp_path / "out/labelsTr/3Dircadb1_01.nii.gz")
    assert image.shape == (512, 512, 20)
    assert image.header.get_zooms() == pytest.approx((0.9765625, 0.9765625, 2))
    hu = np.asarray(image.dataobj)
    assert hu.min() == -1024
    np.testing.assert_array_equal(np.asarray(label.dataobj) == 1, hu > 0)
    np.testing.assert_allclose(image.affine[:3, 3], (249.51171875, 437.51171875, -804.5), atol=1e-4)


def test_without_pydicom(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match="pip install pydicom"):
        write_ircadb(archive, tmp_path / "out", progress=False)
