"""The lung bundle, run as users run it: by the command line of monai.bundle."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

from common.data import labelled_cases
from common.data.phantom import write_phantom

from . import running
from .conftest import REPOSITORY
from .running import FRESH, overrides, sentence, succeed

BUNDLE = REPOSITORY / "bundles/lung_cxr_lightm_unet_segmentation"
SMALL = {
    "network_def#init_filters": 8,
    "network_def#blocks_down": [1, 1],
    "network_def#blocks_up": [1],
    "image_size": [64, 64],
    "batch_size": 2,
    "epoch_length": 3,
}
TRAINING = {"train#trainer#max_epochs": 1, **SMALL}
OF_TRAINING = ("batch_size", "epoch_length")
INFERENCE = {name: value for name, value in SMALL.items() if name not in OF_TRAINING}

command = partial(running.command, BUNDLE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "data"
    return write_phantom(folder, cases=10, seed=1, kind="cxr", size=96)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle root after a training of one epoch, run from outside the bundle's folder."""
    root = tmp_path_factory.mktemp("trained")
    train = command("train", bundle_root=root, dataset_dir=dataset, **TRAINING)
    output = succeed(train, cwd=root, launcher=FRESH)
    assert "val_dice_class_1" in output
    assert "val_iou_class_1" in output
    return root


def size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def test_training_leaves_weights_and_upright_pictures(trained: Path):
    weights = torch.load(trained / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(x).all() for x in weights.values())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = [EventAccumulator(str(file)) for file in (trained / "eval").glob("events*")]
    assert len([event.Reload() for event in events]) > 1
    scalars = {name for event in events for name in event.Tags()["scalars"]}
    assert scalars >= {"train_loss", "val_mean_dice", "val_mean_iou", "val_dice_class_1"}
    (drawn,) = (event for event in events if "input_1_HW_0" in event.Tags()["images"])
    picture = io.BytesIO(drawn.Images("input_1_HW_0")[0].encoded_image_string)
    label = np.asarray(Image.open(picture).convert("L")) > 0
    # The two lungs stand side by side: the middle column is free, the middle row is not.
    assert label[32].any()
    assert not label[:, 32].any()


def test_inference_restores_every_size(trained: Path, dataset: Path, tmp_path: Path):
    options = {"bundle_root": trained, "output_dir": tmp_path, **INFERENCE}
    succeed(command("inference", dataset_dir=dataset, **options), launcher=FRESH)
    images = sorted((dataset / "CXR_png").iterdir())
    assert len({size(image) for image in images}) > 5
    assert any(width != height for width, height in map(size, images))
    masks = sorted(tmp_path.iterdir())
    assert [mask.name for mask in masks] == [f"{image.stem}_seg.png" for image in images]
    for image, mask in zip(images, masks, strict=True):
        assert size(mask) == size(image)
        assert set(np.unique(Image.open(mask))) <= {0, 255}


def test_evaluation_writes_tables(trained: Path, dataset: Path, tmp_path: Path):
    options = {"bundle_root": trained, "dataset_dir": dataset, "output_dir": tmp_path, **SMALL}
    succeed(command(["train", "evaluate"], **options), launcher=FRESH)
    assert "val_dice_class_1" in (tmp_path / "metrics.csv").read_text()
    for metric in ("dice", "iou"):
        header, *rows = (tmp_path / f"val_{metric}_raw.csv").read_text().splitlines()
        assert header == "filename,class_1,mean"
        assert len(rows) == 2  # two test cases of ten
    assert len((tmp_path / "cases.csv").read_text().splitlines()) == 3
    settings = json.loads((tmp_path / "summary.json").read_text())["settings"]
    assert settings["unit"] == "pixels"


