"""Settings that travel: from a training's config to its checkpoint, and to all that uses this."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, load
from monai.transforms import NormalizeIntensityd
from torch import nn

from common.checkpoints import join_settings, load_settings, load_state_dict
from common.cli.checkpoints import settings as settings_verb
from common.data import label_names, named_classes
from common.data.phantom import write_phantom
from common.errors import InputError, input_error_in
from common.networks import LightMUNet
from common.workflows import (
    load_for_export,
    read_settings,
    running_settings,
    with_settings,
    write_settings,
)

from ..conftest import REPOSITORY
from ..running import command, succeed

BUNDLES = sorted(path for path in (REPOSITORY / "bundles").iterdir() if path.is_dir())
LUNG = REPOSITORY / "bundles/lung_cxr_lightm_unet_segmentation"
LIVER = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation"
CASCADE = REPOSITORY / "bundles/liver_tumor_ct_elanres_msca_segmentation"
NETWORK: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
NETWORK |= {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
SETTINGS: dict[str, Any] = {
    "in_channels": 1,
    "num_classes": 3,
    "image_size": [64, 48],
    "intensity": {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True},
    "network_def": {"_target_": "common.networks.LightMUNet", **NETWORK},
}


def save(path: Path, settings: Any = SETTINGS) -> Path:
    torch.save({"model": {}, "settings": settings}, path)
    return path


def parsed(bundle: Path, *configs: str | Path, **override: Any) -> ConfigParser:
    parser = ConfigParser()
    files = [bundle / f"configs/{x}.json" if isinstance(x, str) else x for x in configs]
    parser.read_config([str(file) for file in files])
    parser.update({"device": "cpu"} | override)
    return parser


def with_checkpoint(file: Path, **override: Any) -> ConfigParser:
    return parsed(LUNG, "inference", checkpoint=str(file), **override)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save(tmp_path / "model.pt")


def test_inference_is_as_trained(checkpoint: Path):
    parser = with_checkpoint(checkpoint)
    assert parser.get_parsed_content("image_size") == [64, 48]
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, LightMUNet)
    wanted = {name: x.shape for name, x in LightMUNet(**NETWORK).state_dict().items()}
    assert {name: x.shape for name, x in network.state_dict().items()} == wanted
    *_, intensity, size = parser.get_parsed_content("preprocessing").transforms
    assert tuple(size.resizer.spatial_size) == (64, 48)
    assert intensity.normalizer.nonzero
    assert intensity is parser.get_parsed_content("intensity")


# A third of the bundle's ids, each in another form.
OVERRIDES: dict[str, dict[str, Any]] = {
    "abdomen_ct_umamba_segmentation": {"intensity#a_max": 300, "num_classes": 3},
    "brain_tumor_mr_segmamba_segmentation": {"regions": [[1], [3]], "in_channels": 2},
    "lung_cxr_lightm_unet_segmentation": {
        "image_size": [64, 64],
        "intensity": {"_target_": "ScaleIntensityd", "keys": "image"},
    },
    "hippocampus_mr_lightm_unet_segmentation": {
        "spacing": [1.0, 1.0, 2.0],
        "intensity#nonzero": True,
    },
    "liver_ct_lightm_unet_segmentation": {"spacing": "$[2, 2, @num_classes]", "axcodes": "SPL"},
    "liver_tumor_ct_mambaclinix_segmentation": {"intensity#a_min": -50, "batch_dice": False},
    "liver_tumor_ct_codebook_mamba_segmentation": {"slice_spacing": 2.5, "ignore_label": 9},
    "liver_tumor_ct_lcmambanet_segmentation": {"slices": 3, "label_map": {"0": 0, "1": [1, 2]}},
    "liver_tumor_ct_elanres_msca_segmentation": {"margin": 4, "slice_spacing": 2.0},
    "abdomen_mr_swin_umamba_segmentation": {"spacing": [1.5, 1.25], "axcodes": "PLS"},
    "skin_lesion_rgb_vm_unet_segmentation": {"axes": [0, 2, 1], "intensity#maxv": 1.0},
}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_what_training_was_told_arrives(bundle: Path, tmp_path: Path):
    trained = parsed(bundle, "train", modality="MR", **OVERRIDES[bundle.name])
    told = trained.get_parsed_content("settings")
    assert json.loads(json.dumps(told)) == told
    for configs in (["inference"], ["train", "evaluate"]):
        parser = parsed(bundle, *configs, checkpoint=str(save(tmp_path / "model.pt", told)))
        for name in told.keys() - {"intensity", "label_names", "network_def"}:
            if name in parser and "network_def" not in name:
                assert parser.get_parsed_content(name) == trained.get_parsed_content(name), name
        ours, theirs = (p.get_parsed_content("intensity") for p in (trained, parser))
        assert type(ours) is type(theirs)
        for name, part in vars(ours).items():
            if name in ("scaler", "normalizer"):
                assert vars(part) == vars(getattr(theirs, name))


def test_a_cascades_networks_arrive_and_its_stage_does_not(tmp_path: Path):
    small = {f"network_def#{name}#widths": [4] * 5 for name in ("liver", "tumour")}
    told = parsed(CASCADE, "train", stage="tumor", **small).get_parsed_content("settings")
    file = str(save(tmp_path / "model.pt", told))
    for configs in (["inference"], ["train", "evaluate"]):
        # One more, given for one of the networks.
        more = {"checkpoint": file, "network_def#tumour#msca": False}
        network = parsed(CASCADE, *configs, **more).get_parsed_content("network_def")
        assert network.stage is None
        wanted = parsed(
            CASCADE, "train", stage="$None", **small, **{"network_def#tumour#msca": False}
        )
        shapes = {k: x.shape for k, x in network.state_dict().items()}
        expected = wanted.get_parsed_content("network_def").state_dict()
        assert shapes == {k: x.shape for k, x in expected.items()}


def test_what_is_given_counts_and_is_told(checkpoint: Path, caplog: pytest.LogCaptureFixture):
    # Also where it is what the config has by itself.
    given = {"image_size": [512, 512], "network_def#init_filters": 16, "num_classes": 3}
    parser = with_checkpoint(checkpoint, **given)
    with caplog.at_level("INFO"):
        network = parser.get_parsed_content("network_def")
    assert parser.get_parsed_content("image_size") == [512, 512]
    assert network.stem.pointwise.weight.shape[0] == 16
    assert caplog.text.count("as given") == 2
    for sentence in (
        f"image_size is [512, 512] as given; {checkpoint} was trained with [64, 48].",
        f"network_def#init_filters is 16 as given; {checkpoint} was trained with 8.",
        f"As {checkpoint} was trained: in_channels, intensity, network_def.",
    ):
        assert sentence in caplog.text


def test_whole_components_that_are_given(checkpoint: Path, caplog: pytest.LogCaptureFixture):
    other = {"_target_": "SegResNet", "spatial_dims": 2, "out_channels": "@num_classes"}
    intensity = {"_target_": "NormalizeIntensityd", "keys": "image", "dtype": "$torch.float16"}
    parser = with_checkpoint(checkpoint, network_def=other, intensity=intensity)
    with caplog.at_level("INFO"):
        parser.get_parsed_content("run#2")  # what a run does where nothing else asks for settings
        assert type(parser.get_parsed_content("network_def")).__name__ == "SegResNet"
    assert "network_def#_target_ is SegResNet as given" in caplog.text
    assert "network_def#init_filters is no value as given" in caplog.text
    assert "network_def#out_channels" not in caplog.text  # as trained
    assert "intensity is intensity#dtype is a dtype as given" in caplog.text


def test_dropout_of_epistemic_scoring(checkpoint: Path):
    """As MONAI Label sets it."""
    parser = with_checkpoint(checkpoint)
    parser["network_def"]["dropout"] = 0.2
    network = parser.get_parsed_content("network_def")
    assert any(
        isinstance(m, nn.modules.dropout._DropoutNd) and m.p == 0.2 for m in network.modules()
    )


def test_checkpoints_without_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with_checkpoint(tmp_path / "none.pt").get_parsed_content("image_size")
    assert (
        f"There is no checkpoint {tmp_path}/none.pt: the settings are the config's" in caplog.text
    )
    torch.save({"weight": torch.ones(1)}, tmp_path / "old.pt")
    parser = with_checkpoint(tmp_path / "old.pt")
    assert parser.get_parsed_content("image_size") == [512, 512]
    assert "old.pt has no settings of its training: the config's own hold" in caplog.text
    assert isinstance(parser.get_parsed_content("intensity"), NormalizeIntensityd)
    save(tmp_path / "some.pt", {"num_classes": 3})
    with_checkpoint(tmp_path / "some.pt").get_parsed_content("num_classes")
    assert "some.pt says nothing of image_size: the config's own holds" in caplog.text


def component(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


RUN = "touch run"
MALICIOUS = {
    "a function": ("network_def", component("os.system", command=RUN)),
    "a program": ("network_def", component("subprocess.Popen", args=RUN, shell=True)),
    "through our package": (
        "network_def",
        component("common.networks.cascade.torch.hub.os.system", command=RUN),
    ),
    "through MONAI": ("network_def", component("monai.bundle.scripts.os.system", command=RUN)),
    "a function of MONAI": ("network_def", component("monai.bundle.run", run_id="x")),
    "by a short name": ("network_def", component("run_eval")),
    "a reader that is found by its name": (
        "intensity",
        component("LoadImaged", keys="image", reader="os.system"),
    ),
    "a module that loads others": (
        "network_def",
        component("monai.losses.PerceptualLoss", spatial_dims=2),
    ),
    "weights from an address": (
        "network_def",
        component("HoVerNet", pretrained_url="https://example.org/weights.pt"),
    ),
    "weights that are downloaded": (
        "network_def",
        component("FlexibleUNet", in_channels=3, out_channels=2, backbone="efficientnet-b0")
        | {"pretrained": True, "spatial_dims": 2},
    ),
    "weights by default": (
        "network_def",
        component("EfficientNetBN", model_name="efficientnet-b0"),
    ),
    "weights by a number": (
        "network_def",
        component("DenseNet121", spatial_dims=2, in_channels=3, out_channels=2, pretrained=1),
    ),
    "weights in a file": ("network_def", component("ResNetFeatures", model_name="resnet10")),
    "weights that have a name": (
        "network_def",
        component("TorchVisionFCModel", model_name="resnet18", weights="DEFAULT"),
    ),
    "a function of torchvision": (
        "network_def",
        component("TorchVisionFCModel", model_name="get_model", name="fcn_resnet50"),
    ),
    "a network of torchvision": (
        "network_def",
        component("MILModel", num_classes=2, backbone="resnet18", pretrained=False),
    ),
    "a checkpoint by default": (
        "network_def",
        component("monai.networks.nets.cell_sam_wrapper.CellSamWrapper"),
    ),
    "weights of a language model": (
        "network_def",
        component("Transchex", in_channels=3, img_size=[32, 32], patch_size=[16, 16])
        | {"num_classes": 2, "num_language_layers": 2, "num_vision_layers": 2}
        | {"num_mixed_layers": 2},
    ),
    "weights of an inner network": (
        "network_def",
        component("NetAdapter", model=component("ResNetFeatures", model_name="resnet10")),
    ),
    "weights in nested arguments": (
        "network_def",
        component("SEResNet50", spatial_dims=2, in_channels=3)
        | {"groups": [{"encoder": [{"pretrained": True}]}]},
    ),
    "nested": (
        "intensity",
        component("Compose", transforms=[component("os.system", command=RUN)]),
    ),
    "nested in an argument": (
        "network_def",
        SETTINGS["network_def"] | {"mixer": component("os.system", command=RUN)},
    ),
    "a mode": ("intensity", component("NormalizeIntensityd", keys="image", _mode_="debug")),
    "an expression": ("image_size", "$__import__('os').system('touch run')"),
    "an expression in a list": ("image_size", ["$__import__('os').system('touch run')"]),
    "an expression as an argument": (
        "network_def",
        SETTINGS["network_def"] | {"mixer": "$__import__('os').system('touch run')"},
    ),
    "a reference": ("image_size", "@evaluator"),
    "a macro": ("image_size", "%/etc/passwd"),
    "a component for a number": ("image_size", component("os.system", command=RUN)),
    "a component in a list": ("image_size", [component("os.system", command=RUN)]),
}


@pytest.mark.parametrize("case", MALICIOUS)
def test_nothing_in_settings_runs(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked for an address"))
    name, value = MALICIOUS[case]
    file = save(tmp_path / "model.pt", SETTINGS | {name: value})
    with pytest.raises(RuntimeError) as refused:
        with_checkpoint(file).get_parsed_content(name)
    assert f"give --{name} yourself" in str(input_error_in(refused.value))
    assert not (tmp_path / "run").exists()
    # What is given in its place is used.
    ours = [32, 32] if name == "image_size" else SETTINGS[name]
    built = with_checkpoint(file, **{name: ours}).get_parsed_content(name)
    assert built == ours if name == "image_size" else callable(built)
    with pytest.raises(InputError, match=f"give --{name} yourself"):
        settings_verb(str(file), str(tmp_path / "settings.json"))
    with pytest.raises(InputError, match=f"give --{name} yourself"):
        with_settings(parsed(LUNG, "inference").config, {name: value})
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_networks_that_might_fetch_and_do_not(tmp_path: Path):
    """By arguments that say so; and others of such a name are no reason to refuse."""
    arguments = {"in_channels": 1, "out_channels": 3, "spatial_dims": 2}
    for target, more in (
        ("FlexibleUNet", {"backbone": "resnet10", "pretrained": False}),
        ("DenseNet121", {"init_features": 8, "block_config": [1], "growth_rate": 4}),
        ("SwinUNETR", {"use_checkpoint": True, "dropout_path_rate": 0.1, "feature_size": 12}),
    ):
        told = {"network_def": component(target, **arguments, **more)}
        parser = with_checkpoint(save(tmp_path / "model.pt", SETTINGS | told))
        assert type(parser.get_parsed_content("network_def")).__name__ == target


def test_networks_and_transforms_of_monai(tmp_path: Path):
    told = SETTINGS | {
        "network_def": component("BasicUNet", spatial_dims=2, features=[4] * 6, act="leakyrelu"),
        "intensity": component(
            "Compose",
            transforms=[
                component("ClipIntensityPercentilesd", keys="image", lower=1, upper=99),
                component(
                    "OneOf",
                    transforms=[component("monai.transforms.ScaleIntensityd", keys=["image"])],
                    weights=[1.0],  # which are no network's
                ),
            ],
        ),
    }
    parser = with_checkpoint(save(tmp_path / "model.pt", told))
    assert type(parser.get_parsed_content("network_def")).__name__ == "BasicUNet"
    image = parser.get_parsed_content("intensity")({"image": torch.arange(99.0).view(1, 9, 11)})
    assert image["image"].max() == 1


@pytest.mark.parametrize(
    "settings", [[1], {"spacing": torch.ones(3)}, {"spacing": {1, 2}}, None], ids=str
)
def test_settings_that_are_no_data(settings: Any, tmp_path: Path):
    file = save(tmp_path / "model.pt", settings)
    with pytest.raises(InputError, match=r"model\.pt (are not what a training wrote|cannot be)"):
        load_settings(file)
    deep: list = []
    for _ in range(30):
        deep = [deep]
    with pytest.raises(InputError, match="are not what a training wrote"):
        load_settings(save(file, {"spacing": deep}))


def test_components_that_are_none(tmp_path: Path):
    file = save(tmp_path / "model.pt", {"network_def": [1, 2]})
    with pytest.raises(RuntimeError) as refused:
        with_checkpoint(file).get_parsed_content("network_def")
    assert "have [1, 2] as network_def" in str(input_error_in(refused.value))


def test_arguments_that_a_network_has_not(tmp_path: Path):
    told = {"network_def": SETTINGS["network_def"] | {"unheard_of": 1}}
    file = save(tmp_path / "model.pt", told)
    with pytest.raises(RuntimeError) as refused:
        with_checkpoint(file).get_parsed_content("network_def")
    assert "network_def cannot be built as the checkpoint's" in str(input_error_in(refused.value))


def test_settings_beside_the_weights(tmp_path: Path):
    """As an attribute of the state dict, which all others take for a state dict."""
    weights = LightMUNet(**NETWORK).state_dict()
    weights.settings = SETTINGS
    torch.save(weights, tmp_path / "model.pt")
    assert load_settings(tmp_path / "model.pt") == SETTINGS
    assert load_state_dict(tmp_path / "model.pt").keys() == weights.keys()
    weights.settings = SETTINGS | {"image_size": "$print()"}
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(RuntimeError) as refused:
        with_checkpoint(tmp_path / "model.pt").get_parsed_content("image_size")
    assert "give --image_size yourself" in str(input_error_in(refused.value))


def test_members_of_an_ensemble_agree(tmp_path: Path):
    folder = tmp_path / "folds"
    folder.mkdir()
    files = [str(save(folder / f"fold{i}.pt")) for i in range(2)]
    for several in (files, str(folder)):
        parser = parsed(LUNG, "inference", **{"typed#checkpoint": several})
        assert parser.get_parsed_content("image_size") == [64, 48]
    save(Path(files[1]), SETTINGS | {"image_size": [64, 64]})
    parser = parsed(LUNG, "inference", **{"typed#checkpoint": files})
    with pytest.raises(RuntimeError) as refused:
        parser.get_parsed_content("image_size")
    assert (f"image_size is [64, 48] in {files[0]} and [64, 64] in {files[1]}; allowed are") in str(
        input_error_in(refused.value)
    )


def test_settings_are_of_a_config():
    with pytest.raises(RuntimeError, match="No bundle's config is being resolved"):
        running_settings(["spacing"])
    assert read_settings("/nowhere/model.pt") == {}


def test_settings_as_a_config(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture):
    """models/settings.json after others: for MONAI's commands, and for the same training again."""
    file = tmp_path / "settings.json"
    write_settings(file, SETTINGS)
    assert json.loads(file.read_text()) == SETTINGS
    for configs in (["inference"], ["train"]):
        parser = parsed(LUNG, *configs, file, bundle_root=str(tmp_path / "elsewhere"))
        assert parser.get_parsed_content("image_size") == [64, 48]
        network = parser.get_parsed_content("network_def")
        assert network.stem.pointwise.weight.shape[0] == 8
    settings_verb(str(checkpoint))
    assert json.loads(capsys.readouterr().out) == SETTINGS
    settings_verb(str(checkpoint), str(tmp_path / "other.json"))
    assert (tmp_path / "other.json").read_bytes() == file.read_bytes()
    torch.save({}, tmp_path / "old.pt")
    with pytest.raises(InputError, match=r"old\.pt has no settings of its training; allowed"):
        settings_verb(str(tmp_path / "old.pt"))
    with pytest.raises(InputError, match="cannot be written"):
        settings_verb(str(checkpoint), str(tmp_path / "no/settings.json"))


