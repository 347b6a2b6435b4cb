"""Who does the runs of a study: this machine, or a Ray cluster."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import torch

from ...errors import InputError, first_line, how_to_install
from .jobs import Job, Outcome, run_job

_POLL = 1.0  # seconds between two looks at what has ended
_PATIENCE = 10.0  # seconds for a cluster to answer
_RETRIES = 3  # of a run whose node has died
_GRACE = 330.0  # seconds in which what is asked to end does: more than a run gives its processes

Watch = Callable[[], None]  # is called about once a second
Ended = Callable[[Job, Outcome], None]  # is called for each run


class StopRequest:
    """Whether this process was asked to end, by SIGTERM or by Ctrl-C."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.name = ""

    def __call__(self) -> bool:
        return self._event.is_set()

    def ask(self, number: int, frame: object) -> None:
        self.name = signal.Signals(number).name
        self._event.set()


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take SIGTERM and Ctrl-C as requests, once; asked again, they end the process."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {}

    def ask(number: int, frame: object) -> None:
        request.ask(number, frame)
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, ask)
    try:
        yield request
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)


def run_here(jobs: Sequence[Job], at_once: int | None, ended: Ended, watch: Watch) -> str:
    """Do runs on this machine: one on each GPU, or one on the CPU with all its threads.

    Args:
        jobs: what is left to do.
        at_once: so many in place of that.
        ended, watch: see above.

    Returns:
        The signal that asked to stop; empty where none did.
    """
    slots: queue.SimpleQueue[Mapping[str, str]] = queue.SimpleQueue()
    places = _places(at_once)
    for place in places:
        slots.put(place)

    def run(job: Job) -> Outcome:
        place = slots.get()
        try:
            return Outcome("stopped") if asked() else run_job(job, place, asked)
        finally:
            slots.put(place)

    with stop_requests() as asked, ThreadPoolExecutor(len(places)) as pool:
        pending: dict[Future[Outcome], Job] = {pool.submit(run, job): job for job in jobs}
        while pending:
            done, _ = wait(pending, timeout=_POLL, return_when="FIRST_COMPLETED")
            for future in done:
                ended(pending.pop(future), future.result())
            watch()
        return asked.name


def _places(at_once: int | None) -> list[dict[str, str]]:
    """Variables for the processes of what runs at once."""
    gpus = _gpus()
    number = at_once or max(1, len(gpus))
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(number)]
    if number == 1:
        return [{}]
    threads = max(1, (os.cpu_count() or 1) // number)
    return [{"OMP_NUM_THREADS": str(threads)}] * number


def _gpus() -> list[str]:
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[:count] if visible else [str(i) for i in range(count)]


def run_on_ray(
    jobs: Sequence[Job], address: str | None, gpus: float | None, ended: Ended, watch: Watch
) -> str:
    """Do runs on a Ray cluster, whose nodes see the study's folder, its data and this package.

    Each has `gpus`, or, where the cluster has none, all processors of its smallest node. One whose
    node dies is begun on another, where it goes on.

    Args:
        jobs: what is left to do.
        address: of the cluster, such as auto or 10.0.0.1:6379; None is a cluster of this machine.
        gpus: for each run, 1 by default.
        ended, watch: see above.

    Returns:
        The signal that asked to stop; empty where none did.

    Raises:
        InputError: Ray is not installed, or there is no such cluster, or none that has room.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(f"The engine ray needs Ray: {how_to_install('ray')}.") from error
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"The Ray cluster {address} cannot be reached ({first_line(error)})."
        ) from error
    try:
        with stop_requests() as asked:  # Ray has its own, which it sets as it is initialised
            task = ray.remote(run_job).options(max_retries=_RETRIES, **_share(ray.nodes(), gpus))
            pending = {task.remote(job): job for job in jobs}
            while pending and not asked():
                done, _ = ray.wait(list(pending), timeout=_POLL)
                for reference in done:
                    ended(pending.pop(reference), _result(ray, reference))
                watch()
            for reference in pending:
                ray.cancel(reference)
            deadline = time.monotonic() + _GRACE
            for reference, job in pending.items():
                left = max(0.0, deadline - time.monotonic())
                ended(job, _result(ray, reference, left))
            return asked.name
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """See that something listens at an address, at which Ray would knock for minutes.

    Raises:
        OSError: nothing does.
    """
    if found := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address or ""):
        with socket.create_connection((found[1], int(found[2])), timeout=_PATIENCE):
            pass


def _result(ray: Any, reference: Any, timeout: float | None = None) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference, timeout=timeout)
    except (ray.exceptions.TaskCancelledError, ray.exceptions.GetTimeoutError):
        return Outcome("stopped")
    except ray.exceptions.RayError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # how Ray cancels what runs
            return Outcome("stopped")
        return Outcome("failed", f"Ray gave it up ({first_line(error)})")
    return outcome


def _share(nodes: Sequence[Mapping[str, Any]], gpus: float | None) -> dict[str, float]:
    """What a run has of a cluster."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    most = max((node.get("GPU", 0) for node in alive), default=0)
    wanted = min(1, most) if gpus is None else gpus
    if wanted > most:
        raise InputError(f"gpus is {gpus:g}; allowed on this cluster are 0 to {most:g}.")
    if wanted:
        return {"num_gpus": wanted}
    processors = [node["CPU"] for node in alive if node.get("CPU")]
    return {"num_gpus": 0, "num_cpus": min(processors, default=1)}
