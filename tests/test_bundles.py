"""One contract over all of bundles/*: a bundle that only appears there is held to all of it."""

from __future__ import annotations

import copy
import importlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out

from .conftest import REPOSITORY, shared

BUNDLES = sorted(path for path in (REPOSITORY / "bundles").iterdir() if path.is_dir())
FILES = [
    "LICENSE",
    "configs/metadata.json",
    "configs/train.json",
    "configs/inference.json",
    "configs/evaluate.json",
    "configs/multi_gpu_train.json",
    "configs/logging.conf",
    "docs/README.md",
    "docs/data_license.txt",
]
DELTAS = ["evaluate", "multi_gpu_train"]

# Bundles of a family are alike but for these ids; the first name is the family's reference.
FAMILIES: dict[str, list[str]] = {
    "3D CT": [
        "liver_ct_lightm_unet_segmentation",
        "liver_tumor_ct_mambaclinix_segmentation",
        "liver_tumor_ct_codebook_mamba_segmentation",
        "liver_tumor_ct_elanres_msca_segmentation",
    ],
    "2D": ["lung_cxr_lightm_unet_segmentation"],
    "2D slices": ["liver_tumor_ct_lcmambanet_segmentation"],
}
MAY_DIFFER = {
    "network_def": "it is what the bundles are made to compare",
    "loss": "each paper has its own",
    "optimizer": "each paper has its own",
    "lr_scheduler": "each paper has its own",
    "max_epochs": "each paper has its own",
    "learning_rate": "each paper has its own",
    "spacing": "each paper has its own",
    "patch_size": "each paper has its own",
    "image_size": "each paper has its own",
    "batch_size": "each paper has its own",
    "intensity": "each paper has its own",
}
# What one bundle alone must do otherwise: ids, with all below them.
MAY_DIFFER_IN = {
    "liver_tumor_ct_mambaclinix_segmentation": {
        "batch_dice": "nnU-Net's planner decides it; inference has it for one file's sake",
        "sw_batch_size": "what nnU-Net plans for a device is its patches at a time",
        "train#postprocessing": "of outputs at several scales the finest is measured",
        "validate#additional_metrics#val_recall": "MambaClinix's paper reports it",
    },
    "liver_tumor_ct_codebook_mamba_segmentation": {
        "seed": "the paper names it",
        "in_plane_factor": "its spacing is relative to the scan's own",
        "slice_spacing": "its spacing is relative to the scan's own",
        "train#preprocessing#transforms#4": "it clips before it resamples",
        "train#preprocessing#transforms#5": "it clips before it resamples",
        "train#preprocessing#transforms#7#pos": "every patch contains liver",
        "train#preprocessing#transforms#7#neg": "every patch contains liver",
        "train#preprocessing#transforms#17": "its targets are two regions that overlap",
        "train#postprocessing": "two sigmoid channels instead of a softmax",
        "train#key_metric#train_mean_dice#include_background": "no channel is the background's",
        "validate#preprocessing#transforms": "it clips before it resamples; two regions",
        "validate#key_metric#val_mean_dice#include_background": "no channel is the background's",
        "validate#additional_metrics": "no channel is the background's; the challenge's metrics",
        "validate#handlers#2#batch_transform": "a picture of two regions that overlap",
        "validate#handlers#2#output_transform": "a picture of two regions that overlap",
        "validate#postprocessing": "two sigmoid channels instead of a softmax",
        "validate#handlers#2#metric_details": "the challenge's metrics",
        "preprocessing#transforms": "it clips before it resamples",
        "postprocessing#transforms#0": "two sigmoid channels instead of a softmax",
        "postprocessing#transforms#2": "two sigmoid channels instead of a softmax",
    },
    "liver_tumor_ct_elanres_msca_segmentation": {
        "stage": "it trains two networks, one after the other",
        "margin": "around the liver, where the second network looks",
        "reparameterize": "its networks can be folded",
        "in_plane_factor": "its spacing is relative to the scan's own",
        "slice_spacing": "its spacing is relative to the scan's own",
        "split": "the paper's",
        "deep_supervision": "the coarser scales' weight decays",
        "train#preprocessing#transforms": "it crops to the body, and to the liver for tumours",
        "train#postprocessing": "one sigmoid channel instead of a softmax; the finest scale",
        "train#key_metric#train_mean_dice#include_background": "no channel is the background's",
        "validate#preprocessing#transforms": "it crops to the body, and to the liver for tumours",
        "validate#inferer": "two networks, in evaluation; padding is air",
        "validate#postprocessing": "two sigmoid channels instead of a softmax",
        "validate#key_metric#val_mean_dice#include_background": "no channel is the background's",
        "validate#additional_metrics": "no channel is the background's; the paper's metrics",
        "validate#handlers#2#output_transform": "one sigmoid channel instead of a softmax",
        "validate#handlers#2#metric_details": "the paper's metrics",
        "preprocessing#transforms": "it crops to the body",
        "inferer": "two networks; padding is air",
        "postprocessing#transforms#0": "two sigmoid channels instead of a softmax",
        "postprocessing#transforms#2": "two sigmoid channels instead of a softmax",
        "run": "the stage is checked, and the other one's network kept",
    },
}

