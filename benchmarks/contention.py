"""How much slower a network is while other processes are busy.

    python -m benchmarks.contention [--size 96 96 96] [--batch 1] [--only LightMUNet SegResNet]
        [--busy 1 2] [--threads 2] [--rounds 3]

A busy process computes on one core without end. The forward pass and the training step are those of
`benchmarks.networks`; each is measured alone and beside so many busy processes, in turns. A number
is the median of the rounds, beside the busy ones as a ratio to alone, and that ratio over
SegResNet's.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

import torch
from tqdm import tqdm

from common.cli.output import say, table
from common.measure import Failed, in_own_process, machine

from . import networks

STEPS = {"forward": networks.forward, "training": networks.train}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[96, 96, 96], help="2D or 3D")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument(
        "--only", nargs="+", choices=networks.NETWORKS, default=["LightMUNet", "SegResNet"]
    )
    parser.add_argument("--busy", type=int, nargs="+", default=[1, 2], help="processes beside")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    beside = [0, *options.busy]
    jobs = [(step, name, busy) for step in STEPS for name in options.only for busy in beside]
    seconds: dict[tuple[str, str, int], list[float]] = {job: [] for job in jobs}
    failures: dict[tuple[str, str], str] = {}
    for step, name, busy in tqdm(jobs * options.rounds, desc="contention"):
        if (step, name) in failures:
            continue
        with busy_processes(busy):
            try:
                cost = in_own_process(
                    STEPS[step], name, options.size, options.batch, "cpu", options.threads,
                    preload=networks.PRELOAD,
                )  # fmt: skip
            except Failed as failure:
                failures[step, name] = str(failure)
            else:
                seconds[step, name, busy].append(cost.seconds)

    def slowdown(step: str, name: str, busy: int) -> float:
        return median(seconds[step, name, busy]) / median(seconds[step, name, 0])

    rows = []
    for step in STEPS:
        compared = networks.BASELINE in options.only and (step, networks.BASELINE) not in failures
        for name in options.only:
            if (step, name) in failures:
                rows.append([step, name, failures[step, name]])
                continue
            row = [step, name, f"{median(seconds[step, name, 0]):.3g}"]
            for busy in options.busy:
                own = slowdown(step, name, busy)
                of_baseline = slowdown(step, networks.BASELINE, busy) if compared else None
                row += [f"{own:.2f}", f"{own / of_baseline:.2f}" if of_baseline else ""]
            rows.append(row)
    header = ["step", "network", "s alone"]
    for busy in options.busy:
        header += [f"beside {busy}", f"/{networks.BASELINE}"]
    size = " x ".join(map(str, options.size))
    say(f"{options.batch} image(s) of {size} on {machine('cpu', options.threads)}:\n")
    say(table(header, rows))


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
