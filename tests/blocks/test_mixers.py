"""What stands in Mamba's place, each alone."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from common.blocks import (
    SS2D,
    ConvolutionMixer,
    IdentityMixer,
    Mamba,
    MambaMixer,
    Mixer,
    ResidualMixer,
    SelfAttention,
    SS2DTwin,
    Twin,
    VSSBlock,
    build_twin,
    check_heads,
    check_mixer,
)
from common.ops import count_flops

TWINS = get_args(Twin)
VERSIONS = [{}, {"gate": True, "conv_bias": True}]  # VMamba's second and its first


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_twins_are_all_but_mamba():
    assert set(get_args(Mixer)) - {"mamba"} == set(TWINS)
    kinds = {name: type(build_twin(name, 2, 8)) for name in TWINS}
    assert kinds == {
        "identity": IdentityMixer,
        "attention": SelfAttention,
        "conv": ConvolutionMixer,
    }


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_torchs(training: bool):
    torch.manual_seed(0)
    mixer, x = SelfAttention(16).double().train(training), tokens(2, 11, 16)
    with torch.set_grad_enabled(training):
        expected = mixer.attention(x, x, x, need_weights=False)[0]
        torch.testing.assert_close(mixer(x, [11]), expected)


def test_attention_is_not_under_autocast():
    torch.manual_seed(0)
    mixer, x = SelfAttention(16), torch.randn(1, 9, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mixer(x.bfloat16(), [9])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mixer(x.bfloat16().float(), [9]))


@pytest.mark.parametrize("size", [(5, 7), (3, 5, 4)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_convolution_is_of_the_map(size: tuple[int, ...], depthwise: bool):
    mixer = ConvolutionMixer(len(size), 6, depthwise).double()
    x = tokens(2, 6, *size)
    found = mixer(x.flatten(2).transpose(1, 2), list(size))
    torch.testing.assert_close(found.transpose(1, 2).unflatten(2, size), mixer.conv(x))
    assert mixer.conv.weight.shape == (6, 1 if depthwise else 6, *[3] * len(size))


def test_convolution_follows_autocast_and_gives_what_it_took():
    mixer, x = ConvolutionMixer(2, 4, False), torch.randn(1, 12, 4)
    dtypes: list[torch.dtype] = []
    mixer.conv.register_forward_hook(lambda _, inputs, y: dtypes.append(y.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mixer(x, [3, 4]).dtype == torch.float32
    assert dtypes == [torch.bfloat16]


@pytest.mark.parametrize("mixer", TWINS)
def test_residual_mixer_is_mambas_but_for_mamba(mixer: Twin):
    torch.manual_seed(0)
    block = ResidualMixer(8, build_twin(mixer, 3, 8)).double()
    x = tokens(2, 8, 3, 4, 2)
    sites = block.norm(x.flatten(2).transpose(1, 2))
    expected = x + block.mixer(sites, [3, 4, 2]).transpose(1, 2).unflatten(2, [3, 4, 2])
    torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(torch.jit.script(block)(x), expected)
    names = {name.partition(".")[0] for name, _ in MambaMixer(8).named_parameters()} - {"mamba"}
    own = {name.partition(".")[0] for name, _ in block.named_parameters()}
    assert own == names | ({"mixer"} if mixer != "identity" else set())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mixer", TWINS)
def test_twin_of_a_scan_keeps_what_is_around_it(mixer: Twin, version: dict[str, bool]):
    """The scan's own parameters are gone; with nothing in its place, the rest is one formula."""
    torch.manual_seed(0)
    twin, block = SS2DTwin(16, mixer, **version).double(), SS2D(16, **version)
    around = {name for name, _ in block.named_parameters() if "." in name}
    assert {name for name, _ in twin.named_parameters() if not name.startswith("mixer")} == around
    x = tokens(2, 5, 7, 16)
    found = twin(x)
    assert found.shape == x.shape
    torch.testing.assert_close(torch.jit.script(twin)(x), found)
    found.square().sum().backward()
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    if mixer == "identity":
        u, z = twin.in_proj(x), None
        if twin.gate:
            u, z = u.chunk(2, dim=-1)
        u = nn.functional.silu(twin.conv2d(u.movedim(-1, 1))).movedim(1, -1)
        u = twin.out_norm(u) if z is None else twin.out_norm(u) * nn.functional.silu(z)
        torch.testing.assert_close(found, twin.out_proj(u))


def test_seed_and_order_of_parameters_are_as_before():
    """Optimisers' states are in that order, and repeated trainings begin with those weights."""
    assert [name for name, _ in SS2D(8, gate=True, conv_bias=True).named_parameters()] == [
        *("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds"),
        *("in_proj.weight", "conv2d.weight", "conv2d.bias"),
        *("out_norm.weight", "out_norm.bias", "out_proj.weight"),
    ]
    torch.manual_seed(0)
    block = SS2D(8)
    torch.manual_seed(0)
    drawn = [
        nn.Linear(8, 16, bias=False).weight,
        nn.Conv2d(16, 16, 3, groups=16, bias=False).weight,
        nn.Linear(16, 8, bias=False).weight,
        torch.empty(4, 3, 16).uniform_(-0.25, 0.25),
    ]
    found = [block.in_proj.weight, block.conv2d.weight, block.out_proj.weight, block.x_proj_weight]
    assert all(torch.equal(*pair) for pair in zip(found, drawn, strict=True))


def test_a_far_site_counts_for_attention_and_mamba_alone():
    """Which sites of a map, whose first changes, change far from it."""
    torch.manual_seed(0)
    x = tokens(1, 4, 8, 8)
    changed = x.clone()
    changed[:, 0, 0, 0] += 1  # a norm over the channels would take away a shift of all
    reach: dict[str, bool] = {}
    for mixer in get_args(Mixer):
        block = VSSBlock(4, mixer=mixer).double()
        with torch.no_grad():
            reach[mixer] = bool((block(x) != block(changed))[..., 7, 7].any())
    assert reach == {"mamba": True, "identity": False, "attention": True, "conv": False}


def test_flops_of_attention_by_hand():
    class Of(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = SelfAttention(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.mixer(x, [11])

    projections, products = 4 * 8 * 8 * 11, 2 * 8 * 11 * 11
    assert count_flops(Of(), (1, 11, 8)) == 2 * (projections + products)


def test_parameters_beside_mambas():
    """Of a token: what a network's twin has more or less, by its width."""
    count = {
        name: sum(p.numel() for p in block.parameters())
        for name, block in {
            "mamba": Mamba(64),
            **{name: build_twin(name, 3, 64) for name in TWINS},
        }.items()
    }
    assert count == {"mamba": 32_640, "identity": 0, "attention": 16_640, "conv": 27 * 64**2 + 64}


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"^mixer is 'lstm'; allowed are 'mamba', 'identity', "):
        check_mixer("lstm")
    with pytest.raises(ValueError, match=r"^mixer is None; allowed are .*'attention' and 'conv'"):
        check_mixer(None)  # type: ignore[arg-type]
    check_mixer("conv")
    with pytest.raises(
        ValueError, match=r"^width is 12; allowed with attention are multiples of 8"
    ):
        check_heads("width", 12)
    check_heads("width", 12, expand=2)
    with pytest.raises(ValueError, match=r"^width is 6; allowed with attention are multiples of 4"):
        check_heads("width", 6, expand=2)
