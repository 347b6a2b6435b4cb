"""One contract on the dropout of all networks: MONAI Label's epistemic scoring gives it to each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from common.networks import (
    CodebookMambaUNet,
    ELANResMSCAUNet,
    LCMambaNet,
    LightMUNet,
    MambaClinix,
    SegMamba,
    SwinUMamba,
    UMamba,
    VMUNet,
    lcmambanet,
)

Build = Callable[..., nn.Module]


def light_m(**arguments: Any) -> nn.Module:
    return LightMUNet(3, 1, 3, init_filters=8, **arguments)


def mamba_clinix(**arguments: Any) -> nn.Module:
    shape: dict[str, Any] = {
        "features": (8, 16, 16),
        "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        "kernel_sizes": ((3, 3, 3),) * 3,
    }
    return MambaClinix(1, 3, **shape, drop_path=0.0, **arguments)


def codebook(**arguments: Any) -> nn.Module:
    return CodebookMambaUNet(1, 3, widths=(2, 2, 4, 4), prototype_dim=8, **arguments)


def elan_res(**arguments: Any) -> nn.Module:
    return ELANResMSCAUNet(1, 3, widths=(4, 4, 6, 8, 8), **arguments)


def lc_mamba(**arguments: Any) -> nn.Module:
    return LCMambaNet("T", 1, 3, **arguments)


def u_mamba(**arguments: Any) -> nn.Module:
    return UMamba(3, 1, 3, features=(8, 16, 16), **arguments)


def seg_mamba(**arguments: Any) -> nn.Module:
    return SegMamba(1, 3, (1, 1, 1, 1), (4, 4, 8, 8), hidden_size=8, **arguments)


def swin_u_mamba(**arguments: Any) -> nn.Module:
    return SwinUMamba(1, 3, depths=(1, 1), features=(8, 16), drop_path=0.0, **arguments)


def vm_unet(**arguments: Any) -> nn.Module:
    return VMUNet(1, 3, (1, 1), (1, 1), (8, 16), drop_path=0.0, **arguments)


@pytest.fixture(
    params=[
        light_m,
        mamba_clinix,
        codebook,
        elan_res,
        lc_mamba,
        seg_mamba,
        swin_u_mamba,
        u_mamba,
        vm_unet,
    ]
)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Build:
    # One block per stage, without stochastic depth: dropout alone is random.
    monkeypatch.setattr(lcmambanet, "_DEPTHS", {"T": (1, 1, 1, 1)})
    monkeypatch.setattr(lcmambanet, "_ENCODER_DROP_PATH", {"T": 0.0})
    monkeypatch.setattr(lcmambanet, "_DROP_PATH", 0.0)

    def seeded(**arguments: Any) -> nn.Module:
        torch.manual_seed(0)
        network: nn.Module = request.param(**arguments)
        return network

    return seeded


def image(network: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    dims = 2 if isinstance(network, (LCMambaNet, SwinUMamba, VMUNet)) else 3
    return torch.rand(2, 1, *[32] * dims, generator=generator)


def test_without_parameters_and_off_in_evaluation(build: Build):
    without, dropping = build().eval(), build(dropout=0.5).eval()
    dropping.load_state_dict(without.state_dict(), strict=True)
    x = image(without)
    with torch.no_grad():
        assert torch.equal(dropping(x), without(x))
        assert torch.equal(dropping(x), dropping(x))


@torch.no_grad()
def test_monte_carlo_samples_are_logits_that_vary(build: Build):
    """Training mode without gradients, as MONAI Label simulates: no list of scales, no losses."""
    without, dropping = build().train(), build(dropout=0.5).train()
    x = image(without)
    assert torch.equal(without(x), without(x))  # 0 by default
    first, second = dropping(x), dropping(x)
    assert first.shape == second.shape == (2, 3, *x.shape[2:])
    assert not torch.allclose(first, second)


def test_whole_channels_are_dropped(build: Build):
    dropouts = [
        m for m in build(dropout=0.25).modules() if isinstance(m, nn.modules.dropout._DropoutNd)
    ]
    assert [(type(m) in (nn.Dropout2d, nn.Dropout3d), m.p) for m in dropouts] == [(True, 0.25)]


def test_scripts(build: Build):
    # In double: the two run different backends in float32.
    network = build(dropout=0.5).double().eval()
    x = image(network).double()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(x), network(x))


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_bad_values_are_named(build: Build, dropout: float):
    with pytest.raises(ValueError, match=rf"dropout is {dropout}; allowed is 0 <= dropout < 1"):
        build(dropout=dropout)
