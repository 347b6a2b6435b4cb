"""The hippocampus bundle, run as users run it, and the weights that it ships."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from common.data import split_cases
from common.data.phantom import write_phantom
from common.evaluation import dice_per_class

from . import running
from .conftest import REPOSITORY, shared
from .running import succeed

BUNDLE = REPOSITORY / "bundles/hippocampus_mr_lightm_unet_segmentation"
SPLIT = BUNDLE / "docs/split.json"
SMALL = {
    "network_def#init_filters": 8,
    "network_def#blocks_down": [1, 1],
    "network_def#blocks_up": [1],
    "spacing": [2, 2, 2],
    "patch_size": [16, 24, 16],
    "epoch_length": 2,
    "max_epochs": 1,
}

command = partial(running.command, BUNDLE)


def test_from_training_to_tables(tmp_path: Path):
    """On phantoms, with a small network; inference and evaluation know it from its weights."""
    data = write_phantom(tmp_path / "data", cases=5, kind="mr", size=24, progress=False)
    run = {"bundle_root": tmp_path, "dataset_dir": data, "split": [3, 1, 1]}
    output = succeed(command("train", **run, **SMALL))
    assert "val_dice_class_2" in output
    succeed(command(["train", "evaluate"], **run, test_time_flips=True))
    summary = json.loads((tmp_path / "eval/summary.json").read_text())
    assert {"anterior", "posterior"} <= set(json.dumps(summary).split('"'))
    masks = tmp_path / "masks"
    images = data / "imagesTs"
    succeed(command("inference", bundle_root=tmp_path, dataset_dir=images, output_dir=masks))
    (image,) = images.iterdir()
    (mask,) = masks.iterdir()
    assert nib.load(mask).shape == nib.load(image).shape
    assert set(np.unique(nib.load(mask).dataobj)) <= {0, 1, 2}


def test_the_split_is_nnunets():
    """Tested on its fold 0 of five; one case of the others is validated in the end."""
    selection = pytest.importorskip("sklearn.model_selection")
    parts = json.loads(SPLIT.read_text())
    names = np.array(sorted(name for part in parts.values() for name in part))
    folds = selection.KFold(5, shuffle=True, random_state=12345).split(names)
    train, test = next(iter(folds))
    assert parts["test"] == names[test].tolist()
    assert sorted(parts["training"] + parts["validation"]) == names[train].tolist()
    assert {part: len(cases) for part, cases in parts.items()} == {
        "training": 159,
        "validation": 1,
        "test": 40,
    }


def test_the_split_is_of_the_shared_cases():
    data = shared("data/hippocampus_mr")
    for part, names in json.loads(SPLIT.read_text()).items():
        cases = split_cases(data, part, split_file=SPLIT)  # type: ignore[arg-type]
        assert [Path(case["label"]).name.partition(".")[0] for case in cases] == names


def test_shipped_weights_segment_cases_that_they_have_not_seen(tmp_path: Path):
    """Without training: three of the cases for test, by the bundle's own weights."""
    data = shared("data/hippocampus_mr")
    names = json.loads(SPLIT.read_text())["test"][:3]
    (tmp_path / "images").mkdir()
    for name in names:
        shutil.copy(data / f"imagesTr/{name}.nii.gz", tmp_path / "images")
    places = {"dataset_dir": tmp_path / "images", "output_dir": tmp_path / "masks"}
    said = succeed(command("inference", bundle_root=BUNDLE, **places))
    assert "model.pt was trained: " in said
    for name in names:
        mask = tmp_path / f"masks/{name}_seg.nii.gz"
        found = dice_per_class(mask, data / f"labelsTr/{name}.nii.gz")
        assert found.keys() == {"class 1", "class 2"}
        assert min(found.values()) > 0.7, name


def test_the_log_is_of_the_recipe():
    rows = (BUNDLE / "docs/learning_curves.csv").read_text().splitlines()[1:]
    train = json.loads((BUNDLE / "configs/train.json").read_text())
    assert len(rows) == train["max_epochs"]
    log = (BUNDLE / "docs/training.log").read_text()
    for option in ("batch_size", "learning_rate", "epoch_length", "seed", "max_epochs"):
        assert f"> {option}: {train[option]}\n" in log
    assert f"> network_def#init_filters: {train['network_def']['init_filters']}\n" in log


def test_the_readmes_figures_are_the_metadatas():
    metrics = json.loads((BUNDLE / "configs/metadata.json").read_text())["eval_metrics"]
    assert list(metrics) == ["dice_anterior", "dice_posterior", "mean_dice"]
    readme = (BUNDLE / "docs/README.md").read_text()
    row = " | ".join(f"{value:.3f}" for value in metrics.values())
    assert f"| these weights, with flips | {row} |" in readme
