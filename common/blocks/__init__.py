"""Building blocks that two networks or more share."""

from .mamba import Mamba

__all__ = ["Mamba"]
