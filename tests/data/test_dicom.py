"""Series written here with pydicom, and read back."""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from common.data.dicom import is_dicom, read_dicom
from common.errors import InputError

from ..conftest import REPOSITORY, shared
from ..running import command, succeed
from .series import (
    AFFINE,
    FIRST,
    HU,
    SLICES,
    STORED,
    compress,
    doubled,
    missing,
    multi_frame,
    slice_of,
    tilted,
    with_localisers,
    without_preamble,
    write_series,
)
from .test_ircadb import change, write_slice

pytest.importorskip("highdicom", reason="needs the extra dicom")


def test_values_and_place(tmp_path: Path):
    write_series(tmp_path / "ct")
    (tmp_path / "ct/notes.txt").write_text("no slice")
    values, affine = read_dicom(tmp_path / "ct")
    np.testing.assert_array_equal(values, HU)
    assert values.dtype == np.int32
    np.testing.assert_allclose(affine, AFFINE, atol=1e-9)


def test_rescale_of_each_slice(tmp_path: Path):
    write_series(tmp_path)
    change(slice_of(tmp_path, 2), RescaleSlope=2, RescaleIntercept=-24)
    change(slice_of(tmp_path, 3), RescaleSlope="0.5", RescaleIntercept="0.25")
    values, _ = read_dicom(tmp_path)
    np.testing.assert_array_equal(values[:, :, 1], HU[:, :, 1])
    np.testing.assert_array_equal(values[:, :, 2], 2 * STORED[2].T.astype(int) - 24)
    np.testing.assert_array_equal(values[:, :, 3], 0.5 * STORED[3].T + 0.25)


def test_sagittal_slices(tmp_path: Path):
    """Rows to the posterior, columns to the feet, slices to the right of the patient."""
    write_series(tmp_path, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    for n in range(SLICES):
        change(slice_of(tmp_path, n), ImagePositionPatient=[-2.5 * n, -80, 300])
    values, affine = read_dicom(tmp_path)
    np.testing.assert_array_equal(values, HU)
    np.testing.assert_allclose(affine @ (0, 0, 2, 1), (5, 80, 300, 1), atol=1e-9)
    np.testing.assert_allclose(affine @ (1, 1, 0, 1), (0, 79.3, 299.2, 1), atol=1e-9)


def uneven(folder: Path) -> None:
    change(slice_of(folder, 2), ImagePositionPatient=[FIRST[0], FIRST[1], FIRST[2] + 5.6])


def turned(folder: Path) -> None:
    change(slice_of(folder, 2), ImageOrientationPatient=[0, 1, 0, 0, 0, -1])


def other_spacing(folder: Path) -> None:
    change(slice_of(folder, 2), PixelSpacing=[1, 1])


def other_size(folder: Path) -> None:
    change(slice_of(folder, 2), Rows=3)


def no_orientation(folder: Path) -> None:
    change(slice_of(folder, 2), ImageOrientationPatient=None)


def no_position(folder: Path) -> None:
    change(slice_of(folder, 4), ImagePositionPatient=None)


def empty(folder: Path) -> None:
    slice_of(folder, 2).write_bytes(b"")


def cut(folder: Path) -> None:
    slice_of(folder, 2).write_bytes(slice_of(folder, 2).read_bytes()[:-9])


def coloured(folder: Path) -> None:
    change(slice_of(folder, 2), SamplesPerPixel=3, PhotometricInterpretation="RGB")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (tilted, r"stacked 11\.3 degrees off their normal \(gantry tilt\)"),
        (
            missing,
            r"lacks slices: \S*_1\.dcm and \S*_3\.dcm, at \(-100, -80, 302\.5\) mm and .*5 mm",
        ),
        (doubled, r"_2\.dcm and \S*9_9\.dcm are both at \(-100, -80, 305\) mm"),
        (uneven, r"uneven distances of 1\.9 to 3\.1 mm: .*_2\.dcm"),
        (turned, r"slices of several orientations, such as"),
        (other_spacing, r"several pixel spacings: .*, such as \S*_2\.dcm"),
        (other_size, r"several sizes: .*8 x 3.*, such as \S*_2\.dcm"),
        (no_orientation, r"_2\.dcm has no ImageOrientationPatient"),
        (no_position, r"_4\.dcm has no ImagePositionPatient"),
        (empty, r"_2\.dcm is no DICOM file"),
        (cut, r"_2\.dcm cannot be decoded \("),
        (coloured, r"_2\.dcm is in colours \(RGB\)"),
    ],
)
def test_what_makes_no_volume_is_named(tmp_path: Path, spoil, expected: str):
    write_series(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=expected) as raised:
        read_dicom(tmp_path)
    assert "\n" not in str(raised.value)


