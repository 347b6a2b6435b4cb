"""From scans to results: masks, pictures, numbers and DICOM, and what is wrong with scans."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from monai.data import ITKWriter
from numpy.typing import NDArray
from PIL import Image

import common
from common.errors import InputError
from common.evaluation import evaluate
from common.workflows import segment
from common.workflows.segmentation import results
from common.zoo.archives import write_archive

from ...conftest import read_only
from ...running import command, succeed
from .conftest import AFFINE, save_film, save_scan, save_series, scan

CLASSES = {"liver": 1, "liver tumour": 2}


def read(path: Path) -> NDArray[Any]:
    return np.asarray(nib.load(path).dataobj)


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def mask(ct_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> NDArray[Any]:
    """That of `scan()`, by MONAI's own run of the bundle's config."""
    folder = tmp_path_factory.mktemp("monai")
    save_scan(folder / "scan.nii.gz")
    options = {"bundle_root": ct_bundle, "dataset_dir": folder / "scan.nii.gz", "device": "cpu"}
    succeed(command(ct_bundle, "inference", **options, output_dir=folder / "out"))
    found = read(folder / "out/scan_seg.nii.gz")
    assert set(np.unique(found)) == {0, 1, 2}  # else these tests would look at nothing
    return found


def test_mask_is_that_of_the_bundles_own_run(ct_bundle: Path, tmp_path: Path, mask: NDArray):
    image = save_scan(tmp_path / "scan.nii.gz")
    hook, path = sys.excepthook, list(sys.path)
    done = common.segment(image, tmp_path / "out", ct_bundle, device="cpu")
    assert done.done == {"scan": tmp_path / "out/scan"}
    assert done.failed == {}
    assert files(tmp_path / "out") == {"scan/scan.nii.gz", "scan/manifest.json"}
    written = nib.load(tmp_path / "out/scan/scan.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), mask)
    for form in ("get_qform", "get_sform"):
        expected = getattr(nib.load(image), form)(coded=True)
        np.testing.assert_array_equal(getattr(written, form)(coded=True)[0], expected[0])
    assert (sys.excepthook, sys.path) == (hook, path)  # a library leaves these as they are


def test_manifest_says_how_it_was_done(ct_bundle: Path, tmp_path: Path, mask: NDArray):
    image = save_scan(tmp_path / "scan.nii.gz")
    segment([image], tmp_path / "out", ct_bundle, device="cpu", overrides={"overlap": 0.5})
    found = manifest(tmp_path / "out/scan")
    digest = hashlib.sha256((ct_bundle / "models/model.pt").read_bytes()).hexdigest()
    assert found["weights"] == [{"file": "models/model.pt", "sha256": digest}]
    assert found["bundle"] == {"name": ct_bundle.name, "version": "0.1.0"}
    assert (found["study"], found["input"]) == ("scan", str(image))
    assert found["files"] == {"mask": "scan.nii.gz"}
    assert found["classes"] == CLASSES
    assert found["voxels"] == {name: int((mask == x).sum()) for name, x in CLASSES.items()}
    assert found["volume_ml"] == {
        name: pytest.approx(number * 12 / 1000) for name, number in found["voxels"].items()
    }
    assert (found["options"]["device"], found["options"]["overrides"]) == ("cpu", {"overlap": 0.5})
    assert found["versions"]["monai-mamba-bundles"] == common.__version__
    assert list(found["steps"]) == ["network", "reading", "inference", "mask"]
    assert all(step["seconds"] >= 0 for step in found["steps"].values())
    assert found["seconds"] == pytest.approx(
        sum(step["seconds"] for step in found["steps"].values()), abs=0.01
    )
    assert found["steps"]["mask"]["peak_memory_bytes"] > 50 << 20


def zipped(folder: Path) -> Path:
    packed = folder.with_name("packed.zip")
    with zipfile.ZipFile(packed, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"series/{file.name}")
    return packed


def save_nrrd(path: Path) -> Path:
    pytest.importorskip("itk", reason="needs the extra formats")
    writer = ITKWriter(output_dtype=np.int16)
    writer.set_data_array(scan(), channel_dim=None)
    writer.set_metadata({"affine": AFFINE, "original_affine": AFFINE})
    writer.write(path)
    return path


def test_every_format_has_the_same_mask(ct_bundle: Path, tmp_path: Path, mask: NDArray):
    """In one call, with one that is broken among them."""
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    scans = tmp_path / "scans"
    save_scan(scans / "nifti.nii.gz")
    save_series(scans / "slices")
    zipped(scans / "slices")
    save_nrrd(scans / "nrrd.nrrd")
    (scans / "broken.nii").write_bytes(b"no image")
    found = segment(scans, tmp_path / "out", ct_bundle, device="cpu")
    assert sorted(found.done) == ["nifti", "nrrd", "packed", "slices"]
    assert list(found.failed) == ["broken"]
    for name, folder in found.done.items():
        written = nib.load(folder / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj), mask)
        np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)


def test_everything_of_a_dicom_series(ct_bundle: Path, tmp_path: Path, mask: NDArray):
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    save_series(tmp_path / "ct", StudyInstanceUID="1.2.3")
    everything = dict.fromkeys(("preview", "statistics", "dicom_seg", "rtstruct"), True)
    inputs = [tmp_path / "ct", zipped(tmp_path / "ct")]
    done = segment(inputs, tmp_path / "out", ct_bundle, device="cpu", **everything)
    assert (list(done.done), done.failed) == (["ct", "packed"], {})
    for name in done.done:
        assert files(tmp_path / "out" / name) == {
            *(f"{name}.nii.gz", "manifest.json", "preview.png", "statistics.json"),
            *("segmentation.dcm", "rtstruct.dcm"),
        }
    segmentation = pydicom.dcmread(tmp_path / "out/ct/segmentation.dcm")
    assert segmentation.StudyInstanceUID == "1.2.3"
    assert [x.SegmentLabel for x in segmentation.SegmentSequence] == ["liver", "liver tumour"]
    pixels = segmentation.pixel_array
    back = np.zeros_like(mask)
    for frame, about in zip(pixels, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        height = float(about.PlanePositionSequence[0].ImagePositionPatient[2])
        number = about.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        back[:, :, round(height / AFFINE[2, 2])][frame.T > 0] = number
    np.testing.assert_array_equal(back, mask)
    structures = pydicom.dcmread(tmp_path / "out/ct/rtstruct.dcm")
    assert [x.ROIName for x in structures.StructureSetROISequence] == ["liver", "liver tumour"]
    assert {"pydicom", "highdicom"} <= manifest(tmp_path / "out/ct")["versions"].keys()
    steps = ["reading", "inference", "mask", "statistics", "preview", "dicom_seg", "rtstruct"]
    assert list(manifest(tmp_path / "out/ct")["steps"]) == ["network", *steps]
    assert list(manifest(tmp_path / "out/packed")["steps"]) == steps


def test_statistics_are_those_of_an_evaluation(ct_bundle: Path, tmp_path: Path):
    image = save_scan(tmp_path / "scan.nii.gz")
    segment(image, tmp_path / "out", ct_bundle, device="cpu", statistics=True)
    found = json.loads((tmp_path / "out/scan/statistics.json").read_text())
    assert (found["unit"], found["lengths"], found["axial_axis"]) == ("HU", "mm", 2)
    mask = read(tmp_path / "out/scan/scan.nii.gz")
    liver = found["classes"]["liver"]
    inside = scan()[mask == 1].astype(float)
    assert (liver["mean"], liver["sd"]) == pytest.approx((inside.mean(), inside.std()))
    assert "lesions" not in liver

    for folder in ("predictions", "labels"):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / "out/scan/scan.nii.gz", tmp_path / folder)
    evaluate(
        *(tmp_path / name for name in ("predictions", "labels", "tables")),
        classes=CLASSES,
        lesions=["liver tumour"],
    )
    with (tmp_path / "tables/cases.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            ours = found["classes"][row["name"]]["volume_ml"]
            assert float(row["volume_ml"]) == pytest.approx(ours)
    with (tmp_path / "tables/lesions.csv").open(newline="") as file:
        theirs = sorted(
            (float(row["volume_ml"]), float(row["diameter_mm"])) for row in csv.DictReader(file)
        )
    lesions = found["classes"]["liver tumour"]["lesions"]
    ours = sorted((lesion["volume_ml"], lesion["diameter_mm"]) for lesion in lesions)
    np.testing.assert_allclose(ours, theirs)


def test_a_broken_one_among_others(ct_bundle: Path, tmp_path: Path, mask: NDArray):
    """Of a folder and of files: those before it and those after it are done."""
    for name in ("a", "c"):
        save_scan(tmp_path / f"scans/{name}.nii.gz")
    (tmp_path / "scans/b.nii.gz").write_bytes(b"no image")
    save_scan(tmp_path / "other/a.nii.gz")
    inputs = [tmp_path / "scans", tmp_path / "none.nii.gz", tmp_path / "other/a.nii.gz"]
    found = segment(inputs, tmp_path / "out", ct_bundle, device="cpu")
    assert sorted(found.done) == ["c", "other/a", "scans/a"]
    assert found.failed.keys() == {"b", str(tmp_path / "none.nii.gz")}
    assert "b.nii.gz cannot be read" in found.failed["b"]
    for name, folder in found.done.items():
        np.testing.assert_array_equal(read(folder / f"{Path(name).name}.nii.gz"), mask)
    assert not (tmp_path / "out/b").exists()
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    with (tmp_path / "out/summary.csv").open(newline="") as file:
        rows = {row["study"]: row for row in csv.DictReader(file)}
    assert {name: row["status"] for name, row in rows.items()} == {
        **dict.fromkeys(found.done, "done"),
        **dict.fromkeys(found.failed, "failed"),
    }
    assert float(rows["c"]["liver_ml"]) == pytest.approx((mask == 1).sum() * 12 / 1000)
    assert rows["b"]["problem"] == found.failed["b"]


def test_results_that_cannot_be_made_cost_no_other(
    ct_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mask: NDArray
):
    """A disk that is full, and a NIfTI file that is to be a DICOM series."""

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, os.strerror(28))

    pytest.importorskip("highdicom", reason="needs the extra dicom")
    monkeypatch.setattr(results, "draw_preview", full)
    save_series(tmp_path / "ct")
    scan = save_scan(tmp_path / "scan.nii.gz")
    done = segment(
        *([tmp_path / "ct", scan], tmp_path / "out", ct_bundle),
        device="cpu",
        preview=True,
        dicom_seg=True,
    )
    assert sorted(done.done) == ["ct", "scan"]
    full_disk = "The preview of {} cannot be written (No space left on device)."
    assert done.failed["ct"] == full_disk.format(tmp_path / "ct")
    no_series = f"{scan} is no DICOM series, to which dicom_seg refer"
    assert done.failed["scan"].startswith(full_disk.format(scan) + " " + no_series)
    assert manifest(tmp_path / "out/ct")["failed"] == {"preview": done.failed["ct"]}
    assert files(tmp_path / "out/scan") == {"scan.nii.gz", "manifest.json"}
    np.testing.assert_array_equal(read(tmp_path / "out/scan/scan.nii.gz"), mask)


def test_what_nobody_foresaw_costs_no_mask(
    ct_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    draw = results.draw_preview

    def fail_once(*arguments: Any, **options: Any) -> Path:
        if arguments[3] == "a":
            raise ZeroDivisionError("division by zero")
        return draw(*arguments, **options)

    monkeypatch.setattr(results, "draw_preview", fail_once)
    inputs = [save_scan(tmp_path / f"{name}.nii.gz") for name in "ab"]
    done = segment(inputs, tmp_path / "out", ct_bundle, device="cpu", preview=True)
    assert sorted(done.done) == ["a", "b"]
    assert done.failed == {
        "a": f"The preview of {inputs[0]} cannot be made (ZeroDivisionError: division by zero)."
    }
    assert files(tmp_path / "out/a") == {"a.nii.gz", "manifest.json"}
    assert "Traceback" in caplog.text


def test_file_per_class_and_chosen_classes(ct_bundle: Path, tmp_path: Path, mask: NDArray):
    image = save_scan(tmp_path / "scan.nii.gz")
    segment(image, tmp_path / "a", ct_bundle, device="cpu", ml=False)
    assert files(tmp_path / "a/scan") == {"liver.nii.gz", "liver_tumour.nii.gz", "manifest.json"}
    for name, value in CLASSES.items():
        part = nib.load(tmp_path / f"a/scan/{name.replace(' ', '_')}.nii.gz")
        np.testing.assert_array_equal(np.asarray(part.dataobj), mask == value)
        np.testing.assert_array_equal(part.affine, AFFINE)
    segment(image, tmp_path / "b", ct_bundle, device="cpu", roi_subset="liver tumour")
    np.testing.assert_array_equal(read(tmp_path / "b/scan/scan.nii.gz"), np.where(mask == 2, 2, 0))
    assert list(manifest(tmp_path / "b/scan")["voxels"]) == ["liver tumour"]
    with pytest.raises(InputError, match=r"roi_subset has 'tumour', .*nearest .*liver tumour"):
        segment(image, tmp_path / "c", ct_bundle, device="cpu", roi_subset=["liver", "tumour"])


def test_split_changes_nothing(ct_bundle: Path, tmp_path: Path, mask: NDArray):
    image = save_scan(tmp_path / "scan.nii.gz")
    segment(image, tmp_path / "out", ct_bundle, device="cpu", force_split=True)
    found = read(tmp_path / "out/scan/scan.nii.gz")
    assert (found != mask).mean() < 0.002  # but for ties


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fast": True}, {"overlap": 0.25}),
        ({"flips": True}, {"test_time_flips": True}),
        ({"fast": True, "overrides": {"overlap": 0.6}}, {"overlap": 0.6}),
        ({"any_modality": True}, {"modality": None}),
        ({"device": "cpu"}, {"device": "cpu"}),
        ({}, {}),
    ],
)
def test_options_are_the_configs_keys(ct_bundle: Path, options: dict, expected: dict):
    from common.workflows.segmentation.bundle import Bundle
    from common.workflows.segmentation.options import Options

    assert Bundle(ct_bundle, Options(**options)).overrides == expected


def test_fast_and_flips_are_another_mask(ct_bundle: Path, tmp_path: Path, mask: NDArray):
    """They take effect, and the mask stays about the same."""
    image = save_scan(tmp_path / "scan.nii.gz")
    for name in ("fast", "flips"):
        segment(image, tmp_path / name, ct_bundle, device="cpu", **{name: True})
        found = read(tmp_path / name / "scan/scan.nii.gz")
        assert (found != mask).any()
        assert set(np.unique(found)) <= {0, 1, 2}


def test_zip_file_of_a_bundle(ct_bundle: Path, tmp_path: Path, mask: NDArray):
    image = save_scan(tmp_path / "scan.nii.gz")
    packed = tmp_path / "bundle.zip"
    members = {
        f"{ct_bundle.name}/{path.relative_to(ct_bundle).as_posix()}": path
        for path in ct_bundle.rglob("*")
        if path.is_file()
    }
    write_archive(packed, members)
    segment(image, tmp_path / "out", packed, device="cpu")
    np.testing.assert_array_equal(read(tmp_path / "out/scan/scan.nii.gz"), mask)
    assert manifest(tmp_path / "out/scan")["bundle"]["name"] == ct_bundle.name


def test_ensemble_of_checkpoints(ct_bundle: Path, tmp_path: Path, mask: NDArray):
    image = save_scan(tmp_path / "scan.nii.gz")
    twice = [ct_bundle / "models/model.pt", shutil.copy(ct_bundle / "models/model.pt", tmp_path)]
    segment(image, tmp_path / "out", ct_bundle, checkpoint=twice, device="cpu")
    assert len(manifest(tmp_path / "out/scan")["weights"]) == 2
    assert (read(tmp_path / "out/scan/scan.nii.gz") != mask).mean() < 0.002


def test_radiographs(cxr_bundle: Path, tmp_path: Path):
    film = save_film(tmp_path / "film.png")
    chosen = {"preview": True, "statistics": True}
    segment(film, tmp_path / "out", cxr_bundle, device="cpu", **chosen)
    assert files(tmp_path / "out/film") == {
        *("film.png", "manifest.json", "preview.png", "statistics.json"),
    }
    mask = np.asarray(Image.open(tmp_path / "out/film/film.png"))
    assert mask.shape == (40, 48)
    assert set(np.unique(mask)) == {0, 255}
    (lung,) = json.loads((tmp_path / "out/film/statistics.json").read_text())["classes"].values()
    assert (lung["voxels"], lung["volume_ml"]) == (int((mask > 0).sum()), None)
    grey = np.asarray(Image.open(film)).astype(float)
    assert lung["mean"] == pytest.approx(grey[mask > 0].mean())
    segment(film, tmp_path / "parts", cxr_bundle, device="cpu", ml=False)
    (name,) = manifest(tmp_path / "parts/film")["files"]["masks"].values()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "parts/film" / name)), mask)
    for option, said in (
        ("dicom_seg", "is for radiographs, which have no place"),
        ("fast", "has no overlap to set"),
        ("force_split", "has no windows to split"),
    ):
        with pytest.raises(InputError, match=f"{option} is True, and .* {said}"):
            segment(film, tmp_path / "no", cxr_bundle, **{option: True})


def test_nothing_found_is_no_error(
    ct_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    save_series(tmp_path / "ct")
    everything = dict.fromkeys(("preview", "statistics", "dicom_seg", "rtstruct"), True)
    nothing = {
        "_target_": "Lambdad",
        "keys": "pred",
        "func": "$lambda x: x * 0",
    }
    done = segment(
        *(tmp_path / "ct", tmp_path / "out", ct_bundle),
        device="cpu",
        overrides={"postprocessing#transforms#1": nothing},  # in place of what is disabled
        **everything,
    )
    assert (list(done.done), done.failed) == (["ct"], {})
    assert "ct: no liver and no liver tumour was found." in caplog.text
    assert not read(tmp_path / "out/ct/ct.nii.gz").any()
    assert len(files(tmp_path / "out/ct")) == 6


def test_overwrite(ct_bundle: Path, tmp_path: Path):
    """Results that are there are kept, or replaced; what else is there stays."""
    image = save_scan(tmp_path / "scan.nii.gz")
    out = tmp_path / "out"
    segment(image, out, ct_bundle, device="cpu", preview=True)
    (out / "scan/notes.txt").write_text("mine")
    before = (out / "scan/manifest.json").read_bytes()
    assert list(segment(image, out, ct_bundle, device="cpu", overwrite=False).done) == ["scan"]
    assert (out / "scan/manifest.json").read_bytes() == before
    assert files(out / "scan") == {"scan.nii.gz", "manifest.json", "preview.png", "notes.txt"}
    segment(image, out, ct_bundle, device="cpu", statistics=True)
    assert files(out / "scan") == {"scan.nii.gz", "manifest.json", "statistics.json", "notes.txt"}
    image.write_bytes(b"no image")
    left = {name: (out / "scan" / name).read_bytes() for name in files(out / "scan")}
    with pytest.raises(InputError, match=r"Nothing was segmented: .*scan\.nii\.gz cannot be read"):
        segment(image, out, ct_bundle, device="cpu")
    assert {name: (out / "scan" / name).read_bytes() for name in left} == left


def pdf(folder: Path) -> Path:
    (folder / "report.pdf").write_bytes(b"%PDF-1.7 and no image")
    return folder / "report.pdf"


def empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def two_series(folder: Path) -> Path:
    for uid in ("1.2.1", "1.2.2"):
        save_series(folder / "study", uid, seed=int(uid[-1]))
    return folder / "study"


def four_axes(folder: Path) -> Path:
    return save_scan(folder / "4d.nii.gz", values=np.stack([scan(), scan(1)], -1))


def colours(folder: Path) -> Path:
    values = np.zeros(scan().shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return save_scan(folder / "rgb.nii.gz", values=values)


def localisers(folder: Path) -> Path:
    save_series(folder / "study", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    return folder / "study"


def mr(folder: Path) -> Path:
    save_series(folder / "study", Modality="MR")
    return folder / "study"


def mr_as_nifti(folder: Path) -> Path:
    return save_scan(folder / "mr.nii.gz", values=np.abs(scan()))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (pdf, r"report\.pdf is of no format that is known"),
        (empty_folder, r"empty holds no image"),
        (lambda folder: folder / "none", r"There is no folder .*none"),
        (two_series, r"study holds 2 series: .* series_uid"),
        (four_axes, r"4d\.nii\.gz has 2 channels; allowed are 1"),
        (colours, r"rgb\.nii\.gz has voxels of R, G, B"),
        (localisers, r"study holds localisers alone"),
        (mr, r"study holds no series of the modality CT, but .*MR"),
        (mr_as_nifti, r"mr\.nii\.gz has no value below \d+, .* any_modality"),
    ],
)
def test_bad_input_is_one_sentence(ct_bundle: Path, tmp_path: Path, make, sentence: str):
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    good = save_scan(tmp_path / "good.nii.gz")
    found = segment([make(tmp_path), good], tmp_path / "out", ct_bundle, device="cpu")
    assert list(found.done) == ["good"]
    ((said),) = found.failed.values()
    assert "\n" not in said
    assert re.search(sentence, said), said
    assert files(tmp_path / "out") == {"good/good.nii.gz", "good/manifest.json", "summary.csv"}


@pytest.mark.parametrize("make", [mr, mr_as_nifti])
def test_any_modality(ct_bundle: Path, tmp_path: Path, make):
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    chosen = {"any_modality": True, "statistics": True}
    found = segment(make(tmp_path), tmp_path / "out", ct_bundle, device="cpu", **chosen)
    (folder,) = found.done.values()
    assert json.loads((folder / "statistics.json").read_text())["unit"] == "as stored"


def test_one_of_two_series(ct_bundle: Path, tmp_path: Path, mask: NDArray):
    """What is made of it refers to it, too; localisers beside it are left out."""
    pytest.importorskip("highdicom", reason="needs the extra dicom")
    study = two_series(tmp_path)
    uid = save_series(study)
    save_series(study, "1.2.9", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    chosen: dict[str, Any] = {"dicom_seg": True, "overrides": {"series_uid": uid}}
    segment(study, tmp_path / "out", ct_bundle, device="cpu", **chosen)
    np.testing.assert_array_equal(read(tmp_path / "out/study/study.nii.gz"), mask)
    (referred,) = pydicom.dcmread(tmp_path / "out/study/segmentation.dcm").ReferencedSeriesSequence
    assert referred.SeriesInstanceUID == uid


@read_only
def test_read_only_output(ct_bundle: Path, tmp_path: Path):
    image = save_scan(tmp_path / "scan.nii.gz")
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"The output folder .*out cannot be written to"):
        segment(image, tmp_path / "out", ct_bundle)


def test_output_is_a_file(ct_bundle: Path, tmp_path: Path):
    image = save_scan(tmp_path / "scan.nii.gz")
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match=r"The output folder .*out cannot be written to"):
        segment(image, tmp_path / "out", ct_bundle)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bundle": "liver_ct_lightm"}, "There is no bundle liver_ct_lightm"),
        ({"checkpoint": "none.pt"}, r"has no weights: there is no .*none\.pt"),
        ({"device": "tpu"}, "device is 'tpu'; allowed on this machine are auto, cpu"),
        ({"preview": "yes"}, "preview is 'yes'; allowed are True and False"),
        ({"engine": "slurm"}, "engine is 'slurm'; allowed are 'local', 'ray'"),
        ({"address": "auto"}, "address is 'auto'; allowed is none, but with the engine ray"),
        ({"overrides": {"previw": True}}, "segment has no option previw, .*nearest .*preview"),
        ({"overrides": {"output_dir": "a"}}, "output_dir is given, which segment sets itself"),
        ({"overrides": {"network_def#none#a": 1}}, "has no network_def#none#a; allowed are"),
        ({"overrides": {"precision": "int8"}}, "precision is 'int8'; allowed are"),
        ({"dicom_seg": True}, "dicom_seg is True, and of the images none is a DICOM series"),
        ({"inputs": []}, "No input is named"),
    ],
)
def test_bad_arguments(ct_bundle: Path, tmp_path: Path, options: dict, sentence: str):
    """Refused before anything is computed, and nothing is left."""
    given = {
        "inputs": save_scan(tmp_path / "scan.nii.gz"),
        "output": tmp_path / "out",
        "bundle": ct_bundle,
    }
    with pytest.raises(InputError, match=sentence):
        segment(**(given | options))
    assert not files(tmp_path / "out")


def test_weights_of_another_network(ct_bundle: Path, cxr_bundle: Path, tmp_path: Path):
    image = save_scan(tmp_path / "scan.nii.gz")
    told = {"network_def#init_filters": 16}
    with pytest.raises(InputError, match="is not of this LightMUNet"):
        segment(image, tmp_path / "out", ct_bundle, device="cpu", overrides=told)
    assert not files(tmp_path / "out")
