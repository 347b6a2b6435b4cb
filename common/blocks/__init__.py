"""Building blocks that two networks or more share."""

from .codebook import Codebook
from .mamba import Mamba
from .norms import BatchNorm2d, BatchNorm3d, ChannelNorm, GroupNorm, InstanceNorm3d
from .ss2d import SS2D, VSSBlock

__all__ = [
    "SS2D",
    "BatchNorm2d",
    "BatchNorm3d",
    "ChannelNorm",
    "Codebook",
    "GroupNorm",
    "InstanceNorm3d",
    "Mamba",
    "VSSBlock",
]
