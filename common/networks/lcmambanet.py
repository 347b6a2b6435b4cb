"""LCMambaNet: 2D liver tumour segmentation with a state-space model and liver-cancer attention.

Sun et al. 2025 (the paper's `LCMamba-T` and `LCMamba-S`). Its attention module is reverse Mamba
attention, whose authors released code: this file follows golden vectors made with that, and is
identical to it for three input channels and one class.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import BatchNorm2d, Mixer, VSSBlock
from ..ops import Backend
from .vmamba import VMambaEncoder

_WIDTH = 32  # channels of every decoder map
_DROP_PATH = 0.1  # of the decoder's blocks

Variant = Literal["T", "S"]
Attention = Literal["reverse_mamba", "reverse"]
_DEPTHS = {"T": (2, 2, 5, 2), "S": (2, 2, 15, 2)}
_ENCODER_DROP_PATH = {"T": 0.2, "S": 0.3}
_EXTRA_BLOCKS = {"T": 0, "S": 1}


class ConvNorm(nn.Sequential):
    """Convolution and batch norm, without an activation."""

    def __init__(self, in_channels: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, _WIDTH, kernel, padding=kernel // 2, bias=False),
            BatchNorm2d(_WIDTH),
        )


class Lateral(nn.Module):
    """Blocks at the encoder's width, then a projection to the decoder's."""

    def __init__(self, channels: int, blocks: int, mixer: Mixer, backend: Backend) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(VSSBlock(channels, _DROP_PATH, backend, mixer) for _ in range(blocks))
        )
        self.conv = ConvNorm(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.blocks(x))


class LiverCancerAttention(nn.Module):
    """LCAM (section 2.4): refine coarse logits by features of where they see no foreground.

    With VSS blocks it is reverse Mamba attention (table 5's RMA), without them, convolutions alone,
    reverse attention (its RA).
    """

    def __init__(
        self, out_channels: int, attention: Attention, mixer: Mixer, backend: Backend
    ) -> None:
        super().__init__()

        def block() -> nn.Module:
            if attention == "reverse":
                return nn.Identity()
            return VSSBlock(_WIDTH, _DROP_PATH, backend, mixer)

        self.block1 = block()
        self.conv1 = ConvNorm(_WIDTH, 3)
        self.block2 = block()
        self.conv2 = ConvNorm(_WIDTH, 3)
        self.head = nn.Conv2d(_WIDTH, out_channels, 1)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Logits (b, out_channels, h, w) from features (b, 32, h, w) and logits of their size."""
        # Where the foreground is all but sure, 16 bits would leave nothing or too much of it.
        background = 1 - _foreground(logits.to(self.head.weight.dtype))
        y = self.conv1(background * self.block1(features))
        y = self.conv2(self.block2(y) + features)
        return self.head(y) + logits


class PlainRefinement(nn.Module):
    """Neither attention: a head of its own for each scale in its place."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(_WIDTH, out_channels, 1)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        return self.head(features) + logits


class LCMambaNet(nn.Module):
    """LCMambaNet, images (b, in_channels, h, w) to logits (b, out_channels, h, w).

    One channel is the logit of a sigmoid, as in the released code; several are those of a softmax
    over the background, which is the first, and the classes. In training the output is the list of
    all four scales' logits, finest first, each at the image's size; in training mode without
    gradients (Monte Carlo dropout), as in evaluation, the finest alone.

    Any size works: the image is padded to a multiple of 32 by its edge, the logits are cropped.

    Args:
        variant: "T" has VMamba-Tiny as encoder, "S" VMamba-Small.
        in_channels: channels of the image; or adjacent slices.
        out_channels: 1, or the number of classes with the background.
        extra_blocks: VSS blocks on each of the encoder's maps, the paper's N; None is 0 for "T"
            and 1 for "S".
        attention: "reverse_mamba"; "reverse", the same without VSS blocks, table 5's other row; or
            None, which refines by a 1 x 1 convolution for each scale.
        mixer: "mamba"; or in the place of every scan, of the encoder's and of these blocks',
            "identity", nothing, "conv", a depthwise 3 x 3 convolution, or "attention" among the
            sites of a map: see `common.blocks.SS2DTwin`.
        dropout: probability that a channel of a decoder map is dropped, in training.
        backend: backend of the scans.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        variant: Variant = "T",
        in_channels: int = 3,
        out_channels: int = 1,
        extra_blocks: int | None = None,
        attention: Attention | None = "reverse_mamba",
        mixer: Mixer = "mamba",
        dropout: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if variant not in _DEPTHS:
            raise ValueError(f"variant is {variant!r}; allowed are 'T' and 'S'.")
        if out_channels < 1:
            raise ValueError(f"out_channels is {out_channels}; allowed are whole numbers from 1.")
        if extra_blocks is None:
            extra_blocks = _EXTRA_BLOCKS[variant]
        if extra_blocks < 0:
            raise ValueError(f"extra_blocks is {extra_blocks}; allowed are whole numbers from 0.")
        if attention not in ("reverse_mamba", "reverse", None):
            raise ValueError(
                f"attention is {attention!r}; allowed are 'reverse_mamba', 'reverse' and None."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; allowed is 0 <= dropout < 1.")
        self.encoder = VMambaEncoder(
            in_channels,
            depths=_DEPTHS[variant],
            drop_path=_ENCODER_DROP_PATH[variant],
            mixer=mixer,
            backend=backend,
        )
        self.laterals = nn.ModuleList(
            Lateral(c, extra_blocks, mixer, backend) for c in self.encoder.channels
        )
        self.dropout = nn.Dropout2d(dropout)
        self.coarse_head = nn.Conv2d(_WIDTH, out_channels, 1)
        self.refinements = nn.ModuleList(  # of the 1/16 map first
            LiverCancerAttention(out_channels, attention, mixer, backend)
            if attention is not None
            else PlainRefinement(out_channels)
            for _ in self.encoder.channels[1:]
        )

    def multiscale_logits(self, x: Tensor) -> list[Tensor]:
        """The logits of all four scales at the image's size, finest first."""
        height, width = x.shape[2:]
        x = F.pad(x, [0, -width % 32, 0, -height % 32], mode="replicate")
        maps: list[Tensor] = self.encoder(x)
        for i, lateral in enumerate(self.laterals):
            maps[i] = self.dropout(lateral(maps[i]))
        logits = self.coarse_head(maps[-1])
        scales = [logits]
        for i, refine in enumerate(self.refinements):
            features = maps[len(maps) - 2 - i]
            logits = refine(features, _resize_like(logits, features))
            scales.insert(0, logits)
        return [_resize_like(y, x)[..., :height, :width] for y in scales]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        logits = self.multiscale_logits(x)
        if self.training and torch.is_grad_enabled():
            return logits
        return logits[0]


def _foreground(logits: Tensor) -> Tensor:
    """The largest probability of a foreground class, (b, 1, h, w)."""
    if logits.shape[1] == 1:
        return torch.sigmoid(logits)
    return torch.softmax(logits, 1)[:, 1:].amax(1, keepdim=True)


def _resize_like(x: Tensor, other: Tensor) -> Tensor:
    return F.interpolate(x, size=other.shape[2:], mode="bilinear")