def test_exports_have_the_settings(tmp_path: Path):
    """For MONAI Deploy, which has no checkpoint beside the config."""
    weights = LightMUNet(**NETWORK).state_dict()
    torch.save({"model": weights, "settings": SETTINGS}, tmp_path / "model.pt")
    given = {"intensity#channel_wise": True, "num_classes": 3}
    exported = load_for_export(LUNG / "configs/inference.json", tmp_path / "model.pt", given)
    assert exported.size == [64, 48]
    (tmp_path / "inference.json").write_text(json.dumps(exported.config))
    parser = parsed(tmp_path, tmp_path / "inference.json", bundle_root="/nowhere")
    assert parser.get_parsed_content("settings") == {}
    assert parser.get_parsed_content("image_size") == [64, 48]
    normalizer = parser.get_parsed_content("intensity").normalizer
    assert (normalizer.nonzero, normalizer.channel_wise) == (True, True)
    assert parser.get_parsed_content("network_def").stem.pointwise.weight.shape[0] == 8


def test_monais_load_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bundle = tmp_path / "bundles" / LUNG.name
    (bundle / "models").mkdir(parents=True)
    (bundle / "configs").symlink_to(LUNG / "configs")
    weights = LightMUNet(**NETWORK).state_dict()
    torch.save({"model": weights, "settings": SETTINGS}, bundle / "models/model.pt")
    monkeypatch.chdir(tmp_path)
    network = load(
        LUNG.name,
        bundle_dir=bundle.parent,
        workflow_type="inference",
        key_in_ckpt="model",
        args_file={"bundle_root": str(bundle)},
    )
    for name, x in network.state_dict().items():
        assert torch.equal(x, weights[name])


