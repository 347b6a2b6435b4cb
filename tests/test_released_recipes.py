"""The recipes of the networks' releases, read from what the configs build."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss
from monai.transforms import Resize
from PIL import Image
from torch import Tensor, nn

from common.checkpoints import build_setting, check_setting, load_settings
from common.cli.checkpoints import convert
from common.errors import InputError
from common.networks import LightMUNet, MambaClinix
from common.networks.mambaclinix import ResidualBlock
from common.workflows.plan import Training, nnunet_plans

from .conftest import REPOSITORY, GoldenCase
from .test_bundles import flips_of, parser

LIVER = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation"
LUNG = REPOSITORY / "bundles/lung_cxr_lightm_unet_segmentation"
CLINIX = REPOSITORY / "bundles/liver_tumor_ct_mambaclinix_segmentation"
UMAMBA = REPOSITORY / "bundles/abdomen_ct_umamba_segmentation"
SEGMAMBA = REPOSITORY / "bundles/brain_tumor_mr_segmamba_segmentation"
CONFIGS = [
    *((bundle, "train") for bundle in (LIVER, LUNG, CLINIX, UMAMBA, SEGMAMBA)),
    *((bundle, "as_in_the_paper") for bundle in (LIVER, LUNG)),
    *(
        (CLINIX, name)
        for name in (
            "lung_tumor_ct",
            "multi_organ_ct",
            "brain_tumor_mr",
            "pulmonary_circulation_ct",
        )
    ),
]


def configured(bundle: Path, *names: str, **override: Any) -> ConfigParser:
    """A training, or what it is evaluated or used by, with the files that are named after it."""
    parsed = parser(bundle, names[0])
    parsed.read_config([f"{bundle}/configs/{name}.json" for name in names])
    parsed.update({"bundle_root": str(bundle), "device": "cpu"} | override)
    return parsed


def training(bundle: Path, name: str, **override: Any) -> ConfigParser:
    """With one parameter in place of the network, and of a case that is not there."""
    names = ["train"] if name == "train" else ["train", name]
    linear = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1, "bias": False}
    case = [{"image": "image.nii.gz", "label": "label.nii.gz"}] * 24
    little: dict[str, Any] = {"train#dataset#data": case, "cache": "none", "train#handlers": []}
    return configured(bundle, *names, network_def=linear, **little | override)


def clipped_to(optimizer: torch.optim.Optimizer) -> float:
    """The norm that a gradient of norm 1000 has at the optimiser's step."""
    (group,) = optimizer.param_groups
    (weight,) = group["params"]
    weight.grad = torch.full_like(weight, 1000.0)
    optimizer.step()
    return weight.grad.norm().item()


ADAM = {"kind": "Adam", "lr": 1e-4, "weight_decay": 1e-5, "eps": 1e-5, "clipping": 12}
SGD = {"kind": "SGD", "lr": 1e-4, "weight_decay": 3e-5, "momentum": 0.99, "clipping": 1000}
NNUNETS = SGD | {"lr": 1e-2, "nesterov": True, "clipping": 12}
OPTIMIZERS = {
    **dict.fromkeys(CONFIGS, ADAM),
    **dict.fromkeys([(LIVER, "as_in_the_paper"), (LUNG, "as_in_the_paper")], SGD),
    **dict.fromkeys([(UMAMBA, "train"), (SEGMAMBA, "train")], NNUNETS),
}
# Epochs, iterations of each, cases of a batch, and autocast on a GPU; of 24 cases.
LENGTHS = {
    (LIVER, "train"): (100, 250, 2, False),
    (LUNG, "train"): (100, 250, 12, False),
    (CLINIX, "train"): (1000, 250, 2, True),
    (UMAMBA, "train"): (1000, 250, 2, True),
    (SEGMAMBA, "train"): (1000, 250, 2, True),
    (LIVER, "as_in_the_paper"): (100, 12, 2, False),
    (LUNG, "as_in_the_paper"): (100, 2, 12, False),
    (CLINIX, "lung_tumor_ct"): (1000, 250, 2, True),
    (CLINIX, "multi_organ_ct"): (500, 250, 2, True),
    (CLINIX, "brain_tumor_mr"): (500, 250, 2, True),
    (CLINIX, "pulmonary_circulation_ct"): (300, 250, 2, True),
}


