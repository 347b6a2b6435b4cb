"""configs/networks of every bundle: any of them trains any network, small here, by its file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _pytest.mark import ParameterSet
from monai.bundle import ConfigParser
from monai.data import decollate_batch
from monai.utils import ensure_tuple
from torch import Tensor

from common.checkpoints import build_setting
from common.data.phantom import write_phantom
from common.errors import input_error_in
from common.zoo.contract import compared, config, ids, nested, staged

from . import preloaded
from .conftest import REPOSITORY
from .running import command

BUNDLES = sorted(path for path in (REPOSITORY / "bundles").iterdir() if path.is_dir())
# Of what is wide by default, what is narrow enough for a test.
SMALL: dict[str, dict[str, Any]] = {
    "attention_unet": {"channels": [4, 8], "strides": [2]},
    "basic_unet": {"features": [4, 4, 4, 4, 4, 4]},
    "dynunet": {
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 8],
        "deep_supr_num": 1,
    },
    "mednext": {
        "init_filters": 4,
        "blocks_down": [1, 1],
        "blocks_bottleneck": 1,
        "blocks_up": [1, 1],
    },
    "nnunet_resenc": {
        "features": [4, 8, 8],
        "strides": [1, 2, 2],
        "blocks_down": [1, 1, 1],
        "blocks_up": [1, 1],
    },
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "segresnet_vae": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1], "vae_nz": 4},
    "swin_unetr": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]},
    "umamba": {"features": [4, 8, 8]},
    "unetr": {"feature_size": 4, "hidden_size": 12, "mlp_dim": 12, "num_heads": 3},
    "vm_unet": {
        "features": [4, 8, 16, 32],
        "depths": [1, 1, 1, 1],
        "decoder_depths": [1, 1, 1, 1],
    },
    "vnet": {},
}
FLAT = {"vm_unet"}  # of 2D alone
OUTPUTS = {"dynunet": 2, "mednext": 3, "nnunet_resenc": 2, "segresnet_vae": 2, "umamba": 2}
FALLS = {"vm_unet": 3}  # of a rate that falls and rises again, in a training


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def networks(bundle: Path) -> list[str]:
    flat = config(bundle, "train")["network_input"]["spatial_dims"] == 2
    return [name for name in sorted(SMALL) if flat or name not in FLAT]


def small(bundle: Path, name: str) -> dict[str, Any]:
    """Options that make a file's network small, and all that it has to be told in a bundle."""
    stages = ("#liver", "#tumour") if staged(bundle) else ("",)
    options: dict[str, Any] = {
        f"network_def{stage}#{key}": value for stage in stages for key, value in SMALL[name].items()
    }
    return options | ({"stage": "liver"} if staged(bundle) else {})


def parser(bundle: Path, name: str, options: Mapping[str, Any]) -> ConfigParser:
    parsed = ConfigParser()
    parsed.read_config([f"{bundle}/configs/{file}.json" for file in ("train", f"networks/{name}")])
    parsed.update({"bundle_root": str(bundle), "device": "cpu", **options})
    return parsed


def target(bundle: Path, classes: Tensor) -> Tensor:
    """What a bundle's preprocessing makes of a label map 0, 1, 2, (b, 1, ...)."""
    if staged(bundle):
        return (classes > 0).float()
    return torch.cat([classes > 0, classes > 1], 1).float() if nested(bundle) else classes


def test_every_bundle_has_the_same_files(bundle: Path):
    assert compared(bundle) == [f"networks/{name}" for name in networks(bundle)]
    for name in compared(bundle):
        first = next(path for path in BUNDLES if name in compared(path))
        reference = config(first, name)
        if staged(bundle):  # each stage's network is the file's
            network = reference.pop("network_def")
            network.pop("_requires_", None)
            reference |= {f"network_def#{stage}": network for stage in ("liver", "tumour")}
            assert config(bundle, name) == reference, name
        else:
            files = [path / f"configs/{name}.json" for path in (bundle, first)]
            assert files[0].read_bytes() == files[1].read_bytes(), name


