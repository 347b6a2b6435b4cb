"""How long a study will take, from the first epochs of its rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from .jobs import Job, Step, learning_curves, progress

_POLL = 10.0  # seconds between two looks


class Estimate:
    """What is known of the seconds of each row's epochs, and when more is.

    Args:
        jobs: the study's runs, of which some may be finished.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.seconds: dict[tuple[str, str], float] = {}  # of an epoch, by row and step
        self._looked = -_POLL

    def news(self) -> str:
        """What there is to say since it was asked last; empty where that is nothing."""
        if time.monotonic() - self._looked < _POLL:
            return ""
        self._looked = time.monotonic()
        new = []
        for job in self.jobs:
            for step in _trainings(job):
                key = job.row, step.name
                if key not in self.seconds and (seconds := _epoch_seconds(job, step)):
                    self.seconds[key] = seconds
                    new.append(f"an epoch of {job.row}'s {step.name} takes {_span(seconds)}")
        return f"{'; '.join(new)}. {self.left()}" if new else ""

    def left(self) -> str:
        """The time that all trainings that are left take, one after the other."""
        total, unknown = 0.0, dict[str, None]()
        for job in self.jobs:
            for step in _trainings(job):
                begun, done = progress(job, step.name)
                if done:
                    continue
                seconds = step.seconds
                if seconds is None:
                    of_epoch = self.seconds.get((job.row, step.name))
                    if of_epoch is None or step.epochs is None:
                        unknown[job.row] = None
                        continue
                    trained = len(_curves(job, step)) if begun else 0
                    seconds = of_epoch * max(0, step.epochs - trained)
                total += seconds
        rest = f", without {', '.join(unknown)}, of which nothing is known yet" if unknown else ""
        return f"Trainings that are left, one after the other: {_span(total)}{rest}."


def _trainings(job: Job) -> list[Step]:
    return [step for step in job.steps if step.trains]


def _epoch_seconds(job: Job, step: Step) -> float | None:
    """With its share of validations; the first epoch, which prepares cases, is left out."""
    rows = _curves(job, step)[1:]
    return statistics.fmean(row["seconds"] for row in rows) if rows else None


def _curves(job: Job, step: Step) -> list[dict[str, float]]:
    begun, done = progress(job, step.name)
    if not begun:
        return []
    return learning_curves(Path(job.folder), step.stage if done else "")


def _span(seconds: float) -> str:
    for size, unit, smaller, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} {seconds % size // smaller:.0f} {below}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.3g} s"