@pytest.mark.parametrize(("bundle", "name"), CONFIGS, ids=lambda x: getattr(x, "name", x))
def test_training(bundle: Path, name: str):
    parsed = training(bundle, name)
    trainer: SupervisedTrainer = parsed.get_parsed_content("train#trainer")
    epochs, length, batch_size, autocast = LENGTHS[bundle, name]
    assert trainer.state.max_epochs == epochs
    assert trainer.state.epoch_length == length
    assert trainer.data_loader.batch_size == batch_size
    assert not trainer.amp
    on_gpu = training(bundle, name, device="cuda:0")
    assert on_gpu.get_parsed_content("amp") is autocast

    wanted = dict(OPTIMIZERS[bundle, name])
    scheduler = parsed.get_parsed_content("lr_scheduler")
    rates = []
    for _ in range(epochs):
        rates += scheduler.get_last_lr()
        scheduler.optimizer.step()
        scheduler.step()
    expected = [wanted["lr"] * (1 - epoch / epochs) ** 0.9 for epoch in range(epochs)]
    np.testing.assert_allclose(rates, expected, rtol=1e-9)

    optimizer = training(bundle, name).get_parsed_content("optimizer")
    assert type(optimizer).__name__ == wanted.pop("kind")
    assert clipped_to(optimizer) == pytest.approx(wanted.pop("clipping"))
    assert {key: optimizer.defaults[key] for key in wanted} == wanted


def nnunets_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The mean cross entropy, less the mean Dice of the batch's foreground classes."""
    p = logits.softmax(1)
    y = torch.zeros_like(p).scatter_(1, target.long(), 1)
    axes = [0, *range(2, logits.ndim)]
    dice = (2 * (p * y).sum(axes) + 1e-5) / ((p + y).sum(axes) + 1e-5).clamp(min=1e-8)
    return -(p.log() * y).sum(1).mean() - dice[1:].mean()


def installed_nnunets_loss() -> nn.Module:
    pytest.importorskip("nnunetv2", reason="needs the extra: plan")
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    dice = {"batch_dice": True, "do_bg": False, "smooth": 1e-5, "ddp": False}
    return DC_and_CE_loss(dice, {}, 1, 1, None, MemoryEfficientSoftDiceLoss)


