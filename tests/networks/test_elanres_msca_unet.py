from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.networks import ELANResMSCAUNet
from common.networks.elanres_msca_unet import (
    ELANResBlock,
    MSCABlock,
    ParallelConv,
    StripAttention,
    fold_depth,
    unfold_depth,
)

SMALL: dict[str, Any] = {"in_channels": 1, "out_channels": 3, "widths": (4, 4, 6, 8, 8)}


def trained(**change: Any) -> ELANResMSCAUNet:
    """A network in eval mode with weights, scales, shifts and statistics unlike the first ones."""
    torch.manual_seed(0)
    network = ELANResMSCAUNet(**(SMALL | change))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        elif isinstance(module, MSCABlock):
            nn.init.normal_(module.attention_scale)
            nn.init.normal_(module.mlp_scale)
    for _ in range(3):
        network(3 * torch.randn(2, 1, 32, 16, 16) + 1)
    return network.eval()


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def operations(network: nn.Module) -> int:
    network = network.eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 1, 32, 32, 32, device="meta"))
    return counter.get_total_flops()


@pytest.mark.parametrize("change", [{}, {"branches": 3}, {"msca": False}, {"elanres": False}])
def test_folded_network_has_equal_logits(change: dict[str, Any]):
    network = trained(**change)
    folded = network.reparameterize()
    x = torch.randn(2, 1, 33, 20, 17)
    with torch.no_grad():
        expected = network(x)
        assert expected.std() > 0.01
        torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-4)
    assert not any(isinstance(module, ParallelConv) for module in folded.modules())
    assert not folded.training


def test_folding_leaves_the_network_and_may_be_repeated():
    network = trained()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    folded = network.reparameterize()
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again, x = folded.reparameterize(), torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(again(x), folded(x))


def test_folded_network_is_smaller():
    network = ELANResMSCAUNet(1, 3)
    folded = network.reparameterize()
    # Of two kernels and three norms, one kernel and a bias stay.
    halves = [8, 16, 32, 64, 128, 64, 32, 16, 8]
    assert parameters(network) - parameters(folded) == sum(2 * (27 * c * c + 5 * c) for c in halves)
    assert operations(folded) < operations(network)


@pytest.mark.parametrize("size", [(16, 16, 16), (17, 31, 16), (33, 20, 47)])
def test_any_size_from_sixteen(size: tuple[int, ...]):
    network = ELANResMSCAUNet(**(SMALL | {"in_channels": 2}))
    scales = network(torch.randn(2, 2, *size))
    assert [y.shape for y in scales] == [(2, 3, *size)] * 4
    network.eval()
    x = torch.randn(1, 2, *size)
    assert torch.equal(network(x), network.multiscale_logits(x)[0])


def test_folding_the_depth_and_back_is_the_identity():
    x = torch.arange(2 * 3 * 4 * 5 * 6.0).reshape(2, 3, 4, 5, 6)
    slices = fold_depth(x)
    assert slices.shape == (12, 3, 4, 5)
    for b in range(2):
        for z in range(6):
            assert torch.equal(slices[6 * b + z], x[b, ..., z])
    assert torch.equal(unfold_depth(slices, 6), x)


def test_attention_stays_within_its_slice():
    block = MSCABlock(4).eval()
    x = torch.randn(1, 4, 7, 7, 5, requires_grad=True)
    block(x)[..., 2].square().sum().backward()
    assert x.grad.abs().amax((0, 1, 2, 3)).nonzero().flatten().tolist() == [2]


def test_receptive_fields_of_the_strips():
    """By gradients: a strip pair of k after the local 5 x 5 sees k + 4 pixels along each axis."""
    attention = StripAttention(2).double()
    for strip, k in zip(attention.strips, (7, 11, 21), strict=True):
        for see, extent in ((strip, k), (nn.Sequential(attention.local, strip), k + 4)):
            x = torch.randn(1, 2, 41, 41, dtype=torch.float64, requires_grad=True)
            see(x)[0, 0, 20, 20].backward()
            seen = x.grad[0, 0] != 0
            at = slice(20 - extent // 2, 21 + extent // 2)
            assert seen.sum() == extent**2
            assert seen[at, at].all()


@pytest.mark.parametrize("elanres", [True, False])
@pytest.mark.parametrize("msca", [True, False])
def test_ablations(elanres: bool, msca: bool):
    network = ELANResMSCAUNet(**SMALL, elanres=elanres, msca=msca)
    kinds = {type(module) for module in network.modules()}
    assert (ELANResBlock in kinds, MSCABlock in kinds) == (elanres, msca)
    assert len(network(torch.randn(2, 1, 16, 16, 16))) == 4


def test_a_few_steps_learn():
    torch.manual_seed(0)
    network = ELANResMSCAUNet(**(SMALL | {"out_channels": 1}))
    x = torch.randn(2, 1, 16, 32, 16)
    y = (nn.functional.avg_pool3d(x, 3, 1, 1) > 0).float()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        scales = network(x)
        loss = sum(nn.functional.binary_cross_entropy_with_logits(z, y) for z in scales)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in network.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("folded", [False, True])
def test_scripted_equals_eager_at_every_size(folded: bool):
    network = trained().double()
    network = network.reparameterize() if folded else network
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for size in ((32, 16, 16), (17, 24, 31)):
            x = torch.randn(1, 1, *size, dtype=torch.float64)
            torch.testing.assert_close(scripted(x), network(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels is 0; allowed are whole numbers from 1"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"widths": (4, 4, 4, 4)}, r"widths is \(4, 4, 4, 4\); allowed are five even numbers"),
        ({"widths": (4, 4, 4, 4, 5)}, "five even numbers from 2"),
        ({"branches": 1}, "branches is 1; allowed are whole numbers from 2"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ELANResMSCAUNet(**(SMALL | change))


def test_too_small_images_are_named():
    with pytest.raises(ValueError, match="allowed is 16 and more along each axis"):
        ELANResMSCAUNet(**SMALL)(torch.zeros(1, 1, 32, 15, 32))
