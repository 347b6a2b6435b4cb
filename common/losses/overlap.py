"""MONAI's losses of overlap, of the global batch: that of all ranks of a training.

They differ from MONAI's with several ranks alone.
"""

from __future__ import annotations

import torch
from monai import losses
from monai.losses.utils import compute_tp_fp_fn
from monai.networks import one_hot
from torch import Tensor

from ..distributed import mean_over_ranks, several_ranks, sum_over_ranks


class DiceLoss(losses.DiceLoss):
    """MONAI's ``DiceLoss``, over all ranks; its reduction is "mean" or "sum"."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if not several_ranks():
            return super().forward(input, target)
        if not self.batch:
            return reduced_over_ranks(super().forward(input, target), len(input), self.reduction)
        order = 2 if self.squared_pred else 1
        tp, fp, fn = _counts(self, input, target, order, decoupled=True)
        wrong = (fp + fn) if self.jaccard else (fp + fn) / 2
        loss = 1 - (2 * tp + self.smooth_nr) / (2 * (tp + wrong) + self.smooth_dr)
        if self.class_weight is not None and len(loss) > 1:
            loss = loss * self.class_weight.to(loss)
        return loss.sum() if self.reduction == "sum" else loss.mean()


class TverskyLoss(losses.TverskyLoss):
    """MONAI's ``TverskyLoss`` of the batch as a whole, over all ranks."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        if not several_ranks():
            return super().forward(input, target)
        tp, fp, fn = _counts(self, input, target, 1, decoupled=False)
        wrong = self.alpha * fp + self.beta * fn
        return (1 - (tp + self.smooth_nr) / (tp + wrong + self.smooth_dr)).mean()


def reduced_over_ranks(x: Tensor, count: int | Tensor, reduction: str) -> Tensor:
    """Of all ranks, the "mean" or "sum" that `x` is of the `count` things of this one."""
    return sum_over_ranks(x) if reduction == "sum" else mean_over_ranks(x, count)


def _counts(
    loss: DiceLoss | TverskyLoss, input: Tensor, target: Tensor, order: int, decoupled: bool
) -> Tensor:
    """TP, FP and FN of each class of all ranks' batches, (3, c), as the loss makes its own."""
    several = input.shape[1] > 1
    if loss.to_onehot_y and several:
        target = one_hot(target, input.shape[1])
    if loss.sigmoid:
        input = torch.sigmoid(input)
    if loss.softmax and several:
        input = input.softmax(1)
    if loss.other_act is not None:
        input = loss.other_act(input)
    if not loss.include_background and several:
        input, target = input[:, 1:], target[:, 1:]
    axes = [axis for axis in range(input.dim()) if axis != 1]
    counts = compute_tp_fp_fn(input, target, axes, order, loss.soft_label, decoupled)
    return sum_over_ranks(torch.stack(counts))