@pytest.mark.parametrize("theirs", [lambda: nnunets_loss, installed_nnunets_loss], ids=["ours", ""])
@pytest.mark.parametrize(
    ("bundle", "size"), [(LIVER, (6, 5, 4)), (LUNG, (6, 5)), (UMAMBA, (6, 5, 4))]
)
def test_loss_is_nnunets(
    bundle: Path, size: tuple[int, ...], theirs: Callable[[], Callable[[Tensor, Tensor], Tensor]]
):
    """But for the 1 that MONAI's has more; a class that no target has counts as in nnU-Net."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, *size, generator=generator, requires_grad=True)
    target = torch.randint(3, (2, 1, *size), generator=generator).float()  # no 3
    loss_function = parser(bundle, "train").get_parsed_content("loss")
    losses = [loss_function(logits, target), theirs()(logits, target) + 1]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("bundle", [LIVER, LUNG])
def test_loss_of_the_papers_text_has_the_background(bundle: Path):
    logits, target = torch.randn(2, 2, 8, 8), torch.randint(2, (2, 1, 8, 8))
    loss = training(bundle, "as_in_the_paper").get_parsed_content("loss")(logits, target)
    plain = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    torch.testing.assert_close(loss, plain(logits, target))


# Spacing and patch (or size) in our order, (x, y, z), split, classes, and the strides' products.
PLANS: dict[tuple[Path, str], tuple] = {
    (LIVER, "train"): ([0.77, 0.77, 1.0], [128, 128, 128], [7, 1, 2], 3, None),
    (LUNG, "train"): (None, [512, 512], [7, 1, 2], 2, None),
    (CLINIX, "train"): ([0.76, 0.76, 1.22], [192, 192, 64], [209, 53, 30], 3, [5, 5, 4]),
    (UMAMBA, "train"): ([0.8, 0.8, 2.5], [192, 224, 40], [7, 1, 2], 14, None),
    (SEGMAMBA, "train"): ([1, 1, 1], [128, 128, 128], [7, 1, 2], 4, None),
    (LIVER, "as_in_the_paper"): ([-1, -1, -1], [128, 128, 128], [7, 1, 2], 3, None),
    (LUNG, "as_in_the_paper"): (None, [512, 512], [7, 1, 2], 2, None),
    (CLINIX, "lung_tumor_ct"): (
        *([0.77, 0.77, 1.25], [160, 160, 96], [560, 160, 80], 2, [5, 5, 4]),
    ),
    (CLINIX, "multi_organ_ct"): ([0.8, 0.8, 2.5], [192, 224, 40], [40, 10, 50], 14, [5, 5, 3]),
    (CLINIX, "brain_tumor_mr"): ([1, 1, 1], [128, 128, 128], [876, 250, 125], 4, [5, 5, 5]),
    (CLINIX, "pulmonary_circulation_ct"): (
        *([0.77, 0.77, 1.25], [160, 192, 80], [397, 100, 50], 4, [5, 5, 4]),
    ),
}


@pytest.mark.parametrize(("bundle", "name"), CONFIGS, ids=lambda x: getattr(x, "name", x))
def test_plan_and_split(bundle: Path, name: str):
    spacing, size, split, classes, poolings = PLANS[bundle, name]
    parsed = configured(bundle, *(["train"] if name == "train" else ["train", name]))
    found = {id_: parsed.get_parsed_content(id_) for id_ in ("split", "num_classes")}
    assert found == {"split": split, "num_classes": classes}
    sizes = [parsed.get_parsed_content(i) for i in ("patch_size", "image_size") if i in parsed]
    assert sizes == [size]
    if spacing is not None:
        assert parsed.get_parsed_content("spacing") == spacing
    if poolings is not None:
        with torch.device("meta"):
            network = parsed.get_parsed_content("network_def")
        assert np.log2(network.reduction).tolist() == poolings
        assert [type(stage.layer).__name__ for stage in network.encoder] == [
            *["HGCN"] * 3,
            *["MambaLayer"] * 3,
        ]


@pytest.mark.slow
def test_plan_of_nnunet_for_lits(tmp_path: Path):
    """For the set's median volume."""
    pytest.importorskip("nnunetv2", reason="needs the extra: plan")
    intensities = {"mean": 99.40, "std": 39.36, "median": 101, "min": -1000, "max": 1000}
    intensities |= {"percentile_00_5": -17, "percentile_99_5": 201}
    fingerprint = {
        "spacings": [[1.0, 0.77, 0.77]],
        "shapes_after_crop": [[432, 512, 512]],
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "median_relative_size_after_cropping": 1.0,
    }
    parsed = training(LIVER, "train")
    cases = [{"image": "a.nii.gz", "label": "b.nii.gz"}] * 131
    plans = nnunet_plans(Training(parsed, {}, cases), {"0": "CT"}, 8, tmp_path, fingerprint)
    planned = plans["configurations"]["3d_fullres"]
    assert planned["spacing"][::-1] == parsed["spacing"]
    assert planned["patch_size"][::-1] == parsed["patch_size"]
    assert planned["batch_size"] == parsed["batch_size"]
    assert planned["batch_dice"] is parsed["loss"]["batch"] is True


