"""``python -m common evaluate``, in processes that have the imports behind them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from .. import preloaded


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:6, 2:6, 2:6] = 1
    label[3:5, 3:5, 3:5] = 2
    for part, names in (("labels", "{}.nii.gz"), ("predictions", "{}_seg.nii.gz")):
        (tmp_path / part).mkdir()
        for case in "abc":
            image = nib.Nifti1Image(label, np.diag([1.0, 1.0, 2.0, 1.0]))
            nib.save(image, tmp_path / part / names.format(case))
    return tmp_path


def run(folders: Path, *more: object) -> subprocess.CompletedProcess[str]:
    paths = [f"--{part}={folders / part}" for part in ("predictions", "labels")]
    return preloaded.run("common", "evaluate", *paths, "--output", folders / "out", *more)


def test_tables_and_what_is_said(folders: Path):
    classes = "{'liver': [1,2], 'tumour': 2}"
    done = run(folders, "--classes", classes, "--lesions", "tumour", "--tolerance_mm", 1)
    assert done.returncode == 0, done.stderr
    head, *table = (line.split() for line in done.stdout.splitlines()[:3])
    metrics = ["dice", "iou", "precision", "recall", "asd", "hd95", "nsd"]
    assert head == ["class", *metrics, "n", "missed", "false"]
    right = [*["1.0000"] * 4, "0.0000", "0.0000", "1.0000", "3", "0", "0"]
    assert table == [["liver", *right], ["tumour", *right]]
    assert done.stdout.splitlines()[3:] == [
        "lesions of tumour: 3 found, 0 missed, 0 false",
        f"distances are in mm; tables are in {folders}/out",
    ]
    found = {path.name for path in (folders / "out").iterdir()}
    assert found == {"cases.csv", "lesions.csv", "summary.json"}


def test_a_damaged_file_is_said_and_the_others_are_written(folders: Path):
    file = folders / "predictions/b_seg.nii.gz"
    file.write_bytes(file.read_bytes()[:40])
    done = run(folders)
    assert done.returncode == 1
    assert f"left out: The prediction {file} cannot be read (" in done.stdout
    assert "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: 1 case is left out of the tables in {folders}/out, as said above."
    ]
    table = (folders / "out/cases.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table] == ["case", "a", "a", "c", "c"]


def test_no_pairs(folders: Path):
    for file in (folders / "predictions").iterdir():
        file.rename(file.with_name(f"x{file.name}"))
    done = run(folders)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"error: No prediction in {folders}/predictions (xa; xb; xc) is of" in done.stderr
    assert not (folders / "out").exists()
