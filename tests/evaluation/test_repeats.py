import csv
import math
from pathlib import Path

import pytest

from common.errors import InputError
from common.evaluation import read_metrics, spread_over_seeds, write_spread


def test_mean_and_deviation_over_seeds(tmp_path: Path):
    (tmp_path / "42.csv").write_text("dice,0.5\nasd,3.0\nrvd,nan\n")
    (tmp_path / "57.csv").write_text("dice,0.7\nasd,nan\nrvd,nan\n")
    (tmp_path / "89.csv").write_text("dice,0.9\nasd,5.0\nrvd,nan\n")
    spreads = spread_over_seeds({seed: read_metrics(tmp_path / f"{seed}.csv") for seed in SEEDS})
    assert list(spreads) == ["dice", "asd", "rvd"]
    assert spreads["dice"].mean == pytest.approx(0.7)
    assert spreads["dice"].deviation == pytest.approx(0.2)  # of a sample: n - 1
    assert spreads["dice"].values == {42: 0.5, 57: 0.7, 89: 0.9}
    assert spreads["asd"][:2] == pytest.approx((4, math.sqrt(2)))  # 57 has no value
    assert all(map(math.isnan, spreads["rvd"][:2]))

    with open(write_spread(spreads, tmp_path / "repeats.csv"), newline="") as file:
        header, first, *rest = csv.reader(file)
    assert header == ["metric", "mean", "standard deviation", "seed 42", "seed 57", "seed 89"]
    assert first[0] == "dice"
    assert [float(value) for value in first[1:]] == pytest.approx([0.7, 0.2, 0.5, 0.7, 0.9])
    assert len(rest) == 2


SEEDS = (42, 57, 89)


def test_one_seed_has_no_deviation():
    spread = spread_over_seeds({42: {"dice": 0.5}})["dice"]
    assert spread.mean == 0.5
    assert math.isnan(spread.deviation)


def test_files_that_cannot_be_used_are_named(tmp_path: Path):
    (tmp_path / "bad.csv").write_text("dice,high\n")
    for name in ("bad.csv", "none.csv"):
        with pytest.raises(InputError, match=rf"{name} cannot be read"):
            read_metrics(tmp_path / name)
    with pytest.raises(InputError, match=r"repeats\.csv cannot be written"):
        write_spread(spread_over_seeds({42: {"dice": 0.5}}), tmp_path / "no/repeats.csv")