@pytest.mark.parametrize("bundle", [LIVER, CLINIX])
@pytest.mark.parametrize("config", ["train", "inference"])
def test_hu_are_normalised_by_nnunets_figures_for_lits(bundle: Path, config: str):
    image = torch.tensor([-1000.0, -17.0, 99.40, 99.40 + 39.36, 201.0, 3000.0]).view(1, 6, 1, 1)
    found = parser(bundle, config).get_parsed_content("intensity")({"image": image})["image"]
    low, high = (-17 - 99.40) / 39.36, (201 - 99.40) / 39.36
    wanted = torch.tensor([low, low, 0, 1, high, high])
    torch.testing.assert_close(found.flatten(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bundle", [LIVER, CLINIX, UMAMBA])
@pytest.mark.parametrize("config", ["inference", "evaluate"])
def test_windows_without_flips(bundle: Path, config: str):
    names = ["train", "evaluate"] if config == "evaluate" else [config]
    parsed = configured(bundle, *names, members=["model.pt"])
    id_ = "validate#inferer" if config == "evaluate" else "inferer"
    flips = flips_of(parsed.get_parsed_content(id_))
    assert list(flips.axes) == []
    windows = flips.inferer
    assert (windows.overlap, str(windows.mode)) == (0.5, "gaussian")


def test_regions_of_mambaclinix():
    loss = parser(CLINIX, "train").get_parsed_content("loss").loss
    tversky = loss.tversky
    assert tversky.regions_per_axis == [14, 8, 8]
    assert (tversky.alpha, tversky.beta, tversky.penalties) == (0.3, 0.4, "adaptive")
    assert loss.lambda_tversky == 0.8
    x, y, z = 28, 16, 16
    logits, target = torch.randn(1, 3, x, y, z), torch.randint(3, (1, 1, x, y, z))
    exchanged = [v.transpose(2, 4) for v in (logits, target)]  # as in nnU-Net, (z, y, x)
    theirs = type(tversky)((8, 8, 14))
    torch.testing.assert_close(tversky(logits, target), theirs(*exchanged))


def test_initialisation_of_mambaclinix():
    torch.manual_seed(0)
    network = MambaClinix(1, 3, layers=[2, "residual", 3, "mamba", "mamba", "mamba"])
    convolutions = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv3d)}
    for name, convolution in convolutions.items():
        fan_in = convolution.weight[0].numel()
        weights = convolution.weight * (fan_in * (1 + 1e-2**2) / 2) ** 0.5
        assert convolution.bias is None or not convolution.bias.any(), name
        if weights.numel() > 500:
            of_the_mean = weights.numel() ** -0.5
            assert abs(weights.mean()) < 5 * of_the_mean, name
            assert abs(weights.std() - 1) < 5 * of_the_mean, name
    assert len(convolutions) > 60
    layer = network.encoder[3].layer.mamba
    assert layer.conv1d.bias.any()  # Mamba's are its own
    assert type(network.encoder[1].layer) is ResidualBlock


def test_regions_of_brain_tumours():
    """Values of BraTS before 2023, where 4 enhances, and since, where 3 does."""
    files = ["train", "evaluate", "brain_tumor_mr", "evaluate_brain_tumor_regions"]
    parsed = configured(CLINIX, *files, members=["model.pt"])
    check = parsed.get_parsed_content("train#preprocessing#transforms#2")
    last = parsed.get_parsed_content("validate#postprocessing").transforms[-1]
    image = torch.arange(4 * 8.0).view(4, 2, 2, 2)
    for enhancing in (3, 4):
        label = torch.tensor([0, 1, 2, enhancing, 0, 0, 2, 1]).view(1, 2, 2, 2)
        checked = check({"image": MetaTensor(image), "label": MetaTensor(label)})["label"]
        done = last({"pred": checked.clone(), "label": checked})
        assert done["label"].flatten(1).tolist() == [
            [0, 1, 1, 1, 0, 0, 1, 1],  # whole tumour
            [0, 1, 0, 1, 0, 0, 0, 1],  # its core
            [0, 0, 0, 1, 0, 0, 0, 0],  # what enhances
        ]
        assert torch.equal(done["pred"], done["label"])
    for name in ("key_metric#val_mean_dice", "additional_metrics#val_dice"):
        metric = parsed.get_parsed_content(f"validate#{name}").metric_fn
        assert metric.include_background


