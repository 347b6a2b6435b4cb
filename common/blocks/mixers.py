"""What a network may have in Mamba's place: its twins, which say what Mamba brings.

A new block is to be compared with the same network without it (Isensee et al. 2024,
arXiv:2404.09556). A network takes `mixer`, one of `Mixer`, and all else in it stays as it is.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from ..ops import without_autocast

Mixer = Literal["mamba", "identity", "attention", "conv"]
Twin = Literal["identity", "attention", "conv"]

_HEADS = 8  # of self-attention


def check_mixer(mixer: str) -> None:
    """Raises ValueError where this is none of `Mixer`."""
    if mixer not in get_args(Mixer):
        *first, last = map(repr, get_args(Mixer))
        raise ValueError(f"mixer is {mixer!r}; allowed are {', '.join(first)} and {last}.")


def check_heads(name: str, channels: int, expand: int = 1) -> None:
    """Raises ValueError where `expand` times the channels cannot be shared out among the heads."""
    if expand * channels % _HEADS:
        raise ValueError(
            f"{name} is {channels}; allowed with attention are multiples of {_HEADS // expand}."
        )


def build_twin(
    mixer: Twin, spatial_dims: int, channels: int, depthwise: bool = False
) -> IdentityMixer | SelfAttention | ConvolutionMixer:
    """What stands in Mamba's place: tokens (b, l, channels) and the size of their map, to tokens.

    Args:
        mixer: which.
        spatial_dims: axes of the map, whose sites are the tokens, row by row.
        channels: of a token; for attention a multiple of 8.
        depthwise: whether the convolution is of each channel alone.
    """
    if mixer == "identity":
        return IdentityMixer()
    if mixer == "attention":
        return SelfAttention(channels)
    return ConvolutionMixer(spatial_dims, channels, depthwise)


class IdentityMixer(nn.Module):
    """Nothing: each token stays as it is."""

    def forward(self, tokens: Tensor, shape: list[int]) -> Tensor:
        return tokens


class SelfAttention(nn.Module):
    """Multi-head self-attention among all tokens, which have no positions; not under autocast.

    The parameters are those of torch's ``MultiheadAttention``. Time grows with the square of the
    tokens, and so does memory where torch has no fused kernel for the device.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = _HEADS
        self.attention = nn.MultiheadAttention(channels, _HEADS, batch_first=True)

    def forward(self, tokens: Tensor, shape: list[int]) -> Tensor:
        if torch.jit.is_scripting():
            return self.attend(tokens)
        else:
            with without_autocast(tokens):
                return self.attend(tokens.to(self.attention.in_proj_weight.dtype))

    def attend(self, tokens: Tensor) -> Tensor:
        """What `forward` does, in whatever precision the tokens have."""
        # torch's own pass: without gradients, on a CPU, that one has a product for each pair of
        # tokens in memory.
        projected = F.linear(tokens, self.attention.in_proj_weight, self.attention.in_proj_bias)
        projected = projected.unflatten(-1, [3, self.heads, -1]).permute(2, 0, 3, 1, 4)
        q, k, v = projected.unbind(0)  # (b, heads, l, channels / heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.attention.out_proj(mixed.transpose(1, 2).flatten(2))


class ConvolutionMixer(nn.Module):
    """3-wide convolution of the map that the tokens are of."""

    def __init__(self, spatial_dims: int, channels: int, depthwise: bool) -> None:
        super().__init__()
        groups = channels if depthwise else 1
        self.conv = Conv["conv", spatial_dims](channels, channels, 3, padding=1, groups=groups)

    def forward(self, tokens: Tensor, shape: list[int]) -> Tensor:
        x = self.conv(tokens.unflatten(1, shape).movedim(-1, 1))
        return x.flatten(2).transpose(1, 2).to(tokens.dtype)  # under autocast, it was shorter


class ResidualMixer(nn.Module):
    """Layer norm, a twin, residual, over all sites of a map: `MambaMixer` without Mamba.

    Args:
        channels: channels of the map.
        mixer: of `build_twin`.
    """

    def __init__(self, channels: int, mixer: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2).to(self.norm.weight.dtype)  # (b, sites, c)
        mixed = self.mixer(self.norm(tokens), list(shape))
        return x + mixed.transpose(1, 2).unflatten(2, shape)
