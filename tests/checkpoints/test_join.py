from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from common.checkpoints import check_stage, join_stages, keep_other_stage
from common.errors import InputError
from common.networks import ELANResMSCAUNet, LiverTumourCascade

Weights = dict[str, torch.Tensor]


def cascade(seed: int, widths: tuple[int, ...] = (2, 2, 2, 2, 2)) -> LiverTumourCascade:
    torch.manual_seed(seed)
    return LiverTumourCascade(*(ELANResMSCAUNet(1, 1, widths) for _ in range(2)))


def of(stage: str, weights: Weights) -> Weights:
    return {name: x for name, x in weights.items() if name.startswith(f"{stage}.")}


def equal(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def saved(path: Path, network: nn.Module, *trained: str) -> Path:
    """A checkpoint in which these stages have seen a batch."""
    weights = network.state_dict()
    for name, x in weights.items():
        if name.endswith("num_batches_trained") and name.startswith(trained):
            weights[name] = x + 1
    torch.save(weights, path)
    return path


def test_each_stage_comes_from_its_own_checkpoint(tmp_path: Path):
    liver = saved(tmp_path / "a.pt", cascade(0), "liver")
    tumor = saved(tmp_path / "b.pt", cascade(1, (4, 2, 2, 2, 2)), "tumour")
    joined = join_stages(liver, tumor)
    assert equal(of("liver", joined), of("liver", torch.load(liver, weights_only=True)))
    assert equal(of("tumour", joined), of("tumour", torch.load(tumor, weights_only=True)))
    networks = ELANResMSCAUNet(1, 1, (2,) * 5), ELANResMSCAUNet(1, 1, (4, 2, 2, 2, 2))
    LiverTumourCascade(*networks).load_state_dict(joined, strict=True)


def test_what_cannot_be_joined(tmp_path: Path):
    liver = saved(tmp_path / "a.pt", cascade(0), "liver")
    tumor = saved(tmp_path / "b.pt", cascade(1), "tumour")
    with pytest.raises(InputError, match=rf"liver network in the checkpoint {tumor} was never tra"):
        join_stages(tumor, liver)
    one = saved(tmp_path / "one.pt", cascade(0).liver)
    with pytest.raises(InputError, match=rf"The checkpoint {one} has no liver network"):
        join_stages(one, tumor)
    weights = torch.load(tumor, weights_only=True) | {"head.bias": torch.zeros(1)}
    torch.save(weights, tumor)
    with pytest.raises(InputError, match=r"has a parameter head.bias, which belongs to no stage"):
        join_stages(liver, tumor)
    with pytest.raises(InputError, match="There is no checkpoint"):
        join_stages(tmp_path / "none.pt", tumor)


def test_settings_that_differ_between_the_stages(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    weights = cascade(0).state_dict()
    weights.settings = {"margin": 4, "network_def#tumour": {"widths": 1}, "patch_size": [8, 8, 8]}
    torch.save(weights, tmp_path / "model.pt")
    now = {"margin": 8, "network_def#tumour": {"widths": 2}, "patch_size": (8, 8, 8)}
    keep_other_stage(cascade(1), tmp_path / "model.pt", "tumor", now)
    assert caplog.text.count("was trained with") == 1
    assert "margin is 8, and" in caplog.text
    assert "was trained with 4; both networks will be used with 8" in caplog.text


def test_the_other_stage_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = saved(tmp_path / "model.pt", cascade(0), "liver")
    network = cascade(1)
    own = {name: x.clone() for name, x in network.state_dict().items()}
    with caplog.at_level(logging.INFO):
        keep_other_stage(network, tmp_path / "none.pt", "tumor")
    assert "it will hold the liver network untrained" in caplog.text
    assert equal(network.state_dict(), own)
    with caplog.at_level(logging.INFO):
        keep_other_stage(network, file, "tumor")
    assert f"The liver network is kept as it is in {file}" in caplog.text
    now = network.state_dict()
    assert equal(of("tumour", now), of("tumour", own))
    assert equal(of("liver", now), of("liver", torch.load(file, weights_only=True)))


def test_what_would_be_lost_is_refused(tmp_path: Path):
    file = saved(tmp_path / "model.pt", cascade(0), "liver")
    with pytest.raises(InputError, match=rf"{file} has another liver network than network_def"):
        keep_other_stage(cascade(1, (4,) * 5), file, "tumor")
    with pytest.raises(InputError, match=r"The network Conv3d has no liver network"):
        keep_other_stage(nn.Conv3d(1, 1, 1), file, "tumor")


def test_stages_and_classes():
    check_stage("liver", 3)
    check_stage("tumor", 3)
    for stage in ("tumour", None):
        with pytest.raises(InputError, match=f"stage is {stage!r}; allowed are 'liver' and 'tumor"):
            check_stage(stage, 3)
    with pytest.raises(InputError, match="num_classes is 4; allowed is 3"):
        check_stage("liver", 4)
