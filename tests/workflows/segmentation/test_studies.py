"""Which images there are, what they are called, and that nothing of them is touched."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from common.workflows.segmentation.studies import find_studies

from .conftest import save_series


def touch(root: Path, *names: str) -> list[Path]:
    """Empty files: what is an image is told by its name, but for DICOM."""
    files = [root / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def found(output: Path, *inputs: Path) -> dict[str, str]:
    studies, failed = find_studies(inputs, output, 3)
    assert not failed
    for study in studies:
        assert study.folder == output / study.name
    return {study.name: study.file for study in studies}


@pytest.mark.parametrize(
    "named",
    [
        {"a": "a.nii.gz", "b.1": "b.1.NII", "x_0000": "x_0000.nii.gz"},
        {"a/scan": "a/scan.nii.gz", "b/scan": "b/scan.mha", "other": "b/other.nrrd"},
        {"scan.nii.gz": "scan.nii.gz", "scan.nrrd": "scan.nrrd"},
        {"scan.nii.gz": "a/scan.nii.gz", "SCAN.nrrd": "b/SCAN.nrrd"},  # one on some systems
    ],
)
def test_names_tell_apart(tmp_path: Path, named: dict[str, str]):
    files = touch(tmp_path, *named.values())
    assert found(tmp_path / "out", *files) == dict(zip(named, map(str, files), strict=True))


def test_the_same_image_twice(tmp_path: Path):
    (file,) = touch(tmp_path, "scans/a.nii.gz")
    assert found(tmp_path / "out", file, tmp_path / "scans", file) == {"a": str(file)}


def test_channels_are_one_study(tmp_path: Path):
    files = touch(tmp_path, *(f"scans/a_000{i}.nii.gz" for i in (0, 1)))
    (study,), _ = find_studies([tmp_path / "scans"], tmp_path / "out", 3)
    assert (study.name, study.stem) == ("a", "a")
    assert study.image == [str(file) for file in files]
    assert not study.is_dicom


def test_earlier_results_are_no_images(tmp_path: Path):
    scans = tmp_path / "scans"
    touch(scans, "a.nii.gz", "out/a/a.nii.gz")
    save_series(scans / "out/a")  # as a segmentation is there
    save_series(scans / "b")
    assert list(found(tmp_path / "elsewhere", scans)) == ["a", "b", "out"]
    assert list(found(scans / "out", scans)) == ["a", "b"]


@pytest.mark.parametrize(
    ("image", "output", "sentence"),
    [
        ("scan/scan.nii.gz", ".", r"would be in .*scan, with the image .*scan\.nii\.gz"),
        ("ct", ".", r"would be in .*ct, with the image .*ct;"),
        ("ct", "ct/out", r"The output folder .*ct/out is in the image .*ct;"),
    ],
)
def test_inputs_are_not_written_to(tmp_path: Path, image: str, output: str, sentence: str):
    touch(tmp_path, "scan/scan.nii.gz")
    save_series(tmp_path / "ct")
    studies, failed = find_studies([tmp_path / image], (tmp_path / output).resolve(), 3)
    assert studies == []
    ((said),) = failed.values()
    assert re.search(sentence, said), said


def test_somebodys_manifest(tmp_path: Path):
    image, manifest = touch(tmp_path, "a.nii.gz", "out/a/manifest.json")
    for text in ("", "[]", json.dumps({"files": ["a"]})):
        manifest.write_text(text)
        studies, failed = find_studies([image], tmp_path / "out", 3)
        assert studies == []
        assert "is no earlier result's" in failed[str(image)]
    manifest.write_text(json.dumps({"files": {"mask": "a.nii.gz"}}))
    assert list(found(tmp_path / "out", image)) == ["a"]
