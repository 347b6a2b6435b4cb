"""What is made of runs that are finished; their networks are not needed for that."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common import evaluation, workflows
from common.errors import InputError
from common.workflows.study.cases import Fold, folds_of, write_folds
from common.workflows.study.definition import Study, read_study
from common.workflows.study.jobs import Job
from common.workflows.study.plan import jobs_of
from common.workflows.study.results import write_results

from .conftest import BUNDLES, LIVER, Write

Reports = list[tuple[dict[str, Path], dict[str, Any]]]
BOX = (slice(2, 6), slice(2, 6), slice(2, 6))
Make = Callable[..., tuple[Study, list[Fold], list[Job]]]


def save(file: Path, mask: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.diag([1.0, 1, 2, 1])), file)


def mask(extra: int = 0) -> np.ndarray:
    """A box of 64 voxels, and so many in which another class is wrongly found."""
    found = np.zeros((8, 8, 8))
    found[BOX] = 1
    found[0, 0, :extra] = 1
    return found


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> Reports:
    """What is handed to the report, of which a whole study's test has a real one."""
    handed: Reports = []
    monkeypatch.setattr(
        evaluation,
        "write_report",
        lambda title, methods, output, **more: handed.append((methods, more)),
    )
    return handed


@pytest.fixture
def make(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A study of twelve cases whose runs are finished; a mask has as many voxels too many as
    `extra` says of its row, fold, seed and number."""
    monkeypatch.setattr(workflows, "profile", lambda *_, **__: None)

    def finished(extra: Callable[[str, int | None, int, int], int], **data):
        for i in range(12):
            for folder in ("imagesTr", "labelsTr"):
                save(tmp_path / f"data/{folder}/case_{i:02d}.nii.gz", mask())
        file = write(
            data={"dataset_dir": str(tmp_path / "data"), **data},
            classes={"liver": [1]},
            rows={name: {"bundle": str(BUNDLES / LIVER)} for name in ("A", "B")},
        )
        study, out = read_study(file), tmp_path / "out"
        folds = folds_of(study, out)
        write_folds(folds, out)
        jobs = jobs_of(study, folds, out)
        tests = {fold.number: fold.test for fold in folds}
        for job in jobs:
            root = Path(job.folder)
            for number, name in enumerate(tests[job.fold]):
                found = mask(extra(job.row, job.fold, job.seed, number))
                save(root / f"predictions/{name}_seg.nii.gz", found)
            state = {"status": "finished", "begun": [], "done": []}
            (root / "state.json").write_text(json.dumps(state))
            (root / "eval").mkdir()
            curves = "epoch,learning_rate,train_loss,seconds,validation_seconds\n1,0.1,0.5,1,0\n"
            (root / "eval/learning_curves.csv").write_text(curves)
        return study, folds, jobs

    return finished


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def dice(extra: int) -> float:
    return 128 / (128 + extra)


def test_cases_of_all_folds_are_pooled(make: Make, tmp_path: Path, reports: Reports):
    study, folds, jobs = make(
        lambda row, fold, seed, number: {"A": 0, "B": 4}[row] + number, folds=[0, 1, 2, 3, 4]
    )
    out = tmp_path / "out"
    assert write_results(study, folds, jobs, out) == []
    for row in "AB":
        rows = table(out / f"rows/{row}/cases.csv")
        assert sorted(x["case"] for x in rows) == [f"case_{i:02d}" for i in range(12)]
        extra = {"A": 0, "B": 4}[row]
        expected = {
            name: dice(extra + number) for fold in folds for number, name in enumerate(fold.test)
        }
        assert {x["case"]: float(x["dice"]) for x in rows} == pytest.approx(expected)
        assert len(list((out / f"rows/{row}").glob("learning_curves_fold?_seed0.csv"))) == 5
    pair = json.loads((out / "comparison.json").read_text())["metrics"]["dice"]["liver"]["pairs"][0]
    assert pair["n"] == 12
    assert pair["p"] == pytest.approx(2**-11)  # A is the better one in all twelve
    assert not (out / "seeds.csv").exists()
    ((methods, more),) = reports
    assert methods == {row: out / "rows" / row for row in "AB"}
    for part in ("images", "labels"):
        assert {file.name for file in more[part].iterdir()} == {
            f"case_{i:02d}.nii.gz" for i in range(12)
        }
    masks = [file.name for file in more["predictions"]["B"].iterdir()]
    assert sorted(masks) == [f"case_{i:02d}_seg.nii.gz" for i in range(12)]


def test_a_case_is_the_mean_of_its_seeds(make: Make, tmp_path: Path):
    study, folds, jobs = make(
        lambda row, fold, seed, number: {0: 0, 1: 8}[seed] + (row == "B"), seeds=[0, 1]
    )
    out = tmp_path / "out"
    assert write_results(study, folds, jobs, out) == []
    rows = table(out / "rows/A/cases.csv")
    assert len(rows) == len(folds[0].test)
    for row in rows:
        assert float(row["dice"]) == pytest.approx((dice(0) + dice(8)) / 2)
    summary = json.loads((out / "rows/A/summary.json").read_text())
    assert summary["pooled"] == ["seed0", "seed1"]
    found = summary["classes"]["liver"]["dice"]
    assert found["mean"] == pytest.approx((dice(0) + dice(8)) / 2)
    assert found["n"] == len(rows)
    (spread,) = (
        row
        for row in table(out / "seeds.csv")
        if (row["row"], row["class"], row["metric"]) == ("A", "liver", "dice")
    )
    assert [float(spread[f"seed{seed}"]) for seed in (0, 1)] == pytest.approx([dice(0), dice(8)])
    assert float(spread["sd"]) == pytest.approx(np.std([dice(0), dice(8)], ddof=1))


def test_what_is_evaluated_stays_until_a_run_changes(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study, folds, jobs = make(lambda *_: 0)
    out, called = tmp_path / "out", []
    evaluate = evaluation.evaluate
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *a, **k: called.append(a[2].name) or evaluate(*a, **k)
    )
    write_results(study, folds, jobs, out)
    assert called == ["A", "B"]
    write_results(study, folds, jobs, out)
    assert called == ["A", "B"]
    state = Path(jobs[0].folder) / "state.json"
    text = state.read_text()
    state.unlink()
    state.write_text(text)
    write_results(study, folds, jobs, out)
    assert called == ["A", "B", "A"]


def test_a_row_without_all_its_runs_is_in_no_table(
    make: Make, tmp_path: Path, reports: Reports, caplog: pytest.LogCaptureFixture
):
    study, folds, jobs = make(lambda *_: 0, seeds=[0, 1])
    assert write_results(study, folds, jobs[:-1], tmp_path / "out") == []
    assert "B has 1 of 2 runs, and is in no table before it has all." in caplog.text
    assert not (tmp_path / "out/rows/B").exists()
    assert (tmp_path / "out/rows/A/cases.csv").is_file()
    assert not (tmp_path / "out/comparison.json").exists()
    ((methods, more),) = reports
    assert list(methods) == ["A"]
    assert more["comparison"] is None


def test_a_mask_that_cannot_be_read_is_told_and_the_rest_is_there(make: Make, tmp_path: Path):
    study, folds, jobs = make(lambda *_: 0, folds=[0, 1, 2, 3, 4])
    victim = next((Path(jobs[0].folder) / "predictions").iterdir())
    victim.write_bytes(b"half")
    missing = write_results(study, folds, jobs, tmp_path / "out")
    assert missing[0].startswith("A lacks a case (")
    assert victim.name in missing[0]
    assert missing[1].startswith("The rows are not compared (The sets are not paired")
    assert len(table(tmp_path / "out/rows/A/cases.csv")) == 11
    assert len(table(tmp_path / "out/rows/B/cases.csv")) == 12


def test_costs_that_cannot_be_measured(make: Make, tmp_path: Path, reports, monkeypatch):
    study, folds, jobs = make(lambda *_: 0)

    def refuse(*_: object, **__: object) -> None:
        raise InputError("There is no checkpoint.")

    monkeypatch.setattr(workflows, "profile", refuse)
    missing = write_results(study, folds, jobs, tmp_path / "out")
    assert missing == [
        f"The costs of {row} are not measured (There is no checkpoint)" for row in "AB"
    ]
    assert len(reports) == 1
