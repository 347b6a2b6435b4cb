"""Folders for what is half done: what killed runs left goes, what others work in stays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from filelock import FileLock

from common.workflows import segment
from common.workflows.segmentation import cluster, work
from common.workflows.segmentation.options import Options
from common.workflows.segmentation.studies import Study
from common.workflows.segmentation.work import jobs_folder, remove_left, work_folder
from common.workflows.study.engines import Ended, Watch
from common.workflows.study.jobs import Job, Outcome

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


def task(folder: Path) -> Path:
    """The folder of a task of a cluster."""
    folder.mkdir(parents=True)
    (folder / "task.json").touch()
    return folder


def no_locks(self: FileLock, *args: object, **options: object) -> None:
    raise OSError(37, "No locks available")


def test_nothing_is_left_of_what_ends(tmp_path: Path):
    with work_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
        (folder / "0").mkdir()
    with pytest.raises(ZeroDivisionError), work_folder(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_goes(tmp_path: Path, left_by_a_process: Path):
    left(tmp_path, left_by_a_process)
    left(task(tmp_path / ".jobs-a/3"), left_by_a_process)
    remove_left(tmp_path)
    assert files(tmp_path) == {".jobs-a/3/task.json"}
    assert not list(tmp_path.rglob(".partial-*"))


def test_what_others_work_in_stays(tmp_path: Path):
    place = task(tmp_path / ".jobs-a/0")
    with work_folder(tmp_path) as one, work_folder(place) as other:
        remove_left(tmp_path)
        assert one.is_dir()
        assert other.is_dir()


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

    monkeypatch.setattr(FileLock, "acquire", no_locks)
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


def test_each_run_has_a_folder_for_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where there are no locks; what a run has that has ended goes with the next one."""
    with jobs_folder(tmp_path) as one:
        task(one / "0")
        with jobs_folder(tmp_path) as other:
            task(other / "0")
            assert one != other
            assert (one / "0/task.json").is_file()
    with jobs_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]
    monkeypatch.setattr(FileLock, "acquire", no_locks)
    with jobs_folder(tmp_path) as one:
        task(one / "0")
        with jobs_folder(tmp_path):
            assert (one / "0/task.json").is_file()


def test_tasks_at_work_and_what_is_no_task_stay(tmp_path: Path, left_by_a_process: Path):
    with jobs_folder(tmp_path) as ended:
        for name in "012":
            task(ended / name)
    left(ended / "0", left_by_a_process)
    (left(ended / "2", left_by_a_process) / "machine.txt").write_text("elsewhere")
    (ended / "mine").mkdir()
    (ended / "mine/notes.txt").touch()
    with work_folder(ended / "1"), jobs_folder(tmp_path):
        assert {path.name for path in ended.iterdir() if path.is_dir()} == {"1", "2", "mine"}
    with jobs_folder(tmp_path):
        assert {path.name for path in ended.iterdir() if path.is_dir()} == {"2", "mine"}


def test_a_run_on_a_cluster_keeps_the_logs_of_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Until the next one; a run beside it, which ends first, takes nothing of its."""
    options = Options(device="cpu")
    studies = [Study("a", str(tmp_path / "a.nii.gz"), tmp_path / "a")]
    seen: list[set[str]] = []

    def fake(status: Literal["failed", "finished"], meanwhile: Callable[[], None]):
        def run_on_ray(jobs: list[Job], _: None, __: None, ended: Ended, ___: Watch) -> str:
            for job in jobs:
                (Path(job.folder) / "log.txt").touch()
                meanwhile()
                assert (Path(job.folder) / "task.json").is_file()
                ended(job, Outcome(status, "The image is none"))
            return ""

        monkeypatch.setattr(cluster, "run_on_ray", run_on_ray)
        failed = cluster.run_on_cluster(studies, tmp_path, "bundle", options, None, None)
        seen.append({path.name for path in tmp_path.glob(".jobs-*/0/*")})
        return failed

    assert fake("failed", lambda: None) == {"a": "The image is none."}
    assert fake("finished", lambda: fake("finished", lambda: None)) == {}
    assert seen == [{"task.json", "log.txt"}, {"task.json", "log.txt"}, set()]
    assert list(tmp_path.iterdir()) == []


def test_links_are_not_followed(tmp_path: Path, left_by_a_process: Path):
    out = tmp_path / "out"
    with jobs_folder(tmp_path) as mine:
        left(task(mine / "0"), left_by_a_process)
    out.mkdir()
    (out / ".jobs-a").symlink_to(mine)
    before = files(mine)
    remove_left(out)
    with jobs_folder(out):
        assert files(mine) == before


def test_machines_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ids = tmp_path / "id"
    ids.write_text("first\n")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(work, "_IDS", (str(tmp_path / "none"), str(ids)))
    monkeypatch.setattr("platform.node", lambda: "localhost")
    with work_folder(out) as folder:
        left(out, folder)
    ids.write_text("second\n")
    remove_left(out)
    assert (out / ".partial-left").is_dir()
    ids.write_text("first\n")
    monkeypatch.setattr("platform.node", lambda: "")
    with work_folder(out) as folder:
        assert not (folder / "machine.txt").exists()
    (out / ".partial-left/machine.txt").write_text("")
    remove_left(out)
    assert (out / ".partial-left").is_dir()
    monkeypatch.setattr("platform.node", lambda: "localhost")
    (out / ".partial-left/machine.txt").write_text("localhost first")
    remove_left(out)
    assert not (out / ".partial-left").exists()