def test_what_is_rounded_is_used(bundle: Path):
    """No place of a training has the size as it was told, which the network may not take."""
    train = ids(config(bundle, "train"))
    (size,) = {"patch_size", "image_size"} & train.keys()
    places = [id_ for id_, x in train.items() if isinstance(x, str) and f"@{size}" in x]
    assert places == ["network_input#size#size"]
    assert train["settings"][size] == "@network_input#size"


def pairs() -> list[ParameterSet]:
    """Bundles and networks; slow are those of which each half is tested beside another."""
    all_of = ("liver_ct_lightm_unet_segmentation", "lung_cxr_lightm_unet_segmentation")
    kinds = ("dynunet", "segresnet_vae", "unetr")  # several scales, a loss, a fixed size
    return [
        pytest.param(
            bundle,
            name,
            id=f"{bundle.name}-{name}",
            marks=() if bundle.name in all_of or name in kinds else pytest.mark.slow,
        )
        for bundle in BUNDLES
        for name in networks(bundle)
    ]


@pytest.mark.parametrize(("bundle", "name"), pairs())
def test_any_bundle_trains_any_network(bundle: Path, name: str, tmp_path: Path):
    torch.manual_seed(0)
    size = "image_size" if "image_size" in config(bundle, "train") else "patch_size"
    dims = config(bundle, "train")["network_input"]["spatial_dims"]
    multiple = config(bundle, f"networks/{name}")["network_input#multiple_of"]
    told = [2 * multiple - 2, 14 if name == "vnet" else 30, 9]
    slices = 1 if name == "vnet" else 3  # whose 16 features repeat the channels
    train = config(bundle, "train")
    in_channels = 1 if name == "vnet" else train["in_channels"]
    given = {size: told[:dims], "dataset_dir": str(tmp_path), "slices": slices, "num_classes": 3}
    given["in_channels"] = in_channels
    parsed = parser(bundle, name, small(bundle, name) | given)
    rounded = [math.ceil(n / multiple) * multiple for n in given[size]]
    assert parsed.get_parsed_content("network_input#size") == rounded

    network = parsed.get_parsed_content("network").train()
    channels = parsed.get_parsed_content("network_input#channels")
    assert channels == in_channels * (slices if "slices" in train else 1)
    image = torch.rand(2, channels, *rounded)
    label = target(bundle, torch.randint(3, (2, 1, *rounded)).float())
    output = network(image)
    # In training, of several scales or with what a loss of its own takes.
    assert (len(output) if not isinstance(output, Tensor) else 1) == OUTPUTS.get(name, 1)

    optimizer = parsed.get_parsed_content("optimizer")
    loss = parsed.get_parsed_content("train#trainer#loss_function")(output, label)
    assert loss.dim() == 0
    assert torch.isfinite(loss)
    loss.backward()
    trained = [x for x in network.parameters() if x.requires_grad]
    # Each has one, as DistributedDataParallel needs.
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in trained)
    before = [x.detach().clone() for x in trained]
    optimizer.step()
    assert any(not torch.equal(x, y) for x, y in zip(before, trained, strict=True))

    out_channels = parsed.get_parsed_content("out_channels")
    postprocess = parsed.get_parsed_content("train#trainer#postprocessing")
    for item in decollate_batch({"pred": output, "label": label}):
        done = postprocess(item)
        assert done["pred"].shape == done["label"].shape == (out_channels, *rounded)
    with torch.no_grad():
        logits = network.eval()(image)
    assert logits.shape == (2, out_channels, *rounded)

    settings = parsed.get_parsed_content("settings")
    assert settings[size] == rounded
    json.dumps(settings)
    for id_ in (id_ for id_ in settings if id_.startswith("network_def")):
        again = build_setting(id_, settings[id_])
        own = network.liver if staged(bundle) else network
        counted = {"num_batches_trained"}  # by the cascade
        assert again.state_dict().keys() == own.state_dict().keys() - counted


