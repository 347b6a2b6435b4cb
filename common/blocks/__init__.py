"""Building blocks that two networks or more share."""

from .codebook import Codebook
from .mamba import Mamba, MambaMixer, Mixer
from .norms import (
    BatchNorm2d,
    BatchNorm3d,
    ChannelNorm,
    GroupNorm,
    InstanceNorm2d,
    InstanceNorm3d,
)
from .residual import ConvNorm, ResidualBlock, init_convolution, pooled_skip
from .ss2d import SS2D, GatedVSSBlock, VSSBlock
from .unetr import UNETRBlock, UNETRDecoder
from .vss_encoder import (
    PatchExpanding,
    VSSEncoder,
    check_depths,
    drop_path_rates,
    initialise_linear,
    pad_to_multiple,
    vss_stage,
)

__all__ = [
    "SS2D",
    "BatchNorm2d",
    "BatchNorm3d",
    "ChannelNorm",
    "Codebook",
    "ConvNorm",
    "GatedVSSBlock",
    "GroupNorm",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "Mamba",
    "MambaMixer",
    "Mixer",
    "PatchExpanding",
    "ResidualBlock",
    "UNETRBlock",
    "UNETRDecoder",
    "VSSBlock",
    "VSSEncoder",
    "check_depths",
    "drop_path_rates",
    "init_convolution",
    "initialise_linear",
    "pad_to_multiple",
    "pooled_skip",
    "vss_stage",
]
