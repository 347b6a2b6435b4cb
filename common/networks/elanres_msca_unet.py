"""ELANRes-MSCA-UNet: parallel convolutions that fold into one, and multi-scale strip attention.

The paper is Song et al. 2025, doi:10.3390/s25061814, for the liver and its tumours in CT; strip
attention follows SegNeXt (Guo et al. 2022, arXiv:2209.08575), re-parameterisation RepVGG (Ding et
al. 2021, arXiv:2101.03697), and the stacking ELAN (Wang et al. 2022, arXiv:2211.04800). Its authors
released no code. What the paper leaves open is chosen here: the widths, two stacked convolutions on
half of a block's channels, attention after each block of the encoder, and the MLP's expansion.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import BatchNorm2d, BatchNorm3d

_STACKED = 2  # convolutions in a row in an ELAN block
_STRIPS = (7, 11, 21)
_EXPANSION = 2  # of the MLP's hidden channels
_LAYER_SCALE = 1e-2  # at the start, as in SegNeXt


class ConvUnit(nn.Sequential):
    """Convolution, batch norm (whose bias is the unit's), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
            BatchNorm3d(out_channels),
            nn.ReLU(inplace=True),
        )


class ConvBlock(nn.Sequential):
    """Ablation: the plain U-Net's two 3-wide units in the ELAN block's place (table 3)."""

    def __init__(self, in_channels: int, out_channels: int, branches: int) -> None:
        super().__init__(
            ConvUnit(in_channels, out_channels, 3), ConvUnit(out_channels, out_channels, 3)
        )


