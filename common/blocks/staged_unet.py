"""A U-Net in nnU-Net's stages, with a head at each scale that its decoder has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class StagedUNet(nn.Module):
    """What networks of stages have in common: images (b, c, ...) to logits of equal size.

    In training with `deep_supervision`, `forward` gives a list of logits, finest first, one per
    stage but the deepest, each at its stage's size; else, and in training mode without gradients
    (Monte Carlo dropout), the finest alone. TorchScript compiles it in eval mode. Without deep
    supervision the coarser heads are there, so that checkpoints load, but ask for no gradient, for
    which DistributedDataParallel would wait.

    Args:
        stem: of `embed`, which subclasses define.
        encoder: stages, finest first; each takes the map of the one before.
        bottleneck: of the deepest map, before its dropout.
        dropout: of what the bottleneck gives.
        decoder: stages from the deepest, one fewer; each takes a map and the skip.
        heads: to the classes, in the decoder's order.
        deep_supervision: whether training sees the coarser logits too.
    """

    def __init__(
        self,
        stem: nn.Module,
        encoder: Sequence[nn.Module],
        bottleneck: nn.Module,
        dropout: nn.Module,
        decoder: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.stem = stem
        self.encoder = nn.ModuleList(encoder)
        self.bottleneck = bottleneck
        self.dropout = dropout
        self.decoder = nn.ModuleList(decoder)
        self.heads = nn.ModuleList(heads)
        if not deep_supervision:
            self.heads[:-1].requires_grad_(False)

    def embed(self, x: Tensor) -> Tensor:
        """What the first stage takes, of an image."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> list[Tensor]:
        """The map after each stage, finest first."""
        x = self.embed(x)
        maps: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        return maps

    def decode(self, maps: list[Tensor]) -> list[Tensor]:
        """The decoder's maps, deepest first, from those of `encode`."""
        x = self.dropout(self.bottleneck(maps[-1]))
        decoded: list[Tensor] = []
        for i, stage in enumerate(self.decoder):
            x = stage(x, maps[len(maps) - 2 - i])
            decoded.append(x)
        return decoded

    def multiscale_logits(self, x: Tensor) -> list[Tensor]:
        """Logits of each scale, finest first, in training and in eval mode."""
        maps = self.decode(self.encode(x))
        return [head(y) for head, y in zip(self.heads, maps, strict=True)][::-1]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        supervised = self.training and self.deep_supervision and torch.is_grad_enabled()
        if not torch.jit.is_scripting() and supervised:
            return self.multiscale_logits(x)
        return self.heads[-1](self.decode(self.encode(x))[-1])


def check_size(x: Tensor, least: list[int]) -> None:
    """Raises ValueError for an image that is smaller, or as small along every axis.

    Instance norm needs two sites in the deepest map.
    """
    size = list(x.shape[2:])
    spare = [size[i] - smallest for i, smallest in enumerate(least)]
    if min(spare) < 0 or max(spare) == 0:
        raise ValueError(
            f"x has size {size}; allowed are sizes from {least}, and larger along one axis or more."
        )
