"""Residual blocks of convolutions with instance norm, 2D or 3D by the length of a kernel.

As in the encoders of nnU-Net (Isensee et al. 2024, arXiv:2404.09556) and of networks within it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn

from .norms import InstanceNorm2d, InstanceNorm3d


class ConvNorm(nn.Module):
    """Convolution that keeps the size, but for its stride; then instance norm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        stride: Sequence[int] | int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        padding = [k // 2 for k in kernel]
        self.conv = Conv["conv", len(kernel)](
            in_channels, out_channels, kernel, stride, padding, bias=bias
        )
        norm = InstanceNorm2d if len(kernel) == 2 else InstanceNorm3d
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ResidualBlock(nn.Module):
    """Two convolutions with instance norm around a residual that `skip` brings to size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        skip: nn.Module,
        stride: Sequence[int] | int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, kernel, stride)
        self.conv2 = ConvNorm(out_channels, out_channels, kernel)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.leaky_relu(self.conv1(x)))
        return F.leaky_relu(y + self.skip(x))


def pooled_skip(in_channels: int, out_channels: int, stride: Sequence[int]) -> nn.Sequential:
    """A block's residual, averaged over its stride, then brought to its width."""
    dims = len(stride)
    pool: nn.Module = nn.Identity()
    if max(stride) > 1:
        # Odd sizes are rounded up, as by the strided convolution.
        pool = Pool["avg", dims](tuple(stride), ceil_mode=True)
    project: nn.Module = nn.Identity()
    if in_channels != out_channels:
        project = ConvNorm(in_channels, out_channels, (1,) * dims, bias=False)
    return nn.Sequential(pool, project)


def init_convolution(module: nn.Module) -> None:
    """As nnU-Net: He et al. 2015 for leaky ReLU, in 2D and 3D convolutions alone; for `apply`.

    The 1D ones are Mamba's, which has its own.
    """
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
