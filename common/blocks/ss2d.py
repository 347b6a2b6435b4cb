"""VMamba's two-dimensional selective scan and its block (Liu et al. 2024, arXiv:2401.10166)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from monai.networks.layers import DropPath
from torch import Tensor, nn

from ..ops import Backend, selective_scan_2d, selective_scan_2d_chunked, without_autocast
from .mamba import init_step_size_projection
from .mixers import Mixer, Twin, build_twin


class _AroundScan(nn.Module):
    """Mixer of a map's sites, (b, h, w, channels) to the same, but for the scan in the middle."""

    def __init__(self, channels: int, expand: int, gate: bool, conv_bias: bool) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("expand", expand)):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed are whole numbers from 1.")
        d_inner = expand * channels
        self.gate = gate
        self.in_proj = nn.Linear(channels, 2 * d_inner if gate else d_inner, bias=False)
        self.conv2d = nn.Conv2d(d_inner, d_inner, 3, padding=1, groups=d_inner, bias=conv_bias)
        self.out_norm = nn.LayerNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.mix(x)
        else:
            with without_autocast(x):
                return self.mix(x.to(self.out_norm.weight.dtype))

    def mix(self, x: Tensor) -> Tensor:
        """What `forward` does, in whatever precision x has."""
        x = self.in_proj(x)
        z: Tensor | None = None
        if self.gate:
            x, z = x.chunk(2, dim=-1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2)))  # (b, d_inner, h, w)
        y = self.out_norm(self.across(x).permute(0, 2, 3, 1))
        return self.out_proj(y if z is None else y * F.silu(z))

    def across(self, x: Tensor) -> Tensor:
        """Mix the sites of a map (b, d_inner, h, w)."""
        raise NotImplementedError