Config = dict[str, Any]


def config(bundle: Path, name: str) -> Config:
    loaded: Config = json.loads((bundle / f"configs/{name}.json").read_text())
    return loaded


def ids(content: Any, prefix: str = "") -> dict[str, Any]:
    """Every id of a config and its value, as MONAI writes ids: a#b#0."""
    found: dict[str, Any] = {}
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    for key, value in items:
        found[f"{prefix}{key}"] = value
        found |= ids(value, f"{prefix}{key}#")
    return found


def strings(content: Any) -> list[str]:
    return [value for value in ids(content).values() if isinstance(value, str)]


def spatial_dims(bundle: Path) -> int:
    return len(
        config(bundle, "metadata")["network_data_format"]["inputs"]["image"]["spatial_shape"]
    )


def nested(bundle: Path) -> bool:
    """Whether the output is a sigmoid per class, each within the one before; no background."""
    steps = config(bundle, "inference")["postprocessing"]["transforms"]
    return any(step["_target_"] == "common.transforms.NestedLabelsd" for step in steps)


def staged(bundle: Path) -> bool:
    """Whether it trains a cascade, stage by stage: then the classes are those of the stages."""
    return "stage" in config(bundle, "train")


def parser(bundle: Path, name: str, **override: Any) -> ConfigParser:
    parsed = ConfigParser()
    parsed.read_config(str(bundle / f"configs/{name}.json"))
    parsed.read_meta(str(bundle / "configs/metadata.json"))
    parsed.update({"bundle_root": str(bundle), "device": "cpu"} | override)
    return parsed


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_are_bundles():
    assert BUNDLES


