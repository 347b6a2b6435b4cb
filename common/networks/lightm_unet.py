"""LightM-UNet: Mamba assists in lightweight UNet for medical image segmentation.

Liao et al. 2024, arXiv:2403.05246. Written from the paper and from golden vectors made with the
code that its authors released; where the two differ (parameter count, one skip_scale for all
channels, dropout after the stem) this follows the code, so that its checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Dropout, Pool
from torch import Tensor, nn

from ..blocks import GroupNorm, Mamba, Mixer, build_twin, check_mixer
from ..ops import (
    Backend,
    depthwise_conv,
    depthwise_conv_shifted,
    layer_norm,
    residual_norm_linear,
    without_autocast,
)

_GROUPS = 8  # of every group norm


def channels_last(x: Tensor) -> Tensor:
    """The same map, site by site in memory: tokens are a view, and most steps are faster."""
    if x.dim() == 5:
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x.contiguous(memory_format=torch.channels_last)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1-wide convolution as a product: torch's leaves channels-last maps for another layout."""
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def _in_place() -> bool:
    return not torch.jit.is_scripting() and not torch.is_grad_enabled()


class DepthwiseSeparableConv(nn.Module):
    """Depthwise convolution, then pointwise."""

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, kernel: int, bias: bool
    ) -> None:
        super().__init__()
        conv = Conv["conv", spatial_dims]
        self.depthwise = conv(
            in_channels, in_channels, kernel, padding=kernel // 2, groups=in_channels, bias=bias
        )
        self.pointwise = conv(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(self.depthwise(x), self.pointwise.weight, self.pointwise.bias)


class Stem(DepthwiseSeparableConv):
    """The same for the image, without autocast: what it loses to rounding, later layers amplify."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.depthwise.weight
        if torch.jit.is_scripting():
            return pointwise(depthwise_conv_shifted(x, weight), self.pointwise.weight, None)
        else:
            with without_autocast(x):
                return pointwise(depthwise_conv(x, weight), self.pointwise.weight, None)


class Classifier(DepthwiseSeparableConv):
    """The same 1-wide, as one product: both are linear in a site's channels."""

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.depthwise.weight.flatten(), self.depthwise.bias
        weight, bias = self.pointwise.weight.flatten(1), self.pointwise.bias
        assert shift is not None
        assert bias is not None
        return pointwise(x, weight * scale, bias + (weight * shift).sum(1))


class MambaLayer(nn.Module):
    """Residual vision Mamba layer (eq. 1 and 2): (b, in_channels, ...) to (b, out_channels, ...).

    The one layer norm serves both equations, as in the released code. Under autocast it stays in
    the parameters' precision, but for what `Mamba` says of its projections.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mixer: nn.Module,
        residual: bool,
        skip_scale: bool,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        self.mixer = mixer
        self.proj = nn.Linear(in_channels, out_channels)
        self.residual = residual
        self.skip_scale = nn.Parameter(torch.ones(1)) if residual and skip_scale else None

    def mix(self, tokens: Tensor, shape: list[int]) -> Tensor:
        """Mix normalised tokens (b, l, c) of a map of size `shape`."""
        return self.mixer(tokens)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.mix_map(x)
        else:
            return self.mix_map(x.to(self.norm.weight.dtype))

    def mix_map(self, x: Tensor) -> Tensor:
        """What `forward` does, in whatever precision x has."""
        shape = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)  # (b, l, c)
        skip, scale = (tokens, self.skip_scale) if self.residual else (None, None)
        if torch.jit.is_scripting():  # it has to run where this package is not installed
            mixed = self.mix(self.norm(tokens), list(shape))
            if skip is not None:
                mixed = mixed + skip if scale is None else mixed.addcmul_(skip, scale)
            mixed = self.proj(self.norm(mixed))
        else:
            with without_autocast(x):
                mixed = layer_norm(tokens, self.norm)
            mixed = self.mix(mixed, list(shape))
            with without_autocast(x):
                mixed = residual_norm_linear(mixed, self.norm, self.proj, skip, scale)
        # In this order: for one item, torch takes the strides of the other for another layout.
        return mixed.unflatten(1, shape).movedim(-1, 1)


class TwinLayer(MambaLayer):
    """Ablation: a twin in Mamba's place (table 3), which has to know the map's size."""

    def mix(self, tokens: Tensor, shape: list[int]) -> Tensor:
        return self.mixer(tokens, shape)


class EncoderBlock(nn.Module):
    """Two layers, each after group norm and ReLU, around a residual."""

    def __init__(self, channels: int, layer1: nn.Module, layer2: nn.Module) -> None:
        super().__init__()
        self.norm1 = GroupNorm(_GROUPS, channels, relu=True)
        self.layer1 = layer1
        self.norm2 = GroupNorm(_GROUPS, channels, relu=True)
        self.layer2 = layer2

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer1(self.norm1(x))
        y = self.layer2(self.norm2(y))
        # In place saves time, but not where there are gradients: those of a view that was written
        # to are copied. TorchScript refuses it.
        return y.add_(x) if _in_place() else x + y


class EncoderLevel(nn.Module):
    """Halve the map and double its channels, but at the first level; then blocks."""

    def __init__(self, down: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.down(x))


class DecoderBlock(nn.Module):
    """Depthwise separable convolution with a scaled residual (eq. 4)."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(_GROUPS, channels, relu=True)
        self.conv = DepthwiseSeparableConv(spatial_dims, channels, channels, 3, bias=False)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.norm2 = GroupNorm(_GROUPS, channels, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.norm1(x))
        scale = self.skip_scale
        y = y.addcmul_(x, scale) if _in_place() else torch.addcmul(y, x, scale)
        return self.norm2(y)


class DecoderLevel(nn.Module):
    """Halve the channels, resize to the skip, add it; then blocks."""

    def __init__(self, spatial_dims: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.reduce = Conv["conv", spatial_dims](2 * channels, channels, 1, bias=False)
        self.blocks = nn.Sequential(*(DecoderBlock(spatial_dims, channels) for _ in range(blocks)))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        # The skip's size, not a factor of 2: the same for even sizes, and odd ones fit too.
        x = pointwise(x, self.reduce.weight, None)
        x = F.interpolate(x, size=skip.shape[2:], mode=self.mode)
        return self.blocks(x.add_(skip))


class Head(nn.Module):
    """Group norm, ReLU and a depthwise separable 1-wide convolution to the classes."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(_GROUPS, in_channels, relu=True)
        self.conv = Classifier(spatial_dims, in_channels, out_channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class LightMUNet(nn.Module):
    """LightM-UNet, images (b, in_channels, ...) to logits (b, out_channels, ...) of equal size.

    Any size works that is at least 2 ** (levels - 1) along each axis.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: classes, background included.
        init_filters: channels at the first level, a multiple of 8; they double per level.
        blocks_down: encoder blocks per level, the last level being the bottleneck.
        blocks_up: decoder blocks per level, from the deepest, one level fewer than the encoder's.
        dropout: probability that a channel is dropped after the stem, in training.
        mixer: "mamba"; or as table 3's ablations, "conv" in every layer, or "attention" in the
            bottleneck's layers (in all others, where Mamba stays, its time would grow with the
            square of the voxels); or "identity", nothing in any layer.
        residual: False drops the residual of equation 1 (table 3).
        skip_scale: False makes that residual's learnable factor 1 (table 3).
        backend: backend of the selective scan.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        init_filters: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        dropout: float = 0.0,
        mixer: Mixer = "mamba",
        residual: bool = True,
        skip_scale: bool = True,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims is {spatial_dims}; allowed are 2 and 3.")
        if in_channels < 1:
            raise ValueError(f"in_channels is {in_channels}; allowed are whole numbers from 1.")
        if out_channels < 1:
            raise ValueError(f"out_channels is {out_channels}; allowed are whole numbers from 1.")
        if init_filters < 1 or init_filters % _GROUPS:
            raise ValueError(f"init_filters is {init_filters}; allowed are multiples of {_GROUPS}.")
        if len(blocks_up) != len(blocks_down) - 1:
            raise ValueError(
                f"blocks_up has {len(blocks_up)} levels; allowed is one fewer than blocks_down's "
                f"{len(blocks_down)}."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; allowed is 0 <= dropout < 1.")
        check_mixer(mixer)

        def layer(channels: int, out: int, level: int) -> nn.Module:
            deepest = level == len(blocks_down) - 1 and channels == out
            if mixer == "mamba" or (mixer == "attention" and not deepest):
                own = Mamba(channels, backend=backend)
                return MambaLayer(channels, out, own, residual, skip_scale)
            twin = build_twin(mixer, spatial_dims, channels)
            return TwinLayer(channels, out, twin, residual, skip_scale)

        def encoder_level(i: int, blocks: int) -> nn.Module:
            c = init_filters * 2**i
            down: nn.Module = nn.Identity()
            if i > 0:
                down = nn.Sequential(layer(c // 2, c, i), Pool["max", spatial_dims](2))
            return EncoderLevel(
                down, [EncoderBlock(c, layer(c, c, i), layer(c, c, i)) for _ in range(blocks)]
            )

        self.stem = Stem(spatial_dims, in_channels, init_filters, 3, bias=False)
        self.dropout = Dropout["dropout", spatial_dims](dropout)
        self.encoder = nn.ModuleList(encoder_level(i, n) for i, n in enumerate(blocks_down))
        self.decoder = nn.ModuleList(
            DecoderLevel(spatial_dims, init_filters * 2 ** (len(blocks_up) - 1 - i), n)
            for i, n in enumerate(blocks_up)
        )
        self.head = Head(spatial_dims, init_filters, out_channels)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The map after each level, finest first."""
        x = self.dropout(self.stem(channels_last(x)))
        maps: list[Tensor] = []
        for level in self.encoder:
            x = level(x)
            maps.append(x)
        return maps

    def decode(self, maps: list[Tensor]) -> Tensor:
        """The finest decoder map, from those of `encode`."""
        x = maps[-1]
        for i, level in enumerate(self.decoder):
            x = level(x, maps[len(maps) - 2 - i])
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decode(self.encode(x))).contiguous()
