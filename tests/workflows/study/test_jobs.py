"""One run of a study, with commands that take no time."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.workflows.study.estimate import Estimate
from common.workflows.study.jobs import (
    RESUME,
    Job,
    Outcome,
    Step,
    learning_curves,
    run_job,
    status,
)

SLEEP = "import time; print('begun', flush=True); time.sleep(60)"
# A training that SIGTERM ends as it does ours, once it has begun.
TRAINING = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(sys.argv[1]).write_text("state")
time.sleep(0 if "--resume" in sys.argv else 60)
"""


# Of a cascade: it goes on from its own state alone, and adds to the weights that it finds.
STAGE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
root, stage, resumed = pathlib.Path(sys.argv[1]), sys.argv[2], "--resume" in sys.argv
left, model, table = (root / x for x in ("last_epoch.pt", "model.pt", "eval/learning_curves.csv"))
found = left.read_text() if left.exists() else ""
assert found == (stage if resumed else ""), found
assert table.exists() == resumed
table.parent.mkdir(exist_ok=True)
table.write_text(f"epoch,seconds,validation_seconds\\n1,{len(sys.argv[3])},0\\n")
if not resumed:
    model.write_text((model.read_text() if model.exists() else "") + stage)
left.write_text(stage)
time.sleep(60 if stage == "tumor" and not resumed else 0)
"""


def python(code: str, *words: object) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *map(str, words))


def job(folder: Path, *steps: Step) -> Job:
    return Job("A", None, 0, str(folder), steps)


def state(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return loaded


def commands(folder: Path) -> list[str]:
    return (folder / "command.txt").read_text().splitlines()


def write_curves(root: Path, seconds: Sequence[float], validation: float = 0) -> None:
    (root / "eval").mkdir(parents=True, exist_ok=True)
    rows = [f"{i},{s},{validation}" for i, s in enumerate(seconds, start=1)]
    table = ["epoch,seconds,validation_seconds", *rows]
    (root / "eval/learning_curves.csv").write_text("\n".join(table))


def test_what_is_done_is_not_done_again(tmp_path: Path):
    once = "import sys; open(sys.argv[1], 'x').close(); print('hello')"
    steps = [Step("one", python(once, tmp_path / "a b")), Step("two", python("print('there')"))]
    work = job(tmp_path / "root", *steps)
    assert status(work) == "new"
    assert run_job(work) == Outcome("finished")
    assert status(work) == "finished"
    assert (tmp_path / "root/log.txt").read_text() == "hello\nthere\n"
    assert commands(tmp_path / "root")[::2] == ["# one", "# two"]
    assert commands(tmp_path / "root")[1].endswith("a b'")
    assert run_job(work) == Outcome("finished")
    assert len(commands(tmp_path / "root")) == 4


def test_a_failure_is_told_by_its_own_sentence_and_tried_again(tmp_path: Path):
    fail = "import sys; print('error: an old one.'); sys.exit(1)"
    outcome = run_job(job(tmp_path, Step("training", python(fail))))
    assert outcome == Outcome("failed", "its training ended with exit code 1 (an old one)")
    outcome = run_job(job(tmp_path, Step("training", python("import sys; sys.exit(3)"))))
    log = tmp_path / "log.txt"
    expected = f"its training ended with exit code 3; {log} has its output"
    assert outcome == Outcome("failed", expected)
    assert state(tmp_path)["sentence"] == expected
    assert run_job(job(tmp_path, Step("training", python("")))) == Outcome("finished")


@pytest.mark.parametrize("resumes", [True, False])
def test_asked_to_stop_it_goes_on_from_what_it_left(tmp_path: Path, resumes: bool):
    left = tmp_path / "root/last_epoch.pt"
    left.parent.mkdir()
    step = Step("training", python(TRAINING, left), leaves=str(left), again=RESUME)
    work = job(tmp_path / "root", step, Step("prediction", python("")))
    assert run_job(work, asked_to_stop=left.exists) == Outcome("stopped")
    assert status(work) == "stopped"
    assert "process" not in state(tmp_path / "root")
    if not resumes:  # as of a training that had finished no epoch
        left.unlink()
        assert run_job(work, asked_to_stop=left.exists) == Outcome("stopped")
        assert "--resume" not in commands(tmp_path / "root")[-1]
    assert run_job(work) == Outcome("finished")
    assert commands(tmp_path / "root")[-3].endswith("--resume True")


def test_a_stage_does_not_go_on_from_the_stage_before(tmp_path: Path):
    left = tmp_path / "models/last_epoch.pt"
    left.parent.mkdir()
    write_curves(tmp_path, [3, 3])
    code = "import pathlib, sys; assert not pathlib.Path(sys.argv[1]).exists(); "
    begin = code + "pathlib.Path(sys.argv[1]).touch()"
    trainings = [
        Step(f"the stage {stage}", python(begin, left), str(left), RESUME, stage=stage)
        for stage in ("liver", "tumor")
    ]
    assert run_job(job(tmp_path, *trainings)) == Outcome("finished")
    assert "--resume" not in "".join(commands(tmp_path))


def test_a_stage_has_the_weights_of_the_one_before_and_nothing_else(tmp_path: Path):
    """Asked to stop between the stages, and in the second one, which goes on from its own state."""
    left = tmp_path / "last_epoch.pt"
    trainings = [
        Step(
            f"training of the stage {stage}",
            python(STAGE, tmp_path, stage, seconds * "x"),
            leaves=str(left),
            again=RESUME,
            stage=stage,
        )
        for stage, seconds in (("liver", 3), ("tumor", 5))
    ]
    work = job(tmp_path, *trainings)
    between = (tmp_path / "eval/learning_curves_liver.csv").is_file
    assert run_job(work, asked_to_stop=between) == Outcome("stopped")
    assert state(tmp_path)["done"] == ["training of the stage liver"]

    def second() -> bool:
        return left.is_file() and left.read_text() == "tumor"

    assert run_job(work, asked_to_stop=second) == Outcome("stopped")
    assert run_job(work) == Outcome("finished"), (tmp_path / "log.txt").read_text()
    assert (tmp_path / "model.pt").read_text() == "livertumor"
    for stage, seconds in (("liver", 3), ("tumor", 5)):
        curves = learning_curves(tmp_path, stage)
        assert curves == [{"seconds": seconds, "validation_seconds": 0}]
    said = commands(tmp_path)
    begun = [line for line in said if line.startswith("# training")]
    assert [line[-5:] for line in begun] == ["liver", "tumor", "tumor"]
    assert "\n".join(said).count("--resume True") == 1
    assert said[-1].endswith("--resume True")


def test_what_outlived_its_study_is_ended_first(tmp_path: Path):
    """As where the study was killed, and its training went on."""
    orphan = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE)
    assert orphan.stdout is not None
    orphan.stdout.readline()
    began = psutil.Process(orphan.pid).create_time()
    left = {"host": platform.node(), "pid": orphan.pid, "began": began}
    content = {"status": "running", "begun": ["training"], "done": [], "process": left}
    (tmp_path / "state.json").write_text(json.dumps(content))
    work = job(tmp_path, Step("training", python("")))
    assert run_job(work) == Outcome("finished")
    assert orphan.poll() is not None
    orphan.stdout.close()


def test_another_process_of_its_number_is_left_alone(tmp_path: Path):
    other = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE)
    try:
        left = {"host": platform.node(), "pid": other.pid, "began": time.time() - 1e6}
        content = {"status": "running", "begun": [], "done": [], "process": left}
        (tmp_path / "state.json").write_text(json.dumps(content))
        assert run_job(job(tmp_path, Step("training", python("")))) == Outcome("finished")
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate()


def test_epochs_are_as_many_as_fit(tmp_path: Path):
    """By the median of the warm-up's after its first, without validation."""
    write_curves(tmp_path / "warm_up", [100, 4, 6, 50], validation=1)
    step = Step("training", python(""), seconds=26, warm_up=str(tmp_path / "warm_up"))
    assert run_job(job(tmp_path / "root", step)) == Outcome("finished")
    assert commands(tmp_path / "root")[-1].endswith("--max_epochs 5")
    short = replace(step, seconds=0.1)
    assert run_job(job(tmp_path / "other", short)) == Outcome("finished")
    assert commands(tmp_path / "other")[-1].endswith("--max_epochs 1")


