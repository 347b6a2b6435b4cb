from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.data.readers import FormatReader
from common.errors import InputError

VALUES = np.random.default_rng(0).integers(-1000, 1000, (8, 9, 10)).astype(np.int16)
# Turned about two axes, with a flip: whatever takes LPS for RAS or an axis for another is seen.
AXES = nib.eulerangles.euler2mat(0.3, -0.2, 0.1) @ np.diag([-1.0, 1.0, 1.0])
AFFINE = nib.affines.from_matvec(AXES @ np.diag([0.7, 0.8, 2.5]), [11, -22, 33])


def nifti(file: Path, values: NDArray = VALUES, affine: NDArray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(values, affine), file)
    return file


def itk_image(file: Path, values: NDArray = VALUES) -> Path:
    itk = pytest.importorskip("itk", reason="needs the extra formats")
    image = itk.image_from_array(np.ascontiguousarray(values.T))
    lps = np.diag([-1.0, -1.0, 1.0])
    image.SetDirection(itk.matrix_from_array(lps @ AXES))
    image.SetSpacing([0.7, 0.8, 2.5])
    image.SetOrigin((lps @ AFFINE[:3, 3]).tolist())
    itk.imwrite(image, str(file))
    return file


def read(*files: Path, **kwargs: object) -> tuple[NDArray, dict]:
    reader = FormatReader(**kwargs)
    return reader.get_data(reader.read(files))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_one_volume_in_every_format(tmp_path: Path, name: str):
    file = tmp_path / name
    values, meta = read(nifti(file) if ".nii" in name else itk_image(file))
    np.testing.assert_array_equal(values, VALUES)
    np.testing.assert_allclose(meta["affine"], AFFINE, atol=1e-5)
    assert np.isnan(meta["original_channel_dim"])


@pytest.mark.parametrize(
    "name", ["UPPER.NII.GZ", "Mixed.Nii.gz", "A.NII", "A.NRRD", "A.MHA", "A.MHD", "A.Mhd", "A.PNG"]
)
def test_endings_in_whatever_case(tmp_path: Path, name: str):
    file = tmp_path / name.lower()
    if name == "A.PNG":
        Image.fromarray(VALUES[:, :, 0].T.astype(np.uint8)).save(file)
    else:
        nifti(file) if ".nii" in file.name else itk_image(file)
    file.rename(tmp_path / name)
    values, _ = read(tmp_path / name)
    assert values.shape[:2] == VALUES.shape[:2]


def test_sform_counts_whatever_pixdim_says(tmp_path: Path):
    """MONAI's reader takes the qform where pixdim is rounded, even if no code says there is one."""
    image = nib.Nifti1Image(VALUES, np.diag([-0.703125, -0.703125, 5, 1]))
    image.set_qform(None, 0)
    image.header["pixdim"][1:4] = (0.7031, 0.7031, 5)
    image.header["quatern_d"] = 0
    nib.save(image, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(
        read(tmp_path / "a.nii.gz")[1]["affine"], np.diag([-0.703125, -0.703125, 5, 1])
    )


def test_nifti_2_and_big_endian(tmp_path: Path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(VALUES, AFFINE, header), tmp_path / "big.nii")
    nib.save(nib.Nifti2Image(VALUES, AFFINE), tmp_path / "two.nii.gz")
    for name in ("big.nii", "two.nii.gz"):
        values, meta = read(tmp_path / name)
        np.testing.assert_array_equal(values, VALUES)
        np.testing.assert_allclose(meta["affine"], AFFINE, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64])
def test_integers_of_all_sizes(tmp_path: Path, dtype: type):
    """ITK's Python knows neither int8 nor int64, as which pynrrd saves numpy's integers."""
    values = (np.arange(24) % 7).astype(dtype)
    header = f"NRRD0004\ntype: {np.dtype(dtype).name}\ndimension: 3\nsizes: 2 3 4\n"
    header += "endian: little\nencoding: raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(header.encode() + values.tobytes())
    pytest.importorskip("itk", reason="needs the extra formats")
    read_values, _ = read(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(read_values, values.reshape(2, 3, 4, order="F"))


def test_channels(tmp_path: Path):
    files = nifti(tmp_path / "a.nii.gz"), itk_image(tmp_path / "b.nrrd", VALUES + 1)
    values, meta = read(*files)
    np.testing.assert_array_equal(values, [VALUES, VALUES + 1])
    assert meta["original_channel_dim"] == 0


def test_channels_at_several_places_are_named(tmp_path: Path):
    first = nifti(tmp_path / "a.nii.gz")
    other = nifti(tmp_path / "b.nii.gz", VALUES[:, :, 1:])
    with pytest.raises(InputError, match=r"b\.nii\.gz has the size 8 x 9 x 9, .*a\.nii\.gz 8 x 9"):
        read(first, other)
    for moved, distance in ((0.04, None), (0.5, "0.714")):
        nifti(other, affine=AFFINE + nib.affines.from_matvec(np.zeros((3, 3)), AXES[:, 0] * moved))
        if distance is None:  # less than a tenth of a voxel
            np.testing.assert_allclose(read(first, other)[1]["affine"], AFFINE, atol=1e-5)
        else:
            sentence = rf"b\.nii\.gz has the affine .*a\.nii\.gz .* {distance} voxels apart"
            with pytest.raises(InputError, match=sentence):
                read(first, other)


def test_complex_values_and_colours_are_refused(tmp_path: Path):
    nifti(tmp_path / "c.nii.gz", VALUES.astype(np.complex64))
    with pytest.raises(InputError, match=r"c\.nii\.gz has complex values \(complex64\)"):
        read(tmp_path / "c.nii.gz")
    nifti(tmp_path / "c.nii.gz", np.zeros((4, 4, 4), [(c, np.uint8) for c in "RGB"]))
    with pytest.raises(InputError, match=r"c\.nii\.gz has voxels of R, G, B"):
        read(tmp_path / "c.nii.gz")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0])
def test_affines_of_no_grid_are_refused(tmp_path: Path, wrong: float):
    image = nib.Nifti1Image(VALUES, AFFINE)
    image.header["srow_x"][:3] = wrong
    image.header["sform_code"] = 1
    nib.Nifti1Image(VALUES, None, image.header).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"a\.nii\.gz has the affine \[.*; .*; .*\], of which no"):
        read(tmp_path / "a.nii.gz")


def test_pages_and_unknown_endings_are_named(tmp_path: Path):
    pages = [Image.fromarray(np.full((4, 5), n, np.uint8)) for n in (0, 1)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"a\.tiff has 2 pages; allowed is one"):
        read(tmp_path / "a.tiff")
    (tmp_path / "a.txt").write_text("no image")
    with pytest.raises(InputError, match=r"a\.txt is of no format that is known; .*\.nii\.gz, .*D"):
        read(tmp_path / "a.txt")


def test_without_itk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(nifti(tmp_path / "a.nii"), tmp_path / "a.mha")
    monkeypatch.setitem(sys.modules, "itk", None)
    with pytest.raises(InputError, match=r'a\.mha is MetaImage, and itk.*"\.\[formats\]" in this'):
        read(tmp_path / "a.mha")
