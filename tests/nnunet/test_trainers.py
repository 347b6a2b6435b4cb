"""nnU-Net finds the trainers, and each trains its paper's network by its paper's recipe."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from common import nnunet
from common.errors import InputError
from common.nnunet import trainers_folder

pytest.importorskip("nnunetv2", reason="needs the extra: plan")

from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from common.nnunet import trainers

from .. import preloaded

NAMES = (
    "LightMUNetTrainer",
    "MambaClinixTrainer",
    "UMambaBotTrainer",
    "UMambaEncTrainer",
    "LCMambaNetTrainer",
    "CodebookMambaUNetTrainer",
    "ELANResMSCAUNetTrainer",
    "SegResNetTrainer",
    "UNETRTrainer",
    "SwinUNETRTrainer",
    "VMUNetTrainer",
    "SwinUMambaTrainer",
    "SwinUMambaDTrainer",
    "SegMambaTrainer",
)
LABELS = {"background": 0, "liver": 1, "tumour": 2}
REGIONS = {"background": 0, "whole liver": [1, 2], "tumour": [2]}


def plans(size: Sequence[int]) -> dict[str, Any]:
    """A plan as nnU-Net's planner makes it, of tiny stages."""
    intensities = {"mean": 100.0, "std": 40.0, "percentile_00_5": -17.0, "percentile_99_5": 201.0}

    def configuration(dims: int) -> dict[str, Any]:
        return {
            "data_identifier": f"nnUNetPlans_{dims}d",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": list(size[:dims]),
            "spacing": [1.5] * dims,
            "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False],
            "batch_dice": True,
            "architecture": {
                "network_class_name": "none",
                "arch_kwargs": {
                    "features_per_stage": [8, 16, 16],
                    "strides": [[1] * dims, [2] * dims, [2] * dims],
                    "kernel_sizes": [[3] * dims] * 3,
                },
                "_kw_requires_import": [],
            },
        }

    return {
        "dataset_name": "Dataset004_Phantom",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NibabelIOWithReorient",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "configurations": {"2d": configuration(2), "3d_fullres": configuration(3)},
        "continue_training": False,
    }


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Trainers, initialised, on the CPU."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))

    def built(
        name: str, dims: int, size: Sequence[int] = (16, 16, 16), labels: dict | None = None
    ) -> Any:
        configuration = "2d" if dims == 2 else "3d_fullres"
        data = tmp_path / f"preprocessed/Dataset004_Phantom/nnUNetPlans_{dims}d"
        data.mkdir(parents=True, exist_ok=True)
        (data / "case.b2nd").touch()
        about = {"channel_names": {"0": "CT"}, "labels": labels or LABELS, "file_ending": ".nii.gz"}
        if labels is REGIONS:
            about["regions_class_order"] = [1, 2]
        kind = getattr(trainers, name)
        trainer = kind(plans(size), configuration, 0, about, torch.device("cpu"))
        trainer.initialize()
        return trainer

    return built


def batch(trainer: Any) -> dict[str, torch.Tensor]:
    """One of nnU-Net's: labels in one channel, or a channel for each region."""
    generator = torch.Generator().manual_seed(0)
    size = trainer.configuration_manager.patch_size
    label = torch.randint(3, (2, 1, *size), generator=generator)
    if trainer.label_manager.has_regions:
        label = torch.cat([label > 0, label > 1], dim=1)
    else:
        label = label.to(torch.int16)
    return {"data": torch.randn(2, 1, *size, generator=generator), "target": label}


def build_small(plans_manager: Any, configuration_manager: Any, *_: Any) -> torch.nn.Module:
    """In place of a network where the recipe is what matters."""
    conv = torch.nn.Conv2d if len(configuration_manager.patch_size) == 2 else torch.nn.Conv3d
    return conv(1, 3, 1)


# Arguments of networks whose recipe's size takes seconds.
NARROW: dict[str, dict[str, Any]] = {
    "VMUNetTrainer": {"features": [8, 16], "depths": [1, 1], "decoder_depths": [1, 1]},
    "SwinUMambaTrainer": {"features": [8, 16, 32], "depths": [1, 1, 1]},
    "SwinUMambaDTrainer": {"features": [8, 16, 32], "depths": [1, 1, 1]},
    "SegMambaTrainer": {"features": [4, 4, 8, 8], "depths": [1, 1, 1, 1], "hidden_size": 8},
}


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    def narrowed(name: str, arguments: Callable[..., dict]) -> Callable[..., dict]:
        return lambda configuration: arguments(configuration) | NARROW[name]

    of = {name: getattr(trainers, name).arguments for name in NARROW}
    for name, arguments in of.items():
        kind = getattr(trainers, name)
        monkeypatch.setattr(kind, "arguments", staticmethod(narrowed(name, arguments)))