def test_what_cannot_be_written_is_a_sentence(tmp_path: Path):
    (tmp_path / "file").touch()
    outcome = run_job(job(tmp_path / "file/folder", Step("training", python(""))))
    assert outcome.status == "failed"
    assert str(tmp_path / "file") in outcome.sentence
    (tmp_path / "root").mkdir()
    (tmp_path / "root/state.json").write_text("{}")
    outcome = run_job(job(tmp_path / "root", Step("training", python(""))))
    assert "state.json is no state of a run" in outcome.sentence


def test_the_time_that_is_left(tmp_path: Path):
    steps = [
        Step("training", python(""), leaves="x", again=RESUME, epochs=10),
        Step("prediction", python("")),
    ]
    jobs = [
        Job(row, None, s, str(tmp_path / f"{row}{s}"), (*steps,)) for row in "AB" for s in (0, 1)
    ]
    estimate = Estimate(jobs)
    assert estimate.news() == ""
    write_curves(tmp_path / "A0", [100, 30, 50])
    content = {"status": "running", "begun": ["training"], "done": []}
    (tmp_path / "A0/state.json").write_text(json.dumps(content))
    assert Estimate(jobs).news() == (
        "an epoch of A's training takes 40 s. Trainings that are left, one after the other: "
        "11 min, without B, of which nothing is known yet."  # 7 + 10 epochs
    )