def test_name_and_files(bundle: Path):
    assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+_segmentation", bundle.name)
    assert not re.search("detection|classification|deepedit", bundle.name)
    for file in FILES:
        assert (bundle / file).is_file(), file
    assert (bundle / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()
    # MONAI Label takes the shortest name.
    assert all(len(file.name) >= len("model.pt") for file in (bundle / "models").glob("*.pt"))


def test_metadata(bundle: Path):
    meta = config(bundle, "metadata")
    assert meta["schema"].endswith("meta_schema_20240725.json")
    assert re.fullmatch(r"\d\.\d\.\d", meta["version"])
    assert meta["version"] in meta["changelog"]
    for key in ("name", "authors", "copyright", "description", "modality", "organ"):
        assert meta[key], key
    assert "segmentation" in meta["task"]
    assert any("arXiv" in reference or "doi" in reference for reference in meta["references"])
    pins = dict(
        re.findall(r"^([\w-]+)==([\w.]+)", (REPOSITORY / "constraints.txt").read_text(), re.M)
    )
    assert meta["monai_version"] == pins["monai"]
    assert meta["pytorch_version"] == pins["torch"]
    assert meta["numpy_version"] == pins["numpy"]
    for package, version in meta["required_packages_version"].items():
        assert version == pins[package], package

    formats = meta["network_data_format"]
    for name, (key, tensor) in {
        "image": next(iter(formats["inputs"].items())),
        "pred": next(iter(formats["outputs"].items())),
    }.items():
        assert key == name
        for field in ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range"):
            assert field in tensor, field
        # The output's names are those of the label map.
        names = tensor["num_channels"] + (name == "pred" and nested(bundle))
        assert list(tensor["channel_def"]) == [str(i) for i in range(names)]
    assert formats["outputs"]["pred"]["channel_def"]["0"] == "background"


def test_metadata_against_monais_schema(bundle: Path):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(shared("data/monai/meta_schema_20240725.json").read_text())
    jsonschema.validate(config(bundle, "metadata"), schema)


@pytest.mark.parametrize(
    ("name", "kind"), [("train", "train"), ("inference", "infer")], ids=["train", "inference"]
)
def test_properties_of_monai(bundle: Path, name: str, kind: str, tmp_path: Path):
    data = [{"image": str(tmp_path / "a.nii.gz"), "label": str(tmp_path / "b.nii.gz")}]
    override: Config = {"bundle_root": str(tmp_path), "device": "cpu"}
    if name == "train":
        override |= {"train#dataset#data": data, "validate#dataset#data": data}
        override |= {"train#dataset#cache_num": 0, "validate#dataset#cache_num": 0}
    else:
        override |= {"datalist": [data[0]["image"]], "handlers": []}
    workflow = ConfigWorkflow(
        str(bundle / f"configs/{name}.json"), workflow_type=kind, logging_file=False, **override
    )
    workflow.initialize()
    assert not list(tmp_path.iterdir()), "nothing is written before a run"
    assert workflow.check_properties() == []


def test_train_config(bundle: Path):
    train = config(bundle, "train")
    for key in ("network", "output_dir", "val_interval", "seed", "num_classes", "in_channels"):
        assert key in train, key
    for part in ("train", "validate"):
        assert isinstance(train[part]["handlers"], list)
        assert isinstance(train[part]["preprocessing"]["transforms"], list)
        assert "data" in train[part]["dataset"]
    (validation,) = (h for h in train["train"]["handlers"] if h["_target_"] == "ValidationHandler")
    assert validation["validator"] == "@validate#evaluator"
    assert validation["interval"] == "@val_interval"
    saver = train["validate"]["handlers"][-1]
    assert (saver["_target_"], saver["key_metric_filename"]) == ("CheckpointSaver", "model.pt")


def test_inference_config(bundle: Path):
    inference = config(bundle, "inference")
    for key in (
        "network",
        "output_dir",
        "datalist",
        "dataloader",
        "preprocessing",
        "postprocessing",
    ):
        assert key in inference, key
    assert "_target_" in inference["inferer"]
    loader = inference["handlers"][0]
    assert (loader["_target_"], loader["load_path"]) == ("CheckpointLoader", "@checkpoint")
    targets = [t["_target_"] for t in inference["postprocessing"]["transforms"]]
    assert targets.index("Invertd") < targets.index("SaveImaged")


def test_initialize_has_no_side_effects_on_files(bundle: Path):
    for name in ("train", "inference", "evaluate", "multi_gpu_train"):
        for step in config(bundle, name).get("initialize", []):
            assert isinstance(step, str), "checks belong to run, so that loading never fails"


def test_configs_say_what_they_do(bundle: Path):
    for name in ("train", "inference", *DELTAS):
        content = config(bundle, name)
        for text in strings(content):
            assert not text.startswith("%"), f"{name}: macro {text}"
            assert not (text.startswith("$") and re.search(r"\bcommon\b", text)), f"{name}: {text}"
        for id_, value in ids(content).items():
            if id_.endswith("_target_") and value.startswith("common."):
                module, _, attribute = value.rpartition(".")
                assert callable(getattr(importlib.import_module(module), attribute)), value


def test_train_and_inference_agree(bundle: Path):
    train, inference = config(bundle, "train"), config(bundle, "inference")
    for key in (
        "network_def",
        "in_channels",
        "num_classes",
        "spacing",
        "in_plane_factor",
        "slice_spacing",
        "patch_size",
        "image_size",
        "intensity",
        "device",
        "amp",
    ):
        assert train.get(key) == inference.get(key), key

    def steps(preprocessing: Config) -> list[Config]:
        """What a chain does to the image: the label's share left out."""
        done = []
        for step in preprocessing["transforms"]:
            found = re.fullmatch(r"@train#preprocessing#transforms#(\d+)", str(step))
            step = train["train"]["preprocessing"]["transforms"][int(found[1])] if found else step
            if isinstance(step, dict):
                # What one stage of a cascade does alone is the inferer's part in inference.
                if step["keys"] == "label" or (staged(bundle) and "_disabled_" in step):
                    continue
                step = {k: v for k, v in step.items() if k not in ("label_key", "num_classes")}
                step["keys"] = "image"
                if isinstance(step.get("mode"), list):
                    step["mode"] = step["mode"][0]
            done.append(step)
        return done

    evaluate = config(bundle, "evaluate")
    assert steps(train["validate"]["preprocessing"]) == steps(inference["preprocessing"])
    assert steps(evaluate["validate#preprocessing"]) == steps(inference["preprocessing"])


def test_other_files_override_what_train_and_inference_have(bundle: Path):
    """configs/mr.json, say, that a user gives after any of the others."""
    known = ids(config(bundle, "train")).keys() & ids(config(bundle, "inference")).keys()
    for file in (bundle / "configs").glob("*.json"):
        if file.stem not in ("metadata", "train", "inference", *DELTAS):
            for key in config(bundle, file.stem):
                assert key in known, f"{file.name}: {key}"


@pytest.mark.parametrize("name", DELTAS)
def test_deltas_change_what_exists(bundle: Path, name: str):
    known = ids(config(bundle, "train")).keys() | {"finalize"}  # MONAI's own, empty if absent
    if name == "evaluate":
        known |= config(bundle, "inference").keys()  # what evaluation has of it, and training not
    for key in config(bundle, name):
        assert key in known, key


def test_shared_files_are_equal(bundle: Path):
    for file in ("configs/multi_gpu_train.json", "configs/logging.conf"):
        assert (bundle / file).read_bytes() == (BUNDLES[0] / file).read_bytes(), file


def test_network_takes_and_gives_what_the_metadata_says(bundle: Path):
    whole = {"stage": "$None"} if staged(bundle) else {}  # one stage's network is half of a cascade
    for name in ("train", "inference"):
        verify_net_in_out(
            "network_def",
            meta_file=str(bundle / "configs/metadata.json"),
            config_file=str(bundle / f"configs/{name}.json"),
            device="cpu",
            n=2,
            **whole,
        )


@pytest.mark.parametrize("name", ["train", "inference"])
def test_classes_and_channels_by_one_override_each(bundle: Path, name: str):
    whole = {"stage": "$None"} if staged(bundle) else {}
    classes = 3 if staged(bundle) else 7
    override = {"in_channels": 4, "num_classes": classes} | whole
    network = parser(bundle, name, **override).get_parsed_content("network_def")
    dims = spatial_dims(bundle)
    with torch.no_grad():
        channels = network.eval()(torch.zeros(1, 4, *[32] * dims)).shape[1]
    assert channels == classes - nested(bundle)


def test_epochs_by_override(bundle: Path):
    parsed = parser(bundle, "train", **{"train#trainer#max_epochs": 1})
    assert parsed["train#trainer#max_epochs"] == 1
    scheduler = parsed.get_parsed_content("lr_scheduler")
    assert getattr(scheduler, "total_iters", 1) == 1  # of those that end with the training


def test_networks_of_monai_by_one_override(bundle: Path):
    dims = spatial_dims(bundle)
    arguments = {"spatial_dims": dims, "in_channels": "@in_channels", "init_filters": 8}
    other = {"_target_": "SegResNet", **arguments, "out_channels": "@num_classes"}
    parsed = parser(bundle, "train", network_def=other)
    optimizer = parsed.get_parsed_content("optimizer")
    network = parsed.get_parsed_content("network")
    assert type(network).__name__ == "SegResNet"
    assert optimizer.param_groups[0]["params"][0] is next(network.parameters())


def differences(first: Config, second: Config, but_for: Iterable[str] = ()) -> set[str]:
    """Ids at which two configs differ, those of `MAY_DIFFER`, `but_for` and below left out."""
    a, b = ids(first), ids(second)
    allowed = tuple(f"{id_}#" for id_ in (*MAY_DIFFER, *but_for))
    return {
        id_
        for id_ in a.keys() | b.keys()
        if not f"{id_}#".startswith(allowed)
        and not isinstance(a.get(id_, b.get(id_)), (dict, list))
        and a.get(id_, ids) != b.get(id_, ids)
    }


def test_every_bundle_has_a_family():
    members = [name for family in FAMILIES.values() for name in family]
    assert sorted(members) == [bundle.name for bundle in BUNDLES]


@pytest.mark.parametrize("family", FAMILIES)
def test_bundles_of_a_family_are_alike(family: str):
    reference, *others = FAMILIES[family]
    for other in others:
        for name in ("train", "inference", "evaluate"):
            first, second = (config(REPOSITORY / "bundles" / b, name) for b in (reference, other))
            found = differences(first, second, MAY_DIFFER_IN.get(other, ()))
            assert found == set(), f"{other}: {name}.json"


@pytest.mark.parametrize("name", MAY_DIFFER_IN)
def test_every_exception_is_needed(name: str):
    reference = next(members[0] for members in FAMILIES.values() if name in members)
    found: set[str] = set()
    for file in ("train", "inference", "evaluate"):
        found |= differences(*(config(REPOSITORY / "bundles" / b, file) for b in (reference, name)))
    for id_ in MAY_DIFFER_IN[name]:
        assert any(f"{other}#".startswith(f"{id_}#") for other in found), id_


def test_differences_are_seen():
    first = config(BUNDLES[0], "train")
    second = copy.deepcopy(first)
    second["network_def"]["init_filters"] = 8
    assert differences(first, second) == set()
    second["train"]["dataloader"]["shuffle"] = False
    second["validate"]["handlers"].append({"_target_": "New"})
    assert differences(first, second) == {
        "train#dataloader#shuffle",
        f"validate#handlers#{len(first['validate']['handlers'])}#_target_",
    }
