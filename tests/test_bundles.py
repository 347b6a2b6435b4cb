"""One contract over all of bundles/*: a bundle that only appears there is held to all of it."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable, Iterable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, list_data_collate
from monai.transforms import Compose

from common.checkpoints import load_settings
from common.errors import input_error_in
from common.networks.recomputation import _Recomputed
from common.zoo.contract import (
    READING,
    RUNNING,
    Check,
    Config,
    config,
    ids,
    nested,
    spatial_dims,
    staged,
)
from common.zoo.new_page import MARK

from .conftest import REPOSITORY, shared

BUNDLES = sorted(path for path in (REPOSITORY / "bundles").iterdir() if path.is_dir())
# Bundles of a family are alike but for these ids; the first name is the family's reference.
FAMILIES: dict[str, list[str]] = {
    "3D": [
        "liver_ct_lightm_unet_segmentation",
        "liver_tumor_ct_mambaclinix_segmentation",
        "liver_tumor_ct_codebook_mamba_segmentation",
        "liver_tumor_ct_elanres_msca_segmentation",
        "hippocampus_mr_lightm_unet_segmentation",
        "abdomen_ct_umamba_segmentation",
        "brain_tumor_mr_segmamba_segmentation",
    ],
    "2D": ["lung_cxr_lightm_unet_segmentation", "skin_lesion_rgb_vm_unet_segmentation"],
    "2D slices": [
        "liver_tumor_ct_lcmambanet_segmentation",
        "abdomen_mr_swin_umamba_segmentation",
    ],
}
MAY_DIFFER = {
    "network_def": "it is what the bundles are made to compare",
    "loss": "each paper has its own",
    "optimizer": "each paper has its own",
    "lr_scheduler": "each paper has its own",
    "max_epochs": "each paper has its own",
    "epoch_length": "each paper has its own",
    "precision": "each paper has its own",
    "learning_rate": "each paper has its own",
    "spacing": "each paper has its own",
    "patch_size": "each paper has its own",
    "image_size": "each paper has its own",
    "batch_size": "each paper has its own",
    "intensity": "each paper has its own",
    "val_interval": "validation takes less than half of the time, whatever its windows",
    "val_cases": "validation takes less than half of the time, whatever its windows",
    "settings": "they are named: what one bundle alone has is named there alone",
}
# What one bundle alone must do otherwise: ids, with all below them.
MAY_DIFFER_IN = {
    "hippocampus_mr_lightm_unet_segmentation": {
        "dataset_dir": "other data",
        "modality": "other data",
        "cache_num": "its volumes are small",
    },
    "abdomen_ct_umamba_segmentation": {
        "dataset_dir": "it is for other data",
        "num_classes": "thirteen organs",
        "batch_dice": "nnU-Net's planner decides it",
        "run#1#batch_dice": "nnU-Net's planner decides it",
        "train#postprocessing": "of outputs at several scales the finest is measured",
    },
    "brain_tumor_mr_segmamba_segmentation": {
        "dataset_dir": "it is for other data",
        "modality": "MR",
        "in_channels": "four sequences",
        "num_classes": "three parts of a tumour",
        "label_map": "one of them has two values, by the year of the data",
        "label_names": "regions are measured",
        "regions": "regions are measured",
        "network_input#multiple_of": "the network cuts its sequences into runs",
        "train#preprocessing#transforms": "it crops to what is not 0",
        "train#postprocessing": "regions are measured",
        "train#key_metric#train_mean_dice#include_background": "no region is the background's",
        "validate#preprocessing#transforms": "it crops to what is not 0",
        "validate#postprocessing": "regions are measured",
        "validate#key_metric#val_mean_dice#include_background": "no region is the background's",
        "validate#additional_metrics": "no region is the background's",
        "validate#handlers#1": "regions are measured, and a picture shows the first",
        "preprocessing#transforms": "it crops to what is not 0",
    },
    "liver_tumor_ct_mambaclinix_segmentation": {
        "batch_dice": "nnU-Net's planner decides it",
        "split": "the paper's",
        "run#1#batch_dice": "nnU-Net's planner decides it",
        "sw_batch_size": "what nnU-Net plans for a device is its patches at a time",
        "train#postprocessing": "of outputs at several scales the finest is measured",
        "validate#additional_metrics#val_recall": "MambaClinix's paper reports it",
    },
    "liver_tumor_ct_codebook_mamba_segmentation": {
        "seed": "the paper names it",
        "clip_tumor": "its paper's inclusion loss shows where tumour is not clipped",
        "run#1#clip_tumor": "its paper's inclusion loss shows where tumour is not clipped",
        "out_channels": "two sigmoid channels instead of a softmax",
        "in_plane_factor": "its spacing is relative to the scan's own",
        "slice_spacing": "its spacing is relative to the scan's own",
        "train#preprocessing#transforms#5": "its spacing is relative to the scan's own",
        "augmentations#nnunet#transforms#1#foreground_fraction": "every patch contains liver",
        "augmentations#none#transforms#1#foreground_fraction": "every patch contains liver",
        "augmentations#light#transforms#0#pos": "every patch contains liver",
        "augmentations#light#transforms#0#neg": "every patch contains liver",
        "augmentations#nnunet#transforms#2#std": "its intensities are from 0 to 1",
        "train#handlers#6": "it has prototypes, of which training tells",
        "train#preprocessing#transforms#8": "its targets are two regions that overlap",
        "train#postprocessing": "two sigmoid channels instead of a softmax",
        "train#key_metric#train_mean_dice#include_background": "no channel is the background's",
        "validate#preprocessing#transforms": "its spacing is relative; two regions",
        "validate#key_metric#val_mean_dice#include_background": "no channel is the background's",
        "validate#additional_metrics": "no channel is the background's",
        "validate#handlers#1#batch_transform": "a picture of two regions that overlap",
        "validate#handlers#1#output_transform": "a picture of two regions that overlap",
        "validate#inferer#activation": "two sigmoid channels instead of a softmax",
        "validate#postprocessing": "two sigmoid channels instead of a softmax",
        "preprocessing#transforms": "its spacing is relative to the scan's own",
        "inferer#activation": "two sigmoid channels instead of a softmax",
        "postprocessing#transforms#0": "two sigmoid channels instead of a softmax",
    },
    "liver_tumor_ct_elanres_msca_segmentation": {
        "stage": "it trains two networks, one after the other",
        "out_channels": "one sigmoid channel for each of them",
        "margin": "around the liver, where the second network looks",
        "reparameterize": "its networks can be folded",
        "in_plane_factor": "its spacing is relative to the scan's own",
        "slice_spacing": "its spacing is relative to the scan's own",
        "split": "the paper's",
        "augmentations#nnunet#transforms#0#num_classes": "one region a stage",
        "augmentations#nnunet#transforms#1#padding_value": "padding is air",
        "augmentations#nnunet#transforms#2#std": "its intensities are from -1 to 1",
        "augmentations#light#transforms#4#padding_mode": "padding is air",
        "augmentations#none#transforms#0#num_classes": "one region a stage",
        "augmentations#none#transforms#1#padding_value": "padding is air",
        "train#handlers": "the coarser scales' weight decays",
        "train#preprocessing#transforms": "it crops to the body, and to the liver for tumours",
        "train#postprocessing": "one sigmoid channel instead of a softmax; the finest scale",
        "train#key_metric#train_mean_dice#include_background": "no channel is the background's",
        "validate#preprocessing#transforms": "it crops to the body, and to the liver for tumours",
        "validate#inferer": "two networks, in evaluation; padding is air",
        "validate#postprocessing": "two sigmoid channels instead of a softmax",
        "validate#key_metric#val_mean_dice#include_background": "no channel is the background's",
        "validate#additional_metrics": "no channel is the background's; a stage has a class",
        "validate#handlers#1#output_transform": "one sigmoid channel instead of a softmax",
        "preprocessing#transforms": "it crops to the body",
        "inferer": "two networks; padding is air",
        "postprocessing#transforms#0": "two sigmoid channels instead of a softmax",
        "run": "the stage is checked, and the other one's network kept",
    },
    "skin_lesion_rgb_vm_unet_segmentation": {
        "dataset_dir": "other data",
        "seed": "the release has it",
        "in_channels": "photographs are red, green and blue",
        "out_channels": "a sigmoid for one class, as in the release",
        "cache_num": "there are more photographs, and they are smaller",
        "augmentation": "the release's",
        "augmentations#released": "the release's",
        "augmentations#nnunet#transforms#0#rotate_range": "no side of a lesion is up",
        "augmentations#nnunet#transforms#1#std": "its intensities are from 0 to 255",
        "augmentations#nnunet#transforms#9": "no side of a lesion is up",
        "augmentations#light#transforms#2#std": "its intensities are from 0 to 255",
        "augmentations#light#transforms#6#offsets": "its intensities are from 0 to 255",
        "augmentations#light#transforms#7": "no side of a lesion is up",
        "encoder_weights": "its encoder may be VMamba's",
        "typed#encoder_weights": "its encoder may be VMamba's",
        "run#7": "its encoder may be VMamba's",
        "run#8": "that step comes before",
        "run#9": "that step comes before",
        "train#preprocessing#transforms#0#_target_": "photographs are in colour",
        "train#postprocessing": "one sigmoid channel instead of a softmax",
        "preprocessing#transforms#0#_target_": "photographs are in colour",
        "inferer#inferer#axes": "no side of a lesion is up",
        "postprocessing#transforms": "one sigmoid channel instead of a softmax; one lesion",
        "handlers#1#desc": "photographs are no radiographs",
        "validate#inferer#inferer#axes": "no side of a lesion is up",
        "validate#postprocessing": "one sigmoid channel instead of a softmax; one lesion",
    },
    "abdomen_mr_swin_umamba_segmentation": {
        "dataset_dir": "other data",
        "seed": "LCMambaNet's paper names one",
        "modality": "it is for MR",
        "num_classes": "13 organs",
        "axcodes": "released weights have other axes",
        "split": "the release trains on all cases",
        "split_seed": "the release trains on all cases",
        "slices_per_case": "a batch is of 30 slices",
        "cache_num": "an epoch reads every case many times",
        "augmentation": "nnU-Net's",
        "augmentations#nnunet#transforms#3#std": "its intensities have the deviation 1",
        "augmentations#basic": "LCMambaNet's paper has it",
        "augmentations#full": "LCMambaNet's paper has it",
        "bce_weight": "its loss has none",
        "boundary_weight": "its loss has none",
        "encoder_frozen_epochs": "a pretrained encoder waits for the decoder",
        "train#handlers#4": "a pretrained encoder waits for the decoder",
        "train#handlers#5": "that handler comes before",
        "train#handlers#6": "that handler comes before",
        "train#handlers#3#schedule#step_transform": "its schedule asks for no score",
        "overlap": "windows slide within slices",
        "displayable_configs#overlap": "windows slide within slices",
        "inferer#inferer#inferer": "windows slide within slices",
        "validate#inferer": "windows slide within slices",
        "train#preprocessing#transforms#3#axcodes": "released weights have other axes",
        "train#preprocessing#transforms#5": "slices have a spacing, and no common size",
        "train#preprocessing#transforms#7": "slices have a spacing, and no common size",
        "train#preprocessing#transforms#8": "that step comes before",
        "preprocessing#transforms#3#axcodes": "released weights have other axes",
        "preprocessing#transforms#5": "slices have a spacing, and no common size",
        "validate#preprocessing#transforms#3#axcodes": "released weights have other axes",
        "validate#preprocessing#transforms#5": "slices have a spacing, and no common size",
    },
}


def parser(bundle: Path, name: str, **override: Any) -> ConfigParser:
    parsed = ConfigParser()
    parsed.read_config(str(bundle / f"configs/{name}.json"))
    parsed.read_meta(str(bundle / "configs/metadata.json"))
    # Without the settings of weights that are shipped: the configs by themselves.
    own = {"bundle_root": str(bundle), "checkpoint": "none.pt", "device": "cpu"}
    parsed.update(own | override)
    return parsed


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_there_are_bundles():
    assert BUNDLES


@pytest.mark.parametrize("check", [*READING, *RUNNING], ids=lambda check: check.__name__)
def test_contract(bundle: Path, check: Check):
    assert list(check(bundle)) == []


WITH_WEIGHTS = [
    "hippocampus_mr_lightm_unet_segmentation",
    "lung_cxr_lightm_unet_segmentation",
]


def test_who_ships_weights_says_so(bundle: Path):
    shipped = bundle.name in WITH_WEIGHTS
    meta = config(bundle, "metadata")
    for key in ("weights", "weights_license", "reference_prediction"):
        assert (key in meta) == shipped, key


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_shipped_weights_are_small_and_licensed(name: str):
    bundle = REPOSITORY / "bundles" / name
    meta = config(bundle, "metadata")
    licence = re.fullmatch(r"CC-(BY-SA|BY-NC-SA)-4\.0", meta["weights_license"])
    assert licence is not None
    assert f"CC {licence[1]} 4.0" in (bundle / "docs/data_license.txt").read_text()
    assert (bundle / "models/model.pt").stat().st_size <= 6_000_000
    told = load_settings(bundle / "models/model.pt")
    names = meta["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert told["label_names"] == list(names.values())
    assert told == json.loads((bundle / "models/settings.json").read_text())


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_shipped_weights_are_of_the_bundles_recipe(name: str):
    """Their training was told what the bundle's configs say, but for the cases and their names."""
    bundle = REPOSITORY / "bundles" / name
    told = load_settings(bundle / "models/model.pt")
    own = config(bundle, "as_shipped") if (bundle / "configs/as_shipped.json").exists() else {}
    train = parser(bundle, "train", **own)
    for id_ in told.keys() - {"label_names", "network_def", "intensity"}:
        assert told[id_] == train.get_parsed_content(id_), id_
    for id_ in ("network_def", "intensity"):
        for name, value in told[id_].items():
            assert value == train.get_parsed_content(f"{id_}#{name}"), f"{id_}#{name}"