def saved(file: Path, settings: dict[str, Any]) -> str:
    torch.save({"model": {}, "settings": settings}, file)
    return str(file)


def test_whole_volumes_resized_as_in_lightm_unets_paper(tmp_path: Path):
    """Training resizes image and label; what it was told has inference and evaluation resize."""
    size = [16, 12, 8]
    parsed = configured(LIVER, "train", "as_in_the_paper", patch_size=size)
    values = np.random.default_rng(0).integers(-100, 300, (20, 30, 10)).astype(np.float32)
    label = (values > 100).astype(np.uint8) + (values > 150)
    for name, array in (("image", values), ("label", label)):
        nib.save(nib.Nifti1Image(array, np.diag([2, 2, 3, 1])), tmp_path / f"{name}.nii.gz")
    case = {name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")}
    normalised = torch.from_numpy(((values.clip(-17, 201) - 99.40) / 39.36)[None])
    wanted = Resize(size, mode="trilinear")(normalised)

    for part in ("train", "validate"):
        done = parsed.get_parsed_content(f"{part}#preprocessing").flatten()(dict(case), end=8)
        torch.testing.assert_close(done["image"].as_tensor(), wanted, rtol=1e-4, atol=1e-4)
        assert done["label"].shape == (1, *size)
        assert set(done["label"].unique().tolist()) == {0, 1, 2}

    told = parsed.get_parsed_content("settings")
    for id_, value in told.items():
        check_setting(id_, value)
    checkpoint = saved(tmp_path / "model.pt", told)
    inference = configured(LIVER, "inference", checkpoint=checkpoint)
    done = inference.get_parsed_content("preprocessing")({"image": case["image"]})
    torch.testing.assert_close(done["image"].as_tensor(), wanted, rtol=1e-4, atol=1e-4)
    evaluation = configured(LIVER, "train", "evaluate", checkpoint=checkpoint)
    done = evaluation.get_parsed_content("validate#preprocessing")(dict(case))
    torch.testing.assert_close(done["image"].as_tensor(), wanted, rtol=1e-4, atol=1e-4)
    assert done["label"].shape == (1, 20, 30, 10)


def test_converted_volumes_lie_as_in_the_release(tmp_path: Path):
    """What convert writes is all that inference has to be told of a file in LPS."""
    case = GoldenCase("lightm_unet_3d")
    torch.save({"network_weights": case.state_dict}, tmp_path / "theirs.pth")
    where = [str(tmp_path / "theirs.pth"), "lightm_unet", str(tmp_path / "model.pt")]
    plan = {"spacing": [2.0, 1.5, 1.5], "patch_size": [16, 8, 8]}
    for wrong, message in (
        ({}, r"spacing is None; needed are three numbers above 0, as they stand in the nnU-Net"),
        (plan, "intensity is None; needed are, of CT, percentile_00_5, percentile_99_5, mean and"),
        (plan | {"intensity": [9, 8, 8, 1]}, r"intensity is \[9, 8, 8, 1\]; needed are"),
        (plan | {"intensity": [8, 9, 8]}, r"intensity is \[8, 9, 8\]; needed are"),
        (plan | {"intensity": "CT"}, "intensity is CT; needed are"),
        ({"spacing": [1.0, 0.8, 0.8]}, "patch_size is None; needed are three numbers"),
        ({"spacing": [1.0, 0.8], "patch_size": [8, 8, 8]}, r"spacing is \[1\.0, 0\.8\]; needed"),
        ({"spacing": [1, 0, 1], "patch_size": [8, 8, 8]}, r"spacing is \[1, 0, 1\]; needed"),
    ):
        with pytest.raises(InputError, match=message):
            convert(*where, **wrong)
        assert not (tmp_path / "model.pt").exists()
    convert(*where, **plan, intensity=[0, 150, 60.0, 20.0])
    found = load_settings(tmp_path / "model.pt")
    assert found.pop("intensity")["_target_"] == "ScaleIntensityRanged"
    wanted = {"axcodes": "SPL", "modality": "CT", "in_channels": 1, "num_classes": 3}
    assert found == plan | wanted

    values = np.random.default_rng(0).integers(-10, 190, (9, 8, 10)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([-1.5, -1.5, 2.0, 1.0])), tmp_path / "lps.nii.gz")
    inference = configured(LIVER, "inference", checkpoint=str(tmp_path / "model.pt"))
    chain = inference.get_parsed_content("preprocessing")
    ours = chain({"image": str(tmp_path / "lps.nii.gz")})["image"].as_tensor()
    theirs = torch.from_numpy((values.transpose(2, 1, 0)[None].clip(0, 150) - 60) / 20).float()
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "nonzero"), [("z-score", False), ("nonzero z-score", True)])
def test_converted_weights_have_their_plans_normalisation(tmp_path: Path, name: str, nonzero: bool):
    """Of MR; inference would else clip it to the bundle's window of HU."""
    case = GoldenCase("lightm_unet_3d")
    torch.save({"network_weights": case.state_dict}, tmp_path / "theirs.pth")
    where = [str(tmp_path / "theirs.pth"), "lightm_unet", str(tmp_path / "model.pt")]
    convert(*where, spacing=[1, 1, 1], patch_size=[8, 8, 8], intensity=name)
    inference = configured(LIVER, "inference", checkpoint=str(tmp_path / "model.pt"))
    image = torch.tensor([0.0, 300.0, 500.0, 400.0]).view(1, 4, 1, 1)
    seen = image[image != 0] if nonzero else image
    wanted = (image - seen.mean()) / seen.std(correction=0)
    found = inference.get_parsed_content("intensity")({"image": image.clone()})["image"]
    if nonzero:
        wanted[image == 0] = 0
    torch.testing.assert_close(found, wanted)
    assert inference.get_parsed_content("modality") is None


