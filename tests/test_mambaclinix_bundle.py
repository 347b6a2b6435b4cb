"""The MambaClinix bundle, run as users run it, with a smaller plan than its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.data.phantom import write_phantom

from . import running
from .conftest import REPOSITORY
from .running import succeed

BUNDLE = REPOSITORY / "bundles/liver_tumor_ct_mambaclinix_segmentation"
SMALL = {
    "network_def#features": [8, 16, 16],
    "network_def#strides": [[1, 1, 1], [2, 2, 2], [2, 2, 1]],
    "network_def#kernel_sizes": [[3, 3, 1], [3, 3, 3], [3, 3, 3]],
    "spacing": [6, 6, 8],
    "patch_size": [32, 32, 16],
}
SHORT = SMALL | {"train#trainer#max_epochs": 1}

command = partial(running.command, BUNDLE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=6, seed=1, size=48)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    output = succeed(command("train", bundle_root=root, dataset_dir=dataset, **SHORT), cwd=root)
    assert "val_dice_class_1" in output
    assert "val_recall_class_2" in output
    return root


def test_training_leaves_weights(trained: Path):
    weights = torch.load(trained / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(x).all() for x in weights.values())


def test_inference_restores_every_grid(trained: Path, dataset: Path, tmp_path: Path):
    images = dataset / "imagesTr"
    options = {"bundle_root": trained, "dataset_dir": images, "output_dir": tmp_path}
    succeed(command("inference", **options, **SMALL))
    for image in images.iterdir():
        expected = nib.load(image)
        mask = nib.load(tmp_path / image.name.replace(".nii.gz", "_seg.nii.gz"))
        assert mask.shape == expected.shape
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
        assert set(np.unique(mask.dataobj)) <= {0, 1, 2}


def test_evaluation_writes_tables(trained: Path, dataset: Path, tmp_path: Path):
    options = {"bundle_root": trained, "dataset_dir": dataset, "output_dir": tmp_path}
    succeed(command(["train", "evaluate"], **options, **SMALL))
    metrics = (tmp_path / "metrics.csv").read_text()
    for name in ("val_mean_dice", "val_mean_iou", "val_recall_class_1", "val_recall_class_2"):
        assert name in metrics
    assert len((tmp_path / "val_dice_raw.csv").read_text().splitlines()) == 2  # one test case