def test_nothing_is_left_to_fill_in(bundle: Path):
    """Of what `python -m common new-bundle` leaves to its maker."""
    texts = [x for x in bundle.rglob("*") if x.suffix in (".json", ".md", ".txt")]
    assert bundle / "docs/README.md" in texts
    assert [file for file in texts if MARK in file.read_text()] == []


def test_licence(bundle: Path):
    assert (bundle / "LICENSE").read_bytes() == (REPOSITORY / "LICENSE").read_bytes()


def test_versions_are_those_tested(bundle: Path):
    meta = config(bundle, "metadata")
    pins = dict(
        re.findall(r"^([\w-]+)==([\w.]+)", (REPOSITORY / "constraints.txt").read_text(), re.M)
    )
    assert meta["monai_version"] == pins["monai"]
    assert meta["pytorch_version"] == pins["torch"]
    assert meta["numpy_version"] == pins["numpy"]
    for package, version in meta["required_packages_version"].items():
        assert version == pins[package], package


def test_metadata_against_monais_schema(bundle: Path):
    validators = pytest.importorskip("jsonschema.validators")
    schema = json.loads(shared("data/monai/meta_schema_20240725.json").read_text())
    validator = validators.validator_for(schema)
    validator.check_schema(schema)
    assert not list(validator(schema).iter_errors(config(bundle, "metadata")))


