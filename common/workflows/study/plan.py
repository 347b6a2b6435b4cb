"""The runs of a study, as command lines."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from ...files import as_word, read_json
from .cases import Fold
from .definition import Row, Study
from .jobs import RESUME, WARM_UP, Job, Step


def jobs_of(study: Study, folds: Sequence[Fold], output: Path) -> list[Job]:
    """All runs: of each fold and seed the rows, so that those that are compared end together."""
    return [
        _job(study, row, fold, seed, output)
        for fold in folds
        for seed in study.seeds
        for row in study.rows.values()
    ]


def run_folder(output: Path, row: str, fold: int | None, seed: int) -> Path:
    name = f"seed{seed}" if fold is None else f"fold{fold}_seed{seed}"
    return output / "runs" / row / name


def _job(study: Study, row: Row, fold: Fold, seed: int, output: Path) -> Job:
    root = run_folder(output, row.name, fold.number, seed)
    data: dict[str, Any] = {"dataset_dir": study.dataset_dir, "split_file": fold.split_file}
    if (cases := study.parts.get("cases_file")) is not None:
        data["cases"] = cases
    if (exclude := study.parts.get("exclude")) is not None:
        data["exclude"] = exclude
    files, steps = [*row.configs], []
    if study.plan is not None:
        plan = root / "plan.json"
        files.insert(1, plan)
        steps.append(Step("plan", _planning(row, data, {"output": plan, **study.plan})))
    for stage in row.stages:
        steps += _trainings(study, row, files, root, {**data, "seed": seed}, stage)
    predict = {
        "config_file": row.bundle / "configs/inference.json",
        "bundle_root": root,
        "dataset_dir": fold.images,
        "output_dir": root / "predictions",
        **row.inference,
    }
    steps.append(
        Step(
            "prediction",
            _bundle_command(predict),
            leaves=str(root / "predictions"),
            again=("--overwrite", "False"),
        )
    )
    return Job(row.name, fold.number, seed, str(root), tuple(steps))


def _trainings(
    study: Study, row: Row, files: list[Path], root: Path, data: Mapping[str, Any], stage: str
) -> list[Step]:
    """A training, and where its epochs are what fits into minutes, a short one before it."""
    of = f" of the stage {stage}" if stage else ""
    options: dict[str, Any] = {
        "config_file": [str(file) for file in files],
        "bundle_root": root,
        **data,
        **({"stage": stage} if stage else {}),
        **row.overrides,
    }
    training = Step(
        f"training{of}",
        _bundle_command(options),
        leaves=str(root / "models/last_epoch.pt"),
        again=RESUME,
        epochs=row.max_epochs,
        stage=stage,
    )
    if study.minutes is None:
        return [training]
    folder = root / (f"warm_up_{stage}" if stage else "warm_up")
    short = {"bundle_root": folder, "max_epochs": WARM_UP, "val_interval": WARM_UP}
    warm_up = Step(
        f"warm-up{of}",
        _bundle_command(options | short),
    )
    seconds = study.minutes * 60 / len(row.stages)
    timed = {"epochs": None, "seconds": seconds, "warm_up": str(folder)}
    return [warm_up, Step(**{**vars(training), **timed})]


def _planning(row: Row, data: Mapping[str, Any], more: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a plan, which takes of the overrides those that train.json has."""
    known = ConfigParser(read_json(row.configs[0]))
    given = {k: v for k, v in row.overrides.items() if k in known and v is not None}
    options = {"bundle": row.bundle, **data, **more, **given}
    return (sys.executable, "-m", "common", "plan", *_options(options))


def _bundle_command(options: Mapping[str, Any]) -> tuple[str, ...]:
    return (sys.executable, "-m", "monai.bundle", "run", *_options(options))


def _options(options: Mapping[str, Any]) -> list[str]:
    return [
        word
        for name, value in options.items()
        for word in (f"--{name}", str(value) if isinstance(value, Path) else as_word(value))
    ]
