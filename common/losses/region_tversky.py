"""Region-specific Tversky loss of MambaClinix, alone and with cross entropy and Dice.

Bian et al. 2024, arXiv:2409.12533, section 2.5 and table 5, after the adaptive region-specific loss
of Chen et al. 2023 (IEEE TPAMI 45). Where the paper and its released code differ
(sums over a region or their means; 1 - Tversky summed over regions or -Tversky averaged), this
follows the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch.nn.functional as F
from monai.networks.utils import one_hot
from torch import Tensor, nn

from ..distributed import sum_over_ranks
from .dice_ce import DiceCELoss
from .ignored import known_voxels, mean
from .precision import at_least_float32

Penalties = Literal["adaptive", "fixed", "equal"]

_NONE = 1e-12  # of a region: less than one voxel's share


class RegionSpecificTverskyLoss(nn.Module):
    """Tversky loss (eq. 16) of each region of a regular grid, from logits and a label map.

    With a region's mean TP, FP and FN after the softmax, s = `smooth`, and adaptive penalties::

        weight of FP = alpha + beta (FP + s) / (FP + FN + s)
        weight of FN = alpha + beta (FN + s) / (FP + FN + s)
        loss = -mean of (TP + s) / (TP + weight of FP * FP + weight of FN * FN + s)

    over regions, classes and, without `batch`, samples. The weights are differentiated through.
    With ignored voxels a region's means are over its others, and a region without any is left out.

    Args:
        regions_per_axis: regions along each axis, or along all; a map that has fewer voxels along
            an axis is cut into these.
        alpha: least weight of false positives and negatives.
        beta: range of their weights above it.
        penalties: of false positives and negatives: "adaptive" as above; or for table 5's
            ablations, "fixed", alpha and alpha + beta in every region, or "equal", 0.5 and 0.5
            whatever alpha and beta are, with which a region's score is its Dice ("RS").
        include_background: whether class 0 counts.
        batch: whether a region's TP, FP and FN are summed over the batch.
        smooth: s above.

    Raises:
        ValueError: an argument, or a tensor's shape, is not as above.
    """

    def __init__(
        self,
        regions_per_axis: int | Sequence[int] = 16,
        alpha: float = 0.3,
        beta: float = 0.4,
        penalties: Penalties = "adaptive",
        include_background: bool = False,
        batch: bool = True,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        regions = [regions_per_axis] if isinstance(regions_per_axis, int) else regions_per_axis
        if not regions or min(regions) < 1:
            raise ValueError(
                f"regions_per_axis is {regions_per_axis}; allowed are whole numbers from 1."
            )
        if penalties not in get_args(Penalties):
            allowed = ", ".join(map(repr, get_args(Penalties)))
            raise ValueError(f"penalties is {penalties!r}; allowed are {allowed}.")
        for name, value in (("alpha", alpha), ("beta", beta)):
            if value < 0:
                raise ValueError(f"{name} is {value}; allowed are numbers from 0.")
        if smooth <= 0:
            raise ValueError(f"smooth is {smooth}; allowed are numbers above 0.")
        self.regions_per_axis = regions_per_axis
        self.alpha = alpha
        self.beta = beta
        self.penalties = penalties
        self.include_background = include_background
        self.batch = batch
        self.smooth = smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits (b, c, ...) in 2D or 3D, for labels (b, 1, ...) below c."""
        regions = self._regions(logits, target)
        logits = at_least_float32(logits)
        known = known_voxels(target)
        if known is not None:
            known = known[:, None]
            logits = logits.masked_fill(~known, 0)  # whatever they were, infinities too
        p = logits.softmax(1)
        y = one_hot(target.clamp(min=0), logits.shape[1], dtype=p.dtype)
        if not self.include_background:
            p, y = p[:, 1:], y[:, 1:]
        counts = (p * y, p * (1 - y), (1 - p) * y)
        if known is None:
            tp, fp, fn = (_pool(x, regions) for x in counts)
        else:
            part = _pool(known.to(p.dtype), regions)
            tp, fp, fn = (_pool(x * known, regions) / part.clamp(min=_NONE) for x in counts)
        if self.batch:
            tp, fp, fn = (sum_over_ranks(x.sum(0)) for x in (tp, fp, fn))

        s = self.smooth
        if self.penalties == "adaptive":
            weight_fp = self.alpha + self.beta * (fp + s) / (fp + fn + s)
            weight_fn = self.alpha + self.beta * (fn + s) / (fp + fn + s)
            wrong = weight_fp * fp + weight_fn * fn
        elif self.penalties == "fixed":
            wrong = self.alpha * fp + (self.alpha + self.beta) * fn
        else:
            wrong = (fp + fn) / 2
        score = (tp + s) / (tp + wrong + s)
        if known is not None:
            seen = sum_over_ranks(part.sum(0)) if self.batch else part
            score = score[(seen > 0).expand_as(score)]
        return -mean(score)

    def _regions(self, logits: Tensor, target: Tensor) -> list[int]:
        size = logits.shape[2:]
        if len(size) not in (2, 3):
            raise ValueError(
                f"logits has shape {tuple(logits.shape)}; allowed are (b, c, h, w) and "
                "(b, c, d, h, w)."
            )
        if logits.shape[1] == 1 and not self.include_background:
            raise ValueError("logits has 1 class; allowed are 2 or more, the first the background.")
        wanted = (logits.shape[0], 1, *size)
        if tuple(target.shape) != wanted:
            raise ValueError(
                f"target has shape {tuple(target.shape)}; allowed is {wanted}, one label per voxel "
                "of logits."
            )
        regions = self.regions_per_axis
        if isinstance(regions, int):
            regions = [regions] * len(size)
        if len(regions) != len(size):
            raise ValueError(
                f"regions_per_axis is {regions}; allowed is one number for each of the logits' "
                f"{len(size)} axes."
            )
        return [min(pair) for pair in zip(regions, size, strict=True)]


