"""Building blocks that two networks or more share."""

from .codebook import Codebook
from .mamba import Mamba
from .ss2d import SS2D, VSSBlock

__all__ = ["SS2D", "Codebook", "Mamba", "VSSBlock"]