def test_positions_may_be_rounded(tmp_path: Path):
    write_series(tmp_path, heights=(0, 1.04, 1.96, 3, 4))
    np.testing.assert_array_equal(read_dicom(tmp_path)[0], HU)


def test_one_of_several_series(tmp_path: Path):
    uid = write_series(tmp_path / "a", SeriesDescription="Liver")
    other = write_series(tmp_path / "b", Modality="MR", SeriesDescription="T2")
    listed = rf"{uid} \(CT, 'Liver', 5 slices\)"
    with pytest.raises(InputError, match=rf"holds 2 series: .*{listed}.*series_uid"):
        read_dicom(tmp_path)
    np.testing.assert_array_equal(read_dicom(tmp_path, modality="CT")[0], HU)
    assert read_dicom(tmp_path, series_uid=other)[0].shape == HU.shape
    with pytest.raises(
        InputError, match=rf"no series of the series_uid 1\.2; allowed are .*{listed}"
    ):
        read_dicom(tmp_path, series_uid="1.2")
    with pytest.raises(InputError, match=r"no series of the modality CR or DX, but .*'T2'"):
        read_dicom(tmp_path, modality=("CR", "DX"))


def test_localisers_and_reports_are_left_out(tmp_path: Path):
    with_localisers(tmp_path, write_series(tmp_path))
    np.testing.assert_array_equal(read_dicom(tmp_path, modality="CT")[0], HU)


def test_enhanced_multi_frame(tmp_path: Path):
    file = tmp_path / "frames.dcm"
    multi_frame(file, (4, 2, 3, 1, 0))
    values, affine = read_dicom(file)
    np.testing.assert_array_equal(values, (HU - np.arange(SLICES))[:, :, [4, 3, 1, 2, 0]])
    np.testing.assert_allclose(affine, AFFINE, atol=1e-9)
    multi_frame(file, (0, 1, 1, 2, 3))
    with pytest.raises(InputError, match=r"frame 2 and frame 3 are both at \(-100, -80, 302\.5\)"):
        read_dicom(file)


def test_monochrome1_is_inverted_but_hu_are_hu(tmp_path: Path):
    write_series(tmp_path / "ct", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_dicom(tmp_path / "ct")[0], HU)
    film = tmp_path / "film.dcm"
    tags = {"Modality": "DX", "PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12}
    write_slice(film, STORED[0], 1, "1.2", HighBit=11, **tags)
    change(film, SOPClassUID=DigitalXRayImageStorageForPresentation)
    values, affine = read_dicom(film)
    assert affine is None
    np.testing.assert_array_equal(values, 4095 - STORED[0].T.astype(int))


def test_zip_files_are_read_where_they_are(tmp_path: Path):
    write_series(tmp_path / "ct")
    packed = tmp_path / "CT.ZIP"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("readme.txt", "no slice")
        for file in (tmp_path / "ct").iterdir():
            archive.write(file, f"../../{file.name}")
    assert is_dicom(packed)
    values, affine = read_dicom(packed)
    np.testing.assert_array_equal(values, HU)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CT.ZIP", "ct"]
    content = bytearray(packed.read_bytes())
    content[300:600] = bytes(300)
    packed.write_bytes(content)
    with pytest.raises(InputError, match=r"CT\.ZIP cannot be unpacked \("):
        read_dicom(packed)


def test_zip_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("common.data.dicom._MAX_BYTES", 100)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", bytes(101))
    with pytest.raises(InputError, match=r"a\.zip would unpack to 101 bytes in 1 files"):
        read_dicom(tmp_path / "a.zip")


def test_what_is_dicom(tmp_path: Path):
    write_series(tmp_path / "patient/study/ct")
    file = slice_of(tmp_path / "patient/study/ct", 0)
    shutil.copy(file, tmp_path / "IM0001")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.txt").write_text("a" * 200)
    (tmp_path / "bad.zip").write_text("no zip")
    for path, expected in {
        "patient": True,
        "patient/study/ct": True,
        "IM0001": True,
        "empty": False,
        "empty/a.txt": False,
        "bad.zip": False,
        "missing.dcm": False,
    }.items():
        assert is_dicom(tmp_path / path) == expected, path
    assert is_dicom(file)


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_slices_without_a_preamble(tmp_path: Path, meta: bool, syntax: str):
    folder = tmp_path / "patient/ct"
    write_series(folder)
    for n, file in enumerate(sorted(folder.iterdir())):
        data = pydicom.dcmread(file)
        data.file_meta.TransferSyntaxUID = syntax
        data.save_as(file, implicit_vr=syntax == ImplicitVRLittleEndian)
        without_preamble(file, meta)
        file.rename(file.with_name(f"IM{n}"))
    (folder / "notes").write_bytes(b"\x08\x00\x05\x00 and so on, but no DICOM")
    assert is_dicom(folder / "IM0")
    assert is_dicom(tmp_path / "patient")
    values, affine = read_dicom(tmp_path / "patient")
    np.testing.assert_array_equal(values, HU)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-9)


