"""The LCMambaNet bundle, run as users run it: slices of volumes in, volumes out."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from common.data.phantom import write_phantom
from common.networks import LCMambaNet, lcmambanet

from . import running
from .conftest import REPOSITORY
from .running import FRESH, check_export_of_monai, sentence, succeed

BUNDLE = REPOSITORY / "bundles/liver_tumor_ct_lcmambanet_segmentation"
SMALL = {"patch_size": [32, 32]}
SHORT = SMALL | {
    "max_epochs": 1,
    "val_interval": 1,
    "split": [4, 1, 1],
    "batch_size": 2,
    "slices_per_case": 2,
}

command = partial(running.command, BUNDLE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=6, seed=1, size=40)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    train = command("train", bundle_root=root, dataset_dir=dataset, **SHORT)
    output = succeed(train, cwd=root, launcher=FRESH)
    assert "val_dice_class_2" in output
    assert output.count("No pretrained encoder is given: training starts from scratch.") == 1
    return root


@pytest.mark.slow
def test_whole_volumes_on_their_own_grid(trained: Path, dataset: Path, tmp_path: Path):
    images = dataset / "imagesTr"
    options = {"bundle_root": trained, "dataset_dir": images, "output_dir": tmp_path}
    succeed(command("inference", **options, **SMALL), launcher=FRESH)
    for image in images.iterdir():
        expected = nib.load(image)
        mask = nib.load(tmp_path / image.name.replace(".nii.gz", "_seg.nii.gz"))
        assert mask.shape == expected.shape
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
        assert set(np.unique(mask.dataobj)) <= {0, 1, 2}


def test_one_channel_is_two_of_which_the_backgrounds_is_0(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The paper's task: tumour against the rest, by a sigmoid. A softmax of 1 was 1 everywhere."""
    monkeypatch.setattr(lcmambanet, "_DEPTHS", {"T": (1, 1, 1, 1)})
    torch.manual_seed(0)
    single = LCMambaNet("T", 1, 1).state_dict()
    pair = {
        name: torch.cat([torch.zeros_like(x), x]) if "head" in name else x
        for name, x in single.items()
    }
    image = min((dataset / "imagesTr").iterdir())
    label = dataset / "labelsTr" / image.name
    tables, masks = [], []
    for channels, weights in ((1, single), (2, pair)):
        folder = tmp_path / str(channels)
        folder.mkdir()
        torch.save(weights, folder / "model.pt")
        options = SMALL | {
            "device": "cpu",
            "checkpoint": str(folder / "model.pt"),
            "output_dir": str(folder),
            "network_def#out_channels": channels,
        }
        parser = parsed("inference", "tumor", datalist=[str(image)], **options)
        parser.get_parsed_content("evaluator").run()
        mask = nib.load(folder / image.name.replace(".nii.gz", "_seg.nii.gz"))
        masks.append(np.asarray(mask.dataobj))
        case = {"validate#dataset#data": [{"image": str(image), "label": str(label)}]}
        parser = parsed("train", "evaluate", "tumor", **(options | case))
        evaluator = parser.get_parsed_content("validate#evaluator")
        evaluator.run()
        tables.append(evaluator.state.metrics)
    assert set(np.unique(masks[0])) == {0, 1}
    np.testing.assert_array_equal(*masks)
    assert tables[0] == pytest.approx(tables[1])

    tumour = np.asarray(nib.load(label).dataobj) == 2
    found = masks[0] == 1
    right = (found & tumour).sum()
    assert tables[0]["val_recall_class_1"] == pytest.approx(right / tumour.sum())
    assert tables[0]["val_precision_class_1"] == pytest.approx(right / found.sum())
    f2 = 5 * right / (4 * tumour.sum() + found.sum())
    assert tables[0]["val_f2_class_1"] == pytest.approx(f2)
    assert tables[0]["val_hd95_class_1"] > 0


def parsed(*configs: str, **options: object) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(BUNDLE / f"configs/{name}.json") for name in configs])
    parser.update(options)
    return parser


@pytest.mark.slow
def test_the_papers_tumours_by_one_file(dataset: Path, tmp_path: Path):
    """Trained, evaluated, segmented and exported with one channel, as the checkpoint says."""
    options = {"bundle_root": tmp_path, "dataset_dir": dataset}
    succeed(command(["train", "tumor"], **options, **SHORT))
    checkpoint = tmp_path / "models/model.pt"
    assert torch.load(checkpoint, weights_only=True)["coarse_head.bias"].shape == (1,)
    succeed(command(["train", "evaluate"], **options, **SHORT))
    metrics = (tmp_path / "eval/metrics.csv").read_text()
    for name in ("dice", "iou", "recall", "precision", "f2", "hd95"):
        assert f"val_{name}_class_1," in metrics
        assert f"val_{name}_class_2" not in metrics
    images = options | {"dataset_dir": dataset / "imagesTr", "output_dir": tmp_path / "masks"}
    succeed(command("inference", save_probabilities=True, **images))
    for mask in (tmp_path / "masks").glob("*_seg.nii.gz"):
        assert set(np.unique(nib.load(mask).dataobj)) <= {0, 1}
    small = SMALL | {"network_def#out_channels": 1}
    check_export_of_monai(tmp_path, BUNDLE, checkpoint, small, LCMambaNet("T", 1, 1), 40, 33)