def test_settings_of_a_joined_cascade(tmp_path: Path):
    shared = {"margin": 4, "network_def#liver": {"widths": 1}, "network_def#tumour": {"widths": 1}}
    first = save(tmp_path / "liver.pt", shared | {"network_def#liver": {"widths": 2}})
    second = save(tmp_path / "tumor.pt", shared | {"network_def#tumour": {"widths": 3}})
    joined = join_settings(first, second)
    assert joined["margin"] == 4
    assert joined["network_def#liver"] == {"widths": 2}
    assert joined["network_def#tumour"] == {"widths": 3}
    save(second, shared | {"margin": 8})
    with pytest.raises(InputError, match=r"margin is 4 in \S*liver\.pt and 8 in \S*tumor\.pt"):
        join_settings(first, second)
    torch.save({}, second)
    assert join_settings(first, second) == {}


def test_names_of_classes(tmp_path: Path):
    def named(labels: Any) -> list[str] | None:
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
        return label_names(tmp_path)

    assert label_names(tmp_path) is None
    assert named({"0": "background", "2": "tumour", "1": "liver"}) == [
        "background",
        "liver",
        "tumour",
    ]
    assert named({"background": 0, "liver": 1, "ignore": 2}) == ["background", "liver"]
    assert label_names(tmp_path, label_map={1: 1}) is None
    assert label_names(tmp_path, tmp_path / "cases.json") is None
    assert named_classes(tmp_path) == {"liver": [1]}
    assert named({"background": 0, "whole": [1, 2], "core": 2}) is None
    assert named_classes(tmp_path) is None
    assert named({"liver": 1}) is None
    assert named({}) is None


