"""Studies from their files to their reports."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common import workflows
from common.cli.results import study as study_verb
from common.errors import InputError
from common.workflows import run_study

from ... import preloaded
from ...test_lung_bundle import SMALL
from .conftest import BUNDLES, LUNG, Write

SHORT = {name: value for name, value in SMALL.items() if name != "epoch_length"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def begin(out: Path, study: Path, row: str = "LightM-UNet") -> None:
    """Leave what a study leaves that was killed in its first run."""
    root = out / f"runs/{row}/seed0"
    root.mkdir(parents=True)
    state = {"status": "running", "begun": ["training"], "done": []}
    (root / "state.json").write_text(json.dumps(state))
    (out / "study.json").write_text(study.read_text())


def test_a_dry_run_writes_nothing(write: Write, out: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="common")
    file = write(notes=["The paper's text has 3, its table 4."])
    assert run_study(file, out, dry_run=True) == []
    assert "The paper's text has 3, its table 4." in caplog.text
    assert not out.exists()
    assert "1 runs: 1 new" in caplog.text
    assert "# LightM-UNet, seed 0: training" in caplog.text
    assert "-m monai.bundle run --config_file" in caplog.text
    assert "2 epochs" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"engine": "slurm"}, "engine is 'slurm'; allowed are 'local', 'ray'"),
        ({"jobs": 0}, "jobs is 0; allowed are whole numbers from 1"),
        ({"address": "auto"}, "address is 'auto'; allowed is none, but with the engine ray"),
        ({"engine": "ray", "jobs": 2}, "jobs is 2; allowed is none, but with the engine local"),
        ({"dry_run": "no"}, "dry_run is 'no'; allowed are True and False"),
        ({"rows": ["LightMUNet"]}, "has no row LightMUNet; the nearest is LightM-UNet"),
        ({"overrides": {"rows#LightM-UNet#batchsize": 1}}, "the nearest is batch_size"),
        ({"dataset_dir": "/nowhere"}, "There is no folder /nowhere"),
    ],
)
def test_what_cannot_be_run_is_named(write: Write, out: Path, arguments: dict, expected: str):
    with pytest.raises(InputError, match=expected):
        run_study(write(), out, **arguments)
    assert not out.exists()


def test_images_without_labels(write: Write, out: Path, tmp_path: Path):
    (tmp_path / "data/imagesTr").mkdir(parents=True)
    (tmp_path / "data/labelsTr").mkdir()
    (tmp_path / "data/imagesTr/a.nii.gz").touch()
    with pytest.raises(InputError, match=r"An image has no label: .*a\.nii\.gz"):
        run_study(write(), out, tmp_path / "data")


def test_files_of_a_study_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A file may have a comma in its name."""
    caplog.set_level("INFO", logger="common")  # as the verb sets it
    seen: list[list[str]] = []
    monkeypatch.setattr(workflows, "run_study", lambda files, *_: seen.append(files) or [])
    study_verb("a.json,b.json", "out")
    one = tmp_path / "a,b.json"
    one.touch()
    study_verb(str(one), "out")
    assert seen == [["a.json", "b.json"], [str(one)]]


def test_other_folders_are_left_alone(write: Write, out: Path):
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"has other things than a study: thesis\.tex; allowed is"):
        run_study(write(), out)
    assert [file.name for file in out.iterdir()] == ["thesis.tex"]


def test_another_study_is_left_alone(write: Write, out: Path):
    begin(out, write(title="Livers"))
    with pytest.raises(InputError, match="has the study 'Livers', and this one is 'Lungs'"):
        run_study(write(), out)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"budget#max_epochs": 3}, "begun with budget#max_epochs 2, and it is 3 now"),
        ({"overrides": {"batch_size": 1}}, "begun with overrides#batch_size no value, and it is 1"),
        ({"data#split_seed": 1}, "begun with data#split_seed no value, and it is 1 now"),
        (
            {"rows#LightM-UNet#batch_size": 1},
            "The row LightM-UNet was changed: its runs were begun with batch_size no value",
        ),
    ],
)
def test_a_study_that_was_changed_is_refused(
    write: Write, out: Path, overrides: dict, expected: str
):
    begin(out, write())
    with pytest.raises(InputError, match=expected):
        run_study(write(), out, dry_run=True, overrides=overrides)


def test_what_does_not_change_the_runs_may_change(write: Write, out: Path):
    begin(out, write())
    more = {"B": {"bundle": str(BUNDLES / LUNG)}}
    content: dict[str, Any] = json.loads((out / "study.json").read_text())
    file = write(rows=content["rows"] | more, metrics=["iou"], paper={"B": {"dice": 0.9}})
    assert run_study(file, out, dry_run=True, overrides={"data#seeds": [0, 1]}) == []
    begin(out, file, "B")
    with pytest.raises(InputError, match="The row B was changed"):
        run_study(file, out, dry_run=True, overrides={"rows#B#batch_size": 1})


def study_of_two(write: Write) -> Path:
    return write(
        overrides=SHORT,
        budget={"max_epochs": 3, "epoch_length": 2},
        metrics=["dice", "iou"],
        rows={
            "LightM-UNet": {"bundle": str(BUNDLES / LUNG)},
            "no residual": {"bundle": str(BUNDLES / LUNG), "network_def#residual": False},
        },
        paper={"LightM-UNet": {"lung dice": 0.96}},
    )