def check_training(trainer: Any) -> None:
    trainer.on_train_epoch_start()
    before = [x.detach().clone() for x in trainer.network.parameters()]
    loss = trainer.train_step(batch(trainer))["loss"]
    assert math.isfinite(loss)
    pairs = zip(before, trainer.network.parameters(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)
    # Each parameter that asks for a gradient has one, or DistributedDataParallel refuses.
    assert all(x.grad is not None for x in trainer.network.parameters() if x.requires_grad)
    trainer.on_validation_epoch_start()
    with torch.no_grad():
        found = trainer.validation_step(batch(trainer))
    assert math.isfinite(found["loss"])
    assert len(found["tp_hard"]) == 2  # liver and tumour


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("LightMUNetTrainer", 2),
        ("LightMUNetTrainer", 3),
        ("MambaClinixTrainer", 3),
        ("UMambaBotTrainer", 2),
        ("UMambaBotTrainer", 3),
        ("UMambaEncTrainer", 2),
        ("UMambaEncTrainer", 3),
        ("LCMambaNetTrainer", 2),
        ("CodebookMambaUNetTrainer", 3),
        ("ELANResMSCAUNetTrainer", 3),
        ("SegResNetTrainer", 2),
        ("SegResNetTrainer", 3),
        ("UNETRTrainer", 2),
        pytest.param("UNETRTrainer", 3, marks=pytest.mark.slow),
        ("SwinUNETRTrainer", 2),
        pytest.param("SwinUNETRTrainer", 3, marks=pytest.mark.slow),
        ("VMUNetTrainer", 2),
        ("SwinUMambaTrainer", 2),
        ("SwinUMambaDTrainer", 2),
        ("SegMambaTrainer", 3),
    ],
)
@pytest.mark.usefixtures("narrow")
def test_a_step_of_training(build: Callable[..., Any], name: str, dims: int):
    check_training(build(name, dims, size=(33, 16, 16)))


def test_the_codebooks_loss_is_the_papers_for_nested_regions(build: Callable[..., Any]):
    trainer = build("CodebookMambaUNetTrainer", 3, labels=REGIONS)
    check_training(trainer)
    output = trainer.network.train()(batch(trainer)["data"])
    target = batch(trainer)["target"]
    from common.losses import CodebookMambaLoss

    assert torch.equal(trainer.loss(output, target), CodebookMambaLoss()(output, target.float()))


@pytest.mark.usefixtures("narrow")
def test_deep_supervision_of_regions(build: Callable[..., Any]):
    check_training(build("SwinUMambaTrainer", 2, labels=REGIONS))


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("MambaClinixTrainer", 3),
        ("UMambaBotTrainer", 3),
        ("SwinUMambaTrainer", 2),
        ("SegMambaTrainer", 3),
    ],
)
def test_ignored_voxels_have_no_part_in_the_loss(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str, dims: int
):
    """Whatever the network says of them."""
    monkeypatch.setattr(
        getattr(trainers, name), "build_network_architecture", staticmethod(build_small)
    )
    trainer = build(name, dims, labels={**LABELS, "ignore": 3})
    target = batch(trainer)["target"]
    target[..., :4] = 3
    size = target.shape[2:]
    logits = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    other = logits.clone()
    other[..., :4] += 5
    assert torch.equal(trainer.loss(logits, target), trainer.loss(other, target))


