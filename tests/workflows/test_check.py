"""python -m common check: every fault that was planted is named, and nothing is that is right."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.cli import main
from common.errors import InputError
from common.workflows import DatasetReport, check_dataset

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
SIZE = (12, 10, 8)


def scan(seed: int, size: tuple[int, ...] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def mask(seed: int = 0) -> np.ndarray:
    label = np.zeros(SIZE, np.float32)
    label[2:8, 2:8, 2:6], label[3:5, 3:5, 3], label[6, 6, 4 + seed % 2] = 1, 2, 2
    label[9, seed % 10, 0] = 1
    return label


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    nib.save(nib.Nifti1Image(values, affine), path)


def write_case(root: Path, name: str, seed: int, **other: object) -> None:
    """A case like every other, but for its image, label, image_affine or label_affine."""
    image, label = other.get("image", scan(seed)), other.get("label", mask(seed))
    write(root / f"imagesTr/{name}.nii.gz", image, other.get("image_affine", AFFINE))
    write(root / f"labelsTr/{name}.nii.gz", label, other.get("label_affine", AFFINE))


def moved(x: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] = x
    return affine


def with_value(values: np.ndarray, value: float) -> np.ndarray:
    values = values.copy()
    values[0, 0, 0] = value
    return values


# name -> what is other than usual, where it is said, and what is said
FAULTS: dict[str, tuple[dict, str, str]] = {
    "flipped": ({"label_affine": AFFINE * [[-1], [-1], [1], [1]]}, "problems", "axes LPS, the ima"),
    "origin": ({"label_affine": moved(50)}, "problems", "25 voxels away: it has 12 x 10 x 8"),
    "identity": ({"label_affine": np.eye(4)}, "problems", "voxels of 1 x 1 x 1 mm"),
    "smaller": ({"label": mask()[1:]}, "problems", "it has 11 x 10 x 8 voxels"),
    "nan": ({"image": with_value(scan(4), np.nan)}, "problems", "has 1 voxels that are NaN"),
    "constant": ({"image": np.full(SIZE, 7.0)}, "problems", "has the value 7 everywhere"),
    "unknown": ({"label": with_value(mask(), 9)}, "problems", "has the values 9; allowed are the"),
    "half": ({"label": with_value(mask(), 0.5)}, "problems", "has the values 0.5; allowed are who"),
    "channels": ({"image": scan(8, (*SIZE, 2))}, "problems", "has 2 channels; allowed are 1"),
    "frames": ({"label": np.stack([mask()] * 2, -1)}, "problems", "has 2 channels; allowed is one"),
    "flat": (
        {"image": scan(9, (12, 10)), "label": mask()[..., 3]},
        "problems",
        "has 2 spatial axes; allowed are 3",
    ),
    "copy": ({"image": scan(100)}, "problems", "has the voxels of"),
    "empty": ({"label": np.zeros(SIZE)}, "warnings", "no foreground"),
    "full": ({"label": np.full(SIZE, 1.0)}, "warnings", "the label is 1 everywhere"),
    "other": ({"label": mask(100)}, "warnings", "the label has the voxels of"),
    "lits": (
        {
            "image": scan(11, (512, 512, 2)),
            "label": np.zeros((512, 512, 2), np.uint8),
            "image_affine": np.eye(4),
            "label_affine": np.eye(4),
        },
        "warnings",
        "512 x 512 slices of 1 x 1 x 1 mm",
    ),
    "near": ({"label_affine": moved(0.1)}, "treatment", "0.05 voxels away from its own"),
    "rounded": ({"label": 0.99999 * mask()}, "treatment", "rounded to whole ones"),
}
BROKEN = ("cut", "text", "text_label")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> DatasetReport:
    root = tmp_path_factory.mktemp("faults")
    for i in (100, 101):
        write_case(root, f"a_good_{i}", i)
    for i, (name, (other, _, _)) in enumerate(FAULTS.items()):
        write_case(root, name, i + 1, **other)
    for i, name in enumerate(BROKEN, start=50):
        write_case(root, name, i)
    image = root / "imagesTr/cut.nii.gz"
    image.write_bytes(image.read_bytes()[:1000])
    (root / "imagesTr/text.nii.gz").write_text("no image")
    (root / "labelsTr/text_label.nii.gz").write_text("no label")
    return check_dataset(root, num_classes=3)


def told(report: DatasetReport, name: str) -> dict[str, list[str]]:
    (case,) = (case for case in report.cases if case.name == name)
    return {kind: getattr(case, kind) for kind in ("problems", "warnings", "treatment")}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_named(report: DatasetReport, name: str):
    _, kind, expected = FAULTS[name]
    assert any(expected in sentence for sentence in told(report, name)[kind])
    if kind != "problems":
        assert told(report, name)["problems"] == []


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_cannot_be_read_are_lines(report: DatasetReport, name: str):
    (problem,) = told(report, name)["problems"]
    assert f"{name}.nii.gz cannot be read" in problem


def test_nothing_is_wrong_with_good_cases(report: DatasetReport):
    for name in ("a_good_100", "a_good_101"):
        assert not any(told(report, name).values())


def test_numbers_of_a_case(report: DatasetReport):
    case = next(case for case in report.cases if case.name == "a_good_100")
    assert (case.size, case.spacing, case.orientation) == ([12, 10, 8], [2, 2, 3], "RAS")
    values = scan(100)
    assert (case.minimum, case.maximum) == (values.min(), values.max())
    np.testing.assert_allclose(
        [case.low, case.median, case.high], np.percentile(values, (0.5, 50, 99.5)), atol=1e-4
    )
    label = mask(100)
    assert case.classes == {v: (label == v).sum() for v in range(3)}
    assert case.components == {1: 2, 2: 2}
    line = next(line for line in report.lines() if line.startswith("a_good_100"))
    assert "12 x 10 x 8; 2 x 2 x 3 mm RAS; values -" in line
    assert line.endswith("1: 140 in 2 parts; 2: 5 in 2 parts")


def test_all_that_is_wrong_is_said(tmp_path: Path):
    """Also of one case, not the first alone."""
    other = {"image": with_value(scan(0), np.inf), "label": with_value(mask(), 9)[:-1]}
    write_case(tmp_path, "both", 0, **other)
    found = told(check_dataset(tmp_path, num_classes=3), "both")["problems"]
    assert len(found) == 3


def good_set(root: Path, cases: int, **other: object) -> Path:
    for i in range(cases):
        write_case(root, f"case_{i}", i, **other)
    return root


def test_the_set_as_a_whole(tmp_path: Path):
    root = good_set(tmp_path / "set", 10, label=mask() * 2)
    found = check_dataset(root)
    (problem,) = found.problems
    assert "values are 0, 2, 4; allowed are 0 to num_classes - 1" in problem
    assert '--label_map "{0: 0, 2: 1, 4: 2}" --num_classes 3' in problem
    assert found.values == {0: 10, 2: 10, 4: 10}
    assert found.split == {"training": 7, "validation": 1, "test": 2}
    assert (found.spacing, found.size, found.patch) == ([2, 2, 3], [12, 10, 8], [16, 16, 16])
    mapped = check_dataset(root, num_classes=3, label_map={"0": 0, "2": 1, "4": 2})
    assert mapped.wrong == 0
    merged = check_dataset(root, num_classes=2, label_map={0: 0, 2: 1}, ignore_label=4)
    assert merged.wrong == 0
    assert merged.cases[0].treatment == ["5 voxels are left out"]


def test_slices_far_apart_and_axes_in_any_order(tmp_path: Path):
    """The first axis is the anatomical third; nnU-Net takes the 10th percentile of slices."""
    for i, gap in enumerate((4.0, 6.0, 6.0, 10.0)):
        affine = np.array([[0, 1, 0, 0], [0, 0, -1, 0], [gap, 0, 0, 0], [0, 0, 0, 1.0]])
        shape = (3, 14, 14)
        label = np.zeros(shape, np.uint8)
        label[1, 2:5, 3:6] = 1
        write_case(tmp_path, f"case_{i}", i, image=scan(i, shape), label=label,
                   image_affine=affine, label_affine=affine)  # fmt: skip
    found = check_dataset(tmp_path)
    assert found.wrong == 0
    assert found.spacing == [1, 1, 4.6]
    assert found.size[:2] == [14, 14]
    assert found.cases[0].orientation == "SRP"


@pytest.mark.parametrize(("cases", "expected"), [(3, [1, 1, 1]), (2, [1, 1, 0])])
def test_few_cases(tmp_path: Path, cases: int, expected: list[int]):
    found = check_dataset(good_set(tmp_path, cases))
    assert list(found.split.values()) == expected
    ends = [warning for warning in found.warnings if warning.startswith("training by default")]
    assert len(ends) == expected.count(0)
    assert found.wrong == 0


def test_pictures(tmp_path: Path):
    for folder in ("CXR_png", "mask"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        picture = (np.random.default_rng(i).random((20, 24)) * 255).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"CXR_png/{i}.png")
        label = np.zeros((20, 24), np.uint8)
        label[3:9, 4 + i : 12] = 255
        Image.fromarray(label[:, : 23 if i == 2 else 24]).save(tmp_path / f"mask/{i}_mask.png")
    found = check_dataset(tmp_path)
    assert [len(case.problems) for case in found.cases] == [0, 0, 1]
    assert "it has the size 23 x 20, the image the size 24 x 20" in found.cases[2].problems[0]
    assert found.problems == []
    assert found.treatment == ["the labels are 1 where they are 255, of 2 classes"]
    assert (found.size, found.spacing, found.patch) == ([24, 20], [], [16, 16])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    """The exit code or message of `python -m common check`."""
    monkeypatch.setattr(sys, "argv", ["common", "check", *map(str, arguments)])
    verb = sys.modules["common.cli.check"]
    monkeypatch.setattr(verb, "quieten_monai", lambda: None)  # it would last for other tests
    try:
        main()
    except SystemExit as end:
        return end.code
    return 0


def test_verb_and_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    root = good_set(tmp_path / "set", 4)
    assert run(monkeypatch, "--dataset_dir", root, "--output", tmp_path / "a.json") == 0
    assert "case_3: 12 x 10 x 8; 2 x 2 x 3 mm RAS" in capsys.readouterr().out
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["wrong"], len(written["cases"])) == (0, 4)
    assert written["cases"][0]["components"] == {"1": 2, "2": 2}

    shutil.copy(root / "imagesTr/case_0.nii.gz", root / "imagesTr/case_1.nii.gz")
    code = run(monkeypatch, "--dataset_dir", root, "--output", tmp_path / "a.csv")
    assert code == f"error: 1 thing is wrong with {root}, as said above."
    assert "    wrong: The image" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [bool(row["problems"]) for row in rows] == [False, True, False, False]
    assert rows[0]["spacing"] == "2; 2; 3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json", "set"]

    with pytest.raises(InputError, match=r"end in \.csv or \.json"):
        check_dataset(root, tmp_path / "a.txt")


def test_images_to_segment_are_looked_at_too(tmp_path: Path):
    root = good_set(tmp_path, 4)
    write(root / "imagesTs/test.nii.gz", scan(0))
    found = check_dataset(root)
    assert "has the voxels of" in told(found, "test")["problems"][0]
    assert "cases:     4, and 1 without a label" in found.lines()


@pytest.mark.slow
def test_processes_find_the_same(tmp_path: Path):
    root = good_set(tmp_path, 4)
    write_case(root, "near", 9, label_affine=moved(0.1))
    assert check_dataset(root, workers=2) == check_dataset(root, workers=1)


def test_channels_of_cases_of_one_name(tmp_path: Path):
    """In folders of patients every file may be called ct and seg."""
    rows = ["image,label"]
    for n in range(4):
        write(tmp_path / f"p{n}/ct.nii.gz", scan(n))
        write(tmp_path / f"p{n}/seg.nii.gz", mask(n))
        rows.append(f"p{n}/ct.nii.gz{';p0/other.nii.gz' if n == 0 else ''},p{n}/seg.nii.gz")
    write(tmp_path / "p0/other.nii.gz", scan(9))
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    found = check_dataset(tmp_path, cases=tmp_path / "cases.csv")
    assert found.layout
    assert [len(case.problems) for case in found.cases] == [1, 0, 0, 0]
    assert "has 2 channels; allowed are 1" in found.cases[0].problems[0]


def test_nothing_to_train_on_is_wrong(tmp_path: Path):
    (tmp_path / "dataset.json").write_text('{"training": []}')
    found = check_dataset(tmp_path)
    assert found.wrong == len(found.problems) == 1


@pytest.mark.parametrize("workers", [0, "x", 1.5])
def test_workers_are_a_number(tmp_path: Path, workers: object):
    with pytest.raises(InputError, match=f"workers is {workers!r}; allowed are whole numbers"):
        check_dataset(good_set(tmp_path, 2), workers=workers)  # type: ignore[arg-type]


def test_map_that_is_suggested(tmp_path: Path):
    folder = good_set(tmp_path, 2)
    for file in (folder / "labelsTr").iterdir():
        values = np.asarray(nib.load(file).dataobj)
        nib.save(nib.Nifti1Image(np.where(values == 2, 5, values) - (values == 0), AFFINE), file)
    (problem,) = check_dataset(folder).problems
    assert '--label_map "{0: 0, 1: 1, 5: 2}" --num_classes 3 --ignore_label -1' in problem


def test_cases_whose_files_are_called_alike_are_told_apart(tmp_path: Path):
    for i in range(3):
        write(tmp_path / f"p{i}/ct.nii.gz", scan(i))
        write(tmp_path / f"p{i}/seg.nii.gz", mask(i))
    rows = ["p0/ct.nii.gz,p0/seg.nii.gz", "p1/ct.nii.gz,p1/seg.nii.gz", "p2/ct.nii.gz,"]
    (tmp_path / "cases.csv").write_text("\n".join(["image,label", *rows]))
    report = check_dataset(tmp_path, cases=tmp_path / "cases.csv")
    assert [case.name for case in report.cases] == ["p0/seg", "p1/seg", "ct"]
    (tmp_path / "cases.csv").write_text(
        "\n".join(["image,label", *rows[:1], f"{rows[1][:13]}", rows[2]])
    )
    report = check_dataset(tmp_path, cases=tmp_path / "cases.csv")
    assert [case.name for case in report.cases] == ["seg", "p1/ct", "p2/ct"]
