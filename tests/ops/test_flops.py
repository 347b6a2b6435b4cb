"""FLOPs against counts by hand, and the same by whichever operators."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common.blocks import SS2D, Mamba
from common.networks import (
    CodebookMambaUNet,
    ELANResMSCAUNet,
    LCMambaNet,
    LightMUNet,
    MambaClinix,
    VMambaEncoder,
)
from common.ops import (
    count_flops,
    depthwise_conv,
    flop_formulas,
    selective_scan,
    selective_scan_2d,
    why_not,
)

# Mamba of c = 3: d = 6, n = 16, 4 taps, rank 1; SS2D of c = 3: d = 6, n = 1, rank 1.
MAMBA = 2 * (12 * 3 + 6 * 4 + 33 * 6 + 6 * 1 + 3 * 6) + 6 * (7 * 16 + 1 + 2 + 2)
SS2D_ = 2 * (6 * 3 + 6 * 9 + 4 * 3 * 6 + 4 * 6 * 1 + 3 * 6) + 4 * 6 * (7 * 1 + 1 + 2)


class Of(nn.Module):
    """A function of tokens (b, c, l), or of maps, as a network."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def of_tokens(block: nn.Module) -> nn.Sequential:
    return nn.Sequential(Of(lambda x: x.movedim(1, -1)), block)


