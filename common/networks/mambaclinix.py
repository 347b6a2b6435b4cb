"""MambaClinix: hierarchical gated convolution and Mamba-based U-Net for 3D segmentation.

Bian et al. 2024, arXiv:2409.12533. Written from the paper and from golden vectors made with the
code that its authors released; where the two differ (no factor inside equation 6, no convolution
before Mamba as in equation 7) this follows the code, so that its checkpoints load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.layers import DropPath
from torch import Tensor, nn

from ..blocks import (
    ChannelNorm,
    ConvNorm,
    Mamba,
    Mixer,
    ResidualBlock,
    StagedUNet,
    build_twin,
    check_heads,
    check_mixer,
    check_size,
    init_convolution,
    pooled_skip,
)
from ..ops import Backend, without_autocast

StageLayer = int | Literal["mamba", "residual"] | None


class HighOrderConv(nn.Module):
    """Gated convolution of a given order (hgConv, eq. 4 to 6), of constant size and channels.

    Its sub-maps are as wide as equation 5 says; each widens the sum of those before it.
    """

    def __init__(self, channels: int, order: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.widths = [channels // 2 ** (order - 1 - i) for i in range(order)]
        rest = sum(self.widths)
        self.proj_in = nn.Conv3d(channels, 2 * channels, 1)
        self.depthwise = _conv(rest, rest, kernel, groups=rest)
        self.widen = nn.ModuleList(nn.Conv3d(w, 2 * w, 1) for w in self.widths[:-1])
        self.proj_out = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        base, rest = self.proj_in(x).split([self.widths[0], sum(self.widths)], dim=1)
        parts = self.depthwise(rest).split(self.widths, dim=1)
        u = base + parts[0]
        for i, widen in enumerate(self.widen):
            u = widen(u) + parts[i + 1]
        return self.proj_out(u)


class HGCN(nn.Module):
    """Hierarchical gated convolutional network (fig. 2b, eq. 1 to 3), residual."""

    def __init__(self, channels: int, order: int, kernel: Sequence[int], drop_path: float) -> None:
        super().__init__()
        inner = channels // 2
        self.reduce = nn.Conv3d(channels, inner, 1)
        self.norm1 = ChannelNorm(inner, eps=1e-6)
        self.gated = HighOrderConv(inner, order, kernel)
        self.scale = nn.Parameter(torch.full((inner,), 1e-6))
        self.norm2 = ChannelNorm(inner, eps=1e-6)
        self.conv1 = _conv(inner, channels, kernel)
        self.conv2 = _conv(channels, channels, kernel)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.reduce(x)
        scale = self.scale.view(-1, 1, 1, 1)
        y = y + self.drop_path(scale * self.gated(self.norm1(y)))
        y = self.conv2(F.leaky_relu(self.conv1(self.norm2(y))))
        return x + self.drop_path(y)


class MambaLayer(nn.Module):
    """Residual Mamba layer (fig. 2a, eq. 8 to 10), or the same with a twin in Mamba's place.

    Under autocast it stays in the parameters' precision, but for what `Mamba` says of its
    projections, and for a convolution.

    The one layer norm serves both places, as in the released code.
    """

    def __init__(self, channels: int, mixer: Mixer, backend: Backend) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba: nn.Module = nn.Identity()
        self.twin: nn.Module | None = None
        if mixer == "mamba":
            self.mamba = Mamba(channels, backend=backend)
        else:
            self.twin = build_twin(mixer, 3, channels)
        self.proj = nn.Linear(channels, channels)
        # In the released checkpoints, but used nowhere: without a gradient, so that
        # DistributedDataParallel does not wait for one.
        self.skip_scale = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2).to(self.norm.weight.dtype)  # (b, l, c)
        if torch.jit.is_scripting():
            mixed = self.proj(self.norm(self.mix(self.norm(tokens), list(shape))))
        else:
            with without_autocast(tokens):
                normed = self.norm(tokens)
            mixed = self.mix(normed, list(shape))
            with without_autocast(tokens):
                mixed = self.proj(self.norm(mixed))
        return x + mixed.transpose(1, 2).unflatten(2, shape)

    def mix(self, tokens: Tensor, shape: list[int]) -> Tensor:
        """Mix normalised tokens (b, l, c) of a map of size `shape`."""
        if self.twin is not None:
            return self.twin(tokens, shape)
        return self.mamba(tokens)


class EncoderStage(nn.Module):
    """Residual block with the stage's stride, then a norm (or none) and the stage's layer."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        norm: nn.Module,
        layer: nn.Module,
    ) -> None:
        super().__init__()
        skip = pooled_skip(in_channels, channels, stride)
        self.block = ResidualBlock(in_channels, channels, kernel, skip, stride)
        self.norm = norm
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.norm(self.block(x)))


