"""Building blocks that two networks or more share."""

from .codebook import Codebook
from .mamba import Mamba, Mixer
from .norms import (
    BatchNorm2d,
    BatchNorm3d,
    ChannelNorm,
    GroupNorm,
    InstanceNorm2d,
    InstanceNorm3d,
)
from .residual import ConvNorm, ResidualBlock, init_convolution, pooled_skip
from .ss2d import SS2D, VSSBlock

__all__ = [
    "SS2D",
    "BatchNorm2d",
    "BatchNorm3d",
    "ChannelNorm",
    "Codebook",
    "ConvNorm",
    "GroupNorm",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "Mamba",
    "Mixer",
    "ResidualBlock",
    "VSSBlock",
    "init_convolution",
    "pooled_skip",
]