def measured(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Of a pass that is computed on the CPU."""
    counter = FlopCounterMode(display=False, custom_mapping=flop_formulas())
    with torch.no_grad(), counter:
        network.eval()(torch.randn(shape))
    return counter.get_total_flops()


def test_convolution_and_product_by_hand():
    layers = nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1, groups=2),  # of 5 x 7 it makes 3 x 4
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 5),
    )
    by_hand = 2 * 3 * (12 * 6 * 9 + 72 * 5)  # three images
    assert count_flops(layers, (3, 2, 5, 7)) == by_hand
    assert measured(layers, (3, 2, 5, 7)) == by_hand


def test_attention_by_hand():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.heads(x, x, x, need_weights=False)[0]

    projections, products = 4 * 8 * 8 * 11, 2 * 8 * 11 * 11
    assert count_flops(of_tokens(Attention()), (1, 8, 11)) == 2 * (projections + products)


@pytest.mark.parametrize(
    ("skip", "gate", "more"), [(True, True, 4), (True, False, 2), (False,) * 3]
)
def test_scan_by_hand(skip: bool, gate: bool, more: int):
    def scan(u: Tensor) -> Any:
        A, B = u.new_ones(5, 3), u.new_ones(u.shape[0], 3, u.shape[2])
        return selective_scan(
            u, u, A, B, B, u.new_ones(5) if skip else None, u if gate else None, backend="auto"
        )

    by_hand = 2 * 5 * 24 * (7 * 3 + 1 + more)
    assert count_flops(Of(scan), (2, 5, 24)) == by_hand
    assert measured(Of(scan), (2, 5, 24)) == by_hand


def test_scan_of_a_map_is_four():
    def scan(u: Tensor) -> Tensor:
        A, B = u.new_ones(4, 5, 2), u.new_ones(1, 4, 2, 6, 4)
        return selective_scan_2d(u, u.unsqueeze(1).expand(-1, 4, -1, -1, -1), A, B, B)

    by_hand = 4 * 5 * 24 * (7 * 2 + 1)
    assert count_flops(Of(scan), (1, 5, 6, 4)) == by_hand
    assert measured(Of(scan), (1, 5, 6, 4)) == by_hand


@pytest.mark.parametrize("size", [(6, 5), (6, 5, 4)])
def test_depthwise_convolution_of_an_image(size: tuple[int, ...]):
    weight = torch.ones(2, 1, *[3] * len(size))

    def convolve(x: Tensor) -> Tensor:
        return depthwise_conv(x, weight.to(x.device))

    by_hand = 2 * 2 * torch.Size(size).numel() * 3 ** len(size)
    assert count_flops(Of(convolve), (1, 2, *size)) == by_hand
    if why_not("cpp", "cpu", torch.float32) is None:
        assert measured(Of(convolve), (1, 2, *size)) == by_hand


@pytest.mark.parametrize("backend", ["auto", "reference", "torch", "cpp", "triton", "mamba_ssm"])
def test_no_backend_changes_a_count(backend):
    assert count_flops(of_tokens(Mamba(3, backend=backend)), (2, 3, 20)) == 40 * MAMBA
    assert count_flops(of_tokens(SS2D(3, backend=backend)), (2, 3, 5, 4)) == 40 * SS2D_


@pytest.mark.parametrize("backend", ["torch", "cpp", "triton"])
def test_a_pass_that_is_computed_counts_the_same(backend, monkeypatch):
    device = "cpu" if backend != "triton" or not torch.cuda.is_available() else "cuda"
    if backend == "cpp" and why_not("cpp", "cpu", torch.float32) is not None:
        pytest.skip("the C++ library is missing")
    if backend == "triton":
        pytest.importorskip("triton")
    for block, shape, flops in (
        (Mamba(3, backend=backend), (2, 3, 20), 40 * MAMBA),
        (SS2D(3, backend=backend), (2, 3, 5, 4), 40 * SS2D_),
    ):
        counter = FlopCounterMode(display=False, custom_mapping=flop_formulas())
        with torch.no_grad(), counter:
            of_tokens(block).to(device)(torch.randn(shape, device=device))
        assert counter.get_total_flops() == flops


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (LightMUNet(2, 1, 2, 8), (1, 1, 24, 16)),
        (LightMUNet(3, 2, 3, 8), (1, 2, 8, 16, 8)),
        (LCMambaNet("T", 1, 3), (1, 1, 32, 32)),
        (MambaClinix(1, 3, (8, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2), (1, 1, 8, 8, 8)),
        (CodebookMambaUNet(1, 2, (2, 2), prototype_dim=8), (1, 1, 8, 8, 8)),
        (ELANResMSCAUNet(1, 1, (2, 2, 2, 2, 2)), (1, 1, 16, 16, 16)),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_networks_count_the_same_when_computed(network: nn.Module, shape: tuple[int, ...]):
    if why_not("cpp", "cpu", torch.float32) is not None:
        pytest.skip("the C++ library is missing: the stem's convolution is sums without a formula")
    flops = count_flops(network, shape)
    assert flops == measured(network, shape)
    assert flops > sum(p.numel() for p in network.parameters())


LEVELS = {"blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)}


@pytest.mark.parametrize(
    ("network", "shape", "paper", "within"),
    [
        (lambda: SegResNet(3, 32, 1, 3, **LEVELS), (1, 1, 128, 128, 128), 1158.30, 1e-5),
        (lambda: CodebookMambaUNet(1, 2), (1, 1, 256, 256, 48), 113.87, 0.02),
        (VMambaEncoder, (1, 3, 224, 224), 2 * 4.9, 0.03),
    ],
    ids=["LightM-UNet's table 1", "Codebook's figure 8", "VMamba's multiply-adds, classifier too"],
)
def test_gigaflops_of_the_papers(
    network: Callable[[], nn.Module], shape: tuple[int, ...], paper: float, within: float
):
    assert count_flops(network(), shape) / 1e9 == pytest.approx(paper, rel=within)


def test_the_network_stays_as_it_is():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), Mamba(2, backend="reference"))
    network.train()
    with pytest.raises(ValueError, match="x has shape"):
        count_flops(network, (1, 1, 2, 2))
    assert network.training
    assert network[1].backend == "reference"
    assert all(p.device.type == "cpu" for p in network.parameters())


def test_every_operator_has_a_formula():
    """A pass through one that has none would count less than another's."""
    names = {
        name.removeprefix("monai_mamba::").partition(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("monai_mamba::")
    }
    forward = {name for name in names if not re.search("_backward$|_gradient$", name)}
    assert {str(packet).removeprefix("monai_mamba.") for packet in flop_formulas()} == forward
