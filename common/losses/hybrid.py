"""Losses of ELANRes-MSCA-UNet: overlap and voxel-wise terms, alone and weighted (table 1)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from monai.networks.utils import one_hot
from torch import Tensor, nn

from ..distributed import mean_over_ranks
from .ignored import known_part
from .overlap import DiceLoss, TverskyLoss
from .precision import at_least_float32

HybridKind = Literal["dice_bce", "tversky_bce", "dice", "tversky", "bce"]

_KINDS = ("dice_bce", "tversky_bce", "dice", "tversky", "bce")


class HybridLoss(nn.Module):
    """weight * (Dice or Tversky) + (1 - weight) * BCE, or one of these terms alone.

    For one channel of logits BCE is binary; for several it is the cross entropy of their softmax,
    and the overlap is the mean of the classes without the background, which is the first. For one
    of several scales; wrap it in MONAI's ``DeepSupervisionLoss`` for all. The paper leaves the
    weights open.

    Args:
        kind: "dice_bce", the paper's HybridLoss1; "tversky_bce", its HybridLoss2; or one term.
        weight: of the overlap in a sum of two, from 0 to 1.
        fp_weight, fn_weight: Tversky's weights of false positives and false negatives.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        kind: HybridKind = "dice_bce",
        weight: float = 0.5,
        fp_weight: float = 0.3,
        fn_weight: float = 0.7,
    ) -> None:
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"kind is {kind!r}; allowed are {', '.join(map(repr, _KINDS))}.")
        if not 0 <= weight <= 1:
            raise ValueError(f"weight is {weight}; allowed is 0 <= weight <= 1.")
        for name, value in (("fp_weight", fp_weight), ("fn_weight", fn_weight)):
            if value < 0:
                raise ValueError(f"{name} is {value}; allowed are numbers from 0.")
        self.kind = kind
        self.weight = {"bce": 0.0, "dice": 1.0, "tversky": 1.0}.get(kind, weight)
        self.fp_weight = fp_weight
        self.fn_weight = fn_weight

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean over voxels and samples.

        Args:
            logits: (b, c, ...).
            target: class of every voxel, (b, 1, ...); 0 and 1 where c is 1. Where it is ignored
                no term counts: the loss is that of the other voxels alone.

        Raises:
            ValueError: the shapes do not fit.
        """
        allowed = (logits.shape[0], 1, *logits.shape[2:])
        if target.shape != allowed:
            raise ValueError(
                f"target has shape {tuple(target.shape)}; allowed is one channel of the logits' "
                f"size, {allowed}."
            )
        logits, target = known_part(at_least_float32(logits), target)
        single = logits.shape[1] == 1
        dtype = logits.dtype
        classes = target.to(dtype) if single else one_hot(target, logits.shape[1], dtype)
        if self.weight == 0:
            return self._cross_entropy(logits, classes)
        activation = {"sigmoid": single, "softmax": not single, "include_background": single}
        if self.kind.startswith("dice"):
            overlap = DiceLoss(**activation, batch=True)
        else:
            overlap = TverskyLoss(
                **activation, alpha=self.fp_weight, beta=self.fn_weight, batch=True
            )
        loss = self.weight * overlap(logits, classes)
        if self.weight < 1:
            loss = loss + (1 - self.weight) * self._cross_entropy(logits, classes)
        return loss

    def _cross_entropy(self, logits: Tensor, classes: Tensor) -> Tensor:
        if not logits.numel():
            entropy = logits.sum()  # 0, with a gradient: all is ignored
        elif logits.shape[1] == 1:
            entropy = F.binary_cross_entropy_with_logits(logits, classes)
        else:
            entropy = F.cross_entropy(logits, classes)
        return mean_over_ranks(entropy, logits[:, 0].numel())
