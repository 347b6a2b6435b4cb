"""MONAI's sum of Dice and cross entropy, in the precision of this package's losses."""

from __future__ import annotations

from monai import losses
from torch import Tensor

from .precision import at_least_float32


class DiceCELoss(losses.DiceCELoss):
    """MONAI's ``DiceCELoss`` with the same arguments, in float32 where the logits have 16 bits.

    MONAI's sums 16-bit logits as they are: in float16 the Dice of a volume is NaN, unless CUDA's
    autocast happens to be on.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(at_least_float32(input), target)
