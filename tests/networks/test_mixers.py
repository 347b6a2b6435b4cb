"""One contract on twins: any network with Mamba is one without it, by one argument."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import pytest
import torch
from torch import Tensor, nn

from common.blocks import SS2D, Mamba, Mixer, SelfAttention, SS2DTwin, Twin
from common.networks import (
    CodebookMambaUNet,
    LCMambaNet,
    LightMUNet,
    MambaClinix,
    SegMamba,
    SwinUMamba,
    UMamba,
    VMambaEncoder,
    VMUNet,
    lcmambanet,
    recompute_levels,
)

from .test_dropout import (
    codebook,
    elan_res,
    lc_mamba,
    mamba_clinix,
    seg_mamba,
    swin_u_mamba,
    u_mamba,
    vm_unet,
)
from .test_gradients import swin_u_mamba_d
from .test_recomputation import assert_same, image

Build = Callable[..., nn.Module]
TWINS = get_args(Twin)


def light_m(**arguments: Any) -> nn.Module:
    return LightMUNet(3, 1, 3, 8, (1, 1), (1,), **arguments)


def u_mamba_enc(**arguments: Any) -> nn.Module:
    return u_mamba(variant="encoder", release=1, **arguments)


class Case(NamedTuple):
    build: Build
    blocks: int  # that have Mamba or a scan
    beside_attention: int  # that still have it then


CASES = [
    Case(light_m, 5, 3),
    Case(mamba_clinix, 1, 0),
    Case(codebook, 1, 0),
    Case(lc_mamba, 10, 0),
    Case(seg_mamba, 4, 3),
    Case(swin_u_mamba, 2, 0),
    Case(swin_u_mamba_d, 4, 0),
    Case(u_mamba, 1, 0),
    Case(u_mamba_enc, 3, 2),
    Case(vm_unet, 4, 0),
]


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lcmambanet, "_DEPTHS", {"T": (1, 1, 1, 1)})


@pytest.fixture(params=CASES, ids=lambda case: case.build.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    def seeded(**arguments: Any) -> nn.Module:
        torch.manual_seed(0)
        return chosen.build(**arguments)

    chosen: Case = request.param
    return chosen._replace(build=seeded)


def picture(network: nn.Module) -> Tensor:
    return torch.rand(2, 1, 16, 16, 16) if isinstance(network, LightMUNet) else image(network)


def scans(network: nn.Module) -> int:
    return sum(isinstance(module, (Mamba, SS2D)) for module in network.modules())


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in network.state_dict().items()}


@pytest.mark.parametrize("mixer", get_args(Mixer))
def test_where_the_twins_are(case: Case, mixer: Mixer):
    """All that is not the mixer's, or a norm for it alone, is there as it was, by the same name."""
    network, usual = case.build(mixer=mixer), case.build()
    left = {"mamba": case.blocks, "attention": case.beside_attention}.get(mixer, 0)
    assert scans(network) == left
    attentions = sum(isinstance(module, SelfAttention) for module in network.modules())
    assert attentions == (case.blocks - left if mixer == "attention" else 0)
    own, others = shapes(network), shapes(usual)
    if mixer == "mamba":
        assert own == others
    of_the_mixer = r"(^|\.)(mixer|twin|mamba)\."
    if mixer == "identity":  # of layers that have nothing else
        of_the_mixer += r"|\.(layer|blocks\.\d+)\.norm\."
    assert all(re.search(of_the_mixer, name) for name in own.keys() ^ others.keys())
    assert all(own[name] == others[name] for name in own.keys() & others.keys())


@pytest.mark.parametrize("mixer", TWINS)
def test_twin_trains_and_is_recomputed(case: Case, mixer: Twin):
    network = case.build(mixer=mixer).train()
    found, x = copy.deepcopy(network), picture(network)
    recompute_levels(found, True)
    assert_same(found, network, x)
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    with torch.no_grad():
        assert network.eval()(x).shape == (2, 3, *x.shape[2:])


