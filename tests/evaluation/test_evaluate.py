"""Folders of label maps: pairs, classes, tables, and what cannot be evaluated."""

from __future__ import annotations

import csv
import errno
import json
import math
import multiprocessing.dummy
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from ignite.engine import Engine
from monai.data import MetaTensor
from nibabel.affines import from_matvec
from PIL import Image

from common.errors import InputError
from common.evaluation import (
    BETTER,
    CaseResult,
    CasesSaver,
    Measures,
    evaluate,
    measure,
    summarise,
)
from common.files import replacing

from ..conftest import read_only

SIZE = (12, 10, 8)
AFFINE = np.diag([0.8, 1.2, 3.0, 1.0])
CLASSES = {"liver": [1, 2], "tumour": 2}


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.uint8), affine), path)
    return path


def label_map(seed: int, tumour: bool = True) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = np.zeros(SIZE, np.uint8)
    low = random.integers(0, 3, 3)
    values[low[0] : low[0] + 7, low[1] : low[1] + 6, low[2] : low[2] + 5] = 1
    if tumour:
        values[low[0] + 2 : low[0] + 5, low[1] + 1 : low[1] + 3, low[2] : low[2] + 3] = 2
    return values


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Four cases: two with tumours, one that the prediction misses, one that it alone has."""
    for case, tumours in enumerate([(True, True), (True, True), (False, True), (True, False)]):
        predicted, true = tumours
        write(tmp_path / f"predictions/case_{case}_seg.nii.gz", label_map(case + 10, predicted))
        write(tmp_path / f"labelsTs/case_{case}.nii.gz", label_map(case, true))
    return tmp_path


def run(folder: Path, **options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    done = evaluate(folder / "predictions", folder / "labelsTs", folder / "results", **options)
    return done.summary, done.skipped


def rows(folder: Path, name: str = "cases.csv") -> list[dict[str, str]]:
    with (folder / "results" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def loaded(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def test_tables(folders: Path):
    summary, skipped = run(folders, classes=CLASSES)
    assert not skipped
    header = (folders / "results/cases.csv").read_text().splitlines()[0]
    assert header == (
        "case,class,name,dice,iou,voe,rvd,rvd_abs,precision,recall,f2,asd,hd95,nsd,volume_ml,"
        "reference_ml"
    )
    table = rows(folders)
    assert [(row["case"], row["class"], row["name"]) for row in table] == [
        (f"case_{case}", str(number), name)
        for case in range(4)
        for number, name in ((1, "liver"), (2, "tumour"))
    ]
    for row in table:
        files = (f"predictions/{row['case']}_seg.nii.gz", f"labelsTs/{row['case']}.nii.gz")
        masks = (np.isin(loaded(folders / file), CLASSES[row["name"]]) for file in files)
        values = measure(*masks, [0.8, 1.2, 3.0]).values
        found = {metric: float(row[metric] or "nan") for metric in BETTER}
        assert found == pytest.approx(values, rel=1e-6, nan_ok=True)  # of float32 in the header
    assert table[5]["dice"] == "0.0"  # missed
    assert table[5]["asd"] == table[5]["precision"] == ""
    assert table[7]["dice"] == "0.0"  # false
    assert json.loads((folders / "results/summary.json").read_text()) == json.loads(
        json.dumps(summary)
    )
    dice, asd = (summary["classes"]["tumour"][metric] for metric in ("dice", "asd"))
    assert (dice["n"], dice["left_out"], dice["missed"], dice["false"]) == (4, 0, 1, 1)
    assert (asd["n"], asd["left_out"], asd["missed"], asd["false"]) == (2, 2, 1, 1)
    assert summary["settings"]["unit"] == "mm"
    assert not (folders / "results/lesions.csv").exists()


def result(name: str, liver: float, tumour: float) -> CaseResult:
    def measures(dice: float) -> Measures:
        values = dict.fromkeys(BETTER, math.nan) | {"dice": dice}
        return Measures(values, "neither" if math.isnan(dice) else "both")

    return CaseResult(name, {"liver": measures(liver), "tumour": measures(tumour)}, {})


def test_means_are_of_classes_and_of_cases():
    cases = [result("a", 0.9, 0.5), result("b", 0.8, math.nan), result("c", 0.4, math.nan)]
    summary = summarise(cases, {"empty": "nnunet"})
    liver = {"mean": 0.7, "sd": math.sqrt(0.07), "median": 0.8, "n": 3, "left_out": 0}
    assert summary["classes"]["liver"]["dice"] == pytest.approx(liver | {"missed": 0, "false": 0})
    assert summary["classes"]["tumour"]["dice"] == {
        **{"mean": 0.5, "sd": None, "median": 0.5, "n": 1, "left_out": 2},
        **{"missed": 0, "false": 0},
    }
    assert summary["mean"]["dice"] == pytest.approx(0.6)
    assert summary["mean_over_cases"]["dice"] == pytest.approx((0.7 + 0.8 + 0.4) / 3)
    assert summary["mean"]["asd"] is None
    assert summary["cases"] == 3


@pytest.mark.parametrize("ignored", [None, 2])
@pytest.mark.parametrize("classes", [{"a": 1}, {"a": 1, "b": 2}, {"whole": [1, 2], "b": [2]}])
def test_as_nnunet_counts(folders: Path, monkeypatch: pytest.MonkeyPatch, ignored, classes):
    theirs = pytest.importorskip(
        "nnunetv2.evaluation.evaluate_predictions", reason="needs the extra: plan"
    )
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO

    for file in (folders / "predictions").iterdir():
        file.rename(file.with_name(file.name.replace("_seg", "")))
    # Its processes import for seconds.
    monkeypatch.setattr(theirs.multiprocessing, "get_context", lambda _: multiprocessing.dummy)
    regions = [tuple(x) if isinstance(x, list) else x for x in classes.values()]
    paths = str(folders / "labelsTs"), str(folders / "predictions")
    wanted = theirs.compute_metrics_on_folder(
        *paths, None, NibabelIO(), ".nii.gz", regions, ignored, num_processes=1
    )
    summary, _ = run(folders, classes=classes, ignore_label=ignored)
    for name, region in zip(classes, regions, strict=True):
        of_class = summary["classes"][name]
        for ours, metric in (("dice", "Dice"), ("iou", "IoU")):
            mean = of_class[ours]["mean"]
            assert (math.nan if mean is None else mean) == pytest.approx(
                wanted["mean"][region][metric], nan_ok=True
            )
        table = [row for row in rows(folders) if row["name"] == name]
        for row, case in zip(table, wanted["metric_per_case"], strict=True):
            assert float(row["dice"] or "nan") == pytest.approx(
                case["metrics"][region]["Dice"], nan_ok=True
            )
            for ours, theirs_ in (("volume_ml", "n_pred"), ("reference_ml", "n_ref")):
                voxels = float(row[ours]) * 1000 / math.prod([0.8, 1.2, 3.0])
                assert voxels == pytest.approx(case["metrics"][region][theirs_])
    if None not in (of_class["dice"]["mean"] for of_class in summary["classes"].values()):
        assert summary["mean"]["dice"] == pytest.approx(wanted["foreground_mean"]["Dice"])


def test_distances_are_along_oblique_axes(folders: Path):
    """The affine's own diagonal is not the spacing where axes are turned."""
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    affine = from_matvec(turn @ np.diag([1.0, 2.0, 3.0]), [5.0, 6.0, 7.0])
    label, prediction = np.zeros(SIZE), np.zeros(SIZE)
    label[2, 2, 2] = prediction[2, 6, 2] = 1
    for part, values in (("labelsTs", label), ("predictions", prediction)):
        write(folders / "oblique" / part / "a.nii.gz", values, affine)
    run(folders / "oblique")
    (row,) = rows(folders / "oblique")
    assert float(row["asd"]) == float(row["hd95"]) == pytest.approx(8)
    assert float(row["volume_ml"]) == pytest.approx(0.006)


