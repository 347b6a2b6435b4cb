"""The VM-UNet bundle: photographs in colour in, masks of their sizes out; its release's recipe."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image
from torch import Tensor, nn

from common.checkpoints import load_settings
from common.cli.checkpoints import convert
from common.data import labelled_cases
from common.errors import input_error_in
from common.networks import VMUNet

from . import running
from .checkpoints.test_encoder import of_first_version
from .conftest import REPOSITORY, GoldenCase
from .running import FRESH, check_export_of_monai, sentence, succeed
from .test_released_recipes import clipped_to, configured, training

BUNDLE = REPOSITORY / "bundles/skin_lesion_rgb_vm_unet_segmentation"
ARGUMENTS: dict[str, Any] = {"depths": [1, 1], "decoder_depths": [1, 1], "features": [8, 16]}
SMALL: dict[str, Any] = {
    **{f"network_def#{name}": value for name, value in ARGUMENTS.items()},
    "image_size": [64, 64],
}
SHORT: dict[str, Any] = SMALL | {"max_epochs": 1, "epoch_length": 2, "batch_size": 2}
PARTS = {"Training": 4, "Validation": 1, "Test": 2}
INPUT, TRUTH = "ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth"

command = partial(running.command, BUNDLE)


class Reddish(nn.Module):
    """A network that knows: a lesion is more red than blue. Its logit is a sigmoid's."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1] - x[:, 2:]


def parsed(*configs: str, **options: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / f"configs/{name}.json") for name in configs])
    network = {"network_def": {"_target_": f"{__name__}.Reddish"}, "device": "cpu"}
    parser.update(network | options)
    return parser


@pytest.fixture
def lopsided(tmp_path: Path) -> Path:
    """A wide photograph with a red patch at the top left, a green one elsewhere, and its mask."""
    values = np.full((48, 96, 3), (100, 100, 200), np.uint8)
    values[8:24, 12:36] = 200, 100, 50
    values[30:40, 60:80] = 50, 255, 100
    folder = tmp_path / "lopsided"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(values).save(folder / "images/ISIC_0000001.png")
    mask = (255 * (values[..., 0] == 200)).astype(np.uint8)
    Image.fromarray(mask).save(folder / "masks/ISIC_0000001_segmentation.png")
    return folder


def test_masks_are_not_turned_and_colours_in_their_order(lopsided: Path, tmp_path: Path):
    images, masks = str(lopsided / "images"), tmp_path / "masks"
    parser = parsed("inference", dataset_dir=images, output_dir=str(masks), handlers=[])
    parser.get_parsed_content("evaluator").run()
    expected = Image.open(lopsided / "masks/ISIC_0000001_segmentation.png")
    np.testing.assert_array_equal(Image.open(masks / "ISIC_0000001_seg.png"), expected)


def test_evaluation_is_on_the_masks_own_grid(lopsided: Path, tmp_path: Path):
    data = [dict(case) for case in labelled_cases(lopsided)]
    options = {"validate#dataset#data": data, "validate#handlers": []}
    evaluator = parsed("train", "evaluate", output_dir=str(tmp_path), **options).get_parsed_content(
        "validate#evaluator"
    )
    evaluator.run()
    (output,) = evaluator.state.output
    assert output["label"].shape == output["pred"].shape == (2, 96, 48)
    assert evaluator.state.metrics["val_dice_class_1"] == 1
    assert evaluator.state.metrics["val_iou_class_1"] == 1


@pytest.mark.parametrize("augmentation", ["released", "nnunet", "light", "none"])
def test_training_sees_colours_from_0_to_255(augmentation: str, lopsided: Path):
    case = dict(labelled_cases(lopsided)[0])
    parser = parsed("train", augmentation=augmentation)
    samples = parser.get_parsed_content("train#preprocessing").set_random_state(0)(case)
    sample = samples[0] if isinstance(samples, list) else samples
    assert sample["image"].shape == (3, 256, 256)
    assert sample["label"].shape == (1, 256, 256)
    assert set(sample["label"].unique().tolist()) == {0, 1}
    if augmentation in ("released", "none"):
        assert float(sample["image"].min()) == pytest.approx(0, abs=0.01)
        assert float(sample["image"].max()) == pytest.approx(255, abs=0.01)


def test_intensities_are_scaled_over_all_channels():
    """Mean and deviation of a data set, which the release takes first, fall out of that."""
    image = torch.tensor([[10.0, 110.0], [60.0, 60.0], [35.0, 85.0]]).view(3, 2, 1)
    released = (image - 157.561) / 26.706
    released = 255 * (released - released.min()) / (released.max() - released.min())
    for configs in (["train"], ["inference"], ["train", "evaluate"]):
        found = parsed(*configs).get_parsed_content("intensity")({"image": image.clone()})["image"]
        torch.testing.assert_close(found, released)