def command(file: Path, out: Path) -> list[object]:
    return ["study", "--file", file, "--output", out, "--jobs", 2]


def finished(out: Path) -> list[Path]:
    """The states of the runs that are."""
    states = out.glob("runs/*/*/state.json")
    return [file for file in states if json.loads(file.read_text())["status"] == "finished"]


@pytest.mark.slow
def test_from_data_to_report_killed_on_the_way(write: Write, out: Path):
    """By SIGTERM and by SIGKILL; one row cannot run, and is told in the end."""
    file = study_of_two(write)
    content = json.loads(file.read_text())
    content["rows"]["broken"] = content["rows"]["LightM-UNet"] | {"pretrained": "/none.pt"}
    file.write_text(json.dumps(content))
    for number in (signal.SIGTERM, signal.SIGKILL):
        running = preloaded.start("common", *command(file, out))
        logs = [out / f"runs/{row}/seed0/log.txt" for row in ("LightM-UNet", "no residual")]
        known = {log: log.stat().st_size if log.is_file() else 0 for log in logs}
        while not any(log.is_file() and log.stat().st_size > known[log] for log in logs):
            assert running.process.is_alive(), running.output()
            time.sleep(0.05)
        assert running.process.pid is not None
        if number is signal.SIGTERM:
            running.process.terminate()
        else:
            running.kill()
        done = running.end()
        expected = 75 if number is signal.SIGTERM else -number
        assert done.returncode == expected, done.stdout + done.stderr
    done = preloaded.run("common", *command(file, out))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "error: broken, seed 0 failed: its training ended with exit code 1 ("
    )
    assert "/none.pt" in done.stderr.splitlines()[-1]
    assert len(finished(out)) == 2
    with (out / "rows/LightM-UNet/cases.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["name"] for row in rows} == {"lung"}
    assert len(rows) == len(json.loads((out / "splits/split.json").read_text())["test"])
    assert {"dice", "iou"} == set(json.loads((out / "comparison.json").read_text())["metrics"])
    costs = json.loads((out / "rows/no residual/costs.json").read_text())
    assert costs["parameters"] > 0
    for name in ("report.html", "tables.md", "tables.tex"):
        assert (out / name).is_file()
    weights = out / "runs/LightM-UNet/seed0/models/model.pt"
    before = weights.stat().st_mtime
    settings = torch.load(out / "runs/no residual/seed0/models/last_epoch.pt", weights_only=True)
    assert settings["settings"]["network_def"]["residual"] is False
    del content["rows"]["broken"]
    file.write_text(json.dumps(content))
    done = preloaded.run("common", *command(file, out))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 runs: 2 finished" in done.stdout
    assert f"report: {out}/report.html" in done.stdout
    assert weights.stat().st_mtime == before


@pytest.mark.slow
def test_a_planned_study_trains_what_was_planned(write: Write, out: Path):
    """By the command line that is printed; what a row says is planned around."""
    pytest.importorskip("nnunetv2")
    file = write(
        plan={"gpu_memory": 2},
        overrides=SHORT,
        budget={"max_epochs": 1, "epoch_length": 1},
        rows={"LightM-UNet": {"bundle": str(BUNDLES / LUNG)}},
    )
    done = preloaded.run("common", *command(file, out))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    root = out / "runs/LightM-UNet/seed0"
    plan = json.loads((root / "plan.json").read_text())
    assert plan["image_size"] == SHORT["image_size"]
    weights = torch.load(root / "models/last_epoch.pt", weights_only=True)
    settings = json.loads(json.dumps(weights["settings"]))
    for name in ("image_size", "intensity", "num_classes"):
        assert settings[name] == plan[name]
    trained = len(json.loads((out / "splits/split.json").read_text())["training"])
    assert f"{trained} of 10" in (root / "log.txt").read_text()


@pytest.mark.slow
def test_folds_and_minutes(write: Write, out: Path, radiographs: Path):
    """Each case is tested once, by weights that never saw it."""
    file = write(
        data={"dataset_dir": str(radiographs), "folds": [0, 1, 2], "num_folds": 3},
        overrides=SHORT,
        budget={"minutes": 0.01, "epoch_length": 1},
        rows={"LightM-UNet": {"bundle": str(BUNDLES / LUNG)}},
    )
    done = preloaded.run("common", *command(file, out))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(finished(out)) == 3
    with (out / "rows/LightM-UNet/cases.csv").open(newline="") as stream:
        cases = [row["case"] for row in csv.DictReader(stream)]
    assert sorted(cases) == sorted(path.stem for path in (radiographs / "CXR_png").iterdir())
    for fold in range(3):
        split = json.loads((out / f"splits/fold{fold}.json").read_text())
        masks = out.glob(f"runs/LightM-UNet/fold{fold}_seed*/predictions/*.png")
        tested = {file.stem.removesuffix("_seg") for file in masks}
        assert tested == set(split["test"])
        assert not tested & {*split["training"], *split["validation"]}
    commands = (out / "runs/LightM-UNet/fold0_seed0/command.txt").read_text()
    assert "--max_epochs 4 --val_interval 4" in commands  # the warm-up
