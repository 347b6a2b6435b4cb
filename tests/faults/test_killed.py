"""A training that is killed at any moment goes on to what it would have been, bit for bit.

FAULT_MOMENTS=20 pytest tests/faults/test_killed.py tries so many moments of each training.
"""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from .trainings import EPOCHS, OPTIONS, Training, TwoProcesses, equal, phantom, wait_for

MOMENTS = int(os.environ.get("FAULT_MOMENTS", "3"))

pytestmark = pytest.mark.slow


CASCADE = "liver_tumor_ct_elanres_msca_segmentation"
TRAININGS = {
    **{bundle: partial(Training, bundle) for bundle in OPTIONS},
    "the stage of tumours": partial(Training, CASCADE, options={"stage": "tumor"}),
    "two processes": partial(TwoProcesses, CASCADE),
}


class Reference:
    """A training that nobody killed, and how long it took from its first moment."""

    def __init__(self, name: str, folder: Path) -> None:
        data = phantom(folder / "data", name)
        self.training = TRAININGS[name](data=data, root=folder / "root")
        running = self.training.start()
        wait_for(self.training.root / "models/.training.lock", running)
        start = time.monotonic()
        assert running.end().returncode == 0
        self.seconds = time.monotonic() - start


@pytest.fixture(scope="module", params=list(TRAININGS))
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return Reference(request.param, tmp_path_factory.mktemp("reference"))


def check(training: Training, reference: Training) -> None:
    state, expected = training.state(), reference.state()
    assert state["epoch"] == EPOCHS
    assert equal(state["model"], expected["model"])
    assert state["best"] == expected["best"]
    assert equal(training.best(), reference.best())


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_killed(reference: Reference, tmp_path: Path, moment: int, record_property):
    """Between the first moment and the last, each try in its own share of the time."""
    share = (moment + random.Random(moment).random()) / MOMENTS
    killed = False
    while not killed:  # a machine may be faster than it was
        training = replace(reference.training, root=tmp_path / f"{share:.3f}")
        running = training.start()
        wait_for(training.root / "models/.training.lock", running)
        time.sleep(share * reference.seconds)
        running.kill()
        killed = running.end().returncode == -signal.SIGKILL
        told, share = share, 0.8 * share
    file = training.root / "models/last_epoch.pt"
    epochs = training.state()["epoch"] if file.is_file() else 0
    training.continued()
    check(training, reference.training)
    name = f"{type(training).__name__} of {training.bundle}"
    record_property(
        "say", f"{name}: killed at {told:.0%} of its time, {epochs} epochs were kept: equal"
    )


def test_asked_to_end(reference: Reference, tmp_path: Path):
    """By SIGTERM, in the middle of an epoch, which is not lost."""
    training = replace(reference.training, root=tmp_path / "root")
    running = training.start()
    wait_for(training.root / "models/last_epoch.pt", running)
    running.process.terminate()
    done = running.end()
    said = done.stdout + done.stderr
    assert "SIGTERM ended the training" in said, said[-3000:]
    if not isinstance(training, TwoProcesses):  # of which torchrun, and its exit code, come last
        assert done.returncode == 75
        assert "Traceback" not in done.stderr
    training.continued()
    check(training, reference.training)
