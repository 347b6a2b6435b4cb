"""One run of a study: the command lines of its training and its prediction, one after the other."""

from __future__ import annotations

import csv
import math
import os
import platform
import shlex
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from ...errors import InputError, first_line
from ...files import read_json, write_json
from ..curves import TABLE
from ..resume import STOPPED

Status = Literal["new", "running", "stopped", "failed", "finished"]

RESUME = ("--resume", "True")
STATE, LOG, COMMANDS = "state.json", "log.txt", "command.txt"
WARM_UP = 4  # epochs by which it is told how many fit, of which the first is left out
_GRACE = 300.0  # seconds in which what is asked to end writes its state
_POLL = 0.5  # seconds between two looks at whether to stop


@dataclass(frozen=True)
class Step:
    """A command of a run.

    Attributes:
        name: what it does, for messages.
        command: its words.
        leaves: a file or folder from which it goes on where it was interrupted.
        again: words that make it go on.
        seconds: of a training whose epochs are those that fit; None where they are given.
        warm_up: the folder of the training by which that is told.
        epochs: of a training, where they are given.
        stage: of a cascade, which it trains.
    """

    name: str
    command: tuple[str, ...]
    leaves: str | None = None
    again: tuple[str, ...] = ()
    seconds: float | None = None
    warm_up: str | None = None
    epochs: int | None = None
    stage: str = ""

    @property
    def trains(self) -> bool:
        """Whether it is a training whose weights predict."""
        return self.again == RESUME


@dataclass(frozen=True)
class Job:
    """A run: a row of the study on one fold with one seed, in a folder of its own."""

    row: str
    fold: int | None
    seed: int
    folder: str
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.row}{fold}, seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """How a run ended; of one that failed, why, as a sentence without its stop."""

    status: Status
    sentence: str = ""


def status(job: Job) -> Status:
    """How far a run is.

    Raises:
        InputError: its state cannot be read.
    """
    return _read(Path(job.folder))["status"]


def progress(job: Job, step: str) -> tuple[bool, bool]:
    """Whether a step of a run was begun, and whether it is done."""
    state = _read(Path(job.folder))
    return step in state["begun"], step in state["done"]