@pytest.mark.parametrize("mixer", ["attention", "conv"])
@torch.no_grad()
def test_twin_under_autocast(case: Case, mixer: Twin):
    network = case.build(mixer=mixer).eval()
    x = picture(network)
    dtypes: set[torch.dtype] = set()
    for module in network.modules():
        if isinstance(module, (SelfAttention, SS2DTwin)):
            module.register_forward_hook(lambda _, inputs, y: dtypes.add(y.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = network(x)
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()
    assert dtypes <= {torch.float32}


@pytest.mark.parametrize(
    ("build", "mixer"),
    [
        *((mamba_clinix, mixer) for mixer in TWINS),
        *((build, "conv") for build in (codebook, seg_mamba, swin_u_mamba, vm_unet)),
        (swin_u_mamba_d, "attention"),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
@torch.no_grad()
def test_twin_in_torchscript(build: Build, mixer: Twin):
    """LightM-UNet's and U-Mamba's are tested with them."""
    torch.manual_seed(0)
    network = build(mixer=mixer).double().eval()
    x = image(network).double()
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))


@pytest.mark.parametrize(
    "build", [*(case.build for case in CASES), elan_res], ids=lambda build: build.__name__
)
def test_every_network_with_mamba_has_the_argument(build: Build):
    network = build()
    has = "mixer" in inspect.signature(type(network).__init__).parameters
    assert has == (scans(network) > 0)


CLINIX: dict[str, Any] = {
    "features": (8, 16, 20),
    "strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    "kernel_sizes": ((3, 3, 3),) * 3,
}


@pytest.mark.parametrize(
    "build",
    [
        lambda **given: LightMUNet(2, 1, 2, **given),
        lambda **given: MambaClinix(1, 2, **given),
        lambda **given: CodebookMambaUNet(1, **given),
        lambda **given: LCMambaNet(**given),
        lambda **given: SegMamba(1, 2, **given),
        lambda **given: SwinUMamba(1, 2, **given),
        lambda **given: UMamba(2, 1, 2, **given),
        lambda **given: VMambaEncoder(1, **given),
        lambda **given: VMUNet(1, 2, **given),
    ],
)
@pytest.mark.parametrize("mixer", ["lstm", None, True])
def test_mixers_that_are_none(build: Build, mixer: Any):
    message = f"mixer is {mixer!r}; allowed are 'mamba', 'identity', 'attention' and 'conv'."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build(mixer=mixer)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda **given: MambaClinix(1, 2, **CLINIX, **given),
            r"features\[2\] is 20; allowed with attention are multiples of 8\.",
        ),
        (
            lambda **given: CodebookMambaUNet(1, prototype_dim=12, **given),
            r"prototype_dim is 12; allowed with attention are multiples of 8\.",
        ),
        (
            lambda **given: SegMamba(1, 2, features=(4, 4, 8, 12), **given),
            r"features\[-1\] is 12; allowed with attention are multiples of 8\.",
        ),
        (
            lambda **given: VMambaEncoder(1, 6, **given),
            r"channels is 6; allowed with attention are multiples of 4\.",
        ),
        (
            lambda **given: SwinUMamba(1, 2, depths=(1, 1), features=(6, 12), **given),
            r"features\[0\] is 6; allowed with attention are multiples of 4\.",
        ),
    ],
)
def test_widths_that_heads_do_not_share(build: Build, message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        build(mixer="attention")


def test_nothing_to_replace():
    layers = [2, 3, None]
    arguments = CLINIX | {"features": (8, 16, 16), "layers": layers}
    with pytest.raises(ValueError, match=r"mixer is 'conv'; allowed is 'mamba', as layers is \["):
        MambaClinix(1, 2, **arguments, mixer="conv")
    assert scans(MambaClinix(1, 2, **arguments)) == 0
