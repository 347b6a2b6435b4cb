"""The liver bundle, run as users run it: by the command line of monai.bundle."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.data.phantom import write_phantom
from common.networks import LightMUNet

from . import running
from .conftest import REPOSITORY, shared
from .running import FRESH, check_export_of_monai, overrides, sentence, succeed

BUNDLE = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation"
SMALL = {
    "network_def#init_filters": 8,
    "network_def#blocks_down": [1, 1],
    "network_def#blocks_up": [1],
    "spacing": [6, 6, 8],
    "patch_size": [32, 32, 16],
    "epoch_length": 2,
}


command = partial(running.command, BUNDLE)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=6, seed=1, size=48)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle root after a training of one epoch, run from outside the bundle's folder."""
    root = tmp_path_factory.mktemp("trained")
    output = succeed(
        command(
            "train",
            bundle_root=root,
            dataset_dir=dataset,
            **{"train#trainer#max_epochs": 1},
            **SMALL,
        ),
        cwd=root,
        launcher=FRESH,
    )
    assert "val_dice_class_1" in output
    assert "val_iou_class_2" in output
    return root


def test_training_leaves_weights_and_tensorboard(trained: Path):
    weights = torch.load(trained / "models/model.pt", weights_only=True)
    assert all(torch.isfinite(x).all() for x in weights.values())
    names = {file.name for file in (trained / "models").iterdir()}
    assert names == {"model.pt", "settings.json", "last_epoch.pt", ".training.lock"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars, images = set(), set()
    for file in (trained / "eval").glob("events*"):
        events = EventAccumulator(str(file))
        events.Reload()
        scalars |= set(events.Tags()["scalars"])
        images |= set(events.Tags()["images"])
    assert scalars >= {"train_loss", "val_mean_dice", "val_mean_iou", "val_dice_class_2"}
    assert any("output" in name for name in images)


def test_inference_restores_every_grid(trained: Path, dataset: Path, tmp_path: Path):
    succeed(
        command(
            "inference",
            bundle_root=trained,
            dataset_dir=dataset / "imagesTr",
            output_dir=tmp_path,
            **SMALL,
        ),
        launcher=FRESH,
    )
    images = sorted((dataset / "imagesTr").iterdir())
    assert len({nib.aff2axcodes(nib.load(image).affine) for image in images}) > 1
    for image in images:
        expected = nib.load(image)
        mask = nib.load(tmp_path / image.name.replace(".nii.gz", "_seg.nii.gz"))
        assert mask.shape == expected.shape
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
        assert mask.get_data_dtype() == np.uint8
        assert set(np.unique(mask.dataobj)) <= {0, 1, 2}


def test_evaluator_alone_as_docs_slicer_has_it(trained: Path, dataset: Path, tmp_path: Path):
    """The page's Python, but for Slicer's own functions; in a process with another folder."""
    page = (REPOSITORY / "docs/slicer.md").read_text()
    (code,) = re.findall(r"```python\n(from monai.*?)```", page, re.S)
    scan = tmp_path / "scan.nii.gz"
    shutil.copy(min((dataset / "imagesTr").iterdir()), scan)
    paths = {"/path/to/scan.nii.gz": scan, "/path/to/masks": tmp_path}
    paths["/path/to/bundles/liver_ct_lightm_unet_segmentation"] = tmp_path / "bundle"
    shutil.copytree(BUNDLE / "configs", tmp_path / "bundle/configs")
    shutil.copytree(trained / "models", tmp_path / "bundle/models")
    for path, ours in paths.items():
        code = code.replace(path, str(ours))
    small = "".join(f"parser[{name!r}] = {value}\n" for name, value in SMALL.items())
    run = 'parser.get_parsed_content("evaluator").run()'
    assert run in code
    code = code.replace(run, small + run).replace("slicer.util.loadSegmentation", "print")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    mask = nib.load(done.stdout.splitlines()[-1])
    assert mask.shape == nib.load(scan).shape


def test_evaluation_writes_tables(trained: Path, dataset: Path, tmp_path: Path):
    succeed(
        command(
            ["train", "evaluate"],
            bundle_root=trained,
            dataset_dir=dataset,
            output_dir=tmp_path,
            **SMALL,
        ),
        launcher=FRESH,
    )
    assert "val_dice_class_1" in (tmp_path / "metrics.csv").read_text()
    header, *rows = (tmp_path / "val_dice_raw.csv").read_text().splitlines()
    assert header == "filename,class_1,class_2,mean"
    assert len(rows) == 1  # one test case of six


@pytest.mark.slow
def test_training_as_in_the_paper_travels(dataset: Path, tmp_path: Path):
    """Whole volumes resized: inference and evaluation do it, too, and are not told."""
    small = {id_: x for id_, x in SMALL.items() if id_ not in ("spacing", "epoch_length")}
    options = {"bundle_root": tmp_path, "dataset_dir": dataset}
    succeed(command(["train", "as_in_the_paper"], **options, **small, max_epochs=1))
    succeed(command("inference", **options | {"dataset_dir": dataset / "imagesTs"}))
    (image,) = (dataset / "imagesTs").iterdir()
    mask = nib.load(tmp_path / "eval" / image.name.replace(".nii.gz", "_seg.nii.gz"))
    assert mask.shape == nib.load(image).shape
    np.testing.assert_allclose(mask.affine, nib.load(image).affine, atol=1e-4)
    succeed(command(["train", "evaluate"], **options))
    scores = (tmp_path / "eval/val_dice_raw.csv").read_text().splitlines()
    assert len(scores) == 2  # one test case of six


@pytest.mark.slow
def test_from_the_bundles_own_folder(dataset: Path, tmp_path: Path):
    root = tmp_path / "bundle"
    root.mkdir()
    (root / "configs").symlink_to(BUNDLE / "configs")
    small = overrides(SMALL)
    data = ["--dataset_dir", str(dataset), "--train#trainer#max_epochs", "1"]
    succeed(["run", "--config_file", "configs/train.json", *data, *small], cwd=root)
    both = "['configs/train.json','configs/evaluate.json']"
    succeed(["run", "--config_file", both, *data[:2], *small], cwd=root)
    succeed(["run", "--config_file", "configs/inference.json", *data[:2], *small], cwd=root)
    assert (root / "models/model.pt").is_file()
    assert len(list((root / "eval").glob("*_seg.nii.gz"))) == 1


@pytest.mark.slow
def test_same_seed_same_training(trained: Path, dataset: Path, tmp_path: Path):
    options = {"dataset_dir": dataset, "train#trainer#max_epochs": 1, **SMALL}
    succeed(command("train", bundle_root=tmp_path, **options))
    succeed(command("train", bundle_root=tmp_path / "recomputed", checkpointing=True, **options))
    succeed(command("train", bundle_root=tmp_path / "other", seed=1, **options))
    first, again, recomputed, other = (
        torch.load(root / "models/model.pt", weights_only=True)
        for root in (trained, tmp_path, tmp_path / "recomputed", tmp_path / "other")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], recomputed[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
def test_two_processes(dataset: Path, tmp_path: Path):
    output = succeed(
        command(
            ["train", "multi_gpu_train"],
            bundle_root=tmp_path,
            dataset_dir=dataset,
            device="cpu",
            checkpointing=True,
            split=[2, 1, 1],  # each process needs a validation case
            **{"train#trainer#max_epochs": 1, "batch_size": 1},
            **SMALL,
        ),
        launcher=["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29541", "-m"],
    )
    assert output.count("INFO Epoch 1 of 1 in ") == 1  # one process of the two reports
    # The weights load in one process, without a prefix.
    names = torch.load(tmp_path / "models/model.pt", weights_only=True)
    assert "stem.depthwise.weight" in names


@pytest.mark.slow
def test_exports_and_checks_of_monai(trained: Path, tmp_path: Path):
    config = str(BUNDLE / "configs/inference.json")
    meta = str(BUNDLE / "configs/metadata.json")
    # With the schema already there, verify_metadata needs no network.
    schema = tmp_path / "schema.json"
    schema.write_bytes(shared("data/monai/meta_schema_20240725.json").read_bytes())
    verified = succeed(["verify_metadata", "--meta_file", meta, "--filepath", str(schema)])
    assert "metadata is verified with no error" in verified

    small = overrides(SMALL)
    files = ["--meta_file", meta, "--config_file", config]
    verified = succeed(["verify_net_in_out", "network_def", *files, "--n", "2", *small])
    assert "data shape of network is verified with no error" in verified

    network = LightMUNet(3, 1, 3, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
    checkpoint = trained / "models/model.pt"
    check_export_of_monai(tmp_path, BUNDLE, checkpoint, SMALL, network, 24, 16, 9)


def test_loads_from_elsewhere(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """monai.bundle.load, from a folder that is not the bundle's, gives the trained network."""
    from monai.bundle import load

    copy = tmp_path / "bundles" / BUNDLE.name
    copy.mkdir(parents=True)
    (copy / "configs").symlink_to(BUNDLE / "configs")
    (copy / "models").symlink_to(trained / "models")
    monkeypatch.chdir(tmp_path)
    override = {name.split("#")[1]: value for name, value in SMALL.items() if "network_def" in name}
    for kind in ("train", "inference"):
        network = load(
            BUNDLE.name, bundle_dir=tmp_path / "bundles", workflow_type=kind, net_override=override
        )
        expected = torch.load(trained / "models/model.pt", weights_only=True)
        assert all(torch.equal(x, expected[name]) for name, x in network.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundles"]


# What is wrong, as the value of --dataset_dir (made in tmp_path), and what the sentence says.
def _nan(path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(30, 30, 20)).astype(np.float32)
    values[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def _constant(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((30, 30, 20), np.int16), np.eye(4)), path)


def _flat(path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def _channels(path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(30, 30, 20, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def _truncated(path: Path) -> None:
    _nan(path)
    path.write_bytes(path.read_bytes()[:20_000])


def _folder(path: Path) -> None:
    path.mkdir()


def _twice(path: Path) -> None:
    path.mkdir()
    for name in ("a.nii", "a.nii.gz"):
        _nan(path / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (None, "There is no folder"),
        (_folder, "holds no image"),
        (_twice, "a.nii.gz are of one name; allowed is one of them"),
        (_nan, "has 1 voxels that are NaN"),
        (_constant, "has the value 0 everywhere"),
        (_flat, "is 2D, of size 30 x 30; allowed are 3D images"),
        (_channels, "has 2 channels; allowed are 1"),
        (_truncated, "cannot be read"),
    ],
    ids=["missing", "empty", "twice", "nan", "constant", "2D", "channels", "truncated"],
)
def test_bad_scans(trained: Path, tmp_path: Path, make, expected: str):
    scan = tmp_path / "scan.nii.gz"
    if make is not None:
        make(scan)
    out = tmp_path / "out"
    message = sentence(
        command("inference", bundle_root=trained, dataset_dir=scan, output_dir=out, **SMALL)
    )
    assert str(scan) in message
    assert expected in message
    assert not out.exists() or not list(out.iterdir())


@pytest.mark.slow
def test_bad_checkpoints_and_folders(trained: Path, dataset: Path, tmp_path: Path):
    options = {"bundle_root": trained, "dataset_dir": dataset, **SMALL}
    other = options | {"network_def#init_filters": 16, "output_dir": tmp_path / "a"}
    assert "is not of this LightMUNet" in sentence(command("inference", **other))
    missing = options | {"checkpoint": tmp_path / "none.pt", "output_dir": tmp_path / "a"}
    assert f"There is no checkpoint {tmp_path}/none.pt" in sentence(command("inference", **missing))
    (tmp_path / "file").touch()
    blocked = options | {"output_dir": tmp_path / "file"}
    for config in ("train", "inference"):
        assert "cannot be written to" in sentence(command(config, **blocked))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_training_data(dataset: Path, tmp_path: Path, workers: int):
    """Also from the worker processes of a DataLoader, and past MONAI's log of the traceback."""
    options = {"bundle_root": tmp_path / "root", "num_workers": workers, **SMALL}
    options |= {"train#trainer#max_epochs": 1, "cache_num": 0}
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    for i in range(8):
        name = f"c{i}.nii.gz"
        nib.save(nib.load(dataset / "imagesTr/liver_000.nii.gz"), tmp_path / "imagesTr" / name)
        label = nib.load(dataset / "labelsTr/liver_000.nii.gz")
        values = np.asarray(label.dataobj).astype(np.uint8)
        values[:2] = 9
        nib.save(nib.Nifti1Image(values, label.affine), tmp_path / "labelsTr" / name)
    message = sentence(command("train", dataset_dir=tmp_path, **options))
    assert "has the values 9; allowed are the classes 0 to 2" in message
    assert not (tmp_path / "root/models/model.pt").exists()

    (tmp_path / "labelsTr/c3.nii.gz").unlink()
    message = sentence(command("train", dataset_dir=tmp_path, **options))
    assert re.search(r"An image has no label: \S*imagesTr/c3\.nii\.gz;", message)


@pytest.mark.slow
def test_volume_smaller_than_the_patch(trained: Path, dataset: Path, tmp_path: Path):
    """It is no error: the volume is padded, in training with a word in the log."""
    large = SMALL | {"patch_size": [64, 64, 64], "bundle_root": tmp_path, "dataset_dir": dataset}
    output = succeed(command("train", **{"train#trainer#max_epochs": 1}, **large))
    assert "smaller than the patch 64 x 64 x 64: it is padded with zeros" in output
    succeed(command("inference", **large))
    assert len(list((tmp_path / "eval").glob("*_seg.nii.gz"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_paths_like_numbers_and_workers_as_on_other_systems(
    trained: Path, dataset: Path, tmp_path: Path, start: str
):
    (tmp_path / "2024").symlink_to(dataset)
    train = command(
        "train",
        bundle_root=trained,
        dataset_dir="2024",
        output_dir="a,b",
        ckpt_dir="1e3",
        num_workers=2,
        **{
            "train#dataloader#multiprocessing_context": start,
            "validate#dataloader#multiprocessing_context": start,
            "train#trainer#max_epochs": 1,
        },
        **SMALL,
    )
    succeed(train, cwd=tmp_path, launcher=FRESH)
    assert list((tmp_path / "a,b").glob("events*"))
    assert (tmp_path / "1e3/model.pt").is_file()
    infer = command(
        "inference",
        bundle_root=trained,
        dataset_dir="2024",
        output_dir="run#1",
        checkpoint="1e3/model.pt",
        **SMALL,
    )
    succeed(infer, cwd=tmp_path)
    assert len(list((tmp_path / "run#1").rglob("*_seg.nii.gz"))) == len(
        list((dataset / "imagesTs").iterdir())
    )
