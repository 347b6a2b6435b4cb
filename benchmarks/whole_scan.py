"""Seconds from a scan's file to its mask's, by the liver bundle's own config, and where they go.

    python -m benchmarks.whole_scan --image FILE [--only LightMUNet SegResNet] [--threads 2]
        [--patch_size 128 128 128] [--spacing 0.77 0.77 1.0] [--overlap 0.5] [--rounds 1]

All but the network is the same: its weights are random, and the config's defaults hold. Each has a
process of its own, in turns for `--rounds` rounds; the imports of Python's modules are not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from monai.networks import nets
from tqdm import tqdm

from common import networks
from common.cli.output import say, table
from common.measure import Failed, in_own_process, machine

CONFIG = (
    Path(__file__).parents[1] / "bundles/liver_ct_lightm_unet_segmentation/configs/inference.json"
)
NETWORKS: dict[str, tuple[type[torch.nn.Module], str]] = {
    "LightMUNet": (networks.LightMUNet, "common.networks.LightMUNet"),
    "SegResNet": (nets.SegResNet, "SegResNet"),
}
PRELOAD = ["monai.bundle", "common.networks", "common.workflows"]
STEPS = ("reading", "preparing", "resampling", "network", "windows", "inverse", "writing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, required=True, help="a scan, as the bundle takes it")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--patch_size", type=int, nargs=3, help="instead of the bundle's")
    parser.add_argument("--spacing", type=float, nargs=3, help="instead of the bundle's, mm")
    parser.add_argument("--overlap", type=float, help="instead of the bundle's")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("patch_size", "spacing", "overlap")}
    given = {name: value for name, value in given.items() if value is not None}

    found: dict[str, list[list[float]]] = {name: [] for name in options.only}
    windows: dict[str, int] = {}
    failures: dict[str, str] = {}
    for name in tqdm(options.only * options.rounds, desc="networks"):
        if name in failures:
            continue
        try:
            seconds, windows[name] = in_own_process(
                scan, options.image.absolute(), name, options.threads, given, preload=PRELOAD
            )
        except Failed as failure:
            failures[name] = str(failure)
            continue
        total = seconds.pop("total")
        rest = total - sum(seconds.values())
        found[name].append([*(seconds.get(step, 0.0) for step in STEPS), rest, total])

    rows = []
    for name in options.only:
        if name in failures:
            rows.append([name, failures[name]])
            continue
        cells = [median(column) for column in zip(*found[name], strict=True)]
        shown = (f"{cell:.1f}" if cell >= 10 else f"{cell:.2g}" for cell in cells)
        rows.append([name, str(windows[name]), *shown])
    say(
        f"Seconds, medians of {options.rounds} rounds, {options.image.name} on "
        f"{machine('cpu', options.threads)}:\n"
    )
    say(table(["network", "windows", *STEPS, "the rest", "total"], rows))


class Clock:
    """Adds up the time of calls by what they are for, without the calls that they make."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._within: list[float] = []

    def watch(self, owner: type, method: str, step: str) -> None:
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._within.append(0.0)
            start = time.perf_counter()
            try:
                return inner(*arguments, **keywords)
            finally:
                taken = time.perf_counter() - start
                self.seconds[step] += taken - self._within.pop()
                self.calls[step] += 1
                if self._within:
                    self._within[-1] += taken

        setattr(owner, method, timed)


def scan(image: Path, name: str, threads: int, given: dict[str, Any]) -> tuple[dict, int]:
    """Seconds of each step and in all, and how many windows there were."""
    from monai.bundle import run
    from monai.transforms import Compose, SaveImaged

    from common.inferers import EnsembleInferer
    from common.transforms import InvertedLabelsd, LoadCheckedImaged, OwnKeysSpacingd

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind, target = NETWORKS[name]
    arguments = {"init_filters": 32, "blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]}
    arguments |= {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nothing:
        checkpoint = Path(folder, "model.pt")
        torch.save(kind(**arguments).state_dict(), checkpoint)
        clock = Clock()
        for owner, method, step in (
            (Compose, "__call__", "preparing"),
            (LoadCheckedImaged, "__call__", "reading"),
            (OwnKeysSpacingd, "__call__", "resampling"),
            (EnsembleInferer, "__call__", "windows"),
            (kind, "forward", "network"),
            (InvertedLabelsd, "__call__", "inverse"),
            (SaveImaged, "__call__", "writing"),
        ):
            clock.watch(owner, method, step)
        start = time.perf_counter()
        with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            run(
                config_file=str(CONFIG),
                device="cpu",
                dataset_dir=str(image),
                checkpoint=str(checkpoint),
                output_dir=folder,
                network_def={"_target_": target, **arguments},
                **given,
            )
        clock.seconds["total"] = time.perf_counter() - start
    return dict(clock.seconds), clock.calls["network"]


if __name__ == "__main__":
    main()