def run_job(
    job: Job,
    environment: Mapping[str, str] | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Do what is left of a run; its commands are kept, and its output is its log.

    What was interrupted goes on. A process that outlived the one that started it, on this machine,
    is ended first. Where it is asked to stop, or by KeyboardInterrupt, a training writes its state.

    Args:
        environment: variables for its processes beside this one's.
        asked_to_stop: is asked about twice a second.
    """
    folder = Path(job.folder)
    log = folder / LOG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        state = _read(folder)
        _end_orphan(state)
        for step in job.steps:
            if step.name in state["done"]:
                continue
            if asked_to_stop():
                return _leave(folder, state, Outcome("stopped"))
            words = _words(step, state, folder)
            before = log.stat().st_size if log.is_file() else 0
            code = _run(words, folder, state, {**_QUIET, **(environment or {})}, asked_to_stop)
            if code != 0:
                outcome = Outcome("failed", _why(step, code, log, before))
                if code == STOPPED or asked_to_stop():
                    outcome = Outcome("stopped")
                return _leave(folder, state, outcome)
            _keep_curves(step, folder)
            state["done"].append(step.name)
            _write(folder, state, "running")
        return _leave(folder, state, Outcome("finished"))
    except InputError as error:
        return Outcome("failed", str(error).rstrip("."))
    except OSError as error:
        return Outcome("failed", f"{error.filename or folder} cannot be used ({error.strerror})")


# tqdm's bars are a line each time in a file.
_QUIET = {"TQDM_MININTERVAL": "30"}


def _words(step: Step, state: dict[str, Any], folder: Path) -> list[str]:
    """A step's command as it is to be run now, which is put down before it is."""
    words = [*step.command, *_fitting(step)]
    left = Path(step.leaves) if step.leaves else None
    if step.name in state["begun"]:
        words += step.again if left is not None and left.exists() else ()
    else:
        if step.stage:  # what there is, is the stage's before
            Path(step.leaves or "").unlink(missing_ok=True)
            (folder / "eval" / TABLE).unlink(missing_ok=True)
        state["begun"].append(step.name)
    _write(folder, state, "running")
    with (folder / COMMANDS).open("a", encoding="utf-8") as file:
        file.write(f"# {step.name}\n{shlex.join(words)}\n")
    return words


def _fitting(step: Step) -> list[str]:
    """As many epochs as fit into a training's time."""
    if step.seconds is None or step.warm_up is None:
        return []
    rows = learning_curves(Path(step.warm_up))[1:]
    seconds = statistics.median(row["seconds"] - row["validation_seconds"] for row in rows)
    return ["--max_epochs", str(max(1, math.floor(step.seconds / seconds)))]


def learning_curves(root: Path, stage: str = "") -> list[dict[str, float]]:
    """The seconds of the epochs that a training has finished, validation included; maybe none.

    Args:
        root: the bundle_root.
        stage: of a cascade, that which is finished.
    """
    file = _curves(root, stage)
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return [
            {name: float(row[name] or 0) for name in ("seconds", "validation_seconds")}
            for row in csv.DictReader(stream)
        ]


def _curves(root: Path, stage: str) -> Path:
    name = Path(TABLE)
    return root / "eval" / (f"{name.stem}_{stage}{name.suffix}" if stage else TABLE)


def _keep_curves(step: Step, folder: Path) -> None:
    """A stage's, which the next one's will replace."""
    if step.stage and (table := _curves(folder, "")).is_file():
        shutil.copy(table, _curves(folder, step.stage))


def _run(
    words: list[str],
    folder: Path,
    state: dict[str, Any],
    environment: Mapping[str, str],
    asked_to_stop: Callable[[], bool],
) -> int:
    """The exit code of a command, which is asked to end where this is."""
    with (folder / LOG).open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # a terminal's Ctrl-C is for the study alone
        )
        try:
            state["process"] = {
                "host": platform.node(),
                "pid": process.pid,
                "began": psutil.Process(process.pid).create_time(),
            }
            _write(folder, state, "running")
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(_POLL)
                if asked_to_stop():
                    return _end(process)
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen | psutil.Process) -> int:
    process.terminate()
    try:
        return process.wait(_GRACE) or 0
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
        process.kill()
        return process.wait() or 0


def _end_orphan(state: Mapping[str, Any]) -> None:
    """End a step that outlived the process that started it: two would train in one folder."""
    last = state.get("process")
    if last is None or last["host"] != platform.node():
        return
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(last["pid"])
        if process.create_time() == last["began"]:
            _end(process)


def _why(step: Step, code: int, log: Path, start: int) -> str:
    """That a step failed, and the sentence in what the log has of it, if there is one."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    what = f"its {step.name} ended with exit code {code}"
    return f"{what} ({said[-1].rstrip('.')})" if said else f"{what}; {log} has its output"


def _leave(folder: Path, state: dict[str, Any], outcome: Outcome) -> Outcome:
    state.pop("process", None)
    _write(folder, state, outcome.status, outcome.sentence)
    return outcome


def _read(folder: Path) -> dict[str, Any]:
    file = folder / STATE
    if not file.is_file():
        return {"status": "new", "begun": [], "done": []}
    state = read_json(file)
    if not {"status", "begun", "done"} <= state.keys():
        raise InputError(f"{file} is no state of a run; allowed is one that a study wrote.")
    return state


def _write(folder: Path, state: dict[str, Any], status: Status, sentence: str = "") -> None:
    state["status"], state["sentence"] = status, sentence
    try:
        write_json(folder / STATE, state)
    except OSError as error:
        raise InputError(
            f"The state {folder / STATE} cannot be written ({first_line(error)})."
        ) from error
