"""The MambaClinix bundle, run as users run it, with a smaller plan than its own."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.data.phantom import write_phantom
from common.networks import MambaClinix
from common.workflows import write_plan

from . import running
from .conftest import REPOSITORY
from .running import FRESH, check_export_of_monai, succeed
from .test_bundles import parser

BUNDLE = REPOSITORY / "bundles/liver_tumor_ct_mambaclinix_segmentation"
SMALL = {
    "network_def#features": [8, 16, 16],
    "network_def#strides": [[1, 1, 1], [2, 2, 2], [2, 2, 1]],
    "network_def#kernel_sizes": [[3, 3, 1], [3, 3, 3], [3, 3, 3]],
    "spacing": [6, 6, 8],
    "patch_size": [32, 32, 16],
}
SHORT = SMALL | {"train#trainer#max_epochs": 1, "epoch_length": 2}

command = partial(running.command, BUNDLE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=6, seed=1, size=48)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    train = command("train", bundle_root=root, dataset_dir=dataset, **SHORT)
    output = succeed(train, cwd=root, launcher=FRESH)
    assert "val_dice_class_1" in output
    assert "val_recall_class_2" in output
    return root


def test_training_leaves_weights(trained: Path):
    weights = torch.load(trained / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(x).all() for x in weights.values())


def test_inference_restores_every_grid(trained: Path, dataset: Path, tmp_path: Path):
    images = dataset / "imagesTr"
    options = {"bundle_root": trained, "dataset_dir": images, "output_dir": tmp_path}
    succeed(command("inference", **options, **SMALL), launcher=FRESH)
    for image in images.iterdir():
        expected = nib.load(image)
        mask = nib.load(tmp_path / image.name.replace(".nii.gz", "_seg.nii.gz"))
        assert mask.shape == expected.shape
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
        assert set(np.unique(mask.dataobj)) <= {0, 1, 2}


def test_evaluation_writes_tables(trained: Path, dataset: Path, tmp_path: Path):
    options = {"bundle_root": trained, "dataset_dir": dataset, "output_dir": tmp_path}
    succeed(command(["train", "evaluate"], **options, **SMALL), launcher=FRESH)
    metrics = (tmp_path / "metrics.csv").read_text()
    for name in ("val_mean_dice", "val_mean_iou", "val_recall_class_1", "val_recall_class_2"):
        assert name in metrics
    assert len((tmp_path / "val_dice_raw.csv").read_text().splitlines()) == 2  # one test case


@pytest.mark.parametrize(
    ("name", "channels", "classes", "poolings"),
    [
        (None, 1, 3, [4, 5, 5]),
        ("lung_tumor_ct", 1, 2, [4, 5, 5]),
        ("multi_organ_ct", 1, 14, [3, 5, 5]),
        ("brain_tumor_mr", 4, 4, [5, 5, 5]),
        ("pulmonary_circulation_ct", 1, 4, [4, 5, 5]),
    ],
)
@pytest.mark.parametrize("config", ["train", "inference"])
def test_plans_of_the_papers_data_sets(
    config: str, name: str | None, channels: int, classes: int, poolings: list[int]
):
    """Table 2's poolings per axis, z first, and patches that they divide."""
    parsed = parser(BUNDLE, config)
    if name is not None:
        parsed.read_config([str(BUNDLE / f"configs/{file}.json") for file in (config, name)])
    planned = parsed["network_def"]
    strides = np.array({**planned.get("default", {}), **planned}["strides"])
    assert np.log2(strides).sum(0)[::-1].tolist() == poolings
    patch_size = parsed.get_parsed_content("patch_size")
    assert not (np.array(patch_size) % strides.prod(0)).any()
    network = parsed.get_parsed_content("network_def")
    assert network.stem.conv.in_channels == channels
    assert network.heads[-1].out_channels == classes
    image = torch.linspace(-2000, 2000, channels * 64).reshape(channels, 4, 4, 4)
    normalised = parsed.get_parsed_content("intensity")({"image": image})["image"]
    assert torch.isfinite(normalised).all()
    assert normalised.min() < -1 < 1 < normalised.max()