def test_shared_files_are_equal(bundle: Path):
    for file in ("configs/multi_gpu_train.json", "configs/logging.conf"):
        assert (bundle / file).read_bytes() == (BUNDLES[0] / file).read_bytes(), file


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


@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_reaches_the_network(bundle: Path, checkpointing: bool):
    other = {"_target_": "SegResNet", "spatial_dims": 2, "init_filters": 8}
    parsed = parser(bundle, "train", network_def=other, checkpointing=checkpointing)
    *_, step, training = parsed["run"]
    assert step["_target_"] == "common.networks.recompute_levels"
    assert training == "$@train#trainer.run()"
    parsed.get_parsed_content(f"run#{len(parsed['run']) - 2}")
    levels = parsed.get_parsed_content("network").down_layers
    assert all(isinstance(level, _Recomputed) == checkpointing for level in levels)


@pytest.mark.parametrize("name", ["train", "evaluate", "inference"])
def test_precision_is_checked(bundle: Path, name: str):
    files = ["train", "evaluate"] if name == "evaluate" else [name]
    parsed = parser(bundle, files[0])
    parsed.read_config([str(bundle / f"configs/{file}.json") for file in files])
    targets = [step["_target_"] for step in parsed["run"] if isinstance(step, dict)]
    step = f"run#{targets.index('common.workflows.check_precision')}"
    for options, sentence in (
        ({"precision": "float16"}, "precision is 'float16' on cpu; allowed there are"),
        ({"precision": "float32", "amp": True}, "amp is True, but precision is 'float32'"),
    ):
        parsed.update({"device": "cpu", **options})
        with pytest.raises(RuntimeError) as refused:
            parsed.get_parsed_content(step)
        assert str(input_error_in(refused.value)).startswith(sentence)
    parsed.update({"precision": "bfloat16"})
    parsed.get_parsed_content(step)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_precision_of_every_engine(bundle: Path, device: str):
    """Products are in it: by ours on the CPU, on CUDA by MONAI's engines, with their scaler."""
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for id_, own in (
        ("train#trainer", "train#inferer"),
        ("validate#evaluator", "validate#inferer"),
        ("evaluator", "inferer"),
    ):
        parsed = parser(bundle, "inference" if id_ == "evaluator" else "train", device=device)
        parsed[own] = "$lambda x, network: network(x)"
        for precision, amp in (("float32", False), ("bfloat16", True), ("bfloat16", False)):
            parsed.update({"precision": precision, "amp": amp})
            ours = amp and device == "cpu"
            inferer = parsed.get_parsed_content(f"{id_}#inferer")
            assert inferer(x, layer).dtype == (torch.bfloat16 if ours else torch.float32)
            assert parsed.get_parsed_content(f"{id_}#amp") is (amp and device != "cpu")
            assert parsed.get_parsed_content(f"{id_}#amp_kwargs#dtype") == getattr(torch, precision)


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


