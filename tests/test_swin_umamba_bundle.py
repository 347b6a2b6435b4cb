"""The Swin-UMamba bundle: slices of MR with a spacing of their own, and its release's recipe."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn.functional import interpolate

from common.checkpoints import build_setting, load_settings
from common.cli.checkpoints import convert
from common.data.phantom import write_phantom
from common.errors import InputError
from common.networks import SwinUMamba
from common.zoo.contract import config

from . import running
from .checkpoints.test_encoder import of_first_version
from .conftest import REPOSITORY, GoldenCase
from .running import FRESH, check_export_of_monai, sentence, succeed
from .test_released_recipes import clipped_to, configured, nnunets_loss, training

BUNDLE = REPOSITORY / "bundles/abdomen_mr_swin_umamba_segmentation"
ARGUMENTS: dict[str, Any] = {"depths": [1, 1], "features": [8, 16]}
SMALL: dict[str, Any] = {
    **{f"network_def#{name}": value for name, value in ARGUMENTS.items()},
    "patch_size": [32, 32],
    "spacing": [6, 6],
}
SHORT: dict[str, Any] = SMALL | {
    "num_classes": 3,
    "max_epochs": 1,
    "epoch_length": 2,
    "val_interval": 1,
    "split": [4, 1, 1],
    "batch_size": 2,
    "slices_per_case": 2,
}

command = partial(running.command, BUNDLE)


def parsed(*configs: str, **options: Any) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / f"configs/{name}.json") for name in configs])
    parser.update({"device": "cpu", **options})
    return parser


class Bright(nn.Module):
    """A network that knows: what is bright is class 5."""

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.zeros(len(x), 14, *x.shape[2:])
        logits[:, 0], logits[:, 5] = 1, 10 * x[:, 0]
        return logits


@pytest.mark.parametrize("axcodes", ["RAS", "PLS"])
def test_windows_within_slices_give_masks_on_the_scans_own_grid(axcodes: str, tmp_path: Path):
    """The spacing is half of the scan's along one axis, and windows are smaller than slices."""
    values = np.zeros((40, 48, 4), np.float32)
    values[8:30, 20:41, 1:3] = 500
    values[2, 3, 3] = 500
    nib.save(nib.Nifti1Image(values, np.diag([-1.5, -1.0, 6.0, 1.0])), tmp_path / "scan.nii.gz")
    spacing = {"RAS": [0.75, 1.0], "PLS": [1.0, 0.75]}[axcodes]
    parser = parsed(
        "inference",
        dataset_dir=str(tmp_path / "scan.nii.gz"),
        output_dir=str(tmp_path / "masks"),
        network_def={"_target_": f"{__name__}.Bright"},
        handlers=[],
        patch_size=[32, 32],
        spacing=spacing,
        axcodes=axcodes,
    )
    seen = parser.get_parsed_content("dataset")[0]["image"]
    assert sorted(seen.shape[1:]) == [4, 48, 79]
    parser.get_parsed_content("evaluator").run()
    mask = nib.load(tmp_path / "masks/scan_seg.nii.gz")
    np.testing.assert_array_equal(mask.dataobj, 5 * (values > 0))
    np.testing.assert_allclose(mask.affine, np.diag([-1.5, -1.0, 6.0, 1.0]), atol=1e-4)