@pytest.mark.slow
def test_brain_tumours_in_four_channels(tmp_path: Path):
    data, generator = tmp_path / "data", np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (data / folder).mkdir(parents=True)
    for i in range(5):
        label = generator.choice([0, 1, 2, 4], (32, 32, 16)).astype(np.uint8)
        image = generator.normal(100 * label[..., None] + 50, 20, (32, 32, 16, 4))
        for folder, values in (("imagesTr", image.astype(np.float32)), ("labelsTr", label)):
            nib.save(nib.Nifti1Image(values, np.diag([6, 6, 8, 1])), data / folder / f"{i}.nii.gz")
    root = tmp_path / "root"
    options = {"bundle_root": root, "dataset_dir": data, "split": [3, 1, 1]}
    small = {"validate#dataset#cache_num": 0, "train#dataset#cache_num": 0, **SHORT}
    succeed(command(["train", "brain_tumor_mr"], **options, **small))
    files = ["train", "evaluate", "brain_tumor_mr", "evaluate_brain_tumor_regions"]
    succeed(command(files, **options, **SMALL))
    (_, scores) = (root / "eval/val_dice_raw.csv").read_text().splitlines()
    assert len(scores.split(",")) == 1 + 3 + 1  # the whole tumour, its core, what enhances; mean
    rows = (root / "eval/cases.csv").read_text().splitlines()[1:]
    names = ["whole tumour", "tumour core", "enhancing tumour"]
    assert [row.split(",")[2] for row in rows] == names
    options["dataset_dir"] = data / "imagesTr"
    del options["split"]
    succeed(command(["inference", "brain_tumor_mr"], **options, **SMALL))
    assert nib.load(root / "eval/0_seg.nii.gz").shape == (32, 32, 16)


@pytest.mark.slow
def test_plan_of_nnunet(dataset: Path, tmp_path: Path):
    """A file after train.json; evaluation and inference have it from the weights."""
    pytest.importorskip("nnunetv2", reason="needs the extra: plan")
    plan = tmp_path / "plan.json"
    planned = write_plan(BUNDLE, dataset, plan).overrides
    options = {"bundle_root": tmp_path, "dataset_dir": dataset}

    def configs(*names: str) -> list[str]:
        files = [str(plan if name == "plan" else BUNDLE / f"configs/{name}.json") for name in names]
        return ["run", "--config_file", str(files)]

    succeed(
        [
            *configs("train", "plan"),
            *running.overrides(options | {"max_epochs": 1, "epoch_length": 2}),
        ]
    )
    weights = torch.load(tmp_path / "models/model.pt", weights_only=True)
    widths = [weights[f"encoder.{i}.block.conv1.conv.weight"].shape[0] for i in range(3)]
    assert widths == planned["network_def#features"][:3]
    succeed([*configs("train", "evaluate"), *running.overrides(options)])
    assert "val_recall_class_2" in (tmp_path / "eval/metrics.csv").read_text()
    succeed([*configs("inference"), *running.overrides(options)])
    assert len(list((tmp_path / "eval").glob("*_seg.nii.gz"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "ablation",
    [
        {"network_def": "SegResNet"},
        {"network_def#layers": [None, None, None]},
        {"network_def#layers": [2, "residual", "mamba"], "loss#loss#penalties": "equal"},
        {"network_def#deep_supervision": False, "loss#loss#lambda_tversky": 0},
    ],
    ids=["SegResNet", "baseline", "orders", "single"],
)
def test_ablations_and_comparisons(dataset: Path, tmp_path: Path, ablation: dict):
    options = SHORT | ablation
    if "network_def" in ablation:
        options = {key: value for key, value in SHORT.items() if "network_def" not in key}
        options["network_def"] = {
            "_target_": "SegResNet",
            "spatial_dims": 3,
            "in_channels": "@in_channels",
            "out_channels": "@num_classes",
        }
    succeed(command("train", bundle_root=tmp_path, dataset_dir=dataset, **options))
    weights = torch.load(tmp_path / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(x).all() for x in weights.values())


@pytest.mark.slow
def test_two_processes(dataset: Path, tmp_path: Path):
    options = SHORT | {"split": [2, 1, 1], "batch_size": 1, "device": "cpu"}
    output = succeed(
        command(["train", "multi_gpu_train"], bundle_root=tmp_path, dataset_dir=dataset, **options),
        launcher=["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29543", "-m"],
    )
    assert output.count("INFO Epoch 1 of 1 in ") == 1  # one process of the two reports
    assert "stem.conv.weight" in torch.load(tmp_path / "models/model.pt", weights_only=True)


@pytest.mark.slow
def test_export_of_monai(trained: Path, tmp_path: Path):
    sizes = {name.removeprefix("network_def#"): x for name, x in SMALL.items() if "#" in name}
    network, checkpoint = MambaClinix(1, 3, **sizes), trained / "models/model.pt"
    check_export_of_monai(tmp_path, BUNDLE, checkpoint, SMALL, network, 24, 16, 9)
