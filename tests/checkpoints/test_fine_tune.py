from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNet
from torch import nn

from common.blocks import Codebook
from common.checkpoints import fine_tune
from common.data.phantom import write_phantom
from common.errors import InputError
from common.networks import LightMUNet, LiverTumourCascade

from ..conftest import REPOSITORY
from ..running import command, sentence, succeed

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
    assert caplog.text.count(": none") == 4


def test_other_classes_and_channels(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    torch.save(small(1).state_dict() | {"extra.weight": torch.ones(2)}, tmp_path / "model.pt")
    network, untouched = small(2, 4, 7), small(2, 4, 7).state_dict()
    del (theirs := torch.load(tmp_path / "model.pt"))["extra.weight"]
    with caplog.at_level("INFO"):
        fine_tune(network, tmp_path / "model.pt")
    others = {name for name, x in untouched.items() if theirs[name].shape != x.shape}
    apart = {name.rpartition(".")[0] for name in others}
    for name, x in network.state_dict().items():
        fits = name.rpartition(".")[0] not in apart
        assert torch.equal(x, theirs[name] if fits else untouched[name])
        assert (f"{name} has shape" in caplog.text) == (name in others)
    assert "Left out, for this network has them not: extra.weight." in caplog.text


def test_prototypes_are_drawn_where_theirs_do_not_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Of a codebook that was drawn from data: that it was goes with its prototypes."""
    theirs = Codebook(8, 4, init="data")
    theirs(torch.randn(1, 4, 5, 5))
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 1), theirs).state_dict(), tmp_path / "model.pt")
    network = nn.Sequential(nn.Conv2d(1, 4, 1), Codebook(6, 4, init="data"))
    uniform = network[1].prototypes.detach().clone()
    with caplog.at_level("INFO"):
        fine_tune(network, tmp_path / "model.pt")
    assert "As initialised, for they belong to what is: 1.initialised." in caplog.text
    network(torch.ones(1, 1, 5, 5))
    assert not torch.equal(network[1].prototypes, uniform)


@pytest.mark.parametrize("channels", [2, 3])
def test_networks_that_fit_in_part_are_untrained(channels: int, tmp_path: Path):
    """A cascade's network counts as trained only where all of it is."""

    def cascade(channels: int) -> LiverTumourCascade:
        liver = nn.Sequential(nn.Conv3d(1, 2, 1), nn.Conv3d(2, channels, 1))
        return LiverTumourCascade(liver, nn.Sequential(nn.Conv3d(1, 1, 1)))

    theirs, network = cascade(2), cascade(channels)
    for part in (theirs.liver, theirs.tumour):
        part.num_batches_trained.fill_(5)  # type: ignore[operator, union-attr]
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    fine_tune(network, tmp_path / "model.pt")
    assert network.liver.num_batches_trained == (5 if channels == 2 else 0)
    assert network.tumour.num_batches_trained == 5
    assert torch.equal(network.state_dict()["liver.0.weight"], theirs.liver[0].weight)


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
        if len(configs) == 2:  # as DistributedDataParallel, around the network
            parser["network"] = "$torch.nn.Sequential(@network_def)"
        steps = [s.get("_target_") if isinstance(s, dict) else s for s in parser["run"]]
        step = steps.index("common.checkpoints.fine_tune")
        assert step < steps.index("$@train#trainer.run()")
        parser.get_parsed_content(f"run#{step}")
        (group,) = parser.get_parsed_content("optimizer").param_groups
        assert [id(x) for x in group["params"]] == [id(x) for x in network[1].parameters()]
        assert torch.equal(network[0].weight, weights["0.weight"])


@pytest.mark.slow
def test_a_training_from_other_weights(tmp_path: Path):
    """Radiographs of two classes, from a network of four channels and three classes."""
    bundle = REPOSITORY / "bundles/lung_cxr_lightm_unet_segmentation"
    small = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
    weights = LightMUNet(2, 4, 3, **small).state_dict()
    torch.save(weights, tmp_path / "theirs.pt")
    write_phantom(tmp_path / "data", cases=6, kind="cxr", size=64)
    options = {f"network_def#{name}": value for name, value in small.items()}
    options |= {"bundle_root": tmp_path, "dataset_dir": tmp_path / "data", "batch_size": 2}
    options |= {"image_size": [32, 32], "max_epochs": 1, "pretrained": tmp_path / "theirs.pt"}
    options["epoch_length"] = 2
    options["freeze"] = ["encoder.*"]
    said = succeed(command(bundle, "train", **options))
    assert "stem.depthwise.weight has shape (4, 1, 3, 3), not (1, 1, 3, 3)" in said
    trained = torch.load(tmp_path / "models/model.pt", weights_only=True)
    same = {part: [] for part in ("stem", "encoder", "decoder", "head")}
    for name, x in trained.items():
        same[name.partition(".")[0]].append(torch.equal(x, weights[name]))
    assert all(same["encoder"])
    assert not all(same["decoder"])
    refused = sentence(command(bundle, "train", **options | {"freeze": "nothing.*"}))
    assert "freeze is 'nothing.*', which is no parameter's name" in refused