@pytest.mark.parametrize("start", [b"", b"\x08\x00", b"\x02\x00\x00", bytes(200), b"DICM"])
def test_bytes_that_are_no_dicom(tmp_path: Path, start: bytes):
    (tmp_path / "a").write_bytes(start)
    assert not is_dicom(tmp_path / "a")
    assert not is_dicom(tmp_path)


def test_jpeg_ls(tmp_path: Path):
    write_series(tmp_path)
    compress(tmp_path, JPEGLSLossless)
    np.testing.assert_array_equal(read_dicom(tmp_path)[0], HU)


def test_lossless_jpeg(tmp_path: Path):
    gdcm = pytest.importorskip("gdcm", reason="needs the extra dicom")
    write_series(tmp_path)
    for file in tmp_path.iterdir():
        reader = gdcm.ImageReader()
        reader.SetFileName(str(file))
        assert reader.Read()
        changed = gdcm.ImageChangeTransferSyntax()
        changed.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        changed.SetInput(reader.GetImage())
        assert changed.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(file))
        writer.SetFile(reader.GetFile())
        writer.SetImage(changed.GetOutput())
        assert writer.Write()
        assert pydicom.dcmread(file).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    np.testing.assert_array_equal(read_dicom(tmp_path)[0], HU)


def test_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_series(tmp_path)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(InputError, match=r'pip install "\.\[dicom\]" in this'):
        read_dicom(tmp_path)


def test_real_series_by_hand():
    """JPEG 2000, without the UIDs that anonymisation took; 3 mm slices every 2 mm."""
    folder = shared("data/real_ct_dicom")
    slices = sorted(map(pydicom.dcmread, folder.iterdir()), key=lambda s: s.ImagePositionPatient[2])
    by_hand = np.stack([s.pixel_array.T.astype(int) + int(s.RescaleIntercept) for s in slices], -1)
    values, affine = read_dicom(folder, modality="CT")
    np.testing.assert_array_equal(values, by_hand)
    x, y, z = map(float, slices[0].ImagePositionPatient)
    down, across = map(float, slices[0].PixelSpacing)
    step = float(slices[1].ImagePositionPatient[2]) - z
    expected = nib.affines.from_matvec(np.diag([-across, -down, step]), [-x, -y, z])
    np.testing.assert_allclose(affine, expected, atol=1e-9)


@pytest.mark.slow
def test_masks_of_a_real_series_as_of_its_nifti(tmp_path: Path):
    """The liver bundle's inference, with few weights, and those untrained."""
    bundle = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation"
    folder = shared("data/real_ct_dicom")
    values, affine = read_dicom(folder)
    nib.save(nib.Nifti1Image(values.astype(np.int16), affine), tmp_path / "ct.nii.gz")
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    small = {"network_def#init_filters": 8, "patch_size": [64, 64, 8], "spacing": [8, 8, 5]}
    parser = ConfigParser()
    parser.read_config(bundle / "configs/inference.json")
    parser.update(small)
    torch.manual_seed(0)
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    images = [str(path) for path in (tmp_path / "ct.nii.gz", tmp_path / "zipped.zip", folder)]
    places = {"output_dir": tmp_path / "masks", "checkpoint": tmp_path / "model.pt"}
    succeed(command(bundle, "inference", datalist=images, **places, **small))
    names = [f"{name}_seg.nii.gz" for name in ("ct", "zipped", "real_ct_dicom")]
    nifti, *series = (nib.load(tmp_path / "masks" / name) for name in names)
    assert len(np.unique(nifti.dataobj)) > 1
    for mask in series:
        np.testing.assert_array_equal(mask.dataobj, nifti.dataobj)
        np.testing.assert_allclose(mask.affine, affine, atol=1e-4)
