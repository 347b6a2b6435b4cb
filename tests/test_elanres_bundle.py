"""The ELANRes-MSCA-UNet's bundle, both stages of it, run as users run it."""

from __future__ import annotations

import csv
import json
import subprocess
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.data.phantom import write_phantom
from common.networks import ELANResMSCAUNet, LiverTumourCascade

from . import preloaded, running
from .conftest import REPOSITORY
from .running import FRESH, check_export_of_monai, sentence, succeed
from .test_bundles import parser

BUNDLE = REPOSITORY / "bundles/liver_tumor_ct_elanres_msca_segmentation"
WIDTHS = [2, 2, 4, 4, 4]
SMALL: dict = {f"network_def#{name}#widths": WIDTHS for name in ("liver", "tumour")}
SMALL |= {"patch_size": [32, 32, 16], "in_plane_factor": 0.6, "margin": 2}
SHORT = SMALL | {"max_epochs": 1, "split": [3, 1, 2]}

command = partial(running.command, BUNDLE)


def network() -> ELANResMSCAUNet:
    return ELANResMSCAUNet(1, 1, widths=WIDTHS)


def weights(root: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(root / "models/model.pt", weights_only=True)
    return loaded


def of(stage: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x for name, x in state.items() if name.startswith(f"{stage}.")}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def sure(cascade: LiverTumourCascade, liver: float, tumour: float) -> dict[str, torch.Tensor]:
    """Weights that have seen a batch, with these logits everywhere."""
    for stage, logit in ((cascade.liver, liver), (cascade.tumour, tumour)):
        stage.num_batches_trained.fill_(1)
        torch.nn.init.zeros_(stage.heads[-1].weight)
        torch.nn.init.constant_(stage.heads[-1].bias, logit)
    return cascade.state_dict()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=6, seed=1, size=48)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A root after --stage liver, and one after --stage tumor from the first one's checkpoint."""
    roots = {stage: tmp_path_factory.mktemp(stage) for stage in ("liver", "tumor")}
    options = {"dataset_dir": dataset, **SHORT}
    train = command("train", bundle_root=roots["liver"], **options)
    said = succeed(train, cwd=roots["liver"], launcher=FRESH)
    assert "it will hold the tumor network untrained" in said
    assert "Weight of the coarser scales' losses: 0.4" in said
    assert "val_dice_class_1" in said
    assert "val_dice_class_2" not in said
    options |= {"stage": "tumor", "checkpoint": roots["liver"] / "models/model.pt"}
    said = succeed(command("train", bundle_root=roots["tumor"], **options))
    assert f"The liver network is kept as it is in {roots['liver']}/models/model.pt" in said
    assert "val_dice_class_2" in said
    assert "val_dice_class_1" not in said
    return roots


@pytest.mark.parametrize("part", ["train", "validate"])
@pytest.mark.parametrize("stage", ["liver", "tumor"])
def test_what_a_stage_is_shown(part: str, stage: str):
    """The second one the liver's box, as in inference, with the tumour as its label."""
    label = torch.zeros(1, 20, 20, 20)
    label[0, 5:15, 6:14, 7:13] = 1
    label[0, 8:10, 8:10, 8:10] = 2
    image = torch.arange(20.0**3).reshape(label.shape)
    config = parser(BUNDLE, "train", stage=stage, margin=2)
    item = {"image": MetaTensor(image), "label": MetaTensor(label)}
    for number in (7, 8):  # the crop, and what counts as foreground
        step = config.get_parsed_content(f"{part}#preprocessing#transforms#{number}")
        item = item if step is None else step(item)
    box = (slice(None),) * 4
    if stage == "tumor":
        box = slice(None), slice(3, 17), slice(4, 16), slice(5, 15)
    np.testing.assert_array_equal(item["image"], image[box])
    expected = label[box] == 2 if stage == "tumor" else label > 0
    np.testing.assert_array_equal(np.asarray(item["label"]) > 0, expected)


