"""VMamba's first version (Liu et al. 2024, arXiv:2401.10166, v1) as an encoder, and its patches.

Written from golden vectors made with the released code of VM-UNet (Ruan and Xiang 2024,
arXiv:2402.02491) and Swin-UMamba (Liu et al. 2024, arXiv:2402.03302), which both have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import Backend
from .mixers import Mixer, check_heads, check_mixer
from .norms import ChannelNorm
from .ss2d import GatedVSSBlock


class PatchEmbedding(nn.Module):
    """A vector for each patch of `size` x `size` pixels, normalised."""

    def __init__(self, in_channels: int, channels: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, size, stride=size)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class PatchMerging(nn.Module):
    """Halve a map of even size and double its channels: four sites side by side, projected."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduce = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).to(self.norm.weight.dtype)
        even, odd = x[:, 0::2], x[:, 1::2]  # rows
        x = torch.cat(
            [even[:, :, 0::2], odd[:, :, 0::2], even[:, :, 1::2], odd[:, :, 1::2]], dim=-1
        )
        return self.reduce(self.norm(x)).permute(0, 3, 1, 2)


class PatchExpanding(nn.Module):
    """Enlarge a map by `factor`: a site's channels, projected, become so many sites each way."""

    def __init__(self, in_channels: int, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(in_channels, factor**2 * channels, bias=False)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x.permute(0, 2, 3, 1))
        x = x.unflatten(-1, [self.factor, self.factor, -1])  # (b, h, w, row, column, channels)
        x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
        return self.norm(x.to(self.norm.weight.dtype)).permute(0, 3, 1, 2)


class VSSEncoder(nn.Module):
    """Images (b, in_channels, h, w) to each stage's map before and after its blocks.

    The maps are 1/patch_size, half of that, a quarter, ... of the image's size, finest first.

    Args:
        in_channels: channels of the image.
        features: channels of each stage, twice those of the one before.
        depths: blocks of each stage.
        patch_size: pixels of a patch each way.
        drop_path: stochastic depth of the last block; it grows linearly from 0 at the first.
        backend: backend of the scans.
        mixer: of every block, see `GatedVSSBlock`.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        in_channels: int,
        features: Sequence[int],
        depths: Sequence[int],
        patch_size: int,
        drop_path: float,
        backend: Backend,
        mixer: Mixer = "mamba",
    ) -> None:
        super().__init__()
        check_mixer(mixer)
        if in_channels < 1:
            raise ValueError(f"in_channels is {in_channels}; allowed are whole numbers from 1.")
        if not features or min(features) < 1 or any(b != 2 * a for a, b in pairwise(features)):
            raise ValueError(
                f"features is {tuple(features)}; allowed are whole numbers from 1, each twice the "
                "one before."
            )
        if mixer == "attention":
            check_heads("features[0]", features[0], expand=2)
        check_depths("depths", depths, len(features))
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is {drop_path}; allowed is 0 <= drop_path < 1.")
        self.downs = nn.ModuleList(
            [
                PatchEmbedding(in_channels, features[0], patch_size),
                *(PatchMerging(c) for c in features[:-1]),
            ]
        )
        rates = drop_path_rates(depths, 0.0, drop_path)
        self.stages = nn.ModuleList(
            vss_stage(c, of_stage, backend, mixer)
            for c, of_stage in zip(features, rates, strict=True)
        )

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        entered: list[Tensor] = []
        left: list[Tensor] = []
        for down, stage in zip(self.downs, self.stages):  # noqa: B905  (TorchScript has no strict)
            x = down(x)
            entered.append(x)
            x = stage(x)
            left.append(x)
        return entered, left


def vss_stage(
    channels: int, drop_path: Sequence[float], backend: Backend, mixer: Mixer = "mamba"
) -> nn.Sequential:
    """A block for each rate of stochastic depth."""
    return nn.Sequential(*(GatedVSSBlock(channels, rate, backend, mixer) for rate in drop_path))


def drop_path_rates(depths: Sequence[int], first: float, last: float) -> list[list[float]]:
    """Of each stage's blocks, linear from the first block of all to the last."""
    steps = max(sum(depths) - 1, 1)
    rates = iter([(first * (steps - i) + last * i) / steps for i in range(sum(depths))])
    return [[next(rates) for _ in range(depth)] for depth in depths]


def check_depths(name: str, depths: Sequence[int], stages: int) -> None:
    """Raises ValueError where these are not whole numbers from 1 for so many stages."""
    if len(depths) != stages:
        raise ValueError(
            f"{name} has {len(depths)} stages; allowed are as many as features', {stages}."
        )
    if min(depths) < 1:
        raise ValueError(f"{name} is {tuple(depths)}; allowed are whole numbers from 1.")


def initialise_linear(module: nn.Module) -> None:
    """As the released networks: a normal distribution of deviation 0.02, cut off at 2; no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """An image (b, c, h, w) with its last row and column repeated up to a multiple each way."""
    height, width = x.shape[2:]
    return F.pad(x, [0, -width % multiple, 0, -height % multiple], mode="replicate")
