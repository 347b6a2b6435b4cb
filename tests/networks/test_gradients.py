"""One contract on gradients: what asks for one gets one, or DistributedDataParallel refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from common.networks import DynUNet, LiverTumourCascade, ResEncUNet, VMambaEncoder, lcmambanet

from .test_comparison import DYNUNET, RESENC
from .test_dropout import (
    codebook,
    elan_res,
    lc_mamba,
    light_m,
    mamba_clinix,
    seg_mamba,
    swin_u_mamba,
    u_mamba,
    vm_unet,
)
from .test_recomputation import image, tensors

Build = Callable[..., nn.Module]


STRIDES = ((1, 1, 1), (4, 4, 4), (4, 4, 4))


def swin_u_mamba_d(**arguments: Any) -> nn.Module:
    return swin_u_mamba(decoder="mamba", **arguments)


def u_mamba_enc(**arguments: Any) -> nn.Module:
    """With channels for tokens in the deepest stage: 8 sites, 16 channels."""
    return u_mamba(variant="encoder", input_size=(32, 32, 32), strides=STRIDES, **arguments)


def vmamba() -> nn.Module:
    return VMambaEncoder(1, 16, (1, 1))


def dyn_unet(**arguments: Any) -> nn.Module:
    return DynUNet(3, 1, 3, **(DYNUNET | arguments))


def res_enc(**arguments: Any) -> nn.Module:
    pytest.importorskip("dynamic_network_architectures")
    return ResEncUNet(3, 1, 3, **RESENC, **arguments)


def cascade(**arguments: Any) -> nn.Module:
    """Each of whose networks has parameters that ask for no gradient when it trains alone."""
    networks = (mamba_clinix(**arguments) for _ in range(2))
    return LiverTumourCascade(*networks, stage="tumor")


# Of a head at each scale, which are there without deep supervision, too.
HEADED = (mamba_clinix, u_mamba, u_mamba_enc, swin_u_mamba, swin_u_mamba_d, res_enc)
SCALES = (*HEADED, dyn_unet, cascade)
CASES = [
    *((build, {}) for build in (light_m, codebook, elan_res, lc_mamba, seg_mamba, vm_unet, vmamba)),
    *((build, {"deep_supervision": x}) for build in SCALES for x in (True, False)),
    *((lc_mamba, {"attention": x}) for x in ("reverse", None)),
    (codebook, {"codebook": False}),
]


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lcmambanet, "_DEPTHS", {"T": (1, 1, 1, 1)})


def name_of(x: Any) -> str:
    return getattr(x, "__name__", None) or str(x)


@pytest.mark.parametrize(("build", "arguments"), CASES, ids=name_of)
def test_what_asks_for_a_gradient_gets_one(build: Build, arguments: dict[str, Any]):
    torch.manual_seed(0)
    network = build(**arguments).train()
    x = torch.rand(2, 1, 32, 32) if isinstance(network, VMambaEncoder) else image(network)
    torch.stack([y.square().mean() for y in tensors(network(x))]).sum().backward()
    asking = {name for name, p in network.named_parameters() if p.requires_grad}
    assert asking == {name for name, p in network.named_parameters() if p.grad is not None}
    assert asking


@pytest.mark.parametrize("build", HEADED, ids=name_of)
def test_without_deep_supervision_the_finest_head_alone_is_trained(build: Build):
    """The others stay, so that what was trained with them loads."""
    full, finest = build(deep_supervision=True), build(deep_supervision=False)
    finest.load_state_dict(full.state_dict(), strict=True)
    of_heads = {
        name: p
        for name, p in finest.named_parameters()
        if re.search(r"\b(heads|seg_layers)\.", name)
    }
    frozen = {name for name, p in finest.named_parameters() if not p.requires_grad}
    before = {name for name, p in full.named_parameters() if not p.requires_grad}
    assert frozen - before == {name for name, p in of_heads.items() if not p.requires_grad}
    scales = len(of_heads) // 2  # a weight and a bias each
    assert scales > 1
    assert len(frozen - before) == 2 * (scales - 1)