def test_classes_are_those_of_the_labels_or_of_dataset_json(folders: Path):
    summary, _ = run(folders)
    assert summary["settings"]["classes"] == {"class 1": [1], "class 2": [2]}
    labels = {"background": "0", "liver": 1, "tumour": 2, "vessel": 3}
    (folders / "dataset.json").write_text(json.dumps({"labels": labels}))
    summary, _ = run(folders)
    assert summary["settings"]["classes"] == {"liver": [1], "tumour": [2], "vessel": [3]}
    assert summary["classes"]["vessel"]["dice"]["left_out"] == 4


def test_labels_with_other_values_and_voxels_that_do_not_count(folders: Path):
    """Of a network for tumours alone, whose labels have 2 and, ignored, 7."""
    for case in range(4):
        file = folders / f"predictions/case_{case}_seg.nii.gz"
        write(file, loaded(file) == 2)
        label = loaded(folders / f"labelsTs/case_{case}.nii.gz")
        label[-4:] = 7
        write(folders / f"labelsTs/case_{case}.nii.gz", label)
    run(folders, classes={"tumour": 1}, label_map={"0": 0, 1: 0, 2: 1}, ignore_label=7)
    for row in rows(folders):
        found = loaded(folders / f"predictions/{row['case']}_seg.nii.gz")
        label = loaded(folders / f"labelsTs/{row['case']}.nii.gz")
        values = measure((found == 1) & (label != 7), label == 2, [0.8, 1.2, 3.0]).values
        assert float(row["dice"] or "nan") == pytest.approx(values["dice"], nan_ok=True)