class ParallelConv(nn.Module):
    """Sum of 3-wide convolutions, each with a batch norm, and of a batch norm of the input."""

    def __init__(self, channels: int, branches: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv3d(channels, channels, 3, padding=1, bias=False) for _ in range(branches)
        )
        self.norms = nn.ModuleList(BatchNorm3d(channels) for _ in range(branches))
        self.identity = BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.identity(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            y = y + norm(conv(x))
        return y

    @torch.no_grad()
    def fold(self) -> nn.Conv3d:
        """The one convolution that equals this in eval mode."""
        scale, bias = _affine(self.identity)
        centre = torch.zeros(3, 3, 3, dtype=scale.dtype, device=scale.device)
        centre[1, 1, 1] = 1
        weight = torch.diag(scale)[:, :, None, None, None] * centre
        for conv, norm in zip(self.convs, self.norms, strict=True):
            scale, shift = _affine(cast(nn.BatchNorm3d, norm))
            kernel = cast(nn.Conv3d, conv).weight
            weight = weight + kernel * scale[:, None, None, None, None]
            bias = bias + shift
        folded = nn.Conv3d(len(bias), len(bias), 3, padding=1)
        folded.weight, folded.bias = (nn.Parameter(x.to(kernel.dtype)) for x in (weight, bias))
        return folded


class ELANResBlock(nn.Module):
    """Re-parameterisable residual block (figure 3), in_channels to out_channels.

    Half of the channels go through parallel convolutions in a row; both halves and the map after
    each convolution are concatenated and fused.
    """

    def __init__(self, in_channels: int, out_channels: int, branches: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.entry = ConvUnit(in_channels, out_channels, 1)
        self.stack = nn.ModuleList(ParallelConv(half, branches) for _ in range(_STACKED))
        self.fuse = nn.Sequential(
            nn.Conv3d(out_channels + _STACKED * half, out_channels, 1, bias=False),
            BatchNorm3d(out_channels),
        )
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = list(self.entry(x).chunk(2, 1))
        for conv in self.stack:
            maps.append(F.relu(conv(maps[-1])))
        return F.relu(self.fuse(torch.cat(maps, 1)) + self.skip(x))


class StripAttention(nn.Module):
    """Multi-scale convolutional attention of slices (b, c, h, w) (figure 4).

    Depthwise 5 x 5, and three pairs of strips on it, make the factor of the map that they see.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU())
        self.local = _depthwise(channels, 5, 5)
        self.strips = nn.ModuleList(
            nn.Sequential(_depthwise(channels, 1, k), _depthwise(channels, k, 1)) for k in _STRIPS
        )
        self.mix = nn.Conv2d(channels, channels, 1)
        self.exit = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        local = self.local(x)
        total = local
        for strip in self.strips:
            total = total + strip(local)
        return self.exit(self.mix(total) * x)


class MSCABlock(nn.Module):
    """Strip attention, then an MLP, slice by slice of (b, c, h, w, depth); keeps the shape.

    The last axis is the one across slices, as in volumes that MONAI loads.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = _EXPANSION * channels
        self.attention = nn.Sequential(BatchNorm2d(channels), StripAttention(channels))
        self.mlp = nn.Sequential(
            BatchNorm2d(channels),
            nn.Conv2d(channels, hidden, 1),
            _depthwise(hidden, 3, 3),
            nn.GELU(),
            nn.Conv2d(hidden, channels, 1),
        )
        self.attention_scale = nn.Parameter(torch.full((channels, 1, 1), _LAYER_SCALE))
        self.mlp_scale = nn.Parameter(torch.full((channels, 1, 1), _LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        y = fold_depth(x)
        y = y + self.attention_scale * self.attention(y)
        y = y + self.mlp_scale * self.mlp(y)
        return unfold_depth(y, x.shape[4])


class DecoderLevel(nn.Module):
    """Resize to the skip's size, concatenate; then a block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([_resize_like(x, skip), skip], dim=1))


class ELANResMSCAUNet(nn.Module):
    """ELANRes-MSCA-UNet, volumes (b, in_channels, h, w, depth) to logits of equal size.

    One output channel is the logit of a sigmoid; several are those of a softmax over the
    background, which is the first, and the classes. In training the output is the list of the
    decoder's four scales, finest first, each at the image's size; in evaluation, scripted, and in
    training mode without gradients (Monte Carlo dropout), the finest alone.

    Any size works that is at least 16 along each axis.

    Args:
        in_channels: channels of the image.
        out_channels: 1, or the number of classes with the background.
        widths: channels of the four levels, finest first, and of the bottleneck; even numbers.
        branches: parallel 3-wide convolutions, beside the identity.
        elanres: False has the plain U-Net's blocks instead (table 3).
        msca: False leaves the attention out (table 3); without both, this is a 3D U-Net.
        dropout: probability that a channel of the bottleneck's map is dropped, in training.

    Raises:
        ValueError: an argument is not as above; or, at a call, an image is too small.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        widths: Sequence[int] = (16, 32, 64, 128, 256),
        branches: int = 2,
        elanres: bool = True,
        msca: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed are whole numbers from 1.")
        if len(widths) != 5 or any(width < 2 or width % 2 for width in widths):
            raise ValueError(f"widths is {tuple(widths)}; allowed are five even numbers from 2.")
        if branches < 2:
            raise ValueError(f"branches is {branches}; allowed are whole numbers from 2.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; allowed is 0 <= dropout < 1.")
        block = ELANResBlock if elanres else ConvBlock

        def encoder_level(a: int, b: int) -> nn.Module:
            blocks: list[nn.Module] = [block(a, b, branches)]
            return nn.Sequential(*blocks, *([MSCABlock(b)] if msca else []))

        sizes = [in_channels, *widths]
        self.encoder = nn.ModuleList(encoder_level(a, b) for a, b in pairwise(sizes))
        self.pool = nn.MaxPool3d(2)
        self.dropout = nn.Dropout3d(dropout)
        self.decoder = nn.ModuleList(
            DecoderLevel(block(a + b, b, branches)) for a, b in pairwise(widths[::-1])
        )
        self.heads = nn.ModuleList(nn.Conv3d(b, out_channels, 1) for b in widths[-2::-1])

    def reparameterize(self) -> ELANResMSCAUNet:
        """A copy for inference, in eval mode, with one convolution for each set of parallel ones.

        Its logits are those of this network in eval mode, up to rounding. This network stays as it
        is, so that training may go on.
        """
        folded = copy.deepcopy(self).eval()
        for module in folded.modules():
            if isinstance(module, ELANResBlock):
                module.stack = nn.ModuleList(
                    conv.fold() if isinstance(conv, ParallelConv) else conv for conv in module.stack
                )
        return folded

    def encode(self, x: Tensor) -> list[Tensor]:
        """The map of each level, finest first, and of the bottleneck."""
        if min(x.shape[2:]) < 2 ** len(self.decoder):
            raise ValueError(
                f"The image has size {x.shape[2:]}; allowed is {2 ** len(self.decoder)} and more "
                "along each axis."
            )
        maps: list[Tensor] = []
        for level in self.encoder:
            x = level(x if len(maps) == 0 else self.pool(x))
            maps.append(x)
        return maps

    def decode(self, maps: list[Tensor]) -> list[Tensor]:
        """The decoder's maps, coarsest first, from those of `encode`."""
        x = self.dropout(maps[-1])
        decoded: list[Tensor] = []
        for i, level in enumerate(self.decoder):
            x = level(x, maps[len(maps) - 2 - i])
            decoded.append(x)
        return decoded

    def multiscale_logits(self, x: Tensor) -> list[Tensor]:
        """The logits of all four scales at the image's size, finest first."""
        maps = self.decode(self.encode(x))
        logits = [_resize_like(head(y), x) for head, y in zip(self.heads, maps, strict=True)]
        return logits[::-1]

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if not torch.jit.is_scripting() and self.training and torch.is_grad_enabled():
            return self.multiscale_logits(x)
        return self.heads[-1](self.decode(self.encode(x))[-1])


def fold_depth(x: Tensor) -> Tensor:
    """Volumes (b, c, h, w, depth) to their slices (b * depth, c, h, w)."""
    return x.permute(0, 4, 1, 2, 3).flatten(0, 1)


def unfold_depth(x: Tensor, depth: int) -> Tensor:
    """Slices (b * depth, c, h, w) to volumes (b, c, h, w, depth), the inverse of `fold_depth`."""
    return x.unflatten(0, [-1, depth]).permute(0, 2, 3, 4, 1)


def _affine(norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel of a batch norm in eval mode, in float64."""
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight.double() / (var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - mean.double() * scale


def _depthwise(channels: int, height: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(
        channels,
        channels,
        (height, width),
        padding=(height // 2, width // 2),
        groups=channels,
    )


def _resize_like(x: Tensor, other: Tensor) -> Tensor:
    return F.interpolate(x, size=other.shape[2:], mode="trilinear")
