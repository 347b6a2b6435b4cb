"""The Codebook Mamba U-Net's bundle, run as users run it."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from common.data.phantom import write_phantom
from common.evaluation import evaluate
from common.evaluation.measures import METRICS
from common.losses import DiceBCELoss, InclusionLoss
from common.networks import CodebookMambaUNet

from . import preloaded, running
from .conftest import REPOSITORY
from .running import FRESH, check_export_of_monai, overrides, succeed

BUNDLE = REPOSITORY / "bundles/liver_tumor_ct_codebook_mamba_segmentation"
NETWORK = {"widths": [4, 4, 8, 8], "prototype_dim": 8, "num_prototypes": 8}
SMALL = {f"network_def#{name}": value for name, value in NETWORK.items()}
SMALL |= {"patch_size": [32, 32, 32], "slice_spacing": 6}
SHORT = SMALL | {"max_epochs": 1}

command = partial(running.command, BUNDLE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=6, seed=1, size=48)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    train = command("train", bundle_root=root, dataset_dir=dataset, **SHORT)
    output = succeed(train, cwd=root, launcher=FRESH)
    assert "val_dice_class_2" in output
    assert "class_3" not in output
    return root


def test_tensorboard_tells_of_the_prototypes(trained: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, list] = {}
    for folder in {file.parent for file in (trained / "eval").rglob("events.out.*")}:
        events = EventAccumulator(str(folder)).Reload()
        for kind, of in (("scalars", events.Scalars), ("images", events.Images)):
            found |= {tag: of(tag) for tag in events.Tags()[kind] if tag.startswith("codebook_")}
    assert found.keys() == {"codebook_perplexity", "codebook_dead", "codebook_prototypes"}
    assert [event.step for event in found["codebook_prototypes"]] == [1]
    (perplexity,), (dead,) = found["codebook_perplexity"], found["codebook_dead"]
    assert 1 <= perplexity.value <= 8 - dead.value <= 8


def test_tumour_within_the_liver_on_every_grid(trained: Path, dataset: Path, tmp_path: Path):
    images = dataset / "imagesTr"
    options = {"bundle_root": trained, "dataset_dir": images, **SMALL}
    succeed(command("inference", output_dir=tmp_path / "map", **options), launcher=FRESH)
    files = sorted(images.iterdir())
    assert len({nib.aff2axcodes(nib.load(image).affine) for image in files}) > 1
    values = set()
    for image in files:
        expected = nib.load(image)
        mask = nib.load(tmp_path / "map" / image.name.replace(".nii.gz", "_seg.nii.gz"))
        assert mask.shape == expected.shape
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
        assert mask.get_data_dtype() == np.uint8
        values |= set(np.unique(mask.dataobj))
    assert values <= {0, 1, 2}
    assert 1 in values


@pytest.mark.slow
def test_evaluation_is_that_of_the_masks(trained: Path, dataset: Path, tmp_path: Path):
    """Of the whole liver and the tumour, as regions in memory or as values in files."""
    options = {"bundle_root": trained, "dataset_dir": dataset, "output_dir": tmp_path / "eval"}
    succeed(command(["train", "evaluate"], **options, **SHORT), launcher=FRESH)
    with open(tmp_path / "eval/metrics.csv", newline="") as file:
        metrics = {name: float(value) for name, value in csv.reader(file)}
    for name in METRICS:
        assert {f"val_{name}_class_1", f"val_{name}_class_2"} <= metrics.keys()
    assert metrics["val_voe_class_1"] == pytest.approx(1 - metrics["val_iou_class_1"])
    assert 0 < metrics["val_asd_class_1"] < metrics["val_hd95_class_1"] < 500
    header, *rows = (tmp_path / "eval/cases.csv").read_text().splitlines()
    assert len(rows) == 2  # two classes of one test case of six

    case = rows[0].split(",")[0]
    image = dataset / f"imagesTr/{case}.nii.gz"
    options |= {"dataset_dir": image, "output_dir": tmp_path / "masks"}
    succeed(command("inference", **options, **SMALL))
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / image.name).symlink_to(dataset / "labelsTr" / image.name)
    evaluate(tmp_path / "masks", labels, tmp_path / "out", {"liver": [1, 2], "tumour": 2})
    assert (tmp_path / "out/cases.csv").read_text().splitlines() == [header, *rows]


@pytest.mark.parametrize("clip", [True, False])
def test_tumour_outside_the_liver_with_and_without_clipping(clip: bool, tmp_path: Path):
    """Clipped, it is lost before anything is measured, whatever the inclusion loss did."""
    file = tmp_path / "label.nii.gz"
    liver = np.broadcast_to(np.array([1, 1, 0, 0], np.uint8)[:, None, None], (4, 2, 2))
    nib.save(nib.Nifti1Image(liver, np.eye(4)), file)
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / f"configs/{name}.json") for name in ("train", "evaluate")])
    parser.update({"device": "cpu", "in_plane_factor": 1, "clip_tumor": clip})
    item = parser.get_parsed_content("validate#preprocessing")({"image": file, "label": file})
    logits = torch.tensor([[9.0, 9, -9, -9], [-9, 9, 9, -9]])
    item["pred"] = logits[..., None, None].expand(2, 4, 2, 2)
    done = parser.get_parsed_content("validate#postprocessing")(item)
    assert done["pred"][..., 0, 0].tolist() == [[1, 1, 0, 0], [0, 1, int(not clip), 0]]
    assert done["label"][..., 0, 0].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]


def test_table_1_has_no_inclusion_loss():
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs/train.json"))
    logits, target = torch.randn(1, 2, 4, 4, 4), torch.zeros(1, 2, 4, 4, 4)
    codebook = torch.tensor([3.0])
    whole = parser.get_parsed_content("loss")((logits, codebook), target)
    parser.update({"loss#beta": 0})
    without = parser.get_parsed_content("loss")((logits, codebook), target)
    torch.testing.assert_close(without, DiceBCELoss()(logits, target) + 0.4 * 3)
    torch.testing.assert_close(whole, without + 0.6 * InclusionLoss()(logits))


@pytest.mark.slow
def test_prototypes_of_the_bundle(trained: Path, dataset: Path, tmp_path: Path):
    """The verb reads the bundle's inference.json."""
    done = preloaded.run(
        "common",
        "codebook",
        *["--checkpoint", trained / "models/model.pt", "--images", dataset / "imagesTr"],
        *["--output", tmp_path, "--config_file", BUNDLE / "configs/inference.json"],
        *overrides(SMALL),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "of 8 prototypes" in done.stdout
    assert (tmp_path / "prototypes.png").is_file()
    for image in (dataset / "imagesTr").iterdir():
        codes = nib.load(tmp_path / image.name.replace(".nii.gz", "_codes.nii.gz"))
        assert codes.shape == nib.load(image).shape


@pytest.mark.slow
@pytest.mark.parametrize(
    "ablations",
    [
        {"network_def#codebook": False, "loss#beta": 0, "network_def#mixer": "attention"},
        {"network_def#multi_scale": False, "network_def#mixer": "identity", "loss#alpha": 0},
    ],
    ids=["no codebook", "codebook alone"],
)
def test_ablations_by_an_override_each(dataset: Path, tmp_path: Path, ablations: dict):
    succeed(command("train", bundle_root=tmp_path, dataset_dir=dataset, **(SHORT | ablations)))
    weights = torch.load(tmp_path / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(x).all() for x in weights.values())
    assert ("codebook.prototypes" in weights) == ("network_def#codebook" not in ablations)
    mixers = {name.split(".")[1] for name in weights if name.startswith("mixer.")}
    assert mixers == ({"attention"} if "network_def#codebook" in ablations else set())


@pytest.mark.slow
def test_a_network_of_monai(dataset: Path, tmp_path: Path):
    other = {"_target_": "SegResNet", "in_channels": "@in_channels", "init_filters": 8}
    other["out_channels"] = "$@num_classes - 1"
    options = {"bundle_root": tmp_path, "dataset_dir": dataset, "network_def": other}
    options |= {"patch_size": [32, 32, 32], "slice_spacing": 6, "max_epochs": 1}
    succeed(command("train", **options))
    succeed(command("inference", **options))
    assert list((tmp_path / "eval").glob("*_seg.nii.gz"))


@pytest.mark.slow
def test_same_seed_same_training(trained: Path, dataset: Path, tmp_path: Path):
    succeed(command("train", bundle_root=tmp_path, dataset_dir=dataset, **SHORT))
    first, again = (
        torch.load(root / "models/model.pt", weights_only=True) for root in (trained, tmp_path)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.slow
def test_two_processes(dataset: Path, tmp_path: Path):
    options = {"bundle_root": tmp_path, "dataset_dir": dataset, "device": "cpu", "split": [2, 2, 1]}
    succeed(
        command(["train", "multi_gpu_train"], **options, **SHORT),
        launcher=["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29547", "-m"],
    )
    weights = torch.load(tmp_path / "models/model.pt", weights_only=True)
    assert weights["codebook.initialised"]


@pytest.mark.slow
def test_export_of_monai(trained: Path, tmp_path: Path):
    network, checkpoint = CodebookMambaUNet(1, **NETWORK), trained / "models/model.pt"
    check_export_of_monai(tmp_path, BUNDLE, checkpoint, SMALL, network, 32, 40, 17)
