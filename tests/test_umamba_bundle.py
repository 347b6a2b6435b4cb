"""The U-Mamba bundle, run as users run it, with a smaller plan than its own."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.checkpoints import load_settings
from common.cli.checkpoints import convert
from common.data.phantom import write_phantom
from common.networks import UMamba

from . import running
from .conftest import REPOSITORY, GoldenCase, shared
from .running import FRESH, check_export_of_monai, succeed
from .test_released_recipes import configured

BUNDLE = REPOSITORY / "bundles/abdomen_ct_umamba_segmentation"
SMALL: dict[str, Any] = {
    "network_def#features": [8, 16, 16],
    "network_def#strides": [[1, 1, 1], [2, 2, 1], [2, 2, 2]],
    "network_def#kernel_sizes": [[3, 3, 1], [3, 3, 3], [3, 3, 3]],
    "spacing": [6, 6, 8],
    "patch_size": [32, 32, 16],
}
SHORT = SMALL | {"train#trainer#max_epochs": 1, "epoch_length": 2}
# Of the deepest stage the channels are tokens: 48 of 4 x 4 x 2 sites.
ENCODER = SHORT | {
    "network_def#features": [8, 16, 48],
    "network_def#strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "patch_size": [16, 16, 8],
}
ORGANS = list(
    json.loads((BUNDLE / "configs/metadata.json").read_text())["network_data_format"]["outputs"][
        "pred"
    ]["channel_def"].values()
)

command = partial(running.command, BUNDLE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms with thirteen organs, a slice of what was the liver each, and their names."""
    folder = write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=6, seed=1, size=48)
    for file in folder.glob("labels*/*.nii.gz"):
        label = nib.load(file)
        values = np.asarray(label.dataobj).astype(np.uint8)
        organs = (values > 0) * (1 + np.arange(values.shape[2]) % 13)
        nib.save(nib.Nifti1Image(organs.astype(np.uint8), label.affine), file)
    about = json.loads((folder / "dataset.json").read_text())
    about["labels"] = {str(i): name for i, name in enumerate(ORGANS)}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    train = command("train", bundle_root=root, dataset_dir=dataset, **SHORT)
    output = succeed(train, cwd=root, launcher=FRESH)
    assert "val_dice_class_13" in output
    return root


def check_masks(images: Path, masks: Path) -> None:
    """A mask for each image, on its grid, with some of the organs or none."""
    for image in images.iterdir():
        expected = nib.load(image)
        mask = nib.load(masks / image.name.replace(".nii.gz", "_seg.nii.gz"))
        assert mask.shape == expected.shape
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
        assert set(np.unique(mask.dataobj)) <= set(range(14))


@pytest.mark.parametrize(
    ("files", "given", "millions"),
    [
        ([], {}, 41.945158),
        (["encoder"], {}, 42.842798),
        ([], {"network_def#release": 1}, 57.8),
        (["encoder"], {"network_def#release": 1}, 59.1),
    ],
)
def test_networks_are_the_releases(files: list[str], given: dict[str, Any], millions: float):
    """By their parameters, with the stages of the release's plan."""
    parsed = configured(BUNDLE, "train", *files, **given)
    with torch.device("meta"):
        network = parsed.get_parsed_content("network_def")
    found = sum(p.numel() for p in network.parameters()) / 1e6
    assert round(found, 1 if "network_def#release" in given else 6) == millions
    reduced = np.prod(parsed["network_def#strides"], axis=0)
    assert not (np.array(parsed["patch_size"]) % reduced).any()


def test_patch_of_the_encoder_variant_travels():
    """Its weights fit one size, which training knows."""
    parsed = configured(BUNDLE, "train", "encoder", patch_size=[64, 64, 16])
    found = parsed.get_parsed_content("settings")["network_def"]
    assert (found["variant"], found["input_size"]) == ("encoder", [64, 64, 16])
    of_bottleneck = configured(BUNDLE, "train").get_parsed_content("settings")["network_def"]
    assert (of_bottleneck["variant"], of_bottleneck["input_size"]) == ("bottleneck", None)


