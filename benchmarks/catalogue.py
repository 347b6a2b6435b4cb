"""Measure all networks on this CPU, and draw docs/networks.md's tables.

    python -m benchmarks.catalogue [--counts] [--only LightMUNet SegResNet] [--threads 2]
        [--rounds 3] [--page docs/networks.md]

Writes common/networks/networks.json, which `python -m common networks` prints, and the page.
Images, of one channel and three classes, have the sizes that the file has; what is measured, and
how, is `benchmarks.networks`'. --counts measures parameters and FLOPs alone, also of the twins, in
minutes. A table is of one machine: without --only, figures of another are dropped first.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from statistics import median
from typing import get_args

import torch
from tqdm import tqdm

from common.blocks import Twin
from common.cli.output import say
from common.errors import InputError
from common.files import replacing
from common.measure import Failed, in_own_process, machine
from common.workflows import (
    Catalogue,
    Figures,
    draw_catalogue,
    read_catalogue,
    write_catalogue,
)

from . import networks

PAGE = Path(__file__).parents[1] / "docs/networks.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", action="store_true", help="parameters and FLOPs alone")
    parser.add_argument("--only", nargs="+", choices=networks.NETWORKS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; allowed are whole numbers from 1")
    here = machine("cpu", options.threads)
    try:
        catalogue = read_catalogue()
        redraw(catalogue, options.page)  # what is wrong with the page is found before all the work
        if not options.counts:
            if options.only is None:
                forget(catalogue)
            elif others := [x for x in catalogue.machines if x != here]:
                parser.error(f"networks.json has figures of {others[0]}: leave --only out")
        rounds = 0 if options.counts else options.rounds
        for dims in catalogue.sizes:
            names = [
                name
                for name in options.only or networks.NETWORKS
                if dims in figures_of(catalogue, name)
            ]
            measure(catalogue, dims, names, options.threads, rounds)
            write_catalogue(catalogue)
            redraw(catalogue, options.page)
    except (InputError, OSError) as error:
        parser.error(str(error))
    say(f"{options.page} has the tables, `python -m common networks` the first of them.")


def figures_of(catalogue: Catalogue, name: str) -> dict[str, Figures]:
    if name not in catalogue.entries:
        raise InputError(f"networks.json has no {name}; needed are all of benchmarks.networks'.")
    return catalogue.entries[name].figures


def forget(catalogue: Catalogue) -> None:
    """Leave parameters and FLOPs, which no machine changes."""
    for entry in catalogue.entries.values():
        for dims, x in entry.figures.items():
            entry.figures[dims] = Figures(x.parameters, x.flops, twins=x.twins)


def measure(catalogue: Catalogue, dims: str, names: list[str], threads: int, rounds: int) -> None:
    """Fill in networks' figures for images of so many axes; without rounds, what is counted."""
    run = networks.Run(catalogue.sizes[dims], 1, "cpu", threads)
    steps = (networks.count, *[networks.forward, networks.train] * rounds)
    jobs = tqdm([(step, name) for step in steps for name in names], desc=f"networks, {dims}")
    for step, name in jobs:
        jobs.set_postfix_str(f"{name}: {step.__name__}")
        run.measure(step, name)
    for name in tqdm(names, desc=f"twins, {dims}"):
        figures = figures_of(catalogue, name)
        found = recorded(run, name, threads)
        if not rounds:  # seconds and memory stay as they were measured
            counted = {"parameters": found.parameters, "flops": found.flops}
            found = dataclasses.replace(figures[dims], **counted, failed=found.failed)
        found.twins = count_twins(run, name) if name in networks.WITH_MAMBA else {}
        figures[dims] = found


def count_twins(run: networks.Run, name: str) -> dict[str, list[int]]:
    """Parameters and FLOPs with each mixer, but for those of which they cannot be counted."""
    found = {}
    for mixer in get_args(Twin):
        try:
            counted = in_own_process(
                networks.count, name, *run.arguments, mixer, preload=networks.PRELOAD
            )
        except Failed as failure:
            say(f"{name} with {mixer}: {failure}")
        else:
            found[mixer] = list(counted)
    return found


def recorded(run: networks.Run, name: str, threads: int) -> Figures:
    """What a run has of a network."""
    figures = Figures()
    if name in run.counts:
        figures.parameters, figures.flops = run.counts[name]
    if costs := run.costs.get((networks.forward, name)):
        figures.seconds_forward = median(cost.seconds for cost in costs)
        figures.peak_memory_bytes = int(median(cost.memory for cost in costs))
    if costs := run.costs.get((networks.train, name)):
        figures.seconds_training_step = median(cost.seconds for cost in costs)
        figures.peak_memory_training_bytes = int(median(cost.memory for cost in costs))
    if figures.seconds_forward is not None:
        figures.machine = machine("cpu", threads)
    for step in (networks.count, networks.forward, networks.train):
        figures.failed = figures.failed or run.failures.get((step, name))
    return figures


def redraw(catalogue: Catalogue, page: Path) -> None:
    text = draw_catalogue(catalogue, page.read_text(encoding="utf-8"))
    with replacing(page) as partial:
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
