"""Losses of the Codebook Mamba U-Net (Teng et al., section 3.5).

Two sigmoid channels: 0 the whole liver, tumour included, and 1 the tumour. Targets have the same
two channels; a label map 0, 1, 2 becomes liver = label >= 1 and tumour = label == 2 in the
bundle's preprocessing, where metrics read it too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import InputError
from .dice_ce import DiceBCELoss
from .ignored import known_part, mean
from .precision import at_least_float32


class InclusionLoss(nn.Module):
    """Mean over voxels of p_tumour (1 - p_liver): tumour lies in the liver alone (eq. 7)."""

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (b, 2, ...), the whole liver and the tumour, to a scalar.

        Raises:
            ValueError: the logits have other channels.
        """
        _check_channels("logits", logits)
        liver, tumour = at_least_float32(logits).unbind(1)
        # sigmoid(-x) is 1 - sigmoid(x), without the cancellation near 1.
        return mean(torch.sigmoid(tumour) * torch.sigmoid(-liver))


class CodebookMambaLoss(nn.Module):
    """Dice + BCE + alpha L_vq + beta L_con (eq. 8).

    Of ignored voxels it has no term. The codebook's loss is the network's, of all its features.

    Args:
        alpha: weight of the codebook's loss; 0 leaves it out (table 4). The prototypes have no
            other gradient: they then stay where they started, and the network learns to use them.
        beta: weight of the inclusion loss; 0 leaves it out (tables 1 and 4).

    Raises:
        ValueError: a weight is negative.
    """

    def __init__(self, alpha: float = 0.4, beta: float = 0.6) -> None:
        super().__init__()
        for name, value in (("alpha", alpha), ("beta", beta)):
            if value < 0:
                raise ValueError(f"{name} is {value}; allowed are numbers from 0.")
        self.alpha = alpha
        self.beta = beta
        self.dice_bce = DiceBCELoss()
        self.inclusion = InclusionLoss()

    def forward(self, output: Tensor | Sequence[Tensor], target: Tensor) -> Tensor:
        """A network's output and its target to a scalar.

        Args:
            output: in training, a sequence of the logits (b, 2, ...), the codebook's loss per
                sample (b,), and what else the network gives; or the logits alone, of a network
                without a codebook or in evaluation.
            target: (b, 2, ...), the whole liver and the tumour, 0 or 1, or both ignored.

        Raises:
            ValueError: logits or target have other channels.
        """
        logits = output if isinstance(output, Tensor) else output[0]
        _check_channels("target", target)
        logits = at_least_float32(logits)
        known, _ = known_part(logits, target)
        loss = self.dice_bce(logits, target) + self.beta * self.inclusion(known)
        if isinstance(output, Tensor):
            return loss
        return loss + self.alpha * mean(at_least_float32(output[1]))


def _check_channels(name: str, x: Tensor) -> None:
    if x.shape[1] != 2:
        raise InputError(f"{name} has {x.shape[1]} channels; allowed are 2, liver and tumour.")