@pytest.mark.parametrize("augmentation", ["nnunet", "light", "none"])
def test_slices_smaller_than_the_patch_are_padded(augmentation: str, tmp_path: Path):
    random = np.random.default_rng(0)
    label = np.zeros((20, 50, 6), np.uint8)
    label[5:15, 10:40, 2:4] = 13
    for name, values in (("image", random.normal(100 * label, 9)), ("label", label)):
        volume = nib.Nifti1Image(values.astype(np.float32), np.diag([2, 2, 5, 1]))
        nib.save(volume, tmp_path / f"{name}.nii.gz")
    case = {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")}
    size = {"spacing": [2, 2], "patch_size": [32, 32], "augmentation": augmentation}
    chain = parsed("train", **size).get_parsed_content("train#preprocessing").set_random_state(0)
    samples = chain(case)
    assert len(samples) == 6
    for sample in samples:
        assert sample["image"].shape == sample["label"].shape == (1, 32, 32)
        assert sample["image"].isfinite().all()
    assert any((sample["label"] == 13).any() for sample in samples)


@pytest.mark.parametrize("name", ["train", "as_in_the_paper"])
def test_the_releases_training(name: str):
    """1000 epochs; the paper's numbers are of the hundredth epoch of such a schedule."""
    parser = training(BUNDLE, name)
    trainer = parser.get_parsed_content("train#trainer")
    epochs = {"train": 1000, "as_in_the_paper": 100}[name]
    assert (trainer.state.max_epochs, trainer.state.epoch_length) == (epochs, 250)
    assert trainer.data_loader.batch_size * parser["slices_per_case"] == 30
    scheduler = parser.get_parsed_content("lr_scheduler")
    rates = []
    for _ in range(epochs):
        rates += scheduler.get_last_lr()
        scheduler.optimizer.step()
        scheduler.step()
    expected = [1e-6 + 99e-6 * (1 + math.cos(math.pi * e / 1000)) / 2 for e in range(epochs)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    optimizer = training(BUNDLE, name).get_parsed_content("optimizer")
    assert type(optimizer).__name__ == "AdamW"
    wanted = {"lr": 1e-4, "weight_decay": 0.05, "eps": 1e-5, "betas": (0.9, 0.999)}
    assert {key: optimizer.defaults[key] for key in wanted} == wanted
    assert clipped_to(optimizer) == pytest.approx(12)
    assert training(BUNDLE, name, device="cuda:0").get_parsed_content("amp") is True


def test_the_loss_is_nnunets_at_each_scale():
    """1, 1/2, 1/4 and 0 for the coarsest, of the label as it is there."""
    torch.manual_seed(0)
    scales = [torch.randn(2, 14, 32 // step, 48 // step) for step in (1, 2, 4, 8)]
    label = torch.randint(14, (2, 1, 32, 48)).float()
    expected = 0.0
    for weight, logits in zip((4 / 7, 2 / 7, 1 / 7), scales, strict=False):
        there = interpolate(label, logits.shape[2:], mode="nearest-exact")
        expected += weight * (1 + nnunets_loss(logits, there))  # whose Dice is negative
    loss = parsed("train").get_parsed_content("loss")(scales, label)
    torch.testing.assert_close(loss, torch.as_tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("decoder", ["convolution", "mamba"])
def test_a_pretrained_encoder_waits_but_for_its_patches(decoder: str, tmp_path: Path):
    """As in the release, where it does so for ten epochs; from scratch nothing waits."""
    network = SwinUMamba(1, 14, decoder, **ARGUMENTS)
    of_encoder = {id(x) for x in network.encoder.parameters()}
    patches = {id(x) for x in network.encoder.downs[0].parameters()}
    for weights, epochs, waiting in (("a.pth", 10, of_encoder - patches), (None, 0, set())):
        parser = parsed("train", network_def="$network_", encoder_weights=weights)
        parser.globals["network_"] = network
        handler = parser.get_parsed_content("train#handlers#4")
        assert handler.frozen_epochs == epochs
        assert {id(x) for x in handler.parameters} == waiting


def test_amos_own_labels():
    """In the order that U-Mamba's data have, and Swin-UMamba's: by their names in both."""
    amos = (
        *("background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus"),
        *("liver", "stomach", "aorta", "inferior vena cava", "pancreas", "right adrenal gland"),
        *("left adrenal gland", "duodenum", "bladder", "prostate or uterus"),
    )
    names = list(
        config(BUNDLE, "metadata")["network_data_format"]["outputs"]["pred"]["channel_def"].values()
    )
    parser = parsed("train", "amos")
    assert parser.get_parsed_content("label_names") == names
    image = torch.arange(16.0).view(1, 4, 4, 1)
    check = parser.get_parsed_content("train#preprocessing#transforms#2")
    # Of a scan of two slices, as one alone would be a picture.
    data = {key: MetaTensor(image.repeat(1, 1, 1, 2)) for key in ("image", "label")}
    done = check(data)["label"][0, ..., 0].flatten().tolist()
    expected = [names.index(name) if name in names else 0 for name in amos]
    assert done == expected


@pytest.mark.parametrize("name", ["swin_umamba", "swin_umamba_d"])
def test_converted_slices_lie_as_in_the_release(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """nnU-Net's slices are (y, x) of a file in LPS."""
    case = GoldenCase(name)
    torch.save({"network_weights": case.state_dict}, tmp_path / "theirs.pth")
    where = [str(tmp_path / "theirs.pth"), "swin_umamba", str(tmp_path / "model.pt")]
    for wrong, message in (
        (
            {"spacing": [1.2, 1.2]},
            r"patch_size is None; needed are two numbers above 0, .*\(y, x\)",
        ),
        ({"spacing": [5.0, 1.2, 1.2]}, r"spacing is \[5\.0, 1\.2, 1\.2\]; needed are two numbers"),
        ({"strides": [[2, 2]]}, r"strides is \[\[2, 2\]\], for which .* has no use"),
    ):
        with pytest.raises(InputError, match=message):
            convert(*where, **wrong)
    convert(*where)
    assert "Nothing was said of its training's plan" in capsys.readouterr().out
    size = list(case.vectors["x"].shape[2:])
    convert(*where, spacing=[2.0, 1.5], patch_size=size, intensity="z-score")
    found = load_settings(tmp_path / "model.pt")
    described = found["network_def"]
    assert described["decoder"] == ("mamba" if name == "swin_umamba_d" else "convolution")
    network = build_setting("network_def", described)
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    with torch.no_grad():
        logits = network.double().eval()(case.vectors["x"])
    assert (logits - case.vectors["y0"]).abs().max() <= case.tolerance

    values = np.random.default_rng(0).normal(300, 40, (9, 8, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([-1.5, -2.0, 6.0, 1.0])), tmp_path / "lps.nii.gz")
    inference = configured(
        BUNDLE, "inference", checkpoint=str(tmp_path / "model.pt"), in_channels=1
    )
    assert inference.get_parsed_content("patch_size") == size
    ours = inference.get_parsed_content("preprocessing")({"image": str(tmp_path / "lps.nii.gz")})
    theirs = (values - values.mean()) / values.std()
    np.testing.assert_allclose(ours["image"][0], theirs.transpose(1, 0, 2), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=6, seed=1, size=40)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle root after a training of one epoch, run from outside the bundle's folder."""
    root = tmp_path_factory.mktemp("trained")
    train = command("train", bundle_root=root, dataset_dir=dataset, **SHORT)
    output = succeed(train, cwd=root, launcher=FRESH)
    assert "val_dice_class_2" in output
    assert output.count("No pretrained encoder is given: training starts from scratch.") == 1
    return root


@pytest.mark.slow
def test_from_training_to_masks_and_tables(trained: Path, dataset: Path, tmp_path: Path):
    """Nothing of the training is told again."""
    options = {"bundle_root": trained, "output_dir": tmp_path}
    succeed(command("inference", dataset_dir=dataset / "imagesTr", **options), launcher=FRESH)
    for image in (dataset / "imagesTr").iterdir():
        expected = nib.load(image)
        mask = nib.load(tmp_path / image.name.replace(".nii.gz", "_seg.nii.gz"))
        assert mask.shape == expected.shape
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
        assert set(np.unique(mask.dataobj)) <= {0, 1, 2}
    split = {"split": SHORT["split"]}
    evaluate = command(["train", "evaluate"], dataset_dir=dataset, **options, **split)
    succeed(evaluate, launcher=FRESH)
    assert "val_dice_class_2" in (tmp_path / "metrics.csv").read_text()
    assert len((tmp_path / "val_dice_raw.csv").read_text().splitlines()) == 2  # one test case


@pytest.mark.slow
def test_a_published_encoder(dataset: Path, tmp_path: Path):
    torch.manual_seed(3)
    source = SwinUMamba(1, 3, **ARGUMENTS).encoder
    torch.save(of_first_version(source), tmp_path / "vmamba.pth")
    options = {"bundle_root": tmp_path, "dataset_dir": dataset, **SHORT}
    given = {"encoder_weights": tmp_path / "vmamba.pth", "encoder_frozen_epochs": 1}
    assert "of the encoder and 0 of the decoder from" in succeed(
        command("train", **options, **given)
    )
    weights = torch.load(tmp_path / "models/model.pt", weights_only=True)
    for name, x in source.state_dict().items():
        assert torch.equal(weights[f"encoder.{name}"], x) == (not name.startswith("downs.0."))
    refused = sentence(command("train", **options, encoder_weights=tmp_path / "models/model.pt"))
    assert "which VMamba's released code has not" in refused


@pytest.mark.slow
def test_two_processes(dataset: Path, tmp_path: Path):
    """With an encoder that waits: they wait for the same gradients all the same."""
    source = SwinUMamba(1, 3, **ARGUMENTS).encoder
    torch.save(of_first_version(source), tmp_path / "vmamba.pth")
    given = {"encoder_weights": tmp_path / "vmamba.pth", "encoder_frozen_epochs": 1}
    given |= SHORT | {"device": "cpu", "split": [3, 2, 1], "max_epochs": 2}
    succeed(
        command(["train", "multi_gpu_train"], bundle_root=tmp_path, dataset_dir=dataset, **given),
        launcher=["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29545", "-m"],
    )
    state = torch.load(tmp_path / "models/last_epoch.pt", weights_only=True)["model"]
    assert not torch.equal(state["encoder.downs.1.reduce.weight"], source.downs[1].reduce.weight)


@pytest.mark.slow
def test_export_of_monai(trained: Path, tmp_path: Path):
    small = {name: x for name, x in SMALL.items() if "network_def" in name} | {"num_classes": 3}
    network = SwinUMamba(1, 3, **ARGUMENTS)
    check_export_of_monai(tmp_path, BUNDLE, trained / "models/model.pt", small, network, 40, 33)