class DecoderStage(nn.Module):
    """Resize the deeper map to the skip's width and size, and fuse the two."""

    def __init__(self, in_channels: int, channels: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.reduce = nn.Conv3d(in_channels, channels, 1)
        self.skip = ResidualBlock(channels, channels, kernel, nn.Identity())
        self.fuse = ResidualBlock(
            2 * channels, channels, kernel, nn.Conv3d(2 * channels, channels, 1)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        # Narrowed before it grows: the same values, for a fraction of the work. Resized to the
        # skip's size, not by a stride: the same for even sizes, and odd ones fit too.
        x = F.interpolate(self.reduce(x), size=skip.shape[2:], mode="nearest")
        return self.fuse(torch.cat([x, self.skip(skip)], dim=1))


class MambaClinix(StagedUNet):
    """MambaClinix, volumes (b, in_channels, d, h, w) to logits (b, out_channels, d, h, w).

    Any size works that is at least the product of the strides along each axis, and larger along
    one or more: instance norm needs two voxels in the deepest map.

    In training with `deep_supervision`, `forward` gives a list of logits, finest first, one per
    stage but the deepest, each at its stage's size; else, and in training mode without gradients
    (Monte Carlo dropout), the finest alone: see `common.blocks.StagedUNet`.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        features: channels of each stage; at a stage with an HGCN, a multiple of 2 ** order.
        strides: step of each stage per axis; the first stage has the image's size.
        kernel_sizes: odd convolution kernels of each stage per axis.
        deep_supervision: whether training sees the coarser logits too.
        layers: what follows each stage's residual block: a whole number for an HGCN of that
            order, "mamba", "residual" for another such block, or None for nothing. By default
            HGCNs of order 2, 3, ... in the first half of the stages, rounded up, and Mamba in the
            rest (eq. 11); others are the ablations of table 4, whose baseline is "residual" at
            every stage.
        mixer: "mamba"; or in its place, in every layer that `layers` calls "mamba", whose norm and
            projection stay, "identity", nothing, "conv", a 3-wide convolution, or "attention",
            whose time grows with the square of a stage's sites.
        drop_path: probability that a sample skips an HGCN's branches in training, at the deepest
            stage; it grows linearly from 0 at the first.
        dropout: probability that a channel of the bottleneck's map is dropped, in training.
        backend: backend of the selective scan.

    Raises:
        ValueError: an argument is not as above, or a volume is too small.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int] = (32, 64, 128, 256, 320, 320),
        strides: Sequence[Sequence[int]] = ((1, 1, 1), *[(2, 2, 2)] * 5),
        kernel_sizes: Sequence[Sequence[int]] = ((3, 3, 3),) * 6,
        deep_supervision: bool = True,
        layers: Sequence[StageLayer] | None = None,
        mixer: Mixer = "mamba",
        drop_path: float = 0.5,
        dropout: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        stages = len(features)
        if layers is None:
            hgcns = math.ceil(stages / 2)
            layers = [s + 2 if s < hgcns else "mamba" for s in range(stages)]
        _check(in_channels, out_channels, features, strides, kernel_sizes, layers, drop_path)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; allowed is 0 <= dropout < 1.")
        _check_twin(mixer, layers, features)
        last_hgcn = max((s for s, layer in enumerate(layers) if isinstance(layer, int)), default=-1)

        def stage_layer(s: int) -> nn.Module:
            layer = layers[s]
            if layer is None:
                return nn.Identity()
            if layer == "mamba":
                return MambaLayer(features[s], mixer, backend)
            if layer == "residual":
                return ResidualBlock(features[s], features[s], kernel_sizes[s], nn.Identity())
            drop = drop_path * s / (stages - 1)
            return HGCN(features[s], layer, kernel_sizes[s], drop)

        super().__init__(
            stem=ConvNorm(in_channels, features[0], kernel_sizes[0]),
            encoder=[
                EncoderStage(
                    features[max(s - 1, 0)],
                    features[s],
                    kernel_sizes[s],
                    strides[s],
                    ChannelNorm(features[s], eps=1e-6) if s == last_hgcn else nn.Identity(),
                    stage_layer(s),
                )
                for s in range(stages)
            ],
            bottleneck=ResidualBlock(features[-1], features[-1], kernel_sizes[-1], nn.Identity()),
            dropout=nn.Dropout3d(dropout),
            decoder=[
                DecoderStage(features[s + 1], features[s], kernel_sizes[s])
                for s in reversed(range(stages - 1))
            ],
            heads=[nn.Conv3d(features[s], out_channels, 1) for s in reversed(range(stages - 1))],
            deep_supervision=deep_supervision,
        )
        self.reduction = [math.prod(axis) for axis in zip(*strides, strict=True)]
        self.apply(init_convolution)

    def embed(self, x: Tensor) -> Tensor:
        check_size(x, self.reduction)
        return F.leaky_relu(self.stem(x))


def _conv(in_channels: int, out_channels: int, kernel: Sequence[int], groups: int = 1) -> nn.Conv3d:
    """Convolution that keeps the size."""
    k, m, n = kernel
    padding = (k // 2, m // 2, n // 2)
    return nn.Conv3d(in_channels, out_channels, (k, m, n), padding=padding, groups=groups)


def _check(
    in_channels: int,
    out_channels: int,
    features: Sequence[int],
    strides: Sequence[Sequence[int]],
    kernel_sizes: Sequence[Sequence[int]],
    layers: Sequence[StageLayer],
    drop_path: float,
) -> None:
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels < 1:
            raise ValueError(f"{name} is {channels}; allowed are whole numbers from 1.")
    if len(features) < 2 or min(features) < 1:
        raise ValueError(
            f"features is {features}; allowed are whole numbers from 1, for two stages or more."
        )
    per_stage = {"strides": strides, "kernel_sizes": kernel_sizes, "layers": layers}
    for name, values in per_stage.items():
        if len(values) != len(features):
            raise ValueError(
                f"{name} has {len(values)} stages; allowed are as many as features', "
                f"{len(features)}."
            )
    for s, stride in enumerate(strides):
        if len(stride) != 3 or min(stride) < 1 or (s == 0 and max(stride) > 1):
            raise ValueError(
                f"strides[{s}] is {stride}; allowed are three whole numbers from 1, and at the "
                "first stage 1 only."
            )
    for s, kernel in enumerate(kernel_sizes):
        if len(kernel) != 3 or any(k < 1 or k % 2 == 0 for k in kernel):
            raise ValueError(
                f"kernel_sizes[{s}] is {kernel}; allowed are three odd whole numbers from 1."
            )
    for s, layer in enumerate(layers):
        if layer in (None, "mamba", "residual"):
            continue
        if not isinstance(layer, int) or layer < 1:
            raise ValueError(
                f"layers[{s}] is {layer!r}; allowed are whole numbers from 1, 'mamba', 'residual' "
                "and None."
            )
        if features[s] % 2**layer:
            raise ValueError(
                f"features[{s}] is {features[s]}; allowed are multiples of {2**layer} with an "
                f"HGCN of order {layer}."
            )
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path is {drop_path}; allowed is 0 <= drop_path < 1.")


def _check_twin(mixer: Mixer, layers: Sequence[StageLayer], features: Sequence[int]) -> None:
    check_mixer(mixer)
    replaced = [s for s, layer in enumerate(layers) if layer == "mamba"]
    if mixer != "mamba" and not replaced:
        raise ValueError(
            f"mixer is {mixer!r}; allowed is 'mamba', as layers is {list(layers)}, without any to "
            "replace."
        )
    if mixer == "attention":
        for s in replaced:
            check_heads(f"features[{s}]", features[s])