def test_converted_mambaclinix_has_its_plans_strides(tmp_path: Path):
    """Which no weight shows: with those of the bundle's axes it would load, and be wrong."""
    case = GoldenCase("mambaclinix")
    torch.save({"network_weights": case.state_dict}, tmp_path / "theirs.pth")
    where = [str(tmp_path / "theirs.pth"), "mambaclinix", str(tmp_path / "model.pt")]
    plan = {"spacing": [1.0, 1.0, 1.0], "patch_size": list(case.vectors["x"].shape[2:])}
    plan |= {"intensity": [-17, 201, 99.40, 39.36]}
    strides = [list(stride) for stride in case.arguments["strides"]]
    for wrong in (None, strides[:-1], [*strides[:-1], [2, 2]]):
        with pytest.raises(
            InputError, match=r"strides is .*; needed are three numbers above 0 for"
        ):
            convert(*where, **plan, strides=wrong)
    convert(*where, **plan, strides=strides)
    checkpoint = str(tmp_path / "model.pt")
    network = configured(CLINIX, "inference", checkpoint=checkpoint).get_parsed_content("network")
    network.load_state_dict(torch.load(checkpoint, weights_only=True), strict=True)
    with torch.no_grad():
        logits = network.double().eval()(case.vectors["x"])
    assert (logits - case.vectors["y0"]).abs().max() <= case.tolerance


