"""--label_map and --ignore_label in whole configs: from the file to the loss and the metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose
from PIL import Image

from common.data.phantom import write_phantom
from common.ignored import IGNORED
from common.transforms import InvertedLabelsd, NestedRegionsd
from common.zoo.contract import nested

from .conftest import REPOSITORY
from .running import command, sentence, succeed
from .test_bundle_runs import BUNDLE as LIGHTM
from .test_bundle_runs import SMALL

BUNDLES = sorted(path for path in (REPOSITORY / "bundles").iterdir() if path.is_dir())


def write_case(folder: Path, dims: int, empty: bool = False) -> dict[str, str]:
    """A case whose label has 0, 2, 5 and 7, and 9 for what nobody labelled; or 0 alone."""
    random = np.random.default_rng(0)
    size = (40, 36, 24)[:dims]
    label = np.zeros(size, np.uint8)
    label[8:32, 6:30], label[12:20, 10:20], label[20:28, 10:20] = 2, 5, 7
    label[:, 26:] = 9
    image = random.normal(size=size) * 20 + 60 * (label % 9 > 0)
    label *= not empty
    files = [folder / f"{name}.{'png' if dims == 2 else 'nii.gz'}" for name in ("image", "label")]
    for file, values in zip(files, (image, label), strict=True):
        if dims == 2:
            Image.fromarray(values.T.clip(0, 255).astype(np.uint8)).save(file)
        else:
            nib.save(nib.Nifti1Image(values.astype(np.int16), np.diag([6.0, 6.0, 8.0, 1.0])), file)
    return dict(zip(("image", "label"), map(str, files), strict=True))


def small_config(bundle: Path) -> tuple[ConfigParser, int]:
    """A bundle's training on small images, and their spatial axes."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs/train.json")
    dims = 2 if "image_size" in parser else 3
    size = "image_size" if dims == 2 else "patch_size"
    small = {size: [32, 32, 16][: len(parser[size])], "device": "cpu"}
    small["num_classes"] = min(parser["num_classes"], 3)
    if "spacing" in parser:
        small["spacing"] = [6, 6, 8][: len(parser["spacing"])]
    if dims == 3:  # whose cases have one channel, and are small
        small |= {"in_channels": 1, "network_input#multiple_of": 1, "label_map": None}
    parser.update(small)
    return parser, dims


def training_batch(parser: ConfigParser, case: dict[str, str]) -> dict:
    samples = parser.get_parsed_content("train#preprocessing")(case)
    return list_data_collate(samples if isinstance(samples, list) else [samples])


def some_logits(parser: ConfigParser, label: torch.Tensor) -> torch.Tensor:
    """Of as many channels as the bundle's network has."""
    torch.manual_seed(0)
    shape = (len(label), parser.get_parsed_content("out_channels"), *label.shape[2:])
    return torch.randn(shape, requires_grad=True)


STAGED = [(path, "tumor") for path in BUNDLES if "elanres" in path.name]


@pytest.mark.parametrize(("bundle", "stage"), [*((path, None) for path in BUNDLES), *STAGED])
def test_a_case_without_foreground_trains(bundle: Path, stage: str | None, tmp_path: Path):
    parser, dims = small_config(bundle)
    parser.update({"stage": stage} if stage else {})
    label = training_batch(parser, write_case(tmp_path, dims, empty=True))["label"]
    assert not label.any()
    logits = some_logits(parser, label)
    loss = parser.get_parsed_content("loss")(logits, label)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_from_the_file_to_loss_and_metrics(bundle: Path, tmp_path: Path):
    parser, dims = small_config(bundle)
    label_map = {0: 0, 2: 1, 5: 2, 7: 2} if parser["num_classes"] == 3 else {0: 0, 2: 1, 5: 1, 7: 1}
    parser.update({"label_map": label_map, "ignore_label": 9})
    label = training_batch(parser, write_case(tmp_path, dims))["label"]
    ignored = label[:, :1] < 0
    assert 0.01 < ignored.float().mean() < 0.6
    assert set(label.unique().tolist()) <= {IGNORED, *range(parser["num_classes"])}

    logits = some_logits(parser, label)
    parser.get_parsed_content("loss")(logits, label).backward()
    assert not logits.grad.masked_select(ignored).any()
    assert (logits.grad.masked_select(~ignored) != 0).float().mean() > 0.9

    post = parser.get_parsed_content("train#postprocessing")
    check_metrics(post, logits, label, not nested(bundle))


