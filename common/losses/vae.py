"""The loss of a network with a variational autoencoder beside its logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .ignored import mean
from .precision import at_least_float32


class VAERegularisedLoss(nn.Module):
    """A loss of the logits + weight * (reconstruction + KL divergence) of the network's own branch.

    Myronenko 2018 (arXiv:1810.11654, eq. 1), where both terms have the weight 0.1. The branch is
    `common.networks.SegResNetVAE`'s.

    Args:
        loss: of logits and target.
        weight: of the branch's loss, from 0.

    Raises:
        ValueError: the weight is negative.
    """

    def __init__(self, loss: nn.Module, weight: float = 0.1) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight is {weight}; allowed are numbers from 0.")
        self.loss = loss
        self.weight = weight

    def forward(self, output: Sequence[Tensor], target: Tensor) -> Tensor:
        """The logits (b, c, ...) and the branch's loss per sample (b,), and the target."""
        logits, branch = output
        return self.loss(logits, target) + self.weight * mean(at_least_float32(branch))
