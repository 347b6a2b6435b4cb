"""Sums of Dice and cross entropy, of classes and of regions, in this package's precision."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai import losses
from torch import Tensor, nn

from .ignored import known_part, known_samples, known_voxels, mean
from .overlap import DiceLoss, reduced_over_ranks
from .precision import at_least_float32


class DiceCELoss(losses.DiceCELoss):
    """MONAI's ``DiceCELoss`` with the same arguments, in float32 where the logits have 16 bits.

    MONAI's sums 16-bit logits as they are: in float16 the Dice of a volume is NaN, unless CUDA's
    autocast happens to be on. Ignored voxels, too, are news to it: the loss is that of the others,
    as in nnU-Net; of a sample without any other, or a batch, it is 0. With several ranks it is that
    of their global batch, on each of them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dice.__class__ = DiceLoss  # ours, which MONAI's constructor does not know

    def ce(self, input: Tensor, target: Tensor) -> Tensor:
        entropy = super().ce(input, target) if target.numel() else input.sum()
        weight = self.cross_entropy.weight
        count: int | Tensor = target[:, 0].numel()
        if weight is not None and target.shape[1] == 1:  # torch's mean is then a weighted one
            count = weight.to(input)[target.long()].sum()
        return reduced_over_ranks(entropy, count, self.dice.reduction)

    def bce(self, input: Tensor, target: Tensor) -> Tensor:
        entropy = super().bce(input, target) if target.numel() else input.sum()
        return reduced_over_ranks(entropy, target.numel(), self.dice.reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        logits = at_least_float32(input)
        if known_voxels(target) is None:
            return super().forward(logits, target)
        known = known_part(logits, target)
        samples = [known] if self.dice.batch else known_samples(logits, target)
        dice = torch.stack([self.dice(*sample) for sample in samples])
        loss = self.lambda_dice * (dice.sum() if self.dice.reduction == "sum" else dice.mean())
        entropy = self.ce(*known) if input.shape[1] != 1 else self.bce(*known)
        return loss + self.lambda_ce * entropy


class DiceBCELoss(nn.Module):
    """Dice + binary cross entropy of regions that may overlap, a sigmoid each.

    MONAI's ``DiceCELoss`` would not do: for several channels, its second term is a softmax's cross
    entropy, whatever the first's activation.

    Args:
        batch: whether Dice is of the batch as a whole, rather than a mean over samples.
    """

    def __init__(self, batch: bool = False) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, batch=batch)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean over regions, voxels and samples.

        Args:
            logits: (b, regions, ...).
            target: (b, regions, ...), 0 or 1; ignored voxels are so in every region.
        """
        logits = at_least_float32(logits)
        target = target.to(logits.dtype)
        known = known_part(logits, target)
        entropy = mean(F.binary_cross_entropy_with_logits(*known, reduction="none"))
        if self.dice.batch or known[0] is logits:
            return self.dice(*known) + entropy
        dice = torch.stack([self.dice(*sample) for sample in known_samples(logits, target)])
        return dice.mean() + entropy
