"""What goes wrong around a training: one sentence, and nothing that was finished is lost."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from common.checkpoints import save_checkpoint
from common.data import split_cases
from common.errors import InputError

from ..conftest import read_only
from .trainings import EPOCHS, Training, equal, phantom, sentence, wait_for

BUNDLE = "lung_cxr_lightm_unet_segmentation"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom(tmp_path_factory.mktemp("phantom") / "data", BUNDLE)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Training:
    training = Training(BUNDLE, data, tmp_path_factory.mktemp("reference"))
    training.succeed()
    return training


@pytest.fixture
def training(data: Path, tmp_path: Path) -> Training:
    return Training(BUNDLE, data, tmp_path / "root")


@pytest.fixture(scope="module")
def two_epochs_once(reference: Training, tmp_path_factory: pytest.TempPathFactory) -> Training:
    training = replace(reference, root=tmp_path_factory.mktemp("two"))
    training.succeed(max_epochs=2)
    return training


@pytest.fixture
def two_epochs(two_epochs_once: Training, training: Training) -> Training:
    """With the state and the weights of a training that may go on."""
    shutil.copytree(two_epochs_once.root, training.root)
    return training


def test_disk_full(two_epochs: Training):
    """Here it is a limit on what one file may hold; of a full disk the error has another number."""
    before = two_epochs.state()
    limit = (two_epochs.root / "models/last_epoch.pt").stat().st_size // 2
    running = two_epochs.start(resume=True)
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    done = running.end()
    assert done.returncode == 1
    said = sentence(done.stderr)
    assert "cannot be written" in said
    assert "keeps epoch 2: --resume True goes on" in said
    assert equal(two_epochs.state()["model"], before["model"])
    assert not list((two_epochs.root / "models").glob(".partial-*"))


def test_output_folder_vanishes(reference: Training, training: Training):
    running = training.start()
    wait_for(training.root / "models/last_epoch.pt", running)
    shutil.rmtree(training.root / "models")
    done = running.end()
    assert done.returncode == 1
    assert f"{training.root}/models/" in (said := sentence(done.stderr))
    assert "cannot be written" in said
    training.succeed()
    assert equal(training.state()["model"], reference.state()["model"])


@read_only
def test_read_only_folder(two_epochs: Training):
    folder = two_epochs.root / "models"
    folder.chmod(0o500)
    try:
        assert str(folder) in two_epochs.fail(resume=True)
    finally:
        folder.chmod(0o700)
    two_epochs.succeed(resume=True)


def test_killed_while_a_checkpoint_is_written(tmp_path: Path):
    file = tmp_path / "last_epoch.pt"
    save_checkpoint({"epoch": 1}, file)
    if (child := os.fork()) == 0:

        def half(content: object, stream) -> None:
            stream.write(b"half")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
        save_checkpoint({"epoch": 2}, file)
    os.waitpid(child, 0)
    assert torch.load(file, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.glob(".partial-*/*"))  # it was writing


def test_what_a_killed_process_was_writing_is_removed(two_epochs: Training):
    left = two_epochs.root / "models/.partial-abc"
    left.mkdir()
    (left / "last_epoch.pt").write_bytes(b"half")
    two_epochs.succeed(resume=True)
    assert not left.exists()


def test_a_state_that_cannot_be_read(two_epochs: Training):
    (two_epochs.root / "models/last_epoch.pt").write_bytes(b"half")
    assert "last_epoch.pt cannot be read as a checkpoint" in two_epochs.fail(resume=True)


def test_nothing_to_go_on_from(training: Training):
    assert "there is no" in training.fail(resume=True)


def test_unreadable_file_in_the_middle_of_an_epoch(data: Path, tmp_path: Path):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    training = Training(BUNDLE, broken, tmp_path / "root", {"cache": "none", "num_workers": 0})
    victim = split_cases(broken, "training")[0]["image"]
    running = training.start()
    wait_for(training.root / "models/last_epoch.pt", running)
    Path(victim).write_bytes(Path(victim).read_bytes()[:50])
    done = running.end()
    assert done.returncode == 1
    assert victim in sentence(done.stderr)
    assert f"{victim}" in training.fail(resume=True)
    said = training.succeed(resume=True, strict=False)
    assert training.state()["epoch"] == EPOCHS
    assert "Another case takes the place of one" in said
    assert victim in said


def test_worker_killed(training: Training):
    options = {"num_workers": 2, "cache": "none", "epoch_length": 100}
    for part in ("train", "validate"):  # whose children are workers alone
        options[f"{part}#dataloader#multiprocessing_context"] = "fork"
    running = training.start(**options)
    wait_for(training.root / "models/last_epoch.pt", running)
    process = psutil.Process(running.process.pid)
    while running.process.is_alive():
        with suppress(psutil.Error, IndexError):  # one that has ended meanwhile
            process.children()[0].kill()
        running.process.join(5)  # another that is killed meanwhile interrupts what is said
    done = running.end()
    assert done.returncode == 1, done.stderr[-1000:]
    said = next((x for x in done.stderr.splitlines() if x.startswith("error: ")), done.stderr)
    assert "A process that loads cases was killed" in said
    assert "--resume True goes on" in said


def test_two_trainings_in_one_folder(training: Training):
    running = training.start()
    wait_for(training.root / "models/.training.lock", running)
    other = replace(training, root=training.root / "other")
    said = other.fail(ckpt_dir=training.root / "models")
    assert "in which another training is running" in said
    assert running.end().returncode == 0
    training.succeed(max_epochs=1)


def test_clock_going_backwards(training: Training, reference: Training):
    """As when it is set while the training runs."""
    clock = "(lambda steps: lambda: 2e9 - next(steps))(__import__('itertools').count())"
    back = f"$setattr(__import__('time'), 'time', {clock})"
    words = {"initialize": ["$monai.utils.set_determinism(seed=@seed)", back]}
    said = training.succeed(**words)
    assert " in -" not in said
    assert equal(training.state()["model"], reference.state()["model"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": 3}, "batch_size is 3, and was 2"),
        ({"learning_rate": 0.5}, "learning_rate is 0.5, and was 0.0001"),
        ({"seed": 1}, "seed is 1, and was 0"),
        ({"network_def#init_filters": 16}, "network_def#init_filters is 16, and was 8"),
        ({"split": [4, 2, 2]}, "the training cases are others"),
        ({"epoch_length": 2}, "an epoch has 2 iterations, and had 3"),
    ],
)
def test_going_on_with_other_settings(two_epochs: Training, options: dict, expected: str):
    assert expected in two_epochs.fail(resume=True, **options)


def test_longer_than_planned(two_epochs: Training, reference: Training):
    said = two_epochs.succeed(resume=True)
    assert "max_epochs is 4, and was 2" in said
    assert two_epochs.state()["epoch"] == EPOCHS
    table = (two_epochs.root / "eval/learning_curves.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in table] == ["epoch", "1", "2", "3", "4"]
    assert "nothing is left to do" in two_epochs.succeed(resume=True)


def test_not_finite(training: Training, data: Path):
    said = training.fail(learning_rate=1e36)
    assert "The loss is nan" in said or "The loss is inf" in said
    assert str(data) in said
    dump = torch.load(training.root / "eval/not_finite.pt", weights_only=True)
    assert dump["image"].shape[0] == len(dump["files"])
    assert not torch.isfinite(torch.tensor(dump["loss"]))
    training.succeed(learning_rate=1e36, check_finite=False)


def test_save_sentence(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be written"):
        save_checkpoint({}, tmp_path / "gone/model.pt")