def test_the_releases_training():
    """Its learning rate falls for 50 epochs, and rises for 50."""
    trainer = training(BUNDLE, "train").get_parsed_content("train#trainer")
    assert (trainer.state.max_epochs, trainer.state.epoch_length) == (300, 1)  # of 24 cases
    assert trainer.data_loader.batch_size == 32
    scheduler = training(BUNDLE, "train").get_parsed_content("lr_scheduler")
    rates = []
    for _ in range(300):
        rates += scheduler.get_last_lr()
        scheduler.optimizer.step()
        scheduler.step()
    expected = [1e-5 + 99e-5 * (1 + math.cos(math.pi * e / 50)) / 2 for e in range(300)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    optimizer = training(BUNDLE, "train").get_parsed_content("optimizer")
    assert type(optimizer).__name__ == "AdamW"
    wanted = {"lr": 1e-3, "weight_decay": 0.01, "eps": 1e-8, "betas": (0.9, 0.999)}
    assert {key: optimizer.defaults[key] for key in wanted} == wanted
    assert clipped_to(optimizer) == pytest.approx(1000)  # not at all
    assert training(BUNDLE, "train", device="cuda:0").get_parsed_content("amp") is False


def test_the_releases_loss():
    """Binary cross entropy and, of each photograph, Dice smoothed by 1."""
    torch.manual_seed(0)
    logits, label = torch.randn(3, 1, 8, 9), torch.randint(2, (3, 1, 8, 9)).float()
    label[2] = 0
    p = logits.sigmoid()
    entropy = -(label * p.log() + (1 - label) * (1 - p).log()).mean()
    axes = (1, 2, 3)
    dice = (2 * (p * label).sum(axes) + 1) / ((p + label).sum(axes) + 1)
    loss = parsed("train").get_parsed_content("loss")(logits, label)
    torch.testing.assert_close(loss, entropy + (1 - dice).mean())


def test_several_classes_have_a_channel_each():
    """One class has one, whose other one is the background; in training and afterwards."""
    arguments = {f"network_def#{name}": x for name, x in ARGUMENTS.items()}
    for config in ("train", "inference"):
        for classes, channels in ((2, 1), (4, 4)):
            parser = ConfigParser()
            parser.read_config(str(BUNDLE / f"configs/{config}.json"))
            parser.update({"device": "cpu", "num_classes": classes, **arguments})
            network = parser.get_parsed_content("network_def").eval()
            with torch.no_grad():
                logits = network(torch.zeros(2, 3, 16, 24))
            assert logits.shape == (2, channels, 16, 24)
            if config == "train":
                label = torch.randint(classes, (2, 1, 16, 24)).float()
                assert parser.get_parsed_content("loss")(logits, label).isfinite()


def test_what_is_no_photograph_of_the_network(lopsided: Path, tmp_path: Path):
    (file,) = map(str, (lopsided / "images").iterdir())
    grey = tmp_path / "grey.png"
    Image.fromarray(np.array([[0, 300], [4000, 1]], np.uint16)).save(grey)
    for image, options, expected in (
        (file, {"in_channels": 1}, f"The image {file} has 3 channels; allowed are 1, the"),
        (str(grey), {}, f"The image {grey} has grey values of more than 8 bits; allowed are"),
    ):
        with pytest.raises(RuntimeError) as refused:
            parsed("inference", **options).get_parsed_content("preprocessing")({"image": image})
        assert str(input_error_in(refused.value)).startswith(expected)


def test_converted_photographs_lie_as_in_the_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Rows first: a mask of our own order would be a silent mistake, as tokens run along rows."""
    case = GoldenCase("vm_unet")
    torch.save({"model_state_dict": case.state_dict}, tmp_path / "latest.pth")
    convert(str(tmp_path / "latest.pth"), "vm_unet", str(tmp_path / "model.pt"))
    assert "radiographs" not in capsys.readouterr().out
    found = load_settings(tmp_path / "model.pt")
    assert found["axes"] == [0, 2, 1]
    assert found["num_classes"] == max(2, case.arguments["num_classes"])
    inference = configured(
        BUNDLE, "inference", checkpoint=str(tmp_path / "model.pt"), image_size=[24, 40]
    )
    network = inference.get_parsed_content("network_def").double()
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    with torch.no_grad():
        logits = network.eval()(case.vectors["x"])
    assert (logits - case.vectors["y0"]).abs().max() <= case.tolerance

    rows = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)
    rows[0, 0], rows[0, 1] = 0, 255
    Image.fromarray(rows).save(tmp_path / "a.png")
    ours = inference.get_parsed_content("preprocessing")({"image": str(tmp_path / "a.png")})
    np.testing.assert_allclose(ours["image"], rows.transpose(2, 0, 1), atol=1e-3)


@pytest.fixture(scope="module")
def isic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A challenge as it is downloaded: photographs of several sizes as JPEG, masks as PNG."""
    root = tmp_path_factory.mktemp("isic")
    number = 0
    for part, count in PARTS.items():
        photographs, masks = (root / name.format(part) for name in (INPUT, TRUTH))
        for folder in (photographs, masks):
            folder.mkdir()
        for _ in range(count):
            random = np.random.default_rng(number)
            rows, columns = random.integers(60, 100, 2)
            y, x = np.mgrid[:rows, :columns] / np.array([rows, columns])[:, None, None]
            lesion = np.hypot((y - 0.5) / 0.25, (x - random.uniform(0.4, 0.6)) / 0.3) < 1
            colours = np.where(lesion[..., None], (110, 60, 40), (220, 170, 150))
            noisy = (colours + random.normal(0, 6, colours.shape)).clip(0, 255).astype(np.uint8)
            name = f"ISIC_{number:07d}"
            Image.fromarray(noisy).save(photographs / f"{name}.jpg", quality=95)
            Image.fromarray(255 * lesion.astype(np.uint8)).save(masks / f"{name}_segmentation.png")
            number += 1
    return root


@pytest.fixture(scope="module")
def trained(isic: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle root after a training of one epoch, run from outside the bundle's folder."""
    root = tmp_path_factory.mktemp("trained")
    train = command("train", bundle_root=root, dataset_dir=isic, **SHORT)
    output = succeed(train, cwd=root, launcher=FRESH)
    assert "val_dice_class_1" in output
    assert "comes split: its own parts are used" in output
    return root


@pytest.mark.slow
def test_masks_of_every_size(trained: Path, isic: Path, tmp_path: Path):
    """Of the part called test, where nobody said which; nothing of the training is told again."""
    options = {"bundle_root": trained, "output_dir": tmp_path}
    succeed(command("inference", dataset_dir=isic, **options), launcher=FRESH)
    photographs = sorted((isic / INPUT.format("Test")).iterdir())
    masks = sorted(tmp_path.rglob("*.png"))
    assert [mask.name for mask in masks] == [f"{file.stem}_seg.png" for file in photographs]
    for photograph, mask in zip(photographs, masks, strict=True):
        with Image.open(photograph) as wanted, Image.open(mask) as found:
            assert (found.size, found.mode) == (wanted.size, "L")
            assert set(np.unique(found)) <= {0, 255}


@pytest.mark.slow
def test_evaluation_writes_tables(trained: Path, isic: Path, tmp_path: Path):
    options = {"bundle_root": trained, "dataset_dir": isic, "output_dir": tmp_path}
    succeed(command(["train", "evaluate"], **options), launcher=FRESH)
    header, *rows = (tmp_path / "val_iou_raw.csv").read_text().splitlines()
    assert header == "filename,class_1,mean"
    assert len(rows) == PARTS["Test"]


@pytest.mark.slow
def test_a_published_encoder(isic: Path, tmp_path: Path):
    source = VMUNet(3, 1, **ARGUMENTS).encoder
    torch.save(of_first_version(source), tmp_path / "vmamba.pth")
    options = {"bundle_root": tmp_path, "dataset_dir": isic, **SHORT}
    said = succeed(command("train", encoder_weights=tmp_path / "vmamba.pth", **options))
    assert f"of the decoder from {tmp_path}/vmamba.pth. Left out: none." in said


@pytest.mark.slow
def test_what_is_no_photograph_ends_a_training(isic: Path, tmp_path: Path):
    data = tmp_path / "data"
    photographs, masks = (data / name.format("Training") for name in (INPUT, TRUTH))
    photographs.mkdir(parents=True)
    masks.symlink_to(isic / TRUTH.format("Training"))
    for mask in masks.iterdir():
        name = mask.name.replace("_segmentation", "")
        Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80)).save(photographs / name)
    options = {"bundle_root": tmp_path / "root", "dataset_dir": data, **SHORT}
    said = sentence(command("train", **options))
    assert f"The image {photographs}/ISIC_" in said
    assert "has grey values of more than 8 bits; allowed are photographs of 8" in said
    assert not (tmp_path / "root/models/model.pt").exists()


@pytest.mark.slow
def test_export_of_monai(trained: Path, tmp_path: Path):
    """A grey image is repeated there, too."""
    network = VMUNet(3, 1, **ARGUMENTS)
    small = {name: x for name, x in SMALL.items() if "network_def" in name}
    check_export_of_monai(tmp_path, BUNDLE, trained / "models/model.pt", small, network, 40, 33)