@pytest.mark.slow
def test_stages_train_apart_and_join(trained: dict[str, Path], tmp_path: Path):
    first, both = weights(trained["liver"]), weights(trained["tumor"])
    assert equal(of("liver", first), of("liver", both))
    counts = {name: int(x) for name, x in both.items() if "num_batches" in name}
    assert set(counts.values()) == {2}  # three cases, two a batch: neither network saw the other's
    assert not any(first[name] for name in counts if name.startswith("tumour."))
    files = [str(trained[stage] / "models/model.pt") for stage in ("liver", "tumor")]

    def join(liver: str, tumor: str) -> subprocess.CompletedProcess[str]:
        arguments = ["--liver", liver, "--tumor", tumor, "--output", tmp_path / "joined.pt"]
        return preloaded.run("common", "join", *arguments)

    done = join(*files)
    assert done.returncode == 0, done.stderr
    assert equal(torch.load(tmp_path / "joined.pt", weights_only=True), both)
    before = (tmp_path / "joined.pt").read_bytes()
    done = join(files[1], files[0])
    assert done.returncode == 1
    assert done.stderr == (
        f"error: The tumor network in the checkpoint {files[0]} was never trained; allowed is what "
        "a training with --stage tumor wrote.\n"
    )
    assert (tmp_path / "joined.pt").read_bytes() == before


