"""Shorter arithmetic on the CPU, where MONAI's engines have none."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

from common.inferers import AutocastInferer


@pytest.mark.parametrize(
    ("device", "enabled", "expected"),
    [
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
        ("cuda:0", True, torch.float32),
        ("mps", True, torch.float32),
    ],
)
def test_where_it_is(device: str, enabled: bool, expected: torch.dtype):
    layer = nn.Conv2d(1, 2, 3, padding=1)
    inferer = AutocastInferer(SimpleInferer(), device, torch.bfloat16, enabled)
    x = MetaTensor(torch.rand(1, 1, 8, 8))
    assert inferer(x, layer).dtype == expected
    assert not torch.is_autocast_enabled("cpu")


def test_arguments_reach_the_network_and_windows_sum_in_float32():
    def network(x: torch.Tensor, factor: float) -> torch.Tensor:
        y: torch.Tensor = factor * layer(x)
        assert y.dtype == torch.bfloat16
        return y

    layer = nn.Conv2d(1, 2, 1)
    windows = SlidingWindowInferer(4, 1, 0.5, mode="gaussian")
    inferer = AutocastInferer(windows, "cpu", torch.bfloat16, True)
    x = torch.rand(1, 1, 8, 8)
    y = inferer(x, network, 2.0)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, 2 * layer(x), rtol=2e-2, atol=2e-2)


def test_convolutions_wider_than_their_map_are_in_float32():
    layer, x = nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, 2, 2)
    found = AutocastInferer(SimpleInferer(), "cpu", torch.bfloat16, True)(x, layer)
    assert torch.equal(found, layer(x).bfloat16())
