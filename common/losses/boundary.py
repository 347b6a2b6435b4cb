"""LCMambaNet's loss: weighted cross entropy and Dice, and cross entropy near the boundaries."""

from __future__ import annotations

import math

import torch.nn.functional as F
from monai.networks import one_hot
from torch import Tensor, nn

from ..distributed import sum_over_ranks
from ..ignored import is_ignored
from .ignored import known_voxels, mean, of_voxels
from .overlap import DiceLoss
from .precision import at_least_float32


class BoundaryAwareBCEDiceLoss(nn.Module):
    """bce_weight * BCE + (1 - bce_weight) * Dice + boundary_weight * BCE near the boundaries.

    (Sun et al., section 2.5, equations 9 to 11, whose weights it leaves open.) Near is where the
    morphological gradient of the label map is 1: within `boundary_width` voxels of a voxel of
    another class. For one channel of logits BCE is binary, for several it is the cross entropy of
    their softmax, which is the same for two classes. For one of several scales; wrap it in MONAI's
    ``DeepSupervisionLoss`` for all.

    Args:
        bce_weight: lambda, from 0 to 1.
        boundary_weight: 0 leaves the boundary term out.
        boundary_width: voxels on either side of a boundary.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self, bce_weight: float = 0.5, boundary_weight: float = 1.0, boundary_width: int = 2
    ) -> None:
        super().__init__()
        if not 0 <= bce_weight <= 1:
            raise ValueError(f"bce_weight is {bce_weight}; allowed is 0 <= bce_weight <= 1.")
        if boundary_weight < 0:
            raise ValueError(f"boundary_weight is {boundary_weight}; allowed are numbers from 0.")
        if boundary_width < 1:
            raise ValueError(
                f"boundary_width is {boundary_width}; allowed are whole numbers from 1."
            )
        self.bce_weight = bce_weight
        self.boundary_weight = boundary_weight
        self.boundary_width = boundary_width

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean over voxels and samples.

        Args:
            logits: (b, c, h, w) or (b, c, h, w, d).
            target: class of every voxel, (b, 1, h, w) or (b, 1, h, w, d); 0 and 1 where c is 1.
                Ignored voxels count in no term, nor is any boundary theirs.

        Raises:
            ValueError: the shapes do not fit.
        """
        if target.shape != (logits.shape[0], 1, *logits.shape[2:]):
            raise ValueError(
                f"target has shape {tuple(target.shape)}; allowed is one channel of the logits' "
                f"size, {(logits.shape[0], 1, *logits.shape[2:])}."
            )
        logits = at_least_float32(logits)
        near = self._near_boundary(target.float()) if self.boundary_weight > 0 else logits[:, :1]
        if (known := known_voxels(target)) is not None:
            logits, target, near = (of_voxels(x, known) for x in (logits, target, near))
        if logits.shape[1] == 1:
            classes = target.to(logits.dtype)
            bce = F.binary_cross_entropy_with_logits(logits, classes, reduction="none")
            dice = DiceLoss(sigmoid=True, batch=True)(logits, classes)
        else:
            classes = one_hot(target, logits.shape[1], dtype=logits.dtype)
            bce = F.cross_entropy(logits, classes, reduction="none").unsqueeze(1)
            dice = DiceLoss(softmax=True, include_background=False, batch=True)(logits, classes)
        loss = self.bce_weight * mean(bce) + (1 - self.bce_weight) * dice
        if self.boundary_weight > 0:
            sites = sum_over_ranks(near.sum()).clamp(min=1)
            loss = loss + self.boundary_weight * sum_over_ranks((bce * near).sum()) / sites
        return loss

    def _near_boundary(self, target: Tensor) -> Tensor:
        """The morphological gradient: 1 where a neighbourhood has more than one class.

        Ignored voxels have none; what is between them and others is no boundary.
        """
        pool = F.max_pool2d if target.dim() == 4 else F.max_pool3d
        width, pad = 2 * self.boundary_width + 1, self.boundary_width
        ignored = is_ignored(target)
        dilated, minus_eroded = (
            pool(x.masked_fill(ignored, -math.inf), width, 1, pad) for x in (target, -target)
        )
        return (dilated > -minus_eroded).to(target.dtype)
