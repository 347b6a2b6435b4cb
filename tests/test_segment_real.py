"""A real CT and a real DICOM series through `segment`, by a network that nobody trained."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon
from monai.data import ITKWriter
from PIL import Image

from common.workflows import segment

from .conftest import REPOSITORY, shared
from .workflows.segmentation.conftest import SMALL, make_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = "liver_ct_lightm_unet_segmentation"
    return make_bundle(
        tmp_path_factory.mktemp("real") / name,
        name,
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, **SMALL},
        (32, 32, 16),
        modality="CT",
        axcodes="RAS",
        num_classes=3,
        spacing=[6, 6, 6],
        patch_size=[32, 32, 16],
        label_names=["background", "liver", "tumour"],
    )


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trunk as NIfTI and NRRD, the series as a folder and a zip file, and a broken file."""
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    pytest.importorskip("itk", reason="needs the extra formats")
    trunk, series = shared("data/real_ct/ct_trunk.nii.gz"), shared("data/real_ct_dicom")
    folder = tmp_path_factory.mktemp("scans") / "scans"
    folder.mkdir()
    shutil.copy(trunk, folder / "nifti.nii.gz")
    image = nib.load(trunk)
    writer = ITKWriter(output_dtype=np.int16)
    writer.set_data_array(np.asarray(image.dataobj), channel_dim=None)
    writer.set_metadata({"affine": image.affine, "original_affine": image.affine})
    writer.write(folder / "nrrd.nrrd")
    # It has lost its UIDs, without which nothing can refer to it.
    fill = [sys.executable, REPOSITORY / "docs/fill_uids.py", series, folder / "series"]
    subprocess.run(list(map(str, fill)), check=True)
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        for file in sorted((folder / "series").iterdir()):
            archive.write(file, file.name)
    (folder / "broken.nii.gz").write_bytes((folder / "nifti.nii.gz").read_bytes()[:4000])
    return folder


@pytest.fixture(scope="module")
def out(bundle: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    done = segment(scans, folder, bundle, device="cpu", statistics=True, preview=True)
    assert sorted(done.done) == ["nifti", "nrrd", "packed", "series"]
    assert list(done.failed) == ["broken"]
    return folder


def mask(folder: Path) -> nib.Nifti1Image:
    return nib.load(folder / f"{folder.name}.nii.gz")


def test_all_forms_have_one_mask_on_the_inputs_grid(scans: Path, out: Path):
    for one, other in (("nifti", "nrrd"), ("series", "packed")):
        first, second = mask(out / one), mask(out / other)
        np.testing.assert_array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
        np.testing.assert_allclose(first.affine, second.affine, atol=1e-4)
    image, found = nib.load(scans / "nifti.nii.gz"), mask(out / "nifti")
    assert found.shape == image.shape == (122, 101, 112)
    np.testing.assert_array_equal(found.affine, image.affine)
    assert mask(out / "series").shape == (512, 512, 20)
    assert set(np.unique(found.dataobj)) == {0, 1, 2}


def test_dicom_objects_of_the_series(bundle: Path, scans: Path, out: Path, tmp_path: Path):
    import highdicom

    found = segment(scans / "series", tmp_path, bundle, device="cpu", dicom_seg=True, rtstruct=True)
    assert not found.failed
    expected = np.asarray(mask(out / "series").dataobj)
    np.testing.assert_array_equal(np.asarray(mask(tmp_path / "series").dataobj), expected)
    slices = [pydicom.dcmread(file) for file in (scans / "series").iterdir()]
    slices.sort(key=lambda data: float(data.ImagePositionPatient[2]))
    segmentation = highdicom.seg.segread(tmp_path / "series/segmentation.dcm")
    pixels = segmentation.get_pixels_by_source_instance(
        [data.SOPInstanceUID for data in slices],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(pixels.transpose(2, 1, 0), expected)
    by_place = {float(data.ImagePositionPatient[2]): k for k, data in enumerate(slices)}
    plain = pydicom.dcmread(tmp_path / "series/segmentation.dcm")
    back = np.zeros_like(expected)
    for frame, about in zip(plain.pixel_array, plain.PerFrameFunctionalGroupsSequence, strict=True):
        k = by_place[float(about.PlanePositionSequence[0].ImagePositionPatient[2])]
        number = about.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        back[:, :, k][frame.T > 0] = number
    np.testing.assert_array_equal(back, expected)

    uids = {data.SOPInstanceUID: k for k, data in enumerate(slices)}
    centres = np.argwhere(np.ones((512, 512), bool))  # of columns and rows
    structures = pydicom.dcmread(tmp_path / "series/rtstruct.dcm")
    for number, roi in enumerate(structures.ROIContourSequence, start=1):
        filled = np.zeros(expected.shape, bool)
        for contour in roi.ContourSequence:
            k = uids[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            place = np.array(slices[k].ImagePositionPatient, float)
            spacing = np.array(slices[k].PixelSpacing, float)[::-1]
            polygon = Polygon((points - place)[:, :2] / spacing, closed=False)
            low, high = np.floor(polygon.vertices.min(0)), np.ceil(polygon.vertices.max(0))
            near = centres[((centres >= low) & (centres <= high)).all(1)]
            inside = near[polygon.contains_points(near)]
            filled[inside[:, 0], inside[:, 1], k] = True
        true = expected == number
        dice = 2 * (filled & true).sum() / (filled.sum() + true.sum())
        assert dice >= 0.98
        assert dice == 1  # as pixels' centres count


def test_statistics_and_preview(scans: Path, out: Path, record_property):
    found: dict[str, Any] = json.loads((out / "nifti/statistics.json").read_text())
    values, labels = (
        np.asarray(image.dataobj)
        for image in (nib.load(scans / "nifti.nii.gz"), mask(out / "nifti"))
    )
    for name, value in (("liver", 1), ("tumour", 2)):
        inside = values[labels == value].astype(float)
        of_class = found["classes"][name]
        assert of_class["volume_ml"] == pytest.approx(len(inside) * 27 / 1000, rel=1e-5)
        assert of_class["mean"] == pytest.approx(inside.mean())
    for study in ("nifti", "series"):
        assert min(Image.open(out / study / "preview.png").size) > 400
        steps = json.loads((out / study / "manifest.json").read_text())["steps"]
        shown = ", ".join(f"{name} {step['seconds']:.1f} s" for name, step in steps.items())
        record_property("say", f"{study}: {shown}")


def test_mr_is_refused(bundle: Path, tmp_path: Path):
    image = shared("data/real_ct/mr.nii.gz")
    ct = shared("data/real_ct/ct.nii.gz")
    found = segment([image, ct], tmp_path, bundle, device="cpu")
    assert list(found.done) == ["ct"]
    assert "is of another modality, or not in HU" in found.failed["mr"]
    again = segment(image, tmp_path, bundle, device="cpu", any_modality=True)
    assert list(again.done) == ["mr"]


def test_fast_is_about_the_same(bundle: Path, scans: Path, out: Path, tmp_path: Path):
    segment(scans / "nifti.nii.gz", tmp_path, bundle, device="cpu", fast=True)
    few, many = (np.asarray(mask(folder / "nifti").dataobj) for folder in (tmp_path, out))
    assert 0.6 < (few == many).mean() < 1