@pytest.mark.slow
def test_evaluation_by_the_papers_metrics(trained: dict[str, Path], dataset: Path, tmp_path: Path):
    options = {"bundle_root": trained["tumor"], "dataset_dir": dataset, **SHORT}
    said = succeed(
        command(["train", "evaluate"], output_dir=tmp_path, reparameterize=True, **options),
        launcher=FRESH,
    )
    assert f"As {trained['tumor']}/models/model.pt was trained: " in said
    with open(tmp_path / "metrics.csv", newline="") as file:
        metrics = {name: float(value) for name, value in csv.reader(file)}
    for name in ("dice", "asd", "rvd", "rvd_abs", "precision", "recall"):
        assert {f"val_{name}_class_1", f"val_{name}_class_2"} <= metrics.keys()
    with open(tmp_path / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["liver", "tumour"] * 2  # two test cases


@pytest.mark.slow
def test_tumour_in_all_of_a_liver_that_is_all_of_the_body(dataset: Path, tmp_path: Path):
    """On every input's own grid; beyond the body's box there is neither."""
    torch.save(sure(LiverTumourCascade(network(), network()), 5, 5), tmp_path / "model.pt")
    options = {"checkpoint": tmp_path / "model.pt", "dataset_dir": dataset / "imagesTr", **SMALL}
    for name, flag in (("plain", False), ("folded", True)):
        succeed(command("inference", output_dir=tmp_path / name, reparameterize=flag, **options))
    for image in sorted((dataset / "imagesTr").iterdir()):
        expected = nib.load(image)
        file = image.name.replace(".nii.gz", "_seg.nii.gz")
        mask, folded = (nib.load(tmp_path / name / file) for name in ("plain", "folded"))
        assert mask.shape == expected.shape
        np.testing.assert_allclose(mask.affine, expected.affine, atol=1e-4)
        assert mask.get_data_dtype() == np.uint8
        values = np.asarray(mask.dataobj)
        assert set(np.unique(values)) == {0, 2}
        np.testing.assert_array_equal(folded.dataobj, values)
        label = np.asarray(nib.load(dataset / "labelsTr" / image.name).dataobj)
        assert (values[label > 0] == 2).all()


@pytest.mark.slow
def test_a_scan_without_a_liver(dataset: Path, tmp_path: Path):
    """Its mask is empty, and the log names the file; the tumour's network would find one."""
    torch.save(sure(LiverTumourCascade(network(), network()), -5, 5), tmp_path / "model.pt")
    scan = next((dataset / "imagesTr").iterdir())
    options = {"checkpoint": tmp_path / "model.pt", "dataset_dir": scan, "output_dir": tmp_path}
    said = succeed(command("inference", **options, **SMALL), launcher=FRESH)
    assert f"No liver was found in {scan}: no tumour is looked for." in said
    mask = nib.load(tmp_path / scan.name.replace(".nii.gz", "_seg.nii.gz"))
    assert mask.shape == nib.load(scan).shape
    assert not np.asarray(mask.dataobj).any()


@pytest.mark.slow
def test_what_is_refused_in_one_sentence(trained: dict[str, Path], dataset: Path, tmp_path: Path):
    options = {"bundle_root": tmp_path / "root", "dataset_dir": dataset, **SHORT}
    said = sentence(command("train", **options, stage="tumour"))
    assert said == "error: stage is 'tumour'; allowed are 'liver' and 'tumor'."
    said = sentence(command("train", **options, num_classes=4))
    assert "num_classes is 4; allowed is 3" in said
    liver = trained["liver"] / "models/model.pt"
    other = options | {"network_def#liver#widths": [4] * 5, "stage": "tumor", "checkpoint": liver}
    assert "has another liver network than network_def" in sentence(command("train", **other))
    assert not (tmp_path / "root/models/model.pt").exists()
    options = {"checkpoint": liver, "dataset_dir": dataset, "output_dir": tmp_path / "out"}
    said = sentence(command("inference", **options, **SMALL))
    assert "The tumour's network was never trained; train it with --stage tumor" in said
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_a_network_of_monai_and_ablations_by_overrides(dataset: Path, tmp_path: Path):
    """A stage has another network; the rest stays. Its labels end at the stage's."""
    other = {"_target_": "SegResNet", "in_channels": "@in_channels", "out_channels": 1}
    other |= {"init_filters": 8}
    options = {"bundle_root": tmp_path, "dataset_dir": dataset, "stage": "tumor", **SHORT}
    options |= {"network_def#tumour": other, "loss#loss#kind": "tversky_bce"}
    options |= {"network_def#liver#msca": False, "network_def#liver#elanres": False}
    del options["network_def#tumour#widths"]
    succeed(command("train", **options))
    state = weights(tmp_path)
    assert "tumour.convInit.conv.weight" in state
    assert not any("strips" in name or "stack" in name for name in state)


@pytest.mark.slow
def test_same_seed_same_training(trained: dict[str, Path], dataset: Path, tmp_path: Path):
    """Also where a checkpoint of an earlier training lies in its way."""
    (tmp_path / "models").mkdir()
    torch.save(weights(trained["tumor"]), tmp_path / "models/model.pt")
    succeed(command("train", bundle_root=tmp_path, dataset_dir=dataset, **SHORT))
    again = weights(tmp_path)
    assert equal(of("liver", again), of("liver", weights(trained["liver"])))
    assert equal(of("tumour", again), of("tumour", weights(trained["tumor"])))


@pytest.mark.slow
def test_a_row_of_a_study_trains_both_stages(dataset: Path, tmp_path: Path):
    study = {
        "title": "One row",
        "data": {"seeds": [3], "split": SHORT["split"]},
        "overrides": SMALL,
        "budget": {"max_epochs": 1},
        "rows": {"ELANRes": {"bundle": BUNDLE.name}},
    }
    (tmp_path / "study.json").write_text(json.dumps(study))
    words = ["--file", tmp_path / "study.json", "--dataset_dir", dataset, "--output"]
    done = preloaded.run("common", "study", *words, tmp_path / "out", cwd=BUNDLE.parent)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    root = tmp_path / "out/runs/ELANRes/seed3"
    trained = weights(root)
    assert trained["liver.num_batches_trained"] > 0
    assert trained["tumour.num_batches_trained"] > 0
    for stage in ("liver", "tumor"):
        assert (root / f"eval/learning_curves_{stage}.csv").is_file()
    names = {
        row["name"] for row in csv.DictReader((tmp_path / "out/rows/ELANRes/cases.csv").open())
    }
    assert names == {"liver", "tumour"}


@pytest.mark.slow
def test_two_processes(dataset: Path, tmp_path: Path):
    options = {"bundle_root": tmp_path, "dataset_dir": dataset, "device": "cpu", "stage": "tumor"}
    said = succeed(
        command(["train", "multi_gpu_train"], **options, **(SHORT | {"split": [2, 2, 1]})),
        launcher=["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29561", "-m"],
    )
    assert said.count("Weight of the coarser scales' losses: 0.4") == 2  # in both processes
    assert weights(tmp_path)["tumour.num_batches_trained"] == 1


@pytest.mark.slow
def test_export_of_monai(trained: dict[str, Path], tmp_path: Path):
    cascade = LiverTumourCascade(network(), network())
    checkpoint = trained["tumor"] / "models/model.pt"
    check_export_of_monai(tmp_path, BUNDLE, checkpoint, SMALL, cascade, 32, 40, 17)