class Threshold(torch.nn.Module):
    """A network that knows: dark is lung."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, -x], dim=1)


def parsed(name: str | list[str], **override: object) -> ConfigParser:
    parser = ConfigParser()
    names = [name] if isinstance(name, str) else name
    parser.read_config([str(BUNDLE / f"configs/{file}.json") for file in names])
    network = {"network_def": {"_target_": f"{__name__}.Threshold"}, "device": "cpu"}
    parser.update(network | override)
    return parser


@pytest.fixture
def lopsided(tmp_path: Path) -> Path:
    """A wide radiograph with one dark patch at the top left, as 16-bit grey, and its two masks."""
    folder = tmp_path / "lopsided"
    values = np.full((48, 96), 40_000, np.uint16)
    values[8:24, 12:36] = 300
    for name, file in {
        "CXR_png": values,
        "ManualMask/leftMask": (255 * (values < 500) * (np.arange(96) < 20)).astype(np.uint8),
        "ManualMask/rightMask": (255 * (values < 500) * (np.arange(96) >= 20)).astype(np.uint8),
    }.items():
        (folder / name).mkdir(parents=True)
        Image.fromarray(file).save(folder / name / "a.png")
    return folder


def test_masks_are_not_turned(lopsided: Path, tmp_path: Path):
    """A network that segments right gives the right mask, upright and at the radiograph's size."""
    parser = parsed("inference", dataset_dir=str(lopsided), output_dir=str(tmp_path), handlers=[])
    parser.get_parsed_content("evaluator").run()
    expected = np.zeros((48, 96), np.uint8)
    expected[8:24, 12:36] = 255
    np.testing.assert_array_equal(Image.open(tmp_path / "a_seg.png"), expected)


def test_evaluation_is_on_the_masks_own_grid(lopsided: Path, tmp_path: Path):
    data = [dict(case) for case in labelled_cases(lopsided)]
    parser = parsed(
        ["train", "evaluate"],
        **{"validate#dataset#data": data, "validate#handlers": [], "output_dir": str(tmp_path)},
    )
    evaluator = parser.get_parsed_content("validate#evaluator")
    evaluator.run()
    (output,) = evaluator.state.output
    assert output["label"].shape == output["pred"].shape == (2, 96, 48)
    assert evaluator.state.metrics["val_dice_class_1"] == 1
    assert evaluator.state.metrics["val_iou_class_1"] == 1


@pytest.mark.parametrize("augmentation", ["nnunet", "light"])
def test_training_sees_what_it_should(augmentation: str, lopsided: Path):
    """At working size, normalised, and mirrored along the horizontal axis alone."""
    case = dict(labelled_cases(lopsided)[0])
    parser = parsed("train", flip_prob=1, augmentation=augmentation)
    augmented = parser.get_parsed_content("train#preprocessing").set_random_state(0)(case)
    steps = parser[f"augmentations#{augmentation}#transforms"]
    assert [step["_target_"] for step in steps].count("RandFlipd") == 1
    for step in steps:
        if step["_target_"] != "RandFlipd":
            step |= {name: 0 for name in step if name.endswith("prob")}
    mirrored = parser.get_parsed_content("train#preprocessing", lazy=False)(case)
    for samples in (augmented, mirrored):
        sample = samples[0] if isinstance(samples, list) else samples
        image, label = sample["image"], sample["label"]
        assert image.shape == label.shape == (1, 512, 512)
    assert abs(float(image.mean())) < 0.01  # it was 0 before it was resized
    assert float(image.std()) == pytest.approx(1, abs=0.05)
    columns, rows = label[0].nonzero(as_tuple=True)
    assert columns.float().mean() > 256  # it was at the left
    assert rows.float().mean() < 256  # and still is at the top


def _missing(data: Path) -> str:
    return "There is no folder"


def _no_pngs(data: Path) -> str:
    (data / "CXR_png").mkdir(parents=True)
    (data / "CXR_png/a.jpg").touch()
    return "holds no radiograph with a mask"


def _no_masks(data: Path) -> str:
    (data / "CXR_png").mkdir(parents=True)
    Image.new("L", (64, 64)).save(data / "CXR_png/a.png")
    return "holds no radiograph with a mask"


def _truncated(data: Path) -> str:
    write_phantom(data, cases=10, kind="cxr", size=64, progress=False)
    for file in (data / "CXR_png").iterdir():
        file.write_bytes(file.read_bytes()[:1500])
    return "cannot be read (image file is truncated"


