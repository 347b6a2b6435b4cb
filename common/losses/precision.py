"""The precision of every loss here."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 where it has 16 bits: float16 counts to 65504 voxels, bfloat16 to 256."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
