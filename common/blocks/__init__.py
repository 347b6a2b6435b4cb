"""Building blocks that two networks or more share."""

from .codebook import Codebook
from .mamba import Mamba, MambaMixer
from .mixers import (
    ConvolutionMixer,
    IdentityMixer,
    Mixer,
    ResidualMixer,
    SelfAttention,
    Twin,
    build_twin,
    check_heads,
    check_mixer,
)
from .norms import (
    BatchNorm2d,
    BatchNorm3d,
    ChannelNorm,
    GroupNorm,
    InstanceNorm2d,
    InstanceNorm3d,
)
from .residual import ConvNorm, ResidualBlock, init_convolution, pooled_skip
from .ss2d import SS2D, GatedVSSBlock, SS2DTwin, VSSBlock
from .staged_unet import StagedUNet, check_size
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
    "ConvolutionMixer",
    "GatedVSSBlock",
    "GroupNorm",
    "IdentityMixer",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "Mamba",
    "MambaMixer",
    "Mixer",
    "PatchExpanding",
    "ResidualBlock",
    "ResidualMixer",
    "SS2DTwin",
    "SelfAttention",
    "StagedUNet",
    "Twin",
    "UNETRBlock",
    "UNETRDecoder",
    "VSSBlock",
    "VSSEncoder",
    "build_twin",
    "check_depths",
    "check_heads",
    "check_mixer",
    "check_size",
    "drop_path_rates",
    "init_convolution",
    "initialise_linear",
    "pad_to_multiple",
    "pooled_skip",
    "vss_stage",
]
