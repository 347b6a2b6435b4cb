"""The residual blocks against MONAI's, which the released networks have."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks import UnetResBlock, UnetrUpBlock
from torch import Tensor, nn

from common.blocks import UNETRBlock, UNETRDecoder


def weights_of(monai: nn.Module) -> dict[str, Tensor]:
    """MONAI's ``UnetResBlock``'s, by the names here."""
    return {
        name.replace("conv3.conv.", "skip.0.").replace(".conv.", "."): x
        for name, x in monai.state_dict().items()
    }


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [4, 6])
def test_residual_block_is_monais(dims: int, channels: int):
    torch.manual_seed(0)
    monai = UnetResBlock(dims, 4, channels, kernel_size=3, stride=1, norm_name="instance").double()
    block = UNETRBlock(dims, 4, channels).double()
    block.load_state_dict(weights_of(monai))
    x = torch.randn(2, 4, *[6, 5, 4][:dims], dtype=torch.float64)
    torch.testing.assert_close(block(x), monai(x))


def test_decoder_is_monais():
    torch.manual_seed(0)
    decoder = UNETRDecoder(2, (1, 2, 8), (3, 4)).double()
    up = UnetrUpBlock(2, 8, 4, 3, 2, norm_name="instance", res_block=True).double()
    deepest = decoder.levels[0]
    deepest.up.load_state_dict(up.transp_conv.conv.state_dict())
    deepest.fuse.load_state_dict(weights_of(up.conv_block))
    sizes = [(1, 24, 16), (2, 12, 8), (8, 6, 4)]
    maps = [torch.randn(1, *size, dtype=torch.float64) for size in sizes]
    finest, coarse = decoder(maps)
    torch.testing.assert_close(coarse, up(maps[2], deepest.skip(maps[1])))
    assert finest.shape == (1, 3, 24, 16)
    torch.testing.assert_close(finest, decoder.final(decoder.levels[1](coarse, maps[0])))