TEN: dict[str, Any] = {
    "num_classes": 2,
    "label_map": {0: 0, 1: 1, 2: 1},
    "spacing": [6, 6, 8],
    "patch_size": [32, 32, 16],
    "axcodes": "LPS",
    "intensity#a_min": -50,
    "intensity#a_max": 200,
    "network_def#init_filters": 8,
    "network_def#blocks_down": [1, 1],
    "network_def#blocks_up": [1],
}


@pytest.mark.slow
def test_ten_overrides_given_once(tmp_path: Path):
    dataset = write_phantom(tmp_path / "data", cases=6, seed=1, size=48)
    where = {"bundle_root": tmp_path, "dataset_dir": dataset}
    short = {"max_epochs": 1, "epoch_length": 2}
    succeed(command(LIVER, "train", **short, **where, **TEN), cwd=tmp_path)
    written = load_settings(tmp_path / "models/model.pt")
    assert json.loads((tmp_path / "models/settings.json").read_text())["spacing"] == [6, 6, 8]
    assert written["network_def"]["init_filters"] == 8

    outputs = {"none": {}, "all": {k: x for k, x in TEN.items() if k != "label_map"}}
    for name, given in outputs.items():
        where = {"bundle_root": tmp_path, "dataset_dir": dataset / "imagesTs"}
        where["output_dir"] = tmp_path / name
        said = succeed(command(LIVER, "inference", **where, **given), cwd=tmp_path)
        assert ("as given" in said) is False
    masks = sorted((tmp_path / "none").glob("*.nii.gz"))
    assert masks
    for mask in masks:
        ours, theirs = (
            np.asarray(nib.load(f).dataobj) for f in (mask, tmp_path / "all" / mask.name)
        )
        np.testing.assert_array_equal(ours, theirs)

    for name, given in {"none": {}, "all": TEN}.items():
        where = {"bundle_root": tmp_path, "dataset_dir": dataset, "output_dir": tmp_path / name}
        succeed(command(LIVER, ["train", "evaluate"], **where, **given), cwd=tmp_path)
    tables = [(tmp_path / name / "val_dice_raw.csv").read_text() for name in outputs]
    assert tables[0] == tables[1]

    exported = load_for_export(LIVER / "configs/inference.json", tmp_path / "models/model.pt")
    assert exported.size == [32, 32, 16]
    assert exported.config["spacing"] == [6, 6, 8]
    assert exported.config["intensity"]["a_min"] == -50
