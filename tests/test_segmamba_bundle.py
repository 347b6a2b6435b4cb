"""The SegMamba bundle, run as users run it, with a smaller network than its own."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor, nn

from common.checkpoints import load_settings
from common.cli.checkpoints import convert
from common.errors import InputError
from common.networks import SegMamba

from . import running
from .conftest import REPOSITORY, GoldenCase
from .running import FRESH, check_export_of_monai, succeed
from .test_released_recipes import configured

BUNDLE = REPOSITORY / "bundles/brain_tumor_mr_segmamba_segmentation"
NETWORK: dict[str, Any] = {
    "depths": [1, 1, 1, 1],
    "features": [4, 4, 8, 8],
    "hidden_size": 8,
}
SMALL: dict[str, Any] = {f"network_def#{name}": x for name, x in NETWORK.items()}
SMALL |= {"patch_size": [64, 32, 32]}
SHORT = SMALL | {"train#trainer#max_epochs": 1, "epoch_length": 2}
SIZE = (40, 44, 36)
BRAIN = (slice(4, 36), slice(6, 40), slice(5, 32))
SEQUENCES = ("t2f", "t1n", "t1c", "t2w")  # FLAIR, T1, T1 with contrast, T2
REGIONS = ["whole tumour", "tumour core", "enhancing tumour"]

command = partial(running.command, BUNDLE)


def write_case(root: Path, number: int) -> dict[str, Any]:
    """One of BraTS 2023, in LPS: a tumour in a brain, of which a part of the box is not."""
    random = np.random.default_rng(number)
    brain, label = np.zeros(SIZE, bool), np.zeros(SIZE, np.uint8)
    brain[BRAIN] = True
    brain[4:10, 6:12, 5:10] = False
    label[12:26, 14:28, 10:24] = 2
    label[15:23, 17:25, 13:21] = 3
    label[17:21, 19:23, 15:19] = 1
    name = f"BraTS-GLI-{number:05d}-000"
    (root / name).mkdir(parents=True)

    def save(part: str, values: np.ndarray) -> str:
        file = root / name / f"{name}-{part}.nii.gz"
        nib.save(nib.Nifti1Image(values, np.diag([-1.0, -1.0, 1.0, 1.0])), file)
        return str(file)

    images = []
    for i, part in enumerate(SEQUENCES):
        values = random.normal(100 + 50 * i + 40 * label, 10, SIZE).clip(1) * brain
        images.append(save(part, values.astype(np.float32)))
    return {"image": images, "label": save("seg", label)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("brats") / "data"
    for number in range(5):
        write_case(root, number)
    return root


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    train = command("train", bundle_root=root, dataset_dir=dataset, **SHORT)
    output = succeed(train, cwd=root, launcher=FRESH)
    assert "val_dice_class_3" in output
    assert "val_dice_class_4" not in output
    return root


@pytest.mark.parametrize("config", ["train", "inference"])
def test_network_is_the_releases(config: str):
    parsed = configured(BUNDLE, config)
    with torch.device("meta"):
        network = parsed.get_parsed_content("network_def")
    assert sum(p.numel() for p in network.parameters()) == 67_416_196


def test_loss_is_cross_entropy_alone():
    logits, target = torch.randn(2, 4, 6, 5, 4), torch.randint(4, (2, 1, 6, 5, 4))
    loss = configured(BUNDLE, "train").get_parsed_content("loss")(logits, target)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target[:, 0]))


def test_images_are_cropped_and_then_normalised(tmp_path: Path):
    """By all that is in the box, as in the release; the labels that are evaluated stay whole."""
    case = write_case(tmp_path, 0)
    raw = np.stack([np.asarray(nib.load(file).dataobj) for file in case["image"]])
    box = raw[(slice(None), *BRAIN)]
    assert (box == 0).any()
    axes = (1, 2, 3)
    wanted = (box - box.mean(axes, keepdims=True)) / box.std(axes, keepdims=True)
    wanted = wanted[:, ::-1, ::-1]  # from LPS to RAS
    label = np.asarray(nib.load(case["label"]).dataobj)[None]
    chains = {
        "validation": configured(BUNDLE, "train").get_parsed_content("validate#preprocessing"),
        "evaluation": configured(BUNDLE, "train", "evaluate").get_parsed_content(
            "validate#preprocessing"
        ),
        "inference": configured(BUNDLE, "inference").get_parsed_content("preprocessing"),
    }
    for name, chain in chains.items():
        done = chain(dict(case))
        np.testing.assert_allclose(done["image"], wanted, rtol=1e-3, atol=1e-3, err_msg=name)
        if name == "validation":
            cropped = label[(slice(None), *BRAIN)][:, ::-1, ::-1]
            np.testing.assert_array_equal(done["label"], cropped)
        elif name == "evaluation":
            np.testing.assert_array_equal(done["label"], label)


@pytest.mark.parametrize("files", [["train"], ["train", "evaluate"]], ids=["training", "evaluated"])
@pytest.mark.parametrize("enhancing", [3, 4])
def test_regions_of_every_year(enhancing: int, files: list[str]):
    """4 enhances until 2021, 3 since 2023."""
    parsed = configured(BUNDLE, *files, members=["model.pt"])
    image = torch.arange(4 * 8.0).view(4, 2, 2, 2)
    label = torch.tensor([0, 1, 2, enhancing, 0, 0, 2, 1]).view(1, 2, 2, 2)
    check = parsed.get_parsed_content("train#preprocessing#transforms#2")
    checked = check({"image": MetaTensor(image), "label": MetaTensor(label)})["label"]
    chain = parsed.get_parsed_content("validate#postprocessing")
    if files == ["train"]:
        logits = 10 * F.one_hot(checked[0].long(), 4).movedim(-1, 0).float()
        done = chain({"pred": logits, "label": checked})
    else:  # before it is the way back to the file's grid
        done = chain.transforms[-1]({"pred": checked.clone(), "label": checked})
    assert done["label"].flatten(1).tolist() == [
        [0, 1, 1, 1, 0, 0, 1, 1],
        [0, 1, 0, 1, 0, 0, 0, 1],
        [0, 0, 0, 1, 0, 0, 0, 0],
    ]
    assert torch.equal(torch.as_tensor(done["pred"]).float(), done["label"].as_tensor().float())
    for name in ("key_metric#val_mean_dice", "additional_metrics#val_dice"):
        metric = parsed.get_parsed_content(f"validate#{name}").metric_fn
        assert metric.include_background


class Enhancing(nn.Module):
    """Sees class 3 everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        y[:, 3] = 1
        return y


