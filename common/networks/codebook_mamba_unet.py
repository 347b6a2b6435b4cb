"""Codebook Mamba U-Net: multi-scale encoder, prototypes at the bottleneck, and Mamba after them.

Teng et al., Mamba-enhanced codebook learning with anatomical constraints for liver and tumor
segmentation in 3D CT volumes. Its authors released no code; widths, which the paper leaves open,
are chosen to meet its 1.26 M parameters and 113.87 GFLOPs at 48 x 256 x 256.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import (
    Codebook,
    GroupNorm,
    InstanceNorm3d,
    MambaMixer,
    Mixer,
    ResidualMixer,
    SelfAttention,
    build_twin,
    check_heads,
    check_mixer,
)
from ..ops import Backend


class CodebookOutput(NamedTuple):
    """What the network gives in training; each part has the batch as its first axis.

    Attributes:
        logits: (b, out_channels, ...), of the image's size.
        codebook_loss: L_vq of each sample, (b,).
        codes: nearest prototype at each site of the bottleneck, (b, ...).
    """

    logits: Tensor
    codebook_loss: Tensor
    codes: Tensor


class ConvUnit(nn.Sequential):
    """Convolution, instance norm (whose bias is the unit's), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int = 1) -> None:
        super().__init__(
            nn.Conv3d(
                in_channels,
                out_channels,
                kernel,
                padding=dilation * (kernel // 2),
                dilation=dilation,
                bias=False,
            ),
            InstanceNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )


class ConvBlock(nn.Sequential):
    """Two 3-wide units."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            ConvUnit(in_channels, out_channels, 3), ConvUnit(out_channels, out_channels, 3)
        )


class MultiScaleBlock(nn.Module):
    """Multi-scale context encoder (section 3.2, figure 3): local, wider and global, fused.

    The norm after the fusion is over all channels: an instance norm would take away again what the
    pooled branch adds, which is the same at every voxel.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.local = nn.Sequential(
            ConvUnit(in_channels, out_channels, 1), ConvUnit(out_channels, out_channels, 3)
        )
        self.wide = nn.Sequential(
            ConvUnit(in_channels, out_channels, 1),
            ConvUnit(out_channels, out_channels, 3, dilation=2),
        )
        self.pooled = nn.Sequential(
            nn.AdaptiveAvgPool3d(1), nn.Conv3d(in_channels, out_channels, 1), nn.ReLU()
        )
        self.fuse = nn.Sequential(
            nn.Conv3d(3 * out_channels, out_channels, 1, bias=False),
            GroupNorm(1, out_channels, relu=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        pooled = self.pooled(x).expand_as(local)
        return self.fuse(torch.cat([local, self.wide(x), pooled], dim=1))


class AttentionMixer(nn.Module):
    """Ablation: multi-head self-attention in Mamba's place, without a norm (table 3's count)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = SelfAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        mixed = self.attention(x.flatten(2).transpose(1, 2), list(shape))  # (b, sites, c)
        return x + mixed.transpose(1, 2).unflatten(2, shape)


class DecoderLevel(nn.Module):
    """Double the map's size, fit it to the skip's, concatenate; then two units."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2)
        self.block = ConvBlock(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([_fit(self.up(x), skip), skip], dim=1))


class CodebookMambaUNet(nn.Module):
    """Codebook Mamba U-Net for 3D images.

    In training, images (b, in_channels, ...) give a `CodebookOutput`, whose parts
    `common.losses.CodebookMambaLoss` takes; in evaluation, scripted, and in training mode without
    gradients (Monte Carlo dropout), they give the logits (b, out_channels, ...) alone. Without a
    codebook they give the logits alone always. (In MONAI's trainer, postprocessing starts with
    ``Lambdad`` keys "pred", func
    ``lambda pred: pred if isinstance(pred, torch.Tensor) else pred[0]``.)

    Any size works that is at least 2 ** len(widths) along each axis.

    Args:
        in_channels: channels of the image.
        out_channels: sigmoid channels; the paper's are the whole liver, tumour included, and the
            tumour.
        widths: channels per level, finest first; the bottleneck has prototype_dim.
        num_prototypes: K of the paper.
        prototype_dim: channels of a prototype; for attention a multiple of 8.
        codebook_beta: weight of the commitment in the codebook's loss, 0.25 in the paper.
        codebook_init, restart_after: see `common.blocks.Codebook`.
        codebook: False leaves it out (table 1's CB).
        multi_scale: False has two 3-wide convolutions as encoder block (table 1's MCE).
        mixer: "mamba"; or in its place "attention" (table 3), "conv", a 3-wide convolution, or
            "identity", nothing, nor the norm (table 1's GFR).
        dropout: probability that a channel of the mixer's output is dropped, in training.
        backend: backend of the selective scan.

    Raises:
        ValueError: an argument is not as above; or, at a call, an image is too small.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 2,
        widths: Sequence[int] = (8, 12, 48, 64),
        num_prototypes: int = 64,
        prototype_dim: int = 64,
        codebook_beta: float = 0.25,
        codebook_init: Literal["uniform", "data"] = "uniform",
        restart_after: int | None = None,
        codebook: bool = True,
        multi_scale: bool = True,
        mixer: Mixer = "mamba",
        dropout: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("prototype_dim", prototype_dim),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed are whole numbers from 1.")
        if not widths or min(widths) < 1:
            raise ValueError(f"widths is {tuple(widths)}; allowed are whole numbers from 1.")
        check_mixer(mixer)
        if mixer == "attention":
            check_heads("prototype_dim", prototype_dim)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; allowed is 0 <= dropout < 1.")
        block = MultiScaleBlock if multi_scale else ConvBlock
        sizes = [in_channels, *widths, prototype_dim]
        self.encoder = nn.ModuleList(block(a, b) for a, b in pairwise(sizes))
        self.pool = nn.MaxPool3d(2)
        self.codebook = (
            Codebook(num_prototypes, prototype_dim, codebook_beta, codebook_init, restart_after)
            if codebook
            else None
        )
        self.mixer: nn.Module = nn.Identity()
        if mixer == "mamba":
            self.mixer = MambaMixer(prototype_dim, backend=backend)
        elif mixer == "attention":
            self.mixer = AttentionMixer(prototype_dim)
        elif mixer == "conv":
            self.mixer = ResidualMixer(prototype_dim, build_twin("conv", 3, prototype_dim))
        self.dropout = nn.Dropout3d(dropout)
        self.decoder = nn.ModuleList(DecoderLevel(a, b) for a, b in pairwise(sizes[:0:-1]))
        self.head = nn.Conv3d(widths[0], out_channels, 1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The map of each level, finest first, and of the bottleneck."""
        if min(x.shape[2:]) < 2 ** len(self.decoder):
            raise ValueError(
                f"The image has size {x.shape[2:]}; allowed is {2 ** len(self.decoder)} and more "
                "along each axis."
            )
        maps: list[Tensor] = []
        for block in self.encoder:
            x = block(x if len(maps) == 0 else self.pool(x))
            maps.append(x)
        return maps

    def decode(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        """Logits from the bottleneck's map after the mixer, and the maps of `encode`."""
        x = self.dropout(x)
        for i, level in enumerate(self.decoder):
            x = level(x, maps[len(maps) - 2 - i])
        return self.head(x)

    def codes(self, x: Tensor) -> Tensor:
        """The nearest prototype at each site of the bottleneck, (b, ...).

        Raises:
            ValueError: the network has no codebook.
        """
        if self.codebook is None:
            raise ValueError("codebook is False; allowed for codes is True.")
        return self.codebook.nearest(self.encode(x)[-1].movedim(1, -1))

    def forward(self, x: Tensor) -> Tensor | CodebookOutput:
        maps = self.encode(x)
        if self.codebook is None:
            return self.decode(self.mixer(maps[-1]), maps)
        quantised, loss, codes = self.codebook(maps[-1])
        logits = self.decode(self.mixer(quantised), maps)
        if torch.jit.is_scripting() or not (self.training and torch.is_grad_enabled()):
            return logits
        return CodebookOutput(logits, loss, codes)


def _fit(x: Tensor, like: Tensor) -> Tensor:
    """Centre a map on another's grid: with zeros around it, or cropped, a negative pad."""
    d, h, w = [like.shape[i] - x.shape[i] for i in (2, 3, 4)]
    return F.pad(x, [w // 2, w - w // 2, h // 2, h - h // 2, d // 2, d - d // 2])
