from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNet
from torch import nn

from common.checkpoints import fine_tune
from common.errors import InputError

from ..conftest import REPOSITORY

BUNDLES = sorted(path for path in (REPOSITORY / "bundles").iterdir() if path.is_dir())


def small(seed: int, in_channels: int = 1, out_channels: int = 3) -> UNet:
    torch.manual_seed(seed)
    return UNet(2, in_channels, out_channels, channels=(4, 8), strides=(2,), norm="batch")


@pytest.mark.parametrize("form", ["ours", "nnU-Net's", "of several GPUs"])
def test_all_that_fits_is_taken(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    weights = small(1).state_dict()
    content: dict[str, Any] = {
        "ours": {"model": weights, "settings": {"spacing": [1, 1]}},
        "nnU-Net's": {"network_weights": weights, "init_args": {}},
        "of several GPUs": {f"module.{name}": x for name, x in weights.items()},
    }[form]
    torch.save(content, tmp_path / "model.pt")
    network = small(2)
    with caplog.at_level("INFO"):
        fine_tune(network, tmp_path / "model.pt")
    for name, x in network.state_dict().items():
        assert torch.equal(x, weights[name])
    assert f"{len(weights)} of {len(weights)} tensors are those of" in caplog.text
    assert caplog.text.count(": none") == 3


def test_other_classes_and_channels(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    torch.save(small(1).state_dict() | {"extra.weight": torch.ones(2)}, tmp_path / "model.pt")
    network, untouched = small(2, 4, 7), small(2, 4, 7).state_dict()
    del (theirs := torch.load(tmp_path / "model.pt"))["extra.weight"]
    with caplog.at_level("INFO"):
        fine_tune(network, tmp_path / "model.pt")
    for name, x in network.state_dict().items():
        fits = theirs[name].shape == x.shape
        assert torch.equal(x, theirs[name] if fits else untouched[name])
        assert (f"{name} has shape" in caplog.text) == (not fits)
    assert "Left out, for this network has them not: extra.weight." in caplog.text


def test_checkpoints_that_do_not_fit(tmp_path: Path):
    torch.save({"other.weight": torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(
        InputError, match=r"Nothing in the checkpoint .* this UNet: .*other\.weight"
    ):
        fine_tune(small(0), tmp_path / "model.pt")
    with pytest.raises(InputError, match="There is no checkpoint"):
        fine_tune(small(0), tmp_path / "none.pt")


@pytest.mark.parametrize("pattern", ["model.0.*", ["model.0.*", "*.bias"]], ids=str)
def test_frozen_parameters(pattern: Any):
    network = small(0)
    fine_tune(network, freeze=pattern)
    for name, x in network.named_parameters():
        frozen = name.startswith("model.0.") or (len(pattern) == 2 and name.endswith(".bias"))
        assert x.requires_grad != frozen


@pytest.mark.parametrize(
    ("freeze", "sentence"),
    [
        ("encoder.*", "freeze is 'encoder.*', which is no parameter's name; .* model, such as"),
        (["model.0.*", "Model*"], "freeze is 'Model"),
        ("*", "nothing is left to learn"),
        (3, "freeze is 3; allowed are patterns"),
        ([3], r"freeze is \[3\]; allowed are patterns"),
    ],
)
def test_patterns_that_cannot_be(freeze: Any, sentence: str):
    with pytest.raises(InputError, match=sentence):
        fine_tune(small(0), freeze=freeze)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_only_what_learns_is_optimised(bundle: Path, tmp_path: Path):
    """As in a run: its step before what builds the optimiser; on one process and on several."""
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1))
    weights = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1)).state_dict()
    torch.save({"model": weights, "settings": {}}, tmp_path / "model.pt")
    for configs in (["train"], ["train", "multi_gpu_train"]):
        parser = ConfigParser()
        parser.read_config([str(bundle / f"configs/{name}.json") for name in configs])
        parser.update({"device": "cpu", "network_def": "$network_", "freeze": "0.*"})
        parser.update({"pretrained": str(tmp_path / "model.pt")})
        parser.globals["network_"] = network
        if len(configs) == 2:
            parser["network"] = {"_target_": "torch.nn.Sequential", "_args_": []}
            parser["network"] = "$torch.nn.Sequential(@network_def)"
        steps = [s.get("_target_") if isinstance(s, dict) else s for s in parser["run"]]
        step = steps.index("common.checkpoints.fine_tune")
        assert step < steps.index("$@train#trainer.run()")
        parser.get_parsed_content(f"run#{step}")
        (group,) = parser.get_parsed_content("optimizer").param_groups
        assert [id(x) for x in group["params"]] == [id(x) for x in network[1].parameters()]
        assert torch.equal(network[0].weight, weights["0.weight"])