@pytest.mark.parametrize("in_memory", [0, 2**28], ids=["by slabs", "at once"])
def test_masks_have_classes_on_the_grid_of_the_files(in_memory: int, tmp_path: Path):
    """Outside of what was cropped all is background."""
    write_case(tmp_path / "data", 0)
    parsed = configured(
        BUNDLE,
        "inference",
        dataset_dir=str(tmp_path / "data"),
        output_dir=str(tmp_path / "masks"),
        network_def={"_target_": f"{__name__}.Enhancing"},
        patch_size=[64, 32, 32],
        handlers=[],
        **{"postprocessing#transforms#0#in_memory": in_memory},
    )
    parsed.get_parsed_content("evaluator").run()
    (written,) = (tmp_path / "masks").rglob("*_seg.nii.gz")
    mask = nib.load(written)
    expected = np.zeros(SIZE)
    expected[BRAIN] = 3
    np.testing.assert_array_equal(mask.dataobj, expected)
    np.testing.assert_allclose(mask.affine, np.diag([-1, -1, 1, 1]))


def test_converted_weights_lie_as_in_the_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    case = GoldenCase("segmamba")
    where = [str(tmp_path / "theirs.pt"), "segmamba", str(tmp_path / "model.pt")]
    torch.save(case.state_dict, tmp_path / "theirs.pt")
    size = list(case.vectors["x"].shape[2:])
    plan: dict[str, Any] = {"spacing": [1, 1, 1], "patch_size": size, "intensity": "z-score"}
    for name in plan:
        given = {key: value for key, value in plan.items() if key != name}
        with pytest.raises(InputError, match=f"{name} is None; needed are"):
            convert(*where, **given)
    with pytest.raises(InputError, match=r"strides is .*, for which a checkpoint of segmamba like"):
        convert(*where, **plan, strides=[[1, 1, 1]] * 4)
    convert(*where, **plan)
    assert "T1 with contrast" not in capsys.readouterr().out  # it has two channels
    settings = load_settings(tmp_path / "model.pt")
    assert settings["axcodes"] == "SPL"
    described = {"depths", "features", "hidden_size"}
    assert {key: settings["network_def"][key] for key in described} == {
        "depths": case.arguments["depths"],
        "features": case.arguments["feat_size"],
        "hidden_size": case.arguments["hidden_size"],
    }
    inference = configured(BUNDLE, "inference", checkpoint=str(tmp_path / "model.pt"))
    assert inference.get_parsed_content("patch_size") == size
    normalizer = inference.get_parsed_content("intensity").normalizer
    assert (normalizer.nonzero, normalizer.channel_wise) == (False, True)
    network = inference.get_parsed_content("network")
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    network.load_state_dict(weights, strict=True)
    with torch.no_grad():
        logits = network.double().eval()(case.vectors["x"])
    assert (logits - case.vectors["y0"]).abs().max() <= case.tolerance

    first = "vit.downsample_layers.0.0.weight"
    four = dict(case.state_dict) | {first: case.state_dict[first].repeat(1, 2, 1, 1, 1)}
    torch.save(four, tmp_path / "theirs.pt")
    convert(*where, **plan)
    assert "reads BraTS as T2, FLAIR, T1 and T1 with contrast" in capsys.readouterr().out


