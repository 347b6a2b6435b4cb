"""Studies as tasks of a Ray cluster, by the engine that runs studies of methods there."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import InputError
from ...files import read_json, write_json
from ...zoo import find_bundle
from ..resume import Stopped
from ..study.engines import run_on_ray
from ..study.jobs import Job, Outcome, Step
from .bundle import Bundle
from .options import Options
from .run import run_here
from .studies import Study
from .work import TASK, jobs_folder

_logger = logging.getLogger(__name__)


def run_on_cluster(
    studies: Sequence[Study],
    output: Path,
    bundle: str,
    options: Options,
    address: str | None,
    gpus: float | None,
) -> dict[str, str]:
    """Segment studies on a Ray cluster, a task each, as `run_on_ray` does runs.

    Args:
        studies: what is left to do.
        output: the folder of the results, which all nodes see.
        bundle: its folder or zip file, which all nodes see.
        options: as chosen.
        address, gpus: as for `run_on_ray`.

    Returns:
        Of each study that failed why.

    Raises:
        InputError: as `run_on_ray`, or what tasks are told cannot be written.
        Stopped: it was asked to end; the same call, with overwrite False, goes on.
    """
    jobs = []
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        try:
            place = stack.enter_context(jobs_folder(output))
            for number, study in enumerate(studies):
                folder = place / str(number)
                folder.mkdir()
                told = {"name": study.name, "image": study.image, "folder": str(study.folder)}
                task = {
                    "study": told,
                    "output": str(folder),
                    "bundle": bundle,
                    "options": asdict(options),
                }
                write_json(folder / TASK, task)
                command = (sys.executable, "-m", __package__ or "", str(folder / TASK))
                steps = (Step("segmentation", command),)
                jobs.append(Job(study.name, None, number, str(folder), steps))
        except OSError as error:
            raise InputError(
                f"The output folder {output} cannot be written to ({error.strerror})."
            ) from error
        bar = stack.enter_context(tqdm(total=len(jobs), desc="studies", disable=None))

        def ended(job: Job, outcome: Outcome) -> None:
            if outcome.status == "failed":
                failed[job.row] = f"{outcome.sentence}."
            bar.update()

        signal = run_on_ray(jobs, address, gpus, ended, bar.refresh)
    if not failed and not signal:  # else logs are there
        shutil.rmtree(place, ignore_errors=True)
    if signal:
        said = f"{signal} ended it: the same command goes on with --overwrite False."
        _logger.warning("%s", said)
        raise Stopped(said)
    return failed


def run_task(file: str) -> None:
    """Segment the one study that a task is told of.

    Raises:
        InputError: it failed, or something of it did.
    """
    task: dict[str, Any] = read_json(Path(file))
    told = task["study"]
    study = Study(told["name"], told["image"], Path(told["folder"]))
    folder = find_bundle(task["bundle"])
    bundle = Bundle(folder, Options(**task["options"]))
    for sentence in run_here(bundle, [study], Path(task["output"])).values():
        raise InputError(sentence)