def flips_of(inferer: Any) -> Any:
    """The part of an inferer, or of its config, that flips: it is within the others."""
    config = isinstance(inferer, dict)
    if (
        (inferer["_target_"] if config else repr(type(inferer)))
        .rstrip("'>")
        .endswith("FlipInferer")
    ):
        return inferer
    return flips_of(inferer["inferer"] if config else inferer.inferer)


def set_panel(parsed: ConfigParser, **options: Any) -> None:
    """As MONAI Label does with what its users choose."""
    parsed["displayable_configs"].update(options)
    parsed.parse()


def set_options(parsed: ConfigParser, **options: Any) -> None:
    """As the command line does: --overlap 0.25."""
    parsed.update(options)


@pytest.mark.parametrize("give", [set_panel, set_options])
def test_options_of_monai_labels_panel_take_effect(bundle: Path, give: Callable[..., None]):
    parsed = parser(bundle, "inference", handlers=[])
    panel = parsed["displayable_configs"]
    off: Config = {"test_time_flips": False, "keep_largest_component": False}
    slides = "overlap" in flips_of(parsed["inferer"])["inferer"]
    assert panel == ({"overlap": 0.5} if slides else {}) | off

    def steps() -> list[str]:
        chain = parsed.get_parsed_content("postprocessing").transforms
        return [type(step).__name__ for step in chain]

    assert flips_of(parsed.get_parsed_content("inferer")).axes == []
    assert "KeepLargestComponentsd" not in steps()

    parsed = parser(bundle, "inference", handlers=[])
    give(parsed, **dict.fromkeys(off, True), **({"overlap": 0.125} if slides else {}))
    inferer = flips_of(parsed.get_parsed_content("inferer"))
    train = config(bundle, "train")
    steps_of = train["augmentations"][train["augmentation"]]["transforms"]
    flips = [step["spatial_axis"] for step in steps_of if step["_target_"] == "RandFlipd"]
    assert inferer.axes == flips, "what training has seen"
    assert getattr(inferer.inferer, "overlap", None) == 0.125 or not slides
    assert steps()[-2:] == ["KeepLargestComponentsd", "SaveImaged"]


