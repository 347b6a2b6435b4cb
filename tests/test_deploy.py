"""What MONAI Deploy's operator for bundles does with each of ours, and the application's folder.

The operator (monai-deploy-app-sdk 4.0.0, MonaiBundleInferenceOperator) reads metadata and inference
config from the TorchScript file, leaves out transforms whose class is called LoadImage or
SaveImage, and gives the others an image that it has read itself.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor, nn

from common.networks import LightMUNet

from .conftest import REPOSITORY

BUNDLES = {
    path.name: json.loads((path / "configs/metadata.json").read_text())
    for path in sorted((REPOSITORY / "bundles").iterdir())
}
SERIES = {
    name: metadata["modality"] in ("CT", "MR")
    and metadata["network_data_format"]["inputs"]["image"]["num_channels"] == 1
    for name, metadata in BUNDLES.items()
}
VOLUMES = [name for name, of_one_series in SERIES.items() if of_one_series]


@pytest.mark.parametrize("name", BUNDLES)
def test_metadata_for_the_generator(name: str):
    metadata = BUNDLES[name]
    assert metadata["modality"]
    assert metadata["organ"]
    assert "segmentation" in metadata["task"].lower()
    data = metadata["network_data_format"]
    assert {key: x["type"] for key, x in data["inputs"].items()} == {"image": "image"}
    assert {key: x["type"] for key, x in data["outputs"].items()} == {"pred": "image"}


class Brightness(nn.Module):
    """Logits that grow with the image's values; and as a network of two stages."""

    def __init__(self, channels: int, stages: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.num_batches_trained = torch.tensor(1)
        if stages:
            self.liver, self.tumour = Brightness(1, stages=False), Brightness(1, stages=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :1] - x.mean()
        return torch.cat([x * (1 + channel) for channel in range(self.channels)], 1)


@pytest.mark.parametrize("name", VOLUMES)
def test_inference_config_for_the_operator(name: str):
    parser = ConfigParser()
    parser.read_config(REPOSITORY / f"bundles/{name}/configs/inference.json")
    parser["device"] = "cpu"
    parser.parse()
    before, after = (
        parser.get_parsed_content(part) for part in ("preprocessing", "postprocessing")
    )
    inferer = parser.get_parsed_content("inferer")
    for compose in (before, after):
        kinds = [type(transform).__name__ for transform in compose.transforms]
        compose.transforms = tuple(
            transform
            for transform, kind in zip(compose.transforms, kinds, strict=True)
            if "LoadImage" not in kind and "SaveImage" not in kind
        )
        assert isinstance(compose.transforms[0], MapTransform)

    # As from the operator that reads a DICOM series: no channel axis, RAS+ affine, no file name.
    values = torch.linspace(-300, 300, 40).expand(48, 44, 40) + 20 * torch.rand(48, 44, 40)
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    meta = {"affine": affine, "original_affine": affine, "spatial_shape": np.array(values.shape)}
    meta["original_channel_dim"] = "no_channel"
    image = before({"image": MetaTensor.ensure_torch_and_prune_meta(values, meta)})["image"]
    channels = BUNDLES[name]["network_data_format"]["outputs"]["pred"]["num_channels"]

    with torch.no_grad():
        logits = inferer(image[None], Brightness(channels))
    mask = after({"pred": logits[0], "image": image})["pred"]
    assert mask.shape == (1, *values.shape)  # on the series' grid
    labels = BUNDLES[name]["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert {0} < set(mask.unique().tolist()) <= set(map(int, labels))


@pytest.mark.parametrize("name", VOLUMES)
def test_every_class_has_a_code(name: str):
    codes = runpy.run_path(str(REPOSITORY / "docs/build_deploy_app.py"))["CODES"]
    classes = BUNDLES[name]["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert set(classes.values()) - {"background"} <= codes.keys()


def build(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "docs/build_deploy_app.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.slow
def test_application_is_complete(tmp_path: Path):
    bundle = REPOSITORY / "bundles/liver_ct_lightm_unet_segmentation"
    network = LightMUNet(3, 1, 3, 16, (1, 1), (1,))
    parameters = {"init_filters": 16, "blocks_down": [1, 1], "blocks_up": [1]}
    parameters |= {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
    settings = {
        "spacing": [4, 4, 5],
        "patch_size": [32, 32, 16],
        "intensity": {"_target_": "NormalizeIntensityd", "keys": "image"},
        "network_def": {"_target_": "common.networks.LightMUNet", **parameters},
        "label_names": ["background", "liver", "cancer"],
    }
    torch.save({"model": network.state_dict(), "settings": settings}, tmp_path / "model.pt")
    app = tmp_path / "app"
    done = build(
        bundle, "--checkpoint", tmp_path / "model.pt", "--output", app, "--patch_size", [16, 16, 8]
    )
    assert done.returncode == 0, done.stderr
    compile((app / "app.py").read_text(), "app.py", "exec")
    assert (app / "common/transforms/loading.py").is_file()
    assert "monai==1.6.1\n" in (app / "requirements.txt").read_text()
    with zipfile.ZipFile(app / "model/model.ts") as archive:  # where the operator looks first
        config, metadata = (
            json.loads(archive.read(f"model/extra/{name}.json"))
            for name in ("inference", "metadata")
        )
    assert metadata == BUNDLES[bundle.name]
    assert config["patch_size"] == [16, 16, 8]
    assert config["spacing"] == [4, 4, 5]
    assert config["settings"] == {}
    assert ConfigParser(config).get_parsed_content("intensity").normalizer.channel_wise is False
    assert "'cancer': (('49755003'" in (app / "app.py").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app", "model.pt"]
    assert "is there already" in build(bundle, "--output", app).stderr


def test_other_bundles_are_refused(tmp_path: Path):
    radiographs, sequences = (
        REPOSITORY / f"bundles/{name}_segmentation"
        for name in ("lung_cxr_lightm_unet", "brain_tumor_mr_segmamba")
    )
    for bundle, sentence in (
        (radiographs, "is for CR; allowed are CT and MR"),
        (sequences, "takes images of 4 channels; allowed is 1"),
        (tmp_path / "none", "is no bundle"),
    ):
        done = build(bundle, "--output", tmp_path / "app")
        assert done.returncode == 2
        assert sentence in done.stderr
    done = build(REPOSITORY / f"bundles/{VOLUMES[0]}", "--output", tmp_path / "app")
    assert "error: There is no checkpoint" in done.stderr
    assert list(tmp_path.iterdir()) == []