@pytest.mark.parametrize("classes", [None, {"lung": 1}])
def test_pictures_are_in_pixels_and_have_grey_levels(tmp_path: Path, classes):
    label, prediction = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    label[2:6, 3:20], prediction[3:6, 3:20] = 1, 255
    for part, values in (("labelsTs", label), ("predictions", prediction)):
        (tmp_path / part).mkdir()
        Image.fromarray(values).save(tmp_path / part / "a.png")
    summary, _ = run(tmp_path, classes=classes, tolerance_mm=0.5)
    (row,) = rows(tmp_path)
    assert float(row["dice"]) == pytest.approx(2 * 3 * 17 / (7 * 17))
    assert float(row["hd95"]) == 1
    assert row["volume_ml"] == row["reference_ml"] == ""
    assert summary["settings"]["unit"] == "pixels"


def test_three_classes_as_grey_levels(tmp_path: Path):
    label = np.random.default_rng(0).integers(0, 3, (9, 9)).astype(np.uint8)
    for part, values in (("labelsTs", label), ("predictions", label * 127.5)):
        (tmp_path / part).mkdir()
        Image.fromarray(np.rint(values).astype(np.uint8)).save(tmp_path / part / "a.png")
    run(tmp_path, classes={"a": 1, "b": 2})
    assert [float(row["dice"]) for row in rows(tmp_path)] == [1, 1]
    with pytest.raises(InputError, match="has the values 0; 128; 255; allowed are the classes 0"):
        run(tmp_path, classes={"a": 1})


def test_lesions(folders: Path):
    run(folders, classes=CLASSES, lesions="tumour", lesion_overlap=0.0)
    table = rows(folders, "lesions.csv")
    start = "case,class,name,lesion,kind,voxels,volume_ml,diameter_mm,number,dice"
    assert (folders / "results/lesions.csv").read_text().startswith(start)
    assert {row["name"] for row in table} == {"tumour"}
    kinds = {row["case"]: row["kind"] for row in table}
    assert kinds["case_2"] == "missed"
    assert kinds["case_3"] == "false"
    missed = next(row for row in table if row["case"] == "case_2")
    assert (missed["voxels"], missed["number"], missed["dice"]) == ("18", "1", "")
    assert float(missed["diameter_mm"]) == pytest.approx(math.hypot(2 * 0.8, 1.2, 2 * 3), rel=1e-5)
    summary, _ = run(folders, classes=CLASSES)
    assert summary["lesions"] == {}
    assert not (folders / "results/lesions.csv").exists(), "of an earlier evaluation"


def test_names_of_pairs(tmp_path: Path):
    """What the bundles, nnU-Net and LiTS call the masks of an image, and what is none."""
    one = np.ones((3, 3, 3))
    names = {
        "a.nii.gz": "a_seg.nii.gz",
        "b_mask.nii.gz": "b.nii",
        "segmentation-3.nii": "volume-3_seg.nii.gz",
        "left/c.nii.gz": "left/c_seg.nii.gz",
        "right/c.nii.gz": "right/c_seg.nii.gz",
    }
    for label, prediction in names.items():
        write(tmp_path / "labelsTs" / label, one)
        write(tmp_path / "predictions" / prediction, one)
    write(tmp_path / "predictions/a_probabilities.nii.gz", np.zeros((3, 3, 3, 2)))
    write(tmp_path / "predictions/.partial-x/d.nii.gz", one)
    _, skipped = run(tmp_path)
    assert not skipped
    assert [row["case"] for row in rows(tmp_path)] == ["a", "b", "left/c", "right/c", "volume-3"]