def test_labels_of_public_sets():
    """Those of AMOS get the metadata's numbers; BTCV has other organs."""
    names = {}
    for name in ("flare22", "amos", "btcv"):
        parsed = configured(BUNDLE, "train", name)
        names[name] = parsed.get_parsed_content("settings")["label_names"]
        assert len(set(names[name])) == parsed["num_classes"] == len(ORGANS)
        assert names[name][0] == "background"
    assert names["flare22"] == names["amos"] == ORGANS
    assert set(names["btcv"]) - set(ORGANS) == {"portal and splenic vein"}
    assert set(ORGANS) - set(names["btcv"]) == {"duodenum"}

    check = configured(BUNDLE, "train", "amos").get_parsed_content(
        "train#preprocessing#transforms#2"
    )
    values = torch.arange(16.0).view(1, 4, 2, 2)
    checked = check({"image": MetaTensor(values), "label": MetaTensor(values)})["label"]
    named = [ORGANS[int(i)] for i in checked.flatten()]
    # In their order AMOS and BTCV have the first nine in common.
    assert named[:10] == names["btcv"][:10]
    assert named[10:13] == names["btcv"][11:]
    assert named[13:] == ["duodenum", "background", "background"]


@pytest.mark.parametrize("name", ["umamba_bot_3d", "umamba_enc_3d", "umamba_v1_enc_3d"])
def test_converted_weights_run_here(name: str, tmp_path: Path):
    """Of either release and variant, without being told more."""
    case = GoldenCase(name)
    torch.save({"network_weights": case.state_dict}, tmp_path / "theirs.pth")
    size = list(case.vectors["x"].shape[2:])
    convert(
        *(str(tmp_path / "theirs.pth"), "umamba", str(tmp_path / "model.pt")),
        spacing=[2.5, 0.8, 0.8],
        patch_size=size,
        intensity=[-958, 270, 97.30, 137.85],
        strides=case.arguments["strides"],
    )
    checkpoint = str(tmp_path / "model.pt")
    inference = configured(BUNDLE, "inference", checkpoint=checkpoint)
    assert inference.get_parsed_content("patch_size") == size
    assert inference.get_parsed_content("axcodes") == "SPL"
    network = inference.get_parsed_content("network")
    network.load_state_dict(torch.load(checkpoint, weights_only=True), strict=True)
    with torch.no_grad():
        logits = network.double().eval()(case.vectors["x"])
    assert (logits - case.vectors["y0"]).abs().max() <= case.tolerance


@pytest.mark.slow
def test_training_leaves_weights_and_what_they_are_of(trained: Path):
    weights = torch.load(trained / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(x).all() for x in weights.values())
    settings = load_settings(trained / "models/model.pt")
    assert settings["label_names"] == ORGANS
    assert (settings["num_classes"], settings["network_def"]["release"]) == (14, 2)


@pytest.mark.slow
def test_inference_restores_every_grid(trained: Path, dataset: Path, tmp_path: Path):
    images = dataset / "imagesTr"
    options = {"bundle_root": trained, "dataset_dir": images, "output_dir": tmp_path}
    succeed(command("inference", **options), launcher=FRESH)
    check_masks(images, tmp_path)


