"""A bundle's configs with several checkpoints, probabilities and components, engine and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scipy import ndimage

from common import scratch
from common.data.phantom import write_phantom
from common.networks import LightMUNet

from .test_bundle_runs import BUNDLE, SMALL

FOLDS = 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=3, seed=1, size=40)


@pytest.fixture(scope="module")
def folds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of folds, whose networks differ."""
    folder = tmp_path_factory.mktemp("folds")
    for seed in range(FOLDS):
        torch.manual_seed(seed)
        network = LightMUNet(3, 1, 3, 8, (1, 1), (1,))
        file = folder / f"fold_{seed}/models/model.pt"
        file.parent.mkdir(parents=True)
        torch.save(network.state_dict(), file)
    return folder


def parsed(configs: list[str], folder: Path, **options: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / f"configs/{name}.json") for name in configs])
    parser.update({"device": "cpu", "output_dir": str(folder), **SMALL, **options})
    return parser


def infer(dataset: Path, folder: Path, **options: Any) -> list[Any]:
    """The files that the evaluator alone writes, as in 3D Slicer: mask, probabilities."""
    folder.mkdir()
    image = min((dataset / "imagesTr").iterdir())
    parser = parsed(["inference"], folder, dataset_dir=str(image), **options)
    parser.get_parsed_content("evaluator").run()
    written = sorted(path.name for path in folder.iterdir())
    stem = image.name.removesuffix(".nii.gz")
    names = [f"{stem}_probabilities.nii.gz", f"{stem}_seg.nii.gz"]
    assert written == (names if options.get("save_probabilities") else names[1:])
    for file in map(nib.load, map(folder.joinpath, written)):
        for form in ("sform", "qform"):
            ours, code = getattr(file, f"get_{form}")(coded=True)
            theirs, wanted = getattr(nib.load(image), f"get_{form}")(coded=True)
            assert code == wanted
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    return [nib.load(folder / name) for name in reversed(written)]


@pytest.mark.parametrize("in_memory", [0, scratch.IN_MEMORY])
def test_ensemble_and_probabilities(in_memory: int, dataset: Path, folds: Path, tmp_path: Path):
    chosen = {
        "save_probabilities": True,
        "inferer#inferer#inferer#in_memory": in_memory,
        "postprocessing#transforms#0#in_memory": in_memory,
    }
    each = []
    for fold in range(FOLDS):
        file = folds / f"fold_{fold}/models/model.pt"
        output = tmp_path / f"fold_{fold}"
        each.append(infer(dataset, output, checkpoint=str(file), **chosen)[1].get_fdata())
    mask, probabilities = infer(dataset, tmp_path / "all", checkpoint=str(folds), **chosen)

    assert probabilities.shape == (*mask.shape, 3)
    assert probabilities.get_data_dtype() == np.uint8
    found = probabilities.get_fdata()
    np.testing.assert_allclose(found.sum(-1), 1, atol=2 / 255)
    np.testing.assert_allclose(found, np.mean(each, 0), atol=1.01 / 255)
    assert np.abs(found - each[0]).max() > 3 / 255, "the members differ"
    labels = np.asarray(mask.dataobj)
    certain = np.sort(found, -1)[..., -1] - np.sort(found, -1)[..., -2] > 1.5 / 255
    assert np.array_equal(labels[certain], found.argmax(-1)[certain])


def test_components_of_each_class(dataset: Path, folds: Path, tmp_path: Path):
    checkpoint = {"checkpoint": str(folds / "fold_0/models/model.pt")}
    masks = {
        str(of): np.asarray(
            infer(dataset, tmp_path / str(of), keep_largest_component=of, **checkpoint)[0].dataobj
        )
        for of in (False, "per_class", [1])
    }
    full = np.ones((3, 3, 3))
    parts = {
        name: [ndimage.label(mask == value, full)[1] for value in (1, 2)]
        for name, mask in masks.items()
    }
    assert max(parts["False"]) > 1
    assert max(parts["per_class"]) == 1
    assert parts["[1]"][0] <= 1
    assert np.array_equal(masks["[1]"] == 2, masks["False"] == 2)


@pytest.mark.slow
def test_evaluation(dataset: Path, folds: Path, tmp_path: Path):
    """Of an ensemble with flips; and channels of small numbers give the metrics of large ones."""
    files = [str(folds / f"fold_{n}/models/model.pt") for n in range(FOLDS)]
    chosen = {
        "all": {"checkpoint": files, "test_time_flips": True},
        "uint8": {"checkpoint": files[0]},
        "float32": {"checkpoint": files[0]},
    }
    tables = {}
    for name, options in chosen.items():
        output = tmp_path / name
        output.mkdir()
        parser = parsed(
            ["train", "evaluate"],
            output,
            dataset_dir=str(dataset),
            keep_largest_component="per_class",
            **options,
        )
        if name == "float32":
            parser["validate#postprocessing#transforms#3#dtype"] = "$torch.float32"
        parser.get_parsed_content("validate#evaluator").run()
        tables[name] = (output / "metrics.csv").read_text()
    assert "val_dice_class_2" in tables["uint8"]
    assert tables["uint8"] == tables["float32"]
    assert tables["all"] != tables["uint8"]