def check_metrics(
    post: Callable, logits: torch.Tensor, label: torch.Tensor, background: bool
) -> None:
    """What metrics get does not depend on ignored voxels, and is background there.

    Args:
        background: whether the first channel is that.
    """
    ignored = label[:, :1] < 0

    def measured(pred: torch.Tensor) -> list[torch.Tensor]:
        """Predictions and labels as metrics get them."""
        items = decollate_batch({"pred": pred.detach(), "label": label.clone()})
        done = [post(item) for item in items]
        assert {x for item in done for x in item["label"].unique().tolist()} <= {0, 1}
        return [torch.stack([i[key][int(background) :] for i in done]) for key in ("pred", "label")]

    first, truth = measured(logits)
    second, _ = measured(torch.where(ignored, -logits, logits))
    assert torch.equal(first, second)
    assert not first.masked_select(ignored).any()
    assert not truth.masked_select(ignored).any()
    assert truth.any()


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_evaluation_leaves_ignored_voxels_out(bundle: Path):
    parser = ConfigParser()
    parser.read_config([str(bundle / f"configs/{name}.json") for name in ("train", "evaluate")])
    transforms = parser.get_parsed_content("validate#postprocessing").transforms
    # It needs a network's whole way.
    at = next(i for i, step in enumerate(transforms) if isinstance(step, InvertedLabelsd))
    before, first, after = transforms[:at], transforms[at], transforms[at + 1 :]
    classes = parser.get_parsed_content("num_classes")
    label = torch.randint(IGNORED, classes, (1, 1, 12, 12, 12)[: 5 if classes == 3 else 4])
    if nested(bundle):  # which preprocessing does
        label = NestedRegionsd("label", classes)({"label": label[0]})["label"][None]
    logits = torch.randn(1, classes - nested(bundle), *label.shape[2:])
    post = Compose([*before, first.probabilities, first.labels, *after])
    check_metrics(post, logits, MetaTensor(label.float()), not nested(bundle))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms whose lowest third nobody labelled, which is value 3."""
    folder = write_phantom(tmp_path_factory.mktemp("phantom") / "data", cases=6, seed=1, size=48)
    for file in (folder / "labelsTr").iterdir():
        label = nib.load(file)
        values = np.asarray(label.dataobj).astype(np.uint8)
        values[..., : values.shape[2] // 3] = 3
        nib.save(nib.Nifti1Image(values, label.affine), file)
    return folder


EPOCH = {"train#trainer#max_epochs": 1}
CHOSEN = {
    "tumour alone": {"label_map": {0: 0, 1: 0, 2: 1, 3: 0}, "num_classes": 2},
    "ignored": {"ignore_label": 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_training_evaluation_and_inference(name: str, dataset: Path, tmp_path: Path):
    options = {"bundle_root": tmp_path, "dataset_dir": dataset, **SMALL}
    chosen = options | CHOSEN[name]
    succeed(command(LIGHTM, "train", **chosen, **EPOCH))
    succeed(command(LIGHTM, ["train", "evaluate"], **chosen))
    metrics = (tmp_path / "eval/metrics.csv").read_text()
    assert "val_dice_class_1" in metrics
    assert ("val_dice_class_2" in metrics) == (name == "ignored")
    if "num_classes" in chosen:
        options |= {"num_classes": chosen["num_classes"], "output_dir": tmp_path / "masks"}
        succeed(command(LIGHTM, "inference", **options))
        (mask,) = (tmp_path / "masks").iterdir()
        assert set(np.unique(nib.load(mask).dataobj)) <= {0, 1}


@pytest.mark.slow
def test_one_class_is_refused(dataset: Path, tmp_path: Path):
    options = {"bundle_root": tmp_path, "dataset_dir": dataset, "num_classes": 1, **SMALL}
    message = sentence(command(LIGHTM, "train", **options, **EPOCH))
    assert "num_classes is 1; allowed are numbers from 2" in message


@pytest.mark.slow
def test_regions_as_docs_regions_has_them(dataset: Path, tmp_path: Path):
    page = (REPOSITORY / "docs/regions.md").read_text()
    files = dict(re.findall(r"`(regions_\w+\.json)`.*?```json\n(.*?)```", page, re.S))
    assert len(files) == 3
    for name, text in files.items():
        content = json.loads(text)
        if "regions" in content:
            content["regions"] = [[1, 2], [2]]
        (tmp_path / name).write_text(json.dumps(content))
    options = {"bundle_root": tmp_path, "dataset_dir": dataset, **SMALL}

    def configs(*names: str) -> list[str]:
        return [
            str(tmp_path / f"{name}.json" if "regions" in name else LIGHTM / f"configs/{name}.json")
            for name in names
        ]

    def run(*names: str, **more: object) -> str:
        arguments = command(LIGHTM, "train", **options, **more)
        arguments[2] = str(configs(*names))
        return succeed(arguments)

    labels = {"ignore_label": 3}
    run("train", "regions_train", **labels, **EPOCH)
    weights = torch.load(tmp_path / "models/model.pt", weights_only=True)
    assert weights["head.conv.pointwise.weight"].shape[0] == 2
    evaluating = ("train", "evaluate", "regions_train", "regions_evaluate")
    run(*evaluating, **labels)
    metrics = (tmp_path / "eval/metrics.csv").read_text()
    assert "val_dice_class_1" in metrics
    assert "val_dice_class_2" in metrics
    run("inference", "regions_inference", output_dir=tmp_path / "masks")
    (mask,) = (tmp_path / "masks").iterdir()
    assert set(np.unique(nib.load(mask).dataobj)) <= {0, 1, 2}
