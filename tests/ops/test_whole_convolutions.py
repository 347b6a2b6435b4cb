"""Convolutions in bfloat16 whose gradients are set in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.ops import WholeConvolutions


def step(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """An output, and the gradient of the weight."""
    layer.zero_grad()
    y = layer(x)
    y.float().square().mean().backward()
    assert isinstance(layer.weight.grad, Tensor)
    return y.detach(), layer.weight.grad.clone()


WIDE: dict[type[nn.Module], list[tuple]] = {  # sites, width, stride, dilation
    nn.Conv3d: [((2, 2, 2), 3, 1, 1), ((2, 8, 8), 3, 1, 1), ((4, 4, 4), 5, 1, 1)],
    nn.ConvTranspose3d: [((2, 8, 8), 3, 1, 1), ((3, 3, 3), 5, 1, 1)],
    nn.Conv2d: [((1, 1), 3, 2, 1), ((3, 1), 3, 2, 1), ((7, 7), 7, 2, 1), ((4, 4), 3, 1, 2)],
    nn.ConvTranspose2d: [((1, 1), 3, 2, 1), ((4, 4), 3, 1, 2)],
    nn.Conv1d: [((1,), 3, 2, 1)],
}


@pytest.mark.parametrize(
    ("kind", "sites", "width", "stride", "dilation"),
    [(kind, *case) for kind, cases in WIDE.items() for case in cases],
)
@pytest.mark.parametrize("channels", [16, 32])
def test_wider_than_the_map(
    kind: type, sites: tuple[int, ...], width: int, stride: int, dilation: int, channels: int
):
    torch.manual_seed(0)
    spread = {"stride": stride, "padding": dilation * (width // 2), "dilation": dilation}
    layer = kind(channels, channels, width, **spread)
    x = torch.randn(2, channels, *sites)
    expected = step(layer, x)
    dirt = torch.full((2**20,), torch.nan)  # what memory that is left unset would have
    del dirt
    with torch.autocast("cpu", torch.bfloat16), WholeConvolutions():
        found = step(layer, x)
    assert found[0].dtype == torch.bfloat16
    assert torch.equal(found[0], expected[0].bfloat16())
    assert (found[1] - expected[1]).norm() < 1e-2 * expected[1].norm()  # of y's rounding


@pytest.mark.parametrize("channels", [16, 32])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sites", [4, 5, 6])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d])
def test_others_are_left_to_autocast(kind: type, sites: int, stride: int, channels: int):
    """And are right there."""
    torch.manual_seed(0)
    layer = kind(channels, channels, 3, padding=1, stride=stride)
    x = torch.randn(2, channels, sites, *[5] * (2 if "3d" in kind.__name__ else 1))
    whole = step(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        expected = step(layer, x)
        with WholeConvolutions():
            found = step(layer, x)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert not torch.equal(found[0], whole[0].bfloat16())
    assert (found[1] - whole[1]).norm() < 2e-2 * whole[1].norm()


def test_without_autocast_nothing_changes():
    layer = nn.Conv3d(4, 4, 3, padding=1).double()
    x = torch.randn(1, 4, 2, 5, 5, dtype=torch.float64)
    expected = step(layer, x)
    with WholeConvolutions():
        found = step(layer, x)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "convolve",
    [
        lambda x, w: F.conv3d(x, w, padding=1),
        lambda x, w: F.conv3d(input=x, weight=w, padding=1),
        lambda x, w: torch.conv3d(x, weight=w, bias=None, padding=1),
        lambda x, w: F.conv3d(x, w, None, 1, 1, 1, 1),
        lambda x, w: F.conv_transpose3d(x, w, padding=(1, 1, 1)),
        lambda x, w: F.conv3d(x, w, padding="same"),
        lambda x, w: F.conv3d(x[0], w, stride=(1,), padding=(1,)),
    ],
)
def test_arguments_by_name(convolve: Callable[..., Any]):
    x, w = torch.randn(1, 4, 2, 5, 5), torch.randn(4, 4, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16), WholeConvolutions():
        found = convolve(x, w)
    assert torch.equal(found, convolve(x, w).bfloat16())


@pytest.mark.parametrize(
    "convolve",
    [
        lambda x, w: F.conv3d(x, w[:, :, :2, :2, :2], stride=2),
        lambda x, w: F.conv_transpose3d(x, w, stride=2, padding=1, output_padding=1),
        lambda x, w: F.conv3d(x, w[..., :1, :1, :1], stride=2),
    ],
)
def test_kernels_that_are_within_the_map_somewhere(convolve: Callable[..., Any]):
    x, w = torch.randn(1, 4, 2, 2, 2), torch.randn(4, 4, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = convolve(x, w)
        with WholeConvolutions():
            found = convolve(x, w)
    assert torch.equal(found, expected)
    assert not torch.equal(found, convolve(x, w).bfloat16())


def test_what_torch_refuses_is_refused():
    with torch.autocast("cpu", torch.bfloat16), WholeConvolutions(), pytest.raises(TypeError):
        F.conv3d(torch.zeros(1, 4, 2, 2, 2))


def test_double_precision_stays():
    x, w = torch.randn(1, 4, 2, 2, 2).double(), torch.randn(4, 4, 3, 3, 3).double()
    with torch.autocast("cpu", torch.bfloat16), WholeConvolutions():
        assert F.conv3d(x, w, padding=1).dtype == torch.float64