def _pool(x: Tensor, regions: list[int]) -> Tensor:
    """Means of a map (b, c, ...) over a regular grid of regions."""
    if len(regions) == 2:
        return F.adaptive_avg_pool2d(x, (regions[0], regions[1]))
    return F.adaptive_avg_pool3d(x, (regions[0], regions[1], regions[2]))


class DiceCERegionTverskyLoss(nn.Module):
    """Cross entropy + Dice + `lambda_tversky` * region-specific Tversky (section 2.5).

    Dice is nnU-Net's: soft, after the softmax, without the background, smoothed by 1e-5. For
    logits (b, c, ...), c from 2, and labels (b, 1, ...). With deep supervision, wrap this in
    ``monai.losses.DeepSupervisionLoss`` with the weights of `deep_supervision_weights`.

    Args:
        regions_per_axis, penalties: as for `RegionSpecificTverskyLoss`.
        batch: whether Dice and Tversky are of the batch as a whole, nnU-Net's ``batch_dice``.
        lambda_tversky: weight of the Tversky term.
    """

    def __init__(
        self,
        regions_per_axis: int | Sequence[int] = 16,
        penalties: Penalties = "adaptive",
        batch: bool = True,
        lambda_tversky: float = 0.8,
    ) -> None:
        super().__init__()
        self.tversky = RegionSpecificTverskyLoss(regions_per_axis, penalties=penalties, batch=batch)
        self.dice_ce = DiceCELoss(
            include_background=False, to_onehot_y=True, softmax=True, batch=batch
        )
        self.lambda_tversky = lambda_tversky

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        logits = at_least_float32(logits)  # once: so the terms' gradients add up in it
        tversky = self.tversky(logits, target)  # first: its messages on shapes are clearer
        return self.dice_ce(logits, target) + self.lambda_tversky * tversky