# Optimiser, weight decay, epochs; learning rates of the first epoch, half-way, and of the last.
RECIPES = {
    "LightMUNetTrainer": (torch.optim.Adam, 1e-5, 100, 1e-4, 1e-4 * 0.5**0.9, 1e-4 * 0.01**0.9),
    "MambaClinixTrainer": (torch.optim.Adam, 1e-5, 1000, 1e-4, 1e-4 * 0.5**0.9, 1e-4 * 0.001**0.9),
    "UMambaBotTrainer": (torch.optim.SGD, 3e-5, 1000, 1e-2, 1e-2 * 0.5**0.9, 1e-2 * 0.001**0.9),
    "CodebookMambaUNetTrainer": (torch.optim.Adam, 0, 160, 1e-3, 1e-3 * 0.5**0.9, 1e-3 / 160**0.9),
    "ELANResMSCAUNetTrainer": (torch.optim.Adam, 0, 300, 1e-4, 1e-4 * 0.8**5, 1e-4 * 0.8**9),
    "SegResNetTrainer": (torch.optim.Adam, 1e-5, 100, 1e-4, 1e-4 * 0.5**0.9, 1e-4 * 0.01**0.9),
    "UNETRTrainer": (torch.optim.AdamW, 0.01, 100, 1e-4, 5e-5, 1e-6),
    "SwinUNETRTrainer": (torch.optim.AdamW, 0.01, 100, 8e-4, 4.005e-4, 1.197e-6),
    "VMUNetTrainer": (torch.optim.AdamW, 0.01, 300, 1e-3, 5.05e-4, 1.0244e-5),
    "SwinUMambaTrainer": (torch.optim.AdamW, 0.05, 1000, 1e-4, 5.05e-5, 1e-6),
    "SwinUMambaDTrainer": (torch.optim.AdamW, 0.05, 1000, 1e-4, 5.05e-5, 1e-6),
    "SegMambaTrainer": (torch.optim.SGD, 3e-5, 1000, 1e-2, 1e-2 * 0.5**0.9, 1e-2 * 0.001**0.9),
}
EPS = dict.fromkeys(
    ("LightMUNetTrainer", "MambaClinixTrainer", "SwinUMambaTrainer", "SwinUMambaDTrainer"), 1e-5
)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str):
    kind, decay, epochs, *rates = RECIPES[name]
    monkeypatch.setattr(
        getattr(trainers, name), "build_network_architecture", staticmethod(build_small)
    )
    trainer = build(name, max(getattr(trainers, name).dims))
    assert type(trainer.optimizer) is kind
    assert trainer.optimizer.defaults["weight_decay"] == decay
    if kind is torch.optim.SGD:
        assert trainer.optimizer.defaults["momentum"] == 0.99
        assert trainer.optimizer.defaults["nesterov"]
    else:
        assert trainer.optimizer.defaults["eps"] == EPS.get(name, 1e-8)
    assert trainer.num_epochs == epochs
    assert trainer.num_iterations_per_epoch == 250
    for epoch, rate in zip((0, epochs // 2, epochs - 1), rates, strict=True):
        trainer.lr_scheduler.step(epoch)
        (group,) = trainer.optimizer.param_groups
        assert group["lr"] == pytest.approx(rate, rel=1e-3)


def test_the_rate_of_lcmambanet_falls_at_plateaus(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        trainers.LCMambaNetTrainer, "build_network_architecture", staticmethod(build_small)
    )
    trainer = build("LCMambaNetTrainer", 2)
    for epoch in range(30):
        trainer.logger.log("mean_fg_dice", min(epoch, 5) / 10, epoch)
    assert trainer.learning_rate(16) == pytest.approx(1e-4)  # ten epochs that are no better
    assert trainer.learning_rate(17) == pytest.approx(1e-5)
    assert trainer.learning_rate(28) == pytest.approx(1e-6)


def test_the_coarser_scales_of_elanres_weigh_less_and_less(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        trainers.ELANResMSCAUNetTrainer, "build_network_architecture", staticmethod(build_small)
    )
    trainer = build("ELANResMSCAUNetTrainer", 3)
    label = batch(trainer)["target"]
    logits = list(torch.randn(4, 2, 3, 16, 16, 16))
    finest, *coarser = (trainer.loss(scale, label) for scale in logits)
    for epoch, weight in ((0, 0.4), (29, 0.4), (30, 0.32), (60, 0.256)):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        torch.testing.assert_close(trainer.loss(logits, label), finest + weight * sum(coarser))


def test_mambaclinix_is_the_plans(build: Callable[..., Any]):
    trainer = build("MambaClinixTrainer", 3)
    assert [stage.block.conv1.conv.out_channels for stage in trainer.network.encoder] == [8, 16, 16]
    weight = trainer.network.bottleneck.conv1.conv.weight
    expected = math.sqrt(2 / (1 + 1e-4) / weight[0].numel())
    assert weight.std().item() == pytest.approx(expected, rel=0.05)
    assert not trainer.network.bottleneck.conv1.conv.bias.any()
    assert list(trainer.loss.loss.loss.tversky.regions_per_axis) == [8, 8, 14]


def test_umamba_is_the_plans(build: Callable[..., Any]):
    trainer = build("UMambaEncTrainer", 3, size=(8, 12, 8))
    assert [stage.blocks[0].conv1.conv.out_channels for stage in trainer.network.encoder] == [
        *(8, 16, 16)
    ]
    channel_tokens = [stage.layer.channel_tokens for stage in trainer.network.encoder]
    assert channel_tokens == [False, False, True]


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["classes", "regions"])
def test_scales_of_umamba_weigh_as_nnunets(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, labels: dict
):
    """Its own wrapper, of labels that its own transform has brought to each scale."""
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
        DownsampleSegForDSTransform,
    )
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

    monkeypatch.setattr(
        trainers.UMambaBotTrainer, "build_network_architecture", staticmethod(build_small)
    )
    trainer = build("UMambaBotTrainer", 3, labels=labels)
    target = batch(trainer)["target"]
    classes = trainer.label_manager.num_segmentation_heads
    generator = torch.Generator().manual_seed(1)
    scales = [torch.randn(2, classes, *[n] * 3, generator=generator) for n in (16, 8, 4)]
    downsample = DownsampleSegForDSTransform([[1] * 3, [0.5] * 3, [0.25] * 3])
    pairs = [downsample(segmentation=label)["segmentation"] for label in target]
    targets = [torch.stack(labels) for labels in zip(*pairs, strict=True)]
    theirs = DeepSupervisionWrapper(trainer.loss.loss, [2 / 3, 1 / 3, 0])
    torch.testing.assert_close(trainer.loss(scales, target), theirs(scales, targets))


