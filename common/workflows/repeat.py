"""One bundle trained and evaluated again and again, with another seed each time."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json

_logger = logging.getLogger(__name__)
_STAGES = ("liver", "tumor")  # of a cascade, in the order of their trainings


def run_with_seeds(
    bundle: str | Path,
    output: str | Path,
    seeds: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
) -> dict[int, Path | str]:
    """Train and evaluate a bundle with each seed, each run in processes of its own.

    Of a cascade both stages are trained, one after the other, unless overrides name one.

    What a run prints passes through; what it writes is in ``output/<seed>``.

    Args:
        bundle: the bundle's folder.
        output: a folder for the runs.
        seeds: different whole numbers.
        overrides: ids of train.json and their values, for all runs.

    Returns:
        Of each seed its ``metrics.csv``; or, of one that failed, a sentence: the others ran all
        the same.

    Raises:
        InputError: the bundle has no such configs, the seeds are not as above, or an override is
            what this sets itself.
    """
    configs = Path(bundle).resolve() / "configs"
    for name in ("train", "evaluate"):
        if not (configs / f"{name}.json").is_file():
            raise InputError(f"There is no {configs / name}.json; needed is a bundle, by --bundle.")
    if not seeds or len(set(seeds)) < len(seeds) or any(type(seed) is not int for seed in seeds):
        raise InputError(f"seeds is {seeds}; allowed are different whole numbers, such as 42,57.")
    for name in ("seed", "bundle_root", "output_dir", "ckpt_dir", "checkpoint", "config_file"):
        if name in (overrides or {}):
            raise InputError(f"{name} is given, which each run sets itself; allowed are others.")
    trainings: dict[str, dict[str, Any]] = {"training": {}}
    if "stage" in read_json(configs / "train.json") and "stage" not in (overrides or {}):
        trainings = {f"training of the stage {stage}": {"stage": stage} for stage in _STAGES}
    results: dict[int, Path | str] = {}
    for number, seed in enumerate(seeds, start=1):
        root = Path(output).resolve() / str(seed)
        results[seed] = root / "eval/metrics.csv"
        own = {"bundle_root": root, "seed": seed, **(overrides or {})}
        runs = {what: (["train"], own | stage) for what, stage in trainings.items()}
        runs["evaluation"] = (["train", "evaluate"], own)
        for what, (names, options) in runs.items():
            _logger.info("%s with seed %d (%d of %d)", what, seed, number, len(seeds))
            files = [str(configs / f"{name}.json") for name in names]
            command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files)]
            for id_, value in options.items():
                command += [f"--{id_}", str(value)]
            code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
            if code != 0:
                results[seed] = f"The {what} with seed {seed} ended with exit code {code}"
                break
    return results