def test_recipes_end_with_the_training(bundle: Path):
    for name in networks(bundle):
        parsed = parser(bundle, name, small(bundle, name) | {"max_epochs": 7})
        given = config(bundle, f"networks/{name}")["lr_scheduler"]
        ends = [key for key in ("total_iters", "T_max") if key in given]
        for key in ends:
            assert parsed.get_parsed_content(f"lr_scheduler#{key}") == 7 // FALLS.get(name, 1)
        assert ends or given["_target_"].endswith("StepLR"), name


def test_sizes_that_are_no_sizes(bundle: Path):
    size = "image_size" if "image_size" in config(bundle, "train") else "patch_size"
    dims = config(bundle, "train")["network_input"]["spatial_dims"]
    parsed = parser(bundle, "unetr", {size: [32] * (dims + 1)})
    with pytest.raises(RuntimeError) as refused:
        parsed.get_parsed_content("network_input#size")
    expected = f"{size} is {[32] * (dims + 1)}; allowed are {dims} whole numbers from 1."
    assert input_error_in(refused.value) == expected


def test_schedules_of_epochs_beside_the_plateau():
    """LCMambaNet's own follows the score; one of epochs must not take the score for an epoch."""
    bundle = REPOSITORY / "bundles/liver_tumor_ct_lcmambanet_segmentation"
    validated = SimpleNamespace(state=SimpleNamespace(metrics={"val_mean_dice": 0.5}))
    step = "train#handlers#3#schedule#step_transform"
    for name, expected in (("segresnet", 1e-4 * 0.99**0.9), ("unetr", 1e-4 * 0.99)):
        options = small(bundle, name) | {"patch_size": [64, 64]}
        parsed = parser(bundle, name, options)
        parsed.globals["validated"] = validated
        parsed["validate#evaluator"] = "$validated"
        scheduler = parsed.get_parsed_content("lr_scheduler")
        scheduler.step(*ensure_tuple(parsed.get_parsed_content(step)(None)))
        assert scheduler.get_last_lr() == pytest.approx([expected])
    parsed["lr_scheduler"] = config(bundle, "train")["lr_scheduler"]
    assert parsed.get_parsed_content(step)(None) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bundle_name", "name", "options"),
    [
        (
            "liver_ct_lightm_unet_segmentation",
            "swin_unetr",
            {"spacing": [6, 6, 8], "patch_size": [40, 32, 16]},
        ),
        ("lung_cxr_lightm_unet_segmentation", "segresnet_vae", {"image_size": [60, 60]}),
        (
            "liver_tumor_ct_elanres_msca_segmentation",
            "dynunet",
            {"patch_size": [40, 32, 16], "in_plane_factor": 0.6, "margin": 2},
        ),
    ],
)
def test_from_training_to_masks(
    bundle_name: str, name: str, options: dict[str, Any], tmp_path: Path
):
    """By the command line; inference, evaluation and export are not told the network again."""
    bundle = REPOSITORY / "bundles" / bundle_name
    cxr = "cxr" in bundle_name
    of: dict[str, Any] = {"kind": "cxr", "size": 96} if cxr else {"kind": "ct", "size": 48}
    dataset = write_phantom(tmp_path / "data", cases=6, seed=1, **of)
    where: dict[str, Any] = {"bundle_root": tmp_path, "dataset_dir": dataset, "device": "cpu"}

    def run(*files: str, **given: Any) -> str:
        done = preloaded.run("monai.bundle", *command(bundle, files, **where | given), cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    small_one = small(bundle, name) | options
    short = {"max_epochs": 1, "epoch_length": 2, "batch_size": 2}
    for stage in ({"stage": "liver"}, {"stage": "tumor"}) if staged(bundle) else ({},):
        said = run("train", f"networks/{name}", **short, **small_one | stage)
    size = "image_size" if "image_size" in options else "patch_size"
    used = json.loads((tmp_path / "models/settings.json").read_text())
    multiple = config(bundle, f"networks/{name}")["network_input#multiple_of"]
    assert all(n % multiple == 0 for n in used[size])
    assert "The network takes multiples of" in said
    run("train", "evaluate", output_dir=tmp_path / "eval")
    assert (tmp_path / "eval/metrics.csv").is_file()
    run("inference", output_dir=tmp_path / "masks")
    assert list((tmp_path / "masks").rglob("*_seg.*"))
