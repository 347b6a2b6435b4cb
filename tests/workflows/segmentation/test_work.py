"""Folders for what is half done: what killed runs left goes, what others work in stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from common.errors import InputError
from common.workflows import segment
from common.workflows.segmentation import work
from common.workflows.segmentation.work import jobs_folder, remove_left, work_folder

from .conftest import save_scan
from .test_segment import files

# As a run that is killed: nothing is tidied up.
KILLED = """
import os, sys
from pathlib import Path
from common.workflows.segmentation.work import work_folder
with work_folder(Path(sys.argv[1])) as folder:
    (folder / "0").mkdir()
    (folder / "0/mask.nii.gz").write_bytes(b"half a mask")
    os._exit(9)
"""


def killed(output: Path) -> Path:
    """What a process left that was killed."""
    output.mkdir(parents=True, exist_ok=True)
    before = set(output.iterdir())
    done = subprocess.run([sys.executable, "-c", KILLED, str(output)])
    assert done.returncode == 9
    (left,) = set(output.iterdir()) - before
    assert (left / "0/mask.nii.gz").is_file()
    return left


@pytest.fixture(scope="module")
def left_by_a_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files in such a folder; not to be changed."""
    return killed(tmp_path_factory.mktemp("killed"))


def left(output: Path, like: Path, name: str = ".partial-left") -> Path:
    """Such a folder again, without the seconds of a process."""
    (output / name).mkdir(parents=True)
    for file in like.glob("*.*"):
        (output / name / file.name).write_bytes(file.read_bytes())
    return output / name


def test_nothing_is_left_of_what_ends(tmp_path: Path):
    with work_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
        (folder / "0").mkdir()
    with pytest.raises(ZeroDivisionError), work_folder(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_goes(tmp_path: Path, left_by_a_process: Path):
    left(tmp_path, left_by_a_process)
    left(tmp_path / ".jobs/3", left_by_a_process)  # of a task of a cluster
    (tmp_path / ".jobs/3/log.txt").touch()
    remove_left(tmp_path)
    assert files(tmp_path) == {".jobs/3/log.txt"}
    assert not list(tmp_path.rglob(".partial-*"))


def test_what_others_work_in_stays(tmp_path: Path):
    (tmp_path / ".jobs/0").mkdir(parents=True)
    with work_folder(tmp_path) as one, work_folder(tmp_path / ".jobs/0") as task:
        remove_left(tmp_path)
        for folder in (one, task):
            (folder / "mask.nii.gz").touch()


def test_what_is_not_known_to_be_left_stays(
    tmp_path: Path, left_by_a_process: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another machine's, what was not locked, and what is no run's."""
    left(tmp_path, left_by_a_process, ".partial-elsewhere")
    (tmp_path / ".partial-elsewhere/machine.txt").write_text("elsewhere")
    (left(tmp_path, left_by_a_process, ".partial-new") / "machine.txt").unlink()
    (left(tmp_path, left_by_a_process, ".partial-odd") / "machine.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / ".partial-file").touch()
    (tmp_path / ".partial-summary").mkdir()
    (tmp_path / ".partial-summary/summary.csv").touch()
    before = sorted(tmp_path.rglob("*"))
    remove_left(tmp_path)
    assert [path for path in before if not path.exists()] == []

    def acquire(self: FileLock, *args: object, **options: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    mine = left(tmp_path, left_by_a_process)
    remove_left(tmp_path)
    assert mine.is_dir()
    with work_folder(tmp_path) as folder:
        assert not (folder / "machine.txt").exists()
    assert not folder.exists()


def test_segment_removes_what_was_left(ct_bundle: Path, tmp_path: Path, left_by_a_process: Path):
    image = save_scan(tmp_path / "scan.nii.gz")
    left(tmp_path / "out", left_by_a_process)
    segment(image, tmp_path / "out", ct_bundle, device="cpu")
    assert files(tmp_path / "out") == {"scan/scan.nii.gz", "scan/manifest.json"}
    left(tmp_path / "out", left_by_a_process)
    segment(image, tmp_path / "out", ct_bundle, device="cpu", overwrite=False)  # nothing to do
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scan"]


def test_a_clusters_tasks_are_one_runs(tmp_path: Path):
    (tmp_path / ".jobs/7").mkdir(parents=True)
    (tmp_path / ".jobs/7/task.json").touch()
    with jobs_folder(tmp_path) as folder:
        assert folder == tmp_path / work.JOBS
        assert not (folder / "7").exists()
        (folder / "0").mkdir()
        with (
            pytest.raises(InputError, match="is one into which a cluster is segmenting; allowed"),
            jobs_folder(tmp_path),
        ):
            pass
        assert (folder / "0").is_dir()
    with jobs_folder(tmp_path) as folder:
        assert not (folder / "0").exists()
