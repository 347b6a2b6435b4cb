"""Who does the runs: so many at once, asked to stop, on a cluster that loses a node."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from common.workflows.study import engines
from common.workflows.study.engines import run_here, run_on_ray
from common.workflows.study.jobs import RESUME, Job, Outcome, Step

from .test_jobs import TRAINING, python


def sleeping(folder: Path, seconds: float, number: int) -> list[Job]:
    code = f"import time; print(time.time()); time.sleep({seconds}); print(time.time())"
    return [
        Job("A", None, i, str(folder / str(i)), (Step("training", python(code)),))
        for i in range(number)
    ]


@pytest.fixture
def ended() -> list[tuple[int, Outcome]]:
    return []


def run(jobs: list[Job], ended: list, at_once: int | None = None) -> str:
    return run_here(jobs, at_once, lambda j, x: ended.append((j.seed, x)), lambda: None)


@pytest.mark.parametrize("at_once", [None, 2])
def test_runs_at_once(tmp_path: Path, monkeypatch, ended: list, at_once: int | None):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert run(sleeping(tmp_path, 0.5, 2), ended, at_once) == ""
    assert sorted(ended) == [(0, Outcome("finished")), (1, Outcome("finished"))]
    spans = [[float(x) for x in (tmp_path / f"{i}/log.txt").read_text().split()] for i in (0, 1)]
    together = max(begin for begin, _ in spans) < min(end for _, end in spans)
    assert together == (at_once == 2)


def test_places(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert engines._places(None) == [{}]
    assert engines._places(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    of_gpus = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert engines._places(None) == of_gpus
    assert engines._places(3) == [*of_gpus, of_gpus[0]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert engines._places(1) == [{"CUDA_VISIBLE_DEVICES": "5"}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(tmp_path: Path, ended: list, number: signal.Signals):
    """What runs is asked in its turn, what waits is not begun."""
    jobs = []
    for seed in (0, 1):
        root = tmp_path / str(seed)
        root.mkdir()
        left = root / "last_epoch.pt"
        step = Step("training", python(TRAINING, left), leaves=str(left), again=RESUME)
        jobs.append(Job("A", None, seed, str(root), (step,)))

    def ask() -> None:
        while not (tmp_path / "0/last_epoch.pt").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    asking = threading.Thread(target=ask)
    asking.start()
    assert run(jobs, ended, 1) == number.name
    asking.join()
    assert [outcome.status for _, outcome in ended] == ["stopped", "stopped"]
    assert json.loads((tmp_path / "0/state.json").read_text())["status"] == "stopped"
    assert not list((tmp_path / "1").iterdir())
    assert signal.getsignal(number) is before
    ended.clear()
    left_over = [j for j in jobs if j.seed == 0]
    assert run(left_over, ended) == ""
    assert ended == [(0, Outcome("finished"))]


def test_shares_of_a_cluster():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 2.0, "GPU": 4.0}},
    ]
    assert engines._share(nodes, None) == {"num_gpus": 0, "num_cpus": 4}
    with pytest.raises(InputError, match="gpus is 1; allowed on this cluster are 0 to 0"):
        engines._share(nodes, 1)
    nodes[2]["Alive"] = True
    assert engines._share(nodes, None) == {"num_gpus": 1}
    assert engines._share(nodes, 2) == {"num_gpus": 2}


def test_without_ray(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'needs Ray: pip install "\.\[ray\]"'):
        run_on_ray([], None, None, lambda j, x: None, lambda: None)


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "auto"])
def test_a_cluster_that_cannot_be_reached(address: str):
    """Ray itself would try for minutes."""
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=f"The Ray cluster {address} cannot be reached"):
        run_on_ray([], address, None, lambda j, x: None, lambda: None)


@pytest.mark.slow
def test_a_node_is_killed_in_the_middle(tmp_path: Path, cluster, ended: list):
    """Both nodes train; the run of the one that dies goes on where it was, on the other."""
    jobs = []
    for seed in (0, 1):
        left = tmp_path / f"{seed}/last_epoch.pt"
        left.parent.mkdir()
        code = TRAINING.replace("else 60", "else 30")
        step = Step("training", python(code, left), leaves=str(left), again=RESUME)
        jobs.append(Job("A", None, seed, str(left.parent), (step,)))
    (other,) = cluster.worker_nodes

    def kill() -> None:
        while not all((tmp_path / f"{seed}/last_epoch.pt").exists() for seed in (0, 1)):
            time.sleep(0.1)
        cluster.remove_node(other, allow_graceful=False)

    killing = threading.Thread(target=kill)
    killing.start()
    signal_name = run_on_ray(
        jobs, cluster.address, None, lambda j, x: ended.append((j.seed, x)), lambda: None
    )
    killing.join()
    assert signal_name == ""
    assert sorted(ended) == [(0, Outcome("finished")), (1, Outcome("finished"))]
    texts = [(tmp_path / f"{seed}/command.txt").read_text() for seed in (0, 1)]
    assert sum("--resume True" in text for text in texts) == 1


@pytest.mark.slow
def test_asked_to_stop_on_ray(tmp_path: Path, cluster, ended: list):
    left = tmp_path / "root/last_epoch.pt"
    left.parent.mkdir()
    step = Step("training", python(TRAINING, left), leaves=str(left), again=RESUME)
    work = Job("A", None, 0, str(left.parent), (step,))

    def ask() -> None:
        while not left.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    found = run_on_ray(
        [work], cluster.address, None, lambda j, x: ended.append((j.seed, x)), lambda: None
    )
    asking.join()
    assert found == "SIGTERM"
    assert [outcome.status for _, outcome in ended] == ["stopped"]
    (process,) = [json.loads((left.parent / "state.json").read_text()).get("process")]
    assert process is None or not Path(f"/proc/{process['pid']}").exists()