def test_segmambas_loss_is_cross_entropy_alone(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        trainers.SegMambaTrainer, "build_network_architecture", staticmethod(build_small)
    )
    trainer = build("SegMambaTrainer", 3)
    label = batch(trainer)["target"]
    logits = torch.randn(2, 3, *label.shape[2:], generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.cross_entropy(logits, label[:, 0].long())
    torch.testing.assert_close(trainer.loss(logits, label), expected)


def test_weights_are_as_the_ranks_were_given_them(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """DistributedDataParallel gives them the first one's, when it wraps the network."""
    initialize = trainers.BundleTrainer.initialize

    def wrapped(trainer: Any) -> None:
        initialize(trainer)
        for weights in trainer.network.parameters():
            torch.nn.init.constant_(weights, 0.5)

    monkeypatch.setattr(trainers.BundleTrainer, "initialize", wrapped)
    trainer = build("MambaClinixTrainer", 3)
    assert all((weights == 0.5).all() for weights in trainer.network.parameters())


@pytest.mark.parametrize(
    ("name", "size", "rounded"),
    [
        ("LightMUNetTrainer", 20, 20),
        ("SegResNetTrainer", 20, 24),
        ("UNETRTrainer", 20, 32),
        ("SwinUNETRTrainer", 40, 64),
        ("CodebookMambaUNetTrainer", 12, 16),
        ("VMUNetTrainer", 20, 32),
        ("SegMambaTrainer", 40, 64),
    ],
)
def test_patches_are_rounded_in_the_plans_that_predictions_read(name: str, size: int, rounded: int):
    kind = getattr(trainers, name)
    assert kind.rounded(size) == rounded


def test_the_plans_own_patch_is_left_to_others(build: Callable[..., Any]):
    trainer = build("UNETRTrainer", 2, size=(20, 20, 20))
    assert trainer.configuration_manager.patch_size == [32, 32]
    saved = trainer.my_init_kwargs["plans"]["configurations"]
    assert saved["2d"]["patch_size"] == [32, 32]
    assert saved["3d_fullres"]["patch_size"] == [20, 20, 20]


def test_dimensions_that_a_network_has_not(build: Callable[..., Any]):
    message = r"MambaClinixTrainer was asked for the configuration 2d, which is 2D; .* in 3D\."
    with pytest.raises(InputError, match=message):
        build("MambaClinixTrainer", 2)


def test_regions_that_a_loss_has_not(build: Callable[..., Any]):
    with pytest.raises(InputError, match="LCMambaNetTrainer's loss is of classes, and"):
        build("LCMambaNetTrainer", 2, labels=REGIONS)


@pytest.mark.parametrize("name", NAMES)
def test_nnunet_finds_them_in_the_folder(name: str):
    """As its search does, but for its own trainers, which it looks through before."""
    folder = str(trainers_folder())
    found = recursive_find_python_class(
        folder, name, None, base_folder=folder, cleanup_imports_from_base_folder=True
    )
    assert (found.__name__, found.__module__) == (name, "trainers")


def test_the_command_prints_the_folder_and_nothing_else():
    done = preloaded.run("common", "nnunet")
    assert done.stdout == f"{trainers_folder()}\n"


def test_without_nnunet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nnunet, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="nnU-Net is not installed: pip install"):
        trainers_folder()


def test_checkpoints_say_what_network_they_are_of(build: Callable[..., Any], tmp_path: Path):
    trainer = build("MambaClinixTrainer", 3)
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    content = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    described = content["init_args"]["network_def"]
    assert described["features"] == [8, 16, 16]
    assert json.loads(json.dumps(described)) == described