@pytest.mark.slow
def test_evaluation_names_the_organs(trained: Path, dataset: Path, tmp_path: Path):
    options = {"bundle_root": trained, "dataset_dir": dataset, "output_dir": tmp_path}
    succeed(command(["train", "evaluate"], **options), launcher=FRESH)
    assert len((tmp_path / "val_dice_raw.csv").read_text().splitlines()) == 2  # one test case
    with open(tmp_path / "cases.csv", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ORGANS[1:]


@pytest.mark.slow
def test_encoder_variant_takes_images_of_any_size(dataset: Path, tmp_path: Path):
    """In windows of its patch, which nobody tells it again."""
    options = {"bundle_root": tmp_path, "dataset_dir": dataset}
    succeed(command(["train", "encoder"], **options, **ENCODER))
    weights = torch.load(tmp_path / "models/model.pt", weights_only=True)
    assert weights["encoder.2.layer.norm.weight"].shape == (32,)
    assert load_settings(tmp_path / "models/model.pt")["network_def"]["input_size"] == [16, 16, 8]
    options |= {"dataset_dir": dataset / "imagesTr", "output_dir": tmp_path / "masks"}
    succeed(command("inference", **options))
    check_masks(dataset / "imagesTr", tmp_path / "masks")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"network_def#mixer": "identity"},
        {"network_def#release": 1, "network_def#mixer": "attention"},
        {"network_def#deep_supervision": False},
    ],
    ids=["twin", "attention", "single"],
)
def test_twins_and_ablations(options: dict[str, Any], dataset: Path, tmp_path: Path):
    where = {"bundle_root": tmp_path, "dataset_dir": dataset}
    succeed(command("train", **where, **SHORT | options))
    weights = torch.load(tmp_path / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(x).all() for x in weights.values())
    mamba = any(".mixer.A_log" in name for name in weights)
    assert mamba == ("network_def#mixer" not in options)


@pytest.mark.slow
def test_two_processes(dataset: Path, tmp_path: Path):
    options = SHORT | {"split": [2, 1, 1], "batch_size": 1, "device": "cpu"}
    output = succeed(
        command(["train", "multi_gpu_train"], bundle_root=tmp_path, dataset_dir=dataset, **options),
        launcher=["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"],
    )
    assert output.count("INFO Epoch 1 of 1 in ") == 1  # one process of the two reports
    assert "stem.0.conv1.conv.weight" in torch.load(tmp_path / "models/model.pt", weights_only=True)


@pytest.mark.slow
def test_export_of_monai(trained: Path, tmp_path: Path):
    sizes = {name.removeprefix("network_def#"): x for name, x in SMALL.items() if "#" in name}
    network, checkpoint = UMamba(3, 1, 14, **sizes), trained / "models/model.pt"
    check_export_of_monai(tmp_path, BUNDLE, checkpoint, SMALL, network, 24, 16, 9)


@pytest.mark.slow
def test_real_abdomens(tmp_path: Path):
    """Four of BTCV: from their files to masks and tables of thirteen organs."""
    images = []
    for file in sorted(shared("data/abdomen_ct/imagesTr").iterdir())[:4]:
        for kind in ("imagesTr", "labelsTr"):  # every second voxel, for the time
            half = nib.load(file.parents[1] / kind / file.name).slicer[::2, ::2, ::2]
            (tmp_path / "half" / kind).mkdir(parents=True, exist_ok=True)
            nib.save(half, tmp_path / "half" / kind / file.name)
        images.append(tmp_path / "half/imagesTr" / file.name)
    parts = ("training", "training", "validation", "test")
    rows = [
        f"{image},{image.parents[1] / 'labelsTr' / image.name},{part}"
        for image, part in zip(images, parts, strict=True)
    ]
    (tmp_path / "cases.csv").write_text("\n".join(["image,label,split", *rows]))
    options = {"bundle_root": tmp_path, "cases": tmp_path / "cases.csv"}
    succeed(command(["train", "btcv"], **options, **SHORT))
    succeed(command(["train", "evaluate", "btcv"], **options))
    with open(tmp_path / "eval/cases.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 13
    volumes = {row["name"]: float(row["reference_ml"]) for row in found}
    assert volumes["liver"] == max(volumes.values()) > 500
    assert volumes["portal and splenic vein"] > 0
    where = {"bundle_root": tmp_path, "dataset_dir": images[3], "output_dir": tmp_path / "masks"}
    succeed(command("inference", **where))
    (written,) = (tmp_path / "masks").iterdir()
    assert nib.load(written).shape == nib.load(images[3]).shape
