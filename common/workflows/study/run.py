"""A study from its file to its report: what is left of it is run, what is finished stays."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...checkpoints import differences
from ...data import check_output_folder
from ...errors import InputError, check_choice, check_switches, how_to_install, listed, nearest
from ...files import read_json, write_json
from ..resume import Stopped
from .cases import check_folds, folds_of, write_folds
from .definition import Study, read_study
from .engines import run_here, run_on_ray
from .estimate import Estimate
from .jobs import STATE, Job, Outcome, status
from .plan import jobs_of
from .results import write_results

_logger = logging.getLogger(__name__)

FILE = "study.json"
_PACKAGES = ("pandas", "statsmodels", "jinja2")  # of tables and report
_LOCK = ".study.lock"
_OF_ALL_RUNS = ("data", "budget", "plan", "overrides", "inference")
_MAY_CHANGE = ("dataset_dir", "folds", "seeds")  # of the data: the split is compared, and runs


def run_study(
    file: str | Path | Sequence[str | Path],
    output: str | Path,
    dataset_dir: str | Path | None = None,
    rows: Sequence[str] | None = None,
    engine: str = "local",
    address: str | None = None,
    jobs: int | None = None,
    gpus: float | None = None,
    dry_run: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> list[str]:
    """Run what is left of a study, and write tables and report of all that is finished.

    A run is a row on one fold with one seed: a training, and a prediction of the fold's test cases,
    each by the command line that one would type, in ``output/runs/ROW/fold0_seed0``, the
    bundle_root. What was interrupted goes on, what failed is tried again.

    No test case is trained on, planned with or used to choose weights. The weights that predict are
    those of the best validation; which cases validate is said in `common.data.disjoint_parts`.

    Args:
        file: the study, see docs/studies.md; or several files, of which each says what counts in
            place of what those before it say.
        output: a folder for everything, which the study has for itself.
        dataset_dir: of the data, in place of the file's.
        rows: those to be run; by default all.
        engine: "local", this machine, or "ray".
        address: of the Ray cluster.
        jobs: how many runs at once on this machine; by default one on each GPU, or one.
        gpus: of each run on Ray.
        dry_run: the commands alone go to the log, and nothing is written.
        overrides: ids of the study file and their values, see `read_study`.

    Returns:
        What went wrong, a sentence each without its stop; the other runs were done all the same.

    Raises:
        InputError: an argument or the study is not as above; the output folder has other things or
            another study, or another process is at this one; or it cannot be written to.
        Stopped: SIGTERM or Ctrl-C ended it; the same call goes on.
    """
    check_choice("engine", engine, ("local", "ray"))
    check_switches(dry_run=dry_run)
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        raise InputError(f"jobs is {jobs!r}; allowed are whole numbers from 1.")
    for name, value, of in (
        ("jobs", jobs, "local"),
        ("address", address, "ray"),
        ("gpus", gpus, "ray"),
    ):
        if value is not None and engine != of:
            raise InputError(f"{name} is {value!r}; allowed is none, but with the engine {of}.")
    study = read_study(file, dataset_dir, overrides)
    for name in rows or ():
        if name not in study.rows:
            raise InputError(
                f"The study {study.title!r} has no row {name}{nearest(name, study.rows)}."
            )
    folder = Path(output).resolve()
    _check_folder(folder, study)
    folds = folds_of(study, folder)
    check_folds(folds)
    every = jobs_of(study, folds, folder)
    chosen = [job for job in every if rows is None or job.row in rows]
    left = [job for job in chosen if status(job) != "finished"]
    estimate = Estimate(every)
    _say_plan(study, chosen, estimate)
    if dry_run:
        for job in left:
            for step in job.steps:
                _logger.info("# %s: %s\n%s", job.name, step.name, shlex.join(step.command))
        return []
    if lacking := [name for name in _PACKAGES if find_spec(name) is None]:
        raise InputError(f"A study needs {listed(lacking)}: {how_to_install('study')}.")
    check_output_folder(folder)
    failures: list[str] = []

    def ended(job: Job, outcome: Outcome) -> None:
        _logger.info("%s: %s.", job.name, outcome.status)
        if outcome.status == "failed":
            failures.append(f"{job.name} failed: {outcome.sentence}")
            _logger.error("%s.", failures[-1])

    def watch() -> None:
        if said := estimate.news():
            _logger.info("%s", said)

    with _alone(folder), _written(folder):
        write_json(folder / FILE, study.content)
        write_folds(folds, folder)
        if engine == "ray" and left:
            signal = run_on_ray(left, address, gpus, ended, watch)
        else:
            signal = run_here(left, jobs, ended, watch)
        if signal:
            said = f"{signal} ended the study: the same command goes on."
            _logger.warning("%s", said)
            raise Stopped(said)
        finished = [job for job in every if status(job) == "finished"]
        failures += write_results(study, folds, finished, folder)
    return failures


def _check_folder(folder: Path, study: Study) -> None:
    """See that the output folder is empty, or has this study.

    Raises:
        InputError: it has something else.
    """
    kept = folder / FILE
    if not kept.is_file():
        found = [x.name for x in folder.iterdir() if x.name != _LOCK] if folder.is_dir() else []
        if found:
            raise InputError(
                f"The output folder {folder} has other things than a study: {listed(found, 5)}; "
                "allowed is a folder that is empty, or not there."
            )
        return
    before, now = read_json(kept), study.content
    if before.get("title") != now["title"]:
        raise InputError(
            f"The output folder {folder} has the study {before.get('title')!r}, and this one is "
            f"{now['title']!r}; allowed is another folder."
        )
    begun = {path.parents[1].name for path in folder.glob(f"runs/*/*/{STATE}")}
    if not begun:
        return
    for section in _OF_ALL_RUNS:
        pair = [_compared(content, section) for content in (before, now)]
        _refuse(section, pair[0], pair[1], f"The runs in {folder} were", "the same")
    for name in study.rows:
        if name in begun and name in before.get("rows", {}):
            runs = folder / "runs" / name
            _refuse(
                "",
                before["rows"][name],
                now["rows"][name],
                f"The row {name} was changed: its runs were",
                f"the same, another name for the row, or to remove {runs}",
            )


def _compared(content: Mapping[str, Any], section: str) -> Any:
    said = content.get(section, {})
    if section != "data":
        return said
    return {name: value for name, value in said.items() if name not in _MAY_CHANGE}


def _refuse(id_: str, before: Any, now: Any, begin: str, allowed: str) -> None:
    for name, was, is_ in differences(id_, before, now):
        raise InputError(
            f"{begin} begun with {name} {was}, and it is {is_} now; allowed is {allowed}, or "
            "another output folder."
        )


def _say_plan(study: Study, jobs: Sequence[Job], estimate: Estimate) -> None:
    for note in (study.title, *study.notes):
        _logger.info("%s", note)
    counts = Counter(status(job) for job in jobs)
    _logger.info(
        "%d runs: %s",
        len(jobs),
        ", ".join(f"{number} {name}" for name, number in counts.items()),
    )
    width = max(len(job.name) for job in jobs)
    for job in jobs:
        epochs = [str(step.epochs) for step in job.steps if step.epochs]
        minutes = "" if study.minutes is None else f"{study.minutes:g} minutes"
        length = f"{' + '.join(epochs)} epochs" if epochs else minutes
        _logger.info("  %s  %-8s  %s", job.name.ljust(width), status(job), length)
    if said := estimate.news():
        _logger.info("%s", said)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"The output folder {folder} is one in which a study is running; allowed is one at a "
            "time."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """What cannot be written, as a sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} cannot be written ({error.strerror}); what is finished "
            "stays, and the same command goes on."
        ) from error