def test_predictions_in_a_folder_of_the_labels(tmp_path: Path):
    one = np.ones((3, 3, 3))
    write(tmp_path / "labels/a.nii.gz", one)
    write(tmp_path / "labels/predictions/a.nii.gz", one)
    done = evaluate(tmp_path / "labels/predictions", tmp_path / "labels", tmp_path / "out")
    assert done.summary["cases"] == 1


def damaged(folder: Path) -> Path:
    file = folder / "predictions/case_1_seg.nii.gz"
    file.write_bytes(file.read_bytes()[:60])
    return file


def of_another_size(folder: Path) -> Path:
    return write(folder / "predictions/case_1_seg.nii.gz", label_map(1)[1:])


def of_another_place(folder: Path) -> Path:
    moved = AFFINE.copy()
    moved[0, 3] = 2
    return write(folder / "predictions/case_1_seg.nii.gz", label_map(1), moved)


def of_another_class(folder: Path) -> Path:
    return write(folder / "predictions/case_1_seg.nii.gz", label_map(1) * 3)


def of_four_axes(folder: Path) -> Path:
    return write(folder / "predictions/case_1_seg.nii.gz", np.zeros((*SIZE, 2)))


def of_fractions(folder: Path) -> Path:
    file = folder / "predictions/case_1_seg.nii.gz"
    nib.save(nib.Nifti1Image(label_map(1).astype(np.float32) / 2, AFFINE), file)
    return file


def without_prediction(folder: Path) -> Path:
    (folder / "predictions/case_1_seg.nii.gz").unlink()
    return folder / "labelsTs/case_1.nii.gz"


def without_label(folder: Path) -> Path:
    (folder / "labelsTs/case_1.nii.gz").unlink()
    return folder / "predictions/case_1_seg.nii.gz"


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (damaged, "The prediction {} cannot be read ("),
        (of_another_size, "The prediction {} has the size 11 x 10 x 8, its label "),
        (of_another_place, "which are up to 2.5 voxels apart; allowed is the label's place"),
        (of_another_class, "The prediction {} has the values 3; 6; allowed are 0 and 1; 2, or"),
        (of_four_axes, "The prediction {} has 4 axes; allowed are 2 and 3."),
        (of_fractions, "The prediction {} has the values 0.5; allowed are whole numbers"),
        (without_prediction, "The label {} has no prediction in "),
        (without_label, "The prediction {} has no label in "),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_case_that_cannot_be_evaluated(folders: Path, spoil, sentence: str):
    """It is named, and the tables have all others."""
    file = spoil(folders)
    summary, skipped = run(folders)
    assert list(skipped) == summary["skipped"] == ["case_1"]
    assert sentence.format(file) in skipped["case_1"]
    assert list(dict.fromkeys(row["case"] for row in rows(folders))) == [
        *("case_0", "case_2", "case_3")
    ]
    assert summary["cases"] == 3


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        run(folder, **options)
    assert not (folder / "results/cases.csv").exists()
    return str(raised.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"empty": "zero"}, "empty is 'zero'; allowed are 'nnunet', 'diagonal', 'brats', 'label'."),
        ({"tolerance_mm": -1}, "tolerance_mm is -1; allowed are numbers from 0."),
        ({"tolerance_mm": "2mm"}, "tolerance_mm is '2mm'; allowed are numbers from 0."),
        ({"lesion_overlap": 1.5}, "lesion_overlap is 1.5; allowed are numbers from 0 to 1."),
        ({"classes": "liver"}, "classes is 'liver'; allowed is {name: value or values}"),
        ({"classes": {"liver": []}}, "The class liver has the values []; allowed are one or more"),
        ({"classes": {"liver": [0, 1]}}, "The class liver has the values [0, 1]; allowed are"),
        ({"lesions": "tumor"}, "lesions has 'tumor'; allowed are classes: class 1, class 2."),
        ({"label_map": {1: 2}}, "label_map is {1: 2}, with the classes 2; allowed are 0 to 0"),
        ({"ignore_label": "x"}, "ignore_label is 'x'; allowed are whole numbers."),
    ],
)
def test_options_that_cannot_be(folders: Path, options: dict[str, Any], sentence: str):
    assert sentence in refused(folders, **options)


