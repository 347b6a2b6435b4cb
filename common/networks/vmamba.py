"""VMamba: visual state space model (Liu et al. 2024, arXiv:2401.10166), as an encoder.

Written from the paper and from golden vectors made with a released network that holds it. Its
ImageNet classifiers load through `common.checkpoints.load_encoder`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import ChannelNorm, Mixer, VSSBlock, check_heads, check_mixer
from ..ops import Backend


class PatchEmbedding(nn.Module):
    """A quarter of the image's size in two strided convolutions."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1)
        self.norm1 = ChannelNorm(channels // 2)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x)))))


class Stage(nn.Module):
    """Halve the map, but at the first stage; then blocks."""

    def __init__(self, down: nn.Module, blocks: Sequence[VSSBlock]) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.down(x))


class VMambaEncoder(nn.Module):
    """VMamba without its classifier, images (b, in_channels, h, w) to a list of normalised maps.

    The maps are 1/4, 1/8, 1/16, ... of the image's size (rounded up), of `channels`, twice, four
    times, ... as many channels. The defaults are VMamba-Tiny; depths (2, 2, 15, 2) and drop_path
    0.3 are VMamba-Small.

    Args:
        in_channels: channels of the image.
        channels: channels of the first map.
        depths: blocks per stage.
        drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
        mixer: "mamba"; or in the place of every scan "identity", nothing, "conv", a depthwise 3 x 3
            convolution, or "attention": see `common.blocks.SS2DTwin`.
        backend: backend of the scans.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        in_channels: int = 3,
        channels: int = 96,
        depths: Sequence[int] = (2, 2, 5, 2),
        drop_path: float = 0.2,
        mixer: Mixer = "mamba",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels is {in_channels}; allowed are whole numbers from 1.")
        if channels < 2 or channels % 2:
            raise ValueError(f"channels is {channels}; allowed are even numbers from 2.")
        if not depths or min(depths) < 1:
            raise ValueError(f"depths is {tuple(depths)}; allowed are whole numbers from 1.")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is {drop_path}; allowed is 0 <= drop_path < 1.")
        check_mixer(mixer)
        if mixer == "attention":
            check_heads("channels", channels, expand=2)
        self.channels = [channels * 2**i for i in range(len(depths))]
        rates = iter(torch.linspace(0, drop_path, sum(depths)).tolist())
        self.patch_embedding = PatchEmbedding(in_channels, channels)
        self.stages = nn.ModuleList()
        for i, (c, depth) in enumerate(zip(self.channels, depths, strict=True)):
            down: nn.Module = nn.Identity()
            if i > 0:
                down = nn.Sequential(nn.Conv2d(c // 2, c, 3, stride=2, padding=1), ChannelNorm(c))
            blocks = [VSSBlock(c, next(rates), backend, mixer) for _ in range(depth)]
            self.stages.append(Stage(down, blocks))
        self.norms = nn.ModuleList(ChannelNorm(c) for c in self.channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embedding(x)
        maps: list[Tensor] = []
        for stage, norm in zip(self.stages, self.norms):  # noqa: B905  (TorchScript has no strict)
            x = stage(x)
            maps.append(norm(x))
        return maps