class SS2D(_AroundScan):
    """Mixer of a map's sites, (b, h, w, channels) to the same (figure 4).

    Parameter names and shapes are those of VMamba's released networks, so their state dicts load.
    Under autocast it stays in the parameters' precision, and its output is.

    Args:
        channels: channels of the map.
        d_state: states per channel and direction.
        expand: inner channels per channel of the map.
        gate: whether the normalised output of the scan is multiplied by SiLU of a second input
            projection, as in VMamba's first version.
        conv_bias: whether the convolution before the scan has a bias, as it has there.
        backend: backend of `selective_scan_2d`.
    """

    def __init__(
        self,
        channels: int,
        d_state: int = 1,
        expand: int = 2,
        gate: bool = False,
        conv_bias: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(channels, expand, gate, conv_bias)
        if d_state < 1:
            raise ValueError(f"d_state is {d_state}; allowed are whole numbers from 1.")
        d_inner = expand * channels
        self.d_state = d_state
        self.dt_rank = math.ceil(channels / 16)
        self.backend: Backend = backend

        # One projection per direction, in the order of selective_scan_2d.
        self.x_proj_weight = nn.Parameter(torch.empty(4, self.dt_rank + 2 * d_state, d_inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(4, d_inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(4, d_inner))
        self.A_logs = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(4 * d_inner, 1))
        self.Ds = nn.Parameter(torch.ones(4 * d_inner))
        nn.init.uniform_(self.x_proj_weight, -(d_inner**-0.5), d_inner**-0.5)  # as nn.Linear
        init_step_size_projection(self.dt_projs_weight, self.dt_projs_bias)

    def across(self, x: Tensor) -> Tensor:
        dt, B, C = (
            F.linear(x.permute(0, 2, 3, 1), self.x_proj_weight.flatten(0, 1))
            .unflatten(-1, [4, self.dt_rank + 2 * self.d_state])
            .split([self.dt_rank, self.d_state, self.d_state], dim=-1)  # (b, h, w, 4, ...)
        )
        # One product per direction, (4, b, h, w, d_inner) in memory: the scan reads it there.
        batch, height, width = dt.shape[:3]
        delta = torch.bmm(dt.permute(3, 0, 1, 2, 4).flatten(1, 3), self.dt_projs_weight.mT)
        delta = delta.unflatten(1, [batch, height, width]).permute(1, 0, 4, 2, 3)
        return self._scan(x, delta, B.permute(0, 3, 4, 1, 2), C.permute(0, 3, 4, 1, 2))

    def _scan(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor:
        A = -torch.exp(self.A_logs).unflatten(0, [4, -1])
        D = self.Ds.unflatten(0, [4, -1])
        bias = self.dt_projs_bias
        # TorchScript has to run where this package is not installed: no operator of ours in it.
        if torch.jit.is_scripting():
            return selective_scan_2d_chunked(u, delta, A, B, C, D, bias, True)
        else:
            return selective_scan_2d(u, delta, A, B, C, D, bias, True, backend=self.backend)


class SS2DTwin(_AroundScan):
    """SS2D with another mixer in the scan's place, or none (Yu and Wang 2024, arXiv:2405.07992).

    Projections, depthwise convolution, norm and gate stay: they are all of the convolutions and
    activations that a network of gated blocks has, so that without them it would say more of those
    than of the scan.

    Args:
        channels: channels of the map; for attention a multiple of 4.
        mixer: "identity"; "conv", a convolution of each channel alone, as the scan is; or
            "attention", whose memory grows with the square of the sites where torch has no fused
            kernel.
        expand, gate, conv_bias: as in `SS2D`.
    """

    def __init__(
        self,
        channels: int,
        mixer: Twin,
        expand: int = 2,
        gate: bool = False,
        conv_bias: bool = False,
    ) -> None:
        super().__init__(channels, expand, gate, conv_bias)
        self.mixer = build_twin(mixer, 2, expand * channels, depthwise=True)

    def across(self, x: Tensor) -> Tensor:
        shape = x.shape[2:]
        tokens = self.mixer(x.flatten(2).transpose(1, 2), list(shape))
        return tokens.transpose(1, 2).unflatten(2, shape)


class VSSBlock(nn.Module):
    """Visual state-space block, (b, channels, h, w) to the same: SS2D, then an MLP, both residual.

    Fastest on maps in channels-last memory format, which its output has.

    Args:
        channels: channels of the map.
        drop_path: probability that a sample skips a branch, in training (stochastic depth).
        backend: backend of `selective_scan_2d`.
        mixer: "mamba"; others are of `SS2DTwin`.
    """

    def __init__(
        self,
        channels: int,
        drop_path: float = 0.0,
        backend: Backend = "auto",
        mixer: Mixer = "mamba",
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.mixer: nn.Module
        if mixer == "mamba":
            self.mixer = SS2D(channels, backend=backend)
        else:
            self.mixer = SS2DTwin(channels, mixer)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).to(self.norm1.weight.dtype)
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


class GatedVSSBlock(nn.Module):
    """Block of VMamba's first version, (b, channels, h, w) to the same: gated SS2D, residual.

    It has 16 states, a convolution with a bias, and no MLP. Fastest on maps in channels-last memory
    format, which its output has.

    Args:
        channels: channels of the map.
        drop_path: probability that a sample skips the branch, in training (stochastic depth).
        backend: backend of `selective_scan_2d`.
        mixer: "mamba"; others are of `SS2DTwin`.
    """

    def __init__(
        self,
        channels: int,
        drop_path: float = 0.0,
        backend: Backend = "auto",
        mixer: Mixer = "mamba",
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mixer: nn.Module
        if mixer == "mamba":
            self.mixer = SS2D(channels, d_state=16, gate=True, conv_bias=True, backend=backend)
        else:
            self.mixer = SS2DTwin(channels, mixer, gate=True, conv_bias=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1).to(self.norm.weight.dtype)
        return (x + self.drop_path(self.mixer(self.norm(x)))).permute(0, 3, 1, 2)