def test_folders_that_cannot_be(folders: Path, tmp_path: Path):
    labels, predictions, out = folders / "labelsTs", folders / "predictions", folders / "out"

    def sentence(*paths: Path) -> str:
        with pytest.raises(InputError) as raised:
            evaluate(*paths, out)
        assert not out.exists()
        return str(raised.value)

    none = folders / "none"
    assert f"There is no folder {none}; needed is one with the labels" in sentence(
        predictions, none
    )
    none.mkdir()
    assert f"{none} holds no predictions; allowed are files that end in" in sentence(none, labels)
    assert "allowed are two folders" in sentence(labels, labels)
    write(none / "other.nii.gz", label_map(0))
    assert f"No prediction in {none} (other) is of a label in {labels} (case_0; " in sentence(
        none, labels
    )
    write(none / "other.nii", label_map(0))
    assert "other.nii.gz are of one name; allowed is one of them" in sentence(none, labels)
    for file in none.iterdir():
        file.unlink()
    Image.fromarray(label_map(0)[..., 0]).save(none / "case_0.png")
    write(none / "case_1.nii.gz", label_map(1))
    assert "is a picture and" in sentence(none, labels)
    for file in none.iterdir():
        file.unlink()
    (none / "case_0.nii.gz").write_bytes(b"no image")
    assert "No case can be evaluated: The prediction" in sentence_of_the_first(none, labels, out)
    for file in labels.iterdir():
        write(file, np.zeros(SIZE))
    assert f"No label in {labels} has a class" in sentence(predictions, labels)


def sentence_of_the_first(predictions: Path, labels: Path, out: Path) -> str:
    """Of an evaluation whose every case fails; the folder for tables is there, and empty."""
    with pytest.raises(InputError) as raised:
        evaluate(predictions, labels, out)
    assert list(out.iterdir()) == []
    out.rmdir()
    return str(raised.value)


@read_only
def test_a_folder_that_cannot_be_written_to(folders: Path):
    (folders / "results").mkdir(mode=0o500)
    assert "The output folder" in refused(folders)


def test_a_full_disk_leaves_what_was_there(folders: Path, monkeypatch: pytest.MonkeyPatch):
    run(folders)
    before = {path.name: path.read_bytes() for path in (folders / "results").iterdir()}
    moved = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "cases.csv":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        moved(source, target)

    monkeypatch.setattr(replacing.__globals__["os"], "replace", full)
    with pytest.raises(InputError, match=r"cases.csv cannot be written \(No space left on device"):
        run(folders, classes=CLASSES)
    after = {path.name: path.read_bytes() for path in (folders / "results").iterdir()}
    assert after == before


def test_a_bundles_evaluation_writes_the_same(folders: Path):
    """Of masks in memory, channels first: their classes, or regions without a background."""
    run(folders, classes={"liver": 1, "tumour": 2})
    engine = Engine(lambda _, batch: batch)
    saved = folders / "saved"
    saved.mkdir()
    names = ["background", "liver", "tumour"]
    CasesSaver(str(saved), num_classes=3, label_names=names).attach(engine)

    def item(case: int) -> dict[str, MetaTensor]:
        maps = {
            "pred": loaded(folders / f"predictions/case_{case}_seg.nii.gz"),
            "label": loaded(folders / f"labelsTs/case_{case}.nii.gz"),
        }
        affine = nib.load(folders / "labelsTs/case_0.nii.gz").affine
        meta = {"filename_or_obj": str(folders / f"imagesTs/case_{case}_0000.nii.gz")}
        tensors = {
            name: MetaTensor(np.stack([x == i for i in range(3)]).astype(np.uint8), affine=affine)
            for name, x in maps.items()
        }
        return tensors | {"image": MetaTensor(np.zeros((1, *SIZE)), affine=affine, meta=meta)}

    metrics = engine.run([[item(0), item(1)], [item(2)], [item(3)]]).metrics
    assert (saved / "cases.csv").read_bytes() == (folders / "results/cases.csv").read_bytes()
    ours, theirs = (
        json.loads((folder / "summary.json").read_text()) for folder in (saved, folders / "results")
    )
    for part in ("cases", "classes", "mean", "mean_over_cases"):
        assert ours[part] == theirs[part]
    assert metrics["val_hd95_class_2"] == theirs["classes"]["tumour"]["hd95"]["mean"]
    assert "val_volume_ml_class_1" not in metrics
