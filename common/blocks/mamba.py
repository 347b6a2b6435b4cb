"""The Mamba-1 block (Gu and Dao 2023, arXiv:2312.00752, section 3.4, figure 3)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..ops import (
    Backend,
    dtype_of_products,
    mamba_mixer,
    mamba_mixer_chunked,
    without_autocast,
)

# What mixes the tokens of a network: Mamba, or in its place what an ablation compares it with.
Mixer = Literal["mamba", "identity", "attention", "conv"]


class Mamba(nn.Module):
    """Gated selective state-space mixer of tokens, (b, l, d_model) to (b, l, d_model).

    Parameter names and shapes are those of mamba-ssm's ``Mamba``, so its state dicts load. Under
    autocast it stays in the parameters' precision, but that its projections are in bfloat16 where
    autocast is to that, on a CPU if it has AMX; its output is in the parameters' precision. Dynamic
    quantisation leaves it in floating point: one operation reads the weights of all projections.

    Args:
        d_model: channels of a token.
        d_state: states per channel, n in `selective_scan`.
        d_conv: kernel of the causal depthwise convolution before the scan.
        expand: inner channels per channel of a token.
        dt_rank: rank of the step-size projection; None is ceil(d_model / 16).
        backend: backend of `mamba_mixer`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        for name, value in (
            ("d_model", d_model),
            ("d_state", d_state),
            ("d_conv", d_conv),
            ("expand", expand),
            ("dt_rank", self.dt_rank),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed are whole numbers from 1.")
        d_inner = expand * d_model
        self.d_state = d_state
        self.d_conv = d_conv
        self.backend: Backend = backend

        linear = NonDynamicallyQuantizableLinear
        self.in_proj = linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner, padding=d_conv - 1)
        self.x_proj = linear(d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = linear(self.dt_rank, d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1)).repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = linear(d_inner, d_model, bias=False)
        init_step_size_projection(self.dt_proj.weight, self.dt_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        conv_bias = self.conv1d.bias
        assert conv_bias is not None
        weights = (
            self.in_proj.weight,
            self.conv1d.weight,
            conv_bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.dt_proj.bias,
            -torch.exp(self.A_log),
            self.D,
            self.out_proj.weight,
        )
        # TorchScript has to run where this package is not installed: no operator of ours in it.
        if torch.jit.is_scripting():
            return mamba_mixer_chunked(x, *weights)
        else:
            own = self.D.dtype
            products = dtype_of_products(x, own)
            with without_autocast(x):
                return mamba_mixer(x.to(own), *weights, products=products, backend=self.backend)


def init_step_size_projection(weight: Tensor, bias: Tensor) -> None:
    """Initialise the projection that lifts dt to the channels, in place.

    softplus(bias) is log-uniform in [1e-3, 1e-1] and the weight, (..., channels, rank), uniform
    within rank^-1/2 (Gu and Dao 2023, section 3.6, and its released code).
    """
    bound = weight.shape[-1] ** -0.5
    nn.init.uniform_(weight, -bound, bound)
    step = torch.empty_like(bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
    with torch.no_grad():
        bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
