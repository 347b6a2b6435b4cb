"""Folders as `evaluate` writes them, with numbers that tests choose."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

METRICS = (
    *("dice", "iou", "voe", "rvd", "rvd_abs", "precision", "recall", "f2"),
    *("asd", "hd95", "nsd", "volume_ml", "reference_ml"),
)
CLASSES = {"liver": [1, 2], "tumour": [2]}
SETTINGS = {
    "classes": CLASSES,
    "empty": "nnunet",
    "unit": "mm",
    "tolerance_mm": 2.0,
    "label_map": None,
    "ignore_label": None,
    "lesions": ["tumour"],
    "lesion_overlap": 0.1,
    "strata": {"diameter_mm": [20, 50]},
    "empty_rule": "A class that neither mask has is left out.",
}


def write_results(
    folder: Path,
    dice: Any,
    names: Sequence[str] = tuple(CLASSES),
    cases: Sequence[str] | None = None,
    settings: dict[str, Any] | None = None,
    lesions: int = 0,
    costs: dict[str, Any] | None = None,
    epochs: int = 0,
) -> Path:
    """Write results of which Dice is (cases, classes), NaN where a case has none; their folder."""
    scores = np.asarray(dice, float)
    cases = cases or [f"case_{i:03d}" for i in range(len(scores))]
    rows, values = [], np.full((*scores.shape, len(METRICS)), math.nan)
    for (i, j), score in np.ndenumerate(scores):
        if not math.isnan(score):
            iou, volume = score / (2 - score), 1000.0 / (j + 1) + 10 * i
            rvd = score - 0.9
            of_case = [score, iou, 1 - iou, rvd, abs(rvd), score, score, score]
            far = [9 - 8 * score, 40 - 30 * score] if score > 0 else [math.nan, math.nan]
            values[i, j] = [*of_case, *far, score, volume * (1 + rvd), volume]
        texts = ["" if math.isnan(x) else repr(float(x)) for x in values[i, j]]
        rows.append([cases[i], j + 1, names[j], *texts])
    folder.mkdir(parents=True)
    write_csv(folder / "cases.csv", ["case", "class", "name", *METRICS], rows)
    classes = {
        name: {
            metric: statistics(values[:, j, k])
            | {"missed": int((scores[:, j] == 0).sum()), "false": 0}
            for k, metric in enumerate(METRICS)
        }
        for j, name in enumerate(names)
    }
    found: dict[str, Any] = {}
    if lesions:
        found = write_lesions(folder, lesions, names[-1], float(np.nanmean(scores)))
    summary = {
        "settings": settings or SETTINGS,
        "cases": len(scores),
        "classes": classes,
        "mean": {m: mean([classes[n][m]["mean"] for n in names]) for m in METRICS},
        "mean_over_cases": {
            m: mean([mean(list(row)) for row in values[:, :, k]]) for k, m in enumerate(METRICS)
        },
        "lesions": found,
        "skipped": [],
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    if costs:
        (folder / "costs.json").write_text(json.dumps(costs))
    if epochs:
        curve = [
            [e, 1e-3, 1 / e, (0.9 - 1 / (e + 2)) if e % 2 else ""] for e in range(1, epochs + 1)
        ]
        head = ["epoch", "learning_rate", "train_loss", "val_mean_dice"]
        write_csv(folder / "learning_curves.csv", head, curve)
    return folder


def write_lesions(folder: Path, count: int, name: str, quality: float) -> dict[str, Any]:
    random = np.random.default_rng(count)
    head = ["case", "class", "name", "lesion", "kind", "voxels", "volume_ml", "diameter_mm"]
    rows = []
    for i, diameter in enumerate(np.sort(random.lognormal(3, 0.7, count))):
        found = random.random() < quality * diameter / (diameter + 3)
        dice = quality * diameter / (diameter + 5)
        kind, score = ("found", repr(float(dice))) if found else ("missed", "")
        rows.append(["case_000", 2, name, i + 1, kind, 9, 1.0, repr(float(diameter)), count, score])
    rows.append(["case_000", 2, name, 1, "false", 3, 0.1, 4.0, count, ""])
    write_csv(folder / "lesions.csv", [*head, "number", "dice"], rows)
    number = sum(row[4] == "found" for row in rows)
    told = {"found": number, "missed": count - number, "false": 1, "recall": number / count}
    told |= {"precision": number / (number + 1), "f1": 0.5, "dice": quality}
    strata = {"diameter_mm": {"< 20": told, "20 to 50": told, ">= 50": told}}
    return {name: told | {"false_positives_per_case": 0.1, "strata": strata}}


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def statistics(values: np.ndarray) -> dict[str, Any]:
    known = values[~np.isnan(values)]
    return {
        "mean": mean(list(known)),
        "sd": float(known.std(ddof=1)) if len(known) > 1 else None,
        "median": float(np.median(known)) if len(known) else None,
        "n": len(known),
        "left_out": len(values) - len(known),
    }


def mean(values: Sequence[Any]) -> float | None:
    known = [x for x in values if x is not None and not math.isnan(x)]
    return float(np.mean(known)) if known else None