@pytest.mark.slow
def test_evaluation_writes_tables(trained: Path, dataset: Path, tmp_path: Path):
    options = {"bundle_root": trained, "dataset_dir": dataset, "output_dir": tmp_path}
    succeed(command(["train", "evaluate"], **options, **SHORT), launcher=FRESH)
    assert "val_dice_class_1" in (tmp_path / "metrics.csv").read_text()
    assert len((tmp_path / "val_dice_raw.csv").read_text().splitlines()) == 2  # one test case


@pytest.mark.slow
@pytest.mark.parametrize(
    "ablations",
    [
        {"network_def#extra_blocks": 1, "fold": 2, "augmentation": "none"},
        {
            "network_def#attention": "reverse",
            "slices": 3,
            "augmentation": "full",
            "boundary_weight": 0,
        },
    ],
    ids=["more", "less"],
)
def test_ablations_by_an_override_each(dataset: Path, tmp_path: Path, ablations: dict):
    options = {"bundle_root": tmp_path, "dataset_dir": dataset}
    succeed(command("train", **options, **(SHORT | ablations)))
    weights = torch.load(tmp_path / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(x).all() for x in weights.values())
    assert weights["encoder.patch_embedding.conv1.weight"].shape[1] == ablations.get("slices", 1)
    assert any("refinements.0.block1" in name for name in weights) == ("fold" in ablations)


@pytest.mark.slow
def test_same_seed_same_training(trained: Path, dataset: Path, tmp_path: Path):
    succeed(command("train", bundle_root=tmp_path, dataset_dir=dataset, **SHORT))
    first, again = (
        torch.load(root / "models/model.pt", weights_only=True) for root in (trained, tmp_path)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.slow
def test_mr_in_its_published_split(dataset: Path, tmp_path: Path):
    """CirrMRI600+'s folders; MR intensities have no unit."""
    data = tmp_path / "Cirrhosis_T2_3D"
    for part, numbers in (("train", (0, 1)), ("valid", (2,)), ("test", (3,))):
        for kind, source in (("images", "imagesTr"), ("masks", "labelsTr")):
            folder = data / f"{part}_{kind}"
            folder.mkdir(parents=True)
            for i in numbers:
                volume = nib.load(dataset / source / f"liver_{i:03d}.nii.gz")
                values = np.asarray(volume.dataobj)
                values = (values > 0) if kind == "masks" else 40 * np.exp(values / 500)
                dtype = np.uint8 if kind == "masks" else np.float32
                nib.save(
                    nib.Nifti1Image(values.astype(dtype), volume.affine), folder / f"{i}.nii.gz"
                )
    root = tmp_path / "root"
    options = {"bundle_root": root, "dataset_dir": data}
    succeed(command(["train", "mr"], **options, **SHORT))
    succeed(command(["train", "evaluate", "mr"], **options, **SHORT))
    tested = (root / "eval/val_dice_raw.csv").read_text().splitlines()[1:]
    assert [Path(row.split(",")[0]).parent.name for row in tested] == ["test_images"]
    scans = options | {"dataset_dir": data / "test_images"}
    succeed(command(["inference", "mr"], **scans, **SMALL))
    assert (root / "eval/3_seg.nii.gz").is_file()


@pytest.mark.slow
def test_published_encoder(dataset: Path, tmp_path: Path):
    options = {"bundle_root": tmp_path, "dataset_dir": dataset, **SHORT}
    torch.save({"model": {"patch_embed.0.weight": torch.zeros(48, 3, 3, 3)}}, tmp_path / "vssm.pth")
    output = succeed(command("train", encoder_weights=tmp_path / "vssm.pth", **options))
    assert f"Loaded 1 parameters of the encoder from {tmp_path}/vssm.pth" in output
    shutil.copy(tmp_path / "models/model.pt", tmp_path / "other.pt")
    message = sentence(command("train", encoder_weights=tmp_path / "other.pt", **options))
    assert "which VMamba's released code has not" in message


@pytest.mark.slow
def test_export_of_monai(trained: Path, tmp_path: Path):
    checkpoint = trained / "models/model.pt"
    check_export_of_monai(tmp_path, BUNDLE, checkpoint, SMALL, LCMambaNet("T", 1, 3), 40, 33)