@pytest.mark.slow
def test_training_leaves_weights_and_pictures(trained: Path):
    weights = torch.load(trained / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(x).all() for x in weights.values())
    assert weights["encoder.0.down.0.weight"].shape[1] == 4
    settings = load_settings(trained / "models/model.pt")
    assert settings["regions"] == [[1, 2, 3], [1, 3], [3]]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    images = set()
    for file in (trained / "eval").glob("events*"):
        images |= set(EventAccumulator(str(file)).Reload().Tags()["images"])
    assert any("output" in name for name in images)


@pytest.mark.slow
def test_inference_has_a_mask_for_each_case(trained: Path, dataset: Path, tmp_path: Path):
    options = {"bundle_root": trained, "dataset_dir": dataset, "output_dir": tmp_path}
    succeed(command("inference", **options), launcher=FRESH)
    masks = sorted(tmp_path.rglob("*_seg.nii.gz"))
    assert [mask.parent.name for mask in masks] == sorted(path.name for path in dataset.iterdir())
    for mask in map(nib.load, masks):
        assert mask.shape == SIZE
        assert set(np.unique(mask.dataobj)) <= {0, 1, 2, 3}


@pytest.mark.slow
def test_evaluation_is_of_regions(trained: Path, dataset: Path, tmp_path: Path):
    options = {"bundle_root": trained, "dataset_dir": dataset, "output_dir": tmp_path}
    succeed(command(["train", "evaluate"], **options), launcher=FRESH)
    header, *scores = (tmp_path / "val_dice_raw.csv").read_text().splitlines()
    assert header == "filename,class_1,class_2,class_3,mean"
    assert len(scores) == 1  # one test case of five
    with open(tmp_path / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == REGIONS
    volumes = [float(row["reference_ml"]) for row in rows]
    assert volumes == pytest.approx([14**3 / 1000, 8**3 / 1000, (8**3 - 4**3) / 1000])


@pytest.mark.slow
def test_regions_that_were_chosen_travel(dataset: Path, tmp_path: Path):
    """The whole tumour as one class: evaluation is not told again."""
    chosen = {"num_classes": 2, "label_map": {0: 0, 1: 1, 2: 1, 3: 1}, "regions": [[1]]}
    options = {"bundle_root": tmp_path, "dataset_dir": dataset}
    succeed(command("train", **options, **SHORT, **chosen))
    succeed(command(["train", "evaluate"], **options))
    with open(tmp_path / "eval/cases.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["reference_ml"]) == pytest.approx(14**3 / 1000)


@pytest.mark.slow
def test_two_processes(dataset: Path, tmp_path: Path):
    options = SHORT | {"split": [2, 2, 1], "batch_size": 1, "device": "cpu"}
    output = succeed(
        command(["train", "multi_gpu_train"], bundle_root=tmp_path, dataset_dir=dataset, **options),
        launcher=["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"],
    )
    assert output.count("INFO Epoch 1 of 1 in ") == 1  # one process of the two reports
    assert "head.weight" in torch.load(tmp_path / "models/model.pt", weights_only=True)


@pytest.mark.slow
def test_export_of_monai(trained: Path, tmp_path: Path):
    network, checkpoint = SegMamba(4, 4, **NETWORK), trained / "models/model.pt"
    check_export_of_monai(
        *(tmp_path, BUNDLE, checkpoint, SMALL, network, 32, 64, 32),
        channels=4,
    )