@pytest.mark.parametrize("name", FAMILIES["3D"])
def test_overlap_of_an_evaluation(name: str):
    """Inference's own by default, not that of training's validation; or as it is given."""
    files = [f"{REPOSITORY}/bundles/{name}/configs/{file}.json" for file in ("train", "evaluate")]
    for given, expected in (({}, 0.5), ({"overlap": 0.125}, 0.125)):
        parsed = ConfigParser()
        parsed.read_config(files)
        parsed.update({"device": "cpu"} | given)
        inferer = flips_of(parsed.get_parsed_content("validate#inferer")).inferer
        assert inferer.overlap == expected


def test_images_of_one_name_have_a_mask_each(bundle: Path, tmp_path: Path):
    """In folders of their own; where not even these differ, a run ends before it begins."""
    outputs = tmp_path / "masks"
    parsed = parser(bundle, "inference", dataset_dir=str(tmp_path), output_dir=str(outputs))
    save = parsed.get_parsed_content("postprocessing").transforms[-1]
    dims = 2 if parsed["masks"].get("extension") == ".png" else 3  # of a mask
    for number, folder in enumerate("AB"):
        meta = {"filename_or_obj": str(tmp_path / folder / "patient_1.png")}
        save({"pred": MetaTensor(torch.full((1, *[4 + number] * dims), 1.0), meta=meta)})
    written = sorted(path.relative_to(outputs) for path in outputs.rglob("*.*"))
    assert [path.parent.name for path in written] == ["A", "B"]
    assert len({(outputs / path).read_bytes() for path in written}) == 2

    images = [str(tmp_path / name) for name in ("scan.nii", "scan.nii.gz")]
    parsed = parser(
        bundle, "inference", dataset_dir=str(tmp_path), output_dir=str(tmp_path), datalist=images
    )
    step = parsed["run"].index("$@masks.plan(@datalist)")
    assert parsed["run"][step + 1].startswith("$@evaluator.run()"), "the last before the evaluator"
    with pytest.raises(RuntimeError) as refused:
        parsed.get_parsed_content(f"run#{step}")
    assert "scan.nii and of " in str(input_error_in(refused.value))


