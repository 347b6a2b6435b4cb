"""Swin-UMamba: Mamba-based UNet with ImageNet-based pretraining.

Liu et al. 2024, arXiv:2402.03302: the paper's Swin-UMamba, whose decoder is of convolutions, and
its Swin-UMamba† (D), whose decoder is of the encoder's blocks. Written from golden vectors made
with the code that its authors released, whose checkpoints load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..blocks import (
    InstanceNorm2d,
    Mixer,
    PatchExpanding,
    UNETRDecoder,
    VSSEncoder,
    drop_path_rates,
    initialise_linear,
    pad_to_multiple,
    vss_stage,
)
from ..ops import Backend

_BLOCKS = 2  # of each level of the decoder of such blocks

Decoder = Literal["convolution", "mamba"]


class VSSDecoderLevel(nn.Module):
    """Double the map, concatenate the skip, project; then blocks."""

    def __init__(
        self, channels: int, drop_path: Sequence[float], backend: Backend, mixer: Mixer
    ) -> None:
        super().__init__()
        self.up = PatchExpanding(2 * channels, channels, 2)
        self.project = nn.Linear(2 * channels, channels)
        self.blocks = vss_stage(channels, drop_path, backend, mixer)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = torch.cat([self.up(x), skip], dim=1).permute(0, 2, 3, 1)
        return self.blocks(self.project(x).permute(0, 3, 1, 2))


class VSSDecoder(nn.Module):
    """The encoder's maps to decoded ones, finest first, of which the finest has the image's size.

    The others have the sizes of the encoder's, but for the deepest's.
    """

    def __init__(
        self, features: Sequence[int], drop_path: float, backend: Backend, mixer: Mixer
    ) -> None:
        super().__init__()
        rates = drop_path_rates([_BLOCKS] * (len(features) - 1), drop_path, 0.0)
        self.levels = nn.ModuleList(  # from the deepest
            VSSDecoderLevel(c, of_level, backend, mixer)
            for c, of_level in zip(features[-2::-1], rates, strict=True)
        )
        self.final = PatchExpanding(features[0], features[0], 4)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        x = maps[-1]
        decoded: list[Tensor] = []
        for i, level in enumerate(self.levels):
            x = level(x, maps[len(maps) - 2 - i])
            decoded.insert(0, x)
        decoded.insert(0, self.final(x))
        return decoded


class SwinUMamba(nn.Module):
    """Swin-UMamba, images (b, in_channels, h, w) to logits (b, out_channels, h, w).

    Any size works: the image is padded by its edge to a multiple of 32 (for four stages) each way,
    the logits are cropped.

    In training with `deep_supervision`, `forward` gives a list of logits, finest first; else, and
    in training mode without gradients (Monte Carlo dropout), the finest alone. The scales are the
    image's, and 1/2, 1/4, 1/8 of it with a decoder of convolutions, 1/4, 1/8, 1/16 with one of
    Mamba, rounded up. TorchScript compiles the network in eval mode.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        decoder: "convolution" is the paper's Swin-UMamba, whose encoder begins with a strided
            convolution; "mamba" its Swin-UMamba†, the released code's SwinUMambaD.
        depths: blocks of each stage of the encoder, finest first.
        features: channels of each stage, each twice the one before; the first even.
        deep_supervision: whether training sees the coarser logits too.
        drop_path: stochastic depth, from 0 at the encoder's first block to this at its last, and
            from this back to 0 over a decoder of Mamba.
        mixer: "mamba"; or in the place of every scan "identity", nothing, "conv", a depthwise 3 x 3
            convolution, or "attention": see `common.blocks.SS2DTwin`.
        dropout: probability that a channel of the deepest map is dropped, in training.
        backend: backend of the scans.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        decoder: Decoder = "convolution",
        depths: Sequence[int] = (2, 2, 9, 2),
        features: Sequence[int] = (96, 192, 384, 768),
        deep_supervision: bool = True,
        drop_path: float = 0.2,
        mixer: Mixer = "mamba",
        dropout: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels < 1:
                raise ValueError(f"{name} is {channels}; allowed are whole numbers from 1.")
        if decoder not in ("convolution", "mamba"):
            raise ValueError(f"decoder is {decoder!r}; allowed are 'convolution' and 'mamba'.")
        if len(features) < 2 or features[0] < 2 or features[0] % 2:
            raise ValueError(
                f"features is {tuple(features)}; allowed are two stages or more, the first of an "
                "even number of channels."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; allowed is 0 <= dropout < 1.")
        self.deep_supervision = deep_supervision
        self.multiple = 4 * 2 ** (len(features) - 1)
        self.stem: nn.Sequential | None = None
        self.decoder: nn.Module
        finest = features[0]  # channels of the finest decoded map
        if decoder == "mamba":
            self.encoder = VSSEncoder(in_channels, features, depths, 4, drop_path, backend, mixer)
            self.decoder = VSSDecoder(features, drop_path, backend, mixer)
        else:
            finest //= 2
            self.stem = nn.Sequential(
                nn.Conv2d(in_channels, finest, 7, stride=2, padding=3), InstanceNorm2d(finest)
            )
            self.encoder = VSSEncoder(finest, features, depths, 2, drop_path, backend, mixer)
            of_maps = (in_channels, finest, *features)
            self.decoder = UNETRDecoder(2, of_maps, of_maps[1:])
        self.dropout = nn.Dropout2d(dropout)
        self.heads = nn.ModuleList(nn.Conv2d(c, out_channels, 1) for c in (finest, *features[:-1]))
        if not deep_supervision:  # so that DistributedDataParallel waits for no gradient of theirs
            self.heads[1:].requires_grad_(False)
        self.apply(_initialise)

    def decode(self, x: Tensor) -> list[Tensor]:
        """The decoder's maps for an image of a size that needs no padding, finest first."""
        maps: list[Tensor] = []
        if self.stem is not None:
            maps.append(x)
            x = self.stem(x)
            maps.append(x)
        maps.extend(self.encoder(x)[1])
        maps[-1] = self.dropout(maps[-1])
        decoded: list[Tensor] = self.decoder(maps)
        return decoded

    def multiscale_logits(self, x: Tensor) -> list[Tensor]:
        """Logits of each scale, finest first, in training and in eval mode."""
        height, width = x.shape[2:]
        x = pad_to_multiple(x, self.multiple)
        scales = []
        for head, y in zip(self.heads, self.decode(x)):  # noqa: B905  (the deepest has no head)
            step = x.shape[2] // y.shape[2]
            scales.append(head(y)[..., : -(-height // step), : -(-width // step)])
        return scales

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        supervised = self.training and self.deep_supervision and torch.is_grad_enabled()
        if not torch.jit.is_scripting() and supervised:
            return self.multiscale_logits(x)
        finest = self.decode(pad_to_multiple(x, self.multiple))[0]
        return self.heads[0](finest)[..., : x.shape[2], : x.shape[3]]


def _initialise(module: nn.Module) -> None:
    """As the released code: nnU-Net's for convolutions (He et al. 2015 for leaky ReLU)."""
    initialise_linear(module)
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
