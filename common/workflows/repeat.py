"""One bundle trained and evaluated again and again, with another seed each time."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError

_logger = logging.getLogger(__name__)
_RUNS = {"training": ("train",), "evaluation": ("train", "evaluate")}


def run_with_seeds(
    bundle: str | Path,
    output: str | Path,
    seeds: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
) -> dict[int, Path | str]:
    """Train and evaluate a bundle with each seed, each run in processes of its own.

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
    for name in _RUNS["evaluation"]:
        if not (configs / f"{name}.json").is_file():
            raise InputError(f"There is no {configs / name}.json; needed is a bundle, by --bundle.")
    if not seeds or len(set(seeds)) < len(seeds) or any(type(seed) is not int for seed in seeds):
        raise InputError(f"seeds is {seeds}; allowed are different whole numbers, such as 42,57.")
    for name in ("seed", "bundle_root", "output_dir", "ckpt_dir", "checkpoint", "config_file"):
        if name in (overrides or {}):
            raise InputError(f"{name} is given, which each run sets itself; allowed are others.")
    results: dict[int, Path | str] = {}
    for number, seed in enumerate(seeds, start=1):
        root = Path(output).resolve() / str(seed)
        results[seed] = root / "eval/metrics.csv"
        for what, names in _RUNS.items():
            _logger.info("%s with seed %d (%d of %d)", what, seed, number, len(seeds))
            files = [str(configs / f"{name}.json") for name in names]
            options = {"config_file": files, "bundle_root": root, "seed": seed, **(overrides or {})}
            command = [sys.executable, "-m", "monai.bundle", "run"]
            for id_, value in options.items():
                command += [f"--{id_}", str(value)]
            code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
            if code != 0:
                results[seed] = f"The {what} with seed {seed} ended with exit code {code}"
                break
    return results