@pytest.mark.parametrize("name", ["train", "evaluate", "inference"])
def test_switches_are_true_or_false(bundle: Path, name: str):
    """Of --amp no the command line hands on a text, which would count as true."""
    files = ["train", "evaluate"] if name == "evaluate" else [name]
    content = {id_: value for file in files for id_, value in config(bundle, file).items()}
    switches = {id_ for id_, value in content.items() if isinstance(value, bool) and "#" not in id_}
    switches |= {"amp", *content.get("displayable_configs", {})} - {"overlap"}
    switches -= {"keep_largest_component"}  # which may be more than one, and is checked by its own
    if name != "train":
        switches -= {"batch_dice"}  # the loss's
    if name == "evaluate":
        switches -= {"resume", "check_finite", "checkpointing", "strict"}  # the training's
    assert switches == set(content["run"][1]) - {"_target_"}
    for switch in switches:
        parsed = parser(bundle, files[0])
        parsed.read_config([str(bundle / f"configs/{file}.json") for file in files])
        parsed.update({"device": "cpu", switch: "no"})
        with pytest.raises(RuntimeError) as refused:
            parsed.get_parsed_content("run#1")
        assert input_error_in(refused.value) == f"{switch} is 'no'; allowed are True and False."


AUGMENTATIONS = {
    "liver_tumor_ct_lcmambanet_segmentation": ["nnunet", "light", "none", "basic", "full"],
    "skin_lesion_rgb_vm_unet_segmentation": ["nnunet", "light", "none", "released"],
}
DEFAULT_AUGMENTATION = {
    "liver_tumor_ct_lcmambanet_segmentation": "full",
    "skin_lesion_rgb_vm_unet_segmentation": "released",
}


def test_augmentation_is_one_of_those_there_are(bundle: Path):
    names = AUGMENTATIONS.get(bundle.name, ["nnunet", "light", "none"])
    train = config(bundle, "train")
    assert list(train["augmentations"]) == names
    assert train["augmentation"] == DEFAULT_AUGMENTATION.get(bundle.name, "nnunet")
    parsed = parser(bundle, "train", augmentation="strong")
    with pytest.raises(RuntimeError) as refused:
        parsed.get_parsed_content("run#2")
    listed = ", ".join(map(repr, names))
    assert input_error_in(refused.value) == f"augmentation is 'strong'; allowed are {listed}."


@pytest.mark.parametrize("name", ["nnunet", "light", "none"])
def test_augmentations_give_patches(bundle: Path, name: str):
    """Of the working size, from a volume with an elongated patch; without any, as it was."""
    slices = bundle.name in FAMILIES["2D slices"]
    size = {2: [32, 32], 3: [32, 32] if slices else [32, 28, 8]}[spatial_dims(bundle)]
    sizes = {"patch_size": size, "image_size": size, "network_input#multiple_of": 1}
    train = config(bundle, "train")
    known = ids(train)
    parsed = parser(bundle, "train", **{id_: x for id_, x in sizes.items() if id_ in known})
    chain = parsed.get_parsed_content(f"augmentations#{name}").set_random_state(0)
    shape = [32, 32, 20][: 3 if slices else spatial_dims(bundle)]
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, *shape)
    label[:, 10:20, 10:20] = 1
    drawn = []
    for _ in range(20):
        samples = chain({"image": MetaTensor(image), "label": MetaTensor(label)})
        samples = samples if isinstance(samples, list) else [samples]
        assert len(samples) == train.get("slices_per_case", 1)
        drawn += samples
        for sample in samples:
            assert sample.keys() >= {"image", "label"}
            assert list(sample["image"].shape[1:]) == list(sample["label"].shape[1:]) == size
            assert sample["image"].isfinite().all()
            if name == "none":  # a part of it, or all
                assert torch.isin(sample["image"].as_tensor(), image).all()
    assert len(list_data_collate(drawn)["image"]) == len(drawn)  # whatever happened to each


