"""SegMamba: long-range sequential modeling Mamba for 3D medical image segmentation.

Xing et al. 2024, arXiv:2401.13560. Written from golden vectors made with the code that its authors
released. Where the paper's figures differ, this follows the code, so that its checkpoints load: the
gated spatial convolution sums where it should multiply, and comes once a stage; there is no
feature-level uncertainty estimation, no MLP in the Mamba blocks, and the deepest map is 1/16 of the
image's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import (
    InstanceNorm3d,
    MambaMixer,
    Mixer,
    ResidualMixer,
    UNETRBlock,
    UNETRDecoder,
    build_twin,
    check_heads,
    check_mixer,
)
from ..ops import Backend

_SLICES = (64, 32, 16, 8)  # runs that each stage's sequence is cut into


class SpatialConv(nn.Module):
    """The gated spatial convolution (GSC) as released: a sum of two branches, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.wide2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.narrow = nn.Conv3d(channels, channels, 1)
        self.fuse = nn.Conv3d(channels, channels, 1)
        self.norm = InstanceNorm3d(channels, affine=False)  # after each of them

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.wide1(x)))
        y = F.relu(self.norm(self.wide2(y)))
        y = y + F.relu(self.norm(self.narrow(x)))
        return x + F.relu(self.norm(self.fuse(y)))


class EncoderStage(nn.Module):
    """Halve the map; GSC; then Mamba in three orders, or blocks in its place."""

    def __init__(
        self, down: nn.Module, channels: int, depth: int, block: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.down = down
        self.spatial = SpatialConv(channels)
        self.blocks = nn.Sequential(*(block() for _ in range(depth)))
        self.skip = nn.Sequential(
            InstanceNorm3d(channels, affine=False),
            nn.Conv3d(channels, 2 * channels, 1),
            nn.GELU(),
            nn.Conv3d(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the next stage takes, and what the decoder does."""
        x = self.blocks(self.spatial(self.down(x)))
        return x, self.skip(x)


class SegMamba(nn.Module):
    """SegMamba, volumes (b, in_channels, d, h, w) to logits (b, out_channels, d, h, w).

    Every size is a multiple of 16, and the product of the sixteenths one of 8, as is that of
    multiples of 32: each stage cuts its sequence into a fixed number of runs. They are slices of
    the map, across the first axis, where that is 128 voxels long, as in the release's training.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included; or regions.
        depths: Mamba blocks of each of the four stages.
        features: channels of each stage. The released code is for 48 at the first.
        hidden_size: channels of the deepest map.
        mixer: "mamba"; or in its place "conv", a 3-wide convolution; "attention", in the deepest
            stage alone, as its time grows with the square of the voxels, and Mamba stays elsewhere;
            or "identity", nothing: no block. Sizes are the same for all.
        dropout: probability that a channel of the deepest map is dropped, in training.
        backend: backend of the selective scan.

    Raises:
        ValueError: an argument or, at a call, a volume's size is not as above.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        depths: Sequence[int] = (2, 2, 2, 2),
        features: Sequence[int] = (48, 96, 192, 384),
        hidden_size: int = 768,
        mixer: Mixer = "mamba",
        dropout: float = 0.0,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("hidden_size", hidden_size),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed are whole numbers from 1.")
        for name, values in (("depths", depths), ("features", features)):
            if len(values) != len(_SLICES) or min(values) < 1:
                raise ValueError(
                    f"{name} is {tuple(values)}; allowed are {len(_SLICES)} whole numbers from 1."
                )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; allowed is 0 <= dropout < 1.")
        check_mixer(mixer)
        if mixer == "attention":
            check_heads("features[-1]", features[-1])

        def block(i: int) -> nn.Module:
            if mixer == "mamba" or (mixer == "attention" and i < len(_SLICES) - 1):
                return MambaMixer(features[i], _SLICES[i], backend)
            if mixer == "identity":
                return nn.Identity()
            return ResidualMixer(features[i], build_twin(mixer, 3, features[i]))

        def down(i: int) -> nn.Module:
            if i == 0:
                return nn.Sequential(nn.Conv3d(in_channels, features[0], 7, stride=2, padding=3))
            before = features[i - 1]
            return nn.Sequential(
                InstanceNorm3d(before, affine=False), nn.Conv3d(before, features[i], 2, stride=2)
            )

        self.encoder = nn.ModuleList(
            EncoderStage(down(i), features[i], depths[i], partial(block, i))
            for i in range(len(_SLICES))
        )
        self.bottleneck = UNETRBlock(3, features[-1], hidden_size)
        self.dropout = nn.Dropout3d(dropout)
        self.decoder = UNETRDecoder(3, (in_channels, *features[:-1], hidden_size), features)
        self.head = nn.Conv3d(features[0], out_channels, 1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The image and the skip of each stage, finest first."""
        self._check_size(x)
        maps = [x]
        for stage in self.encoder:
            x, skip = stage(x)
            maps.append(skip)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        maps = self.encode(x)
        maps[-1] = self.dropout(self.bottleneck(maps[-1]))
        decoded: list[Tensor] = self.decoder(maps)
        return self.head(decoded[0])

    def _check_size(self, x: Tensor) -> None:
        product, left = 1, 0
        for n in x.shape[2:]:
            product *= n // 16
            left += n % 16
        if left > 0 or product % 8 > 0:
            raise ValueError(
                f"x has size {list(x.shape[2:])}; allowed are multiples of 16 whose sixteenths "
                "have a product that is a multiple of 8, such as multiples of 32."
            )
