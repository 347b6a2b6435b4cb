"""What runs that differ in their seed alone say together."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import replacing


class Spread(NamedTuple):
    """A metric over seeds.

    Attributes:
        mean: of the seeds that have a value; NaN if none has.
        deviation: the sample standard deviation, with n - 1; NaN for fewer than two values.
        values: the metric of each seed, NaN where it has none.
    """

    mean: float
    deviation: float
    values: dict[int, float]


def read_metrics(path: str | Path) -> dict[str, float]:
    """The metrics of a run, from the ``metrics.csv`` that MONAI's ``MetricsSaver`` writes.

    Raises:
        InputError: the file cannot be read as one.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return {name: float(value) for name, value in csv.reader(file)}
    except (OSError, ValueError) as error:
        raise InputError(f"The metrics {path} cannot be read ({error}).") from error


def spread_over_seeds(metrics: Mapping[int, Mapping[str, float]]) -> dict[str, Spread]:
    """Mean and standard deviation of each metric, from seed -> metric -> value."""
    names = dict.fromkeys(name for run in metrics.values() for name in run)
    spreads = {}
    for name in names:
        values = {seed: run.get(name, math.nan) for seed, run in metrics.items()}
        known = [value for value in values.values() if not math.isnan(value)]
        spreads[name] = Spread(
            statistics.fmean(known) if known else math.nan,
            statistics.stdev(known) if len(known) > 1 else math.nan,
            values,
        )
    return spreads


def write_spread(spreads: Mapping[str, Spread], output: str | Path) -> Path:
    """Write a CSV: a row per metric, with its mean, its deviation and each seed's value.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(output)
    seeds = list(next(iter(spreads.values())).values)
    try:
        with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["metric", "mean", "standard deviation", *(f"seed {s}" for s in seeds)])
            for name, spread in spreads.items():
                table.writerow([name, spread.mean, spread.deviation, *spread.values.values()])
    except OSError as error:
        raise InputError(f"The table {path} cannot be written ({error.strerror}).") from error
    return path
