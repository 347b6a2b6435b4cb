"""Dynamic quantisation of whole networks: of the linear layers that are modules of their own."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicLinear
from torch.ao.quantization import quantize_dynamic

from common.networks import LCMambaNet, LightMUNet, MambaClinix, SwinUMamba, VMUNet


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: LightMUNet(3, 1, 2, init_filters=8), (1, 1, 16, 16, 16)),
        (LCMambaNet, (1, 3, 64, 64)),
        (
            lambda: MambaClinix(1, 2, (8, 16, 16), [[1] * 3, [2] * 3, [2] * 3], [[3] * 3] * 3),
            (1, 1, 16, 16, 16),
        ),
        (lambda: VMUNet(3, 1, (1, 1), (1, 1), (16, 32)), (1, 3, 64, 64)),
        (lambda: SwinUMamba(3, 2, "mamba", (1, 1), (16, 32)), (1, 3, 64, 64)),
    ],
    ids=["LightMUNet", "LCMambaNet", "MambaClinix", "VMUNet", "SwinUMamba"],
)
def test_quantised_network_is_near_the_other(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
):
    torch.manual_seed(0)
    network = build().eval()
    quantised = quantize_dynamic(network, {nn.Linear})
    assert any(isinstance(module, DynamicLinear) for module in quantised.modules())
    x = torch.randn(shape)
    with torch.no_grad():
        expected, found = network(x), quantised(x)
    assert (found - expected).norm() < 0.5 * expected.norm()  # initial weights are no trained ones