def _other_size(data: Path) -> str:
    write_phantom(data, cases=10, kind="cxr", size=64, progress=False)
    for file in (data / "CXR_png").iterdir():
        Image.open(file).resize((70, 50)).save(file)
    return "has the size 60 x 66, the image the size 70 x 50; allowed is the image's"


@pytest.mark.slow
@pytest.mark.parametrize("make", [_missing, _no_pngs, _no_masks, _truncated, _other_size])
def test_bad_training_data(tmp_path: Path, make):
    data = tmp_path / "data"
    expected = make(data)
    message = sentence(
        command("train", bundle_root=tmp_path / "root", dataset_dir=data, **TRAINING)
    )
    assert expected in message
    assert str(data) in message
    assert not (tmp_path / "root/models/model.pt").exists()


@pytest.mark.slow
def test_bad_radiographs(trained: Path, dataset: Path, tmp_path: Path):
    def said(data: Path) -> str:
        options = {"bundle_root": trained, "output_dir": tmp_path / "out", **INFERENCE}
        message = sentence(command("inference", dataset_dir=data, **options))
        assert str(data) in message
        assert not list(tmp_path.glob("out/*"))
        return message

    (tmp_path / "empty").mkdir()
    assert "holds no image; allowed are files that end in .png" in said(tmp_path / "empty")
    cut = tmp_path / "cut.png"
    cut.write_bytes(next((dataset / "CXR_png").iterdir()).read_bytes()[:1500])
    assert "cannot be read (image file is truncated" in said(cut)
    Image.new("L", (64, 64), 7).save(tmp_path / "black.png")
    assert "has the value 7 everywhere" in said(tmp_path / "black.png")


@pytest.mark.slow
def test_from_the_bundles_own_folder(dataset: Path, tmp_path: Path):
    root = tmp_path / "bundle"
    root.mkdir()
    (root / "configs").symlink_to(BUNDLE / "configs")
    data = ["--dataset_dir", str(dataset)]
    succeed(["run", "--config_file", "configs/train.json", *data, *overrides(TRAINING)], cwd=root)
    one = ["--dataset_dir", str(next((dataset / "CXR_png").iterdir())), *overrides(INFERENCE)]
    succeed(["run", "--config_file", "configs/inference.json", *one], cwd=root)
    assert len(list((root / "eval").glob("*_seg.png"))) == 1


@pytest.mark.slow
def test_two_processes(dataset: Path, tmp_path: Path):
    output = succeed(
        command(
            ["train", "multi_gpu_train"],
            bundle_root=tmp_path,
            dataset_dir=dataset,
            device="cpu",
            split=[2, 1, 1],  # each process needs a validation case
            **TRAINING,
        ),
        launcher=["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29542", "-m"],
    )
    assert output.count("INFO Epoch 1 of 1 in ") == 1  # one process of the two reports
    assert (tmp_path / "models/model.pt").is_file()


@pytest.mark.slow
def test_shenzhens_layout_and_three_classes(dataset: Path, tmp_path: Path):
    """One mask per radiograph, whose values are the classes; some radiographs have none."""
    data, root = tmp_path / "data", tmp_path / "root"
    shutil.copytree(dataset / "CXR_png", data / "CXR_png")
    (data / "mask").mkdir()
    for image in sorted((data / "CXR_png").iterdir())[1:]:
        left, right = (
            np.asarray(Image.open(dataset / f"ManualMask/{side}Mask" / image.name)) > 0
            for side in ("left", "right")
        )
        Image.fromarray((left + 2 * right).astype(np.uint8)).save(
            data / "mask" / f"{image.stem}_mask.png"
        )
    options = {"bundle_root": root, "dataset_dir": data, "num_classes": 3}
    output = succeed(command("train", **options, **TRAINING))
    assert "Of the 10 radiographs" in output
    assert output.count("1 have no mask: they are left out") == 1
    assert "val_dice_class_2" in output
    succeed(command("inference", **options, **INFERENCE))
    levels = [np.unique(Image.open(mask)) for mask in (root / "eval").glob("*_seg.png")]
    assert len(levels) == 10
    assert set(np.concatenate(levels)) <= {0, 128, 255}