@pytest.mark.parametrize(
    "name", ["umamba_bot_3d", "umamba_enc_3d", "umamba_v1_bot_3d", "umamba_v1_enc_3d"]
)
def test_converted_umamba_is_described(tmp_path: Path, name: str):
    """By its weights, and what the plan of its training says."""
    case = GoldenCase(name)
    torch.save({"network_weights": case.state_dict}, tmp_path / "theirs.pth")
    where = [str(tmp_path / "theirs.pth"), "umamba", str(tmp_path / "model.pt")]
    plan = {"spacing": [2.5, 0.8, 0.8], "patch_size": list(case.vectors["x"].shape[2:])}
    plan |= {"intensity": [-160, 240, 83.2, 136.0]}
    with pytest.raises(InputError, match="strides is None; needed are three numbers above 0 for"):
        convert(*where, **plan)
    convert(*where, **plan, strides=case.arguments["strides"])
    settings = load_settings(tmp_path / "model.pt")
    found = settings["network_def"]
    assert found["variant"] == ("bottleneck" if "_bot_" in name else "encoder")
    assert found["release"] == (1 if "_v1_" in name else 2)
    assert found["blocks_per_stage"] == ([2, 2, 2, 2] if "_v1_" in name else [2, 2, 1, 1])
    assert found["blocks_per_decoder_stage"] == ([2, 2, 2] if "_v1_" in name else [2, 2, 1])
    assert {"axcodes": "SPL", "in_channels": 1, "num_classes": 3}.items() <= settings.items()
    network = build_setting("network_def", found)
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    network.load_state_dict(weights, strict=True)
    with torch.no_grad():
        logits = network.double().eval()(case.vectors["x"])
    assert (logits - case.vectors["y0"]).abs().max() <= case.tolerance


def test_converted_umamba_in_2d_has_no_settings(tmp_path: Path):
    """Since no bundle has it."""
    case = GoldenCase("umamba_enc_2d")
    torch.save({"network_weights": case.state_dict}, tmp_path / "theirs.pth")
    where = [str(tmp_path / "theirs.pth"), "umamba", str(tmp_path / "model.pt")]
    with pytest.raises(InputError, match=r"spacing is .*a checkpoint of umamba like this one"):
        convert(*where, spacing=[1, 1])
    convert(*where)
    assert load_settings(tmp_path / "model.pt") == {}


def test_converted_radiographs_lie_as_in_the_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Rows first: a mask of our own order would be a silent mistake, as tokens run along rows."""
    case = GoldenCase("lightm_unet_2d")
    torch.save({"network_weights": case.state_dict}, tmp_path / "theirs.pth")
    where = [str(tmp_path / "theirs.pth"), "lightm_unet", str(tmp_path / "model.pt")]
    with pytest.raises(
        InputError, match="axcodes is SPL, for which a checkpoint of lightm_unet like"
    ):
        convert(*where, axcodes="SPL")
    convert(*where)
    said = capsys.readouterr().out
    assert "patches of radiographs as they are; the bundle resizes each to its image_size" in said
    assert load_settings(tmp_path / "model.pt") == {
        "in_channels": 1,
        "num_classes": 2,
        "axes": [0, 2, 1],
    }

    rows = np.random.default_rng(0).integers(0, 255, (24, 40)).astype(np.uint8)
    Image.fromarray(rows).save(tmp_path / "chest.png")
    size = {"image_size": [24, 40]}
    inference = configured(LUNG, "inference", checkpoint=str(tmp_path / "model.pt"), **size)
    ours = inference.get_parsed_content("preprocessing")({"image": str(tmp_path / "chest.png")})
    theirs = torch.from_numpy((rows - rows.mean()) / rows.std())[None].float()
    torch.testing.assert_close(ours["image"].as_tensor(), theirs, rtol=1e-4, atol=1e-4)

    network = LightMUNet(**case.arguments).eval()
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    with torch.no_grad():
        there = network(theirs.expand(1, case.arguments["in_channels"], -1, -1))
    assert there.shape[2:] == rows.shape
    inverted = inference.get_parsed_content("postprocessing").transforms[0]
    done = inverted({"image": ours["image"], "pred": MetaTensor(there[0])})
    assert torch.equal(done["pred"].as_tensor()[0].T, there[0].argmax(0).to(torch.uint8))