def test_network_of_epistemic_scoring(bundle: Path):
    """MONAI Label gives it `dropout`, and takes one map of logits in training mode."""
    network = parser(bundle, "inference", **{"network_def#dropout": 0.2})
    built = network.get_parsed_content("network_def").train()
    channels = network.get_parsed_content("in_channels")
    image = torch.rand(2, channels, *[32] * spatial_dims(bundle))
    with torch.no_grad():
        first, second = built(image), built(image)
    assert first.shape[2:] == image.shape[2:]
    assert not torch.equal(first, second)


def test_paths_are_what_was_typed(bundle: Path):
    """Whatever reads a path of the user's reads what was typed, not what python-fire made of it."""
    names = config(bundle, "train")["typed"] | config(bundle, "inference")["typed"]
    assert names.keys() >= {"dataset_dir", "output_dir", "ckpt_dir", "checkpoint", "split_file"}
    path = re.compile(rf"@({'|'.join(names)})\b")
    for file in sorted((bundle / "configs").glob("*.json")):
        for id_, value in ids(json.loads(file.read_text())).items():
            if isinstance(value, str) and (name := path.search(value)):
                assert id_ == f"typed#{name[1]}#value", f"{file.name}: {id_} reads {value}"


@pytest.mark.parametrize(
    ("name", "part"), [("train", "train#"), ("train", "validate#"), ("inference", "")]
)
def test_workers_may_be_started_by_spawn(bundle: Path, name: str, part: str):
    """As on macOS and Windows, where what a worker works with is pickled."""
    transforms = parser(bundle, name).get_parsed_content(f"{part}preprocessing")
    sent = pickle.loads(ForkingPickler.dumps(transforms))
    assert [type(t) for t in sent.transforms] == [type(t) for t in transforms.transforms]


def test_every_process_validates(bundle: Path):
    """Of several, all but the first have the handlers before TensorBoard's."""
    steps = ids(config(bundle, "train")["train"]["handlers"])
    handlers = [step for id_, step in steps.items() if re.fullmatch(r"\d+#_target_", id_)]
    before = set(handlers[: handlers.index("TensorBoardStatsHandler")])
    assert before >= {"ValidationHandler", "common.workflows.TrainingState"}
    assert "ignite.handlers.ProgressBar" not in before
    chosen = config(bundle, "multi_gpu_train")["train#trainer#train_handlers"]
    assert ".index('TensorBoardStatsHandler')" in chosen


@pytest.mark.parametrize("name", FAMILIES["3D"][:2])  # whose papers released their code
def test_arrays_as_in_the_released_code(name: str, tmp_path: Path):
    """SimpleITK gives nnU-Net axes z, y, x of a file whose axes are x, y, z in LPS."""
    values = np.random.default_rng(0).integers(-200, 250, (9, 8, 7)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([-1.5, -1.5, 2.0, 1.0])), tmp_path / "lps.nii.gz")
    wanted = {"axcodes": "SPL", "spacing": [2.0, 1.5, 1.5]}
    parsed = parser(REPOSITORY / "bundles" / name, "inference", **wanted)
    transforms = parsed.get_parsed_content("preprocessing").transforms
    at = next(i for i, t in enumerate(transforms) if type(t).__name__ == "OwnKeysSpacingd")
    steps = [*transforms[: at - 1], transforms[at]]  # but for the intensities
    loaded = Compose(steps)({"image": str(tmp_path / "lps.nii.gz")})["image"]
    np.testing.assert_allclose(loaded[0], values.transpose(2, 1, 0), atol=1e-3)
