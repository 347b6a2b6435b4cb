"""Residual convolutions and the decoder of UNETR (Hatamizadeh et al. 2022, arXiv:2103.10504).

What MONAI's ``UnetResBlock``, ``UnetrBasicBlock`` and ``UnetrUpBlock`` compute, with this package's
instance norm: under autocast torch's, in MONAI's, has 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from .norms import InstanceNorm2d, InstanceNorm3d

_INSTANCE_NORM = {2: InstanceNorm2d, 3: InstanceNorm3d}  # by the axes of a map


class UNETRBlock(nn.Module):
    """Two 3-wide convolutions around a residual, each with instance norm without parameters."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        conv, norm = Conv["conv", spatial_dims], _INSTANCE_NORM[spatial_dims]
        self.conv1 = conv(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = norm(out_channels, affine=False)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = norm(out_channels, affine=False)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Sequential(
                conv(in_channels, out_channels, 1, bias=False), norm(out_channels, affine=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.norm1(self.conv1(x)))
        return F.leaky_relu(self.norm2(self.conv2(y)) + self.skip(x))


class UNETRLevel(nn.Module):
    """Double the map's size, concatenate the skip, each at the level's width; then a block."""

    def __init__(
        self, spatial_dims: int, in_channels: int, skip_channels: int, channels: int
    ) -> None:
        super().__init__()
        self.skip = UNETRBlock(spatial_dims, skip_channels, channels)
        self.up = Conv["convtrans", spatial_dims](in_channels, channels, 2, stride=2, bias=False)
        self.fuse = UNETRBlock(spatial_dims, 2 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.fuse(torch.cat([self.up(x), self.skip(skip)], dim=1))


class UNETRDecoder(nn.Module):
    """Maps that halve from one to the next, finest first, to decoded maps, but for the deepest's.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of each map.
        channels: of each decoded map.
    """

    def __init__(
        self, spatial_dims: int, in_channels: Sequence[int], channels: Sequence[int]
    ) -> None:
        super().__init__()
        deeper = [*channels[1:], in_channels[-1]]
        self.levels = nn.ModuleList(  # from the deepest
            UNETRLevel(spatial_dims, deeper[i], in_channels[i], channels[i])
            for i in reversed(range(len(channels)))
        )
        self.final = UNETRBlock(spatial_dims, channels[0], channels[0])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        x = maps[-1]
        decoded: list[Tensor] = []
        for i, level in enumerate(self.levels):
            x = level(x, maps[len(maps) - 2 - i])
            decoded.insert(0, x)
        decoded[0] = self.final(x)
        return decoded
